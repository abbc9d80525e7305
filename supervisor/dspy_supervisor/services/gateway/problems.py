"""Errors as answers: ``application/problem+json`` (RFC 9457) below /v1, one line of plain text on the older routes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ...control_client import RequestRefused
from ...errors import (
    ConfigError,
    DuplicateTask,
    EnvelopeInvalid,
    NotRunning,
    QueueFormat,
    QueueFull,
    QueueMissing,
    QueueUnsafe,
    ServiceUnavailable,
    SupervisorError,
    TaskNotFound,
    WaitTimeout,
)
from .answers import dumps

RETRY_S = 1  #: what a caller is asked to wait while the queue is full
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STATUS: Mapping[type[SupervisorError], int] = {
    EnvelopeInvalid: 422,
    ConfigError: 422,
    DuplicateTask: 409,
    QueueFull: 429,
    TaskNotFound: 404,
    QueueMissing: 503,
    QueueFormat: 503,
    QueueUnsafe: 503,
    NotRunning: 503,
    ServiceUnavailable: 503,
    WaitTimeout: 504,
}
_OF_EXIT_CODE = {2: 422, 3: 503, 4: 404, 5: 504, 69: 503, 75: 429, 78: 422}


class Problem(Exception):
    """A request that can't be answered as it wishes."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def answer(self, path: str) -> Response:
        """Return the answer to a request for this path."""
        if path.startswith("/v1/"):
            title = HTTPStatus(self.status).phrase
            body = dumps({"type": "about:blank", "title": title, "status": self.status, "detail": self.detail})
            return Response(body, self.status, self.headers, "application/problem+json")
        return Response(self.detail + "\n", self.status, self.headers, "text/plain")


def problem_of(error: Exception) -> Problem | None:
    """Return what an error means to the caller, None for one that nobody foresaw."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, error.detail, headers=error.headers)
    if isinstance(error, QueueFull):
        if "disk" in error.what:
            return Problem(507, str(error))
        return Problem(429, str(error), headers={"Retry-After": str(RETRY_S)})
    if isinstance(error, RequestRefused):
        return Problem(_OF_EXIT_CODE.get(error.exit_code, 409), str(error))
    if isinstance(error, SupervisorError):
        return Problem(_STATUS.get(type(error), 409), str(error))
    if isinstance(error, OSError) and error.errno in _FULL:
        return Problem(507, f"the disk takes no more: {error.strerror}")
    return None

"""Many tasks in one request: /v1/tasks/batch, a line each way for each."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .context import Context


def routes(_: Context) -> list[BaseRoute]:
    """Return the routes of batches."""
    return []

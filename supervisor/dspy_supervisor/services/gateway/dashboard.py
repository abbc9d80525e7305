"""The dashboard: the page at /, and its files below /static/.

They are read once, when the gateway starts, so no path that a caller sends reaches the disk. A browser asks anew each time
and is told by the ETag that it has them: after an update no old script meets a new page. The policy lets the page load
what lies here and ask who served it, nothing else; scripts and styles within it are refused, and so is text as HTML.
"""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .context import Context
from .problems import Problem

POLICY = "; ".join((
    "default-src 'none'",
    *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img")),
    *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE = "index.html"


class _File(NamedTuple):
    kind: str
    tag: str
    plain: bytes
    packed: bytes  # by gzip


def routes(_: Context) -> list[BaseRoute]:
    """Return the routes of the dashboard."""
    known = {name: _read(name, content) for name, content in _below(files(__package__) / "static")}

    async def page(request: Request) -> Response:
        return _answer(request, known[_PAGE])

    async def static(request: Request) -> Response:
        name = str(request.path_params["name"])
        if name not in known:
            raise Problem(404, f"the dashboard has no file {name[:100]!r}")
        return _answer(request, known[name])

    return [Route("/", page), Route("/static/{name:path}", static)]


def _below(folder: Traversable, prefix: str = "") -> list[tuple[str, bytes]]:
    """Return the names, with slashes, and the contents of what browsers are given of a folder."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _below(entry, f"{prefix}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _KINDS:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found


def _read(name: str, content: bytes) -> _File:
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    return _File(_KINDS[name.rpartition(".")[2]], tag, content, gzip.compress(content, 6, mtime=0))


def _answer(request: Request, file: _File) -> Response:
    headers = {
        "Content-Type": file.kind,
        "ETag": file.tag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": POLICY,
    }
    if file.tag in request.headers.get("if-none-match", "").replace("W/", "").split(", "):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.plain, headers=headers)

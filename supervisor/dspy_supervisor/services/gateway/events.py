"""What happens, as it happens: /v1/events."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .context import Context


def routes(_: Context) -> list[BaseRoute]:
    """Return the routes of events."""
    return []

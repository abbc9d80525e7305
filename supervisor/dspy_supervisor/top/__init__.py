"""`top`: a queue and its supervisor in a terminal, live.

::

    sight     what there is to see: asked of the control socket, the page and the folders, without HTTP
    words     numbers and times as people read them
    app       the screen with its tabs, and what its keys do
    task      one task: its story, its error, and what can be done about it
    questions what is asked before something is changed

Needs the extra [tui].
"""

from __future__ import annotations

from importlib import import_module

from ..config import Config
from ..errors import ServiceUnavailable

REMEDY = "there is no textual to draw with: pip install 'dspy-supervisor[tui]'"


def run(config: Config) -> int:
    """Show the configured queue until told to quit. Raises ServiceUnavailable where the extra is missing, QueueMissing."""
    try:
        import_module("textual")
    except ModuleNotFoundError:
        raise ServiceUnavailable(REMEDY) from None
    from .app import Top
    from .sight import Sight

    with Sight(config) as sight:
        return Top(sight).run() or 0

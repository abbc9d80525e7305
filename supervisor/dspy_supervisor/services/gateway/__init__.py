"""The gateway: the queue and its supervisor over HTTP, in a process of its own that no task depends on.

::

    service     the process: its loop, its link to the supervisor, its end
    listening   the addresses it serves, each bound as soon as that can be
    connection  one connection: what a slow or a wordy caller gets
    guarding    what every request passes: host, origin, token
    exchange    one request and its answer: bounds, time-outs, what every answer carries
    problems    errors as answers
    answers     JSON as answers
    context     what the routes share: the queue, the page, the supervisor
    disk        putting tasks, many with the syncs of one
    asking      what a caller asks for, checked; incoming: what it puts
    views       rows of tasks and lists of them; story, failures, jobs, outputs and overview: what else is told
    lookout     what happens in the folders, kept by the ring for those who listen; streams: answers that go on

Beside them a module for each group of routes, with ``routes(context)``.
"""

from __future__ import annotations

from importlib import import_module, invalidate_caches

from ...parts import ServicePost

REMEDY = "pip install 'dspy-supervisor[api]'"
NEEDED = ("httptools", "starlette", "uvicorn")  #: of the extra [api]
_AGAIN_S = 30.0


def run(post: ServicePost) -> int:
    """Be the gateway of a supervisor; return the exit code."""
    post.link.send({"op": "state", "listening": []})  # whatever the one before us said
    while missing := _missing():
        post.link.send(
            {"op": "state", "listening": [], "problem": f"there is no {missing} to serve HTTP with: {REMEDY}"}
        )
        if _told_to_stop(post, _AGAIN_S):
            return 0
    from .service import run as serve  # what it needs is loaded in this process alone

    return serve(post)


def _missing() -> str:
    """Return what of the extra is not installed."""
    invalidate_caches()
    for name in NEEDED:
        try:
            import_module(name)
        except ImportError:
            return name
    return ""


def _told_to_stop(post: ServicePost, within_s: float) -> bool:
    for _ in range(round(within_s)):
        if any(message["op"] == "stop" for message in post.link.receive(1.0)):
            return True
        post.link.alive()
    return False

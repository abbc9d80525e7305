"""A supervisor whose services are those of this file: ``python -m tests.system.crew start ...``.

What each does is said by a file in the queue's folder: CREW/NAME.do holds one word, read at its birth.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

from dspy_supervisor import crew, loop, orders, sidecar
from dspy_supervisor.__main__ import main
from dspy_supervisor.channel import Kind
from dspy_supervisor.layout import Layout
from dspy_supervisor.parts import ServicePost
from dspy_supervisor.record import Run, done_record
from dspy_supervisor.taskqueue import TaskQueue


def told(post: ServicePost) -> str:
    """Return the word that this service finds."""
    with contextlib.suppress(FileNotFoundError):
        return (post.queue_dir.parent / "crew" / f"{post.name}.do").read_text().strip()
    return ""


def steer(post: ServicePost) -> int:
    """Say a limit whenever the file changes; hang, die or babble where it says so."""
    before = ""
    while True:
        word = told(post)
        if word == "die":
            return 3
        if word == "hang":
            while True:
                time.sleep(60)
        if word == "babble":
            post.link.send({"nonsense": True})
        if word.isdigit() and word != before:
            post.link.send(
                {"op": "limit", "class": "cpu_short", "limit": int(word), "reason": "vram", "why": f"told {word}"}
            )
        before = word
        post.link.send({"op": "state", "word": word})
        if any(message["op"] == "stop" for message in post.link.receive(0.05)):
            return 0


def carry(post: ServicePost) -> int:
    """Run each task that it is fed by itself: the result is the payload and this process."""
    with Layout.open(post.queue_dir, insecure=True) as layout:
        queue = TaskQueue(layout, max_bytes=1 << 20, max_depth=64)
        folder = queue.open_owner(post.owner)
        held = []
        while True:
            for message in post.link.receive(0.05):
                if message["op"] == "stop":
                    return 0
                if message["op"] == "feed":
                    if told(post) == "die":
                        os._exit(4)
                    held += message["files"]
            post.link.send({"op": "state", "inflight": len(held), "word": told(post)})
            if told(post) == "hold":
                continue
            for file in held:
                claim = queue.claim(file, folder)
                if claim is not None:
                    now = time.time()
                    run = Run(now, now, 0.0, os.getpid(), post.owner)
                    queue.finish(claim, folder, done_record(claim, b'"carried"', run))
                post.link.send({"op": "report", "kind": int(Kind.DONE), "file": file, "run_s": 0.0})
            held = []


if __name__ == "__main__":
    here = Path(__file__).stem
    crew.KINDS = (
        crew.Kind("controller", f"tests.system.{here}:steer", lambda config: config.policy != "plan"),
        crew.Kind("slurm", f"tests.system.{here}:carry", lambda _: True),
    )
    if patience_s := os.environ.get("CREW_PATIENCE_S"):  # with a controller that is silent
        orders._STEERED_S, loop._STEER_S = float(patience_s), 0.1
    sidecar.MEND_S = float(os.environ.get("CREW_MEND_S", sidecar.MEND_S))
    sys.exit(main())

"""Random interleavings of everything that moves a task, with deaths, by the model of tests/unit/test_queue_model.py.

::

    python -m tests.rigs.stateful [--examples 1000]      then the planted bugs, each of which must be found

Exit code 1 where an invariant breaks, or a planted bug is not found. What is found is shrunk to a short story by hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from typing import Any
from unittest import mock

from dspy_supervisor import taskqueue
from dspy_supervisor.task import TaskName
from dspy_supervisor.taskqueue import TaskQueue
from hypothesis import Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from .. import queues
from ..unit.test_queue_model import QUICK, QueueMachine


def _same_name_again(self: TaskName, *, crashed: bool) -> TaskName:  # a name is used twice
    return dataclasses.replace(self, crashes=self.crashes + 1) if crashed and self.crashes < self.attempt else self


def _no_fence(self: TaskQueue, held: Any, owner_folder: int, record: bytes, target: int) -> bool:
    """What ran to its end is recorded, whoever has the claim now."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{held.name.id}.json", dir_fd=target)
    taskqueue.write_new(target, f"{held.name.id}.json".encode(), record, False)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(held.file, dir_fd=owner_folder)
    return True


def _forgotten_before_published(self: TaskQueue, name: TaskName, target: int, owner_folder: int) -> bool:
    self.forget_commit(name, target, published=True)
    return self.publish(name, target)


def _nothing(*_: Any, **__: Any) -> None:
    return None


#: name: what is broken
PLANTS: dict[str, tuple[Any, str, Any]] = {
    "a name is used twice": (TaskName, "charged", _same_name_again),
    "no fence": (TaskQueue, "_complete", _no_fence),
    "a commit is forgotten before its record is published": (TaskQueue, "_conclude", _forgotten_before_published),
    "commits are not settled after a death": (queues, "settle_commits", _nothing),
}


def run(examples: int, steps: int, *, derandomize: bool = False) -> str:
    """Run the machine; return what is wrong, or ""."""
    phases = (Phase.generate,) if derandomize else (Phase.generate, Phase.shrink)
    chosen = settings(
        QUICK,
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=derandomize,
        phases=phases,
        verbosity=Verbosity.quiet,
    )
    try:
        run_state_machine_as_test(QueueMachine, settings=chosen)
    except Exception as error:  # what a planted bug breaks may be anything
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> int:
    """Run what the command line names; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.stateful", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--examples", type=int, default=1000, help="stories of 50 steps; default: 1000")
    arguments = parser.parse_args()
    begun = time.monotonic()
    wrong = run(arguments.examples, 50)
    bad = bool(wrong)
    print(f"{arguments.examples} stories: {wrong or 'no violation'} ({time.monotonic() - begun:.0f} s)", flush=True)
    for name, (owner, attribute, bug) in PLANTS.items():
        begun = time.monotonic()
        with mock.patch.object(owner, attribute, bug):
            found = run(300, 50, derandomize=True)
        bad |= not found
        said = f"found: {found.splitlines()[0][:100]}" if found else "NOT FOUND"
        print(f"planted: {name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())

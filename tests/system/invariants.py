"""What must hold of a queue after every fault (PROTOCOL: I1 to I4), judged from its folders alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dspy_supervisor.task import TaskName
from dspy_supervisor.taskqueue import parse_delayed, parse_won
from dspy_supervisor.tears import BESIDE

STATES = ("pending", "delayed", "claimed", "done", "failed")


def places(queue: Path) -> dict[str, list[str]]:
    """Return by task id the names that stand for it, as folder/name.

    A commit whose record is not published yet stands for its task; beside the record it is only a leftover of a moment.
    """
    found: dict[str, list[str]] = {}
    published = set()
    for state in ("done", "failed"):
        for path in sorted((queue / state).iterdir()):
            if not path.name.startswith(".") and path.suffix == ".json":
                found.setdefault(path.stem, []).append(f"{state}/{path.name}")
                published.add(path.stem)
    for state in ("done", "failed"):
        for path in sorted((queue / state).iterdir()):
            if (name := parse_won(path.name)) and name.id not in published:
                found.setdefault(name.id, []).append(f"{state}/{path.name}")
    for path in sorted((queue / "pending").iterdir()):
        if name := TaskName.parse(path.name):
            found.setdefault(name.id, []).append(f"pending/{path.name}")
    for path in sorted((queue / "delayed").iterdir()):
        if parsed := parse_delayed(path.name):
            found.setdefault(parsed[1].id, []).append(f"delayed/{path.name}")
    for owner in sorted((queue / "claimed").iterdir()):
        for path in sorted(owner.iterdir()):
            if name := TaskName.parse(path.name):
                found.setdefault(name.id, []).append(f"claimed/{owner.name}/{path.name}")
    return found


def record(queue: Path, task_id: str, state: str = "done") -> dict[str, Any]:
    """Return the record of a task."""
    return json.loads((queue / state / f"{task_id}.json").read_bytes())


def violations(
    queue: Path,
    accepted: Collection[str],
    *,
    results: Mapping[str, Any] | None = None,  # what each done task must have as its runner_result
    may_fail: Collection[str] = (),  # tasks whose own fault it would be
    drained: bool = False,
) -> list[str]:
    """Return what is wrong, in words, or nothing."""
    wrong = []
    found = places(queue)
    for task_id in sorted(accepted):
        names = found.get(task_id, [])
        if len(names) != 1:
            wrong.append(f"I1: {task_id} is under {len(names)} names: {names}")
        elif drained and not names[0].startswith(("done/", "failed/")):
            wrong.append(f"I4: {task_id} is still {names[0]}")
        elif names[0].startswith("failed/") and task_id not in may_fail:
            wrong.append(f"I3: {task_id} is condemned: {_error(queue, task_id)}")
    for path in (queue / "quarantine").glob("*.json"):
        note = path.with_name(f"{path.name}.reason")
        reason = json.loads(note.read_bytes())["reason"] if note.exists() else ""
        if not reason.startswith(BESIDE):  # else it is a copy: its task is where I1 finds it
            wrong.append(f"I3: quarantine/ holds {path.name}")
    for state in ("done", "failed"):
        for path in (queue / state).iterdir():
            if path.name.startswith("."):
                if drained:
                    wrong.append(f"I4: {state}/{path.name} is left over")
                continue
            try:
                whole = json.loads(path.read_bytes())
            except ValueError as error:
                wrong.append(f"I2: {state}/{path.name} is not whole: {error}")
                continue
            if whole.get("task_id") != path.stem or whole.get("status") != state:
                wrong.append(f"I2: {state}/{path.name} says it is {whole.get('status')} {whole.get('task_id')}")
            elif state == "done" and results is not None and path.stem in results:
                got = whole.get("runner_result")
                if got != results[path.stem]:
                    wrong.append(f"I2: {path.name} has the result {got!r} in place of {results[path.stem]!r}")
    if drained:
        left = [f"{folder}/{path.name}" for folder in ("results", "claimed") for path in (queue / folder).glob("*/*")]
        left += [f"results/{path.name}" for path in (queue / "results").iterdir()]
        wrong += [f"I4: {name} is left over" for name in left]
    return wrong


def check(queue: Path, accepted: Collection[str], **more: Any) -> None:
    """Raise AssertionError where an invariant does not hold."""
    wrong = violations(queue, accepted, **more)
    assert not wrong, "\n".join([f"{len(wrong)} violations", *wrong[:20]])


def runs(log: Path) -> Counter[str]:
    """Return how often each task really ran, from the log its handler wrote."""
    if not log.exists():
        return Counter()
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def _error(queue: Path, task_id: str) -> object:
    return record(queue, task_id, "failed").get("error")

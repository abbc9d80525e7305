"""From claimed tasks to submissions: which of them become one array, and what lies on disk before sbatch is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ...jobbook import JobBook, JobFacts, Order, Submission, new_name
from ...record import Claim
from .plan import JobPlan

MAX_ARRAY = 1000  #: elements: what clusters take as they come


@dataclass(frozen=True, slots=True)
class Planned:
    """A claimed task, and the job it is to become."""

    held: Claim
    plan: JobPlan


@dataclass(frozen=True, slots=True)
class Prepared:
    """A submission that is on disk, and the command that submits it."""

    submission: Submission
    argv: tuple[str, ...]
    script: bytes
    environment: tuple[tuple[str, str], ...]


def grouped(planned: Iterable[Planned], max_array_size: int) -> list[list[Planned]]:
    """Return the tasks by what can be submitted at once: like ones as arrays, the others alone, in the order they came."""
    alike: dict[tuple[object, ...], list[Planned]] = {}
    for number, one in enumerate(planned):
        key = (one.plan, one.held.workload) if one.plan.array else (number,)
        alike.setdefault(key, []).append(one)
    longest = max(1, min(max_array_size - 1, MAX_ARRAY))
    return [group[at : at + longest] for group in alike.values() for at in range(0, len(group), longest)]


def prepare(
    book: JobBook,
    group: Sequence[Planned],
    *,
    owner: str,
    python: str,
    cwd: str,
    settings: Mapping[str, Any],
    render: Any,  # (plan, facts) -> the script
    task_files: Any,  # (plan, claim, facts, index) -> files beside task.json
    tick: Callable[[], object] = lambda: None,
) -> Prepared:
    """Put a submission on disk, with all that its jobs need. Raises OSError, or what render raises."""
    plan, array = group[0].plan, len(group) > 1
    name = new_name(book.layout.queue_id)
    facts = JobFacts(name, book.path / name, len(group), array, python)
    script: bytes = render(plan, facts)
    queue = str(book.layout.path)
    orders = [
        Order(
            one.held.file,
            {
                "task.json": _task(one.held, name, index, queue, settings),
                **task_files(one.plan, one.held, facts, index),
            },
        )
        for index, one in enumerate(group)
    ]
    intent = {"owner": owner, "array": array, "template": plan.template, "options": plan.options}
    intent["class"] = str(group[0].held.workload)
    submission = book.write(name, orders, intent, script, tick)
    return Prepared(submission, sbatch_argv(plan, facts, cwd), script, plan.environment)


def sbatch_argv(plan: JobPlan, facts: JobFacts, cwd: str) -> tuple[str, ...]:
    """Return the command that submits a script from its standard input; every option is one argument."""
    folder = str(facts.folder).replace("%", "%%")
    index = "%a" if facts.array else "0"
    argv = ["sbatch", "--parsable", *plan.options]
    argv += [f"--job-name={facts.name}", f"--output={folder}/{index}/out", "--open-mode=append", f"--chdir={cwd}"]
    argv.append("--export=ALL")  # of an environment that holds nothing secret
    if facts.array:
        throttle = f"%{plan.throttle}" if plan.throttle else ""
        argv.append(f"--array=0-{facts.size - 1}{throttle}")
    return tuple(argv)  # without a file it reads the script from its standard input


def _task(held: Claim, name: str, index: int, queue: str, settings: Mapping[str, Any]) -> bytes:
    facts = {
        "name": name,
        "index": index,
        "file": held.file,
        "id": held.name.id,
        "attempt": held.name.attempt,
        "crashes": held.name.crashes,
        "class": str(held.workload),
        "kind": held.fields.kind,
        "timeout_s": held.fields.timeout_s,
        "queue": queue,
        "home": str(Path(queue) / "logs" / held.name.id),
        "settings": settings,
    }
    return orjson.dumps(facts)[:-1] + b',"envelope":' + held.envelope + b"}"

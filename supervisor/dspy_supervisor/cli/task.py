"""`task`: single tasks, by their ids."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ..config import CLASSES, Loaded
from ..errors import EXIT_FAILED, EXIT_OK, SupervisorError, TaskNotFound, message_of
from ..task import State
from .look import copy, counted, described, ended, listed, log_files, short
from .number import WAIT_S
from .options import open_queue, with_config
from .output import duration, json_option, moment, print_facts, print_json, print_table, printable
from .words import task_ids

if TYPE_CHECKING:
    from ..layout import Layout

_IDS = click.argument("ids", nargs=-1, required=True, metavar="ID...", shell_complete=task_ids)


@click.group()
def task() -> None:
    """Look at tasks, wait for them, cancel or retry them."""


@task.command()
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@json_option
@with_config
def show(loaded: Loaded, task_id: str, as_json: bool) -> None:
    """Show where a task is, what it asks for, and how it ended."""
    with open_queue(loaded) as layout:
        document = described(layout, task_id)
    if as_json:
        print_json(document)
        return
    record: Mapping[str, Any] = document.get("record") or document.get("envelope") or {}
    error = record.get("error") or {}
    facts = {
        "id": task_id,
        "state": document["state"],
        "class": record.get("class"),
        "kind": record.get("kind"),
        "attempt": counted(document["attempt"], record, loaded)
        + (f", {document['crashes']} deaths of workers" if document["crashes"] else "")
        if record
        else None,
        "owner": document.get("owner"),
        "job": document.get("job") or _job(record.get("slurm")),
        "starts": None if document.get("due") is None else f"in {duration(document['due'] - time.time())}",
        "submitted": _local(record.get("submitted_at")),
        "ended": _local(record.get("completed_at")),
        "ran for": duration(record["duration_ms"] / 1000) if "duration_ms" in record else None,
        "cause": error.get("cause"),
        "message": message_of(error) if error else None,
        "refused": document.get("reason"),
        "payload": short(record.get("payload")) if record else None,
        "result": short(record["runner_result"]) if "runner_result" in record else None,
    }
    print_facts({name: value for name, value in facts.items() if value is not None})
    for earlier in record.get("history", ()):
        number = earlier.get("attempt")
        number = number + 1 if isinstance(number, int) else "?"
        click.echo(printable(f"  attempt {number}: {earlier.get('cause')}: {message_of(earlier)}"))
    for part in ("traceback", "stacks"):
        if error.get(part):
            click.echo("\nwhere it stood:" if part == "stacks" else "")
            for line in str(error[part]).splitlines():
                click.echo(printable(line))


@task.command("list")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(state) for state in State]),
    help="Only this state; repeatable.",
)
@click.option("--class", "task_class", type=click.Choice(CLASSES, case_sensitive=False), help="Only this class.")
@click.option("--limit", default=100, type=click.IntRange(min=1), metavar="N", help="The last so many; default 100.")
@json_option
@with_config
def list_tasks(loaded: Loaded, states: tuple[str, ...], task_class: str | None, limit: int, as_json: bool) -> None:
    """List tasks by state and id; ids made here are in the order of their making."""
    rows: list[dict[str, Any]] = []
    left_out = 0
    with open_queue(loaded) as layout:
        for state in [State(name) for name in states] or list(State):
            found, more = listed(layout, state, task_class, limit)
            rows += found
            left_out += more
    if as_json:
        print_json({"tasks": rows, "left_out": left_out})
        return
    columns = ["id", "state", "class", "kind", "attempt", "detail"]
    shown = [{**row, "attempt": row["attempt"] + 1} for row in rows]
    print_table(columns, [["" if row.get(column) is None else row[column] for column in columns] for row in shown])
    if left_out:
        click.echo(f"\n{left_out} more are there; --limit shows them", err=True)


@task.command()
@_IDS
@click.option("--timeout-wait", type=WAIT_S, metavar="S", help="Wait so long at most; then 5.")
@json_option
@with_config
def wait(loaded: Loaded, ids: tuple[str, ...], timeout_wait: float | None, as_json: bool) -> int:
    """Wait for tasks, and print their results as they end.

    Exit codes: 0 all are done; 1 one failed; 4 there is no such task; 5 the time was up.
    """
    return report_wait(loaded, ids, timeout_wait, as_json=as_json)


@task.command()
@_IDS
@json_option
@with_config
def cancel(loaded: Loaded, ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks: those that wait never run, those that run are ended."""
    from ..client.cancelling import cancel as cancel_task

    was = {}
    with open_queue(loaded) as layout:
        for task_id in ids:
            was[task_id] = cancel_task(layout, loaded.config.runtime_dir, task_id)
            if not as_json:
                click.echo(f"{task_id}: cancelled, it was {was[task_id]}")
    if as_json:
        print_json({"cancelled": was})


@task.command()
@_IDS
@json_option
@with_config
def retry(loaded: Loaded, ids: tuple[str, ...], as_json: bool) -> None:
    """Let failed tasks be tried again, with all their attempts."""
    from ..producer import put_again

    with open_queue(loaded) as layout:
        for task_id in ids:
            put_again(layout, task_id)
            if not as_json:
                click.echo(f"{task_id}: waits again")
    if as_json:
        print_json({"retried": list(ids)})


@task.command()
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@click.option("--file", "file_name", metavar="NAME", help="Only this file.")
@click.option("--names", is_flag=True, help="Only the names and sizes.")
@json_option
@with_config
def logs(loaded: Loaded, task_id: str, file_name: str | None, names: bool, as_json: bool) -> None:
    """Print what a task wrote: its output, and what is known of its past attempts."""
    with open_queue(loaded) as layout:
        found = dict(log_files(layout, task_id))
        if not found and _absent(layout, task_id):
            raise TaskNotFound(task_id, layout.path)
        if file_name is not None and file_name not in found:
            raise SupervisorError(f"task {task_id} has no file {file_name!r}; it has {', '.join(found) or 'none'}")
        chosen = [file_name] if file_name is not None else list(found)
        if as_json:
            files = [
                {"name": name, "bytes": found[name], "path": str(layout.path / "logs" / task_id / name)}
                for name in chosen
            ]
            print_json({"id": task_id, "files": files})
        elif names:
            print_table(["file", "bytes"], [[name, found[name]] for name in chosen])
        else:
            for name in chosen:
                if len(chosen) > 1:
                    click.echo(f"==> {printable(name)} <==")
                copy(layout, task_id, name)


def report_wait(loaded: Loaded, ids: Sequence[str], timeout_s: float | None, *, as_json: bool) -> int:
    """Wait for tasks, print each result as it comes, and return the exit code."""
    records: dict[str, Mapping[str, Any]] = {}
    failed = 0
    progress = sys.stderr.isatty() and len(ids) > 1
    for task_id, record in ended(loaded, ids, timeout_s):
        good = record.get("status") == "done"
        failed += not good
        if as_json:
            records[task_id] = record
        elif good:
            click.echo(_line(task_id, record["runner_result"], alone=len(ids) == 1))
        else:
            error = record.get("error") or {}
            click.echo(printable(f"{task_id}: failed ({error.get('cause')}): {message_of(error)}"), err=True)
        if progress:
            records.setdefault(task_id, {})
            click.echo(f"\r{len(records)} of {len(ids)} ended, {failed} failed", nl=len(records) == len(ids), err=True)
    if as_json:
        print_json({"done": len(ids) - failed, "failed": failed, "tasks": [{"task_id": i, **records[i]} for i in ids]})
    return EXIT_FAILED if failed else EXIT_OK


def _absent(layout: Layout, task_id: str) -> bool:
    from ..lookup import find_one

    return find_one(layout, task_id) is None


def _line(task_id: str, result: object, *, alone: bool) -> str:
    import orjson

    text = orjson.dumps(result).decode()
    return text if alone else f"{task_id}\t{text}"


def _job(facts: object) -> str | None:
    """Return in words what a record tells of the job of a cluster that ran the task."""
    if not isinstance(facts, Mapping):
        return None
    text = f"job {facts.get('job')}" + (f" of cluster {facts['cluster']}" if facts.get("cluster") else "")
    text += f", {facts['slurm_state']}" if facts.get("slurm_state") else ""
    text += f" on {facts['nodes']}" if facts.get("nodes") else ""
    rss = facts.get("max_rss_bytes")
    return text + (f", {rss / (1 << 20):.0f} MiB at most" if isinstance(rss, int | float) else "")


def _local(written: object) -> str | None:
    """Return an RFC 3339 time as this place writes it."""
    return moment(datetime.fromisoformat(written).timestamp()) if isinstance(written, str) else None

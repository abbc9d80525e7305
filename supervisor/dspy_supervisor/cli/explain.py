"""`explain`: why a task does not run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ..config import Config, Loaded
from ..control_client import ask
from ..errors import NotRunning, TaskNotFound
from .options import open_queue, with_config
from .output import duration, json_option, print_json, printable
from .service import supervisor_socket
from .words import task_ids

if TYPE_CHECKING:
    from ..layout import Layout


@click.command()
@click.argument("task_id", metavar="ID", shell_complete=task_ids)
@json_option
@with_config
def explain(loaded: Loaded, task_id: str, as_json: bool) -> None:
    """Say why a task does not run."""
    try:
        answer = ask(supervisor_socket(loaded.config), {"do": "explain", "id": task_id})
        running, text = True, str(answer["explanation"])
    except NotRunning:
        running = False
        with open_queue(loaded) as layout:
            text = _explained(layout, loaded.config, task_id)
    if as_json:
        print_json({"id": task_id, "running": running, "explanation": text})
    else:
        click.echo(printable(f"{task_id}: {text}"))


def _explained(layout: Layout, config: Config, task_id: str) -> str:
    """Return what the folders alone say, where no supervisor of this host serves them."""
    from ..jobbook import JobBook, is_carried
    from ..lookup import find_one, quarantined
    from ..task import State

    found = find_one(layout, task_id)
    if found is None:
        if reason := quarantined(layout, task_id):
            return f"it was refused and lies in quarantine/: {reason}"
        raise TaskNotFound(task_id, layout.path)
    if found.state in (State.DONE, State.FAILED):
        return f"it is {found.state}: see 'dspy-supervisor task show {task_id}'"
    if found.state is State.CLAIMED:
        if found.owner and is_carried(found.owner):
            text = JobBook(layout).describe(found.file, found.owner)
            return f"{text}; no supervisor of this host watches it: a start with the same settings takes it over"
        return (
            f"{found.owner} has it: a supervisor of another host, or one that was killed; the next start takes it back"
        )
    nobody = f"no supervisor of this host serves the queue: 'dspy-supervisor start --queue-dir {config.queue_dir}'"
    if found.due is not None and (left := found.due - time.time()) > 0:
        return f"it waits for its time, {duration(left)} from now, and {nobody}"
    return f"it waits, because {nobody}"

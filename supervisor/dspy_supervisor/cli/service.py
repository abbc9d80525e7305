"""`start`, `stop` and `status`: the supervisor of a queue."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..config import Config, Loaded
from ..control_client import ask, find_by_queue, socket_path
from ..errors import NotRunning, QueueMissing, WaitTimeout
from .number import WAIT_S
from .options import with_config, with_whole_config
from .output import duration, json_option, print_facts, print_json, print_table
from .past import past, print_past, span

_LONGEST_POLL_S = 86400.0  # the kernel counts milliseconds in an int
_EXIT_NOT_RUNNING = NotRunning.exit_code


def supervisor_socket(config: Config) -> Path:
    """Return the control socket of the configured queue's supervisor. NotRunning where there is none."""
    from ..layout import Layout

    try:
        with Layout.open(config.queue_dir, insecure=True) as layout:  # only its id is read
            return socket_path(config.runtime_dir, layout.queue_id, config.instance)
    except QueueMissing:
        return find_by_queue(config.runtime_dir, config.queue_dir, config.instance)


@click.command()
@with_whole_config
def start(loaded: Loaded) -> int:
    """Serve a queue in the foreground.

    TERM and Ctrl-C let running tasks end (a second one does not), HUP reads the settings anew, USR1 reopens the log, USR2
    turns to the version of this program that is installed now.
    """
    from ..environment import handed_over

    word, document = handed_over() or ("", None)
    if word == "check" and document is not None:
        from ..upgrade import examine

        return examine(loaded, document)
    from ..loop import run

    whole = bool(click.get_current_context().obj)
    code: int = run(loaded, tuple(sys.orig_argv) if whole else (), document)
    return code


@click.command()
@click.option("--now", is_flag=True, help="Do not wait for running tasks: they run again at the next start.")
@click.option("--timeout-wait", type=WAIT_S, metavar="S", help="Wait so long for the end; 0: not at all.")
@json_option
@with_config
def stop(loaded: Loaded, now: bool, timeout_wait: float | None, as_json: bool) -> None:
    """End the supervisor of a queue, after its running tasks.

    Exit codes: 0 it ended; 3 none was running; 5 it still drains.
    """
    config = loaded.config
    path = supervisor_socket(config)
    status = ask(path, {"do": "status"})
    pid = int(status["pid"])
    try:
        process = os.pidfd_open(pid)
    except OSError:  # of another PID namespace, or gone this moment
        process = -1
    try:
        ask(path, {"do": "stop", "now": now})
        allowed_s = config.drain_s + config.kill_grace_s + 15 if timeout_wait is None else timeout_wait
        if allowed_s and not _ended(process, path, allowed_s):
            raise WaitTimeout(
                f"the supervisor (pid {pid}) still runs after {duration(allowed_s)}; --now ends it quickly"
            )
    finally:
        if process >= 0:
            os.close(process)
    if as_json:
        print_json({"stopped": bool(allowed_s), "pid": pid})
    else:
        click.echo(f"supervisor {pid} {'ended' if allowed_s else 'was told to end'}")


@click.command()
@click.option("--since", "since_s", callback=span, metavar="TIME", help="What was in the last 30m, 1h or 2d instead.")
@json_option
@with_config
def status(loaded: Loaded, since_s: float | None, as_json: bool) -> int:
    """Show what the supervisor does: tasks, workers and limits by class.

    Where none runs, the tasks are counted in the folders, and the exit code is 3. With --since the history is shown,
    whether one runs or not.
    """
    config = loaded.config
    if since_s is not None:
        found = past(config, since_s)
        if as_json:
            print_json(found)
        else:
            print_past(found)
        return 0
    try:
        found = ask(supervisor_socket(config), {"do": "status"})
        found.pop("ok")
        document = {"running": True, **found}
    except NotRunning:
        document = _counted(config)
    if as_json:
        print_json(document)
    else:
        _print(document)
    return 0 if document["running"] else _EXIT_NOT_RUNNING


def _counted(config: Config) -> dict[str, Any]:
    """Return the status of a queue that nobody serves, from its folders."""
    from ..census import Census, count
    from ..layout import Layout

    exists = True
    try:
        with Layout.open(config.queue_dir, insecure=True) as layout:
            census = count(layout)
    except QueueMissing:
        exists, census = False, Census()
    classes = {
        name: {
            "pending": found["pending"],
            "delayed": found["delayed"],
            "inflight": found["claimed"],
            "limit": config.classes[name].workers,
            "workers": 0,
            "done": found["done"],
            "failed": found["failed"],
        }
        for name, found in census.classes.items()
    }
    return {
        "running": False,
        "pid": None,
        "mode": config.mode,
        "queue_dir": str(config.queue_dir),
        "exists": exists,
        "classes": classes,
        "folders": census.folders,
        "complete": census.complete,
    }


def _print(document: Mapping[str, Any]) -> None:
    if document["running"]:
        facts: dict[str, object] = {"supervisor": f"pid {document.get('pid')}, mode {document.get('mode')}"}
        if isinstance(document.get("uptime_s"), int | float):
            facts["supervisor"] = f"{facts['supervisor']}, up {duration(document['uptime_s'])}"
    else:
        facts = {"supervisor": "not running"}
    facts["queue"] = (
        document.get("queue_dir") if document.get("exists", True) else f"{document['queue_dir']} (not made yet)"
    )
    for name in ("problem", "delayed", "quarantined"):
        if document.get(name):
            facts[name] = document[name]
    if document.get("stopping"):
        facts["supervisor"] = f"{facts['supervisor']}, stopping"
    if not document.get("complete", True):
        totals = ", ".join(f"{number} {name}" for name, number in document["folders"].items())
        facts["in all"] = f"{totals}; below only what could be read in a second"
    for name, service in document.get("services", {}).items():
        facts[name] = _service(service)
    for name, budget in document.get("llm_budgets", {}).items():
        facts[f"budget {name}"] = _budget(budget)
    print_facts(facts)
    click.echo()
    columns = ["pending", "delayed", "inflight", "limit", "workers", "done", "failed"]
    classes: Mapping[str, Mapping[str, Any]] = document.get("classes", {})
    columns = [name for name in columns if any(name in one for one in classes.values())]
    more = [name for name in ("state", "reason") if any(one.get(name) for one in classes.values())]
    rows = [
        [name, *(int(one.get(column, 0)) for column in columns), *(one.get(key) or "" for key in more)]
        for name, one in classes.items()
    ]
    print_table(["class", *columns, *more], rows)
    for name, one in classes.items():
        if one.get("limit_why") and one["limit"] != one.get("limit_max"):
            click.echo(f"{name}: limit {one['limit']} of {one['limit_max']}: {one['limit_why']}")
        for gpu in one.get("gpus", ()):
            click.echo(_gpu(gpu))


def _budget(budget: Mapping[str, Any]) -> str:
    """Return what a language model is sent, in a line."""
    rates = [
        f"{budget[key]} {unit}"
        for key, unit in (("requests_per_minute", "rpm"), ("tokens_per_minute", "tpm"))
        if budget[key]
    ]
    sent = f"{budget['sent']} requests sent, {budget['refused']} refused"
    return f"{' and '.join(rates) or 'no bound'}; {sent}; the next would wait {budget['wait_s']:.1f} s"


def _gpu(gpu: Mapping[str, Any]) -> str:
    """Return how much of a GPU is given out, and how much is really free."""
    from ..devices import gib

    tasks = gpu["tasks"].values()
    given = f"{len(tasks)} tasks have {gib(sum(task['memory'] for task in tasks))} of {gib(gpu['budget'])}"
    free = "" if gpu["free"] is None else f", {gib(gpu['free'])} are free"
    return f"{gpu['uuid']}: {given}{free}" + (f"; out of use: {gpu['fenced']}" if gpu["fenced"] else "")


def _service(service: Mapping[str, Any]) -> str:
    if service.get("failed"):
        return f"failed: {service['failed']}"
    if service.get("pid") is None:
        return "not running"
    words = [f"pid {service['pid']}"]
    if service.get("restarts"):
        words.append(f"started again {service['restarts']} times")
    words += [str(address) for address in service.get("listening", ())]
    words += [str(service[key]) for key in ("problem", "why") if service.get(key)]
    return ", ".join(words)


def _ended(process: int, path: Path, allowed_s: float) -> bool:
    """Wait for the end of a process; without its descriptor, for the end of its socket."""
    import select

    deadline = time.monotonic() + allowed_s
    if process >= 0:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        while not (ended := poll.poll(min(max(0.0, deadline - time.monotonic()), _LONGEST_POLL_S) * 1000)):
            if time.monotonic() >= deadline:
                break
        return bool(ended)
    while time.monotonic() < deadline:
        try:
            ask(path, {"do": "status"}, 2.0)
        except NotRunning:
            return True
        time.sleep(0.1)
    return False

"""`slurm`: tasks as jobs of a cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..config import Config, Loaded
from ..environment import slurm_environment
from ..errors import EXIT_FAILED, EXIT_OK, EnvelopeInvalid, ServiceUnavailable, SupervisorError, TaskNotFound
from .number import WAIT_S
from .options import open_queue, read_input, with_config
from .output import json_option, moment, print_json, print_table, printable

if TYPE_CHECKING:
    from ..layout import Layout
    from ..services.slurm.commands import Slurm
    from ..services.slurm.listing import JobRow
    from ..services.slurm.preview import Preview

_CLASS = "gpu_slurm"
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.group()
def slurm() -> None:
    """Submit to a Slurm cluster, look at its jobs, and see what would be submitted."""


@slurm.command()
@click.argument("payload", metavar="PAYLOAD|-|@FILE")
@click.option("--template", metavar="NAME", help="The job script, by its name.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="What the job asks for: gpus=a100:2, time=1-12:00:00, memory=64G, nodes=2, partition=gpu, ...; repeatable.",
)
@click.option(
    "--id", "task_id", metavar="ID", help="A name of your own; the same task under the same id is taken once."
)
@click.option(
    "--kind", metavar="KIND", help="What runs it, where that is not the class's handler: echo, call, command..."
)
@click.option("--wait", is_flag=True, help="Wait for the result, and print it.")
@click.option("--timeout-wait", type=WAIT_S, metavar="S", help="Wait so long at most; then 5.")
@json_option
@with_config
def submit(
    loaded: Loaded,
    payload: str,
    template: str | None,
    options: tuple[str, ...],
    task_id: str | None,
    kind: str | None,
    wait: bool,
    timeout_wait: float | None,
    as_json: bool,
) -> int:
    """Put a task into the queue that becomes a job, after a look at whether it can.

    PAYLOAD is JSON; - reads it from standard input, @FILE from a file. Prints the id, and with --wait the result.

    Exit codes: 2 no valid task, or no valid job; 4 no queue here; 75 the queue is full; with --wait 1 where it failed.
    """
    from dspy_fastpath.ids import uuid7

    from ..producer import Producer, envelope
    from ..services.slurm.plan import JobRefused, plan_job
    from ..services.slurm.preview import task_of
    from .submit import checked

    resources: dict[str, Any] = {} if template is None else {"template": template}
    for one in options:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{one!r} is not NAME=VALUE", param_hint="--option")
        if name == "extra":
            resources.setdefault("extra", []).append(value)
        else:
            resources[name] = value
    name = task_id or uuid7()
    more = {"class": _CLASS, "kind": kind, "resources": resources or None}
    document = envelope(raw_payload=checked(read_input(payload)), task_id=name, **more)
    try:
        plan_job(loaded.config, loaded.config.classes[_CLASS], task_of(document))
    except JobRefused as error:
        raise EnvelopeInvalid("task", str(error)) from None
    with open_queue(loaded) as layout:
        Producer(layout, max_bytes=loaded.config.max_task_bytes).put(name, document, fresh=task_id is None)
    if wait:
        from .task import report_wait

        return report_wait(loaded, [name], timeout_wait, as_json=as_json)
    if as_json:
        print_json({"id": name})
    else:
        click.echo(name)
    return EXIT_OK


@slurm.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--live", is_flag=True, help="Ask the cluster too, by one squeue, in place of what was last seen.")
@json_option
@with_config
def status(loaded: Loaded, ids: tuple[str, ...], live: bool, as_json: bool) -> None:
    """Show the jobs of the queue's tasks: all that are not settled, or those of these tasks.

    Exit codes: 4 a task has no job; 69 --live, and the cluster does not answer.
    """
    with open_queue(loaded) as layout:
        listing = _listing(loaded.config) if live else None
        rows = [row for row in _jobs(layout, listing) if not ids or row["task_id"] in ids]
    missing = set(ids) - {row["task_id"] for row in rows}
    if missing:
        raise TaskNotFound(sorted(missing)[0], f"the jobs of {loaded.config.queue_dir}")
    if as_json:
        print_json({"jobs": rows})
        return
    columns = ["status", "nodes", "reason", "template"]
    shown = [
        [row["task_id"], row["id"] or "-", moment(row["submit_time"]), *(row[name] or "" for name in columns)]
        for row in rows
    ]
    print_table(["task", "job", "submitted", *columns], shown)


@slurm.command()
@click.argument("ids", nargs=-1, metavar="[ID...]")
@click.option("--all", "everything", is_flag=True, help="All tasks that have a job or wait for one.")
@json_option
@with_config
def cancel(loaded: Loaded, ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Cancel tasks and their jobs, whether a supervisor runs or not."""
    from ..client.cancelling import cancel as cancel_task
    from ..services.slurm.preview import waiting

    if bool(ids) == everything:
        raise click.UsageError("name tasks, or give --all")
    was = {}
    with open_queue(loaded) as layout:
        if everything:
            waits = [held.name.id for held in waiting(layout)]
            ids = tuple(dict.fromkeys([*waits, *(row["task_id"] for row in _jobs(layout, None))]))
        for task_id in ids:
            try:
                was[task_id] = cancel_task(layout, loaded.config.runtime_dir, task_id)
            except SupervisorError as error:
                if isinstance(error, TaskNotFound) or not _cancel_job(layout, loaded.config, task_id):
                    raise
                was[task_id] = "running"
            if not as_json:
                click.echo(f"{task_id}: cancelled, it was {was[task_id]}")
    if as_json:
        print_json({"cancelled": was})


@slurm.command()
@click.option("--scripts", is_flag=True, help="Print the scripts too.")
@json_option
@with_config
def plan(loaded: Loaded, scripts: bool, as_json: bool) -> int:
    """Print what would be submitted now: for each sbatch its tasks and its arguments, or how many allocations.

    Exit codes: 1 a task would be refused.
    """
    config = loaded.config
    with open_queue(loaded) as layout:
        if config.slurm_pilots_max:
            document = _pilot_plan(config, layout)
        else:
            from ..services.slurm.preview import previews

            found = [_shown(preview, scripts) for preview in previews(config, layout)]
            document = {"submissions": [one for one in found if not one.get("refused")]}
            document["refused"] = [one for one in found if one.get("refused")]
    if as_json:
        print_json(document)
    elif config.slurm_pilots_max:
        click.echo(printable(document["reason"]))
        click.echo(f"would submit {document['submit']} allocations, and cancel {len(document['cancel'])}")
        click.echo(printable(document["command"]))
        if scripts:
            click.echo(document["script"])
    else:
        _print_plan(document)
    return EXIT_FAILED if document.get("refused") else EXIT_OK


@slurm.command()
@click.argument("template", required=False, metavar="TEMPLATE")
@click.option("--task", "source", metavar="-|@FILE|ENVELOPE", help="The script of this task, an envelope in JSON.")
@click.option("--list", "listing", is_flag=True, help="Only the names of the templates, and where they lie.")
@json_option
@with_config
def render(loaded: Loaded, template: str | None, source: str | None, listing: bool, as_json: bool) -> None:
    """Print a job's script as it would be submitted, with the command on standard error.

    Exit codes: 2 no such template, or no valid task.
    """
    from dspy_fastpath.envelope import EnvelopeError

    from ..services.slurm.options import merged, of_class, of_config
    from ..services.slurm.plan import JobPlan, JobRefused, plan_job, template_name, with_defaults
    from ..services.slurm.preview import preview, task_of
    from ..services.slurm.templates import names

    config = loaded.config
    if listing:
        found = {name: str(path) for name, path in names(config.slurm_templates).items()}
        print_json({"templates": found}) if as_json else print_table(["template", "file"], list(found.items()))
        return
    if (template is None) == (source is None):
        raise click.UsageError("name a TEMPLATE, or give --task")
    try:
        if source is not None:
            job = plan_job(config, config.classes[_CLASS], task_of(read_input(source)))
        else:
            options = with_defaults(merged(of_config(config), of_class(config.classes[_CLASS])))
            job = JobPlan(template_name(template, "TEMPLATE"), options.argv)
    except (JobRefused, EnvelopeError) as error:
        raise EnvelopeInvalid("task" if source is not None else "template", str(error)) from None
    with open_queue(loaded) as layout:
        shown = preview(config, layout, job, ("task",))
    if shown.refused:
        raise EnvelopeInvalid("template", shown.refused)
    if as_json:
        print_json(_shown(shown, scripts=True))
        return
    click.echo(printable(" ".join(shown.argv)), err=True)
    click.echo(shown.script.decode(), nl=False)


@slurm.command()
@json_option
@with_config
def doctor(loaded: Loaded, as_json: bool) -> int:
    """Check that this host can carry tasks to its cluster; each finding with its remedy. Submits nothing.

    Exit codes: 0 all works, perhaps with warnings; 1 something does not.
    """
    from ..services.slurm.doctor import examine
    from ..trials import Level

    findings = []
    for finding in examine(loaded.config, _slurm(loaded.config)):
        findings.append(finding)
        if not as_json:
            mark = f"{finding.level:4}"
            mark = click.style(mark, fg=_COLOURS[finding.level]) if sys.stdout.isatty() else mark
            click.echo(f"{mark}  {finding.check:36}  {printable(finding.message)}")
            if finding.remedy:
                click.echo(f"{'':4}  {'':36}  -> {printable(finding.remedy)}")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [finding._asdict() for finding in findings]})
    else:
        click.echo(f"\n{len(findings)} checks, {failed} failures")
    return EXIT_FAILED if failed else EXIT_OK


def _slurm(config: Config) -> Slurm:
    from ..services.slurm.commands import Slurm

    return Slurm(slurm_environment(config.command_env))


def _listing(config: Config) -> list[JobRow]:
    """Return all jobs of this user, by one call. Raises ServiceUnavailable."""
    from ..services.slurm.listing import SQUEUE, Incomplete, parse_squeue

    answer = _slurm(config).call(SQUEUE)
    if not answer.ok:
        raise ServiceUnavailable(f"the cluster does not answer: {answer.trouble}")
    try:
        return parse_squeue(answer.out)
    except Incomplete as error:
        raise ServiceUnavailable(str(error)) from None


def _jobs(layout: Layout, listing: list[JobRow] | None) -> Iterator[dict[str, Any]]:
    """Yield the jobs of tasks that are not settled, oldest first."""
    from ..jobbook import JobBook
    from ..task import TaskName

    book = JobBook(layout)
    live = {(row.name, row.index or 0): row for row in listing or ()}
    for submission in book.submissions():
        seen = book.seen(submission.name)
        for index, file in enumerate(submission.tasks):
            name = TaskName.parse(file)
            if name is None or not book.folder(submission.name, index).is_dir():
                continue  # it is settled
            facts: Mapping[str, Any] = seen.get(str(index), {})
            row = live.get((submission.name, index))
            started = book.sentinel(submission.name, index).start
            yield {
                "task_id": name.id,
                "attempt": name.attempt,
                "id": submission.job_of(index) if submission.job_id else None,
                "status": row.state if row else facts.get("state") or "SUBMITTED",
                "nodes": row.nodes if row else facts.get("nodes"),
                "reason": row.reason if row else facts.get("reason"),
                "submit_time": submission.at,
                "start_time": started.get("at"),
                "cluster": submission.cluster or None,
                "name": submission.name,
                "template": submission.template,
                "options": list(submission.options),
            }


def _cancel_job(layout: Layout, config: Config, task_id: str) -> bool:
    """End a job that no supervisor here looks after; the next bridge finds why. False where the task has none."""
    from ..jobbook import JobBook
    from ..lookup import find_one

    book = JobBook(layout)
    found = find_one(layout, task_id)
    at = book.find(found.file) if found is not None and found.file else None
    if at is None:
        return False
    submission, index = at
    book.note_cancel(submission.name, index, "cancelled", "cancelled while it was a job")
    target = [submission.job_of(index)] if submission.job_id else [f"--name={submission.name}"]
    answer = _slurm(config).call(("scancel", *target))
    if not answer.ok:
        raise ServiceUnavailable(f"job {target[0]} of task {task_id} can't be cancelled now: {answer.trouble}")
    return True


def _pilot_plan(config: Config, layout: Layout) -> dict[str, Any]:
    """Return how many allocations would be submitted now, by one squeue where the cluster answers."""
    from ..services.slurm.allocations import Ledger, decide
    from ..services.slurm.pilots import Pilots
    from ..services.slurm.preview import waiting

    pilots = Pilots(config, layout)
    jobs, note = [], ""
    try:
        jobs = [row for row in _listing(config) if row.name.startswith(pilots.prefix)]
    except ServiceUnavailable as error:
        note = f"; {error}: taken for none"
    pending = sum(1 for _ in waiting(layout))
    found = decide(0.0, pilots.bounds(), jobs, pending, Ledger())
    options = pilots.options()
    return {
        "submit": found.keep + found.float,
        "keep": found.keep,
        "cancel": list(found.cancel),
        "waiting": pending,
        "reason": found.why + note,
        "command": " ".join(["sbatch", "--parsable", *options.argv]),
        "script": pilots.script(keep=False).decode(),
    }


def _shown(preview: Preview, scripts: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"tasks": list(preview.tasks)}
    if preview.plan is not None:
        found["template"] = preview.plan.template
    if preview.refused:
        return {**found, "refused": preview.refused}
    return {**found, "argv": list(preview.argv), **({"script": preview.script.decode()} if scripts else {})}


def _print_plan(document: Mapping[str, Any]) -> None:
    for one in document["submissions"]:
        tasks = one["tasks"]
        shown = ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
        click.echo(printable(f"{len(tasks)} tasks ({shown}) by template {one['template']}:"))
        click.echo(printable("  " + " ".join(one["argv"])))
        if "script" in one:
            click.echo(one["script"])
    for one in document["refused"]:
        click.echo(printable(f"{one['tasks'][0]} would be refused: {one['refused']}"), err=True)
    if not document["submissions"] and not document["refused"]:
        click.echo("nothing waits to become a job")

"""The screen of `top`: classes, running tasks, failures, GPUs, Slurm jobs and services, each in a tab."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Sparkline, Static, TabbedContent, TabPane

from ..errors import SupervisorError
from .questions import Ask, Confirm
from .sight import Sight, View
from .task import TaskScreen
from .words import gib, length, plain, rate, right, share

Cells = Sequence[Text]

_LATELY = 120  # seconds of the two curves
_SLOWLY = 2  # folders are looked at in every second look
_HEADS: Mapping[str, Sequence[str]] = {
    "classes": ("class", "waiting", "running", "limit", "per s", "done", "failed", "state", "wait p50 p99", "run p50 p99"),
    "running": ("task", "class", "attempt", "for", "time left", "worker"),
    "failures": ("how often", "last", "class", "cause", "what", "example"),
    "gpus": ("gpu", "name", "busy", "memory GiB", "power W", "°C", "state"),
    "jobs": ("job", "task", "state", "nodes", "reason", "cluster"),
    "services": ("service", "pid", "restarts", "state"),
}  # fmt: skip
_TITLES = {
    "classes": "Classes",
    "running": "Running",
    "failures": "Failures",
    "gpus": "GPUs",
    "jobs": "Slurm",
    "services": "Services",
}
_NOTHING = {
    "running": "No task runs.",
    "failures": "Nothing failed.",
    "gpus": "No GPU is seen: enable_gpu is off, or telemetry found none.",
    "jobs": "No Slurm job is open.",
    "services": "No service runs.",
}


class Top(App[int]):
    """The program."""

    TITLE = "dspy-supervisor top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { overflow: hidden; }
    TabbedContent, TabPane { height: 1fr; }
    #head { height: auto; padding: 0 1; background: $panel; }
    #head.lost { background: $error; color: $text; }
    .lost DataTable, .lost #curves { opacity: 60%; }
    TabPane { padding: 0; }
    DataTable { height: 1fr; background: transparent; scrollbar-size: 1 1; }
    #classes { height: auto; max-height: 50%; }
    #detail { height: auto; padding: 1 1 0 1; }
    #curves { height: 1fr; padding: 0 1; }
    Sparkline { height: 3; margin-bottom: 1; }
    .empty { padding: 1 2; color: $text-muted; }
    #host { padding: 0 1; height: auto; color: $text-muted; }
    #title { padding: 0 1; background: $panel; }
    #story { padding: 1 1; }
    Confirm, Ask { align: center middle; }
    .question { width: 60; max-width: 90%; height: auto; border: round $accent; padding: 1 2; background: $surface; }
    .question Horizontal { height: auto; margin-top: 1; align-horizontal: right; }
    .question Button { margin-left: 2; }
    .question Input { margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("slash", "find", "Find a task"),
        ("p", "pause", "Pause or resume"),
        ("plus", "shift(1)", "Limit +"),
        ("minus", "shift(-1)", "Limit -"),
        *((str(number), f"tab('{name}')", "") for number, name in enumerate(_TITLES, 1)),
    ]

    def __init__(self, sight: Sight, *, every_s: float = 1.0) -> None:
        super().__init__()
        self._sight, self._every_s = sight, every_s
        self.view: View | None = None
        self._past: dict[str, deque[tuple[int, float]]] = {}  # class: how many wait, and end in a second
        self._looks = 0

    # -- drawing --------------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Draw the frame."""
        yield Static("looking...", id="head")
        with TabbedContent():
            for number, (name, title) in enumerate(_TITLES.items(), 1):
                with TabPane(f"{number} {title}", id=f"tab-{name}"):
                    yield DataTable[Text](id=name, cursor_type="row", zebra_stripes=True)
                    if name == "classes":
                        yield Static(id="detail")
                        with Vertical(id="curves"):
                            yield Static(id="waiting-caption")
                            yield Sparkline([], id="waiting")
                            yield Static(id="rate-caption")
                            yield Sparkline([], id="rate")
                    else:
                        yield Static(_NOTHING[name], classes="empty", id=f"empty-{name}")
                    if name == "gpus":
                        yield Static(id="host")
        yield Footer()

    def on_mount(self) -> None:
        """Look, again and again."""
        for name, heads in _HEADS.items():
            table = self._table(name)
            for head in heads:
                table.add_column(head, key=head)
        self._table("classes").focus()
        self.run_worker(self._watch(), exclusive=True, group="watch")

    async def _watch(self) -> None:
        while self.is_running:
            view = await asyncio.to_thread(self._sight.look)
            with contextlib.suppress(NoMatches):  # it was quit while we looked
                self._show(view)
                if self._looks % _SLOWLY == 0:
                    await self._show_folders()
            self._looks += 1
            await asyncio.sleep(self._every_s)

    def _show(self, view: View) -> None:
        self.view = view
        head = self.query_one("#head", Static)
        head.update(self._head(view))
        self.set_class(bool(view.lost), "lost")
        head.set_class(bool(view.lost), "lost")
        classes: Mapping[str, Mapping[str, Any]] = view.status.get("classes", {})
        for name, one in classes.items():
            past = self._past.setdefault(name, deque(maxlen=_LATELY))
            past.append((int(one.get("pending", 0)), view.rates.get(name, 0.0)))
        self._fill("classes", {name: _class_row(name, one, view) for name, one in classes.items()})
        self._fill("running", {run.id: _running_row(run) for run in view.running})
        self._fill("gpus", {str(gpu["uuid"]): _gpu_row(gpu) for gpu in view.gpus})
        services: Mapping[str, Mapping[str, Any]] = view.status.get("services", {})
        self._fill("services", {name: _service_row(name, one) for name, one in services.items()})
        self.query_one("#host", Static).update(plain(_host(view.host)))
        self._show_detail()

    async def _show_folders(self) -> None:
        """Show what has to be read from the disk, where anybody looks at it."""
        active = self.query_one(TabbedContent).active
        try:
            if active == "tab-failures":
                groups = await asyncio.to_thread(self._sight.failures)
                self._fill("failures", {str(group["example_id"]): _failure_row(group) for group in groups})
            elif active == "tab-jobs":
                found = await asyncio.to_thread(self._sight.jobs)
                self._fill("jobs", {str(job["task_id"] or job["name"]): _job_row(job) for job in found})
        except OSError as error:
            self.notify(str(error), severity="error", markup=False)

    def _fill(self, name: str, rows: Mapping[str, Cells]) -> None:
        """Show rows by their keys; the cursor stays on its row, wherever that moves."""
        table = self._table(name)
        if name != "classes":
            table.display = bool(rows)
            self.query_one(f"#empty-{name}").display = not rows
        if [key.value for key in table.rows] == list(rows):
            for key, cells in rows.items():
                for head, cell in zip(_HEADS[name], cells, strict=True):
                    if table.get_cell(key, head) != cell:
                        table.update_cell(key, head, cell, update_width=True)
            return
        chosen = self._chosen(name)
        table.clear()
        for key, cells in rows.items():
            table.add_row(*cells, key=key)
        if chosen is not None and chosen in rows:
            table.move_cursor(row=list(rows).index(chosen))

    def _show_detail(self) -> None:
        """Show more of the chosen class."""
        name, view = self._chosen("classes"), self.view
        if name is None or view is None or name not in view.status["classes"]:
            return
        one = view.status["classes"][name]
        text = Text.assemble(plain(name, "bold"), "  ")
        if one.get("handler"):
            text.append_text(plain(f"runs {one['handler']} in {one.get('workers', 0)} workers  ", "dim"))
        if one.get("limit_why"):
            text.append_text(plain(f"limit {one['limit']} of {one['limit_max']}: {one['limit_why']}", "cyan"))
        if one.get("held"):
            text.append_text(plain(f"  {one['held']} held back: 'dspy-supervisor explain' says why", "yellow"))
        if one.get("reason"):
            text.append_text(plain(f"\n{one['reason']}", "red"))
        self.query_one("#detail", Static).update(text)
        past = self._past[name]
        for place, word, shown in ((0, "waiting", "waiting"), (1, "rate", "ended per second")):
            values = [float(entry[place]) for entry in past]
            now = f"{values[-1]:,.0f}" if place == 0 else rate(values[-1])
            caption = f"{shown}: {now}, at most {max(values):,.0f} in the last {length(len(values) * self._every_s)}"
            self.query_one(f"#{word}-caption", Static).update(plain(caption, "dim"))
            self.query_one(f"#{word}", Sparkline).data = [0.0] * (_LATELY - len(values)) + values

    def _head(self, view: View) -> Text:
        queue = plain(self._sight.path, "bold")
        if view.lost:
            return Text.assemble(queue, "  ", plain(view.lost), "\n", plain("Counted in the folders. Looking again."))
        status = view.status
        facts = [f"pid {status.get('pid')}", f"mode {status.get('mode')}", f"up {length(status.get('uptime_s'))}"]
        facts.append(f"durability {status.get('durability')}")
        if status.get("delayed"):
            facts.append(f"{status['delayed']:,} delayed")
        if status.get("quarantined"):
            facts.append(f"{status['quarantined']:,} quarantined")
        text = Text.assemble(queue, "  ", plain(", ".join(facts), "dim"))
        for trouble in (status.get("problem"), "stopping: nothing new starts" if status.get("stopping") else None):
            if trouble:
                text.append_text(plain(f"\n{trouble}", "bold red"))
        return text

    def _table(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}", DataTable)

    def _chosen(self, name: str) -> str | None:
        """Return the key of the row under a table's cursor."""
        table = self._table(name)
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    # -- what keys do ---------------------------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show more of a class as soon as the cursor is on it."""
        if event.data_table.id == "classes":
            self._show_detail()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a task."""
        if event.data_table.id in ("running", "failures", "jobs") and event.row_key.value:
            self.push_screen(TaskScreen(self._sight, event.row_key.value))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key means something here: those of classes do where classes are shown."""
        return len(self.screen_stack) == 1 or action not in ("pause", "shift", "tab", "find")

    def action_tab(self, name: str) -> None:
        """Go to a tab."""
        self.query_one(TabbedContent).active = f"tab-{name}"
        self._table(name).focus()
        self.run_worker(self._show_folders(), exclusive=True, group="folders")

    def action_find(self) -> None:
        """Ask for a task, and open it."""

        async def found() -> None:
            if task_id := await self.push_screen_wait(Ask("Which task? Its id:")):
                self.push_screen(TaskScreen(self._sight, task_id))

        self.run_worker(found())

    def action_pause(self) -> None:
        """Pause the chosen class, or let it go on, after a question."""
        name = self._chosen("classes")
        if name is None or self.view is None:
            return
        one = self.view.status["classes"].get(name, {})
        if one.get("state") in ("paused", "failed"):
            self._change(f"Let class {name} go on?", "Go on", "resume", classes=[name])
        else:
            question = f"Pause class {name}? What runs goes on ({one.get('inflight', 0)}), nothing new starts."
            self._change(question, "Pause it", "pause", classes=[name], reason="paused in top")

    def action_shift(self, step: int) -> None:
        """Raise or lower the limit of the chosen class, after a question."""
        name = self._chosen("classes")
        if name is None or self.view is None or "limit" not in self.view.status["classes"].get(name, {}):
            return
        before = int(self.view.status["classes"][name]["limit"])
        limit = max(0, before + step)
        question = f"Let {limit} tasks of class {name} run at once, not {before}? It stays so until the next reload."
        self._change(question, f"Set {limit}", "limit", **{"class": name, "limit": limit})

    def _change(self, question: str, yes: str, do: str, **request: Any) -> None:
        async def answered() -> None:
            if not await self.push_screen_wait(Confirm(question, yes)):
                return
            try:
                await asyncio.to_thread(self._sight.ask, do, **request)
            except (SupervisorError, OSError) as error:
                self.notify(str(error), severity="error", markup=False)

        self.run_worker(answered())


# -- rows ---------------------------------------------------------------------------------------------------------------


def _class_row(name: str, one: Mapping[str, Any], view: View) -> Cells:
    latency, limit = view.latency.get(name, {}), one.get("limit")
    most = one.get("limit_max")
    bound = "-" if limit is None else f"{limit} of {most}" if most not in (None, limit) else str(limit)
    state = str(one.get("state") or "")
    style = {"paused": "yellow", "failed": "red"}.get(state, "dim")
    return (
        plain(name, "bold"),
        right(one.get("pending", 0)),
        right(one.get("inflight", 0), "green" if one.get("inflight") else ""),
        right(bound, "cyan" if most not in (None, limit) else ""),
        right(rate(view.rates.get(name))),
        right(one.get("done", 0)),
        right(one.get("failed", 0), "red" if one.get("failed") else ""),
        plain(state, style),
        right(f"{length(latency.get('wait_p50_s'))}  {length(latency.get('wait_p99_s'))}", "dim"),
        right(f"{length(latency.get('run_p50_s'))}  {length(latency.get('run_p99_s'))}", "dim"),
    )


def _running_row(run: Any) -> Cells:
    left = run.left_s
    return (
        plain(run.id),
        plain(run.task_class),
        right(run.attempt + 1),
        right(length(run.since_s)),
        right("-" if left is None else length(max(0.0, left)), "red" if left is not None and left < 5 else ""),
        right(str(run.worker), "dim"),
    )


def _failure_row(group: Mapping[str, Any]) -> Cells:
    from .words import clock

    what = f"{group['type']}: {group['message']}" if group.get("type") else str(group["message"])
    return (
        right(group["count"]),
        plain(clock(group["last_at"])),
        plain(group["class"]),
        plain(group["cause"], "red"),
        plain(what.replace("\n", " ")[:120]),
        plain(group["example_id"], "dim"),
    )


def _gpu_row(gpu: Mapping[str, Any]) -> Cells:
    total, free = gpu.get("memory_total"), gpu.get("memory_free")
    used = None if total is None or free is None else total - free
    busy, heat = gpu.get("utilization"), gpu.get("temperature_c")
    throttle = ", ".join(gpu.get("throttle_reasons") or ())
    return (
        plain(str(gpu["uuid"])[:12]),
        plain(gpu.get("name")),
        right(share(busy), "green" if busy else ""),
        right(f"{gib(used)} of {gib(total)}"),
        right("-" if gpu.get("power_w") is None else f"{gpu['power_w']:.0f} of {gpu.get('power_cap_w') or 0:.0f}"),
        right("-" if heat is None else f"{heat:.0f}"),
        plain(
            gpu.get("obstacle") or (f"slowed: {throttle}" if throttle else ""),
            "red" if gpu.get("obstacle") else "yellow",
        ),
    )


def _job_row(job: Mapping[str, Any]) -> Cells:
    names = ("id", "task_id", "state", "nodes", "reason", "cluster")
    return [plain(job.get(name) if job.get(name) is not None else "-") for name in names]


def _service_row(name: str, one: Mapping[str, Any]) -> Cells:
    trouble = one.get("failed") or one.get("problem")
    said = trouble or one.get("why") or ("" if one.get("pid") else "is being started")
    return (
        plain(name, "bold"),
        right("-" if one.get("pid") is None else str(one["pid"])),
        right(one.get("restarts", 0)),
        plain(said, "red" if trouble else "dim"),
    )


def _host(host: Mapping[str, Any] | None) -> str:
    if host is None:
        return ""
    words = [f"host: {host.get('cpus') or 0:.0f} CPUs"]
    if host.get("cpu_busy") is not None:
        words.append(f"{share(host['cpu_busy'])} busy")
    if host.get("memory_free") is not None and host.get("memory_limit") is not None:
        words.append(f"{gib(host['memory_free'])} of {gib(host['memory_limit'])} GiB of memory free")
    return ", ".join(words)

"""One task: what happened to it from its put to its end, its error, and what can be done about it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import Footer, Static

from ..errors import SupervisorError, TaskNotFound
from .questions import Confirm
from .words import clock, plain

if TYPE_CHECKING:
    from .sight import Sight

_EVERY_S = 1.0
_ENDED = ("done", "failed", "quarantined")
_MARKS = {"ended": "●", "attempt_failed": "✗", "started": "▶", "refused": "✗"}


class TaskScreen(Screen[None]):
    """A task, followed until it has ended."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "app.pop_screen", "Back"),
        ("c", "cancel", "Cancel it"),
        ("r", "retry", "Try it again"),
    ]

    def __init__(self, sight: Sight, task_id: str) -> None:
        super().__init__()
        self._sight, self.task_id = sight, task_id
        self._state = ""

    def compose(self) -> ComposeResult:
        """Draw the frame."""
        yield Static(id="title")
        with VerticalScroll():
            yield Static(id="story")
        yield Footer()

    def on_mount(self) -> None:
        """Look, again and again."""
        self.run_worker(self._watch(), exclusive=True)

    async def _watch(self) -> None:
        while self.is_attached:
            try:
                story, task = await asyncio.to_thread(self._sight.story, self.task_id)
                why = "" if task["state"] in _ENDED else await asyncio.to_thread(self._sight.explain, self.task_id)
            except (TaskNotFound, OSError) as error:
                with contextlib.suppress(NoMatches):
                    self.query_one("#title", Static).update(plain(error, "bold red"))
            else:
                with contextlib.suppress(NoMatches):  # it was left while we looked
                    self._show(story, task, why)
            await asyncio.sleep(_EVERY_S)

    def _show(self, story: list[dict[str, Any]], task: dict[str, Any], why: str) -> None:
        self._state = str(task["state"])
        style = {"done": "green", "failed": "red", "quarantined": "red"}.get(self._state, "yellow")
        title = Text.assemble(plain(self.task_id, "bold"), "  ", plain(self._state, f"bold {style}"), "  ")
        for name in ("class", "kind"):
            if task.get(name):
                title.append_text(plain(f"{task[name]}  ", "dim"))
        self.query_one("#title", Static).update(title)
        text = Text()
        for step in story:
            mark = _MARKS.get(str(step["what"]), "·")
            text.append_text(plain(f"{clock(step.get('at')):>11}  {mark} ", "dim"))
            text.append_text(plain(f"{step['text']}\n", "red" if step.get("cause") else ""))
            for trace in (step.get("traceback"), step.get("stacks")):
                if trace:
                    text.append_text(plain("".join(f"    {line}\n" for line in trace.splitlines()), "dim"))
        if why:
            text.append_text(plain(f"\n{'':13}{why}\n", "italic"))
        if task.get("payload") is not None:
            payload = orjson.dumps(task["payload"]).decode()  # as it was written
            text.append_text(plain(f"\n    payload  {payload[:2000]}\n", "dim"))
        self.query_one("#story", Static).update(text)

    def action_cancel(self) -> None:
        """Cancel it, after a question."""
        if self._state in _ENDED:
            self.notify(f"it is {self._state} already")
            return
        self._change(f"Cancel task {self.task_id}?", "Cancel it", "cancel")

    def action_retry(self) -> None:
        """Let it be tried again, after a question."""
        if self._state != "failed":
            self.notify("only a failed task can be tried again")
            return
        self._change(f"Try task {self.task_id} again, with all its attempts?", "Try again", "retry")

    def _change(self, question: str, yes: str, what: str) -> None:
        def act() -> None:
            if what == "cancel":
                self._sight.ask("cancel", id=self.task_id)
            else:
                self._sight.retry(self.task_id)

        async def answered() -> None:
            if not await self.app.push_screen_wait(Confirm(question, yes)):
                return
            try:
                await asyncio.to_thread(act)
            except (SupervisorError, OSError) as error:
                self.notify(str(error), severity="error", markup=False)

        self.run_worker(answered())

"""`top`, driven as by a person at a terminal, on a queue with a real supervisor."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dspy_supervisor.config import load
from dspy_supervisor.top.app import Top
from dspy_supervisor.top.sight import Sight
from dspy_supervisor.top.task import TaskScreen
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from ..conftest import Supervised, clean_environ, until
from ..system.rig import Rig, klass

PATIENCE_S = 30.0


class Seen:
    """The program under test, and what is on its screen."""

    def __init__(self, app: Top, pilot: Pilot[Any]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, look: Callable[[], Any], what: str) -> Any:
        """Return what look() returns as soon as that is true; its screen is told where that never comes."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := look()):
            assert time.monotonic() < deadline, f"{what}; the screen says {self.text()!r}"
            await self.pilot.pause(0.02)
        return value

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)

    async def write(self, line: str) -> None:
        """Answer a question; a press of each key would take long on a machine that is never idle."""
        self.app.screen.query_one(Input).value = line
        await self.press("enter")

    def text(self, selector: str = "Static") -> str:
        """Return what the texts of the screen say."""
        return "\n".join(str(one.content) for one in self.app.screen.query(selector).results(Static))

    def cells(self, name: str) -> dict[str, list[str]]:
        """Return the rows of a table by their first cell."""
        table = self.app.query_one(f"#{name}", DataTable)
        rows = [[str(cell) for cell in table.get_row_at(place)] for place in range(table.row_count)]
        return {row[0]: row for row in rows}


@asynccontextmanager
async def watching(rig: Rig, size: tuple[int, int] = (120, 36)) -> AsyncIterator[Seen]:
    """The program, in a terminal of this size."""
    flags = {"queue_dir": str(rig.queue), "runtime_dir": str(rig.folder / "run"), "mode": "laptop"}
    with Sight(load(flags).config) as sight:
        app = Top(sight, every_s=0.3)
        async with app.run_test(size=size) as pilot:
            seen = Seen(app, pilot)
            await seen.until(lambda: app.screen.query("#classes"), "it is drawn")
            yield seen


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@pytest.fixture
def busy(rig: Rig) -> Supervised:
    """A supervisor with a task that runs, one that waits, one that is done and one that has failed."""
    supervisor = rig.start(workers=1)
    rig.drop("good")
    rig.drop("bad", {"do": "raise", "message": "no [bold]markup[/] and no \x1b[31m colours"}, max_attempts=1)
    rig.record("good")
    rig.record("bad")
    rig.gate("running").wait()
    rig.drop("waiting")
    until(lambda: klass(supervisor)["pending"] == 1, "it is read")
    return supervisor


def test_classes_are_told_with_depth_limit_and_latency(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig) as seen:
            await seen.until(lambda: seen.app.view and seen.app.view.rates, "it looks twice")
            row = seen.cells("classes")["cpu_short"]
            assert row[1:4] == ["1", "1", "1"]  # waiting, running, limit
            assert row[5:7] == ["1", "1"]  # done, failed
            assert row[7] == "running" and "ms" in row[8]
            assert f"pid {busy.pid}" in seen.text("#head") and str(rig.queue) in seen.text("#head")
            assert "waiting: 1, at most 1" in seen.text("#waiting-caption")
            assert "runs tests.system.handlers:play in 1 workers" in seen.text("#detail")

    run(test())


def test_a_running_task_is_opened_and_cancelled_after_a_question(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig) as seen:
            await seen.until(lambda: seen.cells("classes"), "it looks")
            await seen.press("2")
            await seen.until(lambda: "running" in seen.cells("running"), "the task is listed")
            await seen.press("enter")
            await seen.until(lambda: isinstance(seen.app.screen, TaskScreen), "it opens")
            await seen.until(lambda: "it runs in worker" in seen.text("#story"), "its story is told")
            await seen.press("c")
            await seen.until(lambda: "Cancel task running?" in seen.text(), "it asks")
            await seen.press("n")
            await seen.until(lambda: isinstance(seen.app.screen, TaskScreen), "it does nothing")
            await seen.press("c")
            await seen.until(lambda: "Cancel task running?" in seen.text(), "it asks again")
            await seen.press("y")
            await seen.until(lambda: "cancelled while it ran" in seen.text("#story"), "it is cancelled")

    run(test())
    assert rig.record("running")["error"]["cause"] == "cancelled"


def test_failures_are_grouped_and_one_is_opened_and_tried_again(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig) as seen:
            await seen.press("3")
            [row] = (await seen.until(lambda: seen.cells("failures"), "it is listed")).values()
            assert row[0] == "1" and row[2:4] == ["cpu_short", "raised"] and row[5] == "bad"
            assert "no [bold]markup[/] and no �[31m colours" in row[4]
            await seen.press("enter")
            await seen.until(lambda: "ValueError: no [bold]markup[/]" in seen.text("#story"), "its traceback is told")
            assert '"do":"raise"' in seen.text("#story").replace(" ", "")  # its payload
            assert "\x1b" not in seen.text()
            await seen.press("r")
            await seen.until(lambda: "Try task bad again" in seen.text(), "it asks")
            await seen.press("y")
            await seen.until((rig.queue / "pending" / "bad~1x0.json").exists, "it waits again")

    run(test())


def test_a_task_is_found_by_its_id_and_says_why_it_waits(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig) as seen:
            await seen.press("slash")
            await seen.until(lambda: seen.app.screen.query(Input), "it asks which")
            await seen.write("waiting")
            await seen.until(lambda: "all 1 places of class cpu_short are taken" in seen.text("#story"), "it is told")
            await seen.press("escape", "slash")
            await seen.until(lambda: seen.app.screen.query(Input), "it asks again")
            await seen.write("nowhere")
            await seen.until(lambda: "nowhere" in seen.text("#title"), "it is not there")

    run(test())


def test_a_class_is_paused_goes_on_and_gets_another_limit(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig) as seen:
            await seen.until(lambda: seen.cells("classes"), "it looks")
            for key, question, state in (("p", "Pause class", "paused"), ("p", "go on?", "running")):
                await seen.press(key)
                await seen.until(lambda word=question: word in seen.text(), "it asks")
                await seen.press("y")
                await seen.until(lambda word=state: seen.cells("classes")["cpu_short"][7] == word, f"it is {state}")
            await seen.press("plus")
            await seen.until(lambda: "Let 2 tasks of class cpu_short run at once, not 1?" in seen.text(), "it asks")
            await seen.press("y")
            await seen.until(lambda: seen.cells("classes")["cpu_short"][3].startswith("2"), "the limit is 2")

    run(test())
    assert klass(busy)["limit"] == 2


def test_a_supervisor_that_ends_is_said_and_found_again(rig: Rig, busy: Supervised) -> None:
    async def test() -> None:
        async with watching(rig, (80, 24)) as seen:
            await seen.until(lambda: f"pid {busy.pid}" in seen.text("#head"), "it looks")
            busy.kill()
            await seen.until(lambda: "no supervisor is running" in seen.text("#head"), "it says so")
            row = seen.cells("classes")["cpu_short"]
            assert row[5:7] == ["1", "1"]  # counted in the folders
            other = await asyncio.to_thread(rig.start)
            await seen.until(lambda: f"pid {other.pid}" in seen.text("#head"), "it finds the next")
            await seen.until(lambda: seen.app.view and seen.app.view.running, "and what that runs")

    run(test())


def test_gpus_services_and_slurm_have_tabs_that_say_where_there_is_nothing(rig: Rig) -> None:
    rig.start(settings={"policy": "adaptive"})

    async def test() -> None:
        async with watching(rig) as seen:
            await seen.press("6")
            await seen.until(lambda: "controller" in seen.cells("services"), "the controller is listed")
            await seen.press("4")
            await seen.until(lambda: seen.app.query_one("#empty-gpus").display, "no GPU")
            await seen.press("5")
            await seen.until(lambda: seen.app.query_one("#empty-jobs").display, "no job")
            assert "No Slurm job is open." in seen.text("#empty-jobs")

    run(test())


def test_it_draws_on_a_real_terminal_and_ends_by_q(rig: Rig) -> None:
    rig.start()
    command = [sys.executable, "-m", "dspy_supervisor", "top", "--queue-dir", str(rig.queue)]
    environ = clean_environ(rig.folder) | {"TERM": "xterm-256color", "LINES": "30", "COLUMNS": "100"}
    environ["DSPY_RUNTIME_DIR"] = str(rig.folder / "run")
    refused = subprocess.run(command, env=environ, capture_output=True, cwd=rig.folder, stdin=subprocess.DEVNULL)
    assert refused.returncode == 2 and b"top needs a terminal" in refused.stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environ, cwd=rig.folder, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"cpu_short" not in shown:
            shown += os.read(ours, 65536)
        os.write(ours, b"q")
        try:
            while os.read(ours, 65536):
                pass
        except OSError:  # the other end is closed
            pass
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)


def test_without_the_extra_the_remedy_is_named(rig: Rig) -> None:
    rig.start()
    code = rig.folder / "code"
    code.mkdir()
    (code / "textual.py").write_text("raise ModuleNotFoundError('hidden', name='textual')\n")
    environ = clean_environ(rig.folder) | {"TERM": "xterm"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dspy_supervisor", "top", "--queue-dir", str(rig.queue)]
    ended = subprocess.run(
        command, env=environ, cwd=rig.folder, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, timeout=60
    )
    os.close(theirs)
    os.close(ours)
    assert (ended.returncode, b"pip install 'dspy-supervisor[tui]'" in ended.stderr) == (69, True)

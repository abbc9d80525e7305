"""An upgrade: a running supervisor becomes another version in its own process, and no task notices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy_supervisor
import pytest
from dspy_supervisor import __version__

from ..conftest import START_S, Supervised, clean_environ, until
from .invariants import runs
from .rig import Rig, events, is_alive, is_now, workers

PACKAGE = Path(str(dspy_supervisor.__file__)).parent
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """A function that installs a version and lets the next program find it; changes are file to (old, new) text.

    Each has a folder of its own, which stays: a program goes on to import from where it began.
    """
    link = tmp_path / "code" / "dspy_supervisor"
    link.parent.mkdir()
    link.symlink_to(PACKAGE)

    def install(version: str = "", changes: dict[str, tuple[str, str]] | None = None) -> None:
        target = PACKAGE
        if version:
            target = tmp_path / version
            shutil.copytree(PACKAGE, target)
            number = {"__init__.py": (f'__version__ = "{__version__}"', f'__version__ = "{version}"')}
            for file, (old, new) in (number | (changes or {})).items():
                text = (target / file).read_text()
                assert old in text
                (target / file).write_text(text.replace(old, new, 1))
        link.with_name("next").symlink_to(target)
        link.with_name("next").rename(link)

    return install


def refusal(one: Supervised) -> str:
    """Ask for an upgrade, and return why it is refused."""
    one.ask("upgrade")
    facts: dict[str, Any] = until(
        lambda: found if (found := one.status()["upgrade"])["state"] == "idle" else None, "it is refused", START_S
    )
    assert facts["number"] == 0
    return str(facts["refused"])


def test_tasks_run_on_through_two_upgrades_and_a_way_back(rig: Rig, install: Install) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(f"\0upgrade-{os.getpid()}")
        notices.settimeout(START_S)
        address = {"NOTIFY_SOCKET": f"@upgrade-{os.getpid()}", "WATCHDOG_USEC": "60000000"}
        one = rig.start(workers=2, ready=False, environ=address)

        def ready() -> None:
            said: set[bytes] = set()
            while b"READY=1" not in said:
                before, said = said, set(notices.recv(4096).split(b"\n"))
            # Its first beat by the clock is a period away: without one here the watchdog bites.
            assert b"WATCHDOG=1" in said
            assert not before or b"WATCHDOG=1" in before, "the last word before it turns is a beat, too"

        ready()
        gate = rig.gate("long")
        gate.wait()
        (old,) = [pid for pid in workers(one) if pid == int(rig.log.read_text().split()[2])]
        for number, version in enumerate(("9.1", "9.2", ""), 1):
            install(version)
            for task in range(40):
                rig.drop(f"t{number}.{task}")
            one.signal(signal.SIGUSR2)
            ready()
            is_now(one, version or __version__, number)
            rig.drop(f"after{number}")
            rig.record(f"after{number}")
            assert is_alive(old)
    gate.open()
    assert rig.record("long")["attempt"] == 0
    rig.drain()
    rig.check(drained=True)
    assert set(runs(rig.log).values()) == {1}
    until(lambda: not is_alive(old), "the worker of the first program ends with its task")
    taken = events(one, "taken_over")
    assert [(line["before"], line["version"]) for line in taken] == [
        (__version__, "9.1"), ("9.1", "9.2"), ("9.2", __version__)
    ]  # fmt: skip
    # What was counted goes on, and nothing was counted twice.
    found = one.status()["classes"]["cpu_short"]
    assert (found["done"], found["failed"], found["retried"], found["workers"]) == (len(rig.put_ids), 0, 0, 2)
    assert one.stop() == 0


def test_a_version_that_cannot_take_over_is_refused_in_words_and_the_old_one_goes_on(
    rig: Rig, install: Install, tmp_path: Path
) -> None:
    one = rig.start(workers=1)
    gate = rig.gate("long")
    gate.wait()
    install("9.1", {"loop.py": ("import contextlib", "import contextlib_that_is_missing")})
    command = [sys.executable, "-m", "dspy_supervisor", "upgrade", "--queue-dir", str(one.queue)]
    done = subprocess.run(
        [*command, "--runtime-dir", str(one.runtime)],
        capture_output=True, text=True, env=clean_environ(tmp_path) | {"PYTHONPATH": str(PACKAGE.parent)}, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No module named 'contextlib_that_is_missing'" in done.stderr
    assert "goes on as it was" in done.stderr
    install("9.2", {"handover.py": ("FORMAT = 1", "FORMAT = 2")})
    assert "hands over in format 1, and this one takes format 2: restart the supervisor" in refusal(one)
    install("9.3", {"layout.py": ("FORMAT = 1", "FORMAT = 2")})
    assert "the format of the queue was 1 and is 2 now" in refusal(one)
    install("9.4", {"upgrade.py": ("json.dumps({", "str({")})
    assert "the next program can't take over (exit code 0): {" in refusal(one)
    assert one.status()["version"] == __version__
    assert len(events(one, "upgrade_refused")) == 4
    gate.open()
    assert rig.record("long")["attempt"] == 0
    rig.check(drained=True)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def run(task) return 1", "a module 'jobs' that can be imported, not SyntaxError: "),
        (None, "a module 'jobs' that can be imported, not ModuleNotFoundError: No module named 'jobs'"),
        ("run = 7", "handler='jobs:run': expected something that can be called, not int"),
        ("import os; os._exit(0)\ndef run(task): ...", ""),
        (
            "import os; os.kill(os.getpid(), 11)",
            "class cpu_short could not work: loading its handlers was ended by SIGSEGV",
        ),
    ],
)
def test_handlers_that_cannot_be_loaded_are_refused_and_those_at_work_go_on(
    rig: Rig, tmp_path: Path, code: str | None, why: str
) -> None:
    jobs = tmp_path / "code" / "jobs.py"
    jobs.parent.mkdir()
    jobs.write_text("def run(task):\n    return 'works'\n")
    one = rig.start(handlers={"cpu_short": "jobs:run"}, workers=1)
    rig.drop("before")
    assert rig.record("before")["runner_result"] == "works"
    before = workers(one)
    jobs.unlink()
    if code is not None:
        jobs.write_text(code + "\n")
    shutil.rmtree(jobs.parent / "__pycache__", ignore_errors=True)
    told = refusal(one)
    assert why in told and "class cpu_short could not work: " in told
    assert workers(one) == before and one.status()["version"] == __version__
    rig.drop("after")
    assert rig.record("after")["runner_result"] == "works"
    jobs.write_text("def run(task):\n    return 'is mended'\n")
    one.ask("upgrade")
    is_now(one, __version__, 1)
    until(lambda: workers(one) != before, "the workers are others")
    rig.drop("mended")
    assert rig.record("mended")["runner_result"] == "is mended"


def test_a_class_that_failed_before_hinders_no_upgrade(rig: Rig) -> None:
    one = rig.start("--workers", "cpu_long=1", handlers={"cpu_short": "echo", "cpu_long": "no_such_module:run"})
    until(lambda: one.status()["classes"]["cpu_long"]["state"] == "failed", "it is given up")
    one.ask("upgrade")
    is_now(one, __version__, 1)


def test_a_program_that_cannot_read_what_is_left_to_it_recovers_as_after_a_kill(rig: Rig, install: Install) -> None:
    one = rig.start(workers=1)
    rig.gate("long").wait()
    (old,) = workers(one)
    for task in range(20):
        rig.drop(f"t{task}")
    install(
        "9.1", {"upgrade.py": ("os.close(document)\n        _fit", "raise SupervisorError('planted')\n        _fit")}
    )
    one.ask("upgrade")
    until(lambda: events(one, "handover_unreadable"), "it starts anew", START_S)
    (rig.folder / "long.gate").touch()
    rig.drain()
    rig.check(drained=True)
    found = one.status()
    assert (found["version"], found["pid"], found["upgrade"]["number"]) == ("9.1", one.pid, 0)
    assert not is_alive(old)
    assert runs(rig.log) == {**{f"t{task}": 1 for task in range(20)}, "long": 2}
    assert one.stop() == 0


def test_a_time_limit_holds_where_the_next_program_has_another_page(rig: Rig, install: Install) -> None:
    one = rig.start(workers=2)
    gates = [rig.gate("ends"), rig.gate("late", timeout_s=2, max_attempts=1)]
    for gate in gates:
        gate.wait()
    (page,) = one.runtime.glob("*.page")
    with page.open("r+b") as file:  # as if the running program had another layout than the next
        file.seek(8)
        file.write((99).to_bytes(4, "little"))
    install("9.1")
    one.ask("upgrade")
    is_now(one, "9.1", 1)
    gates[0].open()
    assert rig.record("ends")["attempt"] == 0
    assert rig.record("late")["error"]["cause"] == "timeout"
    rig.drop("after")
    rig.drain()
    rig.check(drained=True, may_fail=["late"])
    until(lambda: one.status()["classes"]["cpu_short"]["workers"] == 2, "the workers are replaced")
    assert json.loads((rig.queue / "done" / "after.json").read_bytes())["status"] == "done"

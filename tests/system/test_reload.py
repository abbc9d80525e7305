"""A reload: what the table calls live is in force afterwards, the rest is named, and a bad configuration changes nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from dspy_fastpath.counters import Page
from dspy_supervisor.errors import SupervisorError
from dspy_supervisor.schedule import Budget

from ..conftest import Supervised, clean_environ, until
from ..nvml import RTX_4090, Script
from .rig import PLAY, Rig, events, is_alive, workers

Write = Callable[..., None]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes the configuration file: settings, and with them those of cpu_short."""

    def write(cpu_short: dict[str, object] | None = None, **settings: object) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        lines += ["[class.cpu_short]", *(f"{name} = {json.dumps(value)}" for name, value in (cpu_short or {}).items())]
        (tmp_path / "x.toml").write_text("\n".join(lines) + "\n")

    return write


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A function that runs a command."""

    def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dspy_supervisor", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_environ(tmp_path))

    return cli


def start(rig: Rig, *options: str, workers: int = 3, **more: Any) -> Supervised:
    return rig.start("--config", str(rig.folder / "x.toml"), *options, workers=workers, settings={}, **more)


OTHERS = {"cpu_long": "echo"}  #: so that cpu_short has its handler from the file


def limit(one: Supervised) -> int:
    return int(one.status()["classes"]["cpu_short"]["limit"])


def test_what_is_live_is_in_force_and_what_is_not_is_named(rig: Rig, write: Write) -> None:
    write(max_depth=100, action_log=False)
    one = start(rig)
    rig.drop("before")
    rig.record("before")
    write(max_depth=90, action_log=True, cpu_short={"limit_max": 2, "timeout_s": 0.5, "max_attempts": 1})
    answer = one.ask("reload")
    live = ["action_log", "class.cpu_short.limit_max", "class.cpu_short.timeout_s", "class.cpu_short.max_attempts"]
    assert (sorted(answer["applied"]), answer["needs_restart"]) == (sorted(live), ["max_depth"])
    assert limit(one) == 2
    rig.drop("late", {"do": "sleep", "s": 600})
    assert rig.record("late")["error"]["cause"] == "timeout"
    actions = rig.folder / "agent_action.jsonl"
    until(lambda: actions.exists() and "late" in actions.read_text(), "the end of a task is told")
    assert "before" not in actions.read_text()


@pytest.mark.parametrize("program", ["dspy_supervisor", "tests.system.crew"], ids=["fixed", "steered"])
def test_a_limit_by_hand_ends_with_a_reload(rig: Rig, write: Write, program: str) -> None:
    write()
    one = start(rig, program=program)
    one.signal(signal.SIGTTOU)
    until(lambda: limit(one) == 2, "it is lowered")
    one.ask("reload")
    assert limit(one) == 3


def test_without_a_policy_the_limit_is_that_of_the_workers_again(rig: Rig, write: Write) -> None:
    write(policy="adaptive")
    one = start(rig, program="tests.system.crew")
    (rig.folder / "crew").mkdir(exist_ok=True)
    (rig.folder / "crew/controller.do").write_text("1")
    until(lambda: limit(one) == 1, "the controller says 1")
    write(policy="plan")  # for this crew: none
    one.ask("reload")
    assert limit(one) == 3
    assert "controller" not in one.status()["services"]


def test_a_supervisor_without_workers_of_its_own_takes_new_settings_too(rig: Rig, write: Write) -> None:
    write()
    one = start(rig, workers=0)
    write(total_limit=6)
    assert one.ask("reload")["applied"] == ["total_limit"]


def test_a_bad_configuration_is_refused_whole(rig: Rig, write: Write) -> None:
    write(total_limit=5)
    one = start(rig)
    write(total_limit=6, cpu_short={"limit_min": 3, "limit_max": 2})
    one.signal(signal.SIGHUP)
    (refused,) = until(lambda: events(one, "reload_refused"), "it is refused")
    assert "limit_max" in refused["error"] and "no less than limit_min=3" in refused["error"]
    write(total_limit=5)
    assert one.ask("reload") | {"ok": True} == {"applied": [], "needs_restart": [], "ok": True}


def test_a_reload_may_be_asked_for_by_a_command_that_says_what_it_did(rig: Rig, write: Write, cli: Cli) -> None:
    write()
    one = start(rig)
    write(total_limit=6, max_depth=90)
    where = ("--queue-dir", one.queue, "--runtime-dir", one.runtime)
    assert cli("config", "reload", *where).stdout == "applied: total_limit\nnot applied before a restart: max_depth\n"
    assert json.loads(cli("config", "reload", "--json", *where).stdout)["applied"] == []
    write(total_limit=-1)
    refused = cli("config", "reload", *where)
    assert refused.returncode == 78
    assert "total_limit=-1: expected a whole number" in refused.stderr
    one.stop()
    assert cli("config", "reload", *where).returncode == 3


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A module of handlers that work."""
    path = tmp_path / "code" / "jobs.py"
    path.parent.mkdir()
    path.write_text("def run(task):\n    return 'works'\n")
    return path


def result(rig: Rig, task_id: str) -> object:
    rig.drop(task_id)
    return rig.record(task_id)["runner_result"]


def test_a_handler_that_cannot_work_is_refused_whole_and_nothing_changes(
    rig: Rig, write: Write, cli: Cli, jobs: Path
) -> None:
    write({"handler": "jobs:run"}, total_limit=5)
    one = start(rig, handlers=OTHERS, workers=1)
    where = ("--queue-dir", one.queue, "--runtime-dir", one.runtime)
    assert result(rig, "a1") == "works"
    before = workers(one)
    write({"handler": "jobs:nofunc"}, total_limit=6)
    refused = cli("config", "reload", *where)
    assert refused.returncode == 78
    assert (
        "class cpu_short could not work: handler='jobs:nofunc': expected 'nofunc' to be defined in jobs"
        in refused.stderr
    )
    one.signal(signal.SIGHUP)
    (event,) = until(lambda: events(one, "reload_refused"), "it is refused")
    assert "'nofunc' to be defined in jobs" in event["error"]
    jobs.write_text("def run(task) return 'works'\n")  # what nobody asked for would break the class just so
    write({"handler": "jobs:run"}, total_limit=7)
    assert "SyntaxError" in cli("config", "reload", *where).stderr
    assert (workers(one), result(rig, "a2")) == (before, "works")
    jobs.write_text("def run(task):\n    return 'mended'\n")
    assert one.ask("reload")["applied"] == ["total_limit"]
    until(lambda: workers(one) != before, "the workers are others")
    assert result(rig, "a3") == "mended"


def rehearsals(one: Supervised, klass: str = "") -> list[int]:
    """The processes that only load handlers; those of one class."""
    found = []
    for child in one.children():
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            if f"{klass} rehearsal" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def test_handlers_that_take_long_to_load_hold_nothing_up(rig: Rig, write: Write, cli: Cli, jobs: Path) -> None:
    write({"handler": "jobs:run"})
    one = start(rig, handlers=OTHERS, workers=1)
    where = ("--queue-dir", one.queue, "--runtime-dir", one.runtime)
    assert result(rig, "a1") == "works"
    gate = rig.folder / "gate"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)\n"
    jobs.with_name("slow.py").write_text(f"{wait}def run(task):\n    return 'slow'\n")
    write({"handler": "slow:nofunc"})
    one.signal(signal.SIGHUP)
    assert result(rig, "a2") == "works"
    first = until(lambda: rehearsals(one, "cpu_short"), "the handlers are loaded")
    write({"handler": "slow:run"})  # in place of the one before
    with ThreadPoolExecutor() as threads:
        waits = threads.submit(cli, "config", "reload", *where)
        until(lambda: {*rehearsals(one, "cpu_short")} - {*first}, "the handlers of the next are loaded")
        assert result(rig, "a3") == "works"
        assert not waits.done() and not events(one, "reloaded", "reload_refused")
        write({"handler": "slow:run"}, max_depth=90)
        last = threads.submit(cli, "config", "reload", *where)
        overtaken = waits.result(30)
        assert overtaken.returncode == 1 and "nothing was changed: another reload took its place" in overtaken.stderr
        assert not last.done()
        gate.touch()
        assert last.result(30).stdout.startswith("applied: class.cpu_short.handler\n")
    until(lambda: result(rig, f"b{time.monotonic_ns()}") == "slow", "others take the place of the workers")
    assert not events(one, "reload_refused", "stray_left")


@pytest.mark.parametrize("order", [("cpu_short", "cpu_long"), ("cpu_long", "cpu_short")], ids="-".join)
def test_handlers_of_several_classes_that_are_loaded_at_one_moment_stop_nothing(
    rig: Rig, write: Write, jobs: Path, order: tuple[str, str]
) -> None:
    """The ends of their processes are heard together, and the workers that follow have the numbers of what ended."""
    write({"handler": "jobs:run"})
    one = start(rig, "--workers", "cpu_long=1", handlers={"cpu_long": "jobs:run"}, workers=1)
    assert result(rig, "a1") == "works"
    wait = "import os, sys, time\nname = open('/proc/self/cmdline').read().split()[1]\n"
    wait += f"while not os.path.exists({str(rig.folder)!r} + '/' + name):\n    time.sleep(0.01)\n"
    jobs.write_text(f"{wait}def run(task):\n    return 'mended'\n")
    write({"handler": "jobs:run"}, total_limit=7)
    one.signal(signal.SIGHUP)
    both = until(lambda: found if len(found := rehearsals(one)) == 2 else None, "both classes load their handlers")
    one.signal(signal.SIGSTOP)
    for left, name in ((1, order[0]), (0, order[1])):
        (rig.folder / name).touch()
        until(lambda left=left: sum(map(is_alive, both)) == left, f"{name} is loaded")  # type: ignore[misc]
    one.signal(signal.SIGCONT)
    until(lambda: events(one, "reloaded"), "the reload is through")
    until(lambda: result(rig, f"b{time.monotonic_ns()}") == "mended", "others take the place of the workers")
    assert one.stop() == 0


def test_a_class_that_failed_before_hinders_no_reload(rig: Rig, write: Write, jobs: Path) -> None:
    write({"handler": "jobs:nofunc"})
    one = start(rig, handlers=OTHERS, workers=1)
    until(lambda: one.status()["classes"]["cpu_short"]["state"] == "failed", "it is given up")
    write({"handler": "jobs:nofunc"}, total_limit=6)
    assert one.ask("reload")["applied"] == ["total_limit"]
    write({"handler": "jobs:none_either"}, total_limit=6)
    with pytest.raises(SupervisorError, match="'none_either' to be defined in jobs"):
        one.ask("reload")


def test_gpus_that_are_enabled_by_a_reload_are_handed_out(rig: Rig, write: Write, nvml_script: Script) -> None:
    write(enable_gpu=False, telemetry_interval_s=0.2)
    nvml_script.gpu(0, uuid="GPU-1", **RTX_4090)
    both = {"cpu_short": PLAY, "gpu": PLAY}
    one = start(rig, "--workers", "gpu=1", workers=1, handlers=both, environ=nvml_script.environ)
    names = {"do": "place", "names": ["CUDA_VISIBLE_DEVICES"]}
    rig.drop("before", names, **{"class": "gpu"})
    assert rig.record("before")["runner_result"]["variables"] == {"CUDA_VISIBLE_DEVICES": None}
    write(enable_gpu=True, telemetry_interval_s=0.2)
    one.ask("reload")
    rig.drop("after", names, **{"class": "gpu"})
    assert rig.record("after")["runner_result"]["variables"] == {"CUDA_VISIBLE_DEVICES": "GPU-1"}


def test_a_budget_that_finds_no_place_leaves_everything_as_it_was(rig: Rig, write: Write) -> None:
    write(llm_budgets="a=60rpm", cpu_short={"limit_max": 2})
    one = start(rig)
    page_path = one.socket.with_suffix(".page")
    with Page.attach(page_path, writable=True) as page:
        for number in range(63):
            Budget(page, f"model{number}")  # as 63 models without a rate take them
        write(llm_budgets="a=120rpm,b=60rpm", cpu_short={"limit_max": 1})
        with pytest.raises(SupervisorError, match="no room for a budget of b"):
            one.ask("reload")
        assert Budget(page, "a").rates.requests == 60
    assert limit(one) == 2

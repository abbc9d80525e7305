"""What signals, the service manager and an operator at the control socket can ask of a running supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy_supervisor.control_client import RequestRefused

from ..conftest import Start, Supervised, clean_environ, until
from .invariants import runs
from .rig import PLAY, Rig, events, is_alive, klass, workers


def test_term_lets_a_running_task_finish_and_starts_no_other(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    gate = rig.gate("running")
    gate.wait()
    rig.drop("waiting")
    supervisor.signal(signal.SIGTERM)
    until(lambda: events(supervisor, "stopping"), "it drains")
    gate.open()
    assert supervisor.wait() == 0
    assert rig.record("running")["status"] == "done"
    assert [path.name for path in (rig.queue / "pending").iterdir()] == ["waiting.json"]
    rig.check()


def test_what_runs_past_the_drain_goes_back_with_an_attempt_and_without_blame(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"drain_s": 0.3, "kill_grace_s": 0.3})
    rig.gate("stuck", "gate_stubborn").wait()
    assert supervisor.stop() == 0
    assert [path.name for path in (rig.queue / "pending").iterdir()] == ["stuck~1x0.json"]
    rig.check()


def test_a_second_term_ends_it_quickly(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"drain_s": 600})
    rig.gate("stuck", "gate_stubborn").wait()
    supervisor.signal(signal.SIGTERM)
    until(lambda: events(supervisor, "stopping"), "it drains")
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert [path.name for path in (rig.queue / "pending").iterdir()] == ["stuck~1x0.json"]
    assert not list((rig.queue / "claimed").iterdir())


def test_prefetched_tasks_of_a_stopping_supervisor_wait_again(rig: Rig) -> None:
    supervisor = rig.start(workers=2)
    for number in range(600):
        rig.drop(f"t{number:03d}")
    until(lambda: rig.ended() > 100, "work goes on")
    assert supervisor.stop() == 0
    rig.check()
    assert not rig.claims()
    assert all(number == 1 for number in runs(rig.log).values())


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A configuration file that the supervisor is started with."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[class.cpu_short]\nworkers = 1\nhandler = "{PLAY}"\n[class.cpu_long]\nworkers = 0\n[class.gpu]\nworkers = 0\n'
    )
    return path


@pytest.fixture
def configured(rig: Rig, tmp_path: Path, toml: Path) -> Iterator[Supervised]:
    """A supervisor that has its settings from a file alone."""
    command = [sys.executable, "-m", "dspy_supervisor", "start", "--queue-dir", str(rig.queue)]
    command += ["--runtime-dir", str(tmp_path / "run"), "--config", str(toml)]
    output = tmp_path / "supervisor.9.log"
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=clean_environ(tmp_path))
    one = Supervised(rig.queue, tmp_path / "run", "main", process, output)
    until(lambda: _answers(one), "it serves")
    yield one
    one.clear()


def _answers(one: Supervised) -> bool:
    with contextlib.suppress(Exception):
        return bool(one.status())
    return False


def test_hup_applies_workers_and_handler_and_refuses_what_cannot_work(
    rig: Rig, configured: Supervised, toml: Path
) -> None:
    text = toml.read_text()
    toml.write_text(text.replace("workers = 1", "workers = 3"))
    configured.signal(signal.SIGHUP)
    until(lambda: klass(configured)["workers"] == 3, "three workers")
    rig.drop("a1")
    assert rig.record("a1")["runner_result"]["attempt"] == 0

    toml.write_text(text.replace(PLAY, "tests.system.handlers:other"))
    configured.signal(signal.SIGHUP)
    until(lambda: klass(configured)["handler"] == "tests.system.handlers:other", "the handler is another")
    until(lambda: klass(configured)["workers"] == 1, "one worker")
    rig.drop("a2")
    assert rig.record("a2")["runner_result"] == "other"

    toml.write_text("workers = nonsense")
    configured.signal(signal.SIGHUP)
    until(lambda: events(configured, "reload_refused"), "it refuses")
    toml.unlink()
    configured.signal(signal.SIGHUP)
    until(lambda: len(events(configured, "reload_refused")) == 2, "it refuses again")
    rig.drop("a3")
    assert rig.record("a3")["runner_result"] == "other"


def test_hup_lets_a_running_task_finish_under_the_settings_it_began_with(
    rig: Rig, configured: Supervised, toml: Path
) -> None:
    gate = rig.gate("running")
    gate.wait()
    toml.write_text(toml.read_text().replace(PLAY, "tests.system.handlers:other"))
    configured.signal(signal.SIGHUP)
    until(lambda: events(configured, "reloaded"), "it reloads")
    gate.open()
    assert rig.record("running")["runner_result"] == {"n": None, "attempt": 0, "crashes": 0}
    rig.drop("next")
    assert rig.record("next")["runner_result"] == "other"


def test_ttin_and_ttou_change_the_limit(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    supervisor.signal(signal.SIGTTIN)
    until(lambda: klass(supervisor)["limit"] == 2 and len(workers(supervisor)) == 2, "one more")
    supervisor.signal(signal.SIGTTOU)
    until(lambda: klass(supervisor)["limit"] == 1 and len(workers(supervisor)) == 1, "one less")
    supervisor.signal(signal.SIGTTOU)
    supervisor.signal(signal.SIGUSR1)
    until(lambda: events(supervisor, "logs_reopened"), "both were heard")
    assert klass(supervisor)["limit"] == 1  # never none by a signal


def test_usr1_opens_the_log_anew_after_a_rotation(rig: Rig, tmp_path: Path) -> None:
    path, old = tmp_path / "logs" / "log", tmp_path / "logs" / "log.1"
    supervisor = rig.start(settings={"log_file": str(path)})
    path.rename(old)
    supervisor.signal(signal.SIGUSR1)
    until(lambda: path.exists() and "logs_reopened" in path.read_text(), "a new log")
    assert "logs_reopened" not in old.read_text()
    path.unlink()
    path.mkdir()  # no log can be opened there: the old one stays
    supervisor.signal(signal.SIGUSR1)
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    assert supervisor.stop() == 0


def test_a_running_worker_follows_a_rotated_log_and_its_lines_name_the_task(rig: Rig, tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    supervisor = rig.start(settings={"log_file": str(path)})
    gate = rig.gate("a1", "log")
    gate.wait()
    path.rename(old)
    supervisor.signal(signal.SIGUSR1)
    until(lambda: path.exists() and "logs_reopened" in path.read_text(), "a new log")
    gate.open()
    rig.record("a1")
    for file, text in ((old, "begins"), (path, "ends")):
        [line] = [line for line in map(json.loads, file.read_text().splitlines()) if line["event"] == "message"]
        assert (line["text"], line["logger"], line["task"], line["attempt"]) == (text, "mine", "a1", 0)
        assert (line["class"], line["worker"]) == ("cpu_short", rig.record("a1")["worker"])


class Manager:
    """A service manager, as far as a service sees one."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def until(self, wanted: str, within_s: float = 20.0) -> dict[str, str]:
        """Return the first notice that has this key."""
        deadline = time.monotonic() + within_s
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            notice = dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())
            if wanted in notice:
                return notice

    def close(self) -> None:
        self._socket.close()


def test_the_service_manager_is_told_of_every_state(rig: Rig, tmp_path: Path) -> None:
    with contextlib.closing(Manager(tmp_path / "notify")) as manager:
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        supervisor = rig.start(settings={"drain_s": 7, "kill_grace_s": 2}, environ=environ, ready=False)
        ready = manager.until("READY")
        assert ready == {"READY": "1", "WATCHDOG": "1", "STATUS": f"serving {rig.queue}"}
        began = time.monotonic()
        for _ in range(4):
            assert manager.until("WATCHDOG") == {"WATCHDOG": "1"}
        assert time.monotonic() - began > 0.5  # every half of the time-out
        gate = rig.gate("running")
        gate.wait()
        supervisor.signal(signal.SIGTERM)
        stopping = manager.until("STOPPING")
        assert stopping["STOPPING"] == "1" and int(stopping["EXTEND_TIMEOUT_USEC"]) >= 9_000_000
        assert stopping["STATUS"] == "draining 1 tasks"
        assert manager.until("WATCHDOG")  # also while it drains
        gate.open()
        assert supervisor.wait() == 0


def test_a_second_supervisor_of_the_host_refuses_and_a_stale_lock_does_not(rig: Rig, supervisor: Start) -> None:
    first = rig.start()
    second = rig.start(ready=False)
    assert second.wait() == 75
    assert f"pid {first.pid}" in second.log
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    first.kill()
    third = rig.start()
    rig.drop("a2")
    assert rig.record("a2")["status"] == "done"
    assert third.stop() == 0


def test_a_frozen_supervisor_is_not_the_end_of_a_running_task(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    gate = rig.gate("running")
    gate.wait()
    supervisor.signal(signal.SIGSTOP)
    gate.open()
    assert rig.record("running")["status"] == "done"
    supervisor.signal(signal.SIGCONT)
    rig.drop("next")
    assert rig.record("next")["status"] == "done"


def test_pause_outlives_a_restart_and_a_limit_can_be_set(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    supervisor.ask("pause", reason="maintenance")
    rig.drop("a1")
    assert klass(supervisor)["state"] == "paused"
    assert supervisor.stop() == 0
    supervisor = rig.start(workers=1)
    assert klass(supervisor)["state"] == "paused"
    until(lambda: klass(supervisor)["pending"] == 1, "it is seen")
    assert "maintenance" in supervisor.ask("explain", id="a1")["explanation"]
    supervisor.ask("resume")
    assert rig.record("a1")["status"] == "done"
    supervisor.ask("limit", **{"class": "cpu_short", "limit": 0})
    rig.drop("a2")
    until(lambda: klass(supervisor)["held"] == 1, "it is held")
    supervisor.ask("limit", **{"class": "cpu_short", "limit": 2})
    assert rig.record("a2")["status"] == "done"
    until(lambda: len(workers(supervisor)) == 2, "two workers")
    with pytest.raises(RequestRefused):
        supervisor.ask("limit", **{"class": "cpu_short", "limit": -1})
    with pytest.raises(RequestRefused):
        supervisor.ask("limit", **{"class": "nonsense", "limit": 1})
    with pytest.raises(RequestRefused):
        supervisor.ask("nonsense")


def test_the_control_socket_bears_clients_that_misbehave(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    silent: list[socket.socket] = []
    folder = os.open(supervisor.runtime, os.O_PATH)
    for content in (b"", b"{", b"\xff\xfe\n", b"[1]\n", b'{"do": 1}\n', b'{"do": "cancel"}\n', b"x" * (1 << 21)):
        client = socket.socket(socket.AF_UNIX)
        silent.append(client)
        client.connect(f"/proc/self/fd/{folder}/{supervisor.socket.name}")  # the path itself may be too long
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(content)
    assert supervisor.status()["running"]
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    for client in silent:
        client.close()
    os.close(folder)
    assert supervisor.status()["running"]


def test_workers_don_t_outlive_a_supervisor_that_is_killed_while_it_starts_them(rig: Rig) -> None:
    for number in range(3):
        supervisor = rig.start(workers=8, ready=False)
        until(lambda supervisor=supervisor: workers(supervisor), "the first worker")
        below = workers(supervisor)
        supervisor.kill()
        until(lambda below=below: not any(map(is_alive, below)), "all are gone")
        rig.drop(f"t{number}")
    rig.start()
    rig.drain()
    rig.check(drained=True)

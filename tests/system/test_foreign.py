"""Files of producers that know nothing of us, of careless ones, and of hostile ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Supervised, until
from .invariants import runs
from .rig import Rig, cpu_s

GRACE: dict[str, object] = {"partial_grace_s": 0.4, "sweep_s": 0.2}


@pytest.fixture
def served(rig: Rig) -> Supervised:
    """A supervisor that doesn't wait long for slow writers."""
    return rig.start(workers=1, settings=GRACE)


def _envelope(rig: Rig, **payload: Any) -> bytes:
    return json.dumps({"payload": {"do": "echo", "log": str(rig.log), **payload}}).encode()


# -- every way of writing ------------------------------------------------------------------------------------------------


def test_a_file_written_in_place_in_slow_chunks_is_run_whole_and_once(rig: Rig, served: Supervised) -> None:
    content = _envelope(rig, n=7, fill="x" * 5000)
    with (rig.queue / "pending" / "slow.json").open("wb") as file:
        for place in range(0, len(content), 1024):
            file.write(content[place : place + 1024])
            file.flush()
            sweeps = served.status()["sweeps"]
            until(lambda sweeps=sweeps: served.status()["sweeps"] > sweeps, "it is looked at in between")
    assert rig.record("slow")["runner_result"]["n"] == 7
    assert runs(rig.log) == {"slow": 1}
    assert not rig.quarantined()


def test_300_files_written_by_open_and_dump_are_all_run(rig: Rig, served: Supervised) -> None:
    code = (
        "import json, sys\n"
        "for number in range(300):\n"
        "    with open(f'{sys.argv[1]}/t{number}.json', 'w') as file:\n"
        "        json.dump({'payload': {'log': sys.argv[2], 'n': number, 'fill': 'x' * 9000}}, file)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(rig.queue / "pending"), str(rig.log)], check=True)
    rig.drain(300)
    assert len(list((rig.queue / "done").glob("*.json"))) == 300
    assert set(runs(rig.log).values()) == {1}
    assert not rig.quarantined()


def test_cp_and_mv_and_files_that_were_there_before_the_start_are_run(rig: Rig, tmp_path: Path) -> None:
    rig.drop("before")
    source = tmp_path / "source.json"
    source.write_bytes(_envelope(rig))
    rig.start(workers=1, settings=GRACE)
    shutil.copy2(source, rig.queue / "pending" / "copied.json")
    subprocess.run(["cp", str(source), str(rig.queue / "pending" / "cp.with.dots.json")], check=True)
    subprocess.run(["mv", str(source), str(rig.queue / "pending" / "moved.json")], check=True)
    for name in ("before", "copied", "cp.with.dots", "moved"):
        assert rig.record(name)["status"] == "done"


def test_a_put_by_link_and_unlink_is_no_planted_link(rig: Rig, served: Supervised) -> None:
    temporary, final = rig.queue / "pending" / ".t.tmp", rig.queue / "pending" / "linked.json"
    temporary.write_bytes(_envelope(rig))
    os.link(temporary, final)
    sweeps = served.status()["sweeps"]
    until(lambda: served.status()["sweeps"] > sweeps, "it is looked at")
    temporary.unlink()
    assert rig.record("linked")["status"] == "done"


@pytest.mark.parametrize(
    ("content", "klass", "payload"),
    [
        (b'{"id": "other", "class": null, "payload": "text"}', "cpu_short", "text"),
        (b'{"ID": "x", "Class": "CPU_SHORT", "Payload": [1, null]}', "cpu_short", [1, None]),
        (b'{"class": "no_such_class", "payload": 1.5}', "cpu_short", 1.5),
        (
            b'{"env_id": "e1", "action": 3, "timestamp": 1.0}',
            "cpu_short",
            {"env_id": "e1", "action": 3, "timestamp": 1.0},
        ),
        (b'{"payload": {}, "trace": {"a": 1}, "team": "x"}', "cpu_short", {}),
    ],
)
def test_every_envelope_of_existing_clients_is_taken(rig: Rig, content: bytes, klass: str, payload: Any) -> None:
    rig.start(workers=1, handlers={"cpu_short": "echo"})
    (rig.queue / "pending" / "t.json").write_bytes(content)
    found = rig.record("t")
    assert (found["class"], found["payload"], found["runner_result"]) == (klass, payload, payload)
    assert found["task_id"] == "t"
    written = json.loads(content)
    if "payload" in written:
        assert written.items() <= {**found, "class": written.get("class")}.items() or "class" not in written
    assert {"id", "class", "payload", "runner_result", "completed_at", "duration_ms"} <= found.keys()
    assert isinstance(found["duration_ms"], float) and found["completed_at"].endswith("Z")


def test_temporary_files_of_others_are_left_alone(rig: Rig, served: Supervised) -> None:
    names = [".hidden.json", "x.tmp", "y.json.tmp", "z.lock", ".t.json.swp"]
    for name in names:
        (rig.queue / "pending" / name).write_text("not json")
    rig.drop("honest")
    rig.record("honest")
    sweeps = served.status()["sweeps"]
    until(lambda: served.status()["sweeps"] > sweeps + 4, "they are passed over several times")
    assert sorted(path.name for path in (rig.queue / "pending").iterdir()) == sorted(names)


# -- what can't be a task -----------------------------------------------------------------------------------------------

CONTENTS = {
    "empty": b"",
    "zeros": b"\0" * 500,
    "nul": b'{"payload": "a\0b"}',
    "bom": b'\xef\xbb\xbf{"payload": 1}',
    "utf16": '{"payload": 1}'.encode("utf-16"),
    "bad_utf8": b'{"payload": "\xff\xfe"}',
    "twice": b'{"payload": 1, "payload": 2}',
    "twice_escaped": b'{"payload": 1, "p\\u0061yload": 2}',
    "nan": b'{"payload": NaN}',
    "huge_number": b'{"payload": 1e999}',
    "huge_integer": b'{"payload": ' + b"9" * 400 + b"}",
    "brackets": b'{"payload": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "keys": b"{" + b",".join(b'"k%d": 1' % number for number in range(60_000)) + b', "payload": 1}',
    "surrogate": b'{"payload": "\\ud800"}',
    "list": b"[1, 2]",
    "torn": b'{"payload": {"a": 1',
    "two": b'{"payload": 1}{"payload": 2}',
    "wrong_type": b'{"payload": 1, "priority": "high"}',
}


def test_contents_that_are_no_task_are_kept_aside_with_their_reason(rig: Rig, served: Supervised) -> None:
    for name, content in CONTENTS.items():
        (rig.queue / "pending" / f"{name}.json").write_bytes(content)
    rig.drop("honest")
    assert rig.record("honest")["status"] == "done"
    until(lambda: not list((rig.queue / "pending").iterdir()), "all are refused")
    assert set(rig.quarantined()) == {f"{name}.json" for name in CONTENTS}
    assert all(rig.quarantined().values())
    for name, content in CONTENTS.items():  # as they came
        [kept] = rig.queue.glob(f"quarantine/{name}.*.json")
        assert kept.read_bytes() == content
    assert "quarantine" in served.ask("explain", id="nan")["explanation"]
    _costs_nothing(served)


def _costs_nothing(supervisor: Supervised) -> None:
    before, began = cpu_s(supervisor.pid), time.monotonic()
    until(lambda: time.monotonic() - began > 1.0, "a second passes")
    assert cpu_s(supervisor.pid) - before <= 0.05


def test_names_and_kinds_that_are_no_task_are_kept_aside_and_nothing_outside_is_touched(
    rig: Rig, served: Supervised, tmp_path: Path
) -> None:
    pending = rig.queue / "pending"
    secret = tmp_path / "secret.json"
    secret.write_bytes(b'{"payload": "secret"}')
    task = b'{"payload": 1}'
    names = [
        "new\nline.json",
        "esc\x1b[2J.json",
        "-rf.json",
        "..json",
        "$(touch x).json",
        "\u202egnp.json",
        "a" * 245 + ".json",
    ]
    names += ["a~007x0.json", "a~0x0.json", "upper.JSON", "no_suffix", "space in.json", "quo'te.json"]
    for name in names:
        (pending / name).write_bytes(task)
    os.symlink(secret, pending / "symlink.json")
    os.symlink("/nonexistent", pending / "dangling.json")
    os.symlink(pending / "loop.json", pending / "loop.json")
    os.link(secret, pending / "hardlink.json")
    os.mkfifo(pending / "fifo.json")
    (pending / "folder.json").mkdir()
    (pending / "folder.json" / "inside").write_bytes(task)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as planted:
        folder = os.open(pending, os.O_PATH)
        planted.bind(f"/proc/self/fd/{folder}/socket.json")
        os.close(folder)
    kinds = ["symlink", "dangling", "loop", "hardlink", "fifo", "folder", "socket"]
    if os.geteuid() == 0:
        os.mknod(pending / "device.json", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        kinds.append("device")
    for name, size in (("sparse2g", 2 << 30), ("sparse1t", 1 << 40)):
        with (pending / f"{name}.json").open("wb") as file, contextlib.suppress(OSError):
            file.truncate(size)
            kinds.append(name)
    rig.drop("honest")
    assert rig.record("honest")["status"] == "done"
    hidden = [name for name in names if name.startswith(".")]
    expected = len(names) - len(hidden) + len(kinds)
    until(lambda: len(rig.quarantined()) == expected, "all are refused")
    until(lambda: sorted(path.name for path in pending.iterdir()) == hidden, "all are moved")
    assert secret.read_bytes() == b'{"payload": "secret"}'
    assert not list(tmp_path.glob("x")) and not (rig.queue.parent / "x").exists()
    reasons = rig.quarantined()
    assert reasons["symlink.json"] == "a symbolic link" and "FIFO" in reasons["fifo.json"]
    assert "2 names" in reasons["hardlink.json"]
    assert rig.ended() == 1
    assert all("\x1b" not in line and line.startswith("{") for line in served.log.splitlines())
    _costs_nothing(served)


def test_a_task_that_is_written_anew_while_it_waits_is_not_condemned(rig: Rig, served: Supervised) -> None:
    """The supervisor saw a whole file; when the worker claims it, its producer has begun to write it again."""
    served.ask("pause")
    path = rig.queue / "pending" / "again.json"
    path.write_bytes(_envelope(rig, n=1))
    until(lambda: served.status()["classes"]["cpu_short"]["pending"] == 1, "it is known")
    with path.open("wb") as file:
        served.ask("resume")
        until(
            lambda: served.ask("explain", id="again")["explanation"].startswith("its file is not valid"), "it goes back"
        )
        content = _envelope(rig, n=2)
        file.write(content[:20])
        file.flush()
        file.write(content[20:])
    assert rig.record("again")["runner_result"]["n"] == 2
    assert not rig.quarantined()


def test_an_id_that_is_used_again_overwrites_no_record(rig: Rig, served: Supervised) -> None:
    rig.drop("once", {"n": 1})
    rig.record("once")
    before = (rig.queue / "done" / "once.json").read_bytes()
    rig.drop("once", {"n": 2})
    until(rig.quarantined, "the second is refused")
    assert "used once" in rig.quarantined()["once.json"]
    assert (rig.queue / "done" / "once.json").read_bytes() == before


def test_dashboards_find_their_files(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"action_log": "true", "sweep_s": 0.3})
    gate = rig.gate("running")
    gate.wait()
    rig.drop("waits")
    path = rig.queue / "runner_metrics.json"

    def metrics() -> dict[str, int]:
        return json.loads(path.read_bytes()) if path.exists() else {}

    until(lambda: metrics().get("cpu_short") == 2, "both are counted")
    gate.open()
    rig.drain()
    until(
        lambda: metrics() | {"ts": 0} == {"gpu": 0, "cpu_short": 0, "cpu_long": 0, "processed": 2, "ts": 0}, "all done"
    )
    assert all(type(value) is int for value in metrics().values())
    lines = [json.loads(line) for line in (rig.queue.parent / "agent_action.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [{"name": "env_task_done", "id": name} for name in ("running", "waits")]
    assert all(line["topic"] == "agent.action" and type(line["ts"]) is int for line in lines)
    assert supervisor.stop() == 0

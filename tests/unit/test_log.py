"""The log: its forms, what others write into it, and files that are rotated or taken away."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor import current
from dspy_supervisor import log as module
from dspy_supervisor.log import configure, log, reopen
from dspy_supervisor.parts import Task

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """Leave Python's logging as it was; pytest has handlers of its own in it, which a program of ours has not."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setattr(module, "_bound", {})
    root.handlers = []
    yield
    configure("info")
    for logger in (root, logging.getLogger("dspy_supervisor")):
        logger.handlers = []
    root.handlers, root.level = before
    logging.getLogger("dspy_supervisor").propagate = True


@pytest.fixture
def path(tmp_path):
    """A log file, open for everything from INFO on."""
    configure("info", tmp_path / "log")
    return tmp_path / "log"


@pytest.fixture
def running():
    """A task that runs, with a trace."""
    raw = b'{"traceparent": "%b", "payload": 0}' % TRACE.encode()
    task = Task("a1", "cpu_short", None, 2, 0, None, raw, scan(raw), raw, "/nonexistent", None)
    current.begin(task)
    yield task
    current.end()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts(path):
    return [{key: value for key, value in line.items() if key != "time"} for line in lines(path)]


def test_a_line_is_an_event_with_its_facts(path):
    log.info("limit", klass="gpu", before=4, now=3)
    log.debug("done", task="a1.json")
    assert facts(path) == [{"level": "info", "event": "limit", "class": "gpu", "before": 4, "now": 3}]


def test_a_task_is_named_by_its_id_whatever_its_file_is_called(path):
    log.info("failed", task="a1~2x1.json")
    log.info("slurm_cancel", task="a1")
    log.warning("worker_died", tasks=["a1~2x1.json", "b", "c.json"])
    log.warning("took_from_dead", tasks=3)
    assert [(line.get("task"), line.get("attempt")) for line in lines(path)] == [
        ("a1", 2),
        ("a1", None),
        (None, None),
        (None, None),
    ]
    assert [line.get("tasks") for line in lines(path)] == [None, None, ["a1", "b", "c"], 3]


def test_what_others_log_while_a_task_runs_names_the_task_and_its_trace(path, running):
    log.bind(worker=4711)
    logging.getLogger("mine").warning("%d left", 3, extra={"step": 7})
    current.end()
    logging.getLogger("mine").warning("idle")
    whole = {"level": "warning", "event": "message", "logger": "mine"}
    trace_id = TRACE.split("-")[1]
    assert facts(path) == [
        {
            **whole,
            "text": "3 left",
            "worker": 4711,
            "task": "a1",
            "attempt": 2,
            "trace_id": trace_id,
            "extra": {"step": 7},
        },
        {**whole, "text": "idle", "worker": 4711},
    ]


def test_an_exception_stays_in_its_line(path, running):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("mine").exception("it broke")
    [line] = lines(path)
    assert line["text"] == "it broke"
    assert line["traceback"].endswith("ValueError: two\nlines")


def without_pytest():
    """Take away the handlers that pytest puts there before each test."""
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if isinstance(handler, module._Sink)]


def test_chatter_of_libraries_stays_out_of_a_log_at_level_debug(tmp_path):
    without_pytest()
    configure("debug", tmp_path / "log")
    logging.getLogger("library").debug("chatter")
    logging.getLogger("library").info("told")
    log.debug("done")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["message", "done"]


def test_requests_of_http_clients_are_told_at_level_debug_alone(tmp_path):
    logger = logging.getLogger("httpx2")
    for level, expected in (("debug", ["message"]), ("info", [])):
        without_pytest()
        configure(level, tmp_path / level)
        logger.info("HTTP Request: POST")
        assert [line["event"] for line in lines(tmp_path / level)] == expected
    logger.setLevel(logging.NOTSET)


def test_a_program_that_set_up_its_logging_keeps_it(tmp_path):
    without_pytest()
    own = logging.NullHandler()
    logging.getLogger().addHandler(own)
    configure("info", tmp_path / "log")
    logging.getLogger("mine").warning("not ours")
    log.info("ours")
    assert logging.getLogger().handlers == [own]
    assert [line["event"] for line in lines(tmp_path / "log")] == ["ours"]


@pytest.mark.parametrize("value", ["caf\udce9.json", {1: "one"}, {"a", "b"} - {"b"}, Path("/x")])
def test_any_value_can_be_told(path, value):
    log.warning("quarantined", file=value)
    assert len(lines(path)) == 1


def test_a_line_that_cannot_be_made_ends_nothing(path, capsys):
    without_pytest()
    logging.getLogger("mine").warning("%d", "no number")
    log.info("after")
    assert [line["event"] for line in lines(path)] == ["after"]
    assert "no number" in capsys.readouterr().err  # where Python's logging says so


def test_reopen_goes_on_in_a_file_of_the_same_name(path):
    log.info("one")
    path.rename(path.with_name("old"))
    log.info("two")
    reopen()
    log.info("three")
    assert [line["event"] for line in lines(path.with_name("old"))] == ["one", "two"]
    assert [line["event"] for line in lines(path)] == ["three"]


def in_child(action):
    """Run action in a fork, and return when that has ended."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_a_child_follows_its_parent_into_the_new_file_and_not_before(path):
    old = path.with_name("old")
    path.rename(old)
    in_child(lambda: log.info("before"))
    assert not path.exists()
    reopen()
    log.info("parent")
    forked_before = module._sinks()[0]._opened  # a child that was forked before the rotation has this

    def as_if_forked_before():
        [sink] = module._sinks()
        sink._opened = module._identity(old)
        os.dup2(os.open(old, os.O_WRONLY | os.O_APPEND), sink.descriptor)
        log.info("child")

    in_child(as_if_forked_before)
    assert forked_before == module._identity(path)
    assert [line["event"] for line in lines(old)] == ["before"]
    assert [line["event"] for line in lines(path)] == ["parent", "child"]


def test_a_child_whose_descriptor_a_task_closed_writes_into_nothing_of_the_tasks(path, tmp_path):
    mine = tmp_path / "mine"

    def take_the_number():
        [sink] = module._sinks()
        os.close(sink.descriptor)
        assert os.open(mine, os.O_WRONLY | os.O_CREAT) == sink.descriptor
        log.info("one")
        log.info("two")

    in_child(take_the_number)
    assert mine.read_bytes() == b""
    assert [line["event"] for line in lines(path)] == ["one", "two"]


def test_a_full_disk_ends_nothing():
    configure("info", Path("/dev/full"))
    log.info("lost")


PROGRAM = """
import logging, os, sys
from dspy_supervisor.log import configure, log
configure("info", journal=sys.argv[1])
log.error("class_failed", klass="gpu", reason="two words")
logging.getLogger("mine").info("tab\\there")
if said := os.environ.get("SAID"):
    log.warning("task_failed", message=said)
"""


def run(journal, **streams):
    return subprocess.run([sys.executable, "-c", PROGRAM, journal], check=True, timeout=60, **streams)


def test_a_terminal_gets_lines_for_people():
    ours, theirs = pty.openpty()
    run("", stderr=theirs)
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert re.sub(r"\d\d:\d\d:\d\d", "TIME", text).splitlines() == [
        'TIME error: class_failed class=gpu reason="two words"',
        "TIME mine: tab\\there",
    ]


def test_what_a_task_says_forges_no_line_and_moves_no_cursor():
    ours, theirs = pty.openpty()
    run("", stderr=theirs, env=os.environ | {"SAID": "x\n12:00:00 error: class_failed class=gpu\r\x1b[2J\x9b31m\u202e"})
    os.close(theirs)
    text = os.read(ours, 65536).decode()
    os.close(ours)
    assert len(text.splitlines()) == 3 and text.count("class_failed class=gpu") == 2
    assert not re.search(r"[\x1b\x9b\u202e]", text)


def test_the_journal_gets_a_priority_before_each_line_and_only_where_it_reads(tmp_path):
    with (tmp_path / "journal").open("wb") as stream:
        status = os.fstat(stream.fileno())
        run(f"{status.st_dev}:{status.st_ino}", stderr=stream)
    written = (tmp_path / "journal").read_text().splitlines()
    assert [line[:3] for line in written] == ["<3>", "<6>"]
    assert json.loads(written[0][3:])["event"] == "class_failed"
    with (tmp_path / "other").open("wb") as stream:
        run(f"{status.st_dev}:{status.st_ino}", stderr=stream)  # inherited, and redirected since
    assert (tmp_path / "other").read_text().startswith("{")


def test_a_reader_that_went_away_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    assert run("", stderr=writer, preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)).returncode == 0
    os.close(writer)

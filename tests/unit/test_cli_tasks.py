"""submit, task, queue and explain against a real folder, with nobody serving it, and with a stand-in who answers."""

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest
from dspy_supervisor.cli import main
from dspy_supervisor.layout import Layout
from dspy_supervisor.lookup import find_one
from dspy_supervisor.task import State


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """An empty queue that the environment names."""
    for name in [name for name in os.environ if name.startswith(("DSPY_", "ENV_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSPY_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ENV_QUEUE_DIR", str(tmp_path / "queue"))
    monkeypatch.chdir(tmp_path)
    with Layout.open(tmp_path / "queue", create=True, durability="none") as layout:
        yield layout


@pytest.fixture
def run(queue, capsys):
    """Run a command line; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def feed(monkeypatch):
    """Give bytes to standard input."""

    def feed(data: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return feed


def envelope(queue, task_id):
    return json.loads((queue.path / "pending" / f"{task_id}.json").read_bytes())


def end(queue, task_id, **record):
    """Put a record beside its place and rename it in, as a worker does."""
    folder = queue.path / ("done" if record.get("status") == "done" else "failed")
    (folder / f".{task_id}.new").write_bytes(orjson.dumps({"id": task_id, "payload": {}, "task_id": task_id, **record}))
    (folder / f".{task_id}.new").rename(folder / f"{task_id}.json")
    (queue.path / "pending" / f"{task_id}.json").unlink(missing_ok=True)


def test_a_task_is_submitted_with_all_that_was_said(run, queue):
    code, output, _ = run(
        *("submit", '{"a": [1, 2.50]}', "--id", "a1", "--class", "GPU", "--kind", "echo", "--priority", "7"),
        *("--timeout", "2.5", "--max-attempts", "4", "--resource", "gpus=2", "--resource", "gpu_memory=8G"),
        *("--affinity", "session 1", "--idempotent"),
    )
    assert (code, output) == (0, "a1\n")
    assert envelope(queue, "a1") == {
        "id": "a1",
        "class": "gpu",
        "kind": "echo",
        "priority": 7,
        "timeout_s": 2.5,
        "max_attempts": 4,
        "affinity": "session 1",
        "idempotent": True,
        "resources": {"gpus": 2, "gpu_memory": "8G"},
        "payload": {"a": [1, 2.5]},
    }
    assert b'{"a": [1, 2.50]}' in (queue.path / "pending/a1.json").read_bytes()  # as it was written


def test_a_payload_comes_from_standard_input_or_a_file(run, queue, feed, tmp_path):
    feed(b' "from stdin" ')
    assert run("submit", "-", "--id", "a1")[0] == 0
    (tmp_path / "payload.json").write_text("[3]")
    assert run("submit", "@payload.json", "--id", "a2")[0] == 0
    assert (envelope(queue, "a1")["payload"], envelope(queue, "a2")["payload"]) == ("from stdin", [3])
    code, _, error = run("submit", "@missing.json")
    assert (code, "missing.json" in error) == (2, True)


def test_an_id_is_made_where_none_is_given(run, queue):
    code, output, _ = run("submit", "{}", "--json")
    document = json.loads(output)
    assert (code, document["schema_version"], document["submitted"]) == (0, 1, 1)
    assert envelope(queue, document["id"])["payload"] == {}


def test_the_same_task_again_is_accepted_once_and_another_of_its_id_is_refused(run, queue):
    for _ in range(2):
        assert run("submit", "[1]", "--id", "a1")[0] == 0
    code, _, error = run("submit", "[2]", "--id", "a1")
    assert (code, "a1" in error) == (1, True)
    ids = {run("submit", "[1]", "--idempotency-key", "order 7")[1] for _ in range(2)}
    assert len(ids) == 1
    assert len(list((queue.path / "pending").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["hello"], 2, "text is written with quotes: '\"hello\"'"),
        (["{"], 2, "is not JSON"),
        (["NaN"], 2, "is not JSON"),
        (["{}", "--id", "../x"], 2, "an id is 1 to 100 of"),
        (["{}", "--class", "gpux"], 2, "no class"),
        (["{}", "--priority", "101"], 2, "--priority"),
        (["{}", "--timeout", "0"], 2, "--timeout"),
        (["{}", "--resource", "gpus"], 2, "expected NAME=VALUE"),
        (["{}", "--resource", "gpus=x"], 2, "resources.gpus='x': expected a whole number, or a share below 1"),
        (["{}", "--resource", "gpus=-1", "--class", "gpu"], 2, "resources.gpus=-1: expected a whole number"),
        (["{}", "--resource", "gpu_share=2"], 2, "resources.gpu_share=2: expected a number above 0, up to 1"),
        (["{}", "--resource", "gpu_memory=8Q"], 2, "resources.gpu_memory='8Q': expected bytes from 1"),
        (["{}", "--resource", "foo=1"], 2, "resources.foo=1: expected one of gpus, gpu_share, gpu_memory; what a job"),
        (["{}", "--resource", "foo=1", "--class", "gpu_slurm"], 2, "resources.foo=1: expected one of gpus, gpu_share"),
        (["{}", "--resource", "gpus=a:b", "--class", "gpu_slurm"], 2, "resources.gpus: 'a:b' is not"),
        (["{}", "--resource", "memory=1G"], 2, "resources.memory='1G': expected one of"),
        (["{}", "--timeout", "1e9"], 2, "seconds above 0 and up to 31622400"),
        ([], 2, "either PAYLOAD or --jsonl"),
        (["{}", "--jsonl", "x"], 2, "either PAYLOAD or --jsonl"),
        (["--jsonl", "missing.jsonl"], 2, "missing.jsonl"),
        (["--jsonl", "-", "--id", "a"], 2, "stand in the lines"),
        (["{}", "--queue-dir", "/nonexistent/queue"], 4, "no queue at /nonexistent/queue"),
    ],
)
def test_what_can_not_be_accepted_is_refused_and_nothing_is_left(run, queue, arguments, code, message):
    got, output, error = run("submit", *arguments)
    assert (got, output) == (code, "")
    assert message in error
    assert os.listdir(queue.path / "pending") == []


@pytest.mark.parametrize("command", ["submit 1", "task list", "queue fsck --repair", "start --burst"])
@pytest.mark.parametrize("kind", ["a symbolic link", "a file", "no folder", None])
def test_what_stands_in_place_of_a_folder_is_told_with_what_mends_it(run, queue, tmp_path, command, kind):
    pending = queue.path / "pending"
    pending.rmdir()
    if kind == "a symbolic link":
        pending.symlink_to(tmp_path)
    elif kind == "a file":
        pending.touch()
    elif kind:
        os.mkfifo(pending)
    elif command.startswith(("start", "queue fsck")):
        return  # which make it
    code, _, error = run(*command.split())
    assert code == 4
    if kind:
        assert f"{pending} is {kind}, where the queue has a folder of its own: move it away, and" in error
    else:
        assert (
            error
            == f"dspy-supervisor: {pending} is missing: 'dspy-supervisor start --queue-dir {queue.path}' makes it\n"
        )


def test_a_full_queue_says_try_again(run, queue):
    with Layout.open(queue.path, bounds=(1, 0)):
        pass
    assert run("submit", "1")[0] == 0
    code, _, error = run("submit", "2")
    assert (code, "queue full" in error) == (75, True)


def test_a_delayed_task_waits_for_its_time(run, queue):
    assert run("submit", "1", "--id", "a1", "--delay", "60")[0] == 0
    found = find_one(queue, "a1")
    assert found.state is State.DELAYED
    assert 50 < found.due - time.time() <= 60
    assert "starts  in" in " ".join(run("task", "show", "a1")[1].split(" ")).replace("   ", "  ")
    assert "waits for its time" in run("explain", "a1")[1]


def test_lines_are_tasks_and_options_are_their_defaults(run, queue, feed):
    feed(
        b'{"id": "b1", "class": "gpu", "payload": [1], "priority": 3, "note": "kept", "idempotent": false}\n'
        b"\n"
        b'{"ID": "b2", "Payload": null}\n'
        b'{"env_id": 7, "action": "step"}\n'
    )
    defaults = (*("--priority", "5", "--max-attempts", "2"), "--affinity", "k", "--idempotent")
    code, output, _ = run("submit", "--jsonl", "-", "--class", "cpu_long", *defaults)
    ids = output.split()
    assert (code, ids[:2], len(ids)) == (0, ["b1", "b2"], 3)
    assert envelope(queue, "b1") == {
        "id": "b1",
        "class": "gpu",
        "priority": 3,
        "max_attempts": 2,
        "note": "kept",
        "affinity": "k",
        "idempotent": False,
        "payload": [1],
    }
    given = {"priority": 5, "max_attempts": 2, "affinity": "k", "idempotent": True}
    assert envelope(queue, "b2") == {"id": "b2", "class": "cpu_long", **given, "payload": None}
    assert envelope(queue, ids[2])["payload"] == {"env_id": 7, "action": "step"}


def test_a_bad_line_is_named_and_says_what_was_accepted(run, queue, feed, monkeypatch):
    feed(b'{"id": "b1"}\n{"id": \n')
    code, _, error = run("submit", "--jsonl", "-")
    assert (code, "-, line 2: " in error, "nothing was accepted" in error) == (2, True, True)
    assert os.listdir(queue.path / "pending") == []
    monkeypatch.setattr("dspy_supervisor.cli.submit._BATCH", 2)
    feed(b'{"id": "b1"}\n{"id": "b2"}\n{"id": "b3"}\nno\n')
    code, _, error = run("submit", "--jsonl", "-")
    assert (code, "the 2 tasks before were accepted" in error) == (2, True)
    assert sorted(os.listdir(queue.path / "pending")) == ["b1.json", "b2.json"]


def test_the_resources_of_a_line_are_checked_by_its_class(run, queue, feed):
    feed(b'{"class": "gpu_slurm", "id": "b1", "payload": 1}\n{"class": "gpu", "id": "b2", "payload": 1}\n')
    assert run("submit", "--jsonl", "-", "--resource", "gpus=2", "--resource", "template=mine")[0] == 0
    for line in (b'{"class": "gpu", "resources": {"gpus": "a100:2"}, "payload": 1}', b'{"env_id": 7}'):
        feed(b'{"id": "c1", "payload": 1}\n' + line)
        code, _, error = run("submit", "--jsonl", "-", *(() if b"a100" in line else ("--resource", "gpus=a100:2")))
        assert (code, "resources.gpus='a100:2': expected a whole number" in error) == (2, True)
    feed(b'{"class": "gpu_slurm", "id": "b3", "resources": {"gpus": "a100:2"}, "payload": 1}\n')
    assert run("submit", "--jsonl", "-")[0] == 0
    assert sorted(os.listdir(queue.path / "pending")) == ["b1.json", "b2.json", "b3.json"]


def test_wait_prints_the_result_as_soon_as_it_is_there(run, queue):
    run("submit", "1", "--id", "a1")
    worker = threading.Timer(0.05, end, (queue, "a1"), {"status": "done", "runner_result": {"x": 5}})
    worker.start()
    assert run("task", "wait", "a1", "--timeout-wait", "20") == (0, '{"x":5}\n', "")
    worker.join()


@pytest.mark.parametrize("command", ["task show ID", "task list", "explain ID", "task wait ID", "queue fsck", "status"])
def test_what_a_task_says_cannot_drive_the_terminal(run, queue, command):
    said = "\x1b[2Jgone\r\x9b31m\u202e\n12:00 all is well"
    run("submit", json.dumps({"argv": [said]}), "--id", "a1", "--kind", "command")
    error = {"cause": "raised", "message": said, "type": said, "traceback": said}
    attempts = [{"attempt": 1, "cause": "raised", "message": said}]
    end(queue, "a1", status="failed", kind=said, error=error, attempts=attempts, owner=said)
    (queue.path / "pending" / f"{said}.json").write_text(said)
    _, output, errors = run(*command.replace("ID", "a1").split())
    shown = output + errors
    assert shown
    assert not [c for c in shown if c != "\n" and not c.isprintable()]


def test_wait_tells_failure_by_its_exit_code(run, queue):
    for name in ("a1", "a2"):
        run("submit", "1", "--id", name)
    end(queue, "a1", status="done", runner_result=1)
    end(queue, "a2", status="failed", error={"cause": "raised", "message": "ValueError: \x1b[31mred"})
    code, output, error = run("task", "wait", "a1", "a2")
    assert (code, output) == (1, "a1\t1\n")
    assert "a2: failed (raised): ValueError: \\x1b[31mred" in error
    code, output, _ = run("task", "wait", "a1", "a2", "--json")
    document = json.loads(output)
    assert (code, document["done"], document["failed"]) == (1, 1, 1)
    assert document["tasks"][1]["error"]["cause"] == "raised"


def test_wait_ends_at_its_deadline_and_for_what_is_not_there(run, queue):
    run("submit", "1", "--id", "a1")
    code, _, error = run("submit", "2", "--id", "a2", "--wait", "--timeout-wait", "0.05")
    assert (code, "task a2 did not end in 0.05 s" in error) == (5, True)
    assert run("task", "wait", "nope")[0] == 4


def test_show_tells_where_a_task_is_and_how_it_ended(run, queue):
    run("submit", '{"a": 1}', "--id", "a1", "--kind", "echo")
    assert "state    pending" in run("task", "show", "a1")[1]
    assert json.loads(run("task", "show", "a1", "--json")[1])["envelope"]["payload"] == {"a": 1}
    error = {"cause": "raised", "message": "no", "traceback": "Traceback:\n  File x\nValueError: no"}
    end(
        queue,
        "a1",
        status="failed",
        error=error,
        attempt=2,
        history=[{"attempt": 0, "cause": "timeout", "message": "1 s"}],
    )
    output = run("task", "show", "a1")[1]
    assert "attempt  3 of 3\n" in output
    assert "  attempt 1: timeout: 1 s" in output
    assert "\n  File x\nValueError: no\n" in output
    document = json.loads(run("task", "show", "a1", "--json")[1])
    assert (document["state"], document["attempt"], document["record"]["error"]["cause"]) == ("failed", 2, "raised")
    assert run("task", "show", "a2")[0] == 4


def test_a_failure_is_told_with_the_type_of_its_exception(run, queue):
    run("submit", "1", "--id", "a1")
    error = {"cause": "raised", "type": "KeyError", "message": "'text'"}
    end(queue, "a1", status="failed", error=error, attempt=1, history=[{"attempt": 0, **error}])
    for command in ("wait a1", "list --state failed", "show a1"):
        _, output, errors = run("task", *command.split())
        assert "KeyError: 'text'" in output + errors
    assert "  attempt 1: raised: KeyError: 'text'\n" in output


def test_show_has_the_stacks_of_a_task_that_was_out_of_time(run, queue):
    run("submit", "1", "--id", "a1")
    stacks = 'Current thread 0x1:\n  File "\x1bhang.py", line 3 in wait'
    end(queue, "a1", status="failed", error={"cause": "timeout", "message": "1 s", "stacks": stacks})
    output = run("task", "show", "a1")[1]
    assert output.endswith('\nwhere it stood:\nCurrent thread 0x1:\n  File "\\x1bhang.py", line 3 in wait\n')


def test_attempts_are_counted_from_one_for_people_and_from_zero_in_json(run, queue):
    for name, attempt, most in (("a1", 2, 3), ("a2", 4, 3), ("a3", 0, None)):
        run("submit", "1", "--id", name)
        error = {"cause": "raised", "message": "no"}
        end(queue, name, status="failed", error=error, attempt=attempt, **({"max_attempts": most} if most else {}))
    shown = [line.split()[3] for line in run("task", "list", "--state", "failed")[1].splitlines()[1:]]
    assert shown == ["3", "5", "1"]
    listed = json.loads(run("task", "list", "--state", "failed", "--json")[1])["tasks"]
    assert [row["attempt"] for row in listed] == [2, 4, 0]
    written = [run("task", "show", name)[1].split("attempt")[1].splitlines()[0].strip() for name in ("a1", "a2", "a3")]
    assert written == ["3 of 3", "5", "1 of 3"]


def test_list_is_by_state_and_bounded(run, queue, feed):
    feed(b"".join(b'{"id": "t%02d", "class": "%s"}\n' % (n, b"gpu" if n % 2 else b"cpu_long") for n in range(10)))
    run("submit", "--jsonl", "-")
    end(queue, "t00", status="done", runner_result=1, duration_ms=12.0)
    document = json.loads(run("task", "list", "--json", "--limit", "3", "--state", "pending")[1])
    assert [row["id"] for row in document["tasks"]] == ["t07", "t08", "t09"]
    assert document["left_out"] == 6
    of_gpu = json.loads(run("task", "list", "--json", "--class", "gpu")[1])["tasks"]
    assert [row["id"] for row in of_gpu] == ["t01", "t03", "t05", "t07", "t09"]
    output = run("task", "list", "--state", "done")[1]
    assert output.splitlines()[1].split() == ["t00", "done", "cpu_short", "1", "in", "12", "ms"]


def test_a_waiting_task_is_cancelled_without_a_supervisor(run, queue):
    run("submit", "1", "--id", "a1")
    assert run("task", "cancel", "a1") == (0, "a1: cancelled, it was waiting\n", "")
    assert json.loads((queue.path / "failed/a1.json").read_bytes())["error"]["cause"] == "cancelled"
    assert run("task", "cancel", "a1")[0] == 1
    assert run("task", "cancel", "a2")[0] == 4
    assert os.listdir(queue.path / "claimed") == os.listdir(queue.path / "nodes") == []
    assert os.listdir(queue.path.parent / "run") == []


def test_a_failed_task_is_tried_again_under_a_name_that_was_never_used(run, queue):
    run("submit", "[1]", "--id", "a1", "--class", "gpu")
    assert run("task", "retry", "a1")[0] == 1
    run("task", "cancel", "a1")
    assert run("task", "retry", "a1") == (0, "a1: waits again\n", "")
    assert os.listdir(queue.path / "failed") == []
    assert os.listdir(queue.path / "pending") == ["a1~1x0.json"]
    document = json.loads(run("task", "show", "a1", "--json")[1])
    assert (document["attempt"], document["envelope"]["payload"], document["envelope"]["class"]) == (1, [1], "gpu")


def test_logs_are_copied_as_they_are_and_nothing_else_is_read(run, queue, tmp_path):
    run("submit", "1", "--id", "a1")
    folder = queue.path / "logs/a1"
    folder.mkdir()
    (folder / "stdout").write_bytes(b"one\x1b[31m\n")
    (folder / "secret").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    assert run("task", "logs", "a1") == (0, "one\x1b[31m\n", "")
    (folder / "stderr").write_bytes(b"two\n")
    assert run("task", "logs", "a1")[1] == "==> stderr <==\ntwo\n==> stdout <==\none\x1b[31m\n"
    assert run("task", "logs", "a1", "--file", "stderr")[1] == "two\n"
    assert run("task", "logs", "a1", "--file", "secret")[0] == 1
    assert [one["name"] for one in json.loads(run("task", "logs", "a1", "--json")[1])["files"]] == ["stderr", "stdout"]
    assert run("task", "logs", "a2")[0] == 4
    assert run("task", "logs", "../../etc")[0] in (2, 4)


def test_stats_and_status_count_what_lies_there(run, queue):
    for name in ("a1", "a2"):
        run("submit", "1", "--id", name, "--class", "gpu")
    end(queue, "a3", status="done", runner_result=1)
    (queue.path / "pending/.hidden.tmp").write_text("")
    (queue.path / "quarantine/x.json").write_text("")
    (queue.path / "quarantine/x.json.reason").write_text("{}")
    document = json.loads(run("queue", "stats", "--json")[1])
    assert document["folders"] == {"pending": 2, "delayed": 0, "claimed": 0, "done": 1, "failed": 0, "quarantine": 1}
    assert (document["classes"]["gpu"]["pending"], document["classes"]["cpu_short"]["done"]) == (2, 1)
    code, output, _ = run("status", "--json")
    document = json.loads(output)
    assert (code, document["running"], document["pid"]) == (3, False, None)
    assert (
        document["classes"]["gpu"] | {"pending": 2, "inflight": 0, "workers": 0, "done": 0}
        == document["classes"]["gpu"]
    )
    assert "1 refused files" in run("queue", "stats")[1]
    assert not json.loads(run("queue", "stats", "--json", "--limit", "0")[1])["complete"]


def test_a_pause_is_written_where_nobody_runs(run, queue):
    assert run("queue", "pause", "--class", "gpu", "--reason", "no power")[1] == "paused: gpu\n"
    assert json.loads((queue.path / "paused.json").read_bytes())["classes"] == ["gpu"]
    assert "no power" in run("queue", "stats")[1]
    assert run("queue", "resume")[0] == 0
    assert not (queue.path / "paused.json").exists()


def test_explain_says_that_nobody_runs(run, queue):
    run("submit", "1", "--id", "a1")
    code, output, _ = run("explain", "a1")
    assert (code, "dspy-supervisor start --queue-dir" in output) == (0, True)
    assert run("explain", "a2")[0] == 4


def test_what_a_supervisor_says_goes_before_what_lies_there(run, queue, monkeypatch):
    asked = []

    def ask(path, request, timeout_s=10.0):
        asked.append((path.name, request))
        return {"ok": True, "explanation": "all 1 places are taken", "was": "running", "pid": 7, "classes": {}}

    socket = Path(os.environ["DSPY_RUNTIME_DIR"]) / f"{queue.queue_id}.main.sock"
    socket.parent.mkdir(mode=0o700)
    socket.touch()
    for module in ("cli.service", "cli.explain", "client.cancelling", "cli.queue"):
        __import__(f"dspy_supervisor.{module}")
        monkeypatch.setattr(f"dspy_supervisor.{module}.ask", ask)
    assert run("explain", "a1")[1] == "a1: all 1 places are taken\n"
    assert run("task", "cancel", "a1")[1] == "a1: cancelled, it was running\n"
    assert run("queue", "pause", "--class", "gpu")[0] == 0
    assert run("status")[0] == 0
    assert {name for name, _ in asked} == {f"{queue.queue_id}.main.sock"}
    assert [request["do"] for _, request in asked] == ["explain", "cancel", "pause", "status"]
    assert not (queue.path / "paused.json").exists()


def test_fsck_is_1_until_all_is_mended(run, queue):
    assert run("queue", "fsck") == (0, "nothing is wrong\n", "")
    (queue.path / "done/a1.json").write_text("torn")
    code, output, _ = run("queue", "fsck")
    assert (code, "done/a1.json: " in output, "-> fsck --repair" in output) == (1, True, True)
    code, output, _ = run("queue", "fsck", "--repair", "--json")
    assert (code, json.loads(output)["left"]) == (0, 0)
    assert run("queue", "fsck")[0] == 0


def test_gc_wants_to_be_told_what_to_forget(run, queue):
    end(queue, "a1", status="done", runner_result=1)
    assert run("queue", "gc")[0] == 2
    assert run("queue", "gc", "--older-than", "soon")[0] == 2
    assert run("queue", "gc", "--older-than", "1d") == (0, "forgot: nothing\n", "")
    assert run("queue", "gc", "--keep", "0", "--dry-run") == (0, "would forget: 1 done\n", "")
    assert json.loads(run("queue", "gc", "--keep", "0", "--json")[1])["forgotten"]["done"] == 1
    assert os.listdir(queue.path / "done") == []

"""Real programs, what comes of them, and that nothing of them is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor import attempt, proctree
from dspy_supervisor.errors import EXIT_OK
from dspy_supervisor.handlers import command, make
from dspy_supervisor.parts import Task
from dspy_supervisor.task import Cause

GRACE_S = 5.0
FIELDS = scan(b'{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "payload": 0}')
TASK = Task("a1", "cpu_short", "command", 0, 0, None, b"", FIELDS, b"", Path("/nonexistent/a1"), None)


@pytest.fixture
def run(tmp_path):
    """Run a payload through the handler; returns the outcome, its result as Python objects."""

    def run(payload, *, attempt_number=0, deadline=None, **settings):
        handler = command.make(**{"kill_grace_s": GRACE_S, **settings})
        raw = orjson.dumps(payload)
        folder = tmp_path / "logs" / "a1"
        task = Task("a1", "cpu_short", "command", attempt_number, 0, None, raw, FIELDS, raw, folder, deadline)
        before = os.listdir("/proc/self/fd"), os.getcwd(), proctree.children()
        outcome = attempt.run(handler, task, max_result_bytes=1 << 20)
        assert (os.listdir("/proc/self/fd"), os.getcwd(), proctree.children()) == before
        return outcome

    return run


def python(source, *words):
    return {"argv": [sys.executable, "-c", source, *words]}


def shell(script, **rest):
    return {"argv": ["sh", "-c", script], **rest}


def value(outcome):
    assert outcome.ok, outcome
    return orjson.loads(outcome.result)


# Ends


def test_a_program_that_ends_well_says_what_it_printed(run, tmp_path):
    assert value(run(shell("echo out; echo err >&2"))) == {
        "exit_code": EXIT_OK,
        "stdout_bytes": 4,
        "stdout_tail": "out\n",
        "stdout_file": "logs/a1/stdout.0.txt",
        "stderr_bytes": 4,
        "stderr_tail": "err\n",
        "stderr_file": "logs/a1/stderr.0.txt",
    }
    assert (tmp_path / "logs/a1/stdout.0.txt").read_text() == "out\n"
    assert (tmp_path / "logs/a1/stderr.0.txt").read_text() == "err\n"


def test_a_silent_program_leaves_no_files(run, tmp_path):
    assert value(run({"argv": ["true"]}))["stdout_bytes"] == 0
    assert not (tmp_path / "logs").exists()


def test_no_shell_reads_the_arguments(run):
    words = ["$HOME", "*", "a b", "`id`", "-n", ";", "ä"]
    payload = python("import sys, json; print('__DSPY_RESULT__:' + json.dumps(sys.argv[1:]))", *words)
    assert value(run(payload)) == words


def test_an_exit_code_is_a_failure_with_the_last_line_of_what_went_wrong(run):
    outcome = run(shell("echo some; echo first >&2; echo 'it is broken' >&2; exit 3"))
    assert (outcome.cause, outcome.retry, outcome.traceback) == (Cause.EXIT, True, "")
    assert outcome.message == "sh ended with exit code 3: it is broken"
    assert outcome.details["exit_code"] == 3
    assert outcome.details["stdout_tail"] == "some\n"
    assert outcome.details["stderr_tail"] == "first\nit is broken\n"


@pytest.mark.parametrize(("name", "hint"), [("SIGKILL", ", perhaps for memory"), ("SIGSEGV", ""), ("SIGTERM", "")])
def test_death_by_a_signal_names_it(run, name, hint):
    outcome = run(shell(f"kill -{name.removeprefix('SIG')} $$"))
    assert (outcome.cause, outcome.message) == (Cause.SIGNAL, f"sh was killed by {name}{hint}")
    assert outcome.details["signal"] == name
    assert "exit_code" not in outcome.details


def test_a_program_is_not_born_with_the_ignored_signals_and_the_mask_of_its_worker(run):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        text = value(run({"argv": ["grep", "^Sig[BI]", "/proc/self/status"]}))["stdout_tail"]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    blocked, ignored = (int(line.split()[1], 16) for line in text.splitlines())
    ours = sum(1 << (number - 1) for number in signal.valid_signals())  # 32 and 33 are the C library's own
    assert (blocked & ours, ignored & ours) == (0, 0)
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN


def test_a_program_has_its_own_session_and_three_descriptors(run):
    source = "import os; print(os.getsid(0) == os.getpid(), len(os.listdir('/proc/self/fd')) - 1)"
    inheritable = os.dup2(0, 77)
    try:
        assert value(run(python(source)))["stdout_tail"] == "True 3\n"
    finally:
        os.close(inheritable)


# Not found, not allowed


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({"argv": ["no-such-program"]}, "there is no program 'no-such-program' in PATH=/"),
        ({"argv": ["/no/such/program"]}, "/no/such/program cannot be run: No such file"),
        ({"argv": ["/etc/passwd"]}, "/etc/passwd cannot be run: Permission denied"),
        ({"argv": ["/etc"]}, "/etc cannot be run: Permission denied"),
        ({"argv": ["true"], "cwd": "/no/such"}, "the folder '/no/such' cannot be entered: No such file"),
        ({"argv": ["true"], "cwd": "/etc/passwd"}, "cannot be entered: Not a directory"),
        ({"argv": ["true"], "cwd": "etc"}, "'cwd' is an absolute path, not 'etc'"),
        ({"argv": ["true"] + ["x" * 100_000] * 100}, "Argument list too long"),
        (None, "not NoneType"),
        ({}, "'argv' is an array"),
        ({"argv": []}, "'argv' is an array"),
        ({"argv": [""]}, "'argv' is an array"),
        ({"argv": "ls -l"}, "a shell must be named"),
        ({"argv": ["ls", 3]}, "'argv' is an array of strings"),
        ({"argv": ["ls", "a\0b"]}, "without NUL"),
        ({"argv": ["true"], "shell": True}, "knows no 'shell'"),
        ({"argv": ["true"], "stdin": 3}, "'stdin' is a string, not int"),
        ({"argv": ["true"], "env": ["A=1"]}, "'env' is an object, not list"),
        ({"argv": ["true"], "env": {"A=B": "1"}}, "'A=B', which is no name"),
        ({"argv": ["true"], "env": {"A\n": "1"}}, "which is no name"),
        ({"argv": ["true"], "env": {"": "1"}}, "which is no name"),
        ({"argv": ["true"], "env": {"A": 1}}, "A=1, which is no string"),
        ({"argv": ["true"], "env": {"LD_PRELOAD": "x"}}, "may not set LD_PRELOAD"),
        ({"argv": ["true"], "env": {"LD_AUDIT": "x"}}, "may not set LD_AUDIT"),
        ({"argv": ["true"], "env": {"BASH_ENV": "x"}}, "may not set BASH_ENV"),
        ({"argv": ["true"], "env": {"PYTHONPATH": "x"}}, "may not set PYTHONPATH"),
        ({"argv": ["true"], "env": {"DSPY_TASK_ID": "x"}}, "such names are the supervisor's"),
        ({"argv": ["true"], "timeout_s": 0}, "'timeout_s' is a number"),
        ({"argv": ["true"], "timeout_s": True}, "'timeout_s' is a number"),
        ({"argv": ["true"], "timeout_s": "5"}, "'timeout_s' is a number"),
        ({"argv": ["true"], "timeout_s": 1e12}, "'timeout_s' is a number"),
    ],
)
def test_what_can_never_run_is_refused_in_words(run, payload, says):
    outcome = run(payload)
    assert (outcome.cause, outcome.retry) == (Cause.REFUSED, False)
    assert says in outcome.message


def test_a_script_for_a_missing_interpreter_is_refused(run, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert run({"argv": [str(script)]}).cause is Cause.REFUSED
    script.write_text("just words\n")
    assert run({"argv": [str(script)]}).cause is Cause.REFUSED


def test_a_lack_of_ours_is_not_the_tasks_fault(run, monkeypatch):
    def spawn(*_, **__):
        raise OSError(11, "Resource temporarily unavailable", b"/bin/true")

    monkeypatch.setattr(command, "spawn", spawn)
    outcome = run({"argv": ["true"]})
    assert (outcome.cause, outcome.retry) == (Cause.RAISED, True)


# Environment, folder, input


def test_only_named_variables_are_seen(run, monkeypatch):
    for name in [*os.environ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    seen = value(run({"argv": ["env"], "env": {"MINE": "a=b", "LC_ALL": "de"}}, attempt_number=2))["stdout_tail"]
    assert sorted(seen.splitlines()) == [
        "DSPY_TASK_ATTEMPT=2",
        "DSPY_TASK_CLASS=cpu_short",
        "DSPY_TASK_ID=a1",
        "LC_ALL=de",
        "MINE=a=b",
        "PATH=/usr/bin:/bin",
        "TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ]
    seen = value(run({"argv": ["env"]}, command_env=["SLURM_*", "LD_LIBRARY_PATH"]))["stdout_tail"]
    assert "SLURM_JOB_ID=7\n" in seen
    assert "LD_LIBRARY_PATH=/nowhere\n" in seen
    assert "SECRET" not in seen


def test_a_variable_that_changes_code_needs_its_own_name_in_the_configuration(run):
    payload = {"argv": ["env"], "env": {"LD_LIBRARY_PATH": "/x"}}
    assert run(payload, command_env=["LD_*"]).cause is Cause.REFUSED
    assert "LD_LIBRARY_PATH=/x\n" in value(run(payload, command_env=["LD_LIBRARY_PATH"]))["stdout_tail"]


def test_the_program_is_looked_for_in_the_path_of_the_task(run, tmp_path):
    program = tmp_path / "hello"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    (tmp_path / "sub" / "hello").mkdir(parents=True)
    payload = {"argv": ["hello"], "env": {"PATH": f"{tmp_path}/sub:{tmp_path}"}}
    assert value(run(payload))["stdout_tail"] == "hello\n"
    relative = {"argv": ["hello"], "env": {"PATH": "sub:"}, "cwd": str(tmp_path)}
    assert value(run(relative))["stdout_tail"] == "hello\n"
    assert value(run({"argv": ["./hello"], "cwd": str(tmp_path)}))["stdout_tail"] == "hello\n"
    assert value(run({"argv": ["sh", "-c", "echo $0"]}))["stdout_tail"] == "sh\n"


def test_the_folder_is_the_tasks_or_the_first_allowed_one_or_the_workers(run, tmp_path):
    one, two, beside = (tmp_path / name for name in ("one", "two", "one-beside"))
    for folder in one, two, beside, two / "sub":
        folder.mkdir()
    (one / "link").symlink_to(beside)
    roots = [str(one), str(two)]

    def where(cwd, roots):
        payload = {"argv": ["pwd", "-P"]} | ({"cwd": str(cwd)} if cwd else {})
        outcome = run(payload, command_cwd=roots)
        return value(outcome)["stdout_tail"].strip() if outcome.ok else outcome.cause

    assert where(None, []) == os.getcwd()
    assert where(None, roots) == str(one)
    assert where(two / "sub", roots) == str(two / "sub")
    assert where(tmp_path, []) == str(tmp_path)
    assert where(tmp_path, roots) is Cause.REFUSED
    assert where(beside, roots) is Cause.REFUSED
    assert where(one / "link", roots) is Cause.REFUSED
    assert where(one / ".." / "one-beside", roots) is Cause.REFUSED


def test_a_folder_that_may_not_be_entered_is_refused(run, monkeypatch, tmp_path):
    """As it is opened with O_PATH, only the child that is to start in it finds out."""

    def spawn(_argv, _env, folder, *_, **__):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(command, "spawn", spawn)
    outcome = run({"argv": ["true"], "cwd": str(tmp_path)})
    assert (outcome.cause, outcome.message) == (
        Cause.REFUSED,
        f"the folder '{tmp_path}' cannot be entered: Permission denied",
    )


def test_input_of_any_length_is_given_and_none_is_the_end_at_once(run):
    text = "ä" * 300_000
    assert value(run({"argv": ["wc", "-c"], "stdin": text}))["stdout_tail"] == "600000\n"
    assert value(run({"argv": ["wc", "-c"], "stdin": ""}))["stdout_tail"] == "0\n"
    assert value(run({"argv": ["wc", "-c"]}))["stdout_tail"] == "0\n"


def test_a_program_that_does_not_read_its_input_is_no_failure(run):
    assert run({"argv": ["true"], "stdin": "x" * 1_000_000}).ok
    assert value(run({"argv": ["head", "-c", "1"], "stdin": "x" * 1_000_000}))["stdout_tail"] == "x"


def test_a_program_that_prints_while_it_reads_does_not_block(run):
    assert value(run({"argv": ["cat"], "stdin": "x" * 3_000_000}))["stdout_bytes"] == 3_000_000


# Output


def test_output_beyond_the_bound_is_counted_and_dropped(run, tmp_path):
    source = "import sys; sys.stdout.write('a' * 1_000_000 + 'end'); sys.stderr.write('b' * 20)"
    seen = value(run(python(source), max_output_bytes=1000))
    assert (seen["stdout_bytes"], seen["stdout_dropped"]) == (1_000_003, 999_003)
    assert len(seen["stdout_tail"]) == 4096
    assert seen["stdout_tail"].endswith("aend")
    assert "stderr_dropped" not in seen
    assert (tmp_path / "logs/a1/stdout.0.txt").read_text() == "a" * 1000


def test_what_is_still_in_the_pipe_when_the_program_has_ended_is_read(run, monkeypatch):
    monkeypatch.setattr(command, "_READ_BYTES", 4)  # the program ends long before 60,000 bytes are read so
    assert value(run({"argv": ["head", "-c", "60000", "/dev/zero"]}))["stdout_bytes"] == 60_000


def test_output_that_is_no_text_is_kept_as_it_is_and_told_as_text(run, tmp_path):
    assert value(run(shell(r"printf '\377\000\033[31m'")))["stdout_tail"] == "\ufffd\0\x1b[31m"
    assert (tmp_path / "logs/a1/stdout.0.txt").read_bytes() == b"\xff\0\x1b[31m"


def test_the_largest_tails_fit_into_the_record(run):
    source = r"import sys; [s.buffer.write(bytes(5000)) for s in (sys.stdout, sys.stderr)]; sys.exit(1)"
    assert run(python(source)).details["stderr_tail"] == "\0" * 4096


def test_each_attempt_has_its_files_and_one_that_runs_again_begins_anew(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    run(shell("echo long long"))
    run(shell("echo second"), attempt_number=1)
    (tmp_path / "logs/a1/stdout.0.txt").unlink()
    os.link(secret, tmp_path / "logs/a1/stdout.0.txt")
    run(shell("echo again"))
    assert (tmp_path / "logs/a1/stdout.0.txt").read_text() == "again\n"
    assert (tmp_path / "logs/a1/stdout.1.txt").read_text() == "second\n"
    assert secret.read_text() == "secret"


def test_a_disk_that_takes_no_output_does_not_fail_the_program(run, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a1").write_text("in the way")
    seen = value(run(shell("echo one; echo two")))
    assert seen["stdout_tail"] == "one\ntwo\n"
    assert "name of this task's folder" in seen["stdout_trouble"]
    assert seen["stdout_dropped"] == 8
    assert "stdout_file" not in seen


# The result line


@pytest.mark.parametrize(
    ("printed", "result"),
    [
        ('__DSPY_RESULT__:{"a": 1}\n', {"a": 1}),
        ("__DSPY_RESULT__:1", 1),
        ("__DSPY_RESULT__: null \r\nafter\n", None),
        ("before\n__DSPY_RESULT__:[1]\n__DSPY_RESULT__:[2]\nafter", [2]),
        ("__DSPY_RESULT__:bad\n__DSPY_RESULT__:[2]\n", [2]),
        ("x__DSPY_RESULT__:1\n__DSPY_RESULT__:2\ny __DSPY_RESULT__:3\n", 2),
        ("__DSPY\n__DSPY_RESULT__:4\n__DSPY_RESULT__", 4),
        ("\n\n__DSPY_RESULT__:5\n\n", 5),
    ],
)
def test_the_last_result_line_is_the_result_however_it_comes_in(run, printed, result):
    text = printed.encode()
    assert value(run({"argv": ["cat"], "stdin": printed})) == result
    for size in range(1, len(text) + 1):
        output = command._Output(TASK, "stdout", 0, 100)
        for start in range(0, len(text), size):
            output._scan(text[start : start + size])
        assert orjson.loads(output.result()) == result


def test_a_result_line_that_is_no_json_is_an_invalid_result(run):
    for bad in "", "{", "NaN", "{'a': 1}", "1 2":
        outcome = run({"argv": ["echo", "__DSPY_RESULT__:" + bad]})
        assert (outcome.cause, outcome.retry) == (Cause.INVALID_RESULT, False)
        assert "holds no JSON" in outcome.message
        assert outcome.details["exit_code"] == 0


def test_a_result_line_beyond_the_bound_is_an_invalid_result_unless_another_follows(run):
    script = "printf __DSPY_RESULT__:; head -c 300000 /dev/zero | tr '\\0' 1; echo"
    outcome = run(shell(script), max_result_bytes=200_000)
    assert outcome.cause is Cause.INVALID_RESULT
    assert "longer than 200000 bytes" in outcome.message
    assert value(run(shell(script + "; echo __DSPY_RESULT__:7"), max_result_bytes=200_000)) == 7


def test_a_failure_counts_more_than_a_result(run):
    assert run(shell("echo __DSPY_RESULT__:1; exit 2")).cause is Cause.EXIT


# Time


@pytest.fixture
def blocked(tmp_path):
    """A shell script's way to wait for ever: `wait_for_ever`, in a folder that has a FIFO nobody writes."""
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path)


def test_a_program_may_clean_up_after_sigterm(run, blocked):
    started = time.monotonic()
    script = "trap 'echo bye; exit 9' TERM; echo up; exec 3<>fifo; read x <&3 & wait"
    outcome = run(shell(script, timeout_s=1, cwd=blocked))
    assert (outcome.cause, outcome.retry) == (Cause.TIMEOUT, True)
    assert outcome.message == "sh did not end within 1 s"
    assert outcome.details["exit_code"] == 9
    assert outcome.details["stdout_tail"] == "up\nbye\n"
    assert time.monotonic() - started < GRACE_S


def test_the_deadline_of_the_task_holds_when_it_is_earlier(run, blocked):
    outcome = run(shell("exec 3<>fifo; read x <&3", timeout_s=60, cwd=blocked), deadline=time.monotonic() + 0.2)
    assert outcome.cause is Cause.TIMEOUT
    assert outcome.details["signal"] == "SIGTERM"


def test_a_program_that_prints_without_end_is_ended_in_time(run, monkeypatch):
    monkeypatch.setattr(command, "_READ_BYTES", 1)  # slower than the program: there is always something to read
    outcome = run({"argv": ["yes"], "timeout_s": 0.2})
    assert outcome.cause is Cause.TIMEOUT


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(run, blocked):
    script = "trap '' TERM; echo up; exec 3<>fifo; while :; do read x <&3; done"
    outcome = run(shell(script, timeout_s=1, cwd=blocked), kill_grace_s=0.1)
    assert outcome.cause is Cause.TIMEOUT
    assert outcome.details["signal"] == "SIGKILL"


ESCAPES = """
import os, signal, sys
def block(word):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, word)
    while True:
        signal.pause()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        block(b"double ")
    os._exit(0)
os.wait()
if os.fork() == 0:
    os.setsid()
    block(b"session ")
if sys.argv[1:] == ["leave"]:
    os._exit(0)
block(b"main ")
"""

IN_A_SUBREAPER = """
import os, sys, orjson
from pathlib import Path
from dspy_fastpath.envelope import scan
from dspy_supervisor import attempt, proctree
from dspy_supervisor.handlers import command
from dspy_supervisor.parts import Task
proctree.become_subreaper()
handler = command.make(kill_grace_s=0.1)
raw = sys.argv[1].encode()
task = Task("a1", "cpu_short", "command", 0, 0, None, raw, scan(b"{}"), raw, Path(sys.argv[2]) / "a1", None)
outcome = attempt.run(handler, task, max_result_bytes=1 << 20)
left = len(proctree.children())
print(outcome.cause, left, proctree.reap_orphans(()), len(proctree.children()))
"""


@pytest.mark.parametrize(("word", "timeout_s", "says"), [("stay", 1, "timeout 0 0 0\n"), ("leave", 60, "None 2 2 0\n")])
def test_nothing_is_left_of_a_program_that_escapes_by_sessions_and_double_forks(tmp_path, word, timeout_s, says):
    """What a program leaves at a normal end is the worker's to reap, unless its class keeps it."""
    payload = orjson.dumps({**python(ESCAPES, word), "timeout_s": timeout_s}).decode()
    ended = subprocess.run(
        [sys.executable, "-c", IN_A_SUBREAPER, payload, str(tmp_path)],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == (says, "")


WITH_A_FIFO = """
import os, sys, orjson
from pathlib import Path
from dspy_fastpath.envelope import scan
from dspy_supervisor.handlers import command
from dspy_supervisor.parts import Task
raw = orjson.dumps({"argv": ["sh", "-c", "echo $$ >up; exec cat fifo"], "cwd": sys.argv[1]})
task = Task("a1", "cpu_short", "command", 0, 0, None, raw, scan(b"{}"), raw, Path(sys.argv[1]) / "a1", None)
command.make()(task)
"""


def test_a_program_dies_with_its_worker_however_that_dies(blocked):
    os.mkfifo(os.path.join(blocked, "up"))
    with subprocess.Popen([sys.executable, "-c", WITH_A_FIFO, blocked], start_new_session=True) as worker:
        with open(os.path.join(blocked, "up")) as file:
            pid = int(file.read())
        assert proctree.look(pid).alive
        worker.kill()
        assert proctree.wait_gone([pid], time.monotonic() + 20)


def test_a_child_that_holds_the_output_open_does_not_hold_the_task(run, blocked):
    started = time.monotonic()
    outcome = run_and_reap(run, shell("exec 3<>fifo; (read x <&3) & echo out", cwd=blocked))
    assert value(outcome)["stdout_tail"] == "out\n"
    assert time.monotonic() - started < GRACE_S


def run_and_reap(run, payload):
    """A program's leftovers are orphans of init here, as pytest is no subreaper: end them by the session they made."""
    outcome = run(payload)
    for name in os.listdir("/proc"):
        process = proctree.look(int(name)) if name.isdecimal() else None
        if process and process.session != os.getsid(0) and _cwd(process.pid) == payload["cwd"]:
            os.kill(process.pid, signal.SIGKILL)
    return outcome


def _cwd(pid):
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def test_an_interrupted_worker_lets_the_program_clean_up_and_leaves_nothing(run, blocked):
    """A worker that is told to stop raises in its signal handler."""

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    def when_up():
        path = os.path.join(blocked, "logs", "a1", "stdout.0.txt")
        deadline = time.monotonic() + 20
        while not (os.path.exists(path) and os.path.getsize(path)) and time.monotonic() < deadline:
            pass
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=when_up)
    try:
        thread.start()
        outcome = run(shell("trap 'echo bye; exit' TERM; echo up; exec 3<>fifo; read x <&3 & wait", cwd=blocked))
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert outcome.type.endswith("Stopped")
    with open(os.path.join(blocked, "logs", "a1", "stdout.0.txt")) as file:
        assert file.read() == "up\nbye\n"


def test_it_is_made_by_its_short_name(tmp_path):
    handler = make("command", command_env=("LANG",), command_cwd=("/",), kill_grace_s=1.0)
    raw = b'{"argv": ["pwd"]}'
    task = Task("a1", "cpu_short", "command", 0, 0, None, raw, FIELDS, raw, tmp_path / "a1", None)
    assert handler(task)["stdout_tail"] == "/\n"

"""The command line as a whole: exit codes, one document with --json, quiet ends, help and completion."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from dspy_supervisor import __version__
from dspy_supervisor.cli import BELOW, COMMANDS, main, root
from dspy_supervisor.layout import Layout


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command line against an empty place; returns (exit code, standard output, standard error)."""
    for name in [name for name in os.environ if name.startswith(("DSPY_", "ENV_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSPY_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def python(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "dspy_supervisor", *arguments], capture_output=True, text=True, **more)


def test_the_version_is_the_packages(run):
    assert run("--version") == (0, f"dspy-supervisor {__version__}\n", "")


def test_help_names_every_command_and_the_exit_codes(run):
    code, output, _ = run("--help")
    assert code == 0
    assert "75 try again" in " ".join(output.split())
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in output
        command = root.get_command(None, name)
        assert command.name == name
        assert command.get_short_help_str(200).rstrip(".") == text.rstrip(".")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_sub_command_has_help(run, name):
    assert run(name, "--help")[0] == 0
    for inner in getattr(root.get_command(None, name), "commands", {}):
        code, output, _ = run(name, inner, "--help")
        assert (code, "Usage:" in output) == (0, True)


@pytest.mark.parametrize(
    ("asked", "likely"),
    [
        ("statsu", "'dspy-supervisor status'"),
        ("retry", "'dspy-supervisor task retry'"),
        ("nonsense", "look at --help"),
        ("cancel", "'dspy-supervisor task cancel' or 'dspy-supervisor slurm cancel'"),
    ],
)
def test_a_command_that_is_not_there_is_answered_with_the_likely_ones(run, asked, likely):
    code, output, errors = run(asked)
    assert (code, output) == (2, "")
    assert errors.splitlines()[-1] == f"Error: no command '{asked}' here: {likely}"


def test_the_groups_have_the_commands_that_are_looked_for_in_them():
    groups = {name: getattr(root.get_command(None, name), "commands", None) for name in COMMANDS}
    assert {name: " ".join(found) for name, found in groups.items() if found} == BELOW


@pytest.mark.parametrize("arguments", ["nonsense", "status --nonsense", "start --workers gpu", "start --workers x=1"])
def test_wrong_usage_is_2_and_goes_to_standard_error(run, arguments):
    code, output, error = run(*arguments.split())
    assert (code, output) == (2, "")
    assert "Usage:" in error


def test_a_bad_setting_is_78_in_one_line(run, monkeypatch):
    monkeypatch.setenv("DSPY_MAX_CONCURRENCY", "many")
    code, output, error = run("status")
    assert (code, output) == (78, "")
    assert error == "dspy-supervisor: DSPY_MAX_CONCURRENCY='many': expected a whole number from 1 to 1024\n"


def test_an_error_is_a_document_too_where_json_is_asked_for(run):
    code, output, error = run("stop", "--json")
    document = json.loads(output)
    assert code == 3
    assert document["schema_version"] == 1
    assert document["error"]["type"] == "NotRunning"
    assert document["error"]["exit_code"] == 3
    assert document["error"]["message"] in error
    assert json.loads(run("status", "--json", "--mode", "moon")[1])["error"]["exit_code"] == 78


@pytest.mark.parametrize(
    "arguments", ["status --nonsense", "submit 1 --delay nan", "task show", "nonsense", "status --since 99999999d"]
)
def test_wrong_usage_is_a_document_too_where_json_is_asked_for(run, arguments):
    code, output, error = run(*arguments.split(), "--json")
    facts = json.loads(output)["error"]
    assert (code, facts["exit_code"]) == (2, 2)
    assert facts["message"] in error


def test_a_span_is_no_longer_than_any_history(run):
    code, _, error = run("status", "--since", "99999999d")
    assert (code, "'99999999d': expected 366d at most" in error) == (2, True)


def test_an_error_of_the_system_names_its_file_and_is_1(run, tmp_path):
    (tmp_path / "x.toml").mkdir()
    (tmp_path / "queue").write_text("")
    code, _, error = run("config", "check", "--env-file", tmp_path)
    assert code == 78
    assert "--env-file" in error


def test_the_shell_is_given_completion_that_works(tmp_path):
    script = python("completion", "bash").stdout
    assert "_DSPY_SUPERVISOR_COMPLETE=bash_complete" in script
    assert python("completion", "powershell").returncode == 2
    asked = {**os.environ, "_DSPY_SUPERVISOR_COMPLETE": "bash_complete"}
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "dspy-supervisor st", "1"
    assert python(env=asked).stdout.split() == ["plain,start", "plain,stop", "plain,status"]
    asked["COMP_WORDS"], asked["COMP_CWORD"] = "dspy-supervisor config show --or", "3"
    assert python(env=asked).stdout.split() == ["plain,--origin"]


def test_a_reader_that_goes_away_is_no_news(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for arguments in (["config", "show", "--origin"], ["--help"]):
            command = [sys.executable, "-m", "dspy_supervisor", *arguments]
            done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path)
            assert done.stderr == b""
            assert done.returncode in (141, 1)
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("command", "code"), [("submit '{}' --queue-dir queue", 0), ("status", 3), ("status --json", 3), ("--help", 0)]
)
def test_a_closed_output_is_as_good_as_none(tmp_path, command, code):
    with Layout.open(tmp_path / "queue", create=True, durability="none"):
        pass
    environ = {**os.environ, "HOME": str(tmp_path), "DSPY_RUNTIME_DIR": str(tmp_path / "run")}
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        shell = f"{sys.executable} -m dspy_supervisor {command} {closed}"
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=tmp_path, env=environ)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", ""), closed
    assert not list((tmp_path / "queue/pending").glob(".*"))


def test_an_output_without_room_is_1_in_one_line(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "dspy_supervisor", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "dspy-supervisor: standard output: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runtime-dir /proc/x", "runtime_dir (flag --runtime-dir)='/proc/x': expected a folder of yours"),
        ("--runtime-dir /etc/passwd", "runtime_dir (flag --runtime-dir)='/etc/passwd': expected a folder of yours"),
        ("--log-file /tmp", "log_file (flag --log-file)='/tmp': expected a file that can be written"),
        ("--queue-dir /proc/foo", "queue_dir (flag --queue-dir)='/proc/foo': expected a folder that can be written"),
    ],
)
def test_a_path_that_cannot_work_is_78_and_names_its_setting(tmp_path, arguments, message):
    environ = {**os.environ, "HOME": str(tmp_path), "DSPY_RUNTIME_DIR": str(tmp_path / "run"), "ENV_QUEUE_DIR": "queue"}
    done = python("start", "--burst", *arguments.split(), cwd=tmp_path, env=environ, timeout=60)
    assert done.returncode == 78
    assert done.stderr.startswith(f"dspy-supervisor: {message}")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_was_removed_under_the_caller_is_told(run, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (["status"], ["submit", "1"], ["task", "list"]):
        assert run(*command) == (
            1,
            "",
            "dspy-supervisor: the folder you stand in was removed: 'cd' to one that is there\n",
        )


@pytest.fixture
def lock(run, monkeypatch):
    """Take a mode from a part of a queue, which root is not held by: its tests are then another user's."""
    as_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder, "queue")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", folder)
        monkeypatch.setenv("ENV_QUEUE_DIR", str(path))
        with Layout.open(path, create=True, durability="none"):
            pass
        settings = [Path(folder, "dspy-supervisor.toml"), Path(folder, ".env")]
        for one in settings:
            one.touch()
        run("submit", "1")  # what is imported late, also to read these, may lie where another user can't read
        for one in settings:
            one.unlink()

        def lock(name, mode):
            (path / name).chmod(mode)
            if as_root:
                for one in (Path(folder), path, *path.iterdir()):
                    os.chown(one, 65534, -1)
                os.seteuid(65534)
            return path

        try:
            yield lock
        finally:
            if as_root:
                os.seteuid(0)
            for one in path.iterdir():
                one.chmod(0o700)


@pytest.mark.parametrize(("name", "mode"), [("pending", 0o555), ("done", 0), ("logs", 0)])
def test_a_folder_of_the_queue_that_is_not_ours_is_named_with_its_mode(run, lock, name, mode):
    path = lock(name, mode)
    me = os.geteuid()
    facts = f"it belongs to user {me} and has mode {mode:04o}; run this as its owner, or let this user in by 'chown' or"
    code, output, error = run("submit", "1")
    assert (code, output) == (1, "")
    assert error == f"dspy-supervisor: {path / name} can't be read and written by user {me}: {facts} 'chmod'\n"


def test_an_identity_that_cannot_be_read_is_named_with_its_queue(run, lock):
    path = lock("queue.json", 0)
    code, _, error = run("submit", "1")
    assert (code, error) == (1, f"dspy-supervisor: queue.json, in the queue {path}: Permission denied\n")


@pytest.mark.parametrize("name", ["dspy-supervisor.toml", ".env"])
def test_settings_that_cannot_be_read_are_78_and_named(run, lock, name):
    queue = lock("queue.json", 0o600)
    path = queue.parent / name
    path.write_text("")
    path.chmod(0)
    code, _, error = run("submit", "1")
    assert (code, error) == (
        78,
        f"dspy-supervisor: settings={str(path)!r}: expected a file that can be read (Permission denied)\n",
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1", "soon", "31622401"])
@pytest.mark.parametrize(
    "option",
    [f"submit 1 --{name}" for name in ("delay", "timeout", "timeout-wait")]
    + [f"{command} --timeout-wait" for command in ("stop", "upgrade", "task wait a")]
    + ["queue stats --limit", "gpu --timeout", "cloud up --hours"],
)
def test_a_number_that_no_clock_takes_is_refused_with_what_is_expected(run, option, value):
    code, output, error = run(*option.split(), value)
    assert (code, output) == (2, "")
    line = error.splitlines()[-1]
    assert line.startswith(f"Error: Invalid value for '{option.split()[-1]}': {value!r}: expected ")
    assert ("hours from" if "hours" in option else "seconds ") in line


def test_ctrl_c_is_130_without_a_traceback(run, monkeypatch):
    def interrupted(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("dspy_supervisor.cli.service.supervisor_socket", interrupted)
    code, output, error = run("status")
    assert (code, output, error.strip()) == (130, "", "")


def test_a_missing_compiled_part_is_69_with_what_to_do(run, monkeypatch):
    def gone(*args, **more):
        raise ModuleNotFoundError("no", name="dspy_fastpath.ids")

    monkeypatch.setattr("dspy_supervisor.cli.service.supervisor_socket", gone)
    code, _, error = run("status")
    assert code == 69
    assert "install dspy-supervisor again" in error


def test_config_show_names_the_origin_of_each_value(run, monkeypatch, tmp_path):
    monkeypatch.setenv("DSPY_TOTAL_LIMIT", "7")
    code, output, _ = run("config", "show", "--origin", "--handler", "gpu=a:b", "--handler", "count=c:d")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert code == 0
    assert "total_limit 7 environment DSPY_TOTAL_LIMIT" in lines
    assert "class.gpu.handler a:b flag --handler" in lines
    assert "kind_handlers count=c:d flag --set kind_handlers" in lines
    assert "max_concurrency 1 mode laptop" in lines
    document = json.loads(run("config", "show", "--origin", "--json")[1])
    assert document["settings"]["total_limit"] == 7
    assert document["origins"]["total_limit"] == "environment DSPY_TOTAL_LIMIT"
    assert document["settings"]["kinds"] == ["echo", "call"]


def test_config_check_finds_a_handler_where_it_is_called_as_a_worker_does(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lies_here.py").write_text("def count(task): return 1\n")
    code, _, error = run("config", "check", "--handler", "gpu=lies_here:count")
    assert code == 0, error


def test_config_check_imports_the_handlers_as_a_start_would(run, tmp_path, monkeypatch):
    assert run("config", "check", "--handler", "gpu=json:dumps")[0] == 0
    code, _, error = run("config", "check", "--handler", "gpu=json:dmups")
    assert (code, "dmups" in error) == (78, True)
    assert run("config", "check", "--no-import", "--handler", "gpu=json:dmups")[0] == 0


def test_config_check_refuses_paths_of_a_sandbox_that_are_not_there(run, tmp_path):
    given = ("--set", "class.gpu.sandbox=on", "--set", f"class.gpu.sandbox_read={tmp_path},{tmp_path}/none")
    code, _, error = run("config", "check", *given)
    assert (
        code == 78 and f"class.gpu.sandbox_read='{tmp_path}/none': expected files and folders that are there" in error
    )
    assert run("config", "check", *given, "--set", "class.gpu.sandbox=off")[0] == 0


def test_doctor_prints_a_remedy_and_is_1_where_something_fails(run, tmp_path):
    queue = tmp_path / "queue"
    queue.mkdir(mode=0o700)
    code, output, _ = run("doctor", "--queue-dir", queue)
    assert code == 0
    assert "0 failures" in output
    queue.chmod(0o777)
    code, output, _ = run("doctor", "--queue-dir", queue)
    assert code == 1
    assert "-> 'chmod o-w" in output
    code, output, _ = run("doctor", "--queue-dir", queue, "--json")
    assert (code, json.loads(output)["ok"]) == (1, False)


def test_config_describe_says_what_a_setting_does_takes_and_how_it_is_given(run):
    code, output, _ = run("config", "describe", "gpu_memory_limit", "class.gpu.timeout_s", "environment")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert code == 0
    assert "default 0; workstation: 21474836480" in lines
    assert "given by DSPY_GPU_MEMORY_LIMIT; --set gpu_memory_limit=VALUE" in lines
    assert "default none; cpu_short: 300.0" in lines
    assert "given by DSPY_CLASS_TIMEOUT_S, as DSPY_GPU_TIMEOUT_S; --set class.CLASS.timeout_s=VALUE" in lines
    assert "secret never shown; a file that holds it is given by the same name and _FILE" in lines
    every = json.loads(run("config", "describe", "--json")[1])["settings"]
    assert every["max_depth"]["reload"] == "does not apply it: it needs a restart"
    assert len(every) > 80
    code, _, error = run("config", "describe", "polcy")
    assert (code, "did you mean 'policy'?" in error) == (2, True)

"""What a task in a sandbox can't do, whatever its code is, and what it can: on each mechanism, for code and for commands."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dspy_supervisor.config import load
from dspy_supervisor.config_sandbox import MECHANISMS
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.warden import Warden

from ..conftest import ROOT, Start, clean_environ, supervisors, until
from .rig import Rig, events, workers

RUN = "tests.system.escapee:run"
ENDS_S = 60.0
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root has them to give")
REFUSED = ("EACCES", "EPERM", "ENOENT", "EROFS", "ESRCH", "EXDEV", "EAFNOSUPPORT")


class Walled(Rig):
    """A queue whose tasks run in a sandbox."""

    number = 0

    def code(self, code: str, /, *, give: object = None, **envelope: Any) -> dict[str, Any]:
        """Run Python code as a task, and return its record."""
        self.number += 1
        payload = {"code": textwrap.dedent(code), "give": give}
        return self.record(self.drop(f"t{self.number}", payload, **envelope), ENDS_S)

    def out(self, code: str, /, *, give: object = None) -> Any:
        """Run Python code as a task, and return what it found, or how it was refused."""
        record = self.code(code, give=give)
        assert record["status"] == "done", record.get("error")
        return record["runner_result"].get("out", record["runner_result"])

    def tries(self, *codes: str) -> dict[str, Any]:
        """Run pieces of code in one task, and return what became of each that was not refused."""
        code = """
            import ctypes, errno, os, resource, socket
            out = {}
            for one in give:
                try:
                    out[one] = repr(eval(one))
                except OSError as error:
                    out[one] = {"refused": errno.errorcode.get(error.errno, str(error))}
        """
        return {one: what for one, what in self.out(code, give=codes).items() if not is_refused(what)}

    def command(self, *argv: str) -> dict[str, Any]:
        """Run a program as a task, and return its record."""
        self.number += 1
        return self.record(self.drop(f"t{self.number}", {"argv": list(argv)}, kind="command"), ENDS_S)


def is_refused(found: Any) -> bool:
    return isinstance(found, dict) and found.get("refused") in REFUSED


def walls(mechanism: str, **more: object) -> dict[str, object]:
    settings = {"sandbox": mechanism, "sandbox_env": "SHOWN", "max_attempts": 1, **more}
    return {f"class.cpu_short.{name}": value for name, value in settings.items()} | {"kill_grace_s": 0.3}


@pytest.fixture(scope="module", params=MECHANISMS)
def walled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    folder = tmp_path_factory.mktemp("walled")
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id").write_text("secret")
    environ = {"TOKEN": "secret", "SHOWN": "yes"}
    with supervisors(folder) as start:
        made = Walled(folder, start)
        made.start(
            "--kinds", "command", workers=1, handlers={"cpu_short": RUN}, settings=walls(request.param), environ=environ
        )
        yield made


def test_a_task_does_its_work_and_its_folder_keeps_what_it_wrote(walled: Walled) -> None:
    code = """
        import os, tempfile, json
        open("made.txt", "w").write("mine")
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("private")
        print("said")
        out = [os.getcwd(), task.id]
    """
    record = walled.code(code)
    folder, task_id = record["runner_result"]["out"]
    assert folder == str(walled.queue / "logs" / task_id)
    assert (Path(folder) / "made.txt").read_text() == "mine"
    assert (Path(folder) / "output.0.txt").read_text() == "said\n"
    said = walled.command("sh", "-c", "echo hello; touch here; cat /etc/hostname")
    assert said["runner_result"]["stdout_tail"].startswith("hello")


def test_a_task_that_writes_nothing_leaves_no_folder(walled: Walled) -> None:
    record = walled.code("out = 1")
    assert not (walled.queue / "logs" / record["id"]).exists()


def test_nothing_is_reached_over_a_socket(walled: Walled) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0dspy-test-{os.getpid()}")
        path = walled.folder / "listens"
        named.bind(str(path))
        for listener in (tcp, abstract, named):
            listener.listen()
        port = tcp.getsockname()[1]
        reached = walled.tries(
            f"socket.create_connection(('127.0.0.1', {port}), 5)",
            f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
            f"socket.socket(socket.AF_UNIX).connect('\\0dspy-test-{os.getpid()}')",
            f"socket.socket(socket.AF_UNIX).connect({str(path)!r})",
            f"socket.socket(socket.AF_UNIX).connect({str(walled.started[0].socket)!r})",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        )
    assert reached == {}


def test_the_queue_the_home_and_others_files_are_neither_read_nor_written(walled: Walled) -> None:
    other, queue = walled.queue / "logs" / "other", str(walled.queue)
    other.mkdir()
    (other / "file").write_text("of another task")
    walled.drop("waits", {"code": "out = 1"}, not_before=4102444800)
    until(lambda: list(walled.queue.glob("delayed/*.json")), "it waits in delayed/", 30)
    reads = [f"{queue}/queue.json", f"{other}/file", f"{walled.folder}/.ssh/id", "/etc/shadow"]
    reads += [str(path) for path in walled.queue.glob("delayed/*.json")]
    folders = (queue, f"{queue}/pending", f"{queue}/claimed", str(walled.folder / "run"), str(walled.folder / ".ssh"))
    found = walled.tries(*(f"open({path!r}).read()" for path in reads), *(f"os.listdir({path!r})" for path in folders))
    # What is not there at all may have an empty stand-in, and the way to the task's own folder is.
    assert {code: what for code, what in found.items() if what not in ("''", "[]", "['logs']")} == {}
    writes = [f"{queue}/{name}" for name in ("pending/forged.json", "done/forged.json", "results/t~0.json")]
    writes += [f"{other}/new", "/etc/new", "/usr/new", f"{walled.folder}/new"]
    # A sandbox of namespaces has a /tmp of its own, where this test's folder lies: what is written there is nowhere else.
    walled.tries(*(f"open({path!r}, 'w').write('1')" for path in writes))
    assert [path for path in writes if os.path.exists(path)] == []
    assert walled.tries("open('/proc/self/oom_score_adj', 'w').write('0')") == {}


def test_commands_are_held_as_code_is(walled: Walled) -> None:
    shown = walled.command("sh", "-c", f"cat {walled.queue}/queue.json {walled.folder}/.ssh/id; env; id")
    text = json.dumps(shown["runner_result"] if shown["status"] == "done" else shown["error"])
    assert "secret" not in text
    assert json.loads((walled.queue / "queue.json").read_text())["queue_id"] not in text
    assert "SHOWN=yes" in text
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), 5)"
    assert "PermissionError" in json.dumps(walled.command(sys.executable, "-c", reach)["error"])


def test_modes_times_and_owners_of_others_files_stay(walled: Walled) -> None:
    target = walled.folder / "target"
    target.write_text("as it was")
    before = target.stat()
    name = repr(str(target))
    walled.tries(
        *(f"os.chmod({name}, 0o777)", f"os.utime({name}, (1, 1))", f"os.truncate({name}, 0)"),
        *(f"os.setxattr({name}, 'user.x', b'1')", f"os.chown({name}, 1, 1)", f"os.chmod({str(walled.queue)!r}, 0o777)"),
    )
    assert stat.S_IMODE(walled.queue.stat().st_mode) == 0o700
    after = target.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
    assert (after.st_uid, os.listxattr(target)) == (before.st_uid, [])


def test_a_link_out_of_its_folder_leads_nowhere(walled: Walled) -> None:
    secret = walled.folder / ".ssh" / "id"
    name = repr(str(secret))
    led = walled.tries(
        f"(os.symlink({name}, 'link'), open('link').read())",
        f"(os.link({name}, 'hard'), open('hard').read())",
        f"os.rename({name}, 'taken')",
    )
    assert led == {}
    assert secret.read_text() == "secret"


def test_a_neighbours_tmp_is_not_seen(walled: Walled) -> None:
    path, is_there = walled.out("import os, tempfile; _, p = tempfile.mkstemp(); out = [p, os.path.exists(p)]")
    assert is_there
    assert not Path(path).exists()
    with tempfile.TemporaryDirectory() as folder:  # of one that runs now
        Path(folder, "mine").write_text("secret")
        assert walled.tries(f"os.listdir({folder!r})", f"open('{folder}/mine').read()") == {}


def test_other_processes_get_no_signal_and_no_look(walled: Walled) -> None:
    supervisor = walled.started[0]
    tries = []
    for pid in (supervisor.pid, *workers(supervisor), os.getpid()):
        tries += [f"open('/proc/{pid}/{name}', 'rb').read(1)" for name in ("environ", "mem", "maps", "fd/0")]
        tries += [f"resource.prlimit({pid}, resource.RLIMIT_NOFILE, (0, 0))", f"os.sched_setaffinity({pid}, [0])"]
        tries += [f"os.kill({pid}, 0)", f"os.setpriority(os.PRIO_PROCESS, {pid}, 19)"]
        tries += [f"ctypes.CDLL(None).ptrace({how}, {pid}, 0, 0)" for how in (16, 0x4206)]  # attach and seize
    assert {code: what for code, what in walled.tries(*tries).items() if what != "-1"} == {}


def test_no_privilege_is_left_and_none_is_won(walled: Walled) -> None:
    code = """
        import ctypes
        status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        libc = ctypes.CDLL(None)
        tried = [libc.unshare(flag) for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000)]
        tried += [libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.setns(0, 0), libc.chroot(b".")]
        tried += [libc.syscall(number, 0, 0, 0, 0, 0) for number in (425, 428, 442, 435)]
        out = [status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapPrm"], 16), status["Seccomp"], tried]
    """
    new, effective, permitted, filtered, tried = walled.out(code)
    assert (new, effective, permitted, filtered) == ("1", 0, 0, "2")
    assert set(tried) == {-1}
    # A set-user-ID program gives nobody anything.
    record = walled.command("sh", "-c", "mount -t tmpfs none /tmp 2>&1; grep CapEff /proc/self/status")
    assert "CapEff:\t0000000000000000" in record["runner_result"]["stdout_tail"]


def test_secrets_are_in_no_environment_and_no_memory(walled: Walled) -> None:
    walled.out("out = 1", give="secret-of-the-first-task")
    code = """
        import os, gc
        names = sorted(n for n in os.environ if n in ("TOKEN", "SHOWN", "PYTHONPATH", "HOME"))
        kinds = {type(one).__name__ for one in gc.get_objects()}
        kept = sorted(kinds & {"Config", "ClassConfig", "Page", "TaskQueue", "Layout", "Loaded"})
        with open("/proc/self/maps") as maps:
            lines = [line.split() for line in maps]
        shared = [line[-1] for line in lines if line[1] == "rw-s"]
        found = 0
        with open("/proc/self/mem", "rb", 0) as memory:
            for place, rights in (line[:2] for line in lines):
                if rights.startswith("rw"):
                    start, end = (int(part, 16) for part in place.split("-"))
                    memory.seek(start)
                    found += memory.read(end - start).count(bytes.fromhex(give))
        out = [names, "TOKEN" in open("/proc/self/environ").read(), kept, len(os.listdir("/proc/self/fd")), shared, found]
    """
    names, in_environ, kept, descriptors, shared, found = walled.out(code, give=b"secret-of-the-first".hex())
    assert names == ["HOME", "SHOWN"]
    assert (in_environ, kept, shared, found) == (False, [], [], 0)
    assert descriptors <= 5  # three, the socket that the result goes out by, and the listing's own


@pytest.mark.parametrize(
    "forged",
    [
        'b"x" * 40',
        "struct.pack('!IQ', 0xffffffff, 0)",
        "struct.pack('!IQ', 2, 1 << 60) + b'{}'",
        "struct.pack('!IQ', 2, 0) + b'{}'",
        "struct.pack('!IQ', 2, 0) + b'[]'",
        'struct.pack("!IQ", 11, 2) + b\'{"ok":true}\' + b\'{"\'',
        'struct.pack("!IQ", 25, 0) + b\'{"ok":false,"cause":"own"}\'',
    ],
)
def test_a_forged_account_of_its_end_fails_that_task_alone(walled: Walled, forged: str) -> None:
    code = f"""
        import os, struct
        for number in range(3, 10):
            try:
                os.write(number, {forged})
            except OSError:
                pass
        os._exit(0)
    """
    record = walled.code(code)
    assert (record["status"], record["error"]["cause"]) in (("failed", "invalid_result"), ("failed", "exit"))
    assert walled.out("out = 'the next'") == "the next"


def test_a_task_that_kills_itself_ends_alone(walled: Walled) -> None:
    below = workers(walled.started[0])
    assert walled.code("import signal; signal.raise_signal(signal.SIGSEGV)")["error"]["cause"] == "signal"
    assert walled.code("import os; os._exit(9)")["error"]["cause"] == "exit"
    assert walled.out("out = 'the next'") == "the next"
    assert workers(walled.started[0]) == below


def test_what_a_task_leaves_running_is_gone_before_its_record_is_there(walled: Walled) -> None:
    code = """
        import os, subprocess
        out = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "601"])
            os._exit(0)
    """
    assert walled.out(code)
    assert running("600", "601") == []


def test_out_of_time_it_is_ended_with_all_it_started_and_the_next_one_runs(walled: Walled) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '602'], start_new_session=True); time.sleep(600)"
    assert walled.code(code, timeout_s=0.5)["error"]["cause"] == "timeout"
    assert walled.out("out = 'the next'") == "the next"
    until(lambda: not running("602"), "what it started is gone")


def running(*times: str) -> list[Path]:
    """Return what runs of `sleep` with one of these times."""
    wanted = [f"sleep\0{time}\0".encode() for time in times]
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if _reads(path) in wanted]


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_class_without_a_sandbox_that_holds_runs_nothing_and_says_why(tmp_path: Path, supervisor: Start) -> None:
    rig = Rig(tmp_path, supervisor)
    settings = walls("on", sandbox_read=str(tmp_path / "queue")) | {"breaker_starts": 1}
    one = rig.start(workers=1, handlers={"cpu_short": RUN}, settings=settings)
    rig.drop("never", {"code": "out = 1"})
    until(lambda: events(one, "class_failed"), "the class is failed", 30)
    assert "class.cpu_short.sandbox_read=" in one.log
    assert (rig.queue / "pending" / "never.json").exists()


@pytest.mark.parametrize("setting", ["sandbox_read", "sandbox_write"])
def test_a_class_whose_paths_are_not_there_runs_nothing_and_names_them(
    tmp_path: Path, supervisor: Start, setting: str
) -> None:
    rig, missing = Rig(tmp_path, supervisor), tmp_path / "modles"
    settings = walls("on", **{setting: f"/usr,{missing}"}) | {"breaker_starts": 1}
    one = rig.start(workers=1, handlers={"cpu_short": RUN}, settings=settings)
    rig.drop("waits", {"code": "out = 1"})
    until(lambda: events(one, "class_failed"), "the class is failed", 30)
    assert f"{setting}='{missing}'" in one.log
    assert (rig.queue / "pending" / "waits.json").exists()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_let_through_is_reached_and_the_control_socket_is_not(
    tmp_path: Path, supervisor: Start, mechanism: str
) -> None:
    rig, shared, given = Walled(tmp_path, supervisor), tmp_path / "shared", tmp_path / "given"
    shared.mkdir()
    given.write_text("given")
    settings = walls(mechanism, sandbox_network=True, sandbox_write=shared, sandbox_read=given)
    one = rig.start(workers=1, handlers={"cpu_short": RUN}, settings=settings)
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        reached = rig.tries(
            f"socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 5).close()",
            f"socket.socket(socket.AF_UNIX).connect({str(one.socket)!r})",
            f"open('{shared}/x', 'w').write('s')",
            f"open({str(given)!r}).read()",
            f"open({str(given)!r}, 'w')",
        )
    assert list(reached.values()) == ["None", "1", "'given'"]
    assert (shared / "x").read_text() == "s"


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_secrets_in_subfolders_of_code_are_not_read_and_modules_beside_them_are_imported(
    tmp_path: Path, supervisor: Start, mechanism: str
) -> None:
    rig, code = Walled(tmp_path, supervisor), tmp_path / "code"
    secrets = ["app/.env", "app/conf/deep/tls.key", "app/conf/deep/ca.pem", "app/lib/.git/config", "app/.env.local"]
    shown = ["app/conf/plain.txt", "env/lib/python3.11/site-packages/certifi/cacert.pem", "app/given/test.pem"]
    for name in (*secrets, *shown):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("hush!" if name in secrets else "shown")
    for folder in ("app", "app/conf", "app/conf/deep"):
        (code / folder / "__init__.py").touch()
    (code / "app/conf/deep/late.py").write_text("VALUE = 'imported'")
    settings = walls(mechanism, sandbox_read=code / "app/given")
    rig.start("--kinds", "command", workers=1, handlers={"cpu_short": RUN}, settings=settings)
    found = rig.tries(*(f"open({str(code / name)!r}).read()" for name in secrets))
    assert [one for one in found.values() if one != "''"] == []
    said = rig.command("sh", "-c", f"cd {code}; cat {' '.join(secrets)}; true")
    assert "hush!" not in json.dumps(said)
    found = rig.tries(*(f"open({str(code / name)!r}).read()" for name in shown))
    assert list(found.values()) == ["'shown'"] * len(shown)
    assert rig.out("from app.conf.deep.late import VALUE as out") == "imported"
    assert "late.py" in rig.out(f"import os; out = os.listdir({str(code / 'app/conf/deep')!r})")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_program_that_a_task_writes_runs_as_its_owner(tmp_path: Path, supervisor: Start, mechanism: str) -> None:
    rig, shared = Walled(tmp_path, supervisor), tmp_path / "shared"
    shared.mkdir()
    rig.start(
        "--kinds", "command", workers=1, handlers={"cpu_short": RUN}, settings=walls(mechanism, sandbox_write=shared)
    )
    code = """
        import os, shutil, stat
        paths = [f"{folder}/{name}" for folder in (give, os.getcwd()) for name in ("changed", "opened", "made")]
        for path in paths:
            copied, bits = path.endswith("changed"), stat.S_ISUID | stat.S_ISGID | 0o755
            try:
                if copied:
                    shutil.copyfile("/usr/bin/id", path)
                    os.chmod(path, bits)
                elif path.endswith("opened"):
                    os.open(path, os.O_CREAT | os.O_WRONLY, bits)
                else:
                    os.mknod(path, stat.S_IFREG | bits)
            except PermissionError:
                pass
        os.close(os.open(f"{give}/plain", os.O_CREAT | os.O_WRONLY, 0o755))
        out = paths
    """
    paths = rig.out(code, give=str(shared))
    assert (Path(paths[0]).exists(), stat.S_IMODE((shared / "plain").stat().st_mode)) == (True, 0o755)
    assert [
        path for path in paths if os.path.exists(path) and os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)
    ] == []
    rig.command("sh", "-c", f"install -m 6755 /usr/bin/id {shared}/installed; cp -p $(command -v su) {shared}/su")
    modes = {path.name: path.stat().st_mode for path in shared.iterdir()}
    assert [name for name, mode in modes.items() if mode & (stat.S_ISUID | stat.S_ISGID)] == []
    changed = rig.tries(f"os.chmod('{shared}/changed', 0o750)")
    assert len(changed) == (mechanism == "namespaces")  # Landlock judges no modes: there they can't be changed at all


class Leaky(Warden):
    """One whose walls have a gap."""

    program = "tests.system.leaky"


@pytest.mark.parametrize(
    ("mechanism", "gap", "found"),
    [
        ("namespaces", "none", ""),
        ("namespaces", "filter", "make namespaces"),
        ("namespaces", "filter", "make a set-user-ID program"),
        ("namespaces", "files", "write into another task's /tmp"),
        ("landlock", "files", "read the queue"),
        ("landlock", "privileges", "get privileges from a program"),
        ("landlock", "privileges", "make a set-user-ID program"),
        pytest.param("landlock", "privileges", "give a program capabilities", marks=ROOT_ONLY),
        ("landlock", "descriptors", "use a descriptor it was not given"),
    ],
)
def test_walls_with_a_gap_are_found_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, gap: str, found: str
) -> None:
    monkeypatch.setenv("PLANTED", gap)
    monkeypatch.syspath_prepend(str(ROOT))
    config = load({}, {"HOME": str(tmp_path)}, tmp_path).config
    settings = replace(config.classes["cpu_short"], sandbox=mechanism, sandbox_env=("PLANTED",))
    for name in ("claimed", "done"):
        (tmp_path / name).mkdir()
    (tmp_path / "queue.json").write_text("{}")
    warden = Leaky(settings, config, tmp_path, (), {})
    try:
        if found:
            with pytest.raises(ConfigError, match=f"it is not stopped from doing this: .*{found}"):
                warden.start()
        else:
            warden.start()
    finally:
        warden.close()


def test_it_holds_for_a_user_without_rights(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is no root: the other tests showed it already")
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env"]
    environ = clean_environ(tmp_path) | {"HOME": "/nonexistent"}
    environ["PYTHONPATH"] += os.pathsep + os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for program in (sys.executable, f"/usr/bin/python{version}"):
        asked = [*nobody, program, "-m", "dspy_supervisor"]
        if subprocess.run([*asked, "--version"], env=environ, cwd="/", capture_output=True).returncode == 0:
            break
    else:
        pytest.skip(f"user 65534 can start no Python {version} with this program")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        asked += ["doctor", "--queue-dir", f"{folder}/queue", "--runtime-dir", f"{folder}/run", "--json"]
        said = subprocess.run(asked, env=environ, cwd="/", stdout=subprocess.PIPE, text=True)
    found = {one["check"]: one["message"] for one in json.loads(said.stdout)["findings"]}
    assert [found[f"sandbox, {name}"][:5] for name in MECHANISMS] == ["holds", "holds"], found

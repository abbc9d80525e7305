"""What a task in a sandbox can't do, whatever its code is, and what it can: on each mechanism, for code and for commands."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Start, supervisors, until
from .conftest import Rig, events, workers

MECHANISMS = ("namespaces", "landlock")
RUN = "tests.system.escapee:run"


class Walled(Rig):
    """A queue whose tasks run in a sandbox."""

    number = 0

    def code(self, code: str, /, *, give: object = None, **envelope: Any) -> dict[str, Any]:
        """Run Python code as a task, and return its record."""
        self.number += 1
        payload = {"code": textwrap.dedent(code), "give": give}
        return self.record(self.drop(f"t{self.number}", payload, **envelope), 30.0)

    def out(self, code: str, /, *, give: object = None) -> Any:
        """Run Python code as a task, and return what it found."""
        record = self.code(code, give=give)
        assert record["status"] == "done", record.get("error")
        return record["runner_result"]["out"] if "out" in record["runner_result"] else record["runner_result"]

    def command(self, *argv: str) -> dict[str, Any]:
        """Run a program as a task, and return its record."""
        self.number += 1
        return self.record(self.drop(f"t{self.number}", {"argv": list(argv)}, kind="command"), 30.0)


@pytest.fixture(scope="module", params=MECHANISMS)
def walled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    folder = tmp_path_factory.mktemp("walled")
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id").write_text("secret")
    with supervisors(folder) as start:
        made = Walled(folder, start)
        made.start("--kinds", "command", workers=1, handlers={"cpu_short": RUN}, settings=walls(request.param),
                   environ={"TOKEN": "secret", "SHOWN": "yes"})  # fmt: skip
        yield made


def walls(mechanism: str, **more: object) -> dict[str, object]:
    settings = {"sandbox": mechanism, "sandbox_env": "SHOWN", "max_attempts": 1, **more}
    return {f"class.cpu_short.{name}": value for name, value in settings.items()}


REFUSED = ("EACCES", "EPERM", "ENOENT", "EROFS", "ESRCH", "EXDEV")


def is_refused(found: Any) -> bool:
    return isinstance(found, dict) and found.get("refused") in REFUSED


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
    assert walled.command("sh", "-c", "echo hello; cat /etc/hostname")["runner_result"]["stdout_tail"].startswith(
        "hello"
    )


def test_a_task_that_writes_nothing_leaves_no_folder(walled: Walled) -> None:
    record = walled.code("out = 1")
    assert not (walled.queue / "logs" / record["id"]).exists()


@pytest.mark.parametrize("address", ["tcp", "udp", "abstract", "path", "control"])
def test_nothing_is_reached_over_a_socket(walled: Walled, address: str) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0dspy-test-{os.getpid()}")
        path = walled.folder / "listens"
        path.unlink(missing_ok=True)
        named.bind(str(path))
        for listener in (tcp, abstract, named):
            listener.listen()
        port = tcp.getsockname()[1]
        code = {
            "tcp": f"socket.create_connection(('127.0.0.1', {port}), 5)",
            "udp": f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
            "abstract": f"socket.socket(socket.AF_UNIX).connect('\\0dspy-test-{os.getpid()}')",
            "path": f"socket.socket(socket.AF_UNIX).connect({str(path)!r})",
            "control": f"socket.socket(socket.AF_UNIX).connect({str(walled.started[0].socket)!r})",
        }[address]
        assert is_refused(walled.out(f"import socket; {code}; out = 'reached'"))


def test_the_queue_the_home_and_others_files_are_neither_read_nor_written(walled: Walled) -> None:
    other = walled.queue / "logs" / "other"
    other.mkdir(exist_ok=True)
    (other / "file").write_text("of another task")
    walled.drop("waits", {"code": "out = 1"}, not_before=4102444800)
    queue, found = str(walled.queue), []
    reads = [f"{queue}/queue.json", f"{other}/file", f"{walled.folder}/.ssh/id", "/etc/shadow"]
    reads += [str(path) for path in walled.queue.glob("delayed/*.json")]
    for path in reads:
        found.append((path, walled.out(f"out = open({path!r}).read()")))
    folders = (queue, f"{queue}/pending", f"{queue}/claimed", str(walled.folder / "run"), str(walled.folder / ".ssh"))
    for path in folders:
        found.append((path, walled.out(f"import os; out = os.listdir({path!r})")))
    writes = [f"{queue}/{name}" for name in ("pending/forged.json", "done/forged.json", "results/t~0.json")]
    writes += [f"{other}/new", "/etc/new", "/usr/new", f"{walled.folder}/new", "/proc/self/oom_score_adj"]
    # What is not there at all may have an empty stand-in, and the way to the task's own folder is.
    assert [one for one in found if not is_refused(one[1]) and one[1] not in ("", [], ["logs"])] == []
    # A sandbox of namespaces has a /tmp of its own, where this test's folder lies: what is written there is nowhere else.
    before = oom_score(walled)
    for path in writes:
        walled.out(f"open({path!r}, 'w').write('1'); out = 'written'")
    assert [path for path in writes if os.path.exists(path) and not path.startswith("/proc")] == []
    assert oom_score(walled) == before
    assert "forged" not in str(sorted(walled.queue.rglob("*")))


def oom_score(walled: Walled) -> str:
    return Path(f"/proc/{workers(walled.started[0])[0]}/oom_score_adj").read_text()


def test_commands_are_held_as_code_is(walled: Walled) -> None:
    shown = walled.command("sh", "-c", f"cat {walled.queue}/queue.json {walled.folder}/.ssh/id /etc/shadow; env; id")
    text = json.dumps(shown["runner_result"] if shown["status"] == "done" else shown["error"])
    assert "secret" not in text
    assert str(json.loads((walled.queue / "queue.json").read_text())) not in text
    assert "SHOWN=yes" in text
    reach = "import socket; socket.create_connection(('127.0.0.1', 9), 5)"
    assert "PermissionError" in json.dumps(walled.command(sys.executable, "-c", reach)["error"])


def test_modes_and_times_of_others_files_stay(walled: Walled) -> None:
    target = walled.folder / "target"
    target.write_text("as it was")
    before = target.stat()
    for call in (f"os.chmod({str(target)!r}, 0o777)", f"os.utime({str(target)!r}, (1, 1))",
                 f"os.truncate({str(target)!r}, 0)", f"os.setxattr({str(target)!r}, 'user.x', b'1')",
                 f"os.chown({str(target)!r}, 1, 1)", f"os.chmod({str(walled.queue)!r}, 0o777)"):  # fmt: skip
        walled.out(f"import os; {call}; out = 'done'")
    assert stat.S_IMODE(walled.queue.stat().st_mode) == 0o700
    after = target.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)


def test_a_link_out_of_its_folder_leads_nowhere(walled: Walled) -> None:
    secret = walled.folder / ".ssh" / "id"
    code = f"import os; os.symlink({str(secret)!r}, 'link'); out = open('link').read()"
    assert is_refused(walled.out(code))
    assert is_refused(walled.out(f"import os; os.link({str(secret)!r}, 'hard'); out = open('hard').read()"))
    assert is_refused(walled.out(f"import os; os.rename({str(secret)!r}, 'taken'); out = 'taken'"))
    assert secret.read_text() == "secret"


def test_a_neighbours_tmp_is_not_seen(walled: Walled) -> None:
    first = walled.out("import os, tempfile; f, p = tempfile.mkstemp(); out = [p, os.path.exists(p)]")
    assert first[1] is True
    assert not Path(first[0]).exists()
    assert walled.out(f"import os; out = os.path.exists({first[0]!r})") is False
    # one that runs now, in the supervisor's own /tmp
    assert is_refused(walled.out(f"import os; out = os.listdir({str(walled.folder.parent)!r})")) or not walled.out(
        f"import os; out = [p for p in os.listdir({str(walled.folder.parent)!r}) if p != {walled.folder.name!r}]"
    )


def test_other_processes_get_no_signal_and_no_look(walled: Walled) -> None:
    supervisor = walled.started[0]
    for pid in (supervisor.pid, *workers(supervisor), os.getpid()):
        assert is_refused(walled.out(f"import os; os.kill({pid}, 0); out = 'sent'")), pid
        for name in ("environ", "mem", "maps", "fd/0"):
            assert is_refused(walled.out(f"out = open('/proc/{pid}/{name}', 'rb').read(1)")), (pid, name)
        trace = f"import ctypes, os; c = ctypes.CDLL(None); out = [c.ptrace(16, {pid}, 0, 0), c.ptrace(0x4206, {pid}, 0, 0)]"
        assert walled.out(trace) == [-1, -1]
        limit = f"import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE, (0, 0)); out = 'bound'"
        assert is_refused(walled.out(limit))
    assert walled.out("out = 'the next'") == "the next"


def test_no_privilege_is_left_and_none_is_won(walled: Walled) -> None:
    code = """
        import ctypes, os
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
    # a set-user-ID program is what it is for nobody else
    euid = walled.command(
        "sh", "-c", "mount -t tmpfs none /tmp 2>&1; su -c id 2>&1 </dev/null; grep CapEff /proc/self/status"
    )
    assert "CapEff:\t0000000000000000" in json.dumps(euid.get("runner_result") or euid["error"]).replace("\\t", "\t")


def test_secrets_are_in_no_environment_and_no_memory(walled: Walled) -> None:
    code = """
        import os, gc
        names = sorted(n for n in os.environ if n in ("TOKEN", "SHOWN", "PYTHONPATH", "HOME"))
        out = [names, b"secret" in open("/proc/self/environ", "rb").read()]
        kinds = {type(one).__name__ for one in gc.get_objects()}
        out.append(sorted(kinds & {"Config", "ClassConfig", "Page", "TaskQueue", "Layout", "Loaded"}))
        out.append(len(os.listdir("/proc/self/fd")))
        with open("/proc/self/maps") as maps:
            out.append([line.split()[-1] for line in maps if line.split()[1] == "rw-s"])
    """
    names, in_environ, objects, descriptors, shared = walled.out(code)
    assert names == ["HOME", "SHOWN"]
    assert not in_environ
    assert objects == []
    assert descriptors <= 5  # three, the socket that the result goes out by, and the listing's own
    assert shared == []


def test_what_an_earlier_task_was_is_not_left_in_memory(walled: Walled) -> None:
    walled.out("out = 'pw-' + 'of-the-first-task'", give="pw-" + "of-the-first-task")
    code = """
        needle, found = bytes.fromhex(give), 0
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                place, rights = line.split()[:2]
                if not rights.startswith("rw"):
                    continue
                start, end = (int(part, 16) for part in place.split("-"))
                memory.seek(start)
                try:
                    held = memory.read(end - start)
                except OSError:
                    continue
                place = held.find(b"of-the-first" + b"-task")
                found += place >= 0 and held[max(0, place - 3) : place] == b"p" + b"w-"
        out = found
    """
    assert walled.out(code, give="00") == 0


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
    record = walled.code("import os, signal; signal.raise_signal(signal.SIGSEGV); os.kill(os.getpid(), signal.SIGKILL)")
    assert record["error"]["cause"] in ("signal", "exit")
    record = walled.code("import os; os._exit(9)")
    assert record["error"]["cause"] == "exit"
    assert walled.out("out = 'the next'") == "the next"
    assert workers(walled.started[0]) == below


def test_what_a_task_leaves_running_is_gone_before_its_record_is_there(walled: Walled) -> None:
    pids = walled.out(
        """
        import os, subprocess
        one = subprocess.Popen(["sleep", "600"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "601"])
            os._exit(0)
        out = [one.pid]
        """
    )
    assert pids
    found = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _reads(path) in (b"sleep\x00600\x00", b"sleep\x00601\x00")
    ]
    assert found == []


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_class_without_a_sandbox_that_holds_runs_nothing_and_says_why(tmp_path: Path, supervisor: Start) -> None:
    rig = Rig(tmp_path, supervisor)
    (tmp_path / "run").mkdir(mode=0o700)
    settings = walls("on", sandbox_read=str(tmp_path / "queue")) | {"breaker_starts": 1}
    one = rig.start(workers=1, handlers={"cpu_short": RUN}, settings=settings)
    rig.drop("never", {"code": "open('ran', 'w')"})
    until(lambda: events(one, "class_failed"), "the class is failed")
    assert "class.cpu_short.sandbox_read=" in one.log
    assert (rig.queue / "pending" / "never.json").exists()


def test_the_network_is_reached_where_it_is_let_through_and_the_control_socket_is_not(
    tmp_path: Path, supervisor: Start
) -> None:
    for number, mechanism in enumerate(MECHANISMS):
        folder = tmp_path / mechanism
        folder.mkdir()
        rig = Walled(folder, supervisor)
        more = {"sandbox_network": True, "sandbox_write": str(folder / "shared"), "sandbox_read": str(folder / "given")}
        (folder / "shared").mkdir()
        (folder / "given").write_text("given")
        one = rig.start(
            workers=1, handlers={"cpu_short": RUN}, settings=walls(mechanism, **more), instance=f"i{number}"
        )
        with socket.socket() as tcp:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            port = tcp.getsockname()[1]
            assert rig.out(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5); out = 1") == 1
        assert is_refused(
            rig.out(f"import socket; socket.socket(socket.AF_UNIX).connect({str(one.socket)!r}); out = 1")
        )
        assert rig.out(
            f"open({str(folder / 'shared' / 'x')!r}, 'w').write('s'); out = open({str(folder / 'given')!r}).read()"
        )
        assert (folder / "shared" / "x").read_text() == "s"
        assert is_refused(rig.out(f"open({str(folder / 'given')!r}, 'w'); out = 1"))

"""The command handler: a task names a program and its arguments, and what that prints and how it ends is the outcome.

The payload is ``{"argv": ["sort", "-n"], "cwd": "/data", "env": {"LC_ALL": "C"}, "stdin": "3\\n1\\n", "timeout_s": 60}``, of
which argv is needed. No shell reads it. The program runs in a session of its own and sees the variables of ALWAYS, those
the configuration lets through, its task's env, and DSPY_TASK_ID, DSPY_TASK_ATTEMPT, DSPY_TASK_CLASS and TRACEPARENT.

Output goes to ``stdout.ATTEMPT.txt`` and ``stderr.ATTEMPT.txt`` in the task's folder, each up to a bound; what comes after it
is read, counted and dropped, so that no program is blocked or killed for what it prints. The last line of standard output
that starts with ``__DSPY_RESULT__:`` is the result, as JSON; without one it is the exit code with the ends of both outputs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from dspy_fastpath.process import spawn

from .. import proctree
from ..checkpoint import EXIT_REQUEUE, checkpoint_requested, checkpoint_saved
from ..cuda_errors import is_out_of_memory
from ..parts import JSON, Handler, HandlerFailure, Task
from ..task import MAX_TIMEOUT_S, Cause

MARKER = b"__DSPY_RESULT__:"
TAIL_BYTES = 4096
MAX_OUTPUT_BYTES = 10 << 20
MAX_RESULT_BYTES = 64 << 20

#: Every program may see these; without them hardly one works, or it takes another GPU than its worker's.
ALWAYS = ("DSPY_CHECKPOINT", "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_*", "TZ", "TMPDIR",
          "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "ROCR_VISIBLE_DEVICES", "DSPY_GPU_MEMORY_LIMIT",
          "XLA_PYTHON_CLIENT_PREALLOCATE", "TF_FORCE_GPU_ALLOW_GROWTH")  # fmt: skip

_KEYS = frozenset({"argv", "cwd", "env", "stdin", "timeout_s"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# They make a program run other code than its own, so that argv would not say what runs.
_CODE = re.compile(
    r"LD_.*|GLIBC_.*|GCONV_PATH|LOCPATH|NLSPATH|PYTHON.*|PERL.*|RUBY.*|NODE_.*|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|BASH_.*|ENV"
    r"|SHELLOPTS|BASHOPTS|IFS|PS4"
)
_DEATH_S = 2.0  # from SIGKILL to the end of a process, where no disk keeps it
_READ_BYTES = 1 << 16
_LAST_READ_BYTES = 1 << 20  # the largest pipe: more than was in it when the program ended is somebody else's
# What can't be better next time. ENOMEM, EAGAIN, EMFILE, ETXTBSY and EIO can.
_NOT_RUNNABLE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOEXEC, errno.ELOOP, errno.E2BIG,
     errno.ENAMETOOLONG, errno.EINVAL}
)  # fmt: skip


def make(
    *,
    command_env: Iterable[str] = (),
    command_cwd: Iterable[str] = (),
    kill_grace_s: float = 3.0,
    max_output_bytes: int = MAX_OUTPUT_BYTES,
    max_result_bytes: int = MAX_RESULT_BYTES,
) -> Handler:
    """Return the handler that runs programs.

    command_env: names of the worker's variables that programs see beside ALWAYS; ``SLURM_*`` stands for all that start so.
    A variable that makes programs run other code, as LD_PRELOAD, a task may set only where it is named here.
    command_cwd: folders below which a program may start; none: any. A task that names no folder starts in the first.
    kill_grace_s: between SIGTERM and SIGKILL of a program whose time is up.
    """
    roots = tuple(command_cwd)
    patterns = (*ALWAYS, *command_env)
    names = frozenset(patterns)
    prefixes = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))

    def command(task: Task) -> JSON:
        request = _checked(task.payload, names)
        environ = {name: value for name, value in os.environ.items() if name in names or name.startswith(prefixes)}
        if task.traceparent:
            environ["TRACEPARENT"] = task.traceparent
        environ.update(request.env)
        environ["DSPY_TASK_ID"] = task.id
        environ["DSPY_TASK_ATTEMPT"] = str(task.attempt)
        environ["DSPY_TASK_CLASS"] = task.task_class
        if node := os.environ.get(proctree.MARK):
            environ[proctree.MARK] = node
        outputs = (
            _Output(task, "stdout", max_output_bytes, max_result_bytes),
            _Output(task, "stderr", max_output_bytes, 0),
        )
        program = _Program(request, outputs)
        try:
            program.start(environ, roots)
            return program.run(task.deadline, kill_grace_s)
        finally:
            program.close()

    return command


@dataclass(frozen=True, slots=True)
class _Request:
    argv: list[str]
    cwd: str | None
    env: Mapping[str, str]
    stdin: bytes | None
    timeout_s: float | None


class _Program:
    """A program that runs, from its start until nothing of it is left."""

    def __init__(self, request: _Request, outputs: tuple[_Output, _Output]) -> None:
        self._request, self._outputs = request, outputs
        self._name = request.argv[0]
        self._stdin = memoryview(request.stdin) if request.stdin else None
        self._poll = select.poll()
        self._open: dict[int, _Output | None] = {}  # what is polled, and which output it carries
        self._signalled: set[int] = set()  # pidfds of what was sent SIGTERM, until it ends
        self._earlier: set[int] = set()  # children that are not the program's, whatever happens
        self._pid: int | None = None  # until it is reaped
        self._pidfd = -1
        self._status: int | None = None  # of wait, once it is reaped
        self._ended = False

    def start(self, environ: Mapping[str, str], roots: Sequence[str]) -> None:
        """Start it. Raises HandlerFailure where that can never work, OSError where it may another time."""
        self._earlier = proctree.children()
        self._pid = self._spawn(environ, roots)
        self._pidfd = os.pidfd_open(self._pid)
        self._watch(self._pidfd, select.POLLIN)

    def close(self) -> None:
        """Kill what still runs, and close everything."""
        if self._pid is not None:
            self._kill()
        for descriptor in list(self._open):
            self._close(descriptor)
        for output in self._outputs:
            output.close()

    def run(self, deadline: float | None, grace_s: float) -> JSON:
        """Return the result. Raises HandlerFailure where the program failed or its time was up."""
        started = time.monotonic()
        timeout_s = self._request.timeout_s
        if timeout_s is not None:
            deadline = min(deadline or started + timeout_s, started + timeout_s)
        try:
            ended = self._pump(deadline)
        except BaseException:  # the worker is to stop: the program gets its time to clean up all the same
            self._terminate(grace_s)
            raise
        if not ended:
            self._terminate(grace_s)
            raise self._failure(
                Cause.TIMEOUT, f"{self._name} did not end within {(deadline or started) - started:.6g} s"
            )
        self._reap()
        return self._outcome()

    def _spawn(self, environ: Mapping[str, str], roots: Sequence[str]) -> int:
        ours: list[int] = []
        theirs: list[int] = []
        cwd = self._request.cwd or (roots[0] if roots else None)
        folder = None if cwd is None else _open_folder(cwd, roots)
        try:
            path = _find_program(self._name, environ.get("PATH", os.defpath), folder)
            if self._stdin is None:
                theirs.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            else:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                theirs.append(reader)
                ours.append(writer)
            for _ in self._outputs:
                reader, writer = os.pipe2(os.O_CLOEXEC)
                theirs.append(writer)
                ours.append(reader)
            stdin, stdout, stderr = theirs
            argv = [os.fsencode(word) for word in self._request.argv]
            variables = [os.fsencode(f"{name}={value}") for name, value in environ.items()]
            try:
                # The program dies with the thread that starts it: handlers run in their worker's main thread.
                pid = spawn(argv, variables, folder, stdin, stdout, stderr, program=os.fsencode(path))
            except OSError as exc:
                if isinstance(exc, PermissionError) and isinstance(exc.filename, int):  # the folder's descriptor
                    raise _refused(f"the folder {cwd!r} cannot be entered: {exc.strerror}") from None
                if exc.errno in _NOT_RUNNABLE:
                    raise _refused(f"{path} cannot be run: {exc.strerror}") from None
                raise
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            if folder is not None:
                os.close(folder)
            for descriptor in theirs:
                os.close(descriptor)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        for output, descriptor in zip(self._outputs, ours[-2:], strict=True):
            self._watch(descriptor, select.POLLIN, output)
        if self._stdin is not None:
            self._watch(ours[0], select.POLLOUT)
        return pid

    def _pump(self, deadline: float | None) -> bool:
        """Carry input and output until the program has ended, with all that was sent SIGTERM; False at the deadline."""
        while not self._ended or self._signalled:
            timeout_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = self._poll.poll(timeout_ms)
            for descriptor, _ in ready:
                self._serve(descriptor)
            # not only where nothing was ready: a program that prints without end always has something
            late = deadline is not None and time.monotonic() >= deadline
            if late and (not self._ended or self._signalled):
                return False
        for descriptor, output in list(self._open.items()):
            if output is not None:  # what it printed last; a child that it left may hold the pipe open
                for _ in range(_LAST_READ_BYTES // _READ_BYTES):
                    if not self._read(descriptor, output):
                        break
        return True

    def _serve(self, descriptor: int) -> None:
        output = self._open.get(descriptor)
        if output is not None:
            self._read(descriptor, output)
        elif descriptor == self._pidfd:
            self._ended = True
            self._close(descriptor)
        elif descriptor in self._signalled:
            self._signalled.discard(descriptor)
            self._close(descriptor)
        else:
            self._write(descriptor)

    def _read(self, descriptor: int, output: _Output) -> bool:
        try:
            chunk = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if chunk:
            output.take(chunk)
            return True
        self._close(descriptor)
        return False

    def _write(self, descriptor: int) -> None:
        assert self._stdin is not None
        try:
            written = os.write(descriptor, self._stdin[:_READ_BYTES])
        except BlockingIOError:
            return
        except BrokenPipeError:  # a program need not read all of it
            written = len(self._stdin)
        self._stdin = self._stdin[written:]
        if not self._stdin:
            self._close(descriptor)

    def _terminate(self, grace_s: float) -> None:
        """Ask all of it to end, and kill what is left after the grace."""
        for pid in proctree.kill_tree(self._family(), signal.SIGTERM, spare=self._earlier):
            if pid != self._pid:
                with contextlib.suppress(ProcessLookupError):
                    descriptor = os.pidfd_open(pid)
                    self._signalled.add(descriptor)
                    self._watch(descriptor, select.POLLIN)
        self._pump(time.monotonic() + grace_s)
        self._kill()

    def _kill(self) -> None:
        proctree.kill_tree(self._family(), signal.SIGKILL, spare=self._earlier)
        if self._pid is not None and proctree.wait_gone([self._pid], time.monotonic() + _DEATH_S):
            self._reap()
        with contextlib.suppress(TimeoutError):  # it waits for a disk: the worker will meet it, too, and say so
            proctree.reap_orphans(self._earlier, _DEATH_S)

    def _family(self) -> set[int]:
        # as a subreaper this process got the children of those of the program's processes that are dead
        return (proctree.children() - self._earlier) | ({self._pid} if self._pid is not None else set())

    def _reap(self) -> None:
        assert self._pid is not None
        _, self._status = os.waitpid(self._pid, 0)
        self._pid = None

    def _outcome(self) -> JSON:
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        if code and any(output.tells(is_out_of_memory) for output in self._outputs):
            how = f"ended with exit code {code}" if code > 0 else f"was killed by {_signal_name(-code)}"
            raise self._failure(Cause.OUT_OF_MEMORY, f"{self._name} {how}, out of GPU memory", memory="gpu")
        if code < 0:
            name = _signal_name(-code)
            hint = ", perhaps for memory" if name == "SIGKILL" else ""
            raise self._failure(Cause.SIGNAL, f"{self._name} was killed by {name}{hint}")
        if code == EXIT_REQUEUE and checkpoint_requested():
            checkpoint_saved(f"{self._name} saved its work")
        if code > 0:
            said = self._outputs[1].last_line()
            raise self._failure(Cause.EXIT, f"{self._name} ended with exit code {code}" + (f": {said}" if said else ""))
        found = self._outputs[0].result()
        if found is None:
            return self._facts()
        if isinstance(found, str):
            raise self._failure(Cause.INVALID_RESULT, f"the line {MARKER.decode()} of {self._name} {found}")
        try:
            result: JSON = orjson.loads(found)
        except orjson.JSONDecodeError as exc:
            raise self._failure(
                Cause.INVALID_RESULT, f"the line {MARKER.decode()} of {self._name} holds no JSON: {exc}"
            ) from None
        return result

    def _facts(self) -> dict[str, JSON]:
        facts: dict[str, JSON] = {}
        if self._status is not None:
            code = os.waitstatus_to_exitcode(self._status)
            if code < 0:
                facts["signal"] = _signal_name(-code)
            else:
                facts["exit_code"] = code
        for output in self._outputs:
            facts |= output.facts()
        return facts

    def _failure(self, cause: Cause, message: str, **more: JSON) -> HandlerFailure:
        return HandlerFailure(cause, message, self._facts() | more)

    def _watch(self, descriptor: int, events: int, output: _Output | None = None) -> None:
        self._open[descriptor] = output
        self._poll.register(descriptor, events)

    def _close(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._open[descriptor]
        os.close(descriptor)


class _Output:
    """What a program prints on one of its two outputs: the start in a file, the end in memory, and how much it was."""

    def __init__(self, task: Task, name: str, max_bytes: int, max_result_bytes: int) -> None:
        self._task, self._name = task, name
        self._room = max_bytes
        self._max_result_bytes = max_result_bytes  # 0: no result is looked for
        self._file: int | None = None
        self._path = f"{task.folder.parent.name}/{task.folder.name}/{name}.{task.attempt}.txt"
        self._trouble = ""
        self._bytes = self._dropped = 0
        self._tail = bytearray()
        self._line = bytearray()  # the line at hand, where it may be or become one with MARKER
        self._skipping = False  # whether the line at hand is none
        self._result: bytes | str | None = None

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self, chunk: bytes) -> None:
        """Keep what there is room for."""
        self._bytes += len(chunk)
        self._tail += chunk[-TAIL_BYTES:]
        if len(self._tail) > 4 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        kept = chunk[: self._room]
        if kept and not self._trouble:
            try:
                self._keep(kept)
            except OSError as exc:  # a full disk does not end a program whose result may need none
                self._trouble = f"{exc.strerror}"
                kept = b""
        else:
            kept = b""
        self._room -= len(kept)
        self._dropped += len(chunk) - len(kept)
        if self._max_result_bytes:
            self._scan(chunk)

    def result(self) -> bytes | str | None:
        """Return the JSON of the last result line, None where there was none, or what is wrong with it."""
        if self._line.startswith(MARKER):
            self._set_result(self._line)  # the last line needs no end
        return self._result

    def last_line(self) -> str:
        """Return the end of the last line that is not empty, to be shown beside an exit code."""
        lines = self._text().strip().splitlines()
        return lines[-1].strip()[-200:] if lines else ""

    def tells(self, asked: Callable[[str], bool]) -> bool:
        """Whether the end of what was printed says so."""
        return asked(self._text())

    def facts(self) -> dict[str, JSON]:
        name = self._name
        facts: dict[str, JSON] = {f"{name}_bytes": self._bytes, f"{name}_tail": self._text()}
        if self._bytes > self._dropped:
            facts[f"{name}_file"] = self._path
        if self._dropped:
            facts[f"{name}_dropped"] = self._dropped
        if self._trouble:
            facts[f"{name}_trouble"] = self._trouble
        return facts

    def _text(self) -> str:
        return self._tail[-TAIL_BYTES:].decode("utf-8", "replace")

    def _keep(self, chunk: bytes) -> None:
        if self._file is None:  # most programs print nothing on one of the two
            path = self._task.output_folder() / f"{self._name}.{self._task.attempt}.txt"
            path.unlink(missing_ok=True)  # of an earlier run of this attempt; never written through, it may be a link
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        left = memoryview(chunk)
        while left:
            left = left[os.write(self._file, left) :]

    def _scan(self, chunk: bytes) -> None:
        """Find result lines, also where they come in pieces, without looking at each line of the others."""
        start = 0
        if self._skipping or self._line.startswith(MARKER):
            end = chunk.find(b"\n")
            if not self._skipping:
                self._line += chunk if end < 0 else chunk[:end]
                if len(self._line) > self._max_result_bytes + len(MARKER):
                    self._result = f"is longer than {self._max_result_bytes} bytes"
                    self._line.clear()
                    self._skipping = True
                elif end >= 0:
                    self._set_result(self._line)
            if end < 0:
                return
            self._line.clear()
            self._skipping = False
            start = end + 1
        text = bytes(self._line) + chunk[start:]
        self._line.clear()
        place = 0
        while (found := text.find(MARKER, place)) >= 0:
            end = text.find(b"\n", found)
            if found == 0 or text[found - 1 : found] == b"\n":
                if end < 0:
                    self._line += text[found:]
                    return
                self._set_result(text[found:end])
            place = len(text) if end < 0 else end + 1
        last = text[text.rfind(b"\n") + 1 :]
        if MARKER.startswith(last):
            self._line += last
        else:
            self._skipping = True

    def _set_result(self, line: bytes | bytearray) -> None:
        self._result = bytes(line[len(MARKER) :])


def _checked(payload: Any, allowed: frozenset[str]) -> _Request:
    if not isinstance(payload, Mapping):
        raise _refused(f"the payload of a command is an object with 'argv', not {type(payload).__name__}")
    unknown = payload.keys() - _KEYS
    if unknown:
        raise _refused(f"a command has {', '.join(map(repr, sorted(_KEYS)))}, and knows no {sorted(unknown)[0]!r}")
    argv, cwd, stdin, timeout_s = (payload.get(key) for key in ("argv", "cwd", "stdin", "timeout_s"))
    if not isinstance(argv, list) or not argv or not all(_is_text(word) for word in argv) or not argv[0]:
        raise _refused("'argv' is an array of strings, the program first, without NUL; a shell must be named: "
                       '["sh", "-c", "..."]')  # fmt: skip
    if cwd is not None and not (_is_text(cwd) and os.path.isabs(cwd)):
        raise _refused(f"'cwd' is an absolute path, not {cwd!r}")
    if stdin is not None and not isinstance(stdin, str):
        raise _refused(f"'stdin' is a string, not {type(stdin).__name__}")
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (is_number and 0 < timeout_s <= MAX_TIMEOUT_S):
        raise _refused(f"'timeout_s' is a number of seconds above 0, not {timeout_s!r}")
    env = payload.get("env")
    if env is None:
        env = {}
    if not isinstance(env, Mapping):
        raise _refused(f"'env' is an object, not {type(env).__name__}")
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise _refused(f"'env' has {name!r}, which is no name of a variable")
        if not _is_text(value):
            raise _refused(f"'env' has {name}={value!r}, which is no string without NUL")
        if name.startswith("DSPY_TASK_"):
            raise _refused(f"'env' may not set {name}: such names are the supervisor's")
        if _CODE.fullmatch(name) and name not in allowed:
            raise _refused(f"'env' may not set {name}: it changes what code runs, and is not named in command_env")
    return _Request(argv, cwd, env, None if stdin is None else stdin.encode(), timeout_s)


def _open_folder(cwd: str, roots: Sequence[str]) -> int:
    try:
        descriptor = os.open(cwd, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise _refused(f"the folder {cwd!r} cannot be entered: {exc.strerror}") from None
    try:
        # judged by what was opened, which no link that changes meanwhile can exchange
        real = os.readlink(f"/proc/self/fd/{descriptor}")
        if roots and not any(_is_below(real, os.path.realpath(root)) for root in roots):
            raise _refused(f"the folder {cwd!r} is below none of those in command_cwd: {', '.join(roots)}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _find_program(name: str, search: str, folder: int | None) -> str:
    """Return the path of a program; a relative one counts from the folder, as it will when the program starts."""
    if "/" in name:
        return name
    for place in search.split(":"):
        path = os.path.join(place or ".", name)
        with contextlib.suppress(OSError):
            if os.access(path, os.X_OK, dir_fd=folder) and stat.S_ISREG(os.stat(path, dir_fd=folder).st_mode):
                return path
    raise _refused(f"there is no program {name!r} in PATH={search}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _refused(message: str) -> HandlerFailure:
    return HandlerFailure(Cause.REFUSED, message)

"""One machine as the bridge has it: logged into, set up, given tasks, and listened to."""

from __future__ import annotations

import io
import shlex
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ...config import Config
from ...config_sandbox import NAMES as SANDBOX_NAMES
from ...record import Claim
from .book import Book, Entry
from .provider import Address, Machine, Stage
from .wire import Message, Wire, ssh_command

_AGAIN_S = 5.0  # between two tries to log in
_SILENT_S = 60.0  # a line on which nothing came for so long is dropped: its agent speaks every 5 s
_LONG_SETUP_S = 3600.0


class Pod:
    """A machine of ours."""

    def __init__(self, config: Config, book: Book, entry: Entry) -> None:
        self._config, self._book = config, book
        self.entry = entry
        self.machine: Machine | None = None  #: as its provider saw it last
        self.missing = 0  #: looks in a row in which the provider did not know it
        self.tasks: set[str] = set()  #: files of tasks that it has
        self.draining = ""  #: why it gets no more tasks
        self.deleting = False  #: its deletion is under way
        self.delete_at = 0.0  #: monotonic; no sooner is that tried again
        self.greeted = False  #: it said what it has
        self.serving = False  #: its supervisor is at work
        self.problem = ""  #: why it can't take tasks now
        self.reached_at = time.monotonic()  #: when it said something last
        self.idle_since = time.monotonic()
        self._wire: Wire | None = None
        self._setting_up = False
        self._prepared = entry.ready_at is not None
        self._again_at = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name

    @property
    def is_usable(self) -> bool:
        """Whether it can be given tasks."""
        return self.greeted and self.serving and not self.draining and not self.deleting

    @property
    def state(self) -> str:
        """How it is, in a word."""
        if self.deleting or self.draining:
            return "ending" if self.deleting else "draining"
        if self.is_usable:
            return "serving"
        if self.greeted:
            return "starting"
        if self._setting_up:
            return "being set up"
        return str(self.machine.stage) if self.machine is not None else "ordered"

    def descriptors(self) -> list[tuple[int, bool]]:
        """Return what to wait for."""
        return self._wire.descriptors() if self._wire is not None else []

    def turn(self, now: float) -> Iterator[Message]:
        """Keep up the line; yield what the machine said (``now``: monotonic)."""
        if self._wire is None:
            machine = self.machine
            ready = machine is not None and machine.stage is Stage.READY and now >= self._again_at
            if ready and machine is not None and machine.address is not None and not self.deleting:
                self._again_at = now + _AGAIN_S
                self._connect(machine.address)
            return
        self._wire.flush()
        try:
            for message in self._wire.receive():
                self.reached_at = now
                yield message
        except (ValueError, KeyError, TypeError) as error:
            self.hang_up(f"it does not speak as ours do: {error}")
            return
        if self._wire is None:
            return
        if (code := self._wire.ended) is not None:
            self._line_ended(code, self._wire.complaint)
        elif not self._setting_up and now - self._wire.heard_at > _SILENT_S:
            self.hang_up(f"nothing was heard of it for {_SILENT_S:.0f} s")
        elif self._setting_up and now - self._wire.heard_at > _LONG_SETUP_S:
            self.hang_up("its setup takes longer than an hour")

    def put(self, held: Claim) -> None:
        """Give it a task; the same again does no harm."""
        self.tasks.add(held.file)
        self.tell("put", held.file, held.envelope, at=held.submitted_at)

    def tell(self, do: str, file: str = "", body: bytes = b"", **facts: float) -> None:
        """Tell it something, where it listens."""
        if self._wire is not None and self.greeted:
            self._wire.send({"op": do, "file": file, **facts}, body)
            self._wire.flush()

    def hang_up(self, why: str) -> None:
        """Drop the line."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self.greeted = self.serving = self._setting_up = False
        self.problem = why

    def _connect(self, address: Address) -> None:
        config = self._config
        hosts = self._book.hosts_file(self.name) if config.cloud_provider != "ssh" else None
        if self._prepared:
            self._wire = Wire(ssh_command(config, address, hosts, _agent_command(config)))
            return
        self._setting_up = True
        try:
            with _packed(config.cloud_files) as archive:
                self._wire = Wire(ssh_command(config, address, hosts, _setup_command(config)), archive)
        except OSError as error:
            self._setting_up = False
            self.problem = f"cloud_files can't be read: {error}"

    def _line_ended(self, code: int, complaint: str) -> None:
        was_setup = self._setting_up
        self.hang_up("")
        if was_setup and code == 0:
            self._prepared = True
            self._again_at = 0.0
            self.reached_at = time.monotonic()
        else:
            what = "its setup" if was_setup and code != 255 else "ssh"
            self.problem = f"{what} ended with {code}: {complaint or 'without a word'}"


def _packed(paths: tuple[str, ...]) -> IO[bytes]:
    """Return an archive of these files, opened to be read. Raises OSError."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is the caller's to close)
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in map(Path, paths):
            whole = path.expanduser().resolve()
            archive.add(whole, whole.name, filter=_without_caches)
    file.seek(0, io.SEEK_SET)
    return file


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(("/__pycache__", "/.git")) else member


def _setup_command(config: Config) -> str:
    folder = config.cloud_folder
    steps = f"umask 077 && mkdir -p {folder}/files && cd {folder}/files && tar -xf -"
    return f"{steps} && sh -c {shlex.quote(config.cloud_setup)} </dev/null >&2" if config.cloud_setup else steps


def _agent_command(config: Config) -> str:
    options = " ".join(map(shlex.quote, start_options(config)))
    path = 'PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"'
    where = f"umask 077 && cd {config.cloud_folder}/files && export {path}"
    return f"{where} && exec {config.cloud_program} cloud pod --queue-dir ../queue -- {options}"


def start_options(config: Config) -> list[str]:
    """Return the options of the start on a machine: what runs the tasks of this host's class runs them there."""
    klass = config.classes[config.cloud_class]
    workers = {name: config.cloud_workers if name == klass.name else 0 for name in config.classes}
    settings: dict[str, object] = {
        "http": "false",
        **{f"class.{name}.workers": number for name, number in workers.items()},
        f"class.{klass.name}.max_attempts": klass.max_attempts,
        "kinds": ",".join(config.kinds),
    }
    if klass.sandbox != "off":  # there as here, or not at all
        for name in SANDBOX_NAMES:
            value = getattr(klass, name)
            settings[f"class.{klass.name}.{name}"] = ",".join(value) if isinstance(value, tuple) else value
    if klass.handler:
        settings[f"class.{klass.name}.handler"] = klass.handler
    if klass.timeout_s:
        settings[f"class.{klass.name}.timeout_s"] = klass.timeout_s
    if config.kind_handlers:
        settings["kind_handlers"] = ",".join(f"{kind}={handler}" for kind, handler in config.kind_handlers.items())
    options = ["--mode", "workstation"]
    for name, value in settings.items():
        options += ["--set", f"{name}={value}"]
    return [*options, *config.cloud_start]

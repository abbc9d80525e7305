"""Machines to log into: real sshd on loopback, each with a home of its own, that can be killed with all that runs there."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from getpass import getuser
from pathlib import Path

import psutil

from tests.conftest import ROOT, clean_environ, until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Machine:
    """One sshd, and what was started through it."""

    def __init__(self, folder: Path, key: Path) -> None:
        self.home = folder
        self.mark = f"POD_OF_TEST={folder}"
        folder.mkdir(parents=True)
        make_key(folder / "host")
        environ = clean_environ(folder) | {"POD_OF_TEST": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        names = ("PATH", "PYTHONPATH", "HOME", "POD_OF_TEST", "XDG_RUNTIME_DIR", "DSPY_LOG_LEVEL")
        variables = " ".join(f'"{name}={environ[name]}"' for name in names)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        enter = folder / "enter"
        enter.write_text(f'#!/bin/sh\ncd "{folder}" && exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
        enter.chmod(0o755)
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {key}.pub\n"
            f"StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nSetEnv {variables}\n"
            f"ForceCommand {enter}\nPermitRootLogin yes\n"
        )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        log = (folder / "sshd.log").open("wb")
        with log:
            self._sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, start_new_session=True
            )
        until(self._listens, f"sshd listens: {(folder / 'sshd.log').read_text()}")

    @property
    def address(self) -> str:
        """What a provider says of it."""
        return f"{getuser()}@127.0.0.1 -p {self.port}"

    @property
    def host(self) -> str:
        """The same as a setting."""
        return f"{getuser()}@127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """What runs there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("POD_OF_TEST") == str(self.home) and process.status() != "zombie":
                    found.append(process)
        return found

    def die(self) -> None:
        """Lose power."""
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self._sshd.pid).children(recursive=True)
            for process in [psutil.Process(self._sshd.pid), *below]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self._sshd.wait()
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def make_key(path: Path) -> None:
    """Make a key pair."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def machines(folder: Path) -> Iterator[tuple[Path, Mapping[str, object], list[Machine]]]:
    """Yield a key, the settings that let a supervisor log in with it, and a list whose machines end with the block."""
    folder.mkdir(exist_ok=True)
    key = folder / "key"
    make_key(key)
    program = folder / "dspy-supervisor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dspy_supervisor "$@"\n')
    program.chmod(0o755)
    settings: dict[str, object] = {
        "cloud_ssh_key": key,
        "cloud_ssh_options": "StrictHostKeyChecking=accept-new,UserKnownHostsFile=" + str(folder / "known"),
        "cloud_program": program,
        "cloud_start": "--set,durability=none,--set,policy=fixed,--set,enable_gpu=false",
        "cloud_class": "cpu_long",
        "drain_s": 12,
    }
    started: list[Machine] = []
    try:
        yield key, settings, started
    finally:
        for machine in started:
            machine.die()


__all__ = ["ROOT", "Machine", "machines", "make_key"]

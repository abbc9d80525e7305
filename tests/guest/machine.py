"""A running guest: commands go in, what they say comes back; its power can be cut."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..conftest import until
from .image import kernel

BOOT_S = 300.0
PROBE_S = 20.0
_KVM = ("-accel", "kvm", "-cpu", "host")
_EMULATED = ("-accel", "tcg,thread=multi", "-cpu", "max")


@functools.cache
def processor() -> tuple[str, ...]:
    """Return qemu's arguments for the guest's processor: this machine's own where KVM runs a kernel on it, else an emulated one.

    Tried, since /dev/kvm is also there on hosts where a guest never comes further than its first instructions. Without a
    disk the kernel panics at its end, which here ends qemu.
    """
    image, _ = kernel()
    with tempfile.TemporaryDirectory() as folder:
        console = Path(folder, "console")
        # fmt: off
        command = [
            "qemu-system-x86_64", *_KVM, "-m", "256", "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none",
            "-serial", f"file:{console}", "-kernel", str(image), "-append", "console=ttyS0 panic=-1",
        ]
        # fmt: on
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=False)
        except subprocess.TimeoutExpired:
            return _EMULATED
        works = done.returncode == 0 and b"Unable to mount root fs" in console.read_bytes()
    return _KVM if works else _EMULATED


class Said(NamedTuple):
    """What a command in the guest said."""

    code: int
    out: str
    err: str


class Machine:
    """One guest on one disk."""

    def __init__(self, disk: Path, memory_mib: int = 2048) -> None:
        self._disk, self._memory_mib = disk, memory_mib
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    def boot(self) -> None:
        """Switch it on, and wait until it takes commands."""
        folder = self._disk.parent
        port, console = folder / "rig.sock", folder / "console.log"
        port.unlink(missing_ok=True)
        image, first = kernel()
        # fmt: off
        self._process = subprocess.Popen([
            "qemu-system-x86_64", *processor(), "-m", str(self._memory_mib), "-smp", "2", "-nodefaults",
            "-display", "none", "-serial", f"file:{console}",
            "-kernel", str(image), "-initrd", str(first), "-append", "root=/dev/vda rw console=ttyS0 quiet",
            "-drive", f"file={self._disk},if=virtio,format=raw",
            "-device", "virtio-serial", "-chardev", f"socket,id=rig,path={port},server=on,wait=off",
            "-device", "virtserialport,chardev=rig,name=rig",
        ], stdin=subprocess.DEVNULL)
        # fmt: on
        until(port.exists, "qemu listens")
        self._attend(port)

    def _attend(self, port: Path) -> None:
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._link.connect(str(port))
        self._link.settimeout(BOOT_S)
        self._lines = self._link.makefile("rb")
        assert json.loads(self._lines.readline()) == {"ready": True}

    def run(self, command: str, timeout_s: float = 120.0) -> Said:
        """Run a line of bash as root in the guest."""
        assert self._link is not None
        self._link.settimeout(timeout_s + 60)
        self._link.sendall(json.dumps({"run": command, "timeout_s": timeout_s}).encode() + b"\n")
        return Said(**json.loads(self._lines.readline()))

    def ok(self, command: str, timeout_s: float = 120.0) -> str:
        """Return what a command prints that must succeed."""
        said = self.run(command, timeout_s)
        assert said.code == 0, f"{command}: exit {said.code}\n{said.out[-3000:]}\n{said.err[-3000:]}"
        return said.out

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        self.ok(
            f"mkdir -p $(dirname {path}) && cat > {path} <<'END-OF-FILE'\n{text.removesuffix(chr(10))}\nEND-OF-FILE"
        )

    def reboot(self) -> None:
        """Shut it down in order, and switch it on again."""
        assert self._link is not None and self._process is not None
        self._link.sendall(json.dumps({"run": "systemctl poweroff", "timeout_s": 60}).encode() + b"\n")
        self._process.wait(BOOT_S)
        self._hang_up()
        self.boot()

    def cut_power(self) -> None:
        """End it between two instructions: what it had not written to its disk is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        if self._link is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        assert self._link is not None
        self._lines.close()  # or the socket stays open
        self._link.close()

    def close(self) -> None:
        """Switch it off."""
        if self._process is not None:
            self.cut_power()

"""The guest's disk: a small Debian, and on it this tree's wheel as a user would install it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

from ..conftest import ROOT

PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,kmod,procps,iproute2,python3,linux-image-cloud-amd64,initramfs-tools,"
    "libpam-systemd,dbus-user-session,"  # a user's own service manager
    "munge,slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins"
)
_AGENT_UNIT = """\
[Unit]
DefaultDependencies=no
After=local-fs.target dev-virtio\\x2dports-rig.device
Wants=dev-virtio\\x2dports-rig.device
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/rig/agent.py
Restart=always
[Install]
WantedBy=basic.target
"""
_PROGRAM = """\
#!/usr/bin/python3
import sys
from dspy_supervisor.__main__ import main
sys.exit(main())
"""


def cache_folder() -> Path:
    """Return where the bare system is kept between runs: making it takes minutes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dspy-supervisor-guest"


def system() -> Path:
    """Return the root of a bare Debian with PACKAGES, made where it is not there yet."""
    root = cache_folder() / f"root-{zlib.crc32(PACKAGES.encode()):08x}"
    if not root.exists():
        shutil.rmtree(root.parent, ignore_errors=True)  # that of other packages, and what was made half
        root.parent.mkdir(parents=True)
        new = root.with_name("new")
        _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(new))
        new.rename(root)
    return root


def kernel() -> tuple[Path, Path]:
    """Return the guest's kernel and its first file system."""
    boot = system() / "boot"
    return next(boot.glob("vmlinuz-*")), next(boot.glob("initrd.img-*"))


def build(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Return a disk with this tree's wheel and these files (path below /: content) on it."""
    tree = folder / "root"
    _run("cp", "-a", str(system()), str(tree))
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT))
    wheel = next((folder / "dist").glob("*.whl"))
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError("the guest's Python is 3.11: run this with the same one, so that it can use the same wheels")
    _run(sys.executable, "-m", "pip", "install", "-q", "--target", str(tree / "opt/dspy-supervisor"), f"{wheel}[api]")
    every: dict[str, str | bytes] = {
        "etc/hostname": "guest\n",
        "etc/fstab": "/dev/vda / ext4 rw,relatime 0 1\n",
        "etc/systemd/system/rig-agent.service": _AGENT_UNIT,
        "usr/local/lib/rig/agent.py": Path(__file__).with_name("agent.py").read_text(),
        "usr/local/bin/dspy-supervisor": _PROGRAM,
        "usr/local/lib/python3.11/dist-packages/dspy-supervisor.pth": "/opt/dspy-supervisor\n",
        **files,
    }
    for name, text in every.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    (tree / "usr/local/bin/dspy-supervisor").chmod(0o755)
    wants = tree / "etc/systemd/system/basic.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "rig-agent.service").symlink_to("../rig-agent.service")
    disk = folder / "disk.ext4"
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(disk), "4G")
    shutil.rmtree(tree)
    return disk


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

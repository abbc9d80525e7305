"""The guest that all tests here share, made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..nvml import RTX_4090, SONAME, Script, compile_library
from .image import build
from .machine import Machine

pytest.register_assert_rewrite("tests.guest.systemd")  # planted.py reads why its tests fail


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A running guest with the user alice, whose NVML shows one GPU."""
    missing = [name for name in ("qemu-system-x86_64", "debootstrap", "mke2fs") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(f"needs root, and the programs {', '.join(missing) or 'that are here'}")
    folder = tmp_path_factory.mktemp("guest")
    library = compile_library(folder / "nvml")
    driver = Script(folder / "script", library).gpu(0, uuid="GPU-1", **RTX_4090)
    files: dict[str, str | bytes] = {
        "etc/dspy-supervisor/handlers.py": Path(__file__).with_name("handlers.py").read_text(),
        f"usr/lib/{os.uname().machine}-linux-gnu/{SONAME}": library.read_bytes(),
        "etc/nvml": driver.path.read_text(),
        "etc/systemd/system.conf.d/nvml.conf": "[Manager]\nDefaultEnvironment=NVML_SCRIPT=/etc/nvml\n",
    }
    machine = Machine(build(folder, files))
    machine.boot()
    try:
        machine.ok("useradd --create-home alice")
        yield machine
    finally:
        machine.close()

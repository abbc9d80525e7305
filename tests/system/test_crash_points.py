"""A kill, or an error, at every file operation of a move: see tests/rigs/crash.py, which also runs as a command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ..rigs import crash


def _can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(
        ["strace", "-o", "/dev/null", "-e", "inject=getppid:delay_enter=1", "true"], capture_output=True
    )
    return tried.returncode == 0


pytestmark = [pytest.mark.faults, pytest.mark.skipif(not _can_trace(), reason="needs strace, and the right to use it")]


def _violations(root: Path, names: list[str], faults: list[str]) -> tuple[int, list[str]]:
    found = list(crash.hits(root, names, faults))
    return len(found), [f"{name}, {fault} at {place}: {text}" for name, fault, place, wrong in found for text in wrong]


@pytest.mark.parametrize("name", ["put", "claim", "finish", "fail", "retry", "recover"])
def test_a_kill_before_any_file_operation_loses_and_doubles_nothing(name: str, tmp_path: Path) -> None:
    count, wrong = _violations(tmp_path, [name], ["kill"])
    assert count >= 2
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["put", "claim", "finish"])
@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "EMFILE", "EINTR"])
def test_an_error_at_any_file_operation_condemns_nothing(name: str, fault: str, tmp_path: Path) -> None:
    count, wrong = _violations(tmp_path, [name], [fault])
    assert count >= 1
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("plant", crash.PLANTS)
def test_the_rig_finds_a_planted_bug(plant: str, tmp_path: Path) -> None:
    assert crash.finds(tmp_path, plant)

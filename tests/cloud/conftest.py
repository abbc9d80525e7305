"""Fixtures: an account with machines that can be logged into, and supervisors that rent them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cloud.machine import SSHD, Machine, machines
from tests.cloud.prime import KEY, FakePrime, prime
from tests.conftest import Supervised, supervisors


@dataclass
class Cloud:
    """An account, the machines that it boots, and a way to start a supervisor that uses them."""

    account: FakePrime
    booted: list[Machine]
    start: Callable[..., Supervised]
    settings: dict[str, object]
    folder: Path


def put(queue: Path, task_id: str, payload: Any, task_class: str = "cpu_long") -> None:
    """Put a task as any program may: by a file."""
    envelope = {"id": task_id, "class": task_class, "payload": payload}
    temporary = queue / "pending" / f".{task_id}.tmp"
    temporary.write_text(json.dumps(envelope))
    temporary.rename(queue / "pending" / f"{task_id}.json")


def wardens(folder: Path) -> list[psutil.Process]:
    """Return what looks after the machines of killed supervisors of one test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.environ().get("HOME") == str(folder)
            if ours and "dspy_supervisor.services.cloud.warden" in process.cmdline():
                found.append(process)
    return found


@pytest.fixture
def account() -> Iterator[FakePrime]:
    """The server alone."""
    with prime() as fake:
        yield fake


@pytest.fixture
def cloud(account: FakePrime, tmp_path: Path) -> Iterator[Cloud]:
    """Machines boot in an instant, as sshd on loopback, and lose all that runs there when they are deleted."""
    assert shutil.which("ssh") and Path(SSHD).exists(), "apt-get install openssh-server openssh-client"
    with machines(tmp_path / "pods") as (key, settings, booted), supervisors(tmp_path) as start:
        by_name: dict[str, Machine] = {}

        def boot(pod: dict[str, Any]) -> str:
            if pod["name"] not in by_name:
                by_name[pod["name"]] = Machine(tmp_path / "pods" / pod["name"], key)
                booted.append(by_name[pod["name"]])
            return by_name[pod["name"]].address

        account.boots_to = boot
        account.on_delete = lambda pod: by_name[pod["name"]].die() if pod["name"] in by_name else None
        every = settings | {
            "cloud_provider": "prime",
            "cloud_api": account.url,
            "cloud_max_price": 1,
            "cloud_spend_cap": 5,
            "backoff_cap_s": 1,
        }

        def begin(**more: Any) -> Supervised:
            handlers = more.pop("handlers", {"cpu_long": "tests.cloud.handlers:note"})
            environ = {"PRIME_API_KEY": KEY}
            options = more.pop("options", ("--workers", "cpu_long=0", "--workers", "cpu_short=0"))
            program = "tests.rigs.planted_cloud" if "PLANT" in os.environ else "dspy_supervisor"
            return start(*options, handlers=handlers, settings=every | more, environ=environ, program=program)

        yield Cloud(account, booted, begin, every, tmp_path)
    for process in wardens(tmp_path):  # of supervisors that were killed at the end
        process.kill()
        process.wait(30)

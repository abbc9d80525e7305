"""`upgrade`: the running supervisor becomes another version of this program, and its tasks run on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import click

from ..config import Loaded
from ..control_client import ask
from ..errors import ServiceUnavailable, SupervisorError, WaitTimeout
from .number import WAIT_S
from .options import with_config
from .output import json_option, print_json
from .service import supervisor_socket

_LOOK_S = 0.1


@click.command()
@click.option(
    "--python",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The python of another installation, as /opt/new/bin/python; else the one it runs under.",
)
@click.option("--timeout-wait", type=WAIT_S, default=180.0, metavar="S", help="Wait so long for it.")
@json_option
@with_config
def upgrade(loaded: Loaded, python: str | None, timeout_wait: float, as_json: bool) -> None:
    """Turn a running supervisor to another version of this program; its tasks run on.

    Install the new version first. It is started beside the running one, with the same settings, and asked whether it can take
    over; where it can't, the running one goes on and this command says why. Workers of the old version end with the task they
    have. USR2 does the same.

    Exit codes: 0 it is the other version now; 1 it goes on as it was; 3 none was running; 5 it takes longer.
    """
    path = supervisor_socket(loaded.config)
    before = ask(path, {"do": "status"})
    asked: dict[str, Any] = {"do": "upgrade"}
    if python is not None:
        asked["python"] = str(Path(python).absolute())
    begun = time.monotonic()
    number = int(ask(path, asked)["number"])
    now = _ended(path, number, begun + timeout_wait)
    facts = {"pid": now["pid"], "before": before.get("version"), "version": now["version"]}
    if as_json:
        print_json(facts | {"seconds": round(time.monotonic() - begun, 3)})
    else:
        click.echo(f"supervisor {facts['pid']} was version {facts['before']} and is {facts['version']} now")


def _ended(path: Path, number: int, deadline: float) -> dict[str, Any]:
    """Wait until the supervisor is the next program, and return its status."""
    while True:
        found: dict[str, Any] = {}
        with contextlib.suppress(ServiceUnavailable):  # it was asked at the moment at which it became another one
            found = ask(path, {"do": "status"}, max(1.0, deadline - time.monotonic()))
        facts = found.get("upgrade", {})
        if facts.get("number", number) != number:
            return found
        if facts.get("state") == "idle":
            raise SupervisorError(f"no upgrade: {facts.get('refused')}; the supervisor goes on as it was")
        if time.monotonic() > deadline:
            raise WaitTimeout("the supervisor did not turn to the other version in time; its log says how far it came")
        time.sleep(_LOOK_S)

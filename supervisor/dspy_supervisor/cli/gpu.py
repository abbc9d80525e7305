"""`gpu`: what the GPUs and this host tell, from the supervisor's telemetry where it runs, else from a look of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ..config import Config, Loaded
from ..control_client import ask
from ..errors import NotRunning, ServiceUnavailable
from .number import Number
from .options import with_config
from .output import duration, json_option, print_facts, print_json, print_table
from .service import supervisor_socket

if TYPE_CHECKING:
    from ..gpu import Gpu, Sight

_GIB = 1 << 30


@click.command()
@click.option("--here", is_flag=True, help="Ask the driver, even where a supervisor's telemetry runs.")
@click.option(
    "--timeout", "timeout_s", type=Number(0.1, 3600, "seconds"), default=30.0, help="Seconds the driver may take."
)
@json_option
@with_config
def gpu(loaded: Loaded, here: bool, timeout_s: float, as_json: bool) -> int:
    """Show GPUs and host: load, memory, power, heat, processes, and what keeps work away.

    Ends with 69 where the driver fails or needs a reboot.
    """
    from dspy_fastpath.counters import Telemetry

    from ..gpu import STATES, described, described_host

    found = None if here else _from_supervisor(loaded.config)
    source = "supervisor" if found else "here"
    if found is None:
        from ..services.glance import glance

        found = glance(timeout_s)
    sight, told = found
    now = time.monotonic()
    obstacle = told.get("why") or STATES[sight.state] or sight.obstacle(now, loaded.config.telemetry_interval_s)
    document = {
        "source": source,
        "state": sight.state.name.lower(),
        "obstacle": obstacle,
        "age_s": round(sight.age_s(now), 3) if sight.at else None,
        "versions": {name: told[name] for name in ("driver", "nvml", "cuda", "amdsmi") if name in told},
        "gpus": [described(one, told.get("fenced", {}).get(one.uuid)) for one in sight.gpus],
        "host": described_host(sight.host) if sight.host else None,
    }
    if as_json:
        print_json(document)
    else:
        _print(document, sight)
    bad = sight.state in (Telemetry.REBOOT_NEEDED, Telemetry.TROUBLED)
    return ServiceUnavailable.exit_code if bad else 0


def _from_supervisor(config: Config) -> tuple[Sight, Mapping[str, Any]] | None:
    """Return what a running supervisor's telemetry knows, None where there is none."""
    from dspy_fastpath.counters import Page, Telemetry

    from ..gpu import read

    try:
        socket = supervisor_socket(config)
        services = ask(socket, {"do": "status"}).get("services", {})
    except NotRunning:
        return None
    try:
        with Page.attach(socket.with_suffix(".page")) as page:
            sight = read(page)
    except ValueError as error:  # of another version of this program
        raise ServiceUnavailable(str(error)) from error
    if "telemetry" not in services or sight.state == Telemetry.UNWATCHED:
        return None
    return sight, services["telemetry"]


def _print(document: Mapping[str, Any], sight: Sight) -> None:
    age_s = document["age_s"]
    seen = f", {duration(age_s)} ago" if document["source"] == "supervisor" and age_s is not None else ""
    by = "the supervisor" if document["source"] == "supervisor" else "this command"
    facts = {"telemetry": f"{document['state'].replace('_', ' ')}, seen by {by}{seen}"}
    if document["obstacle"]:
        facts["obstacle"] = document["obstacle"]
    if document["versions"]:
        facts["versions"] = ", ".join(f"{name} {text}" for name, text in document["versions"].items())
    if document["host"]:
        facts["host"] = _host_text(document["host"])
    print_facts(facts)
    if sight.gpus:
        obstacles = {each["uuid"]: each["obstacle"] for each in document["gpus"]}
        click.echo()
        print_table(
            ["gpu", "name", "busy", "memory", "power", "heat", "clock", "tasks", "state", "uuid"],
            [_row(one, obstacles[one.uuid]) for one in ordered(sight)],
        )


def ordered(sight: Sight) -> list[Gpu]:
    """Return each GPU with its slices below it, and last those whose GPU is not known any more."""
    wholes = [one for one in sight.gpus if one.parent is None]
    rows = [one for whole in wholes for one in (whole, *(each for each in sight.gpus if each.parent == whole.uuid))]
    return rows + [one for one in sight.gpus if one not in rows]


def _row(one: Gpu, obstacle: str | None) -> list[object]:
    from dspy_fastpath.counters import GpuValue as Value

    from ..gpu import throttle_words

    state = obstacle or (
        "" if one.status else "cut in slices" if one[Value.MIG] == 1 else ", ".join(throttle_words(one[Value.THROTTLE]))
    )
    return [
        one.bus.removeprefix("0000") if one.parent is None else "  slice",
        one.name,
        _share(one[Value.UTILIZATION]),
        f"{_gib(one[Value.MEMORY_TOTAL] - one[Value.MEMORY_FREE])} of {_gib(one[Value.MEMORY_TOTAL])} GiB",
        f"{_whole(one[Value.POWER_W])} of {_whole(one[Value.POWER_CAP_W])} W",
        f"{_whole(one[Value.TEMPERATURE_C])} °C",
        f"{_whole(one[Value.SM_CLOCK_MHZ])} MHz",
        _whole(one[Value.PROCESSES]),
        state or one.status.name.lower().replace("_", " "),
        one.uuid,
    ]


def _host_text(host: Mapping[str, Any]) -> str:
    def number(name: str) -> float:
        return math.nan if host[name] is None else float(host[name])

    stalls = ", ".join(f"{name} {_share(number(f'psi_{name}'))}" for name in ("cpu", "memory", "io"))
    memory = f"{_gib(number('memory_free'))} of {_gib(number('memory_limit'))} GiB memory free"
    busy = f"{_share(number('cpu_busy'))} of {number('cpus'):g} CPUs busy, load {number('load'):g}"
    return f"{busy}; stalled: {stalls}; {memory}"


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.0%}"


def _gib(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value / _GIB:.1f}"


def _whole(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.0f}"

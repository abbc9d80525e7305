"""Whether systemd.py finds bugs: its tests, run with a unit or a setting that has one, must fail. One guest: `make guest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ..conftest import until
from . import service, systemd
from .machine import Machine
from .service import ETC, Service

pytestmark = pytest.mark.timeout(1800)  # an emulated processor

DROP_IN = "/etc/systemd/system/dspy-supervisor.service.d/zz-planted.conf"  # after what the tests write
LONG_S = 60.0  #: what comes at all comes in less


@pytest.fixture(scope="module", autouse=True)
def installed(guest: Machine) -> None:
    """The service of the machine, as its unit is."""
    guest.write(f"{ETC}/config.toml", systemd.SETTINGS)
    guest.ok("dspy-supervisor service install --run-as alice", 600)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for as long as where it is to come."""

    def soon(look: Callable[[], object], what: str, _timeout_s: float = 0.0) -> object:
        return until(look, what, LONG_S)

    monkeypatch.setattr(systemd, "until", soon)
    monkeypatch.setattr(service, "until", soon)


@pytest.fixture
def main(guest: Machine) -> Iterator[Service]:
    """The service, whose processes are gone when a test ends."""
    yield Service(guest, "dspy-supervisor", f"{ETC}/config.toml", systemd.QUEUE)
    guest.run(f"rm -f {DROP_IN} /run/systemd/system/dspy-supervisor.service.d/*; systemctl daemon-reload")
    guest.run("systemctl kill --signal=KILL dspy-supervisor; systemctl stop dspy-supervisor", 300)
    guest.run("rm -f /var/lib/dspy-supervisor/{go,end}*; systemctl reset-failed dspy-supervisor")


def _begin(guest: Machine, unit: str, settings: str = systemd.SETTINGS) -> None:
    guest.write(f"{ETC}/config.toml", settings)
    guest.write(DROP_IN, f"[Service]\n{unit}")
    guest.ok("systemctl daemon-reload && systemctl restart dspy-supervisor", 300)


@pytest.mark.parametrize(
    ("unit", "test", "found"),
    [
        ("Delegate=no", systemd.test_a_task_runs_in_a_group_of_its_own, "worker-"),
        (
            "OOMPolicy=stop",
            systemd.test_the_kernel_ends_one_task_for_its_memory_and_no_other,
            "assert 1 == 0",
        ),  # attempts of the neighbour
        ("ExecReload=", systemd.test_reload_reads_the_settings_anew_and_keeps_the_process, "not applicable"),
        ("RestrictNamespaces=yes", systemd.test_a_sandbox_holds_under_the_unit, "done/walled.json"),
        ("Restart=no", systemd.test_killed_it_is_started_again_and_what_ran_runs_again, "another process: not within"),
        ("WatchdogSec=0", systemd.test_frozen_it_is_bitten_by_the_watchdog_and_started_again, "a restart: not within"),
        ("KillSignal=SIGKILL", systemd.test_a_stop_lets_running_tasks_end, "ActiveState is .*: not within"),
    ],
)
def test_a_bug_of_the_unit_is_found(
    guest: Machine, main: Service, unit: str, test: Callable[[Machine, Service], None], found: str | None
) -> None:
    _begin(guest, unit)
    with pytest.raises(AssertionError, match=found):
        test(guest, main)


def test_a_unit_that_starts_over_and_over_is_found(guest: Machine, main: Service) -> None:
    _begin(guest, "RestartPreventExitStatus=", systemd.SETTINGS.replace("workers = 2", "workers = 3"))
    guest.ok("systemctl stop dspy-supervisor", 300)
    with pytest.raises(AssertionError, match=r"'78', '\d+'\) == \('78', '0'\)"):
        systemd.test_a_wrong_setting_ends_it_and_it_is_not_started_over_and_over(guest, main)


def test_a_queue_that_syncs_nothing_is_found(guest: Machine, main: Service) -> None:
    settings = systemd.SETTINGS.replace(systemd.QUEUE, f"{service.PLACE}/loose").replace('"full"', '"none"')
    _begin(guest, "", settings)
    loose = Service(guest, main.unit, main.settings, f"{service.PLACE}/loose")
    with pytest.raises(AssertionError, match="p199"):
        systemd.test_after_a_power_cut_everything_acknowledged_is_there(guest, loose)

"""The service under a real systemd, from its installation to a power cut. In order, in one guest: `make guest`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from ..conftest import until
from .image import build
from .machine import Machine

QUEUE = "/var/lib/dspy-supervisor/queue"
MINUTES = pytest.mark.timeout(1800)  # an emulated processor
HANDLERS = """
import os, pathlib, time

def work(task):
    what = task.payload
    if what.get("hog"):
        block = bytearray(what["hog"] << 20)
        block[::4096] = b"x" * len(block[::4096])
    if what.get("until"):
        pathlib.Path(what["until"] + ".begun").touch()
        while not pathlib.Path(what["until"]).exists():
            time.sleep(0.05)
    if path := what.get("read"):
        try:
            return {"read": pathlib.Path(path).read_text()}
        except OSError as error:
            return {"refused": error.strerror, "processes": [one for one in os.listdir("/proc") if one.isdecimal()]}
    return {"pid": os.getpid(), "group": pathlib.Path("/proc/self/cgroup").read_text().strip()}
"""
SETTINGS = f'''
mode = "workstation"
queue_dir = "{QUEUE}"
runtime_dir = "/run/dspy-supervisor/main"
enable_gpu = false
policy = "fixed"
http = false
durability = "full"
[class.cpu_short]
handler = "handlers:work"
workers = 2
memory_bytes = "192M"
max_ooms = 1
max_crashes = 1
'''


class Guest(Machine):
    """The guest, and what is asked of its service over and over."""

    def submit(self, task_id: str, **payload: object) -> None:
        """Put a task."""
        self.ok(f"runuser -u alice -- dspy-supervisor submit --id {task_id} '{json.dumps(payload)}'")

    def record(self, task_id: str, state: str = "done") -> dict[str, Any]:
        """Wait for a task's end, and return its record."""
        path = f"{QUEUE}/{state}/{task_id}.json"
        found = self.ok(f"for i in $(seq 400); do [ -e {path} ] && cat {path} && exit; sleep 0.2; done; "
                        f"ls -R {QUEUE}; journalctl -u dspy-supervisor -n 30; exit 1", 300)  # fmt: skip
        record: dict[str, Any] = json.loads(found)
        return record

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.ok(f"systemctl show dspy-supervisor --property={name} --value").strip()

    def wait_for(self, name: str, value: str) -> None:
        """Wait until a property of the service has a value."""
        until(lambda: self.show(name) == value, f"{name} is {value}", 300)

    @property
    def pid(self) -> int:
        """The supervisor's process, or 0."""
        return int(self.show("MainPID"))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    missing = [name for name in ("qemu-system-x86_64", "debootstrap", "mke2fs") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(f"needs root, and the programs {', '.join(missing) or 'that are here'}")
    folder = tmp_path_factory.mktemp("guest")
    machine = Guest(
        build(folder, {"etc/dspy-supervisor/handlers.py": HANDLERS, "etc/dspy-supervisor/config.toml": SETTINGS})
    )
    machine.boot()
    try:
        yield machine
    finally:
        machine.close()


@MINUTES
def test_it_is_installed_started_and_ready(guest: Guest) -> None:
    guest.ok("useradd --create-home alice")
    said = guest.ok("dspy-supervisor service install --run-as alice", 600)
    assert "dspy-supervisor.service serves" in said
    assert guest.show("ActiveState") == "active"  # with Type=notify: READY=1 was said
    assert guest.show("StatusText") == f"serving {QUEUE}"
    assert guest.ok("systemctl is-enabled dspy-supervisor").strip() == "enabled"
    assert guest.run("dspy-supervisor service status").code == 0


@MINUTES
def test_a_task_runs_in_a_group_of_its_own(guest: Guest) -> None:
    guest.submit("first")
    group = guest.record("first")["runner_result"]["group"]
    assert group.startswith("0::/system.slice/dspy-supervisor.service/worker-")
    status = json.loads(guest.ok("runuser -u alice -- dspy-supervisor status --json"))
    assert status["cgroups"] == ["cpu", "memory", "pids"]
    assert guest.ok(f"cat /sys/fs/cgroup{group[3:]}/memory.max").strip() == str(192 << 20)


@MINUTES
def test_the_kernel_ends_one_task_for_its_memory_and_no_other(guest: Guest) -> None:
    supervisor = guest.pid
    guest.submit("neighbour", until="/tmp/neighbour")
    guest.submit("hog", hog=400)
    error = guest.record("hog", "failed")["error"]
    assert (error["cause"], error["signal"]) == ("host_oom", "SIGKILL")
    assert "0.19 GiB are allowed (memory_bytes)" in error["message"]
    guest.ok("nsenter -t $(systemctl show dspy-supervisor --property=MainPID --value) -m touch /tmp/neighbour")
    assert guest.record("neighbour")["attempt"] == 0
    assert guest.pid == supervisor


@MINUTES
def test_reload_reads_the_settings_anew_and_keeps_the_process(guest: Guest) -> None:
    supervisor = guest.pid
    guest.ok(
        "sed -i 's/^workers = 2/workers = 3/' /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )

    def workers() -> int:
        status = json.loads(guest.ok("runuser -u alice -- dspy-supervisor status --json"))
        number: int = status["classes"]["cpu_short"]["workers"]
        return number

    until(lambda: workers() == 3, "a third worker", 120)
    assert guest.pid == supervisor


@MINUTES
def test_a_sandbox_holds_under_the_unit(guest: Guest) -> None:
    guest.ok(
        'printf \'[class.cpu_long]\\nhandler = "handlers:work"\\nworkers = 1\\nsandbox = "on"\\n\' '
        ">> /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )
    task = json.dumps({"read": f"{QUEUE}/queue.json"})
    guest.ok(f"runuser -u alice -- dspy-supervisor submit --id walled --class cpu_long '{task}'")
    found = guest.record("walled")["runner_result"]
    assert found["refused"] == "No such file or directory"
    assert len(found["processes"]) == 2  # its own, and the one that reaps
    assert "namespaces" in guest.ok("journalctl -u dspy-supervisor | grep '\"sandbox\"\\|event.*sandbox\\| sandbox '")


@MINUTES
def test_killed_it_is_started_again_and_what_ran_runs_again(guest: Guest) -> None:
    guest.submit("held", until="/var/lib/dspy-supervisor/go")
    guest.ok("until [ -e /var/lib/dspy-supervisor/go.begun ]; do sleep 0.1; done")
    before = guest.pid
    guest.ok(f"kill -9 {before}")
    until(lambda: guest.pid not in (0, before), "another process", 300)
    guest.wait_for("ActiveState", "active")
    guest.ok("touch /var/lib/dspy-supervisor/go")
    assert guest.record("held")["runner_result"]["pid"]


@MINUTES
def test_frozen_it_is_bitten_by_the_watchdog_and_started_again(guest: Guest) -> None:
    guest.ok("mkdir -p /run/systemd/system/dspy-supervisor.service.d && printf '[Service]\\nWatchdogSec=10\\n' "
             "> /run/systemd/system/dspy-supervisor.service.d/90-test.conf && systemctl daemon-reload "
             "&& systemctl restart dspy-supervisor", 300)  # fmt: skip
    before, restarts = guest.pid, int(guest.show("NRestarts"))
    guest.ok(f"kill -STOP {before}")
    until(lambda: int(guest.show("NRestarts")) > restarts, "a restart", 300)
    guest.wait_for("ActiveState", "active")
    assert guest.pid not in (0, before)
    assert "watchdog" in guest.ok("journalctl -u dspy-supervisor | grep -i watchdog").lower()


@MINUTES
def test_a_stop_lets_running_tasks_end(guest: Guest) -> None:
    guest.submit("last", until="/var/lib/dspy-supervisor/end")
    guest.ok("until [ -e /var/lib/dspy-supervisor/end.begun ]; do sleep 0.1; done")
    guest.ok("systemctl stop --no-block dspy-supervisor")
    guest.wait_for("ActiveState", "deactivating")
    guest.ok("touch /var/lib/dspy-supervisor/end")
    guest.wait_for("ActiveState", "inactive")
    assert guest.record("last")["attempt"] == 0
    assert guest.show("Result") == "success"
    assert guest.run("dspy-supervisor service status").code == 3


@MINUTES
def test_a_wrong_setting_ends_it_and_it_is_not_started_over_and_over(guest: Guest) -> None:
    guest.ok("sed -i 's/^workers = 3/workers = \"many\"/' /etc/dspy-supervisor/config.toml")
    assert guest.run("systemctl start dspy-supervisor", 300).code != 0
    guest.wait_for("ActiveState", "failed")
    assert guest.show("ExecMainStatus") == "78"
    assert "many" in guest.ok("journalctl -u dspy-supervisor -n 20")
    guest.ok("sed -i 's/^workers = \"many\"/workers = 2/' /etc/dspy-supervisor/config.toml")
    guest.ok("systemctl start dspy-supervisor", 300)


@MINUTES
def test_a_reboot_brings_it_back_with_what_it_had(guest: Guest) -> None:
    guest.ok("rm -f /var/lib/dspy-supervisor/go*")
    guest.submit("over", until="/var/lib/dspy-supervisor/go")
    guest.ok("until [ -e /var/lib/dspy-supervisor/go.begun ]; do sleep 0.1; done")
    guest.ok(
        "sed -i 's/^durability.*/&\\ndrain_s = 1/' /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )
    guest.reboot()
    guest.wait_for("ActiveState", "active")
    guest.ok("touch /var/lib/dspy-supervisor/go")
    assert guest.record("over")["status"] == "done"


@MINUTES
def test_after_a_power_cut_everything_acknowledged_is_there(guest: Guest) -> None:
    guest.ok("runuser -u alice -- dspy-supervisor queue pause")
    lines = "\n".join(json.dumps({"id": f"p{n}", "payload": {"n": n}}) for n in range(200))
    guest.ok(
        f"cat > /tmp/lines <<'X'\n{lines}\nX\nrunuser -u alice -- dspy-supervisor submit --jsonl /tmp/lines > /dev/null"
    )
    guest.cut_power()
    guest.boot()
    guest.wait_for("ActiveState", "active")
    guest.ok("runuser -u alice -- dspy-supervisor queue resume")
    guest.record("p199")
    until(lambda: guest.ok(f"ls {QUEUE}/done | grep -c '^p'").strip() == "200", "all 200", 300)
    assert guest.run("runuser -u alice -- dspy-supervisor queue fsck").code == 0


@MINUTES
def test_it_is_removed_and_the_queue_stays(guest: Guest) -> None:
    guest.ok("dspy-supervisor service uninstall", 300)
    assert guest.run("systemctl cat dspy-supervisor").code != 0
    assert guest.run("dspy-supervisor service status").code == 4
    assert guest.ok(f"ls {QUEUE}/done | grep -c .").strip() != "0"

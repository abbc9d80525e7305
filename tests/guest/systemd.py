"""The service under a real systemd, from its installation to a power cut. In order, in one guest: `make guest`."""

from __future__ import annotations

import json
import re

import pytest

from ..conftest import until
from ..nvml import RTX_4090
from .machine import Machine
from .service import ETC, PLACE, OwnService, Service

pytestmark = pytest.mark.timeout(1800)  # an emulated processor

QUEUE = f"{PLACE}/queue"
HOME = "/home/bob"
PROGRAM = "/opt/dspy-supervisor/dspy_supervisor"
HANDLER = r'[class.cpu_short]\nhandler = "handlers:work"\nworkers = 1\n'
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
max_processes = 40
cpu_weight = 50
max_ooms = 1
max_crashes = 1
'''


@pytest.fixture(scope="module", autouse=True)
def settings(guest: Machine) -> None:
    """What the service of the machine is told."""
    guest.write(f"{ETC}/config.toml", SETTINGS)


@pytest.fixture
def main(guest: Machine) -> Service:
    """The service of the machine."""
    return Service(guest, "dspy-supervisor", f"{ETC}/config.toml", QUEUE)


@pytest.fixture
def extra(guest: Machine) -> Service:
    """An instance: the machine's second queue."""
    return Service(guest, "dspy-supervisor@extra", f"{ETC}/extra.toml", f"{PLACE}/extra")


@pytest.fixture
def own(guest: Machine) -> Service:
    """The service of a user, run by the user's own manager."""
    settings, queue = f"{HOME}/.config/dspy-supervisor/config.toml", f"{HOME}/.local/state/dspy-supervisor/queue"
    return OwnService(guest, "dspy-supervisor", settings, queue, "bob")


def test_it_is_installed_started_and_ready(guest: Machine, main: Service) -> None:
    said = guest.ok("dspy-supervisor service install --run-as alice", 600)
    assert "dspy-supervisor.service serves" in said
    assert main.show("ActiveState") == "active"  # with Type=notify: READY=1 was said
    assert main.show("StatusText") == f"serving {QUEUE}"
    assert guest.ok("systemctl is-enabled dspy-supervisor").strip() == "enabled"
    assert guest.run("dspy-supervisor service status").code == 0


def test_a_task_runs_in_a_group_of_its_own(guest: Machine, main: Service) -> None:
    main.submit("first")
    group = main.record("first")["runner_result"]["group"]
    assert group.startswith("0::/system.slice/dspy-supervisor.service/worker-")
    status = main.status()
    assert status["cgroups"] == ["cpu", "memory", "pids"]
    bounds = [
        guest.ok(f"cat /sys/fs/cgroup{group[3:]}/{name}").strip() for name in ("memory.max", "pids.max", "cpu.weight")
    ]
    assert bounds == [str(192 << 20), "40", "50"]


def test_a_fork_bomb_ends_at_the_bound_of_its_own_group(guest: Machine, main: Service) -> None:
    main.submit("beside", until="/tmp/beside")
    main.submit("bomb", forks=500)
    found = main.record("bomb")["runner_result"]
    assert 30 < found["forked"] < 40 and found["why"] == "Resource temporarily unavailable"
    guest.ok("nsenter -t $(systemctl show dspy-supervisor --property=MainPID --value) -m touch /tmp/beside")
    assert main.record("beside")["attempt"] == 0


def test_the_kernel_ends_one_task_for_its_memory_and_no_other(guest: Machine, main: Service) -> None:
    supervisor = main.pid
    main.submit("neighbour", until="/tmp/neighbour")
    main.submit("hog", hog=400)
    error = main.record("hog", "failed")["error"]
    assert (error["cause"], error["signal"]) == ("host_oom", "SIGKILL")
    assert "0.19 GiB are allowed (memory_bytes)" in error["message"]
    guest.ok("nsenter -t $(systemctl show dspy-supervisor --property=MainPID --value) -m touch /tmp/neighbour")
    assert main.record("neighbour")["attempt"] == 0
    assert main.pid == supervisor


def test_reload_reads_the_settings_anew_and_keeps_the_process(guest: Machine, main: Service) -> None:
    supervisor = main.pid
    guest.ok(
        "sed -i 's/^workers = 2/workers = 3/' /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )
    until(lambda: main.status()["classes"]["cpu_short"]["workers"] == 3, "a third worker", 120)
    assert main.pid == supervisor


def test_a_sandbox_holds_under_the_unit(guest: Machine, main: Service) -> None:
    guest.ok(
        'printf \'[class.cpu_long]\\nhandler = "handlers:work"\\nworkers = 1\\nsandbox = "on"\\n\' '
        ">> /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )
    task = json.dumps({"read": f"{QUEUE}/queue.json"})
    guest.ok(f"runuser -u alice -- dspy-supervisor submit --id walled --class cpu_long '{task}'")
    found = main.record("walled")["runner_result"]
    assert found["refused"] == "No such file or directory"
    assert len(found["processes"]) == 2  # its own, and the one that reaps
    assert "namespaces" in guest.ok("journalctl -u dspy-supervisor | grep '\"sandbox\"\\|event.*sandbox\\| sandbox '")


def test_an_instance_serves_a_queue_of_its_own_beside_the_first(guest: Machine, main: Service, extra: Service) -> None:
    before = main.pid
    guest.ok("umask 077 && echo 0123456789abcdef0123456789abcdef > /root/token")  # which alice can't read
    said = guest.ok("dspy-supervisor service install extra --run-as alice --http-token-file /root/token", 600)
    assert f"wrote {extra.settings}" in said
    assert extra.show("ActiveState") == "active"
    assert extra.show("StatusText") == f"serving {extra.queue}"
    guest.ok(f"printf '{HANDLER}' >> {extra.settings} && systemctl reload {extra.unit}")
    extra.submit("second")
    group = extra.record("second")["runner_result"]["group"]
    assert f"/{extra.unit}.service/worker-" in group
    assert main.pid == before
    _speaks_http_with_its_credential(guest, extra)
    guest.ok("dspy-supervisor service uninstall extra", 300)
    assert guest.run(f"systemctl cat {extra.unit}").code != 0
    assert main.pid == before


_RESUME = """\
import sys, urllib.request
token = {"Authorization": "Bearer " + open("/root/token").read().strip()} if sys.argv[1:] else {}
url, head = "http://127.0.0.1:9097/v1/queue/resume", {"Content-Type": "application/json"}
print(urllib.request.urlopen(urllib.request.Request(url, b"{}", head | token)).status)
"""


def _speaks_http_with_its_credential(guest: Machine, extra: Service) -> None:
    """The gateway knows the token, the step is compiled, a driver is heard: the unit forbids no socket, Numba's pages or NVML."""
    guest.write("/root/resume.py", _RESUME)
    until(lambda: guest.run("python3 /root/resume.py token").out.strip() == "200", "the gateway answers", 300)
    # The reload above gives the gateway its settings anew, by a process of their own: nobody may listen for a moment.
    until(
        lambda: "HTTP Error 401" in guest.run("python3 /root/resume.py").err,
        "a caller without the token is refused",
        300,
    )
    until(lambda: extra.status()["services"]["controller"]["step"] == "compiled", "the step is compiled", 600)
    show = f"dspy-supervisor gpu --config {extra.settings}"
    until(lambda: str(RTX_4090["name"]) in extra.shell(show).out, "the driver's GPU is seen", 300)


def test_it_becomes_another_version_while_a_task_runs_and_systemd_sees_no_restart(
    guest: Machine, main: Service
) -> None:
    gate = f"{PLACE}/through"
    main.submit("through", until=gate)
    before, worker, restarts = main.pid, main.begun(gate), main.show("NRestarts")
    version = main.status()["version"]
    _install(guest, "9.1")
    assert f"supervisor {before} was version {version} and is 9.1 now" in main.ok("dspy-supervisor upgrade", 300)
    main.submit("next")
    after = main.record("next")["runner_result"]
    assert after["version"] == "9.1"
    assert after["group"].startswith("0::/system.slice/dspy-supervisor.service/worker-")
    # USR2 asks for the same. Over and over, for longer than the watchdog waits: each program begins with a sign of life.
    _install(guest, version)
    begun = float(guest.ok(_UPTIME))
    while float(guest.ok(_UPTIME)) < begun + 35:
        _turn(guest, main)
    assert (main.pid, main.show("ActiveState"), main.show("NRestarts")) == (before, "active", restarts)
    assert main.show("StatusText") == f"serving {QUEUE}"
    assert main.status()["version"] == version
    guest.ok(f"touch {gate}")
    record = main.record("through")
    assert (record["attempt"], record["runner_result"]["pid"]) == (0, worker)


_UPTIME = "cut -d' ' -f1 /proc/uptime"


def _turn(guest: Machine, main: Service) -> None:
    """Send USR2, and wait for the next program in the same process."""
    count = 'journalctl -u dspy-supervisor -o cat | grep -c \'"event":"taken_over"\''
    process, number = main.pid, guest.ok(count)
    guest.ok("systemctl kill --signal=USR2 --kill-whom=main dspy-supervisor")

    def turned() -> bool:
        assert main.pid == process, guest.ok("journalctl -u dspy-supervisor -n 20")
        return guest.ok(count) != number

    until(turned, "the next program", 300)


def _install(guest: Machine, version: str) -> None:
    """Let this tree have another version's number."""
    guest.ok(f"sed -i 's/^__version__ = .*/__version__ = \"{version}\"/' {PROGRAM}/__init__.py")


def test_killed_it_is_started_again_and_what_ran_runs_again(guest: Machine, main: Service) -> None:
    main.submit("held", until="/var/lib/dspy-supervisor/go")
    main.begun("/var/lib/dspy-supervisor/go")
    before = main.pid
    guest.ok(f"kill -9 {before}")
    until(lambda: main.pid not in (0, before), "another process", 300)
    main.wait_for("ActiveState", "active")
    guest.ok("touch /var/lib/dspy-supervisor/go")
    assert main.record("held")["runner_result"]["pid"]


def test_frozen_it_is_bitten_by_the_watchdog_and_started_again(guest: Machine, main: Service) -> None:
    guest.ok("mkdir -p /run/systemd/system/dspy-supervisor.service.d && printf '[Service]\\nWatchdogSec=10\\n' "
             "> /run/systemd/system/dspy-supervisor.service.d/90-test.conf && systemctl daemon-reload "
             "&& systemctl restart dspy-supervisor", 300)  # fmt: skip
    before, restarts = main.pid, int(main.show("NRestarts"))
    guest.ok(f"kill -STOP {before}")
    until(lambda: int(main.show("NRestarts")) > restarts, "a restart", 300)
    main.wait_for("ActiveState", "active")
    assert main.pid not in (0, before)
    assert "watchdog" in guest.ok("journalctl -u dspy-supervisor | grep -i watchdog").lower()


def test_a_stop_lets_running_tasks_end(guest: Machine, main: Service) -> None:
    main.submit("last", until="/var/lib/dspy-supervisor/end")
    main.begun("/var/lib/dspy-supervisor/end")
    guest.ok("systemctl stop --no-block dspy-supervisor")
    main.wait_for("ActiveState", "deactivating")
    guest.ok("touch /var/lib/dspy-supervisor/end")
    main.wait_for("ActiveState", "inactive")
    assert main.record("last")["attempt"] == 0
    assert main.show("Result") == "success"
    assert guest.run("dspy-supervisor service status").code == 3


def test_a_wrong_setting_ends_it_and_it_is_not_started_over_and_over(guest: Machine, main: Service) -> None:
    guest.ok("sed -i 's/^workers = 3/workers = \"many\"/' /etc/dspy-supervisor/config.toml")
    assert guest.run("systemctl start dspy-supervisor", 300).code != 0
    main.wait_for("ActiveState", "failed")
    assert (main.show("ExecMainStatus"), main.show("NRestarts")) == ("78", "0")
    assert "many" in guest.ok("journalctl -u dspy-supervisor -n 20")
    guest.ok("sed -i 's/^workers = \"many\"/workers = 2/' /etc/dspy-supervisor/config.toml")
    guest.ok("systemctl start dspy-supervisor", 300)


def test_a_user_has_a_service_of_their_own_without_root(guest: Machine, own: Service) -> None:
    guest.ok("useradd --create-home --shell /bin/bash bob && loginctl enable-linger bob")
    own.ok(f"mkdir -p .config/dspy-supervisor && cp {ETC}/handlers.py .config/dspy-supervisor")
    said = own.ok("dspy-supervisor service install --user", 600)
    assert f"wrote {own.settings}" in said
    assert f"dspy-supervisor.service serves {own.queue}" in said
    assert own.show("ActiveState") == "active"
    assert own.show("StatusText") == f"serving {own.queue}"
    assert own.systemctl("is-enabled dspy-supervisor").strip() == "enabled"
    assert own.shell("dspy-supervisor service status --user").code == 0
    assert guest.ok(f"ps -o user= {own.pid}").strip() == "bob"


def test_a_users_service_is_reloaded_and_runs_a_task_in_a_group_of_its_own(guest: Machine, own: Service) -> None:
    before = own.pid
    own.ok(f"printf '{HANDLER}memory_bytes = \"192M\"\\n' >> {own.settings}")
    own.systemctl("reload dspy-supervisor")
    own.submit("mine")
    group = own.record("mine")["runner_result"]["group"]
    assert re.fullmatch(r"0::/user\.slice/.*/user@\d+\.service/.*/dspy-supervisor\.service/worker-[^/]*", group)
    assert own.status()["cgroups"] == ["cpu", "memory", "pids"]
    assert guest.ok(f"cat /sys/fs/cgroup{group[3:]}/memory.max").strip() == str(192 << 20)
    assert own.pid == before


def test_a_stop_of_a_users_service_lets_running_tasks_end(guest: Machine, own: Service) -> None:
    gate = f"{HOME}/gate"
    own.submit("held", until=gate)
    own.begun(gate)
    own.systemctl("stop --no-block dspy-supervisor")
    own.wait_for("ActiveState", "deactivating")
    guest.ok(f"touch {gate}")
    own.wait_for("ActiveState", "inactive")
    assert own.record("held")["attempt"] == 0
    assert own.show("Result") == "success"
    assert own.shell("dspy-supervisor service status --user").code == 3


def test_a_reboot_brings_it_back_with_what_it_had(guest: Machine, main: Service) -> None:
    guest.ok("rm -f /var/lib/dspy-supervisor/go*")
    main.submit("over", until="/var/lib/dspy-supervisor/go")
    main.begun("/var/lib/dspy-supervisor/go")
    guest.ok(
        "sed -i 's/^durability.*/&\\ndrain_s = 1/' /etc/dspy-supervisor/config.toml && systemctl reload dspy-supervisor"
    )
    guest.reboot()
    main.wait_for("ActiveState", "active")
    guest.ok("touch /var/lib/dspy-supervisor/go")
    assert main.record("over")["status"] == "done"


def test_a_reboot_brings_back_the_service_of_a_user_who_lingers(guest: Machine, own: Service) -> None:
    # Before the user logs in, which starts it too.
    until(lambda: guest.run("pgrep --uid bob --full 'dspy-supervisor start'").code == 0, "it is started", 300)
    own.wait_for("ActiveState", "active")
    own.submit("again")
    assert own.record("again")["status"] == "done"


def test_a_users_service_is_removed_and_the_queue_stays(guest: Machine, own: Service) -> None:
    own.ok("dspy-supervisor service uninstall --user", 300)
    assert own.shell("systemctl --user cat dspy-supervisor").code != 0
    assert own.shell("dspy-supervisor service status --user").code == 4
    assert guest.run(f"[ -e {own.queue}/done/mine.json ]").code == 0


def test_after_a_power_cut_everything_acknowledged_is_there(guest: Machine, main: Service) -> None:
    guest.ok("runuser -u alice -- dspy-supervisor queue pause")
    lines = "\n".join(json.dumps({"id": f"p{n}", "payload": {"n": n}}) for n in range(200))
    guest.ok(
        f"cat > /tmp/lines <<'X'\n{lines}\nX\nrunuser -u alice -- dspy-supervisor submit --jsonl /tmp/lines > /dev/null"
    )
    guest.cut_power()
    guest.boot()
    main.wait_for("ActiveState", "active")
    guest.ok("runuser -u alice -- dspy-supervisor queue resume")
    main.record("p199")
    until(lambda: guest.ok(f"ls {QUEUE}/done | grep -c '^p'").strip() == "200", "all 200", 300)
    assert guest.run("runuser -u alice -- dspy-supervisor queue fsck").code == 0


def test_it_is_removed_and_the_queue_stays(guest: Machine) -> None:
    guest.ok("dspy-supervisor service uninstall", 300)
    assert guest.run("systemctl cat dspy-supervisor").code != 0
    assert guest.run("dspy-supervisor service status").code == 4
    assert guest.ok(f"ls {QUEUE}/done | grep -c .").strip() != "0"

"""What presses on a host, read from the trees that kernels of both versions of control groups show."""

import math

import pytest
from dspy_fastpath.counters import HostValue as Value
from dspy_supervisor.host import Host

GIB = 1 << 30
MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {40 * GIB // 1024} kB\nSwapFree: 2048 kB\n"


class Tree:
    """A /proc and a /sys as some kernel and container show them."""

    def __init__(self, root):
        self.root = root
        self.put("proc/meminfo", MEMINFO)
        self.put("proc/loadavg", "3.25 2 1 4/500 4711")
        self.ticks(0, 0)

    def put(self, path, content):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(f"{content}\n")

    def ticks(self, busy, idle):
        """Processors 0 and 1 were busy and idle for so many ticks, 2 and 3 never idle."""
        rows = [f"cpu{i} {busy} 0 0 {idle if i < 2 else 0} 0 0 0 0 0 0" for i in range(4)]
        self.put("proc/stat", "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *rows, "intr 5"]))

    def v2(self, path, top="/"):
        self.put("proc/self/cgroup", f"0::{path}")
        self.put("proc/self/mountinfo", f"30 24 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw")

    def v1(self, path, top="/"):
        self.put("proc/self/cgroup", f"4:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}")
        mounts = [
            f"{number} 24 0:{number} {top} /sys/fs/cgroup/{names} rw shared:9 - cgroup cgroup rw,{names}"
            for number, names in enumerate(("memory", "cpu,cpuacct"), 30)
        ]
        self.put("proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]))

    def sample(self, at=0.0):
        return Host(self.root, {0, 1, 2, 3}).sample(at)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def memory(values):
    return values[Value.HOST_MEMORY_LIMIT] / GIB, values[Value.HOST_MEMORY_FREE] / GIB


def test_without_control_groups_the_machine_is_the_limit(tree):
    values = tree.sample()
    assert memory(values) == (64, 40)
    assert (values[Value.CPUS], values[Value.LOAD], values[Value.SWAP_FREE]) == (4, 3.25, 2 << 20)
    assert math.isnan(values[Value.OOM_KILLS])


def test_the_tightest_of_all_groups_above_counts(tree):
    tree.v2("/a.slice/b.service")
    tree.put("sys/fs/cgroup/a.slice/memory.max", 10 * GIB)
    tree.put("sys/fs/cgroup/a.slice/memory.current", 9 * GIB)
    tree.put("sys/fs/cgroup/a.slice/memory.stat", f"anon 5\ninactive_file {GIB}")
    tree.put("sys/fs/cgroup/a.slice/cpu.max", "150000 100000")
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.max", "max")
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.high", 12 * GIB)
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.current", GIB)
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.events", "low 0\noom 2\noom_kill 3")
    tree.put("sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000")
    values = tree.sample()
    assert memory(values) == (10, 2)
    assert (values[Value.CPUS], values[Value.OOM_KILLS]) == (1.5, 3)


def test_our_own_group_may_be_the_tightest(tree):
    tree.v2("/a.slice/b.service")
    tree.put("sys/fs/cgroup/a.slice/memory.max", 10 * GIB)
    tree.put("sys/fs/cgroup/a.slice/memory.current", 9 * GIB)
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.max", 7 * GIB)
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.high", 5 * GIB)
    tree.put("sys/fs/cgroup/a.slice/b.service/memory.current", 3 * GIB)
    assert memory(tree.sample()) == (5, 1)
    tree.put("proc/meminfo", "")
    assert memory(tree.sample()) == (5, 1)


def test_version_1_tells_the_same(tree):
    tree.v1("/jobs/one")
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)  # none
    tree.put("sys/fs/cgroup/memory/jobs/one/memory.limit_in_bytes", 8 * GIB)
    tree.put("sys/fs/cgroup/memory/jobs/one/memory.usage_in_bytes", 8 * GIB)
    tree.put("sys/fs/cgroup/memory/jobs/one/memory.stat", f"inactive_file 1\ntotal_inactive_file {3 * GIB}")
    tree.put("sys/fs/cgroup/memory/jobs/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 7")
    tree.put("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", 250000)
    tree.put("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us", 100000)
    tree.put("sys/fs/cgroup/cpu,cpuacct/jobs/one/cpu.cfs_quota_us", -1)
    values = tree.sample()
    assert memory(values) == (8, 3)
    assert (values[Value.CPUS], values[Value.OOM_KILLS]) == (2.5, 7)


@pytest.mark.parametrize("top", ["/docker/abc", "/elsewhere"])
def test_a_container_sees_its_own_group_at_the_mount(tree, top):
    """The path in /proc/self/cgroup is the host's; what is mounted is the container's own group."""
    tree.v1("/docker/abc", top)
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", 2 * GIB)
    tree.put("sys/fs/cgroup/memory/memory.usage_in_bytes", GIB)
    tree.put("sys/fs/cgroup/memory.limit_in_bytes", 1)  # nobody's
    assert memory(tree.sample()) == (2, 1)


def test_a_limit_whose_use_is_not_told_takes_nothing_from_what_is_free(tree):
    tree.v2("/a")
    tree.put("sys/fs/cgroup/a/memory.max", 10 * GIB)
    assert memory(tree.sample()) == (10, 40)


def test_stalls_are_those_of_our_own_group_where_it_tells_them(tree):
    tree.put("proc/pressure/cpu", "some avg10=50.00 avg60=1.00 avg300=1.00 total=5")
    tree.put(
        "proc/pressure/memory", "some avg10=3.00 avg60=0 avg300=0 total=5\nfull avg10=1.50 avg60=0 avg300=0 total=5"
    )
    values = tree.sample()
    assert values[Value.PSI_CPU] == 0.5
    assert (values[Value.PSI_MEMORY], values[Value.PSI_MEMORY_FULL]) == (0.03, 0.015)
    assert math.isnan(values[Value.PSI_IO])
    tree.v2("/a")
    tree.put("sys/fs/cgroup/a/cpu.pressure", "some avg10=25.00 avg60=1.00 avg300=1.00 total=5")
    values = tree.sample()
    assert (values[Value.PSI_CPU], values[Value.PSI_MEMORY]) == (0.25, 0.03)


def test_how_busy_it_is_counts_since_the_last_sample_and_our_processors_alone(tree):
    host = Host(tree.root, {0, 1})
    assert math.isnan(host.sample(10.0)[Value.CPU_BUSY])
    tree.ticks(30, 70)
    assert host.sample(11.0)[Value.CPU_BUSY] == pytest.approx(0.3)
    assert math.isnan(host.sample(11.0)[Value.CPU_BUSY])  # no time passed


def test_a_group_that_uses_its_quota_up_is_busy_on_an_idle_machine(tree):
    tree.v2("/a")
    tree.put("sys/fs/cgroup/a/cpu.max", "50000 100000")
    tree.put("sys/fs/cgroup/a/cpu.stat", "usage_usec 1000000")
    host = Host(tree.root, {0, 1})
    host.sample(10.0)
    tree.ticks(1, 99)
    tree.put("sys/fs/cgroup/a/cpu.stat", "usage_usec 1450000")
    assert host.sample(11.0)[Value.CPU_BUSY] == pytest.approx(0.9)


def test_a_kernel_that_tells_nothing_is_not_taken_for_an_idle_one(tmp_path):
    values = Host(tmp_path, {0}).sample(0.0)
    assert values.pop(Value.CPUS) == 1
    assert all(map(math.isnan, values.values()))
    assert set(values) == set(Value) - {Value.CPUS}


def test_this_very_host_tells_the_most_of_it():
    values = Host().sample(0.0)
    assert values[Value.CPUS] > 0
    assert 0 < values[Value.HOST_MEMORY_FREE] <= values[Value.HOST_MEMORY_LIMIT]
    assert values[Value.LOAD] >= 0

"""A real GPU with its real driver, where there is one: `pytest -m gpu -s` prints the figures to note."""

import json
import subprocess
import sys
import time

import pytest
from dspy_fastpath.counters import Page, Telemetry
from dspy_supervisor.gpu import read

from tests.conftest import ROOT, clean_environ, until

pytestmark = pytest.mark.gpu

FIGURES = """
import json, resource, time
from dspy_supervisor.services.nvml import Nvml
source, began = Nvml(), time.perf_counter()
versions = source.open()
opened = time.perf_counter()
source.devices()
times = []
for _ in range(50):
    start = time.perf_counter()
    devices = source.devices()
    times.append(time.perf_counter() - start)
print(json.dumps({
    **versions,
    "devices": [[one.name, one.uuid, len(one.values)] for one in devices],
    "open_ms": round(1e3 * (opened - began), 1),
    "look_ms": round(1e3 * sorted(times)[25], 2),
    "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    "errors": source.errors,
}))
"""


@pytest.fixture(scope="module", autouse=True)
def driver():
    """Skips where nvidia-smi finds no GPU: the tests ask another program than the one they test."""
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60).stdout
    except FileNotFoundError:
        told = ""
    if "GPU-" not in told:
        pytest.skip("no NVIDIA GPU here")


def queried(*names):
    """Return what nvidia-smi says of each GPU."""
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    return [[cell.strip() for cell in line.split(",")] for line in told.strip().splitlines()]


def test_the_command_tells_what_nvidia_smi_tells(tmp_path):
    command = [sys.executable, "-m", "dspy_supervisor", "gpu", "--here", "--json", "--queue-dir", str(tmp_path / "q")]
    done = subprocess.run(command, capture_output=True, check=True, env=clean_environ(tmp_path), timeout=100)
    document = json.loads(done.stdout)
    assert (document["state"], document["obstacle"]) == ("watching", None)
    wholes = {gpu["uuid"]: gpu for gpu in document["gpus"] if gpu["parent"] is None}
    rows = queried("uuid", "name", "driver_version", "memory.total", "power.limit", "temperature.gpu")
    assert len(rows) == len(wholes)
    for uuid, name, driver, total_mib, cap_w, heat_c in rows:
        gpu = wholes[uuid]
        assert (gpu["name"], document["versions"]["driver"]) == (name, driver)
        assert gpu["memory_total"] >> 20 == int(total_mib)
        assert 0 < gpu["memory_free"] <= gpu["memory_total"]
        if cap_w.replace(".", "").isdigit():
            assert gpu["power_cap_w"] == pytest.approx(float(cap_w))
        if heat_c.isdigit():
            assert abs(gpu["temperature_c"] - int(heat_c)) <= 10


def test_the_figures_of_this_gpu(tmp_path):
    """Each number that this driver tells, and what a look costs; nothing may fail in another way than not supported."""
    done = subprocess.run(
        [sys.executable, "-c", FIGURES],
        capture_output=True,
        check=True,
        env=clean_environ(tmp_path),
        cwd=ROOT,
        timeout=100,
    )
    figures = json.loads(done.stdout)
    print("\n" + json.dumps(figures, indent=1))
    assert figures["errors"] == 0
    assert all(told >= 8 for _, _, told in figures["devices"])


def test_a_supervisor_sees_it_within_its_interval(supervisor):
    one = supervisor(settings={"enable_gpu": "true", "telemetry_interval_s": 0.5, "policy": "fixed"})
    until(lambda: one.status()["services"]["telemetry"].get("telemetry") == "watching", "telemetry", 90)
    with Page.attach(one.socket.with_suffix(".page")) as page:
        first = read(page)
        assert first.state == Telemetry.WATCHING
        until(lambda: read(page).at > first.at, "the next look")
        assert read(page).obstacle(time.monotonic(), 60.0) is None
        assert [gpu.uuid for gpu in first.gpus if gpu.parent is None] == [row[0] for row in queried("uuid")]

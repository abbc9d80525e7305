"""Whether handlers could be loaded is found out in other processes, in bounded time, and leaves nothing behind."""

import os
import sys
import time

import pytest
from dspy_supervisor import rehearsal
from dspy_supervisor.config import load
from dspy_supervisor.proctree import children
from dspy_supervisor.reactor import Reactor
from dspy_supervisor.rehearsal import Rehearsal


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A function that returns a configuration of these settings, beside modules that handlers are taken from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good_jobs.py").write_text("def run(task): ...\n")
    (tmp_path / "env_jobs.py").write_text("import os\nos.environ['ONLY_HERE']\ndef run(task): ...\n")
    (tmp_path / "hung_jobs.py").write_text("import time\ntime.sleep(600)\n")
    (tmp_path / "strays_jobs.py").write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '600'])\ndef run(task): ...\n"
    )

    def config(**settings):
        flags = {f"class.{name}.workers": 1 if name in settings else 0 for name in ("cpu_short", "cpu_long", "gpu")}
        for name, values in settings.items():
            flags |= {f"class.{name}.{key}": value for key, value in values.items()}
        return load(flags, {"HOME": str(tmp_path)}, tmp_path).config

    return config


def rehearse(config, tmp_path):
    one = Rehearsal(config, tmp_path, "node")
    assert one.wait()
    return one.end()


def test_each_class_is_tried_as_its_workers_begin(config, tmp_path):
    found = config(
        cpu_short={"handler": "good_jobs:run"},
        cpu_long={"handler": "env_jobs:run", "environment": "ONLY_HERE=1"},
        gpu={"handler": "env_jobs:run"},
    )
    assert rehearse(found, tmp_path) == {
        "gpu": "handler='env_jobs:run': expected a module 'env_jobs' that can be imported, not KeyError: 'ONLY_HERE'"
    }
    assert "env_jobs" not in sys.modules and "good_jobs" not in sys.modules


def test_a_class_without_workers_is_not_tried(config, tmp_path):
    found = config(cpu_long={"handler": "no_such:run", "workers": 0}, gpu_slurm={"handler": "no_such:run"})
    one = Rehearsal(found, tmp_path, "node")
    assert one.pids == set() and one.wait() and one.end() == {}


def test_where_no_class_has_workers_a_loop_hears_of_the_end_at_once(config, tmp_path):
    heard = []
    with Reactor() as reactor:
        one = Rehearsal(config(gpu_slurm={"handler": "no_such:run"}), tmp_path, "node")
        one.listen(reactor, lambda: heard.append(one.end()))
        reactor.run_once(0.0)
    assert heard == [{}]


def test_what_hangs_is_ended_in_its_time(config, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "LONGEST_S", 0.3)
    assert rehearse(config(cpu_short={"handler": "hung_jobs:run"}), tmp_path) == {
        "cpu_short": "its handlers were not loaded in 0 s"
    }
    assert not children()


@pytest.mark.parametrize("handler", ["good_jobs:run", "hung_jobs:run"])
def test_a_loop_hears_of_the_end_once(config, tmp_path, monkeypatch, handler):
    monkeypatch.setattr(rehearsal, "LONGEST_S", 5.0 if handler.startswith("good") else 0.3)
    heard = []
    with Reactor() as reactor:
        one = Rehearsal(config(cpu_short={"handler": handler}, cpu_long={"handler": "good_jobs:run"}), tmp_path, "node")
        one.listen(reactor, lambda: heard.append(one.end()))
        until = time.monotonic() + 3.0
        while time.monotonic() < until and not heard:
            reactor.run_once(0.1)
        reactor.run_once(0.4)
    assert [set(found) for found in heard] == [set() if handler.startswith("good") else {"cpu_short"}]


def test_nothing_is_left_of_one_that_is_called_off(config, tmp_path):
    before = os.listdir("/proc/self/fd")
    with Reactor() as reactor:
        one = Rehearsal(config(cpu_short={"handler": "hung_jobs:run"}), tmp_path, "node")
        one.listen(reactor, lambda: pytest.fail("it was called off"))
        one.close()
        reactor.run_once(0.0)
    assert os.listdir("/proc/self/fd") == before and not children()


def test_what_a_module_starts_ends_with_its_trial(config, tmp_path):
    one = Rehearsal(config(cpu_short={"handler": "strays_jobs:run"}), tmp_path, "node")
    (pid,) = one.pids
    assert one.wait() and one.end() == {}
    assert not os.path.exists(f"/proc/{pid}")

"""A cluster without accounting: what squeue forgets, only the job itself can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Start, until
from .bridge import END_S, Bridge
from .dev_cluster import DevCluster, dev_cluster
from .faults import Faults


@pytest.fixture(scope="module")
def cluster(session_cluster: DevCluster) -> Iterator[DevCluster]:
    """A second cluster, beside the session's."""
    with dev_cluster("--no-accounting", "--nodes=1", "--gpu-nodes=0", "--min-job-age=2") as cluster:
        yield cluster


@pytest.fixture
def bridge(tmp_path: Path, supervisor: Start, cluster: DevCluster, faults: Faults) -> Bridge:
    """A queue whose supervisors carry tasks to that cluster."""
    return Bridge(tmp_path, supervisor, cluster, faults)


def test_jobs_of_all_kinds_are_judged_right(bridge: Bridge) -> None:
    bridge.carry()
    bridge.shell("good", "echo '__DSPY_RESULT__:1'")
    bridge.shell("bad", "exit 9", max_attempts=1)
    bridge.waiting("gone", max_attempts=1)
    bridge.running("gone")
    bridge.cluster.run("scancel", bridge.job_of("gone"))
    bridge.done("good")
    assert bridge.failed("bad")["exit_code"] == 9
    assert "CANCELLED" in str(bridge.failed("gone"))
    assert len(bridge.runs()) == 3


def test_a_job_that_the_cluster_has_forgotten_is_judged_by_what_it_wrote(bridge: Bridge) -> None:
    first = bridge.carry()
    bridge.waiting("good")
    bridge.waiting("bad", max_attempts=1)
    bridge.running("good")
    bridge.running("bad")
    first.kill()
    bridge.release("good", "bad")
    until(lambda: not bridge.cluster.jobs(ended=True), "the controller forgets them", END_S)
    bridge.carry()
    bridge.done("good")
    bridge.done("bad")
    assert len(bridge.runs()) == 2

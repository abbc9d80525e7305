"""One real cluster for the session, mended before each test; without Slurm the tests skip, or fail where CI=true."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Start
from .bridge import Bridge
from .dev_cluster import DevCluster, dev_cluster, missing
from .faults import Faults


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[DevCluster]:
    """The cluster of this session."""
    if absent := missing():
        why = f"Slurm is not installed ({', '.join(absent)}): deploy/slurm/dev-cluster install"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with dev_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: DevCluster) -> DevCluster:
    """The cluster with everything running, and no job on it."""
    session_cluster.do("heal", "--cancel")
    return session_cluster


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Programs that wrap Slurm's and go wrong as they are told."""
    return Faults(tmp_path / "bin")


@pytest.fixture
def bridge(tmp_path: Path, supervisor: Start, cluster: DevCluster, faults: Faults) -> Iterator[Bridge]:
    """A queue whose supervisors carry tasks to the cluster."""
    made = Bridge(tmp_path, supervisor, cluster, faults)
    yield made
    for path in sorted(tmp_path.glob("supervisor.*.log")):
        print(path.name, path.read_text(errors="replace")[-5000:], sep="\n")  # shown where the test failed

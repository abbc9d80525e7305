"""Whether tests/cloud/life.py finds bugs: each of its tests here is run with a supervisor that has one, and must fail.

Exit code 1 where a planted bug is not found. That the same tests pass without is the first half of `make cloud`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

LIFE = Path(__file__).parents[1] / "cloud" / "life.py"
AT_ONCE = 3  #: they mostly wait
#: planted bug: the test that must find it
PLANTS = {
    "orphans": "test_the_machines_of_a_killed_supervisor_are_deleted_by_its_warden",
    "leaves": "test_a_supervisor_that_is_killed_and_started_again_goes_on_with_the_machine",
    "forgets": "test_a_service_that_is_killed_goes_on_with_the_machine_and_what_runs_there",
    "overspends": "test_at_the_spend_cap_machines_go_although_work_waits",
    "hoards": "test_an_idle_machine_is_deleted",
    "trusts": "test_a_machine_that_can_not_be_reached_is_deleted_and_its_task_runs_elsewhere",
    "charges": "test_a_machine_that_dies_gives_its_task_to_another_and_the_task_is_not_charged",
}


class Row(NamedTuple):
    """What came of one planted bug."""

    plant: str
    found: bool
    told: str
    took_s: float


def play(plant: str) -> Row:
    """Run the test that must find this bug."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{LIFE}::{PLANTS[plant]}"]
    ran = subprocess.run(command, env=os.environ | {"PLANT": plant}, capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    why = next((line.removeprefix("E").strip() for line in lines if line.startswith("E  ")), "")
    # A test that could not begin found nothing: that is an error for pytest, and no failure.
    return Row(
        plant, bool(lines) and lines[-1].startswith("1 failed"), why or ran.stderr[-500:], time.monotonic() - begun
    )


def main() -> int:
    """Plant each bug, and report."""
    bad = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for row in pool.map(play, PLANTS):
            bad += not row.found
            said = "found" if row.found else "NOT FOUND"
            print(f"planted bug {row.plant}: {said}: {row.told[:160]} ({row.took_s:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

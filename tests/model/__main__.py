"""``python -m tests.model``: every order of events of the claim protocol, and the planted bugs that must be found.

claim.pml says what is modelled. The whole of it is gone through (no hashing that could miss a state), then once more with
each planted bug. Exit code 1 where the protocol breaks, or a planted bug is not found. Needs spin and a C compiler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("claim.pml")
BUGS = sorted(set(re.findall(r"\bBUG_\w+", MODEL.read_text())))


class Search(NamedTuple):
    """What spin found."""

    error: str  #: the first one, or ""
    states: int
    depth: int
    trail: str  #: the steps that lead to the error


def search(bug: str = "") -> Search:
    """Go through the model. RuntimeError where the search was not completed."""
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        defined = [f"-D{bug}"] if bug else []
        _run("spin", *defined, "-a", str(MODEL), cwd=folder)
        _run("gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", "-o", "pan", "pan.c", cwd=folder)
        said = _run("./pan", "-m1000000", "-w24", cwd=folder)
        states, depth = re.search(r"(\d+) states, stored", said), re.search(r"depth reached (\d+)", said)
        if states is None or depth is None or "max search depth too small" in said or "out of memory" in said:
            raise RuntimeError(f"the search was not completed:\n{said}")
        error = re.search(r"^pan:\d+: (.+?) \(at depth", said, re.MULTILINE)
        trail = _run("spin", *defined, "-t", "-p", "-k", "claim.pml.trail", str(MODEL), cwd=folder) if error else ""
        return Search(words(error[1]) if error else "", int(states[1]), int(depth[1]), trail)


def words(error: str) -> str:
    """Return what an assertion of the model says, in words."""
    if "commits" in error:
        return "completed twice"
    if "pending[0]" in error:
        return "an accepted task under no name, or under two"
    if error.endswith("done)"):
        return "an accepted task never ended"
    return "a commit taken for one's own" if "owner" in error else error


def _run(*command: str, cwd: str) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode and command[0] != "./pan":
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main() -> int:
    """Search, and report."""
    if missing := [program for program in ("spin", "gcc") if shutil.which(program) is None]:
        print(f"{', '.join(missing)}: not installed", file=sys.stderr)
        return 69
    whole = search()
    print(f"the protocol: {whole.states:,} states, {whole.depth} steps deep: {whole.error or 'no violation'}")
    if whole.error:
        print(whole.trail)
    missed = 0
    for bug in BUGS:
        found = search(bug)
        missed += not found.error
        verdict = f"found after {found.states:,} states: {found.error}" if found.error else "MISSED"
        print(f"planted {bug}: {verdict}", flush=True)
    return int(bool(whole.error or missed))


if __name__ == "__main__":
    sys.exit(main())

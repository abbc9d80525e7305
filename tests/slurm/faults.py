"""Programs on PATH that wrap Slurm's: they count each call, and go wrong as they are told.

The folder holds a program for each client command, ``calls`` with a line for each call, and ``plan``: lines of
``COMMAND FAULT ARGUMENT``, each used up by one call of that command (COMMAND may be ``*``). FAULT is one of

=============  ======================================================================================
delay S        wait S seconds, then do it
hang           do nothing, and never end
late           do it, then never end: what it printed stays unsaid
cut N          do it, and print the first N bytes only
lost           do it, then fail as when the answer is lost: the job exists, exit code 1
refuse         do nothing, and fail as when slurmctld is down
=============  ======================================================================================
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")

# A shell, quick to start: the bridge asks less often where a call takes long. Only planned faults cost more.
_PROGRAM = """#!/bin/sh
[ -s {folder}/plan ] && exec {python} -SE {folder}/fault.py {name} {real} "$@"
echo "{name} $*" >> {folder}/calls
exec {real} "$@"
"""
_FAULT = """
import fcntl, os, subprocess, sys, time
FOLDER, (NAME, REAL, *ARGUMENTS) = os.path.dirname(sys.argv[0]), sys.argv[1:]

def told():
    with open(FOLDER + "/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(FOLDER + "/plan") as plan:
            lines = plan.read().splitlines()
        mine = next((line for line in lines if line.split()[0] in (NAME, "*")), None)
        if mine:
            lines.remove(mine)
            with open(FOLDER + "/plan.new", "w") as plan:
                plan.writelines(line + "\\n" for line in lines)
            os.rename(FOLDER + "/plan.new", FOLDER + "/plan")  # at once: it may be killed at any time
        with open(FOLDER + "/calls", "a") as calls:
            calls.write(" ".join([NAME, *ARGUMENTS]) + "\\n")
    _, fault, argument = ((mine or "* none").split() + ["0"])[:3]
    return fault, float(argument)

def hang():
    parent = os.getppid()
    while os.getppid() == parent:  # whoever started it gave up and is gone
        time.sleep(0.05)
    os._exit(1)

fault, number = told()
if fault in ("none", "delay"):
    time.sleep(number)
    os.execv(REAL, [REAL, *ARGUMENTS])
if fault == "refuse":
    sys.exit(NAME + ": error: Unable to contact slurm controller (connect failure)")
if fault == "hang":
    hang()
ran = subprocess.run([REAL, *ARGUMENTS], stdout=subprocess.PIPE)
if fault == "late":
    hang()
if fault == "lost":
    sys.exit(NAME + ": error: Socket timed out on send/recv operation")
if fault != "cut":
    sys.exit("unknown fault " + fault)
sys.stdout.buffer.write(ran.stdout[: int(number)])
sys.exit(ran.returncode)
"""


class Faults:
    """The wrapping programs, in a folder that goes to the front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "plan").touch()
        (folder / "calls").touch()
        (folder / "fault.py").write_text(_FAULT)
        for name in COMMANDS:
            real = shutil.which(name)
            assert real is not None
            text = _PROGRAM.format(python=sys.executable, folder=str(folder), name=name, real=real)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with these programs before all others."""
        return f"{self.folder}:{os.environ['PATH']}"

    def plan(self, *lines: str) -> None:
        """Let the next calls go wrong: one line for one call, as ``sbatch cut 2``."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with (self.folder / "plan").open("a") as plan:
                plan.writelines(line + "\n" for line in lines)

    def left(self) -> int:
        """Return how many planned faults have not happened yet."""
        return len((self.folder / "plan").read_text().splitlines())

    def calls(self) -> list[str]:
        """Return the command lines so far."""
        return (self.folder / "calls").read_text().splitlines()

    def counts(self) -> Counter[str]:
        """Return how often each command was called."""
        return Counter(line.split()[0] for line in self.calls())

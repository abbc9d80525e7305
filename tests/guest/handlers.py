"""What tasks in the guest do; the file is copied there."""

import os
import time
from pathlib import Path
from typing import Any

import dspy_supervisor


def work(task: dspy_supervisor.Task) -> dict[str, Any]:
    """Do what the payload names, and tell where it was done."""
    what = task.payload
    if what.get("hog"):
        block = bytearray(what["hog"] << 20)
        block[::4096] = b"x" * len(block[::4096])
    if what.get("forks"):
        return _fork(what["forks"])
    if what.get("until"):
        Path(what["until"] + ".begun").write_text(str(os.getpid()))
        while not Path(what["until"]).exists():
            time.sleep(0.05)
    if path := what.get("read"):
        try:
            return {"read": Path(path).read_text()}
        except OSError as error:
            return {"refused": error.strerror, "processes": [one for one in os.listdir("/proc") if one.isdecimal()]}
    group = Path("/proc/self/cgroup").read_text().strip()
    return {"pid": os.getpid(), "group": group, "version": dspy_supervisor.__version__}


def _fork(count: int) -> dict[str, Any]:
    forked = 0
    try:
        while forked < count:
            if os.fork() == 0:
                time.sleep(600)
                os._exit(0)
            forked += 1
    except OSError as error:
        return {"forked": forked, "why": error.strerror}
    return {"forked": forked, "why": None}

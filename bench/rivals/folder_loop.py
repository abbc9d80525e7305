"""An afternoon's work: a folder queue in plain Python, woken by inotify-simple or by pyinotify.

One worker process renames pending/NAME to claimed/, parses it with orjson, calls the handler and writes done/NAME by
temporary file and rename. With sync, files and the pending folder are fsynced. No recovery, no limits, no checks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
from inotify_simple import INotify, flags

from bench.handlers import stamp
from bench.player import PAYLOAD, Call, Player, wait_until


def write(folder: Path, name: str, content: bytes, sync: bool) -> None:
    """Write folder/name as a whole."""
    temporary = folder / f".{name}.tmp"
    with temporary.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, folder / name)  # what one would write for speed


def sync_folder(folder: Path) -> None:
    """Make the names in folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InotifySimple(Player):
    """The loop, woken by inotify-simple."""

    wake = "inotify-simple"

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.pending, self.done = folder / "pending", folder / "done"
        for name in ("pending", "claimed", "done"):
            (folder / name).mkdir()
        self.count = self.filled = 0
        self.results = INotify()
        self.results.add_watch(self.done, flags.MOVED_TO)

    def start(self, workers: int) -> None:
        for worker in range(workers):
            self.run(
                sys.executable, "-m", __name__, self.folder, self.wake, str(int(self.sync)), str(worker), str(workers)
            )

    def put(self, sync: bool) -> str:
        self.count += 1
        name = f"t{self.count:08d}.json"
        task = {"id": name[:-5], "class": "cpu_short", "payload": PAYLOAD}
        write(self.pending, name, orjson.dumps(task), sync)
        if sync:
            sync_folder(self.pending)
        return name

    def call(self) -> Call:
        begun = time.monotonic_ns()
        name = self.put(self.sync)
        put = time.monotonic_ns()
        while all(event.name != name for event in self.results.read()):
            pass
        start = orjson.loads((self.done / name).read_bytes())["result"]
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.filled = tasks
        for _ in range(tasks):
            self.put(False)
        os.sync()

    def finish(self) -> list[int]:
        def ready() -> bool:
            return sum(not name.startswith(".") for name in os.listdir(self.done)) >= self.filled

        time.sleep(0.2)  # a listing in the middle would cost the worker more than this costs anyone
        wait_until(ready, "the folder loop did not finish")
        return [orjson.loads(path.read_bytes())["result"] for path in self.done.glob("t*.json")]


class Pyinotify(InotifySimple):
    """The same, woken by pyinotify."""

    wake = "pyinotify"


def run_one(folder: Path, name: str, sync: bool) -> None:
    """Claim, run and finish one task, unless another worker has it."""
    claimed = folder / "claimed" / name
    try:
        os.rename(folder / "pending" / name, claimed)
    except FileNotFoundError:
        return
    task = orjson.loads(claimed.read_bytes())
    task["result"] = stamp(task["payload"])
    write(folder / "done", name, orjson.dumps(task), sync)


def watch_simple(pending: Path) -> Callable[[], list[str]]:
    """Return a function that waits for names, by inotify-simple."""
    watcher = INotify()
    watcher.add_watch(pending, flags.MOVED_TO)
    return lambda: [event.name for event in watcher.read()]


def watch_pyinotify(pending: Path) -> Callable[[], list[str]]:
    """Return a function that waits for names, by pyinotify."""
    import pyinotify

    names: list[str] = []
    manager = pyinotify.WatchManager()
    manager.add_watch(str(pending), pyinotify.IN_MOVED_TO)
    notifier = pyinotify.Notifier(manager, lambda event: names.append(event.name))

    def wait() -> list[str]:
        names.clear()
        if notifier.check_events(None):
            notifier.read_events()
            notifier.process_events()
        return names

    return wait


def work(folder: Path, wake: str, sync: bool, worker: int, workers: int) -> None:
    """The life of one worker: what is there, its own share first, then what comes."""
    wait = (watch_pyinotify if wake == "pyinotify" else watch_simple)(folder / "pending")
    while names := sorted(name for name in os.listdir(folder / "pending") if name[0] != "."):
        for name in names[worker::workers] or names:  # each its share, then what the others left
            run_one(folder, name, sync)
    while True:
        for name in wait():
            run_one(folder, name, sync)


if __name__ == "__main__":
    place, how, synced, *numbers = sys.argv[1:]
    work(Path(place), how, synced == "1", *map(int, numbers))

"""Brings a queue of an earlier format up to date, before it is served.

``format`` in queue.json is that of all that lies in the folder: names, folders, envelopes, records, and what else a
supervisor keeps there. `STEPS` has for each format that was released the step to the next. A step may be killed anywhere and is
begun anew then, so it does nothing twice that was done already. While it works the identity says ``"format": "1>2"``, which
every program refuses, old and new ones, but the one that brings it to its end.

Three things are of every format, and no step touches them: ``format`` and ``queue_id`` of queue.json, the heartbeats in
nodes/, and that a task is put by a rename into pending/.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .config import Config
from .errors import AlreadyRunning
from .layout import FORMAT, IDENTITY, Layout, list_folder, read_json, replace_json
from .log import log
from .nodes import Observer, Presence

Step = Callable[[Layout], None]
STEPS: Mapping[int, Step] = {}  #: format to what makes the next one of it


def bring_up_to_date(config: Config, steps: Mapping[int, Step] = STEPS, newest: int = FORMAT) -> int:
    """Bring the configured queue to the newest format; return how many steps that took.

    A queue of an unknown format is left as it is, for `Layout.open` to refuse. Raises AlreadyRunning where a supervisor
    serves it, or may: one of another host whose death nothing proves.
    """
    taken = 0
    while (found := _format(config.queue_dir)) is not None:
        at = int(str(found).partition(">")[0]) if isinstance(found, int | str) and _is_known(found) else newest
        if at >= newest or at not in steps:
            return taken
        _take(config, found, at, steps[at])
        taken += 1
    return taken


def _take(config: Config, found: object, at: int, step: Step) -> None:
    """Take one step, alone in the queue."""
    with Layout.open(config.queue_dir, create=True, insecure=config.insecure, accept=found) as layout:
        lock = config.runtime_dir / f"{layout.queue_id}.{config.instance}.lock"
        with Presence(layout, lock) as presence:
            observer = Observer(presence.node, layout, config.runtime_dir, config.take_after_s, config.heartbeat_s)
            shown = {
                file.removesuffix(".hb") for file in list_folder(layout.nodes)
            }  # a supervisor that lives has its file
            if living := shown & observer.others() - observer.dead(time.monotonic(), beating=True):
                raise AlreadyRunning(
                    f"{layout.path} has format {at} and is to be brought to format {at + 1}, but nothing proves that "
                    f"{', '.join(sorted(living))} of nodes/ ended: stop it where it runs; remove its file if it is long gone"
                )
            log.info("migrating", queue=str(layout.path), before=at, to=at + 1)
            if found == at:
                _write(layout, at, f"{at}>{at + 1}")
            step(layout)
            os.fsync(layout.root)
            _write(layout, f"{at}>{at + 1}", at + 1)
            log.info("migrated", queue=str(layout.path), before=at, to=at + 1)


def _format(folder: Path) -> object:
    """Return the format that a queue says it has, or None where there is no queue that says anything."""
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return (read_json(root, IDENTITY) or {}).get("format")
    finally:
        os.close(root)


def _is_known(found: int | str) -> bool:
    """Whether it is a number, or the way from one to the next."""
    at, arrow, to = str(found).partition(">")
    return at.isdecimal() and not isinstance(found, bool) and (not arrow or (to.isdecimal() and int(to) == int(at) + 1))


def _write(layout: Layout, before: object, now: object) -> None:
    identity = read_json(layout.root, IDENTITY) or {}
    if identity.get("format") == before:
        replace_json(layout.root, IDENTITY, {**identity, "format": now}, durable=True)

"""The two files that dashboards and scripts of the earlier system read. Both can be switched off.

``runner_metrics.json`` in the queue's folder: ``{"gpu", "cpu_short", "cpu_long", "processed", "ts"}``, integers: waiting and
running tasks by class, tasks ended, epoch seconds. ``agent_action.jsonl`` beside the folder: a line for each task that ended,
``{"topic": "agent.action", "ts": ..., "event": {"name": "env_task_done", "id": ...}}``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import orjson

from .layout import Layout, replace_json
from .log import log
from .task import TaskName

_PERIOD_S = 1.0


class CompatFiles:
    """Writes them for one queue."""

    def __init__(self, layout: Layout, *, metrics: bool, actions: bool) -> None:
        self._layout = layout
        self.choose(metrics=metrics, actions=actions)
        self._processed = 0
        self.published = 0  #: lines of the action log
        self._shown: dict[str, int] = {}
        self._shown_at = float("-inf")  # monotonic seconds
        self._log: int | None = None

    def choose(self, *, metrics: bool, actions: bool) -> None:
        """Write these from now on."""
        self._metrics, self._actions = metrics, actions

    def ended(self, file: str) -> None:
        """Say that a task ended, well or not."""
        self._processed += 1
        if not self._actions:
            return
        name = TaskName.parse(file)
        event = {"name": "env_task_done", "id": name.id if name else file}
        line = orjson.dumps({"topic": "agent.action", "ts": int(time.time()), "event": event}) + b"\n"
        try:
            if self._log is None:
                # O_NONBLOCK: the folder above may be /tmp, and a stranger's FIFO there must not stop the supervisor.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                self._log = os.open(self._layout.path.parent / "agent_action.jsonl", flags, 0o640)
            os.write(self._log, line)
            self.published += 1
        except OSError as error:
            log.warning("action_log_off", error=str(error))
            self._actions = False

    def show(self, depths: Mapping[str, int]) -> None:
        """Write the metrics, where they changed, at most once a second."""
        now = time.monotonic()
        if not self._metrics or now - self._shown_at < _PERIOD_S:
            return
        metrics = {name: depths.get(name, 0) for name in ("gpu", "cpu_short", "cpu_long")}
        metrics["processed"] = self._processed
        if metrics == self._shown:
            return
        with contextlib.suppress(OSError):  # a full disk; the next one tells more anyway
            replace_json(self._layout.root, "runner_metrics.json", metrics | {"ts": int(time.time())}, durable=False)
            self._shown, self._shown_at = metrics, now

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            os.close(self._log)
            self._log = None

"""The files that dashboards, scripts and clients of the earlier system read. Each kind can be switched off.

``runner_metrics.json`` in the queue's folder: ``{"gpu", "cpu_short", "cpu_long", "processed", "ts"}``, integers: waiting and
running tasks by class, tasks ended, epoch seconds. ``agent_action.jsonl`` beside the folder: a line for each task that ended,
``{"topic": "agent.action", "ts": ..., "event": {"name": "env_task_done", "id": ...}}``. ``done/ENV_ID_ACTION_result.json``, and
``done/EPISODE_ID_result.json`` for a whole episode, beside the record of an environment's task: its result, or ``{"success":
false, "error": ...}``; who reads it removes it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

import orjson
from dspy_fastpath.claim import write_new
from dspy_fastpath.ids import uuid7

from .environments import is_result, result_file
from .layout import Layout, read_json, replace_json
from .log import log
from .lookup import read_record
from .task import TaskName

_PERIOD_S = 1.0


class CompatFiles:
    """Writes them for one queue."""

    def __init__(self, layout: Layout, *, metrics: bool, actions: bool, results: bool = False) -> None:
        self._layout = layout
        self.choose(metrics=metrics, actions=actions, results=results)
        self._processed = 0
        self.published = 0  #: lines of the action log
        self._shown: dict[str, int] = {}
        self._shown_at = float("-inf")  # monotonic seconds
        self._log: int | None = None

    def choose(self, *, metrics: bool, actions: bool, results: bool = False) -> None:
        """Write these from now on."""
        self._metrics, self._actions, self._results = metrics, actions, results

    def ended(self, file: str) -> None:
        """Say that a task ended, well or not."""
        self._processed += 1
        name = TaskName.parse(file)
        if self._results and name is not None:
            try:
                self._write_result(name.id)
            except OSError as error:
                log.warning("result_file_missing", task=name.id, error=str(error))
        if not self._actions:
            return
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

    def _write_result(self, task_id: str) -> None:
        """Write the result of an environment's task where an older client looks for it."""
        record: dict[str, Any] = read_record(self._layout, task_id) or {}
        payload: Any = record.get("payload")
        file = result_file(payload) if isinstance(payload, dict) else None
        if file is None:
            return
        found, done = record.get("runner_result"), self._layout.done
        if record.get("status") != "done" or not isinstance(found, dict):
            error = record.get("error") or {}
            facts = {key: payload[key] for key in ("env_id", "action", "episode_id") if key in payload}
            found = {"success": False, "error": error.get("message", ""), "cause": error.get("cause"), **facts}
        if (there := read_json(done, file, 1 << 30)) is not None and not is_result(file, there):
            log.warning("result_file_missing", task=task_id, error=f"{file} is the record of a task")
            return
        temporary = f".{uuid7()}.tmp"
        write_new(self._layout.results, temporary.encode(), orjson.dumps(found), False)
        os.rename(temporary, file, src_dir_fd=self._layout.results, dst_dir_fd=done)

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

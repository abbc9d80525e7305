"""The mixed load: every way to put a task, every way a task can end, at a steady rate; and the account of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dspy_supervisor import Queue
from dspy_supervisor.errors import SupervisorError

#: what is put, and how often of a hundred
KINDS = {
    "dropped": 22, "posted": 18, "client": 16, "command": 6, "delayed": 6, "retried": 8, "later": 4, "failing": 4,
    "dying": 2, "keyed": 8, "cancelled": 4, "junk": 2,
}  # fmt: skip


class Load:
    """Puts tasks, and knows what must become of them."""

    def __init__(self, queue: Path, port: int, seed: int) -> None:
        self.queue, self.port = queue, port
        self.dice = random.Random(seed)
        self.client = Queue(str(queue))
        self.accepted: dict[str, str] = {}  #: id -> kind, until it has ended
        self.put: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._number = 0

    def one(self) -> None:
        """Put one task of a random kind; what is not accepted, is counted."""
        self._number += 1
        kind = self.dice.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            if task_id := getattr(self, f"_{kind}")(f"{kind}-{self._number}"):
                self.accepted[task_id] = kind
                self.put[kind] += 1
        except (OSError, http.client.HTTPException, SupervisorError) as error:  # the gateway was just killed
            self.refused[f"{kind}: {type(error).__name__}"] += 1

    def account(self) -> None:
        """Note what has ended since the last time. To be called more often than records are cleared away."""
        now: set[str] = set()
        for state in ("done", "failed"):
            for entry in os.scandir(self.queue / state):
                if not entry.name.startswith(".") and entry.name.endswith(".json"):
                    now.add(entry.name.removesuffix(".json"))
                    if entry.name.removesuffix(".json") not in self._seen:
                        self.ended[state] += 1
        for task_id in now - self._seen:
            self.accepted.pop(task_id, None)
        self._seen = now  # only these: an hour's ids are no leak of the rig's own

    def close(self) -> None:
        """Put no more."""
        self.client.close()

    def _drop(self, task_id: str, payload: Any, **envelope: Any) -> str:
        temporary = self.queue / "pending" / f".{task_id}.tmp"
        temporary.write_bytes(json.dumps({"id": task_id, "payload": payload, **envelope}).encode())
        temporary.rename(temporary.with_name(f"{task_id}.json"))
        return task_id

    def _dropped(self, task_id: str) -> str:
        return self._drop(task_id, {"do": "echo", "text": "x" * self.dice.randint(0, 5000)})

    def _posted(self, task_id: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/tasks", json.dumps({"id": task_id, "payload": {"do": "echo"}}))
            answer = connection.getresponse()
            answer.read()
            if answer.status != 201:
                raise OSError(f"status {answer.status}")
        return task_id

    def _client(self, task_id: str) -> str:
        return self.client.submit({"do": "echo"}, id=task_id, priority=self.dice.randint(-9, 9))

    def _command(self, task_id: str) -> str:
        return self._drop(task_id, {"argv": ["sh", "-c", "echo one; echo two >&2"]}, kind="command")

    def _delayed(self, task_id: str) -> str:
        return self.client.submit({"do": "echo"}, id=task_id, delay=self.dice.uniform(0.1, 20))

    def _retried(self, task_id: str) -> str:
        return self._drop(task_id, {"do": "raise_until", "until": 2})

    def _later(self, task_id: str) -> str:
        return self._drop(task_id, {"do": "later", "delay_s": self.dice.uniform(0.1, 10)})

    def _failing(self, task_id: str) -> str:
        return self._drop(task_id, {"do": "raise"}, max_attempts=2)

    def _dying(self, task_id: str) -> str:
        return self._drop(task_id, {"do": "exit"}, max_attempts=1)

    def _keyed(self, task_id: str) -> str:
        action = self.dice.choice(["reset", "step", "step", "step", "close"])
        payload = {"env_id": f"env{self.dice.randrange(6)}", "env_name": "counting", "action": action}
        return self._drop(task_id, payload, kind="environment")

    def _cancelled(self, task_id: str) -> str:
        self.client.submit({"do": "echo"}, id=task_id, delay=3600)
        self.accepted[task_id] = "cancelled"
        self.client.cancel(task_id)
        return task_id

    def _junk(self, task_id: str) -> str:
        path = self.queue / "pending" / f"{task_id}.json"
        temporary = path.with_name(f".{task_id}.tmp")
        temporary.write_bytes(b'{"id": "no end')
        os.utime(temporary, (time.time() - 60,) * 2)
        temporary.rename(path)
        return ""  # quarantined, not accepted

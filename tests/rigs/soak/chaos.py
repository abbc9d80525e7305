"""Who is killed, and when: workers all the time, services and the supervisor itself only in the first half.

What leaks shows in a process that lives long, so that the second half leaves those alone.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import psutil

from ...conftest import Supervised
from .watch import role


class Chaos:
    """Kills at random moments."""

    def __init__(self, seed: int, minutes: float, restart: Callable[[], Supervised]) -> None:
        self._dice = random.Random(seed)
        self._begin, self._half_s = time.monotonic(), minutes * 30
        self._restart = restart
        self.kills: Counter[str] = Counter()
        self._next = {"worker": 10.0, "service": 0.2 * self._half_s, "supervisor": 0.4 * self._half_s, "reload": 30.0}

    def step(self, supervisor: Supervised) -> Supervised:
        """Do what is due, and return who serves from now on."""
        now = time.monotonic() - self._begin
        due = {what for what, at in self._next.items() if now >= at}
        for what in due:
            mean_s = {"worker": 20.0, "service": 0.2 * self._half_s, "supervisor": 0.5 * self._half_s, "reload": 60.0}
            self._next[what] = now + self._dice.uniform(0.5, 1.5) * mean_s[what]
        first_half = now < self._half_s
        if "supervisor" in due and first_half:
            self.kills["supervisor"] += 1
            supervisor.kill()
            return self._restart()
        if "reload" in due:
            self.kills["reload"] += 1
            supervisor.signal(signal.SIGHUP)
        for what in due & ({"worker", "service"} if first_half else {"worker"}):
            known = [(one, role(one)) for one in psutil.Process(supervisor.pid).children()]
            some = [(one, name) for one, name in known if name and ("worker" in name) == (what == "worker")]
            if some:
                one, name = self._dice.choice(some)
                self.kills[name] += 1
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
        return supervisor

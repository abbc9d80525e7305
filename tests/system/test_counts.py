"""What the shared page counts, beside what lies in the folders."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

from dspy_fastpath.counters import Counter, Gauge, Global, Histogram, Page
from dspy_supervisor import history

from ..conftest import Supervised, until
from .rig import Rig, workers

CPU_SHORT = 0


def page_of(supervisor: Supervised) -> Page:
    return Page.attach(supervisor.socket.with_suffix(".page"))


def records(rig: Rig, state: str) -> int:
    return len(list((rig.queue / state).glob("*.json")))


def test_the_sums_are_what_lies_in_done_and_failed_whoever_dies(rig: Rig) -> None:
    chance = random.Random(3)
    settings = {"breaker_starts": 1000, "max_deliveries": 1000, "retry_cap_s": 0.05, "durability": "none"}
    settings |= {"class.cpu_short.max_crashes": 1000, "class.cpu_short.max_attempts": 2}
    supervisor = rig.start(settings=settings)
    with page_of(supervisor) as page:
        for number in range(800):
            rig.drop(f"t{number:03d}", {"do": "raise"} if number % 16 == 3 else {"n": number})
            if number % 20 == 0 and (pids := workers(supervisor)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(pids), signal.SIGKILL)
        rig.drain()

        def sums() -> tuple[int, ...]:
            names = (Counter.DONE, Counter.FAILED, Counter.SUBMITTED)
            return tuple(page.counter(CPU_SHORT, name) for name in names)

        wanted = (records(rig, "done"), records(rig, "failed"), 800)
        until(lambda: sums() == wanted, f"the sums {sums()} are {wanted}")
        assert records(rig, "failed") >= 50  # those that were killed twice may have failed too
        assert sum(page.failures(CPU_SHORT)) == records(rig, "failed")
        assert page.counter(CPU_SHORT, Counter.RESTARTS) > 0


def test_a_task_that_is_cancelled_while_it_waits_is_counted(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    with page_of(supervisor) as page:
        gate = rig.gate("first")
        gate.wait()
        rig.drop("second")
        until(lambda: supervisor.status()["classes"]["cpu_short"]["pending"] == 1, "it waits")
        supervisor.ask("cancel", id="second")
        assert page.counter(CPU_SHORT, Counter.FAILED) == 1
        gate.open()


def test_the_page_tells_since_when_the_oldest_waits_and_how_long_tasks_took_in_all(rig: Rig) -> None:
    began = time.time()
    supervisor = rig.start(workers=1, settings={"sweep_s": 0.1, "durability": "task"})
    with page_of(supervisor) as page:
        gate = rig.gate("first")
        gate.wait()
        until(lambda: page.gauge(CPU_SHORT, Gauge.OLDEST) == 0, "the page knows that it waits no more")
        rig.drop("second")
        until(lambda: page.gauge(CPU_SHORT, Gauge.OLDEST), "one waits")
        second_at = page.gauge(CPU_SHORT, Gauge.OLDEST) / 1e9
        assert began < second_at <= time.time()
        rig.drop("urgent", priority=9)
        until(lambda: page.get_global(Global.TOTAL_PENDING) == 2, "both wait")
        assert page.gauge(CPU_SHORT, Gauge.OLDEST) == int(second_at * 1e9)
        gate.open()
        rig.drain(3)
        until(lambda: page.gauge(CPU_SHORT, Gauge.OLDEST) == 0, "nothing waits")
        until(lambda: sum(page.histogram(CPU_SHORT, Histogram.TOTAL)[0]) == 3, "all have ended")
        total_s = page.histogram(CPU_SHORT, Histogram.TOTAL)[1]
        run_s = page.histogram(CPU_SHORT, Histogram.RUN)[1]
        assert total_s > run_s > 0
        assert page.get_global(Global.FSYNCS) > 0
    assert supervisor.stop() == 0
    kept = history.summary(rig.queue, 0.0)
    assert kept is not None and kept["classes"]["cpu_short"]["done"] == 3  # and the next one has it to look back on

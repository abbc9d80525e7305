"""The service that chooses limits: it builds a window of each class from the shared page, and runs the policy's step on it.

It writes no limit itself: it tells the supervisor, with the reason in words and figures, and the supervisor decides. When
this process hangs or is gone, the last limits hold.

The step runs as plain Python from the first moment, and compiled as soon as Numba is done; both say the same.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dspy_fastpath.counters import Gauge, Global, GpuValue, HostValue, Page

from ..config import ClassConfig, Config
from ..environment import numba_cache_folder, set_variable
from ..gpu import STALE_PERIODS, Gpu, Sight, read
from ..host import Host
from ..limit import Input, Policy, Reason, Step, compile_step, digest, new_state, parameters, reason_text, step
from ..log import log
from ..parts import ServicePost
from ..task import WorkloadClass
from .windows import Meter, Record

_GLANCES = 8  # looks at what runs, a window
_TELL_S = 5.0  # after which the supervisor is told again what holds, so that it knows we are there
_GIB = 2**30


def run(post: ServicePost) -> int:
    """Steer the classes until told to stop."""
    interval_s = post.config.controller_interval_s
    compiler = Compiler(numba_cache_folder(post.config.runtime_dir))
    with Page.attach(post.page, writable=True) as page:
        steerers = [
            Steerer(page, klass, post.config.classes[name], post.config)
            for klass, name in enumerate(page.classes)
            if name != WorkloadClass.GPU_SLURM and post.config.classes[name].workers
        ]
        record = Record(post.config.record_windows) if post.config.record_windows else None
        host = Host()
        due = time.monotonic() + interval_s
        told: Mapping[str, object] = {}
        while True:
            for steerer in steerers:
                steerer.meter.glance()
            pause_s = min(interval_s / _GLANCES, max(0.0, due - time.monotonic()))
            if any(message["op"] == "stop" for message in post.link.receive(pause_s)):
                return 0
            post.link.alive()
            now = time.monotonic()
            if now < due:
                continue
            due = max(due + interval_s, now)
            sight = read(page)
            pressure = fresh_host(page, host, now, interval_s)
            for steerer in steerers:
                message = steerer.steer(compiler.step, now, sight, pressure, record)
                if message is not None:
                    post.link.send(message)
            page.add_global(Global.CONTROLLER_STEPS)
            state = {"policy": post.config.policy, "step": compiler.state, "step_problem": compiler.problem}
            if state != told:
                post.link.send({"op": "state", **state})
                told = state


class Compiler:
    """Compiles the step beside the work: Numba takes seconds where it has not cached it."""

    def __init__(self, cache: Path | None) -> None:
        self.step: Step = step
        self.state = "plain"
        self.problem: str | None = None  #: why the step stays plain, or is compiled at every start
        self._cache = cache
        threading.Thread(target=self._compile, name="compile", daemon=True).start()

    def _compile(self) -> None:
        import numpy as np

        if self._cache is not None:
            set_variable("NUMBA_CACHE_DIR", str(self._cache / digest()))  # read when Numba is imported
        else:
            self.problem = (
                "no folder to cache compiled code in: neither $CACHE_DIRECTORY nor $XDG_CACHE_HOME is writable"
            )
        try:
            compiled = compile_step(cache=self._cache is not None)
        except Exception as error:  # whatever Numba and its LLVM raise: the plain step is as good, and slower
            self.problem = f"the step stays plain: {type(error).__name__}: {error}"[:500]
            log.warning("step_not_compiled", error=self.problem)
            return

        def call(
            policy: int, window: Sequence[float], state: list[float], params: Sequence[float]
        ) -> tuple[float, int]:
            vector = np.array(state)
            limit, reason = compiled(policy, np.array(window), vector, np.array(params))
            state[:] = vector.tolist()
            return limit, reason

        self.step, self.state = call, "compiled"


class Steerer:
    """One class: its windows, what its policy remembers, and what the supervisor was told."""

    def __init__(self, page: Page, klass: int, settings: ClassConfig, config: Config) -> None:
        self.name = settings.name
        self.meter = Meter(page, klass, time.monotonic())
        self._page, self._klass, self._config = page, klass, config
        self._policy = Policy[config.policy.upper()]
        highest = min(settings.workers, settings.limit_max or settings.workers)
        self._bounds = float(max(1, min(settings.limit_min, highest))), float(highest)
        stale_s = STALE_PERIODS * max(config.telemetry_interval_s, config.controller_interval_s)
        self._params = parameters(*self._bounds, stale_s=stale_s)
        self._state = new_state()
        self._asked: tuple[float, float, int] | None = None  # the limit that held, the one asked for, and why
        self._told: tuple[float, int] | None = None
        self._told_at = -math.inf

    def steer(
        self, chosen: Step, now: float, sight: Sight, host: Sequence[float] | None, record: Record | None
    ) -> dict[str, object] | None:
        """Take the window that ends now to the next limit; return what the supervisor is to be told, or None."""
        gpus = [gpu for gpu in sight.gpus if gpu.usable] if self._uses_gpus else []
        window = self.meter.window(now, host, gpus, sight.age_s(now))
        held = window[Input.LIMIT]
        if self._asked is not None and self._asked[0] != self._asked[1] == held:  # the supervisor did as we said
            self._page.count_reason(self._klass, self._asked[2])
            self._page.add_global(Global.LIMIT_CHANGES)
        limit, reason = chosen(self._policy, window, self._state, self._params)
        reason = int(reason)
        self._asked = held, limit, reason
        if record is not None:
            self._keep(record, window, limit, reason)
        if (limit, reason) == self._told and limit == held and now - self._told_at < _TELL_S:
            return None
        self._told, self._told_at = (limit, reason), now
        self._page.set(self._klass, Gauge.LIMIT_REASON, reason)
        return {
            "op": "limit",
            "class": self.name,
            "limit": int(limit),
            "reason": Reason(reason).name.lower(),
            "why": why(reason, window, gpus),
        }

    @property
    def _uses_gpus(self) -> bool:
        return self.name == WorkloadClass.GPU and self._config.enable_gpu

    def _keep(self, record: Record, window: Sequence[float], limit: float, reason: int) -> None:
        try:
            record.write(time.time(), self.name, self._bounds, window, limit, Reason(reason).name.lower())
        except OSError as error:
            log.warning("window_not_recorded", error=str(error))


def fresh_host(page: Page, host: Host, now: float, interval_s: float) -> Sequence[float] | None:
    """Return how the host is, by HostValue: as telemetry left it in the page, or looked at here where there is none."""
    view = page.host_read()
    if view is not None and now - view.at < STALE_PERIODS * interval_s:
        return view.values
    sample = host.sample(now)
    return [sample.get(value, math.nan) for value in HostValue]


def why(reason: int, window: Sequence[float], gpus: Sequence[Gpu] = ()) -> str:
    """Return a reason with the figures that speak for it, for people."""
    figures = _FIGURES.get(Reason(reason))
    told = figures(window, gpus) if figures else ""
    return told if told and "nan" not in told else reason_text(reason)


def _memory(window: Sequence[float], _: Sequence[Gpu]) -> str:
    total = window[Input.VRAM_TOTAL] / _GIB
    return f"VRAM {total - window[Input.VRAM_FREE] / _GIB:.1f} of {total:.1f} GiB"


def _heat(_: Sequence[float], gpus: Sequence[Gpu]) -> str:
    hottest = max((gpu[GpuValue.TEMPERATURE_C] for gpu in gpus), default=math.nan)
    return f"a GPU throttles at {hottest:.0f} degrees"


_FIGURES: Mapping[Reason, Callable[[Sequence[float], Sequence[Gpu]], str]] = {
    Reason.VRAM: _memory,
    Reason.CUDA_OOM: lambda window, gpus: f"out of memory on a GPU, {_memory(window, gpus)}",
    Reason.THERMAL: _heat,
    Reason.POWER: lambda window, _: f"a GPU's power is braked, it draws {window[Input.POWER]:.0%} of its cap",
    Reason.STALE: lambda window, _: f"GPU telemetry is {window[Input.TELEMETRY_AGE_S]:.0f} s old",
    Reason.MEMORY: lambda window, _: (
        f"{window[Input.MEM_FREE_SHARE]:.0%} of the host's memory is free, tasks wait for memory in "
        f"{window[Input.PSI_MEM]:.0%} of the time"
    ),
    Reason.CPU: lambda window, _: f"tasks wait for a CPU in {window[Input.PSI_CPU]:.0%} of the time",
    Reason.BUSY: lambda window, _: f"the GPU is busy in {window[Input.GPU_BUSY]:.0%} of the time",
    Reason.IDLE: lambda window, _: f"the GPU is busy in {window[Input.GPU_BUSY]:.0%} of the time",
    Reason.ERRORS: lambda window, _: f"{window[Input.ERRORS]:.0f} attempts failed, {window[Input.DONE]:.0f} ended well",
    Reason.NOT_BINDING: lambda window, _: f"{window[Input.INFLIGHT]:.1f} tasks run, {window[Input.BACKLOG]:.0f} wait",
    Reason.BACKLOG: lambda window, _: f"{window[Input.BACKLOG]:.0f} tasks wait",
    Reason.LATENCY: lambda window, _: (
        f"{reason_text(Reason.LATENCY)}: wait {window[Input.WAIT_S]:.2f} s, run {window[Input.RUN_S]:.2f} s"
    ),
}

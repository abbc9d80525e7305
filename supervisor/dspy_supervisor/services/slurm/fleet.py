"""The pilots of a bridge: after each look at the cluster what is missing is submitted, and what is not needed cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dspy_fastpath.counters import Gauge, Page

from ...config import Config
from ...errors import ConfigError
from ...layout import Layout
from ...log import log
from .commands import SUBMIT_S, Accepted, Answer, Refused, Slurm, read_submission
from .listing import JobRow
from .pilots import CLASS, PilotJob, Pilots
from .plan import JobRefused


class Fleet:
    """The allocations of one bridge's queue."""

    def __init__(
        self, config: Config, layout: Layout, page: Page, slurm: Slurm, *, end: Callable[[Iterable[str]], None]
    ) -> None:
        self.wanted = config.slurm_pilots_max > 0
        self.state: dict[str, Any] = {}  #: for `status`
        self.problem = ""  #: why no allocation can be described
        self._pilots = Pilots(config, layout)
        self._page, self._slurm, self._end = page, slurm, end
        self._klass = tuple(config.classes).index(CLASS)
        self._waited = False

    @property
    def pending(self) -> int:
        """Tasks that wait for an allocation."""
        return self._page.gauge(self._klass, Gauge.PENDING)

    def has_news(self) -> bool:
        """Whether tasks began to wait since this was asked last: a reason to look soon."""
        before, self._waited = self._waited, self.wanted and self.pending > 0
        return self._waited and not before

    def looked(self, every: Sequence[JobRow]) -> None:
        """A look at the cluster succeeded: decide, submit, cancel."""
        if not self.wanted:
            return
        ours = [row for row in every if row.name.startswith(self._pilots.prefix)]
        try:
            step = self._pilots.step(time.monotonic(), ours, self.pending)
        except (ConfigError, JobRefused, OSError) as error:
            if self.problem != str(error):
                log.error("pilots_trouble", reason=str(error))
            self.problem = str(error)
            return
        if step.state.get("stopped") and not self.state.get("stopped"):
            log.error("pilots_stopped", reason=step.state["reason"])
        self.problem, self.state = "", step.state
        for job in step.submit:
            self._submit(job)
        if step.cancel:
            log.info("pilots_cancelled", jobs=step.cancel, reason=step.state["reason"])
            self._end(step.cancel)

    def _submit(self, job: PilotJob) -> None:
        def answered(answer: Answer) -> None:
            said = read_submission(answer)
            if isinstance(said, Accepted):
                log.info("pilot_submitted", job=said.job_id, name=job.name)
                self._pilots.submitted(job.name, said.job_id, "")
            elif isinstance(said, Refused):
                log.warning("pilot_refused", reason=said.reason)
                self._pilots.submitted(job.name, None, said.reason)
            else:  # the next listings tell
                log.warning("slurm_unknown", name=job.name, reason=said.reason)
                self._pilots.submitted(job.name, None, "")

        argv = ("sbatch", "--parsable", f"--job-name={job.name}", "--export=ALL", *job.options)
        self._slurm.start(argv, answered, stdin=job.script, timeout_s=SUBMIT_S)

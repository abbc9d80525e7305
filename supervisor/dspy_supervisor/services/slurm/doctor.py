"""Whether this host can carry tasks to its cluster: each question with its answer, and what to do about a bad one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from ...config import Config
from ...errors import ConfigError
from ...filesystem import existing, filesystem
from ...jobbook import JobFacts
from ...trials import Finding, Level
from .commands import CONFIG, ClusterConfig, Slurm, parse_config
from .listing import SQUEUE, Incomplete, parse_squeue
from .options import merged, of_class, of_config
from .pilots import CLASS
from .plan import JobPlan, JobRefused, with_defaults
from .templates import fill, names, render

PROGRAMS = {"sbatch": True, "squeue": True, "scancel": True, "scontrol": True, "sacct": False}  #: needed or not
_TRIAL = b"#!/bin/sh\nexit 0\n"
_FEW_MIN_AGE_S = 30.0


def examine(config: Config, slurm: Slurm) -> Iterator[Finding]:
    """Yield all findings; nothing is submitted, but `sbatch --test-only` may use up a job id."""
    path = slurm.environment.get("PATH", os.defpath)
    for program, needed in PROGRAMS.items():
        found = shutil.which(program, path=path)
        if found:
            yield Finding(program, Level.OK, found)
        elif needed:
            yield Finding(program, Level.FAIL, "not on PATH", "install Slurm's client programs on this host")
        else:
            yield Finding(program, Level.WARN, "not on PATH", "without it the jobs' own words are the only witness")
    answer = slurm.call(CONFIG)
    cluster = parse_config(answer.out) if answer.ok else None
    if cluster is None or not cluster.version:
        yield Finding(
            "controller", Level.FAIL, answer.trouble, "ask `scontrol ping`; is SLURM_CONF set as it should be?"
        )
    else:
        yield Finding("controller", Level.OK, f"cluster {cluster.name}, Slurm {cluster.version}")
        yield from _cluster(config, slurm, cluster)
    yield from _options(config, slurm, reachable=cluster is not None)
    yield from _templates(config)
    yield _python(config)
    yield _shared(config)


def _cluster(config: Config, slurm: Slurm, cluster: ClusterConfig) -> Iterator[Finding]:
    try:
        listing = slurm.call(SQUEUE)
        rows = parse_squeue(listing.out) if listing.ok else None
        message = f"{len(rows)} jobs of this user" if rows is not None else listing.trouble
        yield Finding("squeue's answer", Level.OK if rows is not None else Level.FAIL, message)
    except Incomplete as error:
        yield Finding("squeue's answer", Level.FAIL, str(error), "is squeue a wrapper that changes its output?")
    if cluster.accounting:
        sacct = slurm.call(("sacct", "-X", "-n", "-P", "-S", "now-1minutes", "-o", "jobid"))
        remedy = "" if sacct.ok else "jobs that end while it is away are judged by their own words until it is back"
        message = "works" if sacct.ok else sacct.trouble
        yield Finding("accounting", Level.OK if sacct.ok else Level.WARN, message, remedy)
    else:
        yield Finding(
            "accounting", Level.WARN, "this cluster keeps none", "jobs' own words are the only witness of their end"
        )
    forgets_s = cluster.min_job_age_s
    poll = min(config.slurm_poll_s, forgets_s / 2)
    if cluster.accounting or forgets_s >= _FEW_MIN_AGE_S:
        yield Finding("polling", Level.OK, f"every {poll:g} s at most; ended jobs are forgotten after {forgets_s:g} s")
    else:
        text = f"ended jobs are forgotten after {forgets_s:g} s, and there is no accounting"
        yield Finding("polling", Level.WARN, text, "ask for a MinJobAge of 300 s")
    yield Finding("arrays", Level.OK, f"up to {min(1000, cluster.max_array_size - 1)} tasks in one")


def _options(config: Config, slurm: Slurm, *, reachable: bool) -> Iterator[Finding]:
    try:
        options = with_defaults(merged(of_config(config), of_class(config.classes[CLASS])))
    except ConfigError as error:
        yield Finding("options", Level.FAIL, str(error), "correct the setting")
        return
    yield Finding("options", Level.OK, " ".join(options.argv))
    if reachable:
        trial = slurm.call(("sbatch", "--test-only", *options.argv), stdin=_TRIAL)
        said = " ".join(trial.error.split()) or trial.trouble
        if trial.ok:
            yield Finding("a job", Level.OK, said.removeprefix("sbatch: "))
        else:
            yield Finding(
                "a job", Level.FAIL, said, "no job with these options would be taken: correct the slurm_ settings"
            )


def _templates(config: Config) -> Iterator[Finding]:
    if config.slurm_templates is not None and not config.slurm_templates.is_dir():
        yield Finding(
            "templates", Level.FAIL, f"there is no folder {config.slurm_templates}", "correct slurm_templates"
        )
    for name, path in names(config.slurm_templates).items():
        facts = JobFacts("dspy.trial", Path("/queue/slurm/dspy.trial"), 1, False, sys.executable)
        try:
            if name == "pilot":
                fill(path, {"python": sys.executable, "settings": "/q", "folder": "/q", "name": "n", "size": "1"})
            else:
                render(config, JobPlan(name), facts)
        except (JobRefused, OSError) as error:
            yield Finding(f"template {name}", Level.FAIL, str(error), "correct it, or remove it from slurm_templates")
        else:
            yield Finding(f"template {name}", Level.OK, str(path))


def _python(config: Config) -> Finding:
    python = config.slurm_python or Path(sys.executable)
    if os.access(python, os.X_OK):
        return Finding("interpreter", Level.OK, f"{python}; compute nodes must have it under the same path")
    remedy = "name one that compute nodes have, with this package, in slurm_python"
    return Finding(
        "interpreter", Level.WARN if config.slurm_python else Level.FAIL, f"{python} can't be run here", remedy
    )


def _shared(config: Config) -> Finding:
    try:
        kind = filesystem(existing(config.queue_dir))
    except OSError as error:
        return Finding("queue folder", Level.FAIL, str(error), "make it, or correct queue_dir")
    if kind.network:
        return Finding("queue folder", Level.OK, f"{config.queue_dir} on {kind.name}")
    remedy = "compute nodes must see this very folder: a local disk will do only where they are this host"
    return Finding(
        "queue folder", Level.WARN, f"{config.queue_dir} is on {kind.name}, a filesystem of this host", remedy
    )

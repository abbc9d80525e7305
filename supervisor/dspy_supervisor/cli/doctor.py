"""`doctor`: every finding with its remedy; 1 where one is a failure."""

from __future__ import annotations

import sys
from itertools import chain

import click

from ..config import Loaded
from ..errors import EXIT_FAILED, EXIT_OK
from .options import with_config
from .output import json_option, print_json, printable

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
@with_config
def doctor(loaded: Loaded, as_json: bool) -> int:
    """Prove, here and now, that this machine and folder can serve a queue.

    Exit codes: 0 all works, perhaps with warnings; 1 something does not.
    """
    from .. import proof
    from ..doctor import examine
    from ..trials import Level

    findings = []
    for finding in chain(examine(loaded.config), proof.examine(loaded.config)):
        findings.append(finding)
        if not as_json:
            mark = f"{finding.level:4}"
            click.echo(
                f"{click.style(mark, fg=_COLOURS[finding.level]) if sys.stdout.isatty() else mark}  "
                f"{finding.check:26}  {printable(finding.message)}"
            )
            if finding.remedy:
                click.echo(f"{'':4}  {'':26}  -> {printable(finding.remedy)}")
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    if as_json:
        print_json(
            {"ok": not failed, "queue_dir": str(loaded.config.queue_dir), "findings": [f._asdict() for f in findings]}
        )
    else:
        click.echo(f"\n{len(findings)} checks, {warned} warnings, {failed} failures")
    return EXIT_FAILED if failed else EXIT_OK

"""Which sandboxes hold on this host: each is built as for a task, and what a task must not be able to do is tried inside."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .config import Config
from .config_sandbox import MECHANISMS
from .errors import ConfigError
from .trials import Finding, Level
from .warden import Warden


def examine(config: Config) -> Iterator[Finding]:
    """Yield what each mechanism stops here, or why it does not hold; a failure where a class asks for what there isn't."""
    findings = {mechanism: _try(config, mechanism) for mechanism in MECHANISMS}
    held = [mechanism for mechanism, finding in findings.items() if finding.level is Level.OK]
    for mechanism, finding in findings.items():
        asking = [name for name, one in config.classes.items() if _wants(one.sandbox, mechanism, held)]
        if finding.level is Level.OK:
            yield finding
        elif asking:
            classes = ", ".join(asking)
            message = f"{finding.message}; class {classes} runs nothing"
            yield finding._replace(level=Level.FAIL, message=message)
        elif held:
            yield finding._replace(level=Level.OK, remedy="")
        else:
            yield finding


def _wants(sandbox: str, mechanism: str, held: list[str]) -> bool:
    return sandbox == mechanism or (sandbox == "on" and not held)


def _try(config: Config, mechanism: str) -> Finding:
    check = f"sandbox, {mechanism}"
    settings = replace(config.classes["cpu_short"], sandbox=mechanism, sandbox_read=(), sandbox_write=())
    with tempfile.TemporaryDirectory(prefix="dspy-doctor-") as folder:
        queue = Path(folder)
        (queue / "queue.json").write_text("{}")
        for name in ("claimed", "done"):
            (queue / name).mkdir()
        warden = Warden(settings, config, queue, (), {})
        began = time.monotonic()
        try:
            warden.start()
        except ConfigError as error:
            _, _, why = str(error).partition(f"here {mechanism}: ")
            remedy = "allow unprivileged user namespaces (sysctl user.max_user_namespaces, AppArmor), or a kernel from 6.12 on"
            return Finding(check, Level.WARN, f"does not hold here: {why or error}", remedy)
        finally:
            warden.close()
    took_s = time.monotonic() - began
    message = f"holds; a task could not, of {len(warden.stopped)} that it tried in {took_s:.1f} s: {', '.join(warden.stopped)}"
    return Finding(check, Level.OK, message)

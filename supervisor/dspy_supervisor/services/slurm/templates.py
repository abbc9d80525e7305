"""The scripts of jobs: found by name, never by path, and filled with a few facts, each quoted for the shell.

A place in a script is written ``'{{ name }}'``, with its quotes: so the script is valid shell as it stands, and what is put in
can't be anything but one word. The names are ``folder`` (of the submission; a task's own is below it, by its index), ``python``
(the interpreter that has this package), ``name`` (of the job), ``size`` (tasks), and for pilots ``settings``. A name that is not
among them, or a place without its quotes, is an error. What a task says is never put into a script: it travels as files.

Scripts of one's own lie in the folder ``slurm_templates`` as NAME.sbatch, and come before those of deploy/slurm/.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

import orjson

from ...config import Config
from ...jobbook import JobFacts
from ...record import Claim
from .plan import JobPlan, JobRefused, template_name, variables

MAX_SCRIPT_BYTES = 4 << 20  #: what slurmctld takes
SHIPPED = Path(__file__).parents[2] / "templates"
_PLACE = re.compile(r"\{\{")


def render(config: Config, plan: JobPlan, facts: JobFacts) -> bytes:
    """Return the script of a submission. Raises JobRefused where there is no such template, or it can't be filled."""
    values = {"folder": str(facts.folder), "python": facts.python, "name": facts.name, "size": str(facts.size)}
    return fill(find(config.slurm_templates, plan.template), values)


def task_files(plan: JobPlan, claim: Claim, facts: JobFacts, index: int) -> Mapping[str, bytes]:
    """Return what lies in a task's folder beside task.json: the envelope and the payload as written, and the variables."""
    payload = claim.payload
    pairs = {"TASK_ID": claim.name.id, "TASK_ATTEMPT": str(claim.name.attempt), **variables(orjson.loads(payload))}
    return {
        "envelope.json": claim.envelope,
        "payload.json": payload,
        "environment": b"".join(f"{name}={value}\0".encode() for name, value in pairs.items()),
    }


def names(folder: Path | None) -> dict[str, Path]:
    """Return the templates there are, by name."""
    found: dict[str, Path] = {}
    for place in (SHIPPED, folder):
        if place is not None and place.is_dir():
            found |= {path.stem: path for path in sorted(place.glob("*.sbatch"))}
    return found


def find(folder: Path | None, name: str) -> Path:
    """Return the template of a name: the user's, or else the one that came along. Raises JobRefused where there is none."""
    file = template_name(name, "template") + ".sbatch"
    for place in (folder, SHIPPED):
        if place is not None and (place / file).is_file():
            return place / file
    raise JobRefused(f"there is no job script {name!r}: these are {', '.join(names(folder))}")


def fill(path: Path, values: Mapping[str, str]) -> bytes:
    """Return a template with its places filled. Raises JobRefused that names the line it can't be filled for."""
    import jinja2  # not for a supervisor that submits nothing

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & stat.S_IWOTH:
            raise JobRefused(f"{path} can be written by others, who could so run programs as you: chmod o-w")
        raw = file.read(MAX_SCRIPT_BYTES + 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise JobRefused(f"{path} is no text in UTF-8: byte {error.start}") from None
    environment = jinja2.Environment(
        variable_start_string="'{{",
        variable_end_string="}}'",
        block_start_string="#{%",
        block_end_string="%}",
        comment_start_string="#{##",  # not jinja's own, which is bash's ${#...}
        comment_end_string="##}",
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        autoescape=False,  # for a shell, which finalize quotes for
        keep_trailing_newline=True,
    )
    try:
        script = environment.from_string(text).render(values)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise JobRefused(f"{path}{f', line {line}' if line else ''}: {error.message}") from None
    except ValueError as error:
        raise JobRefused(f"{path}: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if _PLACE.search(re.sub(r"'\{\{.*?\}\}'", "", line)):
            raise JobRefused(f"{path}, line {number}: a place is written with its quotes, '{{{{ name }}}}'")
    if not script.startswith("#!") or "\r" in text or len(script) > MAX_SCRIPT_BYTES:
        raise JobRefused(f"{path} is no script that sbatch takes: #! first, lines without CR, at most 4 MiB")
    return script.encode()


def _quoted(value: object) -> str:
    """Return a value as one word of the shell; it has one line, so that it can't begin another."""
    written = str(value)
    if not written.isprintable():
        raise ValueError(f"{ascii(written)[:100]} can't be part of a script")
    return shlex.quote(written)

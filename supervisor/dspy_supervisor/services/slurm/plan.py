"""What job a task becomes: its template, its options, and what its runner is told. Pure functions of settings and claim.

A task with a kind, or of a class with a handler, becomes a job that runs that handler (template ``task``). Any other is
what older producers put: its payload's ``method``, ``module``, ``model``, ``dataset`` and ``script`` become variables of a
training script, of which ``template`` or the method chooses one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ...config import ClassConfig, Config
from ...errors import EnvelopeInvalid
from ...record import Claim
from .options import Options, merged, of_class, of_config, of_task

DEFAULT_TEMPLATE = "train_agent_methodologies"
#: methods of older producers that have a template of their own
METHOD_TEMPLATES = {"ddp": "train_ddp"}
#: templates whose ranks are Slurm's own tasks: as many on a node as it has GPUs, where nobody said otherwise
RANKED = frozenset({"train_ddp_srun"})
#: payload key: variable of the job. What is no text or number stays in the task's file.
VARIABLES = {
    "method": "TRAINING_METHOD",
    "module": "MODULE_NAME",
    "model": "MODEL_NAME",
    "dataset": "DATASET_NAME",
    "script": "TRAINING_SCRIPT",
}
MAX_VARIABLE_BYTES = 32 * 1024
STOP_GRACE_S = 20.0  #: from SIGTERM to the runner's own end: before Slurm's SIGKILL, which comes KillWait (30 s) later
_SIGNAL_S = 120  # before the end of its time a job is told to save its work
_TEMPLATE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}(?:\.sbatch)?")
_SCRIPT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+/-]{0,1023}")


class JobRefused(Exception):
    """This task can never become a job; str() is the reason."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """A job that could be submitted; equal plans may share one array."""

    template: str  #: a name, never a path
    options: tuple[str, ...] = ()  #: arguments of sbatch, each --name or --name=value
    environment: tuple[tuple[str, str], ...] = ()  #: beside the scrubbed one
    throttle: int = 0  #: elements of an array that run at once; 0: as many as can
    array: bool = True  #: whether it may be an element of an array


def plan_job(config: Config, settings: ClassConfig, claim: Claim) -> JobPlan:
    """Return the job of a task. Raises JobRefused where the task can't be one, ConfigError for a wrong setting."""
    payload = _payload(claim)
    resources = _resources(claim)
    try:
        asked = of_task(payload, resources)
    except EnvelopeInvalid as error:
        raise JobRefused(str(error)) from None
    options = with_defaults(merged(of_config(config), of_class(settings), asked))
    template = choose_template(config, settings, claim, payload, resources)
    if template in RANKED and options.gpus:
        options = merged({"tasks_per_node": options.gpus}, dict(options.values))
    variables(payload)  # what can't be one is refused before a job is there
    environment = []
    if options.get("nodes") is not None:
        environment.append(("NODES", str(options.nodes)))
    if options.get("gpus") is not None:
        environment.append(("GPUS", str(options.gpus)))
    return JobPlan(template, options.argv, tuple(environment), config.slurm_array_limit)


def with_defaults(options: Options) -> Options:
    """Return options with what the bridge wants where nobody said it: its own retries, and a word before the end."""
    walltime_s = options.walltime_s
    before_s = _SIGNAL_S if walltime_s is None else max(1, min(_SIGNAL_S, walltime_s // 10))
    return merged({"requeue": False, "signal": f"B:USR1@{before_s}"}, dict(options.values))


def choose_template(config: Config, settings: ClassConfig, claim: Claim, payload: object, resources: object) -> str:
    """Return the name of the template of a task. Raises JobRefused for what is no name, or a kind that is not served."""
    for where, source in (("resources", resources), ("payload", payload)):
        if where == "payload" and (claim.fields.kind is not None or settings.handler is not None):
            break  # the payload is the handler's
        wanted = source.get("template") if isinstance(source, Mapping) else None
        if wanted is not None:
            return template_name(wanted, f"{where}.template")
    kind = claim.fields.kind
    if kind is not None and kind not in config.kinds and kind not in config.kind_handlers:
        raise JobRefused(f"nothing runs tasks of kind {kind!r}: see the settings kinds and kind_handlers")
    if config.slurm_template is not None:
        return template_name(config.slurm_template, "slurm_template")
    if kind is not None or settings.handler is not None:
        return "task"
    method = payload.get("method") if isinstance(payload, Mapping) else None
    return METHOD_TEMPLATES.get(str(method).lower(), DEFAULT_TEMPLATE)


def template_name(wanted: object, where: str) -> str:
    """Return a template's name without its ending. Raises JobRefused for a path, or anything else that is no name."""
    if not isinstance(wanted, str) or _TEMPLATE.fullmatch(wanted) is None:
        raise JobRefused(f"{where}: {ascii(wanted)[:100]} is no template's name of letters, digits, '_' and '-'")
    return wanted.removesuffix(".sbatch")


def variables(payload: object) -> dict[str, str]:
    """Return what a payload says as variables of the job. Raises JobRefused for what no variable can hold."""
    found: dict[str, str] = {}
    if not isinstance(payload, Mapping):
        return found
    for key, name in VARIABLES.items():
        value = payload.get(key)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            continue
        text = str(value)
        if "\0" in text or len(text.encode("utf-8", "surrogatepass")) > MAX_VARIABLE_BYTES or not _is_utf8(text):
            raise JobRefused(f"payload.{key}: expected text without NUL, of at most {MAX_VARIABLE_BYTES} bytes")
        found[name] = text
    script = found.get("TRAINING_SCRIPT")
    if script is not None and (_SCRIPT.fullmatch(script) is None or ".." in script.split("/")):
        raise JobRefused(
            f"payload.script: {ascii(script)[:100]} is no path below the job's folder, of letters, digits and '._+-/'"
        )
    return found


def runner_settings(config: Config, settings: ClassConfig) -> dict[str, Any]:
    """Return what the runner in the job needs to know of the configuration, as JSON."""
    return {
        "handler": settings.handler,
        "environment": dict(settings.environment),
        "kinds": list(config.kinds),
        "kind_handlers": dict(config.kind_handlers),
        "call_allow": list(config.call_allow),
        "command_env": list(config.command_env),
        "command_cwd": list(config.command_cwd),
        "kill_grace_s": config.kill_grace_s,
        "max_result_bytes": config.max_result_bytes,
        "timeout_s": settings.timeout_s,
        "stop_grace_s": STOP_GRACE_S,
    }


def _payload(claim: Claim) -> Any:
    return orjson.loads(claim.payload)


def _resources(claim: Claim) -> Any:
    span = claim.fields.resources
    return None if span is None else orjson.loads(claim.envelope[slice(*span)])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

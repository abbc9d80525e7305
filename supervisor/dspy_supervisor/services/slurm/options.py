"""The options of a job: what the configuration, the class and the task ask for, checked, as arguments of sbatch.

Each option has one row: its name, how it is read, and the arguments it becomes. An argument is always ``--name=value``, so
that a value is never taken for an option, and none of them is ever text of the script, where a line break would begin a
``#SBATCH`` line of its own. Who asks last wins: configuration, class, payload, ``resources``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...config import ClassConfig, Config
from ...errors import ConfigError, EnvelopeInvalid
from ...setting import Kind, size, text, truth, whole

MAX_COMMENT = 1024  #: what slurmctld takes
MAX_WALLTIME_S = 366 * 86400

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,254}"
_NAMES = rf"{_NAME}(?:,{_NAME}){{0,63}}"
_WALLTIME = (
    re.compile(r"(?P<m>[0-9]{1,7})"),
    re.compile(r"(?P<m>[0-9]{1,7}):(?P<s>[0-9]{1,2})"),
    re.compile(r"(?P<h>[0-9]{1,6}):(?P<m>[0-9]{1,2}):(?P<s>[0-9]{1,2})"),
    re.compile(r"(?P<d>[0-9]{1,4})-(?P<h>[0-9]{1,2})(?::(?P<m>[0-9]{1,2})(?::(?P<s>[0-9]{1,2}))?)?"),
)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_GPUS = re.compile(r"(?:([A-Za-z][A-Za-z0-9_.-]{0,63}):)?([0-9]{1,3})")
_SIGNAL = re.compile(r"([RB]{1,2}:)?(?:SIG)?([A-Z]{1,8}[0-9]?|[0-9]{1,2})(?:@([0-9]{1,5}))?")
_MAIL = r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}(?:@[A-Za-z0-9][A-Za-z0-9.-]{0,254})?"
_MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "TIME_LIMIT"),
    *("TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS"),
)
_EXTRA = re.compile(r"--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?:=([\x20-\x7e]{0,1024}))?")
_TASK_VALUE = re.compile(r"[A-Za-z0-9_.,:;@%/+*\[\]()&|=-]{0,512}")

#: Set by the bridge for each job, or changing what it relies on: no extra option may touch them.
_RESERVED_WORDS = (
    "array bb begin chdir clusters cluster-constraint dependency error export export-file get-user-env gid help hold "
    "ignore-pbs input job-name jobid kill-on-invalid-dep no-requeue open-mode output parsable prolog epilog propagate quiet "
    "requeue task-epilog task-prolog test-only uid usage verbose version wait wait-all-nodes wckey wrap x11"
)
RESERVED = frozenset(_RESERVED_WORDS.split())
#: What a task may ask for beside the options below. An administrator's configuration may name any that is not reserved.
_TASK_WORDS = (
    "contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu distribution exclude extra-node-info gpu-bind gpu-freq gres "
    "gres-flags hint licenses mem-bind mincpus no-kill nodelist ntasks-per-core ntasks-per-gpu ntasks-per-socket overcommit "
    "oversubscribe prefer priority sockets-per-node spread-job switches thread-spec threads-per-core time-min tmp "
    "tres-per-task use-min-nodes"
)
TASK_EXTRA = frozenset(_TASK_WORDS.split())
#: ``resources`` that say what a GPU of this host is shared by: a job has its own.
LOCAL_RESOURCES = frozenset({"gpu_share", "gpu_memory", "template"})


class Row(NamedTuple):
    """One option: how its value is read, and the arguments it becomes."""

    kind: Kind
    argv: Callable[[Any], Sequence[str]]
    rivals: frozenset[str] = frozenset()  #: of which sbatch takes only one


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one job, read and in order: jobs of equal options can be one array."""

    values: tuple[tuple[str, Any], ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """Arguments of sbatch, each ``--name`` or ``--name=value``."""
        return tuple(word for name, value in self.values for word in OPTIONS[name].argv(value))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an option, as it was read."""
        return dict(self.values).get(name, default)

    @property
    def walltime_s(self) -> int | None:
        """Seconds that the job asks for; None: what the template or the partition says."""
        value = self.get("time")
        return None if value is None else int(value)

    @property
    def nodes(self) -> int:
        """The least number of nodes."""
        return int(str(self.get("nodes", "1")).partition("-")[0])

    @property
    def gpus(self) -> int:
        """GPUs of each node."""
        return int(self.get("gpus", (None, 0))[1])


def of_config(config: Config) -> dict[str, Any]:
    """Return the options of every job, from the settings ``slurm_NAME``. Raises ConfigError."""
    named = {name: getattr(config, f"slurm_{name}", None) for name in OPTIONS}
    if named["nodes"] == 1:  # so it is without a word, and a template may say otherwise
        named["nodes"] = None
    return _of_settings(named, "slurm_")


def of_class(settings: ClassConfig) -> dict[str, Any]:
    """Return the options of the jobs of a class, from its ``slurm_options``. Raises ConfigError."""
    return _of_settings(settings.slurm_options, f"class.{settings.name}.slurm_options.")


def _of_settings(named: Mapping[str, object], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in named.items():
        if name not in OPTIONS:
            raise ConfigError(f"{where}{name}", value, f"an option among {', '.join(OPTIONS)}")
        if value not in (None, "", (), 0, False):
            try:
                found[name] = OPTIONS[name].kind.read(value)
            except (ValueError, TypeError, OverflowError):
                raise ConfigError(f"{where}{name}", value, OPTIONS[name].kind.expected) from None
    return found


def of_task(payload: object, resources: object) -> dict[str, Any]:
    """Return the options that a task asks for: ``nodes`` and ``gpus`` of its payload, and all of its resources.

    Raises EnvelopeInvalid that names the place and what it expects there.
    """
    found: dict[str, Any] = {}
    if isinstance(payload, Mapping):
        for name in ("nodes", "gpus"):  # what old producers write
            if payload.get(name) is not None:
                found[name] = _of_task(f"payload.{name}", name, payload[name])
    if resources is None:
        return found
    if not isinstance(resources, Mapping):
        raise EnvelopeInvalid("resources", f"expected an object, not {type(resources).__name__}")
    for name, value in resources.items():
        if name in LOCAL_RESOURCES or value is None:
            continue
        if name not in OPTIONS:
            raise EnvelopeInvalid(f"resources.{_short(name)}", f"no option of a job; these are: {', '.join(OPTIONS)}")
        found[name] = _of_task(f"resources.{name}", name, value)
    return found


def merged(*layers: Mapping[str, Any]) -> Options:
    """Return what the layers ask for together: a later one wins, and displaces what sbatch takes only one of."""
    found: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            for rival in OPTIONS[name].rivals - layer.keys():
                found.pop(rival, None)
            found[name] = (*found.get("extra", ()), *value) if name == "extra" else value
    return Options(tuple((name, found[name]) for name in OPTIONS if name in found))


def _of_task(where: str, name: str, value: object) -> object:
    row = OPTIONS[name]
    try:
        read = row.kind.read(value)
        if name == "extra":
            _check_task_extra(read)
    except (ValueError, TypeError, OverflowError):
        expected = (
            row.kind.expected if name != "extra" else f"--name=value with a name among {', '.join(sorted(TASK_EXTRA))}"
        )
        raise EnvelopeInvalid(where, f"{_short(value)} is not {expected}") from None
    return read


def _check_task_extra(words: Any) -> None:
    for word in words:
        match = _EXTRA.fullmatch(word)
        if match is None or match[1] not in TASK_EXTRA or _TASK_VALUE.fullmatch(match[2] or "") is None:
            raise ValueError


def _walltime() -> Kind:
    def read(value: object) -> int:
        if isinstance(value, bool):
            raise TypeError
        written = str(value) if isinstance(value, int) else value
        if not isinstance(written, str):
            raise TypeError
        for pattern in _WALLTIME:
            if match := pattern.fullmatch(written.strip(" ")):
                total = sum(int(part) * _SECONDS[unit] for unit, part in match.groupdict().items() if part)
                if 0 < total <= MAX_WALLTIME_S:
                    return total
        raise ValueError

    return Kind(
        "a time as sbatch reads it: minutes, MIN:SEC, H:MIN:SEC, D-H, D-H:MIN or D-H:MIN:SEC, up to 366 days", read
    )


def _gpus() -> Kind:
    def read(value: object) -> tuple[str | None, int]:
        if isinstance(value, tuple):
            value = f"{value[0]}:{value[1]}" if value[0] else str(value[1])
        written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(written, str) or (match := _GPUS.fullmatch(written)) is None:
            raise ValueError
        return match[1], int(match[2])

    return Kind("a number of GPUs for each node from 0 to 999, or TYPE:NUMBER, as a100:2", read)


def _nodes() -> Kind:
    def read(value: object) -> str:
        written = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(written, str) or re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5})?", written) is None:
            raise ValueError
        bounds = [int(part) for part in written.split("-")]
        if not 1 <= bounds[0] <= bounds[-1]:
            raise ValueError
        return "-".join(map(str, bounds))

    return Kind("a number of nodes from 1 to 99999, or LEAST-MOST", read)


def _exclusive() -> Kind:
    words = {"true": "", "yes": "", "1": "", "exclusive": "", "user": "user", "mcs": "mcs"}

    def read(value: object) -> str | None:
        if isinstance(value, bool):
            return "" if value else None
        if not isinstance(value, str):
            raise TypeError
        if value.lower() in ("false", "no", "0"):
            return None
        if value.lower() not in words:
            raise ValueError
        return words[value.lower()]

    return Kind("true, false, user or mcs", read)


def _signal() -> Kind:
    def read(value: object) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            value = f"B:USR1@{value}"  # the runner is the batch shell, and takes USR1 for the wish
        if not isinstance(value, str) or (match := _SIGNAL.fullmatch(value.upper())) is None:
            raise ValueError
        where, number, before = match.groups()
        if before is not None and int(before) > 65535:
            raise ValueError
        return f"{where or ''}{number}" + (f"@{int(before)}" if before else "")

    return Kind("seconds before the end, or [B:]SIGNAL[@SECONDS], as B:USR1@120", read)


def _mail_types() -> Kind:
    def read(value: object) -> str:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not parts:
            raise TypeError
        words = [part.strip().upper() if isinstance(part, str) else "" for part in parts]
        if not all(word in _MAIL_TYPES for word in words):
            raise ValueError
        return ",".join(words)

    return Kind(f"names among {', '.join(_MAIL_TYPES)}, with commas between them", read)


def _comment() -> Kind:
    def read(value: object) -> str:
        # one line, and without the sign that squeue's and sacct's columns are told apart by
        if not isinstance(value, str) or not value.isprintable() or "|" in value or len(value.encode()) > MAX_COMMENT:
            raise ValueError
        return value

    return Kind(f"one line of at most {MAX_COMMENT} bytes, without '|'", read)


def _extra() -> Kind:
    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = value.split()
        if isinstance(value, Mapping):
            value = [f"--{name}" if inner is True else f"--{name}={inner}" for name, inner in value.items()]
        if not isinstance(value, list | tuple) or len(value) > 64:
            raise TypeError
        for word in value:
            match = _EXTRA.fullmatch(word) if isinstance(word, str) else None
            if match is None or _touches_reserved(match[1]):
                raise ValueError
        return tuple(value)

    return Kind("options of sbatch as --name or --name=value, but none that the bridge sets itself", read)


def _touches_reserved(name: str) -> bool:
    """Whether sbatch could take a name for a reserved option: it takes the beginning of a name for the whole."""
    return name not in TASK_EXTRA and any(reserved.startswith(name) for reserved in RESERVED)


def _flag(name: str) -> Callable[[Any], Sequence[str]]:
    return lambda value: (f"--{name}={value}",)


def _memory(name: str) -> Callable[[Any], Sequence[str]]:
    # Slurm counts in MiB; up, so that a task gets what it asked for
    return lambda value: (f"--{name}={-(-value // (1 << 20))}M",)


def clock(total_s: int) -> str:
    """Return a time as sbatch writes it: D-HH:MM:SS."""
    days, rest = divmod(total_s, 86400)
    return f"{days}-{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


_MEMORY = size(1 << 20, 1 << 50)
_MEMORIES = frozenset({"memory", "memory_per_cpu", "memory_per_gpu"})


def _memories(own: str) -> frozenset[str]:
    return _MEMORIES - {own}


OPTIONS: Mapping[str, Row] = {
    "partition": Row(text(_NAMES, "names of partitions, with commas between them"), _flag("partition")),
    "account": Row(text(_NAME, "the name of an account"), _flag("account")),
    "qos": Row(text(_NAME, "the name of a quality of service"), _flag("qos")),
    "reservation": Row(text(_NAMES, "names of reservations, with commas between them"), _flag("reservation")),
    "constraint": Row(
        text(r"[A-Za-z0-9_\[(][A-Za-z0-9_.,:|&()*\[\]+-]{0,511}", "features of nodes, as 'a100&nvme'"),
        _flag("constraint"),
    ),
    "time": Row(_walltime(), lambda value: (f"--time={clock(value)}",)),
    "memory": Row(_MEMORY, _memory("mem"), _memories("memory")),
    "memory_per_cpu": Row(_MEMORY, _memory("mem-per-cpu"), _memories("memory_per_cpu")),
    "memory_per_gpu": Row(_MEMORY, _memory("mem-per-gpu"), _memories("memory_per_gpu")),
    "cpus": Row(whole(1, 65536), _flag("cpus-per-task")),
    "gpus": Row(
        _gpus(),
        lambda value: (
            "--gres=" + ":".join(["gpu", *filter(None, [value[0]]), str(value[1])]) if value[1] else "--gres=none",
        ),
    ),
    "nodes": Row(_nodes(), _flag("nodes")),
    "tasks": Row(whole(1, 1 << 20), _flag("ntasks")),
    "tasks_per_node": Row(whole(1, 65536), _flag("ntasks-per-node")),
    "exclusive": Row(
        _exclusive(), lambda value: () if value is None else ("--exclusive" + (f"={value}" if value else ""),)
    ),
    "mail_user": Row(text(_MAIL, "a user or a mail address"), _flag("mail-user")),
    "mail_type": Row(_mail_types(), _flag("mail-type")),
    "comment": Row(_comment(), _flag("comment")),
    "signal": Row(_signal(), _flag("signal")),
    "nice": Row(whole(0, 2147483645), _flag("nice")),
    "requeue": Row(truth(), lambda value: ("--requeue" if value else "--no-requeue",)),
    "extra": Row(_extra(), lambda value: value),
}


def _short(value: object) -> str:
    written = ascii(value)
    return written if len(written) <= 100 else written[:97] + "..."

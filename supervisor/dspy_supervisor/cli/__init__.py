"""The command line: a group whose commands are imported only when they are called, and its exit codes.

A command returns its exit code, or None for 0; what it raises has its own (errors.py). Without that, 2 is wrong usage,
130 Ctrl-C, and 141 a reader that went away: such a pipe is no news. Who closes a standard stream wants nothing of it, so
it is /dev/null then.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ServiceUnavailable, SupervisorError

PROGRAM = "dspy-supervisor"
_BROKEN_PIPE = 141

#: command: (module here, what it says of itself). The help is kept here, so that --help imports none of them.
COMMANDS = {
    "start": ("service", "Serve a queue in the foreground."),
    "stop": ("service", "End the supervisor of a queue, after its running tasks."),
    "upgrade": ("upgrade", "Turn a running supervisor to another version of this program; its tasks run on."),
    "status": ("service", "Show what the supervisor does: tasks, workers and limits by class."),
    "top": ("top", "Watch a queue and its supervisor in the terminal."),
    "submit": ("submit", "Put tasks into a queue."),
    "task": ("task", "Look at tasks, wait for them, cancel or retry them."),
    "queue": ("queue", "Count, check, clean, pause, resume and limit a queue."),
    "explain": ("explain", "Say why a task does not run."),
    "metrics": ("metrics", "Print the metrics of a running supervisor in Prometheus' text format."),
    "gpu": ("gpu", "Show GPUs and host: load, memory, power, heat, processes, and what keeps work away."),
    "doctor": ("doctor", "Prove, here and now, that this machine and folder can serve a queue."),
    "slurm": ("slurm", "Submit to a Slurm cluster, look at its jobs, and see what would be submitted."),
    "cloud": ("cloud", "Say what rented machines would cost, rent them, look at them, and delete them."),
    "service": ("systemd", "Let systemd start a queue's supervisor at boot, watch it, and stop it in order."),
    "config": ("config", "Show and check the settings, and where each comes from."),
    "simulate": ("simulate", "Judge policies in simulated worlds, beside the best fixed limit."),
    "completion": ("completion", "Print the completion script of a shell."),
    "man": ("manual", "Print the manual page."),
}

#: group: the commands below it, to tell who leaves the group out what was meant
BELOW = {
    "task": "show list wait cancel retry logs",
    "queue": "stats fsck gc pause resume limit",
    "slurm": "submit status cancel plan render doctor",
    "cloud": "plan up down status gc pod",
    "service": "install uninstall status",
    "config": "show check reload describe env",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and help, and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f".{COMMANDS[cmd_name][0]}", __name__), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            likely = " or ".join(f"'{PROGRAM} {words}'" for words in _likely(name)) or "look at --help"
            raise click.UsageError(f"no command {name!r} here: {likely}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name, help=text) for name, (_, text) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click sees it, who would answer with 1
            _discard_output()
            return _BROKEN_PIPE


def _likely(name: str) -> list[str]:
    """Return the commands of groups that have this name, or else the one that has almost this name."""
    from difflib import get_close_matches

    below = [f"{group} {name}" for group, names in BELOW.items() if name in names.split()]
    return below or get_close_matches(name, COMMANDS, n=1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Run streams of tasks from a durable folder queue.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not running; 4 not found; 5 timed out waiting; 69 unavailable;
    75 try again (queue full, or served already); 78 bad configuration; 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the process's own, and return its exit code."""
    _open_closed_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return _BROKEN_PIPE
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        # Commands get told whether the whole process is theirs, so that another program may take its place.
        code = root.main(arguments, PROGRAM, standalone_mode=False, obj=arguments is None)
        return code if isinstance(code, int) else EXIT_OK
    except click.ClickException as error:
        error.show()
        _print_document(error, error.format_message(), EXIT_USAGE, arguments)
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except SupervisorError as error:
        _complain(str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("dspy_fastpath"):
            raise
        _complain(f"the compiled part {error.name} is missing: install dspy-supervisor again, for this Python")
        return ServiceUnavailable.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "the system" if error.filename is None else os.fsdecode(error.filename)
        if _is_of_output(error):
            name = "standard output"
            _discard_output()
        else:
            _print_document(error, f"{name}: {error.strerror or error}", EXIT_FAILED, arguments)
        _complain(f"{name}: {error.strerror or error}")
        return EXIT_FAILED


def _print_document(error: Exception, message: str, code: int, arguments: Sequence[str] | None) -> None:
    """Print the document of an error that no command saw, where --json was asked for."""
    if "--json" in (sys.argv[1:] if arguments is None else arguments):
        from .output import print_error

        print_error(error, message, code)


def _open_closed_streams() -> None:
    """Open /dev/null as each standard stream that was closed: the next file to be opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  # for good


def _complain(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"{PROGRAM}: {message}", err=True)


def _is_of_output(error: OSError) -> bool:
    """Whether printing failed, as onto a full disk."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code is click.echo.__code__


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's own flush at exit stays quiet."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

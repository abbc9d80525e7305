"""`completion`: the script that a shell evaluates, made by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import PROGRAM, root


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash   eval "$(dspy-supervisor completion bash)"                in ~/.bashrc
    zsh    eval "$(dspy-supervisor completion zsh)"                 in ~/.zshrc
    fish   dspy-supervisor completion fish | source                 in ~/.config/fish/config.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # click has these three
    script = made(root, {}, PROGRAM, "_DSPY_SUPERVISOR_COMPLETE")
    # Not script.source(), which for bash starts a bash to look at its version.
    click.echo(script.source_template % script.source_vars())

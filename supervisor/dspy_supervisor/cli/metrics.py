"""`metrics`: what a running supervisor counts, for Prometheus."""

from __future__ import annotations

import click

from ..config import Loaded
from ..control_client import ask
from ..errors import ServiceUnavailable
from .options import with_config
from .service import supervisor_socket


@click.command()
@with_config
def metrics(loaded: Loaded) -> None:
    """Print the metrics of a running supervisor in Prometheus' text format.

    For node_exporter's textfile collector, or to look at.
    """
    from dspy_fastpath.counters import Page

    from ..metrics import Exposition, View

    socket = supervisor_socket(loaded.config)
    status = ask(socket, {"do": "status"})
    try:
        with Page.attach(socket.with_suffix(".page")) as page:
            text = Exposition().text(View(page, status)).body
    except ValueError as error:  # of another version of this program
        raise ServiceUnavailable(str(error)) from error
    click.echo(text.decode(), nl=False)

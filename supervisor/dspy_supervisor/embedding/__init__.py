"""Vectors for texts, from embedding servers that speak one of four dialects (needs the extra ``embed``)::

    from dspy_supervisor.embedding import EmbeddingClient

    with EmbeddingClient("http://127.0.0.1:8080") as client:    # without an address: as the configuration says
        vectors = client.embed(["to be", "or not to be"])       # numpy, float32, one row a text, in their order

What is asked for at the same time travels together, whoever asks (threads share a client, workers of one host a process).
A text without a vector is an error, with the server's reason; no vector is ever made up.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .asynchronous import AsyncEmbeddingClient as AsyncEmbeddingClient
    from .synchronous import EmbeddingClient as EmbeddingClient
    from .vectors import read_vectors as read_vectors

_HOME = {"AsyncEmbeddingClient": "asynchronous", "EmbeddingClient": "synchronous", "read_vectors": "vectors"}

__all__ = [*sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: httpx2 and numpy take a tenth of a second."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value

"""Rented machines: tasks of one class run there, and what became of them comes back."""

from ...parts import ServicePost


def run(post: ServicePost) -> int:
    """Be the bridge to rented machines; return the exit code."""
    from .bridge import run as carry  # not for commands that only want to know a price

    return carry(post)

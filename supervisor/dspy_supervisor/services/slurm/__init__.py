"""The bridge to Slurm: tasks of class gpu_slurm become jobs, and what became of these comes back."""

from ...parts import ServicePost


def run(post: ServicePost) -> int:
    """Be the bridge of a supervisor; return the exit code."""
    from .bridge import run as carry  # not for commands that only want to know what a job would be

    return carry(post)

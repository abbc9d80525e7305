"""A supervisor that takes its filesystem for one on which a power cut may tear a rename in two, as btrfs does."""

import sys

import dspy_supervisor.filesystem
from dspy_supervisor.__main__ import main

if __name__ == "__main__":
    dspy_supervisor.filesystem.WHOLE_RENAMES = frozenset()
    sys.exit(main())

"""Queues with real supervisors, for what shows them in a terminal."""

from ..system.conftest import rig  # noqa: F401 (a fixture)

"""What the tests of the executor have called in workers."""

import os
from pathlib import Path


def multiply(a, b=3):
    return a * b


def capture(*args, **kwargs):
    return [list(args), kwargs]


def divide(a, b):
    return a / b


def process():
    return os.getpid()


def hold(gate, result=None):
    """Wait until the test opens the gate, a FIFO."""
    Path(gate).read_bytes()
    return result


class Box:
    @staticmethod
    def twice(n):
        return 2 * n


same = multiply

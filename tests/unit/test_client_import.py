"""What a program loads that only puts tasks and waits for them."""

import subprocess
import sys

import pytest

FORBIDDEN = ("asyncio", "concurrent.futures", "ssl", "subprocess", "_hashlib", "numpy", "click", "multiprocessing")
QUICK = """
from dspy_supervisor import Queue
with Queue({path!r}, create=True) as queue:
    task = queue.submit({{"n": 1}})
    queue.submit_many([1, 2])
    queue.state(task), queue.list(), queue.record(task)
    try:
        queue.result(task, timeout=0)
    except TimeoutError:
        pass
"""


@pytest.mark.parametrize("program", ["import dspy_supervisor.client", "from dspy_supervisor import Queue", QUICK])
def test_a_program_that_puts_and_waits_loads_nothing_heavy(tmp_path, program):
    code = program.format(path=str(tmp_path / "queue")) + "\nimport sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(FORBIDDEN).isdisjoint(loaded), set(FORBIDDEN) & set(loaded)


def test_every_public_name_is_there():
    from dspy_supervisor import client

    for name in client.__all__:
        assert getattr(client, name).__name__ == name
    with pytest.raises(AttributeError, match="nobody"):
        client.nobody  # noqa: B018

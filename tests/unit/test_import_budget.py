"""What the quick commands load, and how much longer than a bare interpreter they take."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"asyncio", "prometheus_client", "psutil", "numpy", "numba", "ssl", "subprocess", "pynvml", "concurrent"}


def loaded(tmp_path, code: str) -> set[str]:
    """Return the modules, by their first name, that a fresh interpreter has after the code, beyond a bare one's."""
    environ = {**os.environ, "HOME": str(tmp_path), "DSPY_RUNTIME_DIR": str(tmp_path / "run")}
    whole = f"import sys\nbare = set(sys.modules)\n{code}\nprint('\\n' + ' '.join(set(sys.modules) - bare))"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    return {name for name in names if not name.lstrip("_").startswith("cython")}  # what a compiled module registers


def after(tmp_path, *arguments: str) -> set[str]:
    """Return what a command line loads."""
    return loaded(tmp_path, f"from dspy_supervisor.cli import main\nmain({list(arguments)!r})")


def third_party(names: set[str]) -> set[str]:
    return names - sys.stdlib_module_names - {"dspy_supervisor", "dspy_fastpath"}


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("completion", "bash"), ("nonsense",)])
def test_the_first_word_needs_click_only(tmp_path, arguments):
    names = after(tmp_path, *arguments)
    assert third_party(names) == {"click"}
    assert names.isdisjoint(HEAVY)
    assert "dspy_fastpath" not in names


@pytest.fixture
def queue(tmp_path):
    """A queue with one task."""
    made = (
        "from dspy_supervisor.layout import Layout\nfrom dspy_supervisor.producer import Producer, envelope\n"
        "with Layout.open('queue', create=True) as layout:\n"
        "    Producer(layout).put('a1', envelope({}, task_id='a1'))"
    )
    loaded(tmp_path, made)
    return tmp_path / "queue"


@pytest.mark.parametrize("command", ["status", "submit {}", "task show a1", "task list", "queue stats", "explain a1"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_quick_commands_load_nothing_heavy(tmp_path, queue, command, form):
    names = after(tmp_path, *command.split(), "--queue-dir", str(queue), *form)
    assert names.isdisjoint(HEAVY), names & HEAVY
    assert third_party(names) <= {"click", "orjson"}


def test_the_process_that_forks_loads_nothing_that_starts_threads(tmp_path):
    names = loaded(tmp_path, "import dspy_supervisor.loop")
    assert names.isdisjoint(HEAVY), names & HEAVY
    assert third_party(names) <= {"orjson", "setproctitle"}


def test_a_supervisor_and_its_workers_do_without_ctypes(tmp_path):
    code = (
        "import os, dspy_supervisor.loop\n"
        "from dspy_supervisor import handlers, proctree\n"
        "from importlib.util import find_spec\n"
        "from dspy_supervisor.config_embed import EmbedOptions\n"
        "embed = EmbedOptions(embed_urls=('http://localhost',))\n"
        "[handlers.make(name, embed=embed) for name in handlers.BUILT_IN if name != 'embed' or find_spec('httpx2')]\n"
        "proctree.become_subreaper()\n"
        "proctree.die_with_parent(os.getppid())"
    )
    assert loaded(tmp_path, code).isdisjoint({"ctypes", "_ctypes"})


def test_the_names_of_the_package_are_there_when_they_are_asked_for(tmp_path):
    assert "click" not in loaded(tmp_path, "import dspy_supervisor\ndspy_supervisor.__version__")
    assert loaded(tmp_path, "import dspy_supervisor").isdisjoint({"orjson", "dspy_fastpath"})


@pytest.mark.parametrize(("arguments", "bound"), [(["--version"], 10), (["status"], 10), (["task", "show", "a1"], 10)])
def test_a_quick_command_takes_at_most_ten_bare_starts(tmp_path, queue, arguments, bound):
    environ = {
        **os.environ,
        "HOME": str(tmp_path),
        "DSPY_RUNTIME_DIR": str(tmp_path / "run"),
        "ENV_QUEUE_DIR": str(queue),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "cache"),  # compiled once, as where it is installed
    }
    environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def took(*command: str) -> float:
        """Seconds of CPU: what else the machine does delays a command, and costs it little."""
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            cwd=tmp_path,
        )
        with process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime

    # Bare and quick by turns, the best of each: the machine's load falls on both, and may last.
    bare, quick = took("-c", "pass"), took("-m", "dspy_supervisor", *arguments)
    for _ in range(40):
        bare, quick = min(bare, took("-c", "pass")), min(quick, took("-m", "dspy_supervisor", *arguments))
        if quick <= bound * bare:
            break
    assert quick <= bound * bare, json.dumps({"bare_s": bare, "quick_s": quick})

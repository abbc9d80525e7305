"""A queue of an earlier format is brought up to date under the lock, whoever is killed meanwhile; a newer one is refused."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import orjson
import pytest
from dspy_supervisor import Queue
from dspy_supervisor.config import load
from dspy_supervisor.errors import AlreadyRunning, QueueFormat
from dspy_supervisor.layout import FORMAT, Layout, replace_json
from dspy_supervisor.migration import STEPS, bring_up_to_date
from dspy_supervisor.nodes import Presence
from dspy_supervisor.runtime import make_runtime_folder

IDS = ("a", "b")


@pytest.fixture
def config(tmp_path):
    """The configuration of a queue with some tasks."""
    with Queue(tmp_path / "queue", create=True) as queue:
        for task_id in IDS:
            queue.submit({}, id=task_id)
    made = load({"queue_dir": str(tmp_path / "queue"), "runtime_dir": str(tmp_path / "run")}, {}, tmp_path).config
    make_runtime_folder(made.runtime_dir)
    return made


def claim_to_be(config, found):
    """Let the queue have another format."""
    identity = config.queue_dir / "queue.json"
    identity.write_bytes(orjson.dumps(orjson.loads(identity.read_bytes()) | {"format": found}))


def said(config):
    return json.loads((config.queue_dir / "queue.json").read_bytes())["format"]


def tree(folder):
    """Return every file below a folder, and what is in it; not the heartbeats."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "nodes")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def into_folders(layout):
    """Give each task a folder of its own in logs/, with a note; as a step of some later version may."""
    for task_id in IDS:
        with contextlib.suppress(FileExistsError):
            os.mkdir(task_id, 0o700, dir_fd=layout.logs)
        folder = os.open(task_id, os.O_RDONLY | os.O_DIRECTORY, dir_fd=layout.logs)
        try:
            replace_json(folder, "note.json", {"task": task_id}, durable=False)
        finally:
            os.close(folder)


def and_mark(layout):
    replace_json(layout.root, "marked.json", {"marked": True}, durable=False)


LATER = {FORMAT: into_folders, FORMAT + 1: and_mark}


def test_every_format_before_this_one_has_a_step():
    assert sorted(STEPS) == list(range(1, FORMAT))


def test_a_queue_of_this_format_is_left_alone(config):
    before = tree(config.queue_dir)
    assert bring_up_to_date(config) == 0
    assert tree(config.queue_dir) == before
    assert list(config.runtime_dir.iterdir()) == []


def test_where_there_is_no_queue_there_is_nothing_to_do(config, tmp_path):
    shutil.rmtree(config.queue_dir)
    assert bring_up_to_date(config) == 0
    assert not config.queue_dir.exists()


def test_all_steps_are_taken_one_after_the_other(config):
    assert bring_up_to_date(config, LATER, FORMAT + 2) == 2
    assert said(config) == FORMAT + 2
    assert (config.queue_dir / "marked.json").exists()
    assert bring_up_to_date(config, LATER, FORMAT + 2) == 0


def test_a_kill_anywhere_is_made_good_by_the_next_start(config, tmp_path):
    """In fresh copies of a queue, one is killed before its first call that changes a folder, one before its second..."""
    fresh = tmp_path / "fresh"
    shutil.copytree(config.queue_dir, fresh)
    bring_up_to_date(config, LATER, FORMAT + 2)
    whole = tree(config.queue_dir)
    kills = 0
    half_done = set()
    while True:
        shutil.rmtree(config.queue_dir)
        shutil.copytree(fresh, config.queue_dir)
        child = os.fork()
        if child == 0:
            _be_killed(kills, config)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        assert code == -9
        kills += 1
        half_done.add(said(config))
        if said(config) == f"{FORMAT}>{FORMAT + 1}":
            with pytest.raises(QueueFormat, match=f"being brought from format {FORMAT} to format {FORMAT + 1}"):
                Layout.open(config.queue_dir)
        bring_up_to_date(config, LATER, FORMAT + 2)
        found = {
            name: text for name, text in tree(config.queue_dir).items() if not name.rpartition("/")[2].startswith(".")
        }
        assert found == whole
    assert kills > 8
    assert half_done == {FORMAT, f"{FORMAT}>{FORMAT + 1}", FORMAT + 1, f"{FORMAT + 1}>{FORMAT + 2}"}


def _be_killed(calls, config):
    """Bring the queue up to date, and be killed before the call of this number that changes a folder."""
    left = calls

    def counted(real):
        def call(*arguments, **named):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), 9)
            left -= 1
            return real(*arguments, **named)

        return call

    code = 1
    try:
        for name in ("rename", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        bring_up_to_date(config, LATER, FORMAT + 2)
        code = 0
    finally:
        os._exit(code)


def test_nothing_is_changed_while_somebody_may_serve_the_queue(config):
    before = tree(config.queue_dir)
    with (
        Layout.open(config.queue_dir) as layout,
        Presence(layout, config.runtime_dir / f"{layout.queue_id}.main.lock"),
        pytest.raises(AlreadyRunning),
    ):
        bring_up_to_date(config, LATER, FORMAT + 2)
    far = {"node": "faraway", "counter": 7, "boot_id": "of another host"}
    (config.queue_dir / "nodes" / "faraway.hb").write_bytes(orjson.dumps(far))
    with pytest.raises(AlreadyRunning, match="nothing proves that faraway of nodes/ ended"):
        bring_up_to_date(config, LATER, FORMAT + 2)
    assert tree(config.queue_dir) == before
    (config.queue_dir / "nodes" / "faraway.hb").unlink()
    assert bring_up_to_date(config, LATER, FORMAT + 2) == 2


@pytest.mark.parametrize("found", [FORMAT + 1, "next", True, 0, -1, 1.5])
def test_a_format_that_is_not_known_is_refused_in_words_and_left_alone(config, found):
    claim_to_be(config, found)
    before = tree(config.queue_dir)
    assert bring_up_to_date(config) == 0
    for create in (True, False):
        with pytest.raises(QueueFormat) as refused:
            Layout.open(config.queue_dir, create=create)
    assert str(refused.value) == (
        f"{config.queue_dir}/queue.json says the queue is of format {found!r}, and this program knows format {FORMAT}: use "
        f"the version of dspy-supervisor that made it, or a newer one; nothing was changed"
    )
    assert tree(config.queue_dir) == before


@pytest.mark.parametrize("command", ["start", "status", "submit {}", "queue fsck --repair"])
def test_commands_refuse_a_newer_queue_with_an_exit_code_of_its_own(config, tmp_path, command):
    claim_to_be(config, FORMAT + 1)
    before = tree(config.queue_dir)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DSPY_", "ENV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dspy_supervisor", *command.split(), "--queue-dir", "queue", "--runtime-dir", "run"],
        capture_output=True, text=True, cwd=tmp_path, env=environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert f"is of format {FORMAT + 1}, and this program knows format {FORMAT}" in done.stderr
    assert tree(config.queue_dir) == before


def test_a_client_tells_of_an_older_queue_what_to_do(config):
    with pytest.raises(QueueFormat) as refused:
        raise QueueFormat(config.queue_dir / "queue.json", 1, 2)
    assert (
        f"of format 1, and this program knows format 2: 'dspy-supervisor start --queue-dir {config.queue_dir}'"
        in str(refused.value)
    )

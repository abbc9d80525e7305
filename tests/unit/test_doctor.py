"""The doctor tries what it claims: good folders pass, and each planted trouble is found and has a remedy."""

import importlib
import importlib.util
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from dspy_supervisor import doctor
from dspy_supervisor.config import Config, load
from dspy_supervisor.filesystem import classify
from dspy_supervisor.trials import Finding, Level


@pytest.fixture
def config(tmp_path) -> Config:
    queue = tmp_path / "queue"
    queue.mkdir(mode=0o700)
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    environ = {"ENV_QUEUE_DIR": str(queue), "DSPY_RUNTIME_DIR": str(run), "HOME": str(tmp_path)}
    return load({}, environ, tmp_path).config


def findings(config: Config) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.examine(config)}


def test_a_private_folder_on_this_machine_has_no_failure_and_nothing_is_left_in_it(config):
    found = findings(config)
    assert {name for name, one in found.items() if one.level is Level.FAIL} == set()
    assert {"rename", "RENAME_NOREPLACE", "hard link", "fsync", "flock", "inotify"} <= found.keys()
    assert found["inotify"].message.startswith("an event of this very folder arrived")
    assert list(config.queue_dir.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_judged_by_the_place_it_will_be_made_in(config):
    config.queue_dir.rmdir()
    found = findings(config)
    assert "not made yet" in found["permissions"].message
    assert found["rename"].level is Level.OK
    assert not config.queue_dir.exists()


def test_every_warning_and_failure_has_a_remedy(config, monkeypatch):
    config.queue_dir.chmod(0o777)
    monkeypatch.setattr(doctor, "filesystem", lambda path: classify("nfs4", "/mnt"))
    for finding in doctor.examine(config):
        if finding.level is not Level.OK and finding.check != "RENAME_NOREPLACE":
            assert finding.remedy, finding


def http_findings(config: Config, monkeypatch, missing: str = "", **settings) -> dict[str, Finding]:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there("json"))
    found = findings(replace(config, **settings))
    return {name: one for name, one in found.items() if name.startswith("HTTP")}


def test_the_gateway_is_judged_by_what_is_installed_and_by_who_reaches_it(config, monkeypatch):
    assert http_findings(config, monkeypatch)["HTTP"].level is Level.OK
    off = http_findings(config, monkeypatch, missing="uvicorn")["HTTP"]
    assert (off.level, off.remedy) == (Level.OK, "pip install 'dspy-supervisor[api]'")
    lacking = http_findings(config, monkeypatch, missing="uvicorn", http=True)["HTTP"]
    assert (lacking.level, lacking.remedy) == (Level.WARN, "pip install 'dspy-supervisor[api]'")
    local = http_findings(config, monkeypatch, http=True)
    assert (local["HTTP"].level, local["HTTP"].message) == (Level.OK, "127.0.0.1, port 9097, without a token")
    open_to_all = http_findings(config, monkeypatch, http=True, http_host="0.0.0.0")["HTTP address"]
    assert open_to_all.level is Level.FAIL and "no http_token" in open_to_all.message and "token" in open_to_all.remedy
    token = http_findings(config, monkeypatch, http=True, http_host="0.0.0.0", http_token="x" * 16)
    assert token.keys() == {"HTTP"}
    socket_alone = http_findings(config, monkeypatch, http=True, http_host="0.0.0.0", http_port=None)
    assert socket_alone.keys() == {"HTTP"}
    nowhere = http_findings(config, monkeypatch, http=True, http_host="no-such-host.invalid")["HTTP address"]
    assert nowhere.level is Level.FAIL


def test_embedding_servers_are_looked_for_where_some_are_configured(config, monkeypatch):
    there = importlib.util.find_spec
    assert "embedding" not in findings(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there("json"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"http://user:secret@127.0.0.1:{port}"
        there_now = findings(replace(config, embed_urls=(url,)))["embedding"]
    assert (there_now.level, there_now.message) == (Level.OK, f"http://127.0.0.1:{port} takes connections")
    gone = findings(replace(config, embed_urls=(url,)))["embedding"]
    assert gone.level is Level.WARN and "refused" in gone.message and "secret" not in gone.message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lacking = [one for one in doctor.examine(replace(config, embed_urls=(url,))) if one.check == "embedding"]
    assert lacking[0].remedy == "pip install 'dspy-supervisor[embed]'"


def test_a_folder_that_others_may_write_fails_and_the_bit_is_named(config, tmp_path):
    config.queue_dir.chmod(0o777)
    found = findings(config)["permissions"]
    assert found.level is Level.FAIL
    assert "0777" in found.message
    assert "chmod o-w" in found.remedy
    loose = load({"insecure": True}, {"ENV_QUEUE_DIR": str(config.queue_dir), "HOME": "/x"}, tmp_path).config
    assert findings(loose)["permissions"].level is Level.WARN


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_fails(config):
    os.chown(config.queue_dir, 12345, -1)
    found = findings(config)["permissions"]
    assert (found.level, "12345" in found.message) == (Level.FAIL, True)


def test_a_folder_that_cannot_be_written_fails_without_a_traceback(tmp_path):
    config = load(
        {"queue_dir": "/proc/queue"}, {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}, tmp_path
    ).config
    assert findings(config)["folder"].level is Level.FAIL


def test_a_runtime_folder_that_others_may_write_fails(config):
    config.runtime_dir.chmod(0o777)
    assert findings(config)["runtime folder"].level is Level.FAIL


@pytest.mark.parametrize(
    ("kind", "level", "word"),
    [
        (classify("nfs4", "/mnt"), Level.WARN, "shared with other hosts"),
        (classify("overlay", "/mnt"), Level.WARN, "survives a reboot"),
        (classify("ecryptfs", "/mnt"), Level.WARN, "can't be relied on"),
        (classify("ext4", "/mnt", read_only=True), Level.FAIL, "read-only"),
        (classify("ext4", "/mnt"), Level.OK, "ext4"),
    ],
)
def test_the_kind_of_the_filesystem_is_told_with_what_it_means(config, monkeypatch, kind, level, word):
    monkeypatch.setattr(doctor, "filesystem", lambda path: kind)
    found = findings(config)["filesystem"]
    assert (found.level, word in found.message) == (level, True)


def test_a_filesystem_without_events_is_found_by_waiting_for_one(config, monkeypatch):
    watcher = importlib.import_module("dspy_fastpath.inotify").Watcher

    class Deaf:
        def __enter__(self):
            self.watcher = watcher().__enter__()
            return self

        def __exit__(self, *error):
            self.watcher.__exit__(*error)

        def add(self, path):
            return 1  # as on a filesystem that accepts the watch and says nothing

        def wait(self, timeout_s):
            return self.watcher.wait(0.01)

    monkeypatch.setattr("dspy_fastpath.inotify.Watcher", Deaf)
    found = findings(config)["inotify"]
    assert (found.level, "no event" in found.message) == (Level.WARN, True)


def test_a_rename_that_copies_and_a_lock_that_does_not_hold_are_found(config, monkeypatch):
    def copies(self, target):
        data = self.read_bytes()
        self.unlink()
        Path(target).unlink()
        Path(target).with_name("spare").write_bytes(b"")  # takes the freed inode
        Path(target).write_bytes(data)

    monkeypatch.setattr(Path, "rename", copies)
    monkeypatch.setattr("fcntl.flock", lambda file, operation: None)
    found = findings(config)
    assert (found["rename"].level, found["flock"].level) == (Level.FAIL, Level.FAIL)


def test_a_compiled_part_that_does_not_import_is_named(config, monkeypatch):
    real = importlib.import_module

    def broken(name, *more):
        if name == "dspy_fastpath.ids":
            raise ImportError("undefined symbol: x")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", broken)
    found = findings(config)["compiled parts"]
    assert (found.level, "dspy_fastpath.ids: undefined symbol" in found.message) == (Level.FAIL, True)


def test_the_shim_that_slows_every_start_of_python_is_named(config, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "11.5")
    found = findings(config)["pynvml"]
    assert (found.level, "pip uninstall pynvml" in found.remedy) == (Level.WARN, True)


def test_a_clock_that_was_never_set_fails(config, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 12.0)
    assert findings(config)["clock"].level is Level.FAIL


def test_a_low_limit_is_told_with_the_command_that_raises_it(config, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda which: (128, 4096))
    found = findings(config)["open files"]
    assert (found.level, found.remedy.startswith("ulimit -n")) == (Level.FAIL, True)


def test_a_socket_in_the_way_of_the_folder_is_no_traceback(config):
    config.queue_dir.rmdir()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(config.queue_dir))
        levels = {one.level for one in doctor.examine(config)}
    assert Level.FAIL in levels


def test_traces_are_sent_where_what_sends_them_is_there(config, monkeypatch):
    def finding(endpoint, there):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: there)
        return doctor._traces(replace(config, otel_endpoint=endpoint))

    assert finding(None, None).level is Level.OK
    assert finding("http://127.0.0.1:4318", object()).message == "sent to http://127.0.0.1:4318"
    assert finding("http://127.0.0.1:4318", None).remedy == "pip install 'dspy-supervisor[otel]'"

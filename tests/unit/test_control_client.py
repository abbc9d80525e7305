"""Asking a supervisor over its socket: answers, refusals, silence, and a folder that is not to be trusted."""

import json
import os
import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest
from dspy_supervisor.control_client import RequestRefused, ask, find_by_queue, socket_path
from dspy_supervisor.errors import NotRunning, QueueUnsafe, ServiceUnavailable, WaitTimeout


@contextmanager
def listening(path, *parts):
    """Serve one connection: read a line, send the parts, close. Yields the requests it saw."""
    seen = []
    with ExitStack() as stack:
        folder = os.open(path.parent, os.O_PATH)
        stack.callback(os.close, folder)
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
        server.listen()

        def serve():
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                seen.append(json.loads(lines.readline()))
                for part in parts:
                    connection.sendall(part)
                if not parts:
                    connection.recv(1)  # silent until the other side gives up

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join, 10)
        yield seen


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    return socket_path(tmp_path / "run", "0190-queue", "main")


def test_the_socket_is_named_by_queue_and_instance(path):
    assert path.name == "0190-queue.main.sock"


def test_an_answer_may_come_in_pieces(path):
    with listening(path, b'{"ok": tr', b'ue, "pid": 7}', b"\n") as seen:
        assert ask(path, {"do": "status"}) == {"ok": True, "pid": 7}
    assert seen == [{"do": "status"}]


@pytest.mark.parametrize("timeout_s", [366 * 86400.0, 1e12])
def test_an_answer_may_be_waited_for_longer_than_the_kernel_counts(path, timeout_s):
    with listening(path, b'{"ok": true}\n'):
        assert ask(path, {"do": "status"}, timeout_s) == {"ok": True}


def test_a_refusal_carries_the_supervisors_words_and_exit_code(path):
    with (
        listening(path, b'{"ok": false, "error": "no task \'a\'", "exit": 4}\n'),
        pytest.raises(RequestRefused, match="no task 'a'") as caught,
    ):
        ask(path, {"do": "cancel", "id": "a"})
    assert caught.value.exit_code == 4


def test_nobody_there_is_not_running(path, tmp_path):
    with pytest.raises(NotRunning):
        ask(path, {"do": "status"})
    with pytest.raises(NotRunning):
        ask(tmp_path / "missing" / "x.sock", {"do": "status"})
    with listening(path, b'{"ok": true}\n'):
        ask(path, {"do": "status"})
    assert path.exists()  # what a killed supervisor leaves
    with pytest.raises(NotRunning):
        ask(path, {"do": "status"})


def test_silence_ends_at_the_deadline(path):
    with listening(path), pytest.raises(WaitTimeout, match="did not answer 'status'"):
        ask(path, {"do": "status"}, timeout_s=0.05)


@pytest.mark.parametrize("answer", [b"", b'{"ok": tr'])
def test_an_end_in_the_middle_is_no_answer(path, answer):
    with listening(path, answer), pytest.raises(ServiceUnavailable, match="ended while it was asked"):
        ask(path, {"do": "status"})


def test_something_else_that_listens_is_told_apart(path):
    with listening(path, b"220 mail ready\n"), pytest.raises(ServiceUnavailable, match="no supervisor"):
        ask(path, {"do": "status"})


def test_a_folder_that_others_may_write_is_not_asked(path):
    path.parent.chmod(0o777)
    with pytest.raises(QueueUnsafe, match="chmod 700"):
        ask(path, {"do": "status"})


def test_a_path_longer_than_an_address_still_works(tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir(mode=0o700)
    path = socket_path(folder, "id", "main")
    with listening(path, b'{"ok": true}\n'):
        assert ask(path, {"do": "status"})["ok"]


def test_a_queue_that_was_removed_is_found_by_asking(path, tmp_path):
    answer = json.dumps({"ok": True, "queue_dir": str(tmp_path / "gone")}).encode() + b"\n"
    with listening(path, answer):
        assert find_by_queue(path.parent, tmp_path / "gone", "main") == path
    with pytest.raises(NotRunning):
        find_by_queue(path.parent, tmp_path / "gone", "other")

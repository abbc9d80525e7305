"""The control socket's own side: whom it listens to."""

import os
import socket
from contextlib import closing

import pytest
from dspy_supervisor.control import Control
from dspy_supervisor.reactor import Reactor

NOBODY = 65534


def asked_by(path, user):
    """Ask from a process of that user; the end of the pipe that its answer comes from, and its pid."""
    answer, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                connection.connect(str(path))
                connection.sendall(b'{"do": "status"}\n')
                os.write(ours, b"got " + connection.recv(4096))
        except OSError as error:
            os.write(ours, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(ours)
    return answer, pid


def heard(reactor, path, user):
    answer, pid = asked_by(path, user)
    found = []

    def read():
        found.append(os.read(answer, 4096).decode())
        reactor.remove(answer)

    reactor.add(answer, read)
    try:
        while not found:
            reactor.run_once(30)
    finally:
        os.close(answer)
        os.waitpid(pid, 0)
    return found[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_gets_no_answer_even_where_the_file_lets_them_in(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o011)
    path = tmp_path / "control.sock"
    reactor = Reactor()
    with closing(Control(reactor, path, {"status": lambda request: {"pid": 7}})):
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o666)
        assert heard(reactor, path, None) == 'got {"ok":true,"pid":7}\n'
        assert heard(reactor, path, NOBODY) in ("got ", "ConnectionResetError", "BrokenPipeError")

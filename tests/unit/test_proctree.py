"""Real process trees, looked at and ended. What makes orphans runs in a process of its own, which is the subreaper."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest
from dspy_supervisor import proctree
from dspy_supervisor.proctree import descendants, kill_tree, look, reap_orphans, wait_gone

DEADLINE_S = 20

PRELUDE = """
import os, select, signal, sys, time
from dspy_supervisor.proctree import *
from dspy_supervisor import proctree

def below(body):
    "Fork a child that runs body and then blocks; returns its pid and what body wrote to its pipe, a line."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        body(lambda *words: os.write(writer, (" ".join(map(str, words)) + "\\n").encode()))
        block()
    os.close(writer)
    return pid, reader

def block():
    while True:
        signal.pause()

def line(reader):
    "Return the words of one line, with a deadline."
    text = b""
    while not text.endswith(b"\\n"):
        assert select.select([reader], [], [], 20)[0], "nothing came"
        text += os.read(reader, 1)
    return text.split()

def gone(pid):
    process = look(int(pid))
    return process is None or not process.alive
"""


def program(body):
    """Run body in a fresh Python after PRELUDE; it must end with 0."""
    with tempfile.TemporaryFile("w+") as errors:  # no pipe: what a failing test leaves running would hold it open
        ended = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
            stdin=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # code that kills too much must not reach this session
            timeout=60,
        )
        errors.seek(0)
        assert ended.returncode == 0, errors.read()


@pytest.fixture
def cat():
    """A process that lives until it is killed."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)
    yield child
    child.kill()
    child.stdin.close()
    child.wait(DEADLINE_S)


def test_a_process_says_who_it_is(cat):
    seen = look(cat.pid)
    assert (seen.pid, seen.parent, seen.group, seen.session) == (cat.pid, os.getpid(), cat.pid, cat.pid)
    assert seen.alive
    assert seen.started >= look(os.getpid()).started > 0


def test_a_name_with_blanks_and_brackets_is_read_past(tmp_path):
    path = shutil.copy("/bin/cat", tmp_path / "a) R 1 (b")
    with subprocess.Popen([path], stdin=subprocess.PIPE) as child:
        assert look(child.pid).parent == os.getpid()
        child.stdin.close()


def test_who_is_not_there_is_none():
    child = subprocess.Popen(["true"])
    assert wait_gone([child.pid], time.monotonic() + DEADLINE_S)
    assert not look(child.pid).alive  # a zombie
    child.wait()
    assert look(child.pid) is None
    assert descendants(child.pid) == []


def test_descendants_are_found_below_descendants():
    program("""
        def middle(say):
            pid, reader = below(lambda tell: (os.setsid(), tell("ready")))
            line(reader)
            say(os.getpid(), pid)
        pid, reader = below(middle)
        found = [int(word) for word in line(reader)]
        assert descendants(os.getpid()) == found == [pid, found[1]]
        assert descendants(pid) == found[1:]
        assert descendants(found[1]) == []
        kill_tree([pid], signal.SIGKILL)
        assert wait_gone(found, time.monotonic() + 20)
    """)


def test_a_tree_is_killed_with_grandchildren_that_left_the_group_and_ignore_sigterm():
    program("""
        def stubborn(say):
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("ready")
        def middle(say):
            pid, reader = below(stubborn)
            line(reader)
            say(os.getpid(), pid)
        pid, reader = below(middle)
        both = [int(word) for word in line(reader)]
        assert sorted(kill_tree([pid], signal.SIGKILL)) == sorted(both)
        assert wait_gone(both, time.monotonic() + 20)
    """)


def test_sigterm_reaches_everybody_below_also_who_is_stopped():
    program("""
        def middle(say):
            pid, reader = below(lambda tell: (tell("ready"), os.kill(os.getpid(), signal.SIGSTOP)))
            line(reader)
            say(os.getpid(), pid)
        pid, reader = below(middle)
        both = [int(word) for word in line(reader)]
        while look(both[1]).state != "T":
            pass
        assert sorted(kill_tree([pid], signal.SIGTERM)) == sorted(both)
        assert wait_gone(both, time.monotonic() + 20)
    """)


def test_the_session_of_a_dead_leader_is_still_its_tree():
    program("""
        def leader(say):
            os.setsid()
            pid, reader = below(lambda tell: tell("ready"))
            line(reader)
            say(pid)
            os._exit(0)
        become_subreaper()
        pid, reader = below(leader)
        orphan = int(line(reader)[0])
        assert wait_gone([pid], time.monotonic() + 20)
        assert look(orphan).parent == os.getpid()
        assert kill_tree([pid], signal.SIGKILL) == [orphan]
        assert wait_gone([orphan], time.monotonic() + 20)
    """)


def test_a_pid_that_is_somebody_else_by_now_is_not_hit(cat):
    earlier = look(cat.pid)._replace(started=look(cat.pid).started - 1)
    assert not proctree._send(earlier, signal.SIGKILL)
    assert cat.poll() is None
    assert proctree._send(look(cat.pid), signal.SIGKILL)
    assert cat.wait(DEADLINE_S) == -signal.SIGKILL


def test_a_group_with_a_stranger_in_it_is_not_signalled_as_a_group(cat, monkeypatch):
    """The child of a task may join the group of another worker."""
    calls = []
    monkeypatch.setattr(os, "killpg", lambda *call: calls.append(call))
    mine, stranger = look(cat.pid), look(cat.pid)._replace(pid=1 << 22, started=0)
    proctree._stop([mine], {mine.pid}, {mine.pid: mine, stranger.pid: stranger})
    assert calls == []
    proctree._stop([mine], {mine.pid}, {mine.pid: mine})
    assert calls == [(mine.group, signal.SIGSTOP)]
    for group in 0, 1, os.getpgrp():
        proctree._stop([mine._replace(group=group)], {mine.pid}, {})
    assert len(calls) == 1


def test_the_caller_is_never_in_its_own_tree():
    program("assert kill_tree([os.getpid()], signal.SIGKILL) == []")


def test_a_fork_bomb_is_ended_by_one_call():
    """In a session of its own, as a worker's and a command's are: only a group can be stopped as a whole."""
    program("""
        reader, writer = os.pipe()
        os.write(writer, bytes(2000))  # a fork takes a byte: should the call fail, this is where the bomb ends
        os.close(writer)
        def bomb(say):
            os.setsid()
            say("lit")
            while os.read(reader, 1):
                os.fork()
                signal.alarm(30)
                sum(range(300_000))  # 5 ms: growth that the processors, and this test, survive
        become_subreaper()
        pid, lit = below(bomb)
        line(lit)
        while len(descendants(pid)) < 10:
            pass
        killed = kill_tree([pid], signal.SIGKILL, 20)
        assert os.read(reader, 1), "the bomb was over before"
        assert wait_gone(killed, time.monotonic() + 20)
        assert descendants(os.getpid()) == []
    """)


@pytest.mark.parametrize("each_time", ["pass", "os.setsid()"])
def test_a_process_that_runs_from_pid_to_pid_is_caught(each_time):
    program(f"""
        reader, writer = os.pipe()
        os.write(writer, bytes(20_000))  # a fork takes a byte: should it not be caught, it ends here
        os.close(writer)
        def runner(say):
            os.setsid()
            say("lit")
            while os.read(reader, 1):
                if os.fork():
                    os._exit(0)
                {each_time}
            os._exit(0)
        become_subreaper()
        pid, lit = below(runner)
        line(lit)
        reap_orphans((), 20)
        assert descendants(os.getpid()) == []
        assert os.read(reader, 1), "it was over before"
    """)


def test_the_session_of_who_is_kept_is_left_alone():
    program("""
        def kept(say):
            os.setsid()
            def middle(tell):
                pid, reader = below(lambda tell: tell(os.getpid()))
                tell(int(line(reader)[0]))
                os._exit(0)
            pid, reader = below(middle)
            say(int(line(reader)[0]))
        become_subreaper()
        keep, reader = below(kept)
        orphan = int(line(reader)[0])
        while orphan not in proctree.children():
            pass
        reap_orphans({keep})
        assert look(keep).alive
        assert gone(orphan)
        reap_orphans(())
    """)


def test_what_a_task_left_is_reaped_and_who_is_kept_is_not():
    program("""
        def grandparent(say):
            def parent(tell):
                os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                tell(os.getpid())
            pid, reader = below(parent)
            say(*[word.decode() for word in line(reader)])
            os._exit(0)
        become_subreaper()
        kept, reader = below(lambda say: say("ready"))
        line(reader)
        first, reader = below(grandparent)
        orphan = int(line(reader)[0])
        assert reap_orphans({kept}) == 2
        assert look(first) is None and look(orphan) is None
        assert look(kept).alive
        assert reap_orphans(set()) == 1
        assert look(kept) is None
        assert reap_orphans(set()) == 0
    """)


def test_reaping_works_where_sigchld_is_ignored():
    program("""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        pid, reader = below(lambda say: say("ready"))
        line(reader)
        reap_orphans(())
        while look(pid):  # the kernel does it, a moment after death was told
            pass
    """)


def test_what_does_not_die_in_time_is_named(cat, monkeypatch):
    monkeypatch.setattr(proctree, "kill_tree", lambda *call: [])
    others = {pid for pid in descendants(os.getpid()) if pid != cat.pid}
    with pytest.raises(TimeoutError, match=f"process {cat.pid} does not die: it is in state [TRS]"):
        reap_orphans(others, within_s=0.0)


def test_a_worker_dies_with_its_parent():
    program("""
        become_subreaper()
        def parent(say):
            me = os.getpid()
            def worker(tell):
                die_with_parent(me)
                tell(os.getpid())
            pid, reader = below(worker)
            line(reader)
            say(pid)
        pid, reader = below(parent)
        worker = int(line(reader)[0])
        assert look(worker).alive
        os.kill(pid, signal.SIGKILL)
        assert wait_gone([worker], time.monotonic() + 20)
    """)


def test_a_worker_whose_parent_is_gone_already_dies_at_once():
    program("""
        pid = os.fork()
        if pid == 0:
            die_with_parent(os.getppid() + 1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    """)


def test_waiting_for_the_living_ends_at_the_deadline(cat):
    assert not wait_gone([cat.pid], time.monotonic())
    cat.kill()
    assert wait_gone([cat.pid, cat.pid], time.monotonic() + DEADLINE_S)


def test_no_descriptor_is_left_open(cat):
    before = os.listdir("/proc/self/fd")
    kill_tree([cat.pid], signal.SIGTERM)
    wait_gone([cat.pid], time.monotonic() + DEADLINE_S)
    look(cat.pid)
    assert os.listdir("/proc/self/fd") == before

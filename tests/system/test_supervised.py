"""The fixture that the other system tests stand on."""

import psutil
import pytest


def test_a_supervisor_is_ready_when_it_is_handed_out_and_ends_with_0(supervisor):
    one = supervisor()
    assert one.status()["running"]
    assert one.status()["pid"] == one.pid
    assert one.stop() == 0


def test_a_supervisor_that_cannot_start_fails_the_test_with_what_it_said(supervisor):
    with pytest.raises(pytest.fail.Exception, match="two words"):
        supervisor("--mode", "two words")


def test_nothing_is_left_of_a_supervisor_that_was_killed(supervisor):
    one = supervisor()
    workers = one.children()
    one.kill()
    one.clear()
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]

"""The loop calls who asked for an event, and nobody for what had the same descriptor before."""

import os

from dspy_supervisor.reactor import Reactor


def test_a_descriptor_that_is_closed_and_another_one_by_an_earlier_callback_tells_nobody_of_what_it_was():
    """Several events come at once; what the first one's callback opens may have the number of the second one's."""
    heard = []
    with Reactor() as reactor:
        pipes = {os.pipe() for _ in range(2)}

        def ended() -> None:
            heard.append("first")
            for read, write in list(pipes):
                reactor.remove(read)
                os.close(read)
                os.close(write)
            again = [os.pipe() for _ in pipes]
            assert {read for read, _ in again} & {read for read, _ in pipes}, "a number is used again"
            pipes.clear()
            for read, write in again:
                reactor.add(read, lambda: heard.append("another"))
                pipes.add((read, write))

        for read, write in pipes:
            os.write(write, b"x")
            reactor.add(read, ended)
        reactor.run_once(1.0)
        assert heard == ["first"]
        (_, write), *_ = pipes
        os.write(write, b"x")
        reactor.run_once(1.0)
        assert heard == ["first", "another"]
    for pipe in pipes:
        for descriptor in pipe:
            os.close(descriptor)


def test_a_callback_that_is_changed_is_called_as_it_is_then():
    heard = []
    read, write = os.pipe()
    with Reactor() as reactor:
        reactor.add(read, lambda: heard.append("old"))
        reactor.add(read, lambda: heard.append("new"))
        os.write(write, b"x")
        reactor.run_once(1.0)
    assert heard == ["new"]
    os.close(read)
    os.close(write)

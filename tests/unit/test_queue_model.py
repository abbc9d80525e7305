"""The queue against a model of it: random interleavings of everything that moves tasks, with deaths anywhere.

The model knows of each accepted task what it is and where it must be. After every step the folders are compared with it, and
the invariants of its protocol are asserted. Where a process dies in a step, the queue may have done it or not, and nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from dspy_supervisor import gc
from dspy_supervisor.errors import DuplicateTask
from dspy_supervisor.lookup import find_all, find_one, name_of
from dspy_supervisor.producer import put_again
from dspy_supervisor.record import Claim
from dspy_supervisor.task import State, TaskName
from dspy_supervisor.taskqueue import parse_delayed
from dspy_supervisor.undertaker import Undertaker
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.queues import Killed, Node, Rig, Steps
from tests.system.invariants import places, violations

IDS = [f"t{number}" for number in range(4)]
FAR = 4e9
DEATH = st.none() | st.tuples(st.integers(0, 9), st.sampled_from(["before", "after"]))


@dataclass
class Known:
    """An accepted task, as the model sees it."""

    payload: int
    state: State
    attempt: int = 0
    owner: str = ""
    failed: bool = False  # fail() was asked for it
    record: bytes = b""


class QueueMachine(RuleBasedStateMachine):
    @initialize(level=st.sampled_from(["none", "full"]))
    def start(self, level):
        self.folder = Path(tempfile.mkdtemp(prefix="queue-model-"))
        self.rig = Rig(self.folder / "queue", durability=level)
        self.known: dict[str, Known] = {}
        self.held: dict[str, Claim] = {}  # by owner: one task at a time
        self.frozen: list[tuple[str, Claim]] = []  # owners that were taken for dead, with what they ran
        self.nodes = 0
        self.owners = [self.new_owner() for _ in range(3)]

    def teardown(self):
        if hasattr(self, "rig"):
            self.rig.close()
            shutil.rmtree(self.folder)

    def new_owner(self):
        self.nodes += 1
        owner = f"n{self.nodes}.1.0"
        self.rig.owner(owner)
        return owner

    def run(self, death, action):
        """Do something that the process may die of; return (True, what it said) or (False, None)."""
        if death is None:
            return True, action()
        try:
            with Steps(*death):
                return True, action()
        except Killed:
            return False, None

    def owner_died(self, owner):
        self.held.pop(owner, None)
        self.rig.recover(owner.partition(".")[0], me=f"r{self.nodes}")
        self.owners[self.owners.index(owner)] = self.new_owner()

    def see(self, task_id, *allowed):
        """Take over from the folders which of the allowed outcomes it was: (state, attempt)."""
        (place,) = find_all(self.rig.layout, [task_id])[task_id]
        known, name = self.known[task_id], name_of(place)
        attempt = known.attempt if place.state in (State.DONE, State.FAILED) else name.attempt
        assert (place.state, attempt) in allowed, (
            f"{task_id} is {place.state} at attempt {attempt}, not one of {allowed}"
        )
        known.state, known.attempt, known.owner = place.state, attempt, place.owner or ""

    # -- producers ---------------------------------------------------------------------------------------------------------

    @rule(task_id=st.sampled_from(IDS), payload=st.integers(0, 1), later=st.booleans(), many=st.booleans(), death=DEATH)
    def put(self, task_id, payload, later, many, death):
        due = FAR if later else None
        document = orjson.dumps({"id": task_id, "payload": payload})
        producer, before = self.rig.producer, find_one(self.rig.layout, task_id)

        def action():
            with suppress(DuplicateTask):
                producer.put_many([(task_id, document)], due=due) if many else producer.put(task_id, document, due=due)
                return True
            return False

        lived, accepted = self.run(death, action)
        known = self.known.get(task_id)
        if known is not None:
            assert not lived or accepted == (known.payload == payload)
        elif lived:
            assert before is None and accepted
            self.known[task_id] = Known(payload, State.DELAYED if later else State.PENDING)
        elif find_one(self.rig.layout, task_id) is not None:  # it died after the move: the task is in the queue
            self.known[task_id] = Known(payload, State.DELAYED if later else State.PENDING)

    @rule(task_id=st.sampled_from(IDS))
    def a_stranger_repeats_a_file(self, task_id):
        """A producer that knows nothing of us drops what it dropped before, while that is running or done."""
        known = self.known.get(task_id)
        if known is None or known.state in (State.PENDING, State.DELAYED) or known.attempt:
            return
        file = self.rig.path / "pending" / f"{task_id}.json"
        file.write_bytes(orjson.dumps({"payload": 7}))
        if known.state is State.CLAIMED:
            second = self.new_owner()
            claim = self.rig.queue.claim(file.name, self.rig.owner(second))
            assert claim is not None
            if self.rig.queue.release(file.name, self.rig.owner(second)):
                self.rig.queue.quarantine(self.rig.layout.pending, file.name, "it runs already")
        else:
            self.rig.queue.quarantine(self.rig.layout.pending, file.name, "it ended already")

    # -- owners ------------------------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2), task_id=st.sampled_from(IDS), death=DEATH)
    def claim(self, number, task_id, death):
        owner, known = self.owners[number], self.known.get(task_id)
        if owner in self.held or known is None:
            return
        file = TaskName(task_id, known.attempt).file
        lived, got = self.run(death, lambda: self.rig.queue.claim(file, self.rig.owner(owner)))
        if lived:
            assert (got is not None) == (known.state is State.PENDING)
            if got is not None:
                assert orjson.loads(got.payload) == known.payload
                self.held[owner] = got
                known.state, known.owner = State.CLAIMED, owner
            return
        was = known.state
        self.owner_died(owner)
        outcomes = [(was, known.attempt)]
        if was is State.PENDING:
            outcomes.append((State.PENDING, known.attempt + 1))
        self.see(task_id, *outcomes)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), how=st.sampled_from(["finish", "fail", "retry", "retry later", "release"]), death=DEATH)
    def end(self, data, how, death):
        owner = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held[owner]
        task_id, attempt = held.name.id, held.name.attempt
        folder, queue = self.rig.owner(owner), self.rig.queue
        actions = {
            "finish": (lambda: self.rig.finish(held, orjson.dumps([owner, attempt]), owner), (State.DONE, attempt)),
            "fail": (lambda: self.rig.fail(held, owner), (State.FAILED, attempt)),
            "retry": (lambda: queue.retry(held.file, folder, 0.0), (State.PENDING, attempt + 1)),
            "retry later": (lambda: queue.retry(held.file, folder, FAR), (State.DELAYED, attempt + 1)),
            "release": (lambda: queue.release(held.file, folder), (State.PENDING, attempt)),
        }
        action, outcome = actions[how]
        self.known[task_id].failed |= how == "fail"
        lived, ended = self.run(death, action)
        if lived:
            assert ended
            del self.held[owner]
            self.see(task_id, outcome)
        else:
            self.owner_died(owner)
            self.see(task_id, outcome, (State.PENDING, attempt + 1))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), death=DEATH)
    def take_from_one_that_is_only_frozen(self, data, death):
        owner = data.draw(st.sampled_from(sorted(self.held)))
        held = self.held.pop(owner)
        self.frozen.append((owner, held))
        self.owners[self.owners.index(owner)] = self.new_owner()
        node = owner.partition(".")[0]
        self.run(death, lambda: self.rig.recover(node, me="second"))
        self.rig.recover(node, "second", me="third")
        self.see(held.name.id, (State.PENDING, held.name.attempt + 1), (State.PENDING, held.name.attempt + 2))

    @precondition(lambda self: self.frozen)
    @rule(data=st.data(), how=st.sampled_from(["finish", "fail", "retry", "release"]))
    def thaw(self, data, how):
        owner, held = data.draw(st.sampled_from(self.frozen))
        before = {name: content for name, content in self.rig.tree().items() if not name.startswith("quarantine")}
        folder = self.rig.owner(owner)
        assert not {
            "finish": lambda: self.rig.finish(held, b'"late"', owner),
            "fail": lambda: self.rig.fail(held, owner),
            "retry": lambda: self.rig.queue.retry(held.file, folder, 0.0),
            "release": lambda: self.rig.queue.release(held.file, folder),
        }[how]()
        after = {name: content for name, content in self.rig.tree().items() if not name.startswith("quarantine")}
        assert after == before

    @rule()
    def time_passes(self):
        for file in self.rig.names("delayed"):
            name = parse_delayed(file)[1]
            assert self.rig.queue.promote(file)
            self.see(name.id, (State.PENDING, name.attempt))

    @rule(death=DEATH)
    def recover_what_needs_none(self, death):
        """A recovery beside owners that live changes nothing of theirs, wherever it is cut off."""
        before = places(self.rig.path)
        self.run(death, lambda: self.rig.recover("nobody", me="fourth"))
        assert places(self.rig.path) == before

    # -- those who look after the queue ------------------------------------------------------------------------------------

    @rule(task_id=st.sampled_from(IDS), death=DEATH)
    def cancel(self, task_id, death):
        known = self.known.get(task_id)
        if known is None or known.state not in (State.PENDING, State.DELAYED):
            return
        was, known.failed, self.nodes = (known.state, known.attempt), True, self.nodes + 1
        boss = Undertaker(self.rig.queue, Node(f"c{self.nodes}"))
        lived, now = self.run(death, lambda: boss.cancel(task_id))
        if lived:
            assert now is State.FAILED
            self.see(task_id, (State.FAILED, known.attempt))
        else:
            self.rig.recover(f"c{self.nodes}", me="fifth")
            self.see(task_id, was, (State.FAILED, known.attempt), (State.PENDING, known.attempt + 1))
        boss.close()

    @rule(task_id=st.sampled_from(IDS), death=DEATH)
    def try_again(self, task_id, death):
        known = self.known.get(task_id)
        if known is None or known.state is not State.FAILED:
            return
        lived, _ = self.run(death, lambda: put_again(self.rig.layout, task_id))
        again = (State.PENDING, known.attempt + 1)
        if not lived and find_one(self.rig.layout, task_id).state is State.FAILED:
            return
        known.record = b""
        self.see(task_id, again)

    @rule(task_id=st.sampled_from(IDS), death=DEATH)
    def forget(self, task_id, death):
        """What ended is cleared away; its id may be used again."""
        known = self.known.get(task_id)
        if known is None or known.state not in (State.DONE, State.FAILED):
            return
        if self.frozen:
            return  # one that stood still for as long as records are kept would find its id used again
        lived, _ = self.run(death, lambda: gc.forget(self.rig.layout, [known.state], keep=0))
        left = set(places(self.rig.path))
        assert not lived or task_id not in left
        for gone in self.known.keys() - left:
            assert self.known.pop(gone).state is known.state

    # -- what must hold ----------------------------------------------------------------------------------------------------

    @invariant()
    def the_folders_are_as_the_model_says(self):
        if not hasattr(self, "rig"):
            return
        found = places(self.rig.path)
        assert set(found) == set(self.known), "no task is lost, and none appears"
        for task_id, known in self.known.items():
            (place,) = found[task_id]
            folder, _, file = place.partition("/")
            assert folder == known.state, place
            if known.state is State.CLAIMED:
                assert file == f"{known.owner}/{TaskName(task_id, known.attempt).file}"

    @invariant()
    def the_invariants_hold(self):
        if not hasattr(self, "rig"):
            return
        may_fail = [task_id for task_id, known in self.known.items() if known.failed]
        wrong = violations(self.rig.path, self.known, may_fail=may_fail)
        assert [line for line in wrong if "quarantine/" not in line] == []
        for task_id, known in self.known.items():
            if known.state in (State.DONE, State.FAILED):
                record = (self.rig.path / known.state / f"{task_id}.json").read_bytes()
                assert known.record in (b"", record), "a record never changes"
                assert orjson.loads(record)["payload"] == known.payload
                known.record = record


QUICK = settings(
    max_examples=40, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip


def test_random_interleavings_keep_the_invariants():
    QueueMachine.TestCase.settings = QUICK
    QueueMachine.TestCase().runTest()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_random_interleavings_keep_the_invariants():
    QueueMachine.TestCase.settings = settings(QUICK, max_examples=600, stateful_step_count=50)
    QueueMachine.TestCase().runTest()

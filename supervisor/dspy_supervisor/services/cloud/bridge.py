"""The bridge to rented machines: claims tasks when a machine has room, hands them over, and brings back what became of them.

It may be killed at any moment. What it holds lies in claimed/NODE.N.cloud/, what it ordered in cloud/ (see book.py): the
next one logs into the same machines, which tell what they have. Told to stop, it waits for what runs, as long as it has,
and deletes every machine. Should it be killed with its supervisor, the warden deletes them (see warden.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Any

from dspy_fastpath.counters import Gauge, Page

from ...channel import Kind
from ...errors import AlreadyRunning, SupervisorError
from ...jobbook import is_rented
from ...layout import Layout, list_folder
from ...log import log
from ...parts import ServicePost
from ...record import Claim
from ...task import TaskName
from ...taskqueue import TaskQueue, Unusable
from .book import Book
from .fleet import Fleet, Need
from .pod import Pod
from .provider import CloudError, Provider, provider_of
from .settle import Settler, Told
from .wire import Message

_TURN_S = 0.25
_STATE_S = 1.0
_WISH_S = 1.0
_ADOPT_S = 5.0
_TROUBLE_S = 5.0
_DELETION_S = 8.0  # of the time that a drain has: deletions get so much


class Bridge:
    """One bridge of one supervisor."""

    def __init__(self, post: ServicePost, layout: Layout, page: Page, book: Book, provider: Provider) -> None:
        self._post, self._link, self._config = post, post.link, post.config
        self._layout, self._page, self._book = layout, page, book
        config = post.config
        self._queue = TaskQueue(layout, max_bytes=config.max_task_bytes, max_depth=config.max_depth)
        self._folder = self._queue.open_owner(post.owner)
        self._settler = Settler(self._queue, self._folder, config, page)
        self._fleet = Fleet(config, book, provider, lose=self._lose_all)
        self._klass = tuple(config.classes).index(config.cloud_class)
        self._claims: dict[str, Claim] = {}  # all that we hold
        self._where: dict[str, Pod] = {}
        self._homeless: dict[str, set[str]] = {}  # adopted: the machines that may have it, and did not say so yet
        self._unsettled: list[tuple[str, str, str]] = []  # file, machine and reason of what the disk did not take
        self._settle_at = self._state_at = self._adopt_at = self._wish_at = 0.0
        self._wished = 0
        self._state: dict[str, Any] = {}
        self._stopping = self._anew = False

    def run(self) -> int:
        """Carry tasks until told to stop; return the exit code."""
        while not self._stopping:
            self._wait(_TURN_S)
            self._link.alive()
            for message in self._link.receive(0.0):
                self._hear(message)
            with self._on_disk():
                self._turn(time.monotonic())
        if not self._anew:
            self._end()
        return 0

    def close(self) -> None:
        """Give everything back; where it was not ended, machines go on."""
        self._fleet.close()
        os.close(self._folder)
        self._queue.close_owner(self._post.owner)

    # -- turns ------------------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        if now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_S
            self._adopt()
        if now >= self._wish_at:
            self._wish_at = now + _WISH_S
            self._wished, self._fleet.held = self._book.wish()
        self._listen(now)
        if now >= self._settle_at:
            self._settle_again(now)
        need = Need(self._waiting, self._config.cloud_workers, self._config.cloud_pods, self._wished)
        self._fleet.turn(now, need)
        self._place()
        if now >= self._state_at:
            self._state_at = now + _STATE_S
            self._show()

    @property
    def _waiting(self) -> int:
        return self._page.gauge(self._klass, Gauge.PENDING) + len(self._claims)

    def _wait(self, longest_s: float) -> None:
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        for pod in self._fleet.pods.values():
            for descriptor, writing in pod.descriptors():
                poll.register(descriptor, select.POLLOUT if writing else select.POLLIN)
        found = poll.poll(longest_s * 1000)
        if found and all(event & (select.POLLHUP | select.POLLERR) for _, event in found):
            time.sleep(0.02)  # a line that ended is readable until its process is reaped

    def _hear(self, message: dict[str, Any]) -> None:
        if message["op"] == "feed":
            for file in message["files"]:
                self._claim(str(file))
        elif message["op"] == "cancel":
            self._cancel(str(message["file"]))
        elif message["op"] == "stop":
            self._stopping, self._anew = True, bool(message.get("anew"))

    def _listen(self, now: float) -> None:
        for pod in list(self._fleet.pods.values()):
            for message in pod.turn(now):
                self._say(pod, message)

    def _say(self, pod: Pod, message: Message) -> None:
        """A machine said something."""
        header = message.header
        if header["op"] == "hello":
            self._greeted(pod, [str(file) for file in header["tasks"]])
        elif header["op"] == "alive":
            pod.serving, pod.problem = bool(header["serving"]), str(header.get("problem") or "")
            if pod.serving and pod.entry.ready_at is None:
                pod.entry = self._book.write(pod.entry, ready_at=time.time())
                log.info("machine_serves", machine=pod.name, after_s=round(time.time() - pod.entry.ordered_at, 1))
        elif header["op"] == "ended":
            self._ended(pod, str(header["file"]), int(header["record"]), list(header["files"]), message.body)
        elif header["op"] == "refused":
            file = str(header["file"])
            if self._where.get(file) is pod:
                pod.problem = f"it does not take {file}: {header['reason']}"
                self._lose(file, pod.name, pod.problem)

    # -- tasks ------------------------------------------------------------------------------------------------

    def _claim(self, file: str) -> None:
        try:
            held = self._queue.claim(file, self._folder)
        except Unusable as unusable:
            if unusable.may_change:
                with contextlib.suppress(OSError):
                    self._queue.release(file, self._folder)
                self._report(file, Told(Kind.GONE))
            else:
                self._queue.quarantine(self._folder, file, unusable.reason)
                self._report(file, Told(Kind.QUARANTINED, unusable.reason))
            return
        except OSError as error:
            with contextlib.suppress(OSError):
                self._queue.release(file, self._folder)
            self._report(file, Told(Kind.TROUBLE, f"{file} can't be claimed: {error}"))
            return
        if held is None:
            self._report(file, Told(Kind.GONE))
            return
        self._claims[file] = held

    def _place(self) -> None:
        """Give what we hold to machines with room; what none will take soon goes back to the queue."""
        usable = [pod for pod in self._fleet.pods.values() if pod.is_usable]
        for file, held in list(self._claims.items()):
            if file in self._where or any(file == one[0] for one in self._unsettled):
                continue
            if file in self._homeless:
                self._homeless[file] &= {name for name, pod in self._fleet.pods.items() if not pod.greeted}
                if self._homeless[file]:
                    continue
                del self._homeless[file]
            pod = min(usable, key=lambda one: len(one.tasks), default=None)
            if pod is None or len(pod.tasks) >= self._room:
                self._release(file)
                continue
            self._where[file] = pod
            pod.put(held)

    @property
    def _room(self) -> int:
        """How many tasks one machine is given: some more than run, so that none waits for the next."""
        return self._config.cloud_workers + max(1, self._config.cloud_workers // 4)

    def _greeted(self, pod: Pod, tasks: list[str]) -> None:
        pod.greeted, pod.idle_since = True, time.monotonic()
        there = {name.id for file in tasks if (name := TaskName.parse(file)) is not None}
        for file, held in self._claims.items():
            if self._where.get(file) is pod or (file in self._homeless and held.name.id in there):
                self._homeless.pop(file, None)
                self._where[file] = pod
                pod.put(held)  # it has it already, and now it tells how it ends

    def _ended(self, pod: Pod, file: str, record: int, files: list[Any], body: bytes) -> None:
        if file not in self._claims:
            pod.tell("settled", file)
            return
        outputs, place = [], record
        for name, size in files:
            outputs.append((str(name), body[place : place + int(size)]))
            place += int(size)
        try:
            told = self._settler.ended(file, pod.name, body[:record], outputs)
        except OSError as error:  # the disk: the machine tells again when it is asked again
            log.warning("cloud_trouble", task=file, error=str(error), next=f"again in {_TROUBLE_S:.0f} s")
            self._unsettled.append((file, pod.name, ""))
            self._settle_at = time.monotonic() + _TROUBLE_S
            return
        pod.tell("settled", file)
        log.info("cloud_ended", task=file, machine=pod.name, told=told.kind.name)
        self._forget(file)
        self._report(file, told)

    def _cancel(self, file: str) -> None:
        pod = self._where.get(file)
        if pod is not None:
            pod.tell("cancel", file)
        elif file in self._claims:
            self._release(file)

    def _lose_all(self, pod: Pod, why: str) -> None:
        for file in list(pod.tasks):
            self._lose(file, pod.name, why)

    def _lose(self, file: str, machine: str, why: str) -> None:
        try:
            told = self._settler.lose(file, machine, why)
        except OSError as error:
            log.warning("cloud_trouble", task=file, error=str(error), next=f"again in {_TROUBLE_S:.0f} s")
            self._detach(file)
            self._unsettled.append((file, machine, why))
            self._settle_at = time.monotonic() + _TROUBLE_S
            return
        log.info("cloud_lost", task=file, machine=machine, reason=why)
        self._forget(file)
        self._report(file, told)

    def _settle_again(self, now: float) -> None:
        entries, self._unsettled = self._unsettled, []
        for file, machine, why in entries:
            if why:
                self._lose(file, machine, why)
            elif (pod := self._where.get(file)) is not None and file in self._claims:
                pod.put(self._claims[file])

    def _release(self, file: str) -> None:
        """Put a task back that no machine has; nothing is charged."""
        with contextlib.suppress(OSError):
            self._queue.release(file, self._folder)
            self._forget(file)
            self._report(file, Told(Kind.RETURNED))

    def _forget(self, file: str) -> None:
        self._claims.pop(file, None)
        self._homeless.pop(file, None)
        self._detach(file)

    def _detach(self, file: str) -> None:
        pod = self._where.pop(file, None)
        if pod is not None:
            pod.tasks.discard(file)
            pod.idle_since = time.monotonic()

    def _adopt(self) -> None:
        """Take the claims of bridges before this one: who has the book's lock is the only one."""
        for owner in list_folder(self._layout.claimed):
            if not is_rented(owner) or owner == self._post.owner:
                continue
            folder = self._queue.open_owner(owner)
            try:
                for file in list_folder(folder):
                    name = TaskName.parse(file)
                    if name is None or not self._queue.hand_over(folder, file, self._folder, name):
                        continue
                    with contextlib.suppress(Unusable):
                        if (held := self._queue.read_claim(file, self._folder)) is not None:
                            self._claims[file] = held
                            self._homeless[file] = set(self._fleet.pods)
            finally:
                os.close(folder)
            self._queue.close_owner(owner)

    # -- the supervisor ---------------------------------------------------------------------------------------

    def _report(self, file: str, told: Told) -> None:
        facts = {"kind": int(told.kind), "file": file, "text": told.text[:1000], "run_s": told.run_s}
        self._link.send({"op": "report", **facts})

    def _show(self) -> None:
        fleet = self._fleet
        usable = sum(pod.is_usable for pod in fleet.pods.values())
        cap = self._config.cloud_spend_cap
        state: dict[str, Any] = {
            "op": "state",
            "inflight": len(self._claims),
            "places": 0 if self._stopping else usable * self._room,
            "problem": self._problem(usable),
            "provider": self._config.cloud_provider,
            "spent": round(self._book.spent(), 4),
            "rate_hr": round(fleet.rate, 4),
            "cap": cap or None,
            "machines": [
                {
                    "name": pod.name,
                    "state": pod.state,
                    "where": pod.entry.where or pod.entry.host,
                    "tasks": len(pod.tasks),
                    "price_hr": pod.entry.price_hr,
                    "problem": pod.problem or (pod.draining or None),
                }
                for pod in fleet.pods.values()
            ],
        }
        if state != self._state:
            self._state = state
            self._link.send(state)

    def _problem(self, usable: int) -> str | None:
        """Return why nothing can be handed over, for who asks about a task."""
        fleet = self._fleet
        if fleet.held:
            return fleet.held
        if usable:
            return None
        if fleet.problem:
            return fleet.problem
        troubled = [f"{pod.name}: {pod.problem}" for pod in fleet.pods.values() if pod.problem]
        if troubled:
            return troubled[0]
        if fleet.pods:
            return f"{len(fleet.pods)} machines are being started"
        return "a machine is about to be ordered" if self._waiting else None

    @contextlib.contextmanager
    def _on_disk(self) -> Any:
        """Trouble with the queue's folders passes, and nothing is decided by it."""
        try:
            yield
        except OSError as error:
            log.warning("cloud_trouble", task="", error=str(error), next="trying again")
            with contextlib.suppress(OSError):
                if not self._layout.is_current() and self._layout.path.is_dir():
                    raise SupervisorError("the queue's folder was replaced: beginning anew there") from error
            time.sleep(0.2)

    # -- the end ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let what runs end, as long as the drain gives time for it, and delete every machine."""
        fleet = self._fleet
        fleet.closing = True
        began = time.monotonic()
        longest = max(0.0, self._config.drain_s - _DELETION_S)
        for pod in fleet.pods.values():
            pod.draining = pod.draining or "the supervisor is stopping"
        while fleet.pods:
            self._wait(_TURN_S)
            self._link.alive()
            for message in self._link.receive(0.0):
                if message["op"] == "cancel":
                    self._cancel(str(message["file"]))
            with self._on_disk():
                now = time.monotonic()
                self._listen(now)
                if now - began >= longest:
                    for pod in list(fleet.pods.values()):
                        if now >= pod.delete_at:
                            fleet.delete(pod, "the supervisor is stopping")
                fleet.turn(now, Need(0, 1, 0, 0))
                if now >= self._state_at:
                    self._state_at = now + _STATE_S
                    self._show()
        for file in list(self._claims):
            self._release(file)
        self._show()


def run(post: ServicePost) -> int:
    """Be the bridge of a supervisor; return the exit code."""
    with (
        Layout.open(post.queue_dir, insecure=post.config.insecure) as layout,
        Page.attach(post.page, writable=True) as page,
        contextlib.closing(Book(layout)) as book,
    ):
        problem = _lock(post, book)
        if problem is not None:
            return problem
        try:
            provider = provider_of(post.config)
        except CloudError as error:
            return _idle(post, str(error))
        with contextlib.closing(Bridge(post, layout, page, book, provider)) as bridge:
            return bridge.run()


def _lock(post: ServicePost, book: Book) -> int | None:
    """Wait until nobody else looks after the machines; return an exit code where that is to be stopped."""
    while True:
        try:
            book.take_lock()
        except AlreadyRunning as error:
            post.link.send({"op": "state", "problem": str(error), "places": 0})
            if any(message["op"] == "stop" for message in post.link.receive(1.0)):
                return 0
        else:
            return None


def _idle(post: ServicePost, why: str) -> int:
    """Say what is missing until told to stop."""
    post.link.send({"op": "state", "problem": why, "places": 0})
    while not any(message["op"] == "stop" for message in post.link.receive(1.0)):
        post.link.alive()
    return 0

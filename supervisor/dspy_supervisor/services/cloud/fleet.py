"""The machines of one bridge: ordered when tasks wait, deleted when they are not needed, and never dearer than allowed.

Providers are asked in threads, since they may take seconds; what they answer is dealt with in the bridge's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from ...config import Config
from ...log import log
from .book import Book, Entry, is_ours
from .pod import Pod
from .provider import CloudError, Machine, Offer, Provider, Stage

_LOOK_S, _FIRST_LOOK_S, _SOON_S = 15.0, 1.0, 5.0  # the first come soon after an order, and each takes twice as long
_STRAY_S = 60.0  # a machine that is listed so long after its deletion is deleted again
_UNSEEN_S, _UNSEEN_LOOKS = 90.0, 3  # an order of which nothing is listed for so long was not carried out
_GONE_LOOKS = 2  # listings in a row without a machine that was there
_CLOSING_S = 30.0  # what a deletion may take: the spend cap is kept with this to spare
_NO_STOCK_S = 30.0

_T = TypeVar("_T")


class Need(NamedTuple):
    """What decides about the number of machines."""

    tasks: int  #: that wait, or are with machines
    workers: int  #: tasks at once on one machine
    most: int  #: machines
    wished: int  #: machines a person wants kept


def wanted(need: Need) -> int:
    """Return how many machines there should be."""
    return min(need.most, max(need.wished, math.ceil(need.tasks / need.workers)))


class Fleet:
    """Orders, looks and deletions."""

    def __init__(self, config: Config, book: Book, provider: Provider, *, lose: Callable[[Pod, str], None]) -> None:
        self._config, self._book, self._provider, self._lose = config, book, provider, lose
        self.pods: dict[str, Pod] = {entry.name: Pod(config, book, entry) for entry in book.open()}
        self.problem = ""  #: why no machine can be had
        self.closing = False  #: nothing more is ordered
        self.held = ""  #: why a person wants none
        self._asked: list[tuple[Future[Any], Callable[[Future[Any]], None]]] = []
        self._threads = ThreadPoolExecutor(4, "provider")
        self._looking = self._ordering = False
        self._look_at = self._order_at = 0.0
        self._look_s = _LOOK_S
        self._looks: dict[str, int] = {}  # successful listings since an order whose machine is not known

    # -- money ------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """What all machines cost now, in US dollars an hour."""
        return sum(pod.entry.price_hr for pod in self.pods.values())

    def left(self) -> float:
        """Return what may still be spent, in US dollars; inf without a cap."""
        cap = self._config.cloud_spend_cap
        return cap - self._book.spent() if cap else math.inf

    def _reserve(self, rate: float) -> float:
        """Return what it takes to bring what runs to an end, at this rate, and to delete it all."""
        return rate * (self._config.drain_s + _CLOSING_S) / 3600

    # -- turns ------------------------------------------------------------------------------------------------

    def turn(self, now: float, need: Need) -> None:
        """Do what is due (``now``: monotonic)."""
        self._collect()
        self._judge_time(now)
        self._judge_money()
        for pod in list(self.pods.values()):
            if pod.draining and not pod.tasks and not pod.deleting and now >= pod.delete_at:
                self.delete(pod, pod.draining)
        if now >= self._look_at and not self._looking and (self.pods or self._look_at == 0.0):
            self._look()
        live = [pod for pod in self.pods.values() if not pod.draining and not pod.deleting]
        target = 0 if self.closing or self.held else wanted(need)
        if len(live) < target and not self._ordering and now >= self._order_at:
            self._order()
        elif len(live) > target:
            self._shrink(live, len(live) - target, now, at_once=bool(self.held))

    def delete(self, pod: Pod, why: str) -> None:
        """Delete a machine; its tasks go back."""
        if pod.deleting:
            return
        self._lose(pod, f"{pod.name} is deleted: {why}")
        pod.tell("end")
        pod.deleting, pod.draining = True, pod.draining or why
        machine_id = pod.entry.machine_id
        if not machine_id:  # its order may have been carried out: a look tells
            pod.deleting, pod.delete_at = False, time.monotonic() + _SOON_S
            self._look_at = min(self._look_at, time.monotonic())
            return

        def answered(future: Future[Any]) -> None:
            if (error := future.exception()) is not None:
                log.error("machine_not_deleted", machine=pod.name, id=machine_id, error=str(error), next="trying again")
                pod.deleting, pod.delete_at = False, time.monotonic() + _SOON_S
                return
            self._close(pod, why)

        self._ask(lambda: self._provider.delete(machine_id), answered)

    def close(self) -> None:
        """Wait for what is asked, and end the threads; machines stay as they are."""
        for pod in self.pods.values():
            pod.hang_up("")
        self._threads.shutdown(cancel_futures=True)

    # -- orders -----------------------------------------------------------------------------------------------

    def _order(self) -> None:
        self._ordering = True

        def answered(future: Future[Any]) -> None:
            if (error := future.exception()) is not None:
                self._refused(error)
                return
            taken = {pod.entry.host for pod in self.pods.values()}
            offers = [offer for offer in future.result() if str(offer.facts.get("host", "")) not in taken - {""}]
            offer = offers[0] if offers else None
            if offer is None:
                gpu = f"{self._config.cloud_gpus} x {self._config.cloud_gpu} for {self._config.cloud_max_price:g} $/h or less"
                self._put_off(
                    "all of cloud_hosts are in use" if taken - {""} else f"nothing in stock: {gpu}", _NO_STOCK_S
                )
            elif self.left() <= self._reserve(self.rate + offer.price_hr):
                cap = self._config.cloud_spend_cap
                self._put_off(f"the spend cap is reached: {self._book.spent():.2f} of {cap:g} $ are spent", _NO_STOCK_S)
            else:
                self._order_this(offer)

        self._ask(self._provider.offers, answered)

    def _order_this(self, offer: Offer) -> None:
        name = self._book.new_name()
        host = str(offer.facts.get("host", ""))
        provider = str(self._config.cloud_provider)
        # Counted at the bound until the answer says less: what is not known is not cheap.
        price = max(offer.price_hr, self._config.cloud_max_price)
        entry = Entry(name, provider, time.time(), price, offer.where, offer.gpu, host)
        pod = self.pods[name] = Pod(self._config, self._book, self._book.write(entry))
        log.info("machine_ordered", machine=name, where=offer.where, price_hr=offer.price_hr)

        def answered(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self._order_at, self.problem, self._ordering = 0.0, "", False
                self._look_s, self._look_at = _FIRST_LOOK_S, time.monotonic() + _FIRST_LOOK_S
                self._known(pod, future.result())
                if pod.entry.price_hr > max(self._config.cloud_max_price, offer.price_hr):
                    self.delete(pod, f"it costs {pod.entry.price_hr:g} $/h, more than cloud_max_price")
                return
            if isinstance(error, CloudError) and not error.definite:
                log.warning("order_unknown", machine=name, error=str(error), next="looking for its name")
                self._order_at, self._ordering = time.monotonic() + _SOON_S, False
                self._look_at = 0.0
                return
            self._book.write(pod.entry, ended_at=pod.entry.ordered_at, why=f"not made: {error}")
            del self.pods[name]
            self._refused(error)

        self._ask(lambda: self._provider.create(name, offer), answered)

    def _refused(self, error: BaseException) -> None:
        log.warning("order_refused", error=str(error))
        self._put_off(str(error), getattr(error, "retry_s", _NO_STOCK_S))

    def _put_off(self, why: str, seconds: float) -> None:
        self.problem, self._ordering = why, False
        self._order_at = time.monotonic() + max(1.0, seconds)

    # -- looks ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._looking = True

        def answered(future: Future[Any]) -> None:
            self._looking = False
            self._look_s = min(_LOOK_S, self._look_s * 2)
            self._look_at = time.monotonic() + self._look_s
            if (error := future.exception()) is not None:
                log.warning("machines_unseen", error=str(error), next="looking again")
                self.problem = str(error)
                return
            self._looked(future.result())

        self._ask(self._provider.machines, answered)

    def _looked(self, machines: list[Machine]) -> None:
        by_id = {machine.id: machine for machine in machines}
        by_name = {machine.name: machine for machine in machines}
        for pod in list(self.pods.values()):
            entry = pod.entry
            machine = by_id.get(entry.machine_id) or by_name.get(entry.name) or by_id.get(entry.host)
            if machine is not None:
                self._seen(pod, machine)
            elif entry.machine_id:
                pod.missing += 1
                if pod.missing >= _GONE_LOOKS:
                    self._died(pod, "its provider does not know it any more")
            else:
                self._looks[pod.name] = looks = self._looks.get(pod.name, 0) + 1
                if looks >= _UNSEEN_LOOKS and time.time() - entry.ordered_at > _UNSEEN_S:
                    self._book.write(entry, ended_at=entry.ordered_at, why="not made: no listing has it")
                    del self.pods[pod.name]
        known = {entry.name: entry for entry in self._book.entries()}
        for machine in machines:
            if not is_ours(machine.name, self._book.prefix) or machine.name in self.pods or machine.stage is Stage.GONE:
                continue
            past = known.get(machine.name)
            if past is None or past.ended_at is None or time.time() - past.ended_at > _STRAY_S:
                log.warning("machine_stray", machine=machine.name, id=machine.id, next="deleting it")
                self._ask(lambda stray=machine.id: self._provider.delete(stray), lambda future: None)  # type: ignore[misc]

    def _seen(self, pod: Pod, machine: Machine) -> None:
        pod.missing = 0
        if machine.stage is Stage.GONE:
            self._died(pod, f"it was ended by its provider ({machine.why})")
            return
        self._known(pod, machine)
        if machine.stage is Stage.BROKEN and not pod.deleting:
            self.delete(pod, machine.why)

    def _known(self, pod: Pod, machine: Machine) -> None:
        pod.machine = machine
        price = pod.entry.price_hr if machine.price_hr is None else machine.price_hr
        if pod.entry.machine_id != machine.id or pod.entry.price_hr != price:
            pod.entry = self._book.write(pod.entry, machine_id=machine.id, price_hr=price)

    def _died(self, pod: Pod, why: str) -> None:
        log.warning("machine_died", machine=pod.name, reason=why)
        self._lose(pod, f"{pod.name} is gone: {why}")
        self._close(pod, why)

    def _close(self, pod: Pod, why: str) -> None:
        if self.pods.pop(pod.name, None) is None:
            return
        pod.hang_up(why)
        entry = self._book.write(pod.entry, ended_at=time.time(), why=why)
        log.info("machine_deleted", machine=pod.name, reason=why, cost=round(entry.cost(time.time()), 4))

    # -- judgements -------------------------------------------------------------------------------------------

    def _judge_time(self, now: float) -> None:
        for pod in list(self.pods.values()):
            if pod.deleting or now < pod.delete_at:
                continue
            if pod.entry.ready_at is None and time.time() - pod.entry.ordered_at > self._config.cloud_boot_s:
                why = f"it took no task within {self._config.cloud_boot_s:g} s of its order"
                self.delete(pod, f"{why} ({pod.problem})" if pod.problem else why)
                self._put_off(f"{pod.name}: {why}; {pod.problem}", self._config.backoff_cap_s)
            elif pod.entry.ready_at is not None and now - pod.reached_at > self._config.cloud_lost_s:
                why = f"it can't be reached for {self._config.cloud_lost_s:g} s"
                self.delete(pod, f"{why} ({pod.problem})" if pod.problem else why)

    def _judge_money(self) -> None:
        left = self.left()
        if left > self._reserve(self.rate) or not self.pods:
            return
        cap = self._config.cloud_spend_cap
        for pod in list(self.pods.values()):
            if not pod.draining:
                pod.draining = f"the spend cap of {cap:g} $ is near"
                log.warning("spend_cap", machine=pod.name, spent=round(self._book.spent(), 4), cap=cap)
            if left <= self.rate * _CLOSING_S / 3600 and time.monotonic() >= pod.delete_at:
                self.delete(pod, f"the spend cap of {cap:g} $ is reached")
        self.problem = f"the spend cap is reached: {self._book.spent():.2f} of {cap:g} $ are spent"

    def _shrink(self, live: list[Pod], number: int, now: float, *, at_once: bool) -> None:
        idle = [pod for pod in live if not pod.tasks and (at_once or now - pod.idle_since >= self._config.cloud_idle_s)]
        for pod in (live if at_once else idle)[:number]:
            pod.draining = self.held or f"it had no work for {self._config.cloud_idle_s:g} s"

    # -- threads ----------------------------------------------------------------------------------------------

    def _ask(self, what: Callable[[], _T], answered: Callable[[Future[Any]], None]) -> None:
        self._asked.append((self._threads.submit(what), answered))

    def _collect(self) -> None:
        done = [pair for pair in self._asked if pair[0].done()]
        self._asked = [pair for pair in self._asked if not pair[0].done()]
        for future, answered in done:
            answered(future)

"""GPUs as things to give out: which of them are ours, what a task needs of them, and who holds what.

Nothing here asks a driver: devices and free memory are handed in, so that every schedule can be played through. A task
says what it needs in its envelope, and all of it is optional::

    "resources": {"gpus": 2}                             two whole GPUs, which nobody else gets
    "resources": {"gpu_share": 0.25}                     a quarter of one
    "resources": {"gpu_share": 0.5, "gpu_memory": "8G"}  half of one, with 8 GiB of its memory

A slice of a GPU in MIG mode is a device of its own; a process can use one slice and no more (NVIDIA, "MIG User Guide").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from .setting import size

MAX_GPUS = 1024  #: that a task can ask for
_ANY = 1 << 50  # bytes: more than any GPU has
_EPSILON = 1e-9  # of a GPU: three times a third is a whole one


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one slice of a GPU in MIG mode."""

    uuid: str  #: as CUDA_VISIBLE_DEVICES takes it
    total_bytes: int  #: 0: the driver does not say
    parent: str = ""  #: UUID of the GPU that a slice is cut from; "": it is a whole GPU
    sliced: bool = False  #: in MIG mode: only its slices can be used
    exclusive: bool = False  #: its compute mode lets one process at a time use it

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU."""
        return bool(self.parent)


@dataclass(frozen=True, slots=True)
class Need:
    """What a task needs of GPUs: so many whole ones, or a share of one, or none at all."""

    gpus: int = 0  #: whole ones, for this task alone
    share: float = 0.0  #: of one GPU, from 0 to 1; 0 where it needs whole ones or none
    memory_bytes: int = 0  #: on each of them; 0: not known

    @property
    def count(self) -> int:
        """How many devices it is placed on."""
        return self.gpus or int(self.share > 0)


class NeedError(ValueError):
    """The resources of a task can't be understood."""


def read_need(resources: bytes | None, default: Need) -> Need:
    """Return what a task asks for by the ``resources`` of its envelope, and ``default`` for what it does not say.

    Raises NeedError, naming the key, the value and what was expected.
    """
    if resources is None:
        return default
    asked = orjson.loads(resources)  # the scan of the envelope let through what this takes
    if asked is None:
        return default
    if not isinstance(asked, dict):
        raise NeedError(f"resources={_shown(asked)}: expected an object, as {{'gpus': 1}}")
    gpus, share, memory = (asked.get(key) for key in ("gpus", "gpu_share", "gpu_memory"))
    need = default
    if gpus is not None:
        if isinstance(gpus, bool) or not isinstance(gpus, int | float):
            raise NeedError(f"resources.gpus={_shown(gpus)}: expected a whole number, or a share below 1")
        if 0 < gpus < 1 and share is None:
            share = gpus
        elif 0 <= gpus <= MAX_GPUS and gpus == int(gpus):
            need = Need(int(gpus))
        else:
            raise NeedError(f"resources.gpus={_shown(gpus)}: expected a whole number, or a share below 1")
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise NeedError(f"resources.gpu_share={_shown(share)}: expected a number above 0, up to 1")
        if gpus not in (None, 1, share):
            raise NeedError(f"resources.gpu_share={_shown(share)}: expected it alone, without {_shown(gpus)} gpus")
        need = Need(1) if share == 1 else Need(share=float(share))
    if memory is not None:
        kind = size(1, 1 << 50)
        try:
            memory_bytes = kind.read(memory)
        except (ValueError, TypeError):
            raise NeedError(f"resources.gpu_memory={_shown(memory)}: expected {kind.expected}") from None
        assert isinstance(memory_bytes, int)
        need = replace(need, memory_bytes=memory_bytes)
    return need


class Universe(NamedTuple):
    """The GPUs that are ours to give out."""

    devices: tuple[Device, ...]
    note: str = ""  #: what of the wish was left out, and why


def universe(found: Sequence[Device], visible: str | None) -> Universe:
    """Return which of the devices that were found, in the order of their PCI bus, an inherited set names.

    ``visible``: numbers, UUIDs or beginnings of UUIDs with commas between them; None: all. As CUDA reads
    CUDA_VISIBLE_DEVICES, the first name that fits none ends the list, and one that comes twice voids it (CUDA C++
    Programming Guide, "CUDA Environment Variables"). A GPU in MIG mode stands for all its slices.
    """
    if visible is None:
        return Universe(tuple(device for device in found if not device.sliced))
    whole = [device for device in found if not device.is_slice]
    chosen: list[Device] = []
    note = ""
    for written in (part.strip() for part in visible.split(",")):
        named = _named(found, whole, written)
        if named is None:
            left = "the devices after it are left out" if chosen else "so there is none to use"
            note = "" if written in ("", "-1", "NoDevFiles") else f"{written!r} names no GPU here: {left}"
            break
        if any(device in chosen for device in named):
            return Universe((), f"{written!r} is named twice, so CUDA would see no GPU at all")
        chosen += named
    return Universe(tuple(chosen), note)


def expand_numbers(text: str) -> str:
    """Return a list of numbers as Slurm writes it, ``0,4-6``, with each of them: ``0,4,5,6``."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(last) - int(first) < MAX_GPUS:
            numbers += [str(number) for number in range(int(first), int(last) + 1)]
        else:
            numbers.append(part.strip())
    return ",".join(numbers)


def inherited(environ: Mapping[str, str], found: Sequence[Device]) -> tuple[str | None, str]:
    """Return the set of GPUs that this process was started with, None for all, and the variable that says so.

    A job of Slurm whose devices are confined finds only its own, numbered from 0, while SLURM_JOB_GPUS counts those of
    the whole host: it says something only where more are found than it names.
    """
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in environ:
            return environ[name], name
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if environ.get(name):
            numbers = expand_numbers(environ[name])
            confined = sum(not device.is_slice for device in found) <= len(numbers.split(","))
            return (None if confined else numbers), name
    return None, ""


def environment(uuids: Iterable[str]) -> dict[str, str]:
    """Return the variables with which a process sees these devices and no others."""
    names = ",".join(uuids)
    # Also for the numbers that a program prints: without it CUDA counts by speed, and tools by the bus.
    return {"CUDA_VISIBLE_DEVICES": names, "ROCR_VISIBLE_DEVICES": names, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@dataclass(frozen=True, slots=True)
class _Holding:
    uuids: tuple[str, ...]
    need: Need


@dataclass(slots=True)
class _Account:
    """What is given out of one device."""

    device: Device
    budget_bytes: int
    holders: dict[str, Need] = field(default_factory=dict)
    fenced: str = ""  # why nothing is given out of it

    @property
    def share(self) -> float:
        return math.fsum(1.0 if need.gpus else need.share for need in self.holders.values())

    @property
    def memory_bytes(self) -> int:
        return sum(need.memory_bytes for need in self.holders.values())


class Ledger:
    """Who holds what of each device: an exclusive holder shares with nobody, shares and memory never exceed the device."""

    def __init__(self, devices: Iterable[Device], memory_limit: int = 0, keep: float = 0.1) -> None:
        """``memory_limit``: bytes of each GPU that may be given out; 0: all. ``keep``: share that is never, for contexts."""
        self.memory_limit, self._keep = memory_limit, keep
        self._accounts: dict[str, _Account] = {}
        self._holdings: dict[str, _Holding] = {}
        self.adopt(devices)

    def adopt(self, devices: Iterable[Device]) -> None:
        """Give out these devices from now on. What is held of others stays held until it is released."""
        accounts = {}
        for device in devices:
            account = self._accounts.get(device.uuid) or _Account(device, 0)
            account.device, account.budget_bytes = device, self.budget_of(device)
            accounts[device.uuid] = account
        for uuid, account in self._accounts.items():
            if uuid not in accounts and account.holders:
                account.fenced = account.fenced or "it is no longer there"
                accounts[uuid] = account
        self._accounts = accounts

    def budget_of(self, device: Device) -> int:
        """Return how many bytes of a device may be given out."""
        most = int(device.total_bytes * (1.0 - self._keep)) or _ANY
        return min(self.memory_limit, most) if self.memory_limit else most

    @property
    def devices(self) -> tuple[Device, ...]:
        """What can be given out, fenced devices too."""
        return tuple(account.device for account in self._accounts.values())

    @property
    def fenced(self) -> dict[str, str]:
        """Devices of which nothing is given out, and why."""
        return {uuid: account.fenced for uuid, account in self._accounts.items() if account.fenced}

    def holders(self, uuid: str) -> dict[str, Need]:
        """Return who holds something of a device, and how much."""
        account = self._accounts.get(uuid)
        return dict(account.holders) if account else {}

    def held_by(self, holder: str) -> tuple[str, ...]:
        """Return the devices somebody holds."""
        holding = self._holdings.get(holder)
        return holding.uuids if holding else ()

    def never(self, need: Need) -> str:
        """Return why a need can't be met even when nobody holds anything, or ""."""
        if not need.count:
            return ""
        able = [a for a in self._accounts.values() if self._suits(a.device, need)]
        roomy = [a for a in able if need.memory_bytes <= a.budget_bytes]
        if len(able) < need.count:
            kind = " whole" if need.gpus > 1 and any(a.device.is_slice for a in self._accounts.values()) else ""
            return f"it needs {need.count} GPUs, and there are {len(able)}{kind} here"
        if len(roomy) < need.count:
            largest = max(account.budget_bytes for account in able)
            return f"it needs {gib(need.memory_bytes)} on each GPU, and none has more than {gib(largest)} to give"
        return ""

    def fits(self, uuids: Sequence[str], need: Need) -> bool:
        """Whether a need can be met by just these devices now."""
        if len(uuids) != need.count:
            return False
        accounts = [self._accounts.get(uuid) for uuid in uuids]
        return all(account is not None and self._has_room(account, need) for account in accounts)

    def place(
        self,
        need: Need,
        free: Mapping[str, float] | None = None,  # bytes really free by UUID; None: what is given out is all there is
        closed: Collection[str] = (),  # UUIDs that are kept for another
    ) -> tuple[str, ...] | None:
        """Return devices for a need, the emptiest first, or None where it must wait."""
        if not need.count:
            return ()
        able = [
            account
            for uuid, account in self._accounts.items()
            if uuid not in closed
            and self._has_room(account, need)
            and (free is None or free.get(uuid, 0) >= need.memory_bytes)
        ]
        if len(able) < need.count:
            return None
        # Whole GPUs in the order of the bus, where neighbours are linked best; shares where most is left.
        if not need.gpus:
            able.sort(key=lambda account: (account.share, -(account.budget_bytes - account.memory_bytes)))
        elif need.memory_bytes:
            able.sort(key=lambda account: account.budget_bytes)
        return tuple(account.device.uuid for account in able[: need.count])

    def soonest(self, need: Need) -> tuple[str, ...]:
        """Return the devices to keep free for a need that must wait: those with the fewest to wait for; () for none."""
        able = [
            account
            for account in self._accounts.values()
            if not account.fenced and self._suits(account.device, need) and need.memory_bytes <= account.budget_bytes
        ]
        able.sort(key=lambda account: (account.share, account.memory_bytes))
        return tuple(account.device.uuid for account in able[: need.count]) if len(able) >= need.count else ()

    def take(self, holder: str, uuids: Sequence[str], need: Need) -> None:
        """Give devices to a holder, as `place` or `fits` found them. Raises ValueError where they can't be given."""
        if holder in self._holdings:
            raise ValueError(f"{holder} holds {self._holdings[holder].uuids} already")
        if not self.fits(uuids, need):
            raise ValueError(f"{holder} can't have {need} of {tuple(uuids)}")
        self._holdings[holder] = _Holding(tuple(uuids), need)
        for uuid in uuids:
            self._accounts[uuid].holders[holder] = need

    def hold(self, holder: str, uuids: Sequence[str], need: Need) -> None:
        """Note what a holder was given before this ledger was opened, also of devices that nobody told of yet."""
        self._holdings[holder] = _Holding(tuple(uuids), need)
        for uuid in uuids:
            account = self._accounts.setdefault(uuid, _Account(Device(uuid, 0), _ANY))
            account.holders[holder] = need

    def release(self, holder: str) -> None:
        """Take back what somebody holds, if anything."""
        holding = self._holdings.pop(holder, None)
        for uuid in holding.uuids if holding else ():
            if (account := self._accounts.get(uuid)) is not None:
                account.holders.pop(holder, None)

    def fence(self, uuid: str, why: str) -> list[str]:
        """Give out nothing more of a device, and return who holds something of it."""
        account = self._accounts.get(uuid)
        if account is None:
            return []
        account.fenced = why
        return list(account.holders)

    def unfence(self, uuid: str) -> None:
        """Give the device out again."""
        if (account := self._accounts.get(uuid)) is not None:
            account.fenced = ""

    def _suits(self, device: Device, need: Need) -> bool:
        return not device.is_slice or need.gpus <= 1

    def _has_room(self, account: _Account, need: Need) -> bool:
        if account.fenced or not self._suits(account.device, need):
            return False
        # A GPU and its own slices can only both be here while one of the two is on its way out.
        if any(self._is_part(account.device, other) for other in self._accounts.values() if other.holders):
            return False
        if account.memory_bytes + need.memory_bytes > account.budget_bytes:
            return False
        if need.gpus or account.device.exclusive:
            return not account.holders
        return account.share + need.share <= 1.0 + _EPSILON

    @staticmethod
    def _is_part(device: Device, other: _Account) -> bool:
        return device.parent == other.device.uuid or other.device.parent == device.uuid


def gib(number: float) -> str:
    """Return bytes as people say them."""
    return f"{number / (1 << 30):.1f} GiB"


def _named(found: Sequence[Device], whole: Sequence[Device], written: str) -> list[Device] | None:
    """Return the usable devices that one name stands for, or None."""
    if written.isdecimal():
        matches = [whole[int(written)]] if int(written) < len(whole) else []
    else:
        exact = [device for device in found if device.uuid.lower() == written.lower()]
        begun = [device for device in found if written[:4] in ("GPU-", "MIG-") and device.uuid.startswith(written)]
        matches = exact or begun
    if len(matches) != 1:
        return None
    if matches[0].sliced:
        return [device for device in found if device.parent == matches[0].uuid] or None
    return matches


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

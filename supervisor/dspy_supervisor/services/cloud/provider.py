"""What every provider of machines can do: say what it has, make one, list ours, delete one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from ...config import Config
from ...errors import ServiceUnavailable

_DESTINATION = re.compile(r"([A-Za-z0-9_][\w.-]{0,63}@)?[A-Za-z0-9][\w.:-]{0,253}")


class CloudError(ServiceUnavailable):
    """A provider did not do what it was asked for."""

    def __init__(self, message: str, *, definite: bool = True, passing: bool = False, retry_s: float = 30.0) -> None:
        super().__init__(message)
        self.definite = definite  #: it was certainly not done; else it may have been
        self.passing = passing  #: the same question may have another answer in a moment
        self.retry_s = retry_s  #: ask again no sooner


class Stage(StrEnum):
    """How far a machine is."""

    STARTING = "starting"
    READY = "ready"  #: it can be logged into
    BROKEN = "broken"  #: it will never be, and is to be deleted
    GONE = "gone"  #: it is over, or about to be: nothing is paid for it any more


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine that could be had. ``facts`` is what the provider wants to hear of it again."""

    where: str  #: who has it, and where it stands
    gpu: str
    gpus: int
    price_hr: float  #: US dollars, disk included
    stock: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Address(NamedTuple):
    """Where ssh finds a machine."""

    destination: str  #: user@host
    port: int

    @classmethod
    def parse(cls, written: str) -> Address | None:
        """Read ``user@host -p port`` or ``user@host:port``; None for what is neither, as an option of ssh.

        An address of IPv6 is taken only in the first form.
        """
        try:
            words = shlex.split(written)
        except ValueError:
            return None
        words = words[1:] if words[:1] == ["ssh"] else words
        if len(words) == 3 and words[1] == "-p":
            destination, port = words[0], words[2]
        elif len(words) == 1:
            destination, colon, port = words[0].partition(":")
            port = port if colon else "22"
        else:
            return None
        if not _DESTINATION.fullmatch(destination) or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
            return None
        return cls(destination, int(port))


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of ours, as its provider sees it."""

    id: str
    name: str
    stage: Stage
    price_hr: float | None = None
    address: Address | None = None
    why: str = ""  #: what went wrong with it, or how far it is


class Provider(Protocol):
    """Who has machines. All but close raise CloudError, and may take seconds."""

    def offers(self) -> Sequence[Offer]:
        """Return what could be had now under these settings, cheapest first."""

    def create(self, name: str, offer: Offer) -> Machine:
        """Order a machine under a name of ours. An error that is not ``definite`` may have made one: look for its name."""

    def machines(self) -> Sequence[Machine]:
        """Return all machines of the account that are not gone for sure, also those of others."""

    def delete(self, machine_id: str) -> None:
        """Give a machine back; one that is gone is no error."""

    def close(self) -> None:
        """Close what is open between questions."""


def provider_of(config: Config) -> Provider:
    """Return the configured provider. Raises CloudError where something that it needs is not installed."""
    if config.cloud_provider == "ssh":
        from .hosts import Hosts

        return Hosts(config)
    try:
        from .prime import Prime
    except ModuleNotFoundError as error:
        raise CloudError(f"{error.name} is missing: pip install 'dspy-supervisor[cloud]'") from None
    return Prime(config)

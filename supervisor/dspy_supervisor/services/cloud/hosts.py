"""Machines that are ours already, by their names: nothing is rented, made or deleted."""

from __future__ import annotations

from collections.abc import Sequence

from ...config import Config
from ...errors import ConfigError
from .provider import Address, Machine, Offer, Stage


class Hosts:
    """The hosts of the settings, as a provider."""

    def __init__(self, config: Config) -> None:
        self._addresses = {}
        for host in dict.fromkeys(config.cloud_hosts):
            address = Address.parse(host)
            if address is None:
                raise ConfigError("cloud_hosts", host, "a machine as user@host, or user@host:port")
            self._addresses[host] = address

    def offers(self) -> Sequence[Offer]:
        """Return each host once; who has it already passes it over."""
        return [Offer(host, "", 0, 0.0, "yours", {"host": host}) for host in self._addresses]

    def create(self, name: str, offer: Offer) -> Machine:
        """Take a host."""
        return self._machine(str(offer.facts["host"]), name)

    def machines(self) -> Sequence[Machine]:
        """Return all hosts, each under its own name."""
        return [self._machine(host, host) for host in self._addresses]

    def delete(self, machine_id: str) -> None:
        """Let a host be: it is not ours to end."""

    def close(self) -> None:
        """Nothing is open."""

    def _machine(self, host: str, name: str) -> Machine:
        return Machine(host, name, Stage.READY, 0.0, self._addresses[host])

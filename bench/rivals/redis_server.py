"""A Redis of the measurement's own: on a unix socket in its folder, in memory or with every write synced."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

import redis

from bench.player import Player, wait_until

SOCKET = os.environ.get("BENCH_REDIS", "")  #: the consumers' side: set by the producer for its children
os.environ.setdefault("BENCH_REDIS", "")


class RedisRival(Player):
    """A rival whose queue is in Redis."""

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.socket = str(folder / "redis.sock")
        durability = ["yes", "--appendfsync", "always"] if sync else ["no"]
        # --port 0: no TCP; --save "": no snapshots in the middle of a measurement
        self.run(
            *("redis-server", "--port", "0", "--unixsocket", self.socket, "--dir", folder, "--save", ""),
            *("--appendonly", *durability),
        )
        self.redis = redis.Redis(unix_socket_path=self.socket)
        wait_until(self.answers, "redis-server does not answer")
        self.connect()

    @abstractmethod
    def connect(self) -> None:
        """Point the library at self.socket."""

    def answers(self) -> bool:
        """Whether the server is up."""
        try:
            return bool(self.redis.ping())
        except redis.ConnectionError:
            return False

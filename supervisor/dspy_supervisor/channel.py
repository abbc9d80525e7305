"""What supervisor and worker say to each other, over a SOCK_SEQPACKET pair: one message a packet.

To the worker: names of waiting tasks, separated by "/", which no name has; an empty name asks it to end; one with a "-" before
a key, in hexadecimal, to give up what it keeps under that; one with a "+" is an order
of hedges.py. To the supervisor:
reports, packed one after another: kind (1 byte), run time (float64, seconds), length of the task's name and of the text
(uint16 each), name, text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

_HEAD = struct.Struct("<Bdhh")
_MAX_TEXT = 1024  #: bytes
MAX_PACKET = 65536
SHORT_S = 0.005  #: tasks shorter than this are fed several at a time
LONG_S = 0.05  #: a worker gives the names it holds back after a task longer than this: others can have them
MAX_NAMES = 64  #: tasks in one message
MAX_REPORTS = 32  #: reports in one packet: each is less than 2 KiB


class Kind(IntEnum):
    """What a worker reports."""

    READY = 1  #: its handlers are loaded; text: nothing
    BROKEN = 2  #: it can't work; text: why
    DONE = 3
    FAILED = 4  #: given up; text: the cause
    RETRIED = 5  #: put back; text: the time it is due, epoch seconds, and the cause
    GONE = 6  #: somebody else was faster, or the claim was taken meanwhile
    QUARANTINED = 7  #: text: why
    TROUBLE = 8  #: an error of ours, the task is unharmed; text: which
    RETURNED = 9  #: it is back in pending/, the supervisor's to feed again, or not to where ``text`` says why
    KEPT = 11  #: the worker keeps something between tasks; text: under which key
    FREED = 12  #: it does no more; text: the key
    SECOND_DONE = 13  #: a second run succeeded, and its record is written; the name is the order's
    SECOND_FAILED = 14  #: it did not, which says nothing; text: why
    VOID = 10  #: others took this worker for dead, with all its claims: it ends; text: why


class Report(NamedTuple):
    """One thing that happened to one task."""

    kind: Kind
    file: str = ""
    run_s: float = 0.0
    text: str = ""


def pack(report: Report) -> bytes:
    """Return a report as it travels."""
    file, text = report.file.encode(errors="surrogateescape"), report.text.encode(errors="replace")[:_MAX_TEXT]
    return _HEAD.pack(report.kind, report.run_s, len(file), len(text)) + file + text


def unpack(packet: bytes) -> Iterator[Report]:
    """Yield the reports of a packet."""
    place = 0
    while place < len(packet):
        kind, run_s, file_length, text_length = _HEAD.unpack_from(packet, place)
        place += _HEAD.size
        file = packet[place : place + file_length].decode(errors="surrogateescape")
        place += file_length
        text = packet[place : place + text_length].decode(errors="replace")
        place += text_length
        yield Report(Kind(kind), file, run_s, text)


RELEASE = "-"  #: what an order to release begins with, as no name of a task does


def release_order(key: str) -> str:
    """Return the order to give up what is kept under a key."""
    return RELEASE + key.encode(errors="surrogatepass").hex()


def released_key(order: str) -> str:
    """Return the key of an order to release."""
    return bytes.fromhex(order.removeprefix(RELEASE)).decode(errors="surrogatepass")


def pack_names(files: Sequence[str]) -> bytes:
    """Return an order for these tasks; none: to end."""
    return "/".join(files).encode() or b"/"


def unpack_names(packet: bytes) -> list[str]:
    """Return the tasks of an order; none: to end."""
    return [] if packet == b"/" else packet.decode().split("/")

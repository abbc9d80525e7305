"""Numbers and times as people read them, and text of tasks that must not drive the terminal."""

from __future__ import annotations

import time

from rich.text import Text

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def plain(value: object, style: str = "") -> Text:
    """Return text that holds no control characters and no markup, whatever a task wrote."""
    text = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in text), style)


def right(value: object, style: str = "") -> Text:
    """Return a number, for a column of numbers."""
    found = plain("" if value is None else f"{value:,}" if isinstance(value, int) else value, style)
    found.justify = "right"
    return found


def length(seconds: float | None) -> str:
    """Return a length of time: 3.2 ms, 14 s, 5 min, 3.4 h."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def rate(per_s: float | None) -> str:
    """Return a rate per second."""
    if per_s is None:
        return "-"
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"


def gib(size: float | None) -> str:
    """Return bytes in GiB."""
    return "-" if size is None else f"{size / (1 << 30):.1f}"


def share(ratio: float | None) -> str:
    """Return a ratio in per cent."""
    return "-" if ratio is None else f"{ratio:.0%}"


def clock(epoch_s: float | None) -> str:
    """Return a time of today, with its date where that is another day."""
    if epoch_s is None:
        return "-"
    then = time.localtime(epoch_s)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime()[:3] else "%m-%d %H:%M", then)

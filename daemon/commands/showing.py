"""Words and numbers for people. What comes from a job is shown as plain text: never as markup, never as a command to
the terminal."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(*, error: bool = False) -> Console:
    """The terminal, or a pipe that gets the same lines without colours or wrapping at 80 columns."""
    from rich.console import Console

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else 10_000
    return Console(file=stream, markup=False, highlight=False, emoji=False, soft_wrap=not stream.isatty(), width=width)


def plain(text: object) -> str:
    """Text on one line, with whatever could steer a terminal made visible."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def duration(seconds: float | None) -> str:
    """ "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"; "-" for an unknown one."""
    if seconds is None or seconds < 0:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days"


def size(count: float) -> str:
    """Bytes of memory in the unit that reads best, in powers of 1024 as the plan counts them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def moment(unix: float | None) -> str:
    """A time on this machine's clock; "-" for an unknown one."""
    if unix is None:
        return "-"
    try:
        there = datetime.fromtimestamp(unix, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return "-"
    return there.strftime("%H:%M:%S" if abs(time.time() - unix) < 43_200 else "%Y-%m-%d %H:%M")


def plural(count: int, singular: str) -> str:
    return f"{count:,} {singular}" + ("" if count == 1 else "s")


def nearest(wanted: str, known: list[str]) -> str:
    """ " Did you mean A or B?", or nothing where nothing is near."""
    import difflib

    close = difflib.get_close_matches(wanted.casefold(), [name.casefold() for name in known], n=3, cutoff=0.5)
    names = list(dict.fromkeys(plain(name) for match in close for name in known if name.casefold() == match))
    return f" Did you mean {' or '.join(names)}?" if names else ""

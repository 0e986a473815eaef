"""What a process says on its standard error, on its way into the log: so much a second, and no more.

Its pipe is drained all the same, so that it never waits for its reader; what is too much is counted. The last lines
before a pause or the end come through however many there were, since they are the ones that tell of a crash.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

LINES = 100
BYTES = 32 << 10
"""So many lines, and as much text, are passed on in ``PER_S``."""

PER_S = 1.0
KEPT = 20
KEPT_CHARACTERS = 500
"""Of the lines that are too many, the last ones, cut to so much each."""


class Bounded:
    """Stands for ``on_line`` while its block lasts, whose end tells of what was left out."""

    def __init__(self, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_line = on_line
        self._clock = clock
        self._since = clock()
        self._lines = self._bytes = self._left_out = 0
        self._last: deque[str] = deque(maxlen=KEPT)

    def __enter__(self) -> Bounded:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._tell_left_out()

    def __call__(self, line: str) -> None:
        now = self._clock()
        if now - self._since >= PER_S:
            self._since = now
            self._lines = self._bytes = 0
            self._tell_left_out()
        self._lines += 1
        self._bytes += len(line)
        if self._lines <= LINES and self._bytes <= BYTES:
            self._on_line(line)
            return
        self._left_out += 1
        self._last.append(line[:KEPT_CHARACTERS])

    def _tell_left_out(self) -> None:
        unseen = self._left_out - len(self._last)
        if unseen:
            self._on_line(f"[{unseen:,} lines left out: more than {LINES} lines or {BYTES >> 10} KiB a second]")
        for line in self._last:
            self._on_line(line)
        self._left_out = 0
        self._last.clear()

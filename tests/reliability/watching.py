"""Bounds that hold under any attack: how long a daemon may be silent, and how much memory it may take."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path

MIB = 1 << 20

LONGEST_SILENCE_S = 10.0
"""``seq`` of status.json moves at least every five seconds; what is more than this is no delay of a busy machine."""

MOST_MEMORY = 768 * MIB
"""The daemon's resident set, whatever is thrown at it with the limits at their defaults."""


class Watch:
    """Watches a living daemon's status.json from a thread; ``silence_s`` is the longest that ``seq`` stood still."""

    def __init__(self, status: Path) -> None:
        self._status = status
        self._over = threading.Event()
        self._seq: object = None
        self._moved_at = time.monotonic()
        self.silence_s = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin_anew(self) -> None:
        """The daemon was held up on purpose until now."""
        self._moved_at = time.monotonic()

    def end(self) -> float:
        """The longest silence in seconds."""
        self._over.set()
        self._thread.join()
        return self.silence_s

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            seq = self._seq
            with contextlib.suppress(OSError, ValueError, KeyError):
                seq = json.loads(self._status.read_bytes())["seq"]
            now = time.monotonic()
            if seq != self._seq:
                self._seq, self._moved_at = seq, now
            self.silence_s = max(self.silence_s, now - self._moved_at)


def processor_s(pid: int) -> float:
    """Seconds that the process has had a processor, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_peak(pid: int) -> int:
    """The most memory that the process ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

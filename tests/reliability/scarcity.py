"""A control group with next to no memory, where we may make one: what is put into it the kernel soon kills."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

HIERARCHIES = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)
"""Version 1 and version 2: where groups are made, the file of the limit, and the one that tells of kills."""

LIMIT_BYTES = 512 << 10
EMPTY_S = 5.0


class Scarcity:
    """``put`` moves processes into the group; ``kills`` is how many the kernel has killed there."""

    def __init__(self, name: str) -> None:
        self._folder: Path | None = None
        self._events = Path()
        for hierarchy, limit, events in HIERARCHIES:
            folder = hierarchy / name
            try:
                folder.mkdir()
            except OSError:
                continue
            try:
                (folder / limit).write_text(str(LIMIT_BYTES))
            except OSError:
                folder.rmdir()
                continue
            self._folder, self._events = folder, folder / events
            return

    @property
    def available(self) -> bool:
        return self._folder is not None

    def put(self, pid: int) -> bool:
        if self._folder is None:
            return False
        with contextlib.suppress(OSError):
            (self._folder / "cgroup.procs").write_text(str(pid))
            return True
        return False

    @property
    def kills(self) -> int:
        with contextlib.suppress(OSError):
            for line in self._events.read_text("ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def remove(self) -> None:
        """Once its processes have ended, which the caller sees to."""
        deadline = time.monotonic() + EMPTY_S
        while self._folder is not None and time.monotonic() < deadline:
            try:
                os.rmdir(self._folder)
                self._folder = None
            except OSError:
                time.sleep(0.02)

"""Room on the disks: no job is taken that they can't hold, long before one of them is full.

Three places are watched: state/, the outbox, and the inbox, where claims are made. Each has a floor (``[disk]``):

=============================  =========================================================================
free                           then
=============================  =========================================================================
below the floor                no more jobs are taken, until RESUME times the floor is free
less than a job would leave    that job waits in the inbox, and smaller ones pass it; one that is alone is
                               taken all the same: half a night's work is better than none
below DISPATCH of the floor    no more work is given out, as on a disk that says that it is full, until
                               DISPATCH_RESUME of the floor is free; what is free then is for manifests
=============================  =========================================================================

What a job takes is an estimate (``core.footprint``), and what the jobs at work will still take is counted as taken.
Each place is asked in a thread of its own. One that does not answer, a share that hangs, holds up nothing: it is
unknown then, and what waits for it says so by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

from daemon.config import Settings

log = structlog.get_logger("dubd.room")

CHECK_S = 5.0
PATIENCE_S = 2.0
"""How long a place may take to answer."""

RESUME = 1.25
DISPATCH = 0.5
DISPATCH_RESUME = 0.75

GB = 1000**3

PLACES = ("state", "outbox", "inbox")
WORKPLACES = ("state", "outbox")
"""Where what is spoken lies."""


@dataclass(slots=True)
class Place:
    """``free``: bytes, None when unknown; ``low``: below its floor, and not yet well above it again."""

    free: int | None = None
    low: bool = False


class RoomHost(Protocol):
    """What the guard needs of the rest of the daemon."""

    settings: Settings

    def warn(self, what: str, warning: str | None) -> None:
        """Show a warning to people, or take it back."""

    def disk_full(self, reason: str) -> None:
        """Give out no more work until there is room for it."""


class Room:
    """``on_room`` is called when jobs may be taken again."""

    def __init__(self, host: RoomHost, on_room: Callable[[], None] = lambda: None) -> None:
        self.on_room = on_room
        self.places = {name: Place() for name in PLACES}
        self._host = host
        self._threads = {name: anyio.CapacityLimiter(1) for name in PLACES}

    # --- what is asked --------------------------------------------------------------------------------------

    @property
    def low(self) -> str | None:
        """Why no job is taken at all; None when jobs are."""
        for name in PLACES:
            if self.places[name].low:
                enough = f"{self._floor(name) * RESUME / GB:.2g} GB"
                return f"{self._told(name)}; no more jobs are taken until {enough} are free"
        return None

    def refusal(self, size: float, taken: float) -> str | None:
        """Why a job of this size can't be taken now, beside others; None when it can. ``taken``: bytes that these will
        still write."""
        for name in WORKPLACES:
            place = self.places[name]
            if place.free is not None and place.free - self._floor(name) < size + taken and self._floor(name):
                return (
                    f"it will take about {size / GB:.2g} GB; {place.free / GB:.2g} GB are free for the {name}, "
                    f"of which {taken / GB:.2g} GB are for jobs at work and {self._floor(name) / GB:.2g} GB stay free"
                )
        return None

    def too_little_for_work(self, share: float) -> str | None:
        """Where less than this share of the floor is free, if anywhere."""
        for name in WORKPLACES:
            free = self.places[name].free
            if free is not None and free < self._floor(name) * share:
                return self._told(name)
        return None

    def document(self) -> dict[str, Any]:
        """``disk`` of status.json."""
        return {
            "taking_jobs": self.low is None,
            "places": {
                name: {
                    "path": str(self._path(name)),
                    "free_bytes": place.free,
                    "floor_bytes": round(self._floor(name)),
                }
                for name, place in self.places.items()
            },
        }

    # --- watching -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            await self.look()
            await anyio.sleep(CHECK_S)

    async def look(self) -> None:
        """Look at all places, and do what follows."""
        async with anyio.create_task_group() as tasks:
            for name in PLACES:
                tasks.start_soon(self._measure, name)
        before = self.low
        for name, place in self.places.items():
            floor = self._floor(name)
            if place.free is not None:
                place.low = place.free < floor * (RESUME if place.low else 1.0)
            elif not floor:
                place.low = False
        now = self.low
        self._host.warn("room", now)
        if before is not None and now is None:
            log.info("there is room on the disks again; jobs are taken")
            self.on_room()
        if (reason := self.too_little_for_work(DISPATCH)) is not None:
            self._host.disk_full(reason)

    async def _measure(self, name: str) -> None:
        free: int | None = None
        with anyio.move_on_after(PATIENCE_S), suppress(OSError):  # of a share that is away; whoever needs it says so
            free = await anyio.to_thread.run_sync(
                _free_bytes, self._path(name), abandon_on_cancel=True, limiter=self._threads[name]
            )
        self.places[name].free = free

    def _path(self, name: str) -> Path:
        path = getattr(self._host.settings.paths, name)
        assert isinstance(path, Path)
        return path

    def _floor(self, name: str) -> float:
        return float(getattr(self._host.settings.disk, f"{name}_free_gb")) * GB

    def _told(self, name: str) -> str:
        free = self.places[name].free or 0
        return (
            f"only {free / GB:.2g} GB are free for the {name} ({self._path(name)}), "
            f"disk.{name}_free_gb is {self._floor(name) / GB:.2g}"
        )


def _free_bytes(path: Path) -> int:
    """What this user may still write there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize

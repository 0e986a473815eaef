"""A job's segments, and what they add up to: kept as they change, since status.json and progress.json ask for it every
second, and a daemon may have a hundred thousand of them.

A segment that stands in ``Segments`` tells it when its status changes or it begins; one that is put in another's place
is counted instead of it. What else is counted of a finished segment (its length, where it came from) is set before its
status, or the whole is counted anew by ``recount``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol, SupportsIndex, TypeVar

from daemon.core.footprint import segment_bytes
from daemon.core.job import Job, Segment


class Counted(Protocol):
    """What a segment must be to be counted."""

    counted_in: Segments[Any] | None
    segment: Segment
    begun: bool
    cached: bool
    frames: int
    sample_rate: int

    @property
    def status(self) -> str: ...

    @property
    def cost(self) -> float: ...


S = TypeVar("S", bound=Counted)


class Segments(list[S]):
    """The segments of ``job``, in order. ``by_status``: how many have each; ``cached`` of those that are ok;
    ``running``: begun and not ended; ``totals`` and ``ended``: by speaker; ``cost_waiting`` in the scheduler's unit and
    ``bytes_waiting``, about: of what waits. May be changed from several threads."""

    def __init__(self, job: Job, segments: Iterable[S]) -> None:
        super().__init__(segments)
        self._job = job
        self.totals = Counter(segment.segment.speaker for segment in self)
        self._lock = threading.Lock()
        self.recount()

    def recount(self) -> None:
        self.by_status: Counter[str] = Counter()
        self.cached = self.running = 0
        self.ended: Counter[str] = Counter()
        self.cost_waiting = self.bytes_waiting = 0.0
        self._frames: Counter[int] = Counter()
        for segment in self:
            segment.counted_in = self
            self._count(segment, 1)

    def let_go(self) -> None:
        """Nothing changes any more. Segments that knew of this would be memory until the next full collection."""
        for segment in self:
            segment.counted_in = None

    @property
    def audio_s(self) -> float:
        """Seconds of what is ok."""
        return sum(frames / rate for rate, frames in self._frames.items())

    def change(self, segment: Counted, name: str, value: object) -> None:
        """Set one of the ``counted`` attributes of a segment that stands here."""
        with self._lock:
            if name == "begun":  # the most frequent by far
                self.running += (bool(value) - segment.begun) * (segment.status == "waiting")
                _SLOTS[name].__set__(segment, value)
                return
            self._count(segment, -1)
            _SLOTS[name].__set__(segment, value)
            self._count(segment, 1)

    def __setitem__(self, position: SupportsIndex, segment: S) -> None:  # type: ignore[override]  # no slices
        with self._lock:
            before = self[position]
            before.counted_in = None
            self._count(before, -1)
            super().__setitem__(position, segment)
            segment.counted_in = self
            self._count(segment, 1)

    def _count(self, segment: Counted, sign: int) -> None:
        status = segment.status
        self.by_status[status] += sign
        if status == "waiting":
            self.running += sign * segment.begun
            self.cost_waiting += sign * segment.cost
            self.bytes_waiting += sign * segment_bytes(self._job, segment.segment)
            return
        self.ended[segment.segment.speaker] += sign
        if status == "ok":
            self.cached += sign * segment.cached
            if segment.sample_rate:
                self._frames[segment.sample_rate] += sign * segment.frames


_SLOTS: dict[str, Any] = {}
"""What holds the counted attributes."""


def counted(kind: type[Any], *names: str) -> None:
    """Let these attributes of the segments be counted where they stand in Segments."""
    for name in names:
        setattr(kind, name, _counted(kind, name))


def _counted(kind: type[Any], name: str) -> property:
    slot = _SLOTS[name] = vars(kind)[name]

    def change(segment: Counted, value: object) -> None:
        if segment.counted_in is None:
            slot.__set__(segment, value)
        else:
            segment.counted_in.change(segment, name, value)

    return property(slot.__get__, change)

"""Numbers for workers whose places come and go: a worker keeps its number as long as its place is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from daemon.core.events import WorkerSpec

REMEMBERED = 4096
"""Places that are remembered though they have gone: one that comes back has its old number again."""

_Place = tuple[str, int | None, int]
"""Node, GPU, and which of the workers there."""


class Numbering:
    """Takes plans numbered from 0 and gives them the numbers that their places had. A new place gets the lowest number
    that nobody has or is remembered to have had, so that the first plan keeps its own."""

    def __init__(self) -> None:
        self._numbers: dict[_Place, int] = {}

    def number(self, workers: Sequence[WorkerSpec]) -> tuple[WorkerSpec, ...]:
        """The same workers in their order, numbered; no number is given twice."""
        count: Counter[tuple[str, int | None]] = Counter()
        places: list[_Place] = []
        for worker in workers:
            places.append((worker.node, worker.gpu, count[worker.node, worker.gpu]))
            count[worker.node, worker.gpu] += 1
        present = set(places)
        gone = [place for place in self._numbers if place not in present]
        for place in gone[: max(0, len(gone) - REMEMBERED)]:
            del self._numbers[place]
        taken = set(self._numbers.values())
        free = (number for number in range(len(taken) + len(places)) if number not in taken)
        for place in places:
            if place not in self._numbers:
                self._numbers[place] = next(free)
        return tuple(
            replace(worker, worker=self._numbers[place]) for worker, place in zip(workers, places, strict=True)
        )

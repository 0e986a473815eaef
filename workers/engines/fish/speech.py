"""A segment on its way through the engine: its pieces, its attempts, and the best of them. Torch-free."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.engine import Segment
from workers.engines.fish.prompt import Codes
from workers.engines.fish.text import expected_seconds, split_text

PIECE_SECONDS = 30.0
"""About the longest that a piece of a split text should take to say: the model was trained on single utterances, and
wanders off in longer ones."""


def pieces_of(text: str, language: str) -> list[str]:
    """The text cut, at the ends of sentences where it can be, into pieces of a length the model is good at."""
    limit = len(text)
    while True:
        pieces = split_text(text, limit)
        if limit <= 20 or all(sum(expected_seconds(piece, language)) / 2 <= PIECE_SECONDS for piece in pieces):
            return pieces
        limit = max(20, limit * 4 // 5)


@dataclass(frozen=True)
class Attempt:
    """One whole rendering of a segment. ``samples``: float32 (samples,)."""

    seed: int
    samples: NDArray[np.float32]
    truncated: bool
    flaws: tuple[str, ...]

    @property
    def faults(self) -> tuple[bool, int]:
        """What makes it worse than another: samples that can't be written at all, then the number of flaws."""
        return ("non_finite" in self.flaws, len(self.flaws) + self.truncated)


@dataclass
class Speech:
    """A segment being spoken. ``pieces`` are spoken as rows of their own and joined; ``codes`` has those of the current
    attempt that are done, ``keys`` the names of the rows that are not."""

    segment: Segment
    pieces: list[str]
    started: float = field(default_factory=time.perf_counter)
    seeds: list[int] = field(default_factory=list)
    codes: dict[int, Codes] = field(default_factory=dict)
    keys: dict[int, int] = field(default_factory=dict)
    truncated: bool = False
    best: Attempt | None = None

    def begin(self, seed: int) -> None:
        """Another attempt."""
        self.seeds.append(seed)
        self.codes = {}
        self.keys = {}
        self.truncated = False

    def take(self, key: int, codes: Codes, *, truncated: bool) -> bool:
        """A row of it has ended; whether it was the last one."""
        self.codes[self.keys.pop(key)] = codes
        self.truncated = self.truncated or truncated
        return len(self.codes) == len(self.pieces)

    @property
    def joined(self) -> list[Codes]:
        """The codes of its pieces, in their order."""
        return [self.codes[piece] for piece in range(len(self.pieces))]

    def judge(self, attempt: Attempt, retries: int) -> bool:
        """Keep the attempt if it is better than what there is; whether to try again."""
        if self.best is None or attempt.faults < self.best.faults:
            self.best = attempt
        return self.best.faults > (False, 0) and len(self.seeds) <= retries

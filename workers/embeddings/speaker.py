"""The mean of a speaker's utterances.

The additions are the same ones in the same order wherever a speaker is computed: its files in the order of their names,
in blocks of ROWS (fewer of very large vectors), each block summed row by row and the blocks one after the other, all in
float64. So the result is the same to the bit for any number of processes, and memory does not grow with the number of
utterances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.embeddings.utterance import BadUtterance, Files, Utterance, parse_utterance

ROWS = 64
"""Vectors that are checked and summed at a time: enough that numpy's cost for a call is shared, few enough to stay in
the processor's cache."""

MOST_NUMBERS_IN_BLOCK = 1 << 20
"""Numbers that are held so at most, but for a single vector: as float64, and as they came beside it."""


class SpeakerFailed(Exception):
    """There is no mean. ``code`` is all_failed, mixed_dimensions or overflow; ``failed`` utterances could not be
    used."""

    def __init__(self, code: str, message: str, failed: int) -> None:
        super().__init__(message)
        self.code = code
        self.failed = failed


class Mean(NamedTuple):
    """``embedding`` is the plain mean, float64, one dimension; the ids and paths are those of the utterances in it, in
    their order."""

    embedding: NDArray[np.float64]
    utterance_ids: list[str]
    original_paths: list[str]
    failed: int = 0


def mean_of(
    files: Files, *, on_problem: Callable[[str, BadUtterance], None], on_read: Callable[[], None] = lambda: None
) -> Mean:
    """The mean of ``files``, whose names are sorted. ``on_problem`` hears of each that can't be used; ``on_read`` is
    called for every file.

    Raises:
        SpeakerFailed: none can be used, or they differ in their number of dimensions.
    """
    total = _Sum(on_problem)
    # What is too large for float64 is found by its result.
    with np.errstate(all="ignore"):
        for name in files.names:
            on_read()
            try:
                utterance = parse_utterance(name, files.read_next())
            except BadUtterance as bad:
                total.fail(name, bad)
            except MemoryError:
                total.fail(name, BadUtterance("too_large", "it needs more memory than a process may use"))
            else:
                total.add(name, utterance)
        return total.mean()


class _Sum:
    """The sum so far, and a block of vectors that are not in it yet."""

    def __init__(self, on_problem: Callable[[str, BadUtterance], None]) -> None:
        self._on_problem = on_problem
        self._sum: NDArray[np.float64] | None = None
        self._block: NDArray[np.float64] = np.empty((0, 0))
        self._waiting: list[tuple[str, Utterance]] = []
        self._first = ""
        self._last_problem: BadUtterance | None = None
        self._ids: list[str] = []
        self._paths: list[str] = []
        self._failed = 0

    def fail(self, name: str, bad: BadUtterance) -> None:
        self._failed += 1
        self._last_problem = self._last_problem or bad
        self._on_problem(name, bad)

    def add(self, name: str, utterance: Utterance) -> None:
        vector = utterance.embedding
        if vector.size != self._block.shape[1] and not self._fits(name, vector):
            self.fail(name, _not_finite())
            return
        if len(self._waiting) == len(self._block):
            self._take_block()
        self._waiting.append((name, utterance))

    def _fits(self, name: str, vector: NDArray[Any]) -> bool:
        """Whether a vector of other dimensions can be taken: it can as long as nothing is in the sum. False when it is
        no good anyway.

        Raises:
            SpeakerFailed: it is good, and so were others.
        """
        self._take_block()
        if self._sum is None:
            self._block = np.empty((max(1, min(ROWS, MOST_NUMBERS_IN_BLOCK // vector.size)), vector.size))
            return True
        if not np.isfinite(vector).all():
            return False
        message = (
            f"its utterances differ in dimensions: {self._first!a} has {self._sum.size}, {name!a} has {vector.size}"
        )
        raise SpeakerFailed("mixed_dimensions", message, self._failed)

    def _take_block(self) -> None:
        count = len(self._waiting)
        if not count:
            return
        rows = self._block[:count]
        # One call for all: a call costs more than the numbers of a row.
        np.concatenate([utterance.embedding for _, utterance in self._waiting], out=rows.reshape(-1))
        block: NDArray[np.float64] = np.add.reduce(rows, axis=0)
        # A sum is finite only if all that is in it is; the rows are looked at when it is not.
        if not np.logical_and.reduce(np.isfinite(block)):
            finite: NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=1))
            for (name, _), fine in zip(self._waiting, finite, strict=True):
                if not fine:
                    self.fail(name, _not_finite())
            self._waiting = [entry for entry, fine in zip(self._waiting, finite, strict=True) if fine]
            block = np.add.reduce(rows[finite], axis=0)
        if self._waiting:
            self._sum = block if self._sum is None else self._sum + block
            self._first = self._first or self._waiting[0][0]
            self._ids += [utterance.utterance_id for _, utterance in self._waiting]
            self._paths += [utterance.original_path for _, utterance in self._waiting]
        self._waiting = []

    def mean(self) -> Mean:
        self._take_block()
        if self._sum is None:
            reason = f"; the first: {self._last_problem}" if self._last_problem else ""
            raise SpeakerFailed(
                "all_failed", f"none of its {self._failed} utterances can be used{reason}", self._failed
            )
        embedding = self._sum / len(self._ids)
        if not np.logical_and.reduce(np.isfinite(embedding)):
            raise SpeakerFailed("overflow", "the sum of its embeddings is too large for float64", self._failed)
        return Mean(embedding, self._ids, self._paths, self._failed)


def _not_finite() -> BadUtterance:
    return BadUtterance("non_finite", "its embedding holds NaN or an infinity")

"""Who sits where: the rows of the decoding batch, decided without torch.

A slot is a row of the caches. Rows join at the lowest free slot and leave at any step; a step runs the slots
0 … rows-1, so holes cost time and ``moves`` closes them. ``position`` is where a row's next token is written; it is
counted here in step with the device, so that nothing has to be read back to know how long the attention must be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Row:
    """One text being spoken. ``key`` is the caller's name for it; ``position`` the next token's place in the cache;
    ``last`` the last place it may ever write."""

    key: int
    position: int
    last: int


@dataclass(frozen=True)
class StepPlan:
    """One run of the decoder: slots 0 … rows-1, attending over ``length`` positions. ``keys`` advance by it; the other
    rows in the range are computed and not kept."""

    rows: int
    length: int
    keys: tuple[int, ...]


class Batch:
    """The slots and the rows in them.

    Args:
        slots: how many rows there may be.
        lengths: the attention lengths that may be used, ascending; the last one covers every position.
        row_counts: the row counts that a step may have, ascending, and ``slots`` itself; empty: any.
        steady: a row's arithmetic may not depend on the others: all slots are always stepped, each row at the length
            of its own position, and rows keep their slots.
    """

    def __init__(
        self, slots: int, lengths: Sequence[int], row_counts: Sequence[int] = (), *, steady: bool = False
    ) -> None:
        self.slots = slots
        self.steady = steady
        self._lengths = tuple(lengths)
        self._row_counts = tuple(row_counts)
        self._rows: list[Row | None] = [None] * slots
        self._slot_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, key: int) -> bool:
        return key in self._slot_of

    @property
    def keys(self) -> list[int]:
        """Those in the batch, by slot."""
        return [row.key for row in self._rows if row is not None]

    @property
    def free(self) -> int:
        return self.slots - len(self._slot_of)

    def slot(self, key: int) -> int:
        return self._slot_of[key]

    def position(self, slot: int) -> int:
        """Where the next token of the row in a slot goes."""
        row = self._rows[slot]
        assert row is not None
        return row.position

    def join(self, row: Row) -> int:
        """The slot it takes."""
        slot = self._rows.index(None)
        self._rows[slot] = row
        self._slot_of[row.key] = slot
        return slot

    def leave(self, key: int) -> int:
        """The slot that it had."""
        slot = self._slot_of.pop(key)
        self._rows[slot] = None
        return slot

    def clear(self) -> list[int]:
        """Everyone leaves; who was there, by slot."""
        keys = self.keys
        self._rows = [None] * self.slots
        self._slot_of = {}
        return keys

    def resize(self, slots: int) -> None:
        """Another number of slots, for an empty batch."""
        self.slots = slots
        self.clear()

    def length_for(self, positions: int) -> int:
        """The shortest attention length that covers so many positions."""
        place = bisect_left(self._lengths, positions)
        if place == len(self._lengths):
            raise ValueError(f"{positions} positions are more than the longest attention, {self._lengths[-1]}")
        return self._lengths[place]

    @property
    def longest(self) -> int:
        """Positions that the next step covers."""
        return max((row.position + 1 for row in self._rows if row is not None), default=0)

    def plans(self) -> list[StepPlan]:
        """What to run to advance every row by one frame: one plan, or, when steady, one for each length in use."""
        if not self._slot_of:
            return []
        if self.steady:
            by_length: dict[int, list[int]] = {}
            for row in self._rows:
                if row is not None:
                    by_length.setdefault(self.length_for(row.position + 1), []).append(row.key)
            return [StepPlan(self.slots, length, tuple(keys)) for length, keys in sorted(by_length.items())]
        rows = self._count(1 + max(self._slot_of.values()))
        return [StepPlan(rows, self.length_for(self.longest), tuple(self.keys))]

    def advance(self, plan: StepPlan) -> None:
        """The plan has run. A row that has ended on the device without the host knowing yet stays at its last place."""
        for key in plan.keys:
            row = self._rows[self._slot_of[key]]
            assert row is not None
            row.position = min(row.position + 1, row.last)

    def moves(self, *, close: bool = False) -> list[tuple[int, int]]:
        """Rows to move, as (from, to) slots, so that the next step runs fewer rows; carried out here already. Each
        move copies a row's keys and values, so none is made that does not save a row of a step. ``close``: leave no
        hole, whether it saves anything or not."""
        moves: list[tuple[int, int]] = []
        if self.steady and not close:
            return moves
        while self._slot_of:
            top = max(self._slot_of.values())
            hole = self._rows.index(None) if None in self._rows else self.slots
            if hole > top or (not close and self._count(len(self._slot_of)) >= self._count(top + 1)):
                return moves
            row = self._rows[top]
            assert row is not None
            self._rows[hole], self._rows[top] = row, None
            self._slot_of[row.key] = hole
            moves.append((top, hole))
        return moves

    def _count(self, rows: int) -> int:
        return min(self.slots, next((count for count in self._row_counts if count >= rows), rows))

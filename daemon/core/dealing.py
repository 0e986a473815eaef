"""Who computes which speakers: work dealt in chunks to processes, some of which die.

Speakers become known one after another, as a corpus is listed, and at most REACH of them are held here: memory does not
grow with the corpus. Among those within reach the largest are dealt first, and a chunk is no more than a fair part of
what is within reach, so that the processes finish together: towards the end chunks grow small.

A process that dies takes no work with it. What it held is suspect: each of these speakers is dealt again alone, with
nothing else at that process, and only the one that is alone with a process when it dies is given up. So a speaker
that kills costs itself alone, and a process that was killed from outside costs nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

REACH = 4096
"""Speakers that are known and not dealt, at most."""

SHARES = 2
"""Into how many chunks for each process the work within reach is cut at least. More: they finish closer together;
fewer: less to say between them."""

AHEAD = 8
"""Chunks that a process holds and has not answered for when it is given another: those before it, and those whose
results wait to be synced with others."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """One speaker of a corpus, by the names of its folders; ``weight``: about how many files it has."""

    dataset: str
    name: str
    weight: int


@dataclass(frozen=True, slots=True)
class Dealt:
    """A speaker at a process: ``ticket`` is a number that is never used twice, ``alone`` that it is a suspect."""

    ticket: int
    speaker: Speaker
    alone: bool


@dataclass(slots=True)
class _Hand:
    """What one process holds, by ticket, in the order of the dealing."""

    held: dict[int, Dealt] = field(default_factory=dict)
    weight: int = 0
    """Of all that is held."""
    moved_at: float = 0.0
    progress: int = -1

    @property
    def alone(self) -> bool:
        """Whether it holds a suspect: nothing else is with it then."""
        return len(self.held) == 1 and next(iter(self.held.values())).alone

    def take(self, dealt: Dealt) -> None:
        self.held[dealt.ticket] = dealt
        self.weight += dealt.speaker.weight

    def drop(self, ticket: int) -> Dealt | None:
        dealt = self.held.pop(ticket, None)
        if dealt is not None:
            self.weight -= dealt.speaker.weight
        return dealt


class Dealer:
    """``processes`` is between how many the work is shared; they are named by any numbers. ``at`` is seconds on a clock
    that never falls."""

    def __init__(self, *, processes: int, chunk_size: int) -> None:
        self.processes = processes
        self._chunk_size = chunk_size
        self._waiting: list[tuple[int, int, Speaker]] = []
        self._waiting_weight = 0
        self._suspects: deque[Speaker] = deque()
        self._hands: dict[int, _Hand] = {}
        self._complete = False
        self._tickets = 0
        self._known = 0

    # --- work ----------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more speakers may be made known now."""
        return max(0, REACH - len(self._waiting))

    def add(self, speaker: Speaker) -> None:
        self._known += 1
        self._waiting_weight += speaker.weight
        heapq.heappush(self._waiting, (-speaker.weight, self._known, speaker))

    def complete(self) -> None:
        """No more speakers will come."""
        self._complete = True

    @property
    def waiting(self) -> int:
        """Speakers that are known and at no process."""
        return len(self._waiting) + len(self._suspects)

    @property
    def in_hand(self) -> int:
        """Speakers that are at a process."""
        return sum(len(hand.held) for hand in self._hands.values())

    @property
    def finished(self) -> bool:
        return self._complete and not self.waiting and not self.in_hand

    # --- dealing -------------------------------------------------------------------------------------------

    def deal(self, process: int, at: float) -> list[Dealt]:
        """The next chunk for a process: none when it holds enough, or nothing waits. A process is given more before it
        has finished what it holds, so that it need not wait for us or for the disk, but never so much that others
        would miss it."""
        hand = self._hands.setdefault(process, _Hand())
        if hand.alone:
            return []
        if self._suspects:
            return [] if hand.held else self._hand_over(hand, [self._suspects.popleft()], at, alone=True)
        share = self._waiting_weight // (SHARES * self.processes)
        if hand.held and (len(hand.held) > AHEAD * self._chunk_size or hand.weight > share):
            return []
        chunk: list[Speaker] = []
        weight = 0
        while self._waiting and len(chunk) < self._chunk_size:
            speaker = self._waiting[0][2]
            if chunk and weight + speaker.weight > share:
                break
            heapq.heappop(self._waiting)
            chunk.append(speaker)
            weight += speaker.weight
        self._waiting_weight -= weight
        return self._hand_over(hand, chunk, at, alone=False)

    def _hand_over(self, hand: _Hand, speakers: list[Speaker], at: float, *, alone: bool) -> list[Dealt]:
        if speakers and not hand.held:
            hand.moved_at = at
        dealt = []
        for speaker in speakers:
            self._tickets += 1
            one = Dealt(self._tickets, speaker, alone)
            hand.take(one)
            dealt.append(one)
        return dealt

    # --- what became of it ----------------------------------------------------------------------------------

    def holder(self, process: int, ticket: int) -> Dealt | None:
        """What the process holds under that ticket; None when it does not hold it, or not any more."""
        hand = self._hands.get(process)
        return hand.held.get(ticket) if hand else None

    def holding(self, process: int) -> list[Dealt]:
        """All that the process holds."""
        hand = self._hands.get(process)
        return list(hand.held.values()) if hand else []

    def ended(self, process: int, ticket: int, at: float) -> Dealt | None:
        """The process has answered for it; None when it had not been asked, or has answered already."""
        hand = self._hands.get(process)
        dealt = hand.drop(ticket) if hand else None
        if hand is not None and dealt is not None:
            hand.moved_at = at
        return dealt

    def give_back(self, process: int, ticket: int, at: float) -> None:
        """The process could not do it and is not to blame for it, nor the speaker."""
        dealt = self.ended(process, ticket, at)
        if dealt is not None:
            self.add(dealt.speaker)

    def lost(self, process: int) -> list[Dealt]:
        """The process is gone; the speakers that are given up for it."""
        hand = self._hands.pop(process, None)
        held = list(hand.held.values()) if hand else []
        given_up = [dealt for dealt in held if dealt.alone]
        self._suspects += [dealt.speaker for dealt in held if not dealt.alone]
        return given_up

    def moved(self, process: int, progress: int, at: float) -> None:
        """A sign of life, with a number that grows with the work."""
        hand = self._hands.setdefault(process, _Hand())
        if progress != hand.progress:
            hand.progress, hand.moved_at = progress, at

    def overdue(self, at: float, timeout_s: float) -> list[int]:
        """Processes that hold work and have not come on with it for so long."""
        return [process for process, hand in self._hands.items() if hand.held and at - hand.moved_at > timeout_s]

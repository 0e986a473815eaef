"""Many histories, and one told in full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from daemon.core.scheduler import ImpossibleTransition
from tests.sim.history import History, draw

SEEDS_AT_ONCE = 25


@dataclass
class Summary:
    """``failed``: seeds and what did not hold."""

    histories: int = 0
    lives: int = 0
    events: int = 0
    segments: int = 0
    recycles: int = 0
    failed: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.histories:,} histories, {self.lives:,} lives of the daemon, {self.segments:,} segments, "
            f"{self.events:,} events, {self.recycles:,} workers recycled, {len(self.failed)} failed"
        )

    def add(self, other: Summary) -> None:
        self.histories += other.histories
        self.lives += other.lives
        self.events += other.events
        self.segments += other.segments
        self.recycles += other.recycles
        self.failed.update(other.failed)


def run_history(seed: int) -> tuple[History, str | None]:
    """The history, and what did not hold of it."""
    history = History(draw(seed))
    try:
        history.run()
    except (AssertionError, ImpossibleTransition, KeyError, ValueError) as error:
        return history, f"{type(error).__name__}: {error}"
    return history, None


def _run_some(seeds: list[int]) -> Summary:
    summary = Summary()
    for seed in seeds:
        history, problem = run_history(seed)
        summary.histories += 1
        summary.lives += history.lives
        summary.events += history.events
        summary.recycles += history.recycles
        summary.segments += sum(len(drop.texts) for drop in history.plot.drops)
        if problem is not None:
            summary.failed[seed] = problem
    return summary


def run_histories(seeds: Iterable[int], *, processes: int | None = None) -> Summary:
    """Run these; a failing seed is printed at once, with how to see it again."""
    whole = list(seeds)
    parts = [whole[start : start + SEEDS_AT_ONCE] for start in range(0, len(whole), SEEDS_AT_ONCE)]
    summary = Summary()
    count = processes or min(2, len(os.sched_getaffinity(0)))
    if count == 1:
        done = map(_run_some, parts)
        return _gather(done, summary)
    with ProcessPoolExecutor(count) as pool:
        return _gather(pool.map(_run_some, parts), summary)


def _gather(done: Iterable[Summary], summary: Summary) -> Summary:
    for part in done:
        for seed, problem in part.failed.items():
            print(
                f"seed {seed}: {problem[:500]}\n  again: python -m tests.sim --seed {seed}", file=sys.stderr, flush=True
            )
        summary.add(part)
    return summary


def tell_history(seed: int) -> int:
    """Run one history and print its plot, its last events and its end; 1 when something did not hold."""
    history, problem = run_history(seed)
    print(history.plot, *history.story, sep="\n")
    print(problem or f"all holds: {history.lives} lives, {history.events} events, {history.at:.1f} s")
    return problem is not None

"""Past this machine: a pool of a thousand GPUs over a million segments, and what an event costs the core."""

from __future__ import annotations

import gc
import heapq
import random
import statistics
import time
from dataclasses import dataclass

from daemon.core import events
from daemon.core.core import Core
from daemon.core.supervision import PoolPolicy

PARTS = 10
SEGMENTS_A_JOB = 10_000
SPEAKERS_A_JOB = 40
SLOTS = 8

FLAT = 2.0
"""The last events may cost so many times what the first ones do: memory grows colder, but nothing grows with n."""


@dataclass(frozen=True)
class ScaleReport:
    """``parts_us``: microseconds of processor time that an event costs, the median over each tenth of the run, so that
    what else runs on the machine says little; ``mean_us`` over all. ``slowest_ms``: the dearest event but arrivals,
    which cost ``arrival_us`` a segment."""

    workers: int
    segments: int
    events: int
    parts_us: tuple[float, ...]
    mean_us: float
    arrival_us: float
    slowest_ms: float
    problem: str | None

    @property
    def steepness(self) -> float:
        """The last tenths over the first: 1 is flat."""
        return statistics.median(self.parts_us[-4:-1]) / statistics.median(self.parts_us[:3])

    def __str__(self) -> str:
        parts = " ".join(f"{part:.1f}" for part in self.parts_us)
        return (
            f"{self.workers:,} GPUs, {self.segments:,} segments, {self.events:,} events: "
            f"{self.mean_us:.1f} us an event (medians by tenths: {parts}; the dearest {self.slowest_ms:.1f} ms), "
            f"{self.arrival_us:.1f} us a segment to arrive" + (f"; PROBLEM: {self.problem}" if self.problem else "")
        )


def run_scale(workers: int, segments: int, seed: int = 0) -> ScaleReport:
    """Speak so many segments, in jobs of at most SEGMENTS_A_JOB, on so many workers; only the core is timed."""
    dice = random.Random(seed)
    core = Core(PoolPolicy(), random.Random(seed))
    clock = time.thread_time
    agenda: list[tuple[float, int, events.Event]] = []
    order = 0
    costs: list[float] = []
    spent_on_arrivals = 0.0
    ended = 0
    jobs_ended = 0

    def later(at: float, event: events.Event) -> None:
        nonlocal order
        order += 1
        heapq.heappush(agenda, (at, order, event))

    later(0.0, events.WorkersPlanned(0.0, tuple(events.WorkerSpec(number, number) for number in range(workers))))
    jobs = max(1, segments // SEGMENTS_A_JOB)
    a_job = segments // jobs
    for number in range(jobs):
        specs = tuple(
            events.SegmentSpec(position, f"s{dice.randrange(SPEAKERS_A_JOB)}", 20 + dice.randrange(200))
            for position in range(a_job)
        )
        later(number * 0.01, events.JobArrived(number * 0.01, f"job {number}", dice.choice((0, 0, 0, 1)), specs))
    handled = 0
    gc.collect()
    gc.disable()
    try:
        while agenda:
            at, _, event = heapq.heappop(agenda)
            started = clock()
            commands = core.handle(event)
            cost = clock() - started
            handled += 1
            if isinstance(event, events.JobArrived):
                spent_on_arrivals += cost
            elif not isinstance(event, events.WorkersPlanned | events.WorkerReady):
                costs.append(cost)
            for command in commands:
                match command:
                    case events.StartWorker():
                        later(at + 1, events.WorkerReady(at + 1, command.worker, command.generation, SLOTS))
                    case events.Dispatch():
                        begun, spoken = at + 0.1, at + dice.uniform(1, 3)
                        told = (command.worker, command.generation, command.ticket)
                        later(begun, events.SegmentBegan(begun, *told))
                        later(spoken, events.SegmentDelivered(spoken, *told))
                        stored = spoken + 0.01
                        later(stored, events.SegmentStored(stored, command.job, command.position))
                        if not command.ticket % 8:
                            later(spoken, events.WorkerBeat(spoken, command.worker, command.generation))
                    case events.Recall():
                        released = (command.worker, command.generation, command.ticket)
                        later(at, events.SegmentReleased(at, *released, began=False))
                    case events.SegmentEnded():
                        ended += command.outcome == "spoken"
                    case events.JobEnded():
                        jobs_ended += 1
    finally:
        gc.enable()
    size = max(1, len(costs) // PARTS)
    parts = tuple(statistics.median(costs[start : start + size]) * 1e6 for start in range(0, size * PARTS, size))
    lost = None if (ended, jobs_ended) == (a_job * jobs, jobs) else f"{ended} spoken, {jobs_ended} jobs ended"
    return ScaleReport(
        workers=workers,
        segments=a_job * jobs,
        events=handled,
        parts_us=parts,
        mean_us=statistics.fmean(costs) * 1e6,
        arrival_us=spent_on_arrivals / (a_job * jobs) * 1e6,
        slowest_ms=max(costs) * 1e3,
        problem=lost,
    )

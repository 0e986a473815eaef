"""``dubd bench daemon``: what the daemon costs, seen with an engine that costs nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.bench.figures import Figure, Tell, median
from daemon.bench.film import film, write_voices
from daemon.bench.own_daemon import SETTLE_S, OwnDaemon
from daemon.commands.invocation import Invocation

LATENCY_JOBS = 5
"""At least so many jobs of one segment; they take no time."""

SPEED_UP_SEGMENTS = 240
"""Divides by 1, 2, 4 and 6 workers, and by the 6 speakers."""
SPEED_UP_WAIT_S = 0.1

CUT_SHORT = ("engine.slots=64", "engine.options={wait_s = 0.1}")
"""The worker of the life that is cut short, about as a large one on a GPU: what it speaks at that moment is suspected
of it, and spoken alone afterwards."""

FASTER_THAN_THE_DISK = ("engine.slots=64",)
"""The worker of both lives where they are compared."""

CROWD = 10
"""So many of the largest jobs are live where the event loop is looked at: by default, as many segments as may be."""
TRICKLE = ("engine.slots=8", "engine.options={wait_s = 1.0}")
NO_FLOORS = tuple(f"disk.{place}_free_gb=0" for place in ("state", "outbox", "inbox"))
"""They are not to be finished, and so need no room."""

SHORT_JOB = 10
"""Segments of each of the many jobs."""


@dataclass
class Overhead:
    """Measures in ``folder``, which is the caller's to remove. ``segments``: sizes of the jobs; ``workers``: numbers
    of workers for the speed-up."""

    folder: Path
    invocation: Invocation
    tell: Tell
    repeats: int
    segments: Sequence[int]
    workers: Sequence[int]
    idle_seconds: float
    _take: int = field(default=0, init=False)

    def measure(self) -> Iterator[Figure]:
        """Every figure as it is known.

        Raises:
            CommandFailed: a daemon of the bench can't do its work.
        """
        yield from self.starting()
        yield from self.working()
        yield from self.many_short_jobs()
        yield from self.recovering()
        yield from self.comparing_halves()
        yield from self.crowded()
        yield from self.listing()
        yield from self.speeding_up()

    # --- one worker -----------------------------------------------------------------------------------------

    def starting(self) -> Iterator[Figure]:
        self.tell("starting")
        until_jobs, until_workers = [], []
        for number in range(self.repeats):
            with self._daemon(f"start{number}", "service.status_seconds=0.1") as daemon:
                began = time.perf_counter()
                until_jobs.append(daemon.start())
                daemon.await_workers(1)
                until_workers.append(time.perf_counter() - began)
        yield Figure("start, until jobs are taken", statistics.median(until_jobs), "s")
        yield Figure("start, until the worker is ready", statistics.median(until_workers), "s")

    def working(self) -> Iterator[Figure]:
        """Idle, one segment, many segments, the same again: in one life, at the defaults of everything but settling."""
        with self._daemon("work") as daemon:
            daemon.start()
            daemon.await_workers(1)
            self.tell(f"idle for {self.idle_seconds:g} s")
            before = daemon.cpu_seconds()
            time.sleep(self.idle_seconds)
            yield Figure("idle", (daemon.cpu_seconds() - before) / self.idle_seconds * 100, "% of a core")
            self.tell("jobs of one segment")
            short = [daemon.run(*self._job(1)) for _ in range(max(LATENCY_JOBS, self.repeats))]
            first = statistics.median(times.first_wav_s for times in short) - SETTLE_S
            yield Figure("one segment, from settled to its WAV", first * 1000, "ms")
            wall = statistics.median(times.wall_s for times in short) - SETTLE_S
            yield Figure("one segment, from settled to its manifest", wall * 1000, "ms")
            for segments in self.segments:
                self.tell(f"{segments} segments")

                def speed(segments: int = segments) -> float:
                    return segments / daemon.run(*self._job(segments)).wall_s

                yield Figure(f"{segments:,} segments", median(self.repeats, speed), "segments/s")
            largest = max(self.segments)
            self.tell(f"{largest} segments spoken before")
            name, content = self._job(largest)
            daemon.run(name, content)

            def speed_of_copying() -> float:
                return largest / daemon.run(self._job(1)[0], content).wall_s

            yield Figure(f"{largest:,} segments spoken before", median(self.repeats, speed_of_copying), "segments/s")
            yield Figure("peak memory of the daemon", daemon.peak_bytes() / 1e6, "MB")

    def recovering(self) -> Iterator[Figure]:
        """A daemon is killed in the middle of its largest job, and started again."""
        largest = max(self.segments)
        ready, done = [], []
        for number in range(self.repeats):
            self.tell(f"killed in the middle of {largest} segments")
            with self._daemon(f"recovery{number}", "service.progress_seconds=0.1") as daemon:
                daemon.start(*CUT_SHORT)
                name, content = self._job(largest)
                daemon.drop(name, content)
                daemon.await_half(name)
                daemon.kill()
                began = time.perf_counter()
                ready.append(daemon.start())
                daemon.finish(name)
                done.append(time.perf_counter() - began)
        what = f"{largest:,} segments, killed halfway"
        yield Figure(f"{what}: start, until jobs are taken", statistics.median(ready), "s")
        yield Figure(f"{what}: start, until its manifest", statistics.median(done), "s")

    def comparing_halves(self) -> Iterator[Figure]:
        """A daemon with an engine that is faster than any disk is killed halfway: what the other half takes, with the
        start, for each second of the first half and the start."""
        largest = max(self.segments)

        def ratio() -> float:
            with self._daemon(f"halves{self._next()}", "service.progress_seconds=0.1", *FASTER_THAN_THE_DISK) as daemon:
                daemon.start()
                daemon.await_workers(1)
                name, content = self._job(largest)
                began = time.perf_counter()
                daemon.drop(name, content)
                daemon.await_half(name)
                first = time.perf_counter() - began
                daemon.kill()
                began = time.perf_counter()
                started = daemon.start()
                daemon.finish(name)
                return (time.perf_counter() - began) / (first + started)

        self.tell(f"the halves of {largest} segments")
        what = f"{largest:,} segments, killed halfway: the other half, against the first and the start"
        yield Figure(what, median(self.repeats, ratio), "×")

    # --- many of them ---------------------------------------------------------------------------------------

    def many_short_jobs(self) -> Iterator[Figure]:
        jobs = max(2, max(self.segments) // SHORT_JOB)

        def speed() -> float:
            with self._daemon(f"short{self._next()}") as daemon:
                daemon.start()
                daemon.await_workers(1)
                given = [self._job(SHORT_JOB) for _ in range(jobs)]
                began = time.perf_counter()
                for name, content in given:
                    daemon.drop(name, content)
                for name, _ in given:
                    daemon.finish(name)
                return jobs / (time.perf_counter() - began)

        self.tell(f"{jobs} jobs of {SHORT_JOB} segments")
        yield Figure(f"{jobs:,} jobs of {SHORT_JOB} segments", median(self.repeats, speed), "jobs/s")

    def crowded(self) -> Iterator[Figure]:
        """What the event loop does with many live segments of which a few are spoken each second."""
        largest = max(self.segments)
        self.tell(f"{CROWD} jobs of {largest} segments live")
        with self._daemon("crowd", *TRICKLE, *NO_FLOORS) as daemon:
            daemon.start()
            for _ in range(CROWD):
                daemon.drop(*self._job(largest))
            daemon.await_running(CROWD)
            before = daemon.loop_seconds()
            time.sleep(self.idle_seconds)
            cost = (daemon.loop_seconds() - before) / self.idle_seconds
        yield Figure(f"event loop, {CROWD * largest:,} segments live", cost * 1000, "ms a second")

    def listing(self) -> Iterator[Figure]:
        """``dubd jobs`` over many results."""
        results = 2 * max(self.segments)
        self.tell(f"{results} results listed")
        with self._daemon("results") as daemon:
            daemon.start()
            name, content = self._job(1)
            daemon.run(name, content)
            whole = {file: (daemon.outbox / name / file).read_bytes() for file in ("manifest.json", "job.json")}
            for number in range(results - 1):
                folder = daemon.outbox / f"result{number}"
                folder.mkdir()
                for file, data in whole.items():
                    (folder / file).write_bytes(data.replace(name.encode(), folder.name.encode()))
            seconds = median(self.repeats, lambda: daemon.command("jobs", "--json"))
        yield Figure(f"dubd jobs, {results:,} results", seconds, "s")

    # --- many workers ---------------------------------------------------------------------------------------

    def speeding_up(self) -> Iterator[Figure]:
        """Workers that take SPEED_UP_WAIT_S for each segment and speak one at a time, against one after the other."""
        segments = min(SPEED_UP_SEGMENTS, *self.segments)
        one_by_one = segments * SPEED_UP_WAIT_S
        for workers in self.workers:
            self.tell(f"{workers} worker{'s' * (workers > 1)}")
            waiting = ("engine.slots=1", f"engine.options={{wait_s = {SPEED_UP_WAIT_S}}}")
            with self._daemon(f"workers{workers}", f"pool.workers={workers}", *waiting) as daemon:
                daemon.start()
                daemon.await_workers(workers)
                times = [daemon.run(*self._job(segments)) for _ in range(self.repeats)]
            wall = statistics.median(one.wall_s for one in times) - SETTLE_S
            name = f"{segments} segments of {SPEED_UP_WAIT_S:g} s, {workers} worker{'s' * (workers > 1)}"
            yield Figure(f"{name} (ideal ratio {min(workers, segments)})", wall, "s", one_by_one / wall)

    # --- helpers --------------------------------------------------------------------------------------------

    def _daemon(self, name: str, *overrides: str) -> OwnDaemon:
        room = max(10_000, *self.segments)
        daemon = OwnDaemon(
            self.folder / name,
            self.invocation,
            ("engine.name=silence", "pool.workers=1", f"limits.segments={room}", *overrides),
        )
        write_voices(daemon.folder / "inbox")
        return daemon

    def _next(self) -> int:
        self._take += 1
        return self._take

    def _job(self, segments: int) -> tuple[str, bytes]:
        """A job's id and content that no earlier one had."""
        take = self._next()
        return f"take{take}", film(take, segments)

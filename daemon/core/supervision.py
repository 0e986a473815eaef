"""A worker's life: starting, deadlines, back-off, breaker, replacement, idle release.

A ``Worker`` is a number of the plan; each process that has been it is a generation. What the plan wants of it
(``wanted``) and what its process is (``state``) are kept apart: a worker whose process is not what is wanted
(retired, moved to another place, to be replaced) must leave, which it does as soon as it holds nothing.

A crash is a process that ended without having been asked to. It counts when it came before ``ready`` or when the
worker has finished no segment since its last crash; then the next start waits, twice as long each time, and
``breaker_crashes`` of them within ``breaker_window_s`` open the breaker: no start for ``breaker_open_s``, then a
single one (half-open), whose crash opens it again. A finished segment clears all of it. The loss of the place
that a process ran in (its node) is no crash. Where no other worker is, the deaths of one segment that is alone count
once for the breaker: the segment fails in the end, and nobody has to wait until then.

A process grows old: by the segments that it has spoken, by its hours, by the memory that it has gained since it had
settled (``recycle_*``). Then it is *recycled*: it gets no more work, finishes what it has begun, and a fresh one takes
its place; that is no crash, and nothing is charged for it. One at a time, and only while every other worker that could
be at work is: so a pool of several is never without one, and a fresh one is warm before the next goes. Age is looked at
with each beat, so it needs no deadline.

Every deadline stands in ``timers`` under ``(kind, worker, ticket)``, ticket 0 where there is none:

=========  ==========================================================  ==================
kind       from ... until                                              then
=========  ==========================================================  ==================
load       StartWorker ... WorkerReady                                 kill
beat       the first beat, or WorkerReady ... the next beat            kill
begin      tickets held, none begun ... one begins                     kill
segment    Dispatch ... SegmentBegan, SegmentBegan ... its answer      kill
restart    a crash that counts ... the back-off is over                start
reopen     the breaker opens ... it half-opens                         start
=========  ==========================================================  ==================
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from daemon.core.events import Command, KillWorker, StartWorker, StopWorker, WorkerSpec
from daemon.core.scheduler import LazyHeap, advance

JITTER = 0.25
"""A back-off is this much longer or shorter by chance, so that workers that fell together don't rise together."""

SETTLED_SEGMENTS = 20
"""Segments after which a process holds what it needs: what it holds by then is not growth."""

GROWN_S = 30.0
"""Memory counts as grown when it has been over the limit for so long: a long text may need much for a moment."""

GROWN_AGE_S = 600.0
"""A process younger than this is not recycled for its memory: were the growth honest, nothing else would be done."""

Timer = tuple[str, int, int]

KILLING_TIMERS = ("load", "beat", "begin", "segment")

WorkerState = Literal["starting", "ready", "busy", "restarting", "broken", "released"]


@dataclass(frozen=True)
class PoolPolicy:
    """How the pool is run; times in seconds, ``idle_release_s`` 0 for never."""

    lookahead: int = 2
    """Tickets a worker may hold beyond its slots."""
    unstored: int = 256
    """So many segments delivered and not yet stored, and nothing more is given out: a restart speaks them again."""
    tries: int = 3
    """How often one segment may kill its worker while alone, or fail in a way that may be retried."""
    idle_release_s: float = 0
    backoff_min_s: float = 1
    backoff_max_s: float = 60
    breaker_crashes: int = 3
    breaker_window_s: float = 300
    breaker_open_s: float = 600
    load_timeout_s: float = 600
    beat_timeout_s: float = 30
    segment_timeout_s: float = 300
    recycle_segments: int = 0
    """Segments after which a process is replaced; 0: never."""
    recycle_s: float = 0
    """Its age at which it is; 0: never."""
    recycle_growth_bytes: int = 0
    """Memory gained, of which it is; 0: never."""


WORKER_STEPS: Mapping[tuple[str, str], str] = {
    ("down", "start"): "starting",
    ("restarting", "start"): "starting",
    ("broken", "start"): "starting",
    ("released", "start"): "starting",
    ("starting", "ready"): "ready",
    ("starting", "stop"): "stopping",
    ("ready", "stop"): "stopping",
    ("starting", "kill"): "killing",
    ("ready", "kill"): "killing",
    ("starting", "gone"): "down",
    ("ready", "gone"): "down",
    ("stopping", "gone"): "down",
    ("killing", "gone"): "down",
    ("down", "back_off"): "restarting",
    ("down", "break"): "broken",
    ("down", "release"): "released",
    ("restarting", "release"): "released",
    ("broken", "release"): "released",
    ("down", "retire"): "retired",
    ("restarting", "retire"): "retired",
    ("broken", "retire"): "retired",
    ("released", "retire"): "retired",
}
"""A worker's life. There is a process in starting, ready, stopping and killing, and in no other state."""

ALIVE = frozenset({"starting", "ready", "stopping", "killing"})


@dataclass(eq=False, slots=True)
class Worker:
    """One number of the plan. ``place`` is what the present process was started for, or the next will be.
    ``loaded``: the process has been ready. ``proven``: the worker has finished a segment since its last crash."""

    number: int
    place: WorkerSpec
    wanted: WorkerSpec | None
    generation: int
    state: str = "down"
    replace: bool = False
    loads: int = 0
    restarts: int = 0
    spoken: int = 0
    error: str | None = None
    loaded: bool = False
    proven: bool = False
    half_open: bool = False
    recycles: int = 0
    recycling: str = ""
    """Why its process is to be replaced by a fresh one, which is under way."""
    ready_at: float = 0.0
    done: int = 0
    """Segments that its present process has finished."""
    settled_bytes: int = 0
    grown_bytes: int = 0
    grown_since: float | None = None
    failures: int = 0
    crashes: deque[float] = field(default_factory=deque)

    def step(self, verb: str) -> None:
        self.state = advance(WORKER_STEPS, f"worker {self.number}", self.state, verb)

    @property
    def must_leave(self) -> bool:
        """Its process is to end when it holds nothing."""
        return self.wanted is None or self.replace or self.wanted != self.place

    @property
    def open(self) -> bool:
        """It may be given work."""
        return self.state == "ready" and not self.must_leave

    def forget_crashes(self) -> None:
        self.failures = 0
        self.half_open = False
        self.crashes.clear()


class Supervisor:
    """The lives of all workers. Commands go to ``emit``; nothing here knows of segments but the tickets in the
    names of timers."""

    def __init__(self, policy: PoolPolicy, random: random.Random, emit: Callable[[Command], None]) -> None:
        self.policy = policy
        self.workers: dict[int, Worker] = {}
        self.timers: LazyHeap[Timer] = LazyHeap()
        self.asleep = False
        """The pool was released; nothing is started until it is woken."""
        self._random = random
        self._emit = emit
        self._generations: dict[int, int] = {}

    # --- what is wanted ---------------------------------------------------------------------------------

    def plan(self, specs: tuple[WorkerSpec, ...], *, restart: bool, at: float) -> list[int]:
        """Make these the workers that there should be; gives the numbers of those whose want has changed.

        Raises:
            ValueError: a number is planned twice.
        """
        wanted = {spec.worker: spec for spec in specs}
        if len(wanted) != len(specs):
            raise ValueError("a worker's number is planned twice")
        changed = []
        for number in sorted(wanted.keys() | self.workers.keys()):
            worker, spec = self.workers.get(number), wanted.get(number)
            if worker is None:
                assert spec is not None
                worker = Worker(number, spec, spec, self._generations.get(number, 0))
                self.workers[number] = worker
                self._rise(worker, at)
            elif spec == worker.wanted and not restart:
                continue
            else:
                self._want(worker, spec, restart, at)
            changed.append(number)
        return changed

    def _want(self, worker: Worker, spec: WorkerSpec | None, restart: bool, at: float) -> None:
        moved = spec is not None and spec != worker.place
        worker.wanted = spec
        if spec is None and worker.state not in ALIVE:
            self._leave(worker, "retire")
        elif spec is not None and (restart or moved):
            worker.forget_crashes()
            if worker.state in ("restarting", "broken"):
                self._rise(worker, at)
            elif worker.state in ("starting", "ready"):
                worker.replace = worker.replace or restart
            else:
                worker.place = spec if worker.state == "released" else worker.place

    def sleep(self) -> None:
        """Let every process go, and start none until ``wake``. No worker may hold anything."""
        self.asleep = True
        for worker in list(self.workers.values()):
            if worker.state in ("starting", "ready"):
                self.stop(worker)
            elif worker.state == "restarting":
                self._leave(worker, "release")

    def wake(self, at: float) -> None:
        """There is work again."""
        if self.asleep:
            self.asleep = False
            for worker in self.workers.values():
                if worker.state == "released":
                    self._rise(worker, at)

    # --- what happens -----------------------------------------------------------------------------------

    def ready(self, worker: Worker, at: float) -> None:
        worker.step("ready")
        worker.loaded = True
        worker.loads += 1
        worker.ready_at = at
        self.timers.discard(("load", worker.number, 0))
        self.beat(worker, at)

    def beat(self, worker: Worker, at: float, resident_bytes: int = 0) -> None:
        if worker.state in ("starting", "ready"):
            self.timers.set(("beat", worker.number, 0), (at + self.policy.beat_timeout_s,))
        if worker.state == "ready" and resident_bytes:
            if worker.done < SETTLED_SEGMENTS or not worker.settled_bytes:
                worker.settled_bytes = max(worker.settled_bytes, resident_bytes)
            worker.grown_bytes = resident_bytes - worker.settled_bytes
            if worker.grown_bytes <= self.policy.recycle_growth_bytes:
                worker.grown_since = None
            elif worker.grown_since is None:
                worker.grown_since = at

    def old_age(self, worker: Worker, at: float) -> str:
        """Why a fresh process should take its place, "" when none should, or can't now."""
        policy = self.policy
        grown = policy.recycle_growth_bytes and worker.grown_since is not None and at >= worker.grown_since + GROWN_S
        if not worker.open:
            return ""
        if policy.recycle_segments and worker.done >= policy.recycle_segments:
            reason = f"it has spoken {worker.done} segments"
        elif policy.recycle_s and at >= worker.ready_at + policy.recycle_s:
            reason = f"it has run for {(at - worker.ready_at) / 3600:.1f} hours"
        elif grown and at >= worker.ready_at + GROWN_AGE_S:
            reason = f"its memory has grown by {worker.grown_bytes / 1e9:.1f} GB"
        else:
            return ""
        return reason if all(other is worker or self._steady(other) for other in self.workers.values()) else ""

    @staticmethod
    def _steady(worker: Worker) -> bool:
        """It is at work, or not to be waited for."""
        return worker.open or worker.wanted is None or worker.state in ("broken", "released")

    def recycle(self, worker: Worker, reason: str) -> None:
        """Have a fresh process in its place when it holds nothing any more."""
        worker.replace = True
        worker.recycling = reason
        worker.recycles += 1

    def finished(self, worker: Worker) -> None:
        """The worker has spoken a segment: it works."""
        worker.spoken += 1
        worker.done += 1
        worker.proven = True
        worker.error = None
        worker.forget_crashes()

    @property
    def any_sound(self) -> bool:
        """Whether a worker that may be given work has not crashed since it last finished a segment."""
        return any(worker.open and not worker.failures for worker in self.workers.values())

    def gone(self, worker: Worker, reason: str, at: float, *, lost: bool = False, blamed: bool = False) -> None:
        """The process has ended. Leaves the worker starting, restarting, broken, released or retired; a retired
        one is no longer among the workers. One whose place is ``lost`` has not crashed: it waits the shortest back-off,
        in which a plan without the place may come. ``blamed``: alone with a segment whose worker died before."""
        before = worker.state
        self._clear(worker)
        worker.step("gone")
        if before == "stopping":
            self._rise_or_leave(worker, at)
            return
        if before != "killing":
            worker.error = reason
        counts = not (worker.loaded and worker.proven)
        worker.proven = False
        if lost and worker.wanted is not None and not self.asleep:
            worker.step("back_off")
            self._restart_after(worker, self.policy.backoff_min_s, at)
            return
        if not counts or worker.wanted is None:
            self._rise_or_leave(worker, at, crashed=True)
            return
        policy = self.policy
        worker.failures += 1
        if not blamed or self._others_work(worker):
            worker.crashes.append(at)
        while worker.crashes and worker.crashes[0] < at - policy.breaker_window_s:
            worker.crashes.popleft()
        if worker.half_open or len(worker.crashes) >= policy.breaker_crashes:
            worker.step("break")
            self.timers.set(("reopen", worker.number, 0), (at + policy.breaker_open_s,))
        elif self.asleep:
            worker.step("release")
        else:
            worker.step("back_off")
            self._restart_after(worker, policy.backoff_min_s * 2.0 ** min(worker.failures - 1, 63), at)

    def _others_work(self, worker: Worker) -> bool:
        """Whether a segment that fails here could be spoken elsewhere."""
        return any(
            other is not worker and other.wanted is not None and other.state != "broken"
            for other in self.workers.values()
        )

    def stop(self, worker: Worker) -> None:
        self._clear(worker)
        worker.step("stop")
        self._emit(StopWorker(worker.number, worker.generation, worker.recycling))

    def kill(self, worker: Worker, reason: str) -> None:
        self._clear(worker)
        worker.step("kill")
        worker.error = reason
        self._emit(KillWorker(worker.number, worker.generation, reason))

    def due(self, at: float) -> Iterator[Timer]:
        """The timers that have run out, each taken away before it is given."""
        while (timer := self.timers.peek()) is not None:
            rank = self.timers.rank(timer)
            assert rank is not None
            if rank[0] > at:
                return
            self.timers.discard(timer)
            yield timer

    def forgive(self, late: float) -> None:
        """The daemon itself stood still: what the workers said meanwhile is still to be read, so every deadline
        that kills is put off by as long."""
        for timer in list(self.timers):
            rank = self.timers.rank(timer)
            if timer[0] in KILLING_TIMERS and rank is not None:
                self.timers.set(timer, (rank[0] + late,))

    def restart(self, worker: Worker, at: float) -> None:
        """The back-off is over, or the breaker half-opens."""
        worker.half_open = worker.state == "broken"
        self._rise(worker, at, crashed=True)

    # --- steps ------------------------------------------------------------------------------------------

    def _restart_after(self, worker: Worker, back_off_s: float, at: float) -> None:
        longest = self.policy.backoff_max_s
        delay = min(back_off_s, longest) * self._random.uniform(1 - JITTER, 1 + JITTER)
        self.timers.set(("restart", worker.number, 0), (at + min(delay, longest),))

    def _rise_or_leave(self, worker: Worker, at: float, *, crashed: bool = False) -> None:
        if worker.wanted is None:
            self._leave(worker, "retire")
        else:
            self._rise(worker, at, crashed=crashed)

    def _rise(self, worker: Worker, at: float, *, crashed: bool = False) -> None:
        """Start what is wanted, unless the pool sleeps."""
        assert worker.wanted is not None
        self._clear(worker)
        worker.place, worker.replace, worker.recycling = worker.wanted, False, ""
        worker.done = worker.settled_bytes = worker.grown_bytes = 0
        worker.grown_since = None
        if self.asleep:
            if worker.state != "released":
                worker.step("release")
            return
        worker.step("start")
        worker.loaded = False
        worker.restarts += crashed
        worker.generation += 1
        self._generations[worker.number] = worker.generation
        self.timers.set(("load", worker.number, 0), (at + self.policy.load_timeout_s,))
        self._emit(StartWorker(worker.number, worker.generation, worker.place.gpu, worker.place.node))

    def _leave(self, worker: Worker, verb: str) -> None:
        self._clear(worker)
        worker.step(verb)
        if verb == "retire":
            del self.workers[worker.number]

    def _clear(self, worker: Worker) -> None:
        """Take the worker's own timers away; those of its tickets go with the tickets."""
        for kind in ("load", "beat", "begin", "restart", "reopen"):
            self.timers.discard((kind, worker.number, 0))

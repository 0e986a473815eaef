"""What the core's tests drive it with: a desk that checks the books after each event, and a simulated pool."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from daemon.core.core import Core, WorkerView
from daemon.core.events import (
    Command,
    Dispatch,
    Event,
    JobArrived,
    JobEnded,
    KillWorker,
    Recall,
    SegmentBegan,
    SegmentDelivered,
    SegmentEnded,
    SegmentFailed,
    SegmentReleased,
    SegmentSpec,
    SegmentSpoilt,
    SegmentStored,
    StartWorker,
    StopWorker,
    Suspected,
    Tick,
    WorkerBeat,
    WorkerGone,
    WorkerReady,
    WorkerSpec,
    WorkersPlanned,
)
from daemon.core.supervision import PoolPolicy

Kind = TypeVar("Kind")


def specs(speakers: Iterable[str], cost: float = 1.0) -> tuple[SegmentSpec, ...]:
    """One segment for each speaker named, in this order."""
    return tuple(SegmentSpec(position, speaker, cost) for position, speaker in enumerate(speakers))


def plan(count: int) -> tuple[WorkerSpec, ...]:
    return tuple(WorkerSpec(worker, worker) for worker in range(count))


class Desk:
    """A core whose books are checked after each event; by hand, with time in ``at``."""

    def __init__(self, policy: PoolPolicy | None = None, seed: int = 0, *, check: bool = True) -> None:
        self.core = Core(policy or PoolPolicy(), random.Random(seed))
        self.at = 0.0
        self.log: list[Command] = []
        self._check = check

    def tell(self, event: Event) -> list[Command]:
        commands = self.core.handle(event)
        if self._check:
            self.core.check()
        self.log += commands
        return commands

    def workers(self, count: int, slots: int = 1) -> None:
        """A plan of so many workers, all ready."""
        for start in only(StartWorker, self.tell(WorkersPlanned(self.at, plan(count)))):
            self.ready(start, slots)

    def ready(self, start: StartWorker, slots: int = 1) -> list[Command]:
        return self.tell(WorkerReady(self.at, start.worker, start.generation, slots))

    def arrive(self, job: str, speakers: Iterable[str], *, priority: int = 0, cost: float = 1.0) -> list[Command]:
        return self.tell(JobArrived(self.at, job, priority, specs(speakers, cost)))

    def begin(self, dispatch: Dispatch) -> list[Command]:
        return self.tell(SegmentBegan(self.at, dispatch.worker, dispatch.generation, dispatch.ticket))

    def deliver(self, dispatch: Dispatch) -> list[Command]:
        return self.tell(SegmentDelivered(self.at, dispatch.worker, dispatch.generation, dispatch.ticket))

    def store(self, dispatch: Dispatch) -> list[Command]:
        return self.tell(SegmentStored(self.at, dispatch.job, dispatch.position))

    def speak(self, dispatch: Dispatch) -> list[Command]:
        return self.begin(dispatch) + self.deliver(dispatch) + self.store(dispatch)

    def fail(self, dispatch: Dispatch, code: str, *, retryable: bool, slots: int | None = None) -> list[Command]:
        worker, generation, ticket = dispatch.worker, dispatch.generation, dispatch.ticket
        return self.tell(SegmentFailed(self.at, worker, generation, ticket, code, "why", retryable, slots))

    def release(self, recall: Recall, *, began: bool = False) -> list[Command]:
        return self.tell(SegmentReleased(self.at, recall.worker, recall.generation, recall.ticket, began))

    def gone(self, worker: int, reason: str = "killed") -> list[Command]:
        generation = self.view(worker).generation
        return self.tell(WorkerGone(self.at, worker, generation, reason))

    def tick(self) -> list[Command]:
        """Let time pass to the next deadline."""
        deadline = self.core.next_deadline()
        assert deadline is not None
        self.at = max(self.at, deadline)
        return self.tell(Tick(self.at))

    def view(self, worker: int) -> WorkerView:
        return next(view for view in self.core.worker_views() if view.worker == worker)


def only(kind: type[Kind], commands: Iterable[Command]) -> list[Kind]:
    return [command for command in commands if isinstance(command, kind)]


# --- a simulated pool -----------------------------------------------------------------------------------------


@dataclass
class Process:
    """A simulated worker process."""

    worker: int
    generation: int
    slots: int
    alive: bool = True
    hung: bool = False
    loaded: bool = False
    queue: deque[Dispatch] = field(default_factory=deque)
    running: dict[int, Dispatch] = field(default_factory=dict)


@dataclass
class Faults:
    """Chances of things going wrong; ``budget`` of them at most, so that a history ends."""

    budget: int = 0
    start: float = 0.0
    crash: float = 0.0
    hang: float = 0.0
    fail: float = 0.0
    memory: float = 0.0
    spoil: float = 0.0
    lie: float = 0.0
    poison: frozenset[tuple[str, int]] = frozenset()


class SimulatedPool:
    """Carries out the core's commands in virtual time. ``seconds`` gives how long a dispatch is spoken."""

    def __init__(
        self,
        desk: Desk,
        *,
        slots: int = 1,
        seconds: Callable[[Dispatch], float] = lambda dispatch: 1.0,
        load_s: float = 0.0,
        faults: Faults | None = None,
        seed: int = 0,
    ) -> None:
        self.desk = desk
        self.slots = slots
        self.seconds = seconds
        self.load_s = load_s
        self.faults = faults or Faults()
        self.random = random.Random(seed)
        self.processes: dict[int, Process] = {}
        self.dispatches: list[Dispatch] = []
        self.ended: dict[tuple[str, int], SegmentEnded] = {}
        self.jobs_ended: list[str] = []
        self.alone_deaths: dict[tuple[str, int], int] = {}
        self.cancelled: set[str] = set()
        self.events = 0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.desk.at + seconds, next(self._order), action))

    def tell(self, event: Event) -> None:
        self.events += 1
        for command in self.desk.tell(event):
            self._obey(command)

    def run(self, *, steps: int = 10_000_000) -> None:
        """Until nothing is left to happen and every job has ended."""
        for _ in range(steps):
            if not self.step():
                return
        raise AssertionError(f"the history does not end: {self.desk.core.story()}")

    def step(self) -> bool:
        """The next thing that happens; False when there is none."""
        deadline = self.desk.core.next_deadline()
        if self._agenda and (deadline is None or self._agenda[0][0] < deadline):
            at, _, action = heapq.heappop(self._agenda)
            self.desk.at = max(self.desk.at, at)
            action()
        elif deadline is not None and (self._agenda or self.desk.core._jobs):
            self._beat(deadline)
            self.desk.at = max(self.desk.at, deadline)
            self.tell(Tick(self.desk.at))
        else:
            return False
        return True

    def _beat(self, deadline: float) -> None:
        """Everyone who lives says so just before the next deadline."""
        for process in list(self.processes.values()):
            if process.alive and not process.hung:
                at = max(self.desk.at, deadline - 0.001)
                self.tell(WorkerBeat(at, process.worker, process.generation))

    def _odds(self, chance: float) -> bool:
        if self.faults.budget > 0 and self.random.random() < chance:
            self.faults.budget -= 1
            return True
        return False

    def _obey(self, command: Command) -> None:
        match command:
            case StartWorker():
                assert not (before := self.processes.get(command.worker)) or not before.alive, "two processes"
                process = Process(command.worker, command.generation, self.slots)
                self.processes[command.worker] = process
                self.later(self.load_s, lambda: self._load(process))
            case StopWorker() | KillWorker():
                process = self._process(command.worker, command.generation)
                if isinstance(command, StopWorker):
                    assert not process.queue, "stopped with work"
                    assert not process.running, "stopped with work"
                self.later(0.01, lambda: self._end(process, "ended as it was told"))
            case Dispatch():
                process = self._process(command.worker, command.generation)
                assert process.loaded
                assert (command.job, command.position) not in self.ended
                if command.alone:
                    assert not process.queue, "not alone"
                    assert not process.running, "not alone"
                self.dispatches.append(command)
                process.queue.append(command)
                self.later(0, lambda: self._fill(process))
            case Recall():
                process = self._process(command.worker, command.generation)
                self.later(0, lambda: self._recall(process, command.ticket, command.begun))
            case SegmentEnded():
                key = (command.job, command.position)
                assert key not in self.ended, "ended twice"
                self.ended[key] = command
            case JobEnded():
                self.jobs_ended.append(command.job)
            case Suspected():
                pass

    def _process(self, worker: int, generation: int) -> Process:
        process = self.processes[worker]
        assert process.generation == generation
        assert process.alive, "a command to a dead worker"
        return process

    def _load(self, process: Process) -> None:
        if not process.alive or process.hung:
            return
        if self._odds(self.faults.start):
            self._end(process, "would not start")
            return
        process.loaded = True
        self.tell(WorkerReady(self.desk.at, process.worker, process.generation, process.slots))

    def _fill(self, process: Process) -> None:
        while process.alive and not process.hung and process.queue and len(process.running) < process.slots:
            dispatch = process.queue.popleft()
            process.running[dispatch.ticket] = dispatch
            self.later(self.seconds(dispatch), lambda dispatch=dispatch: self._finish(process, dispatch))  # type: ignore[misc]
            self.tell(SegmentBegan(self.desk.at, process.worker, process.generation, dispatch.ticket))

    def _finish(self, process: Process, dispatch: Dispatch) -> None:
        if not process.alive or process.hung or dispatch.ticket not in process.running:
            return
        at, worker, generation, ticket = self.desk.at, process.worker, process.generation, dispatch.ticket
        key = (dispatch.job, dispatch.position)
        if key in self.faults.poison or self._odds(self.faults.crash):
            self._end(process, f"segment {key} killed it" if key in self.faults.poison else "crashed")
            return
        if self._odds(self.faults.hang):
            process.hung = True
            return
        del process.running[ticket]
        if self._odds(self.faults.fail):
            retryable = self.random.random() < 0.7
            self.tell(SegmentFailed(at, worker, generation, ticket, "flawed", "why", retryable))
        elif self._odds(self.faults.memory):
            process.slots = max(1, process.slots // 2)
            told = process.slots if self.random.random() < 0.8 else None
            self.tell(SegmentFailed(at, worker, generation, ticket, "out_of_memory", "why", True, told))
        else:
            self.tell(SegmentDelivered(at, worker, generation, ticket))
            if self._odds(self.faults.lie):
                self.tell(SegmentDelivered(at, worker, generation, ticket))
                self.tell(SegmentBegan(at, worker, generation, ticket + 1_000_000))
                self.tell(SegmentReleased(at, worker, generation + 1, ticket, False))
                self.tell(SegmentFailed(at, worker, generation, ticket, "late", "why", True))
            spoilt = self._odds(self.faults.spoil)
            check: Event = (
                SegmentSpoilt(at, dispatch.job, dispatch.position, "spoilt", "why")
                if spoilt
                else SegmentStored(at, dispatch.job, dispatch.position)
            )
            self.tell(check)
        self._fill(process)

    def _recall(self, process: Process, ticket: int, begun: bool) -> None:
        if not process.alive or process.hung:
            return
        at, worker, generation = self.desk.at, process.worker, process.generation
        for dispatch in process.queue:
            if dispatch.ticket == ticket:
                process.queue.remove(dispatch)
                self.tell(SegmentReleased(at, worker, generation, ticket, False))
                return
        dispatch = process.running.get(ticket)  # type: ignore[assignment]
        if begun and dispatch is not None:
            del process.running[ticket]
            self.tell(SegmentReleased(at, worker, generation, ticket, True))
            self._fill(process)

    def _end(self, process: Process, reason: str) -> None:
        if not process.alive:
            return
        process.alive = False
        for dispatch in process.running.values():
            if dispatch.alone:
                key = (dispatch.job, dispatch.position)
                self.alone_deaths[key] = self.alone_deaths.get(key, 0) + 1
        self.tell(WorkerGone(self.desk.at, process.worker, process.generation, reason))

"""The daemon around the core, as simulation: what Pool, Jobs, JobRun and Recorder do with events and commands, with
pipes that take their time and a recorder that writes later, so that death may come between any two of its acts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from daemon.core import events
from daemon.core.core import Core
from daemon.core.events import Command, Dispatch, Event
from daemon.core.supervision import PoolPolicy
from daemon.journal import Record
from daemon.live_job import LiveJob, LiveSegment
from tests.sim import workers as wire
from tests.sim.disk import PaperJob
from tests.sim.workers import WorkerProcess

ROUTINE = (events.SegmentBegan, events.SegmentDelivered, events.SegmentStored, events.WorkerBeat, events.Tick)
CHECKED_EVERY = 8
"""The core's books are gone through after every event that is not routine, and after each so-manieth that is: a mistake
in them stays there."""


class DaemonDied(Exception):
    """Thrown between two acts of a daemon: nothing of it is left but its disk."""


class BrokenPromise(AssertionError):
    """An invariant does not hold; the message says which."""


class World(Protocol):
    """What a daemon lives in: time, chance, workers, and the judge of what it does."""

    at: float
    random: random.Random
    faults: wire.Faults
    disk: dict[str, PaperJob]

    def act(self) -> None:
        """Called before each act. Raises DaemonDied when this is the end."""

    def later(self, seconds: float, action: Callable[[], None]) -> None: ...

    def odds(self, chance: float) -> bool: ...

    def spawn(self, worker: int, generation: int) -> WorkerProcess: ...

    def sent(self, process: WorkerProcess, dispatch: Dispatch) -> None: ...

    def ended(self, command: events.SegmentEnded) -> None: ...

    def over(self, token: str) -> None: ...

    def failed(self, dispatch: Dispatch) -> None: ...

    def recycled(self) -> None: ...

    def suspected(self, place: tuple[str, int]) -> None: ...

    def looked_at(self, token: str, position: int) -> None: ...

    def read_back(self, job: LiveJob) -> None: ...

    def in_this_life(self, action: Callable[[], None]) -> Callable[[], None]: ...


@dataclass(frozen=True)
class Note:
    token: str
    record: Record
    durable: bool
    then: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Delivery:
    token: str
    position: int
    attempts: int
    honest: bool


@dataclass
class Handle:
    process: WorkerProcess
    tickets: dict[int, Dispatch] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)


class Shell:
    """One life of the daemon."""

    def __init__(self, world: World, policy: PoolPolicy, seed: int, plan: tuple[events.WorkerSpec, ...]) -> None:
        self.core = Core(policy, random.Random(seed))
        self.jobs: dict[str, LiveJob] = {}
        self.paused = False
        self._world = world
        self._handles: dict[int, Handle] = {}
        self._notes: list[Note] = []
        self._deliveries: list[tuple[int, Delivery]] = []
        self._writing = self._storing = False
        self._noted = self._written = 0
        self._lines: dict[str, list[str]] = {}
        self._arrived: set[str] = set()
        self._applied = 0
        self.looked_at: tuple[str, int] | None = None
        """The delivery that is being checked."""
        self.killers: set[tuple[str, int]] = set()
        """Segments that had begun when their worker died."""
        self._recycling: set[int] = set()
        """Workers that were stopped for their age, and are not ready again."""
        self.apply(events.WorkersPlanned(world.at, plan))
        for token in sorted(world.disk):
            if not world.disk[token].over:
                self.take(world.disk[token])

    def out(self) -> set[tuple[str, int]]:
        """The segments that are at workers."""
        return {(d.job, d.position) for handle in self._handles.values() for d in handle.tickets.values()}

    # --- jobs -----------------------------------------------------------------------------------------------

    def take(self, paper: PaperJob) -> None:
        """A job that was accepted, now or in an earlier life; of one job_id one runs."""
        job = paper.read_back()
        self._world.read_back(job)
        self.jobs[paper.token] = job
        line = self._lines.setdefault(job.job_id, [])
        line.append(paper.token)
        if len(line) == 1:
            self._arrive(job)

    def _arrive(self, job: LiveJob) -> None:
        if job.cancelled:
            for position, live in enumerate(job.segments):
                if live.status == "waiting":
                    live.status = "cancelled"
                    self._note(job.token, {"t": "cancelled", "p": position, "attempts": live.attempts})
        self._arrived.add(job.token)
        self.apply(events.JobArrived(self._world.at, job.token, job.job.priority, job.waiting()))
        if job.cancelled:
            self.apply(events.JobCancelled(self._world.at, job.token))

    def cancel(self, job_id: str) -> None:
        for token in list(self._lines.get(job_id, ())):
            job = self.jobs[token]
            if not job.cancelled:
                job.cancelled = True
                self._note(token, {"t": "cancel"}, durable=True)
                if token in self._arrived:
                    self.apply(events.JobCancelled(self._world.at, token))

    def plan(self, specs: tuple[events.WorkerSpec, ...], *, restart: bool) -> None:
        self.apply(events.WorkersPlanned(self._world.at, specs, restart))

    def pause(self, seconds: float) -> None:
        """The disk is full for so long."""
        if not self.paused:
            self.paused = True
            self.apply(events.DispatchPaused(self._world.at))
            self._world.later(seconds, self._world.in_this_life(self._resume))

    def _resume(self) -> None:
        self.paused = False
        self.apply(events.DispatchResumed(self._world.at))

    # --- the core -------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        commands = self.core.handle(event)
        self._applied += 1
        if self.core.held and any(isinstance(command, Dispatch) for command in commands):
            raise BrokenPromise(f"something is given out while {self.core.unstored} wait to be stored")
        if self._applied % CHECKED_EVERY == 0 or not isinstance(event, ROUTINE):
            self.core.check()
        for command in commands:
            self._world.act()
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case events.StartWorker():
                before = self._handles.get(command.worker)
                if before is not None:
                    raise BrokenPromise(f"worker {command.worker} is started beside a living one")
                process = self._world.spawn(command.worker, command.generation)
                self._handles[command.worker] = Handle(process)
            case events.StopWorker():
                handle = self._handle(command.worker, command.generation)
                if handle.tickets:
                    raise BrokenPromise(f"worker {command.worker} is stopped while it holds work")
                if command.reason:
                    self._recycle(command.worker)
                self._world.later(0.01, lambda: handle.process.end("exit 0"))
            case events.KillWorker():
                handle = self._handle(command.worker, command.generation)
                self._world.later(0.01, lambda: handle.process.end("killed"))
            case events.Dispatch():
                self._dispatch(command)
            case events.Recall():
                handle = self._handle(command.worker, command.generation)
                process, ticket, begun = handle.process, command.ticket, command.begun
                self._world.later(0.0, lambda: process.recall(ticket, begun=begun))
            case events.Suspected():
                self._world.suspected((command.job, command.position))
                live = self._live(command.job, command.position)
                live.begun, live.suspect, live.alone = False, True, False
                self._note(command.job, {"t": "suspect", "p": command.position}, durable=True)
            case events.Tried():
                self._live(command.job, command.position).use_up(command.tries)
                record = {"t": "tried", "p": command.position, "tries": command.tries}
                self._note(command.job, record, durable=True)
            case events.SegmentEnded():
                self._segment_ended(command)
            case events.JobEnded():
                token = command.job
                # After the last note of it: publishing takes longer than the recorder.
                self._note(token, {"t": "end", "at": self._world.at}, durable=True, then=lambda: self._over(token))

    def _recycle(self, worker: int) -> None:
        """One at a time: those before it are ready again, or will not be soon."""
        views = {view.worker: view.state for view in self.core.worker_views()}
        away = [other for other in self._recycling if views.get(other, "broken") not in ("broken", "released")]
        if away:
            raise BrokenPromise(f"worker {worker} is recycled while {away} are not back")
        self._recycling = {worker}
        self._world.recycled()

    def _handle(self, worker: int, generation: int) -> Handle:
        handle = self._handles.get(worker)
        if handle is None or handle.process.generation != generation or handle.process.told_gone:
            raise BrokenPromise(f"a command to worker {worker}, generation {generation}, which is dead")
        return handle

    def _live(self, token: str, position: int) -> LiveSegment:
        return self.jobs[token].segments[position]

    def _dispatch(self, command: Dispatch) -> None:
        handle = self._handle(command.worker, command.generation)
        if not command.alone:
            self._send(handle, command)
            return
        if handle.tickets:
            raise BrokenPromise(f"segment {command.position} of {command.job} is not alone")
        live = self._live(command.job, command.position)
        live.tries, live.alone = command.tries, True

        def send() -> None:
            if self._handles.get(command.worker) is handle:
                self._send(handle, command)

        record = {"t": "try", "p": command.position, "tries": command.tries}
        self._note(command.job, record, durable=True, then=send)

    def _send(self, handle: Handle, command: Dispatch) -> None:
        self._world.disk[command.job].out.append(b"%d\n" % command.position)
        handle.tickets[command.ticket] = command
        self._world.sent(handle.process, command)

    def _segment_ended(self, ended: events.SegmentEnded) -> None:
        self._world.ended(ended)
        if ended.outcome != "spoken":
            live = self._live(ended.job, ended.position)
            live.status = ended.outcome
            live.begun = live.alone = False
            live.attempts = max(live.attempts, live.tries, int(ended.outcome == "failed"))
            record: Record = {
                "t": ended.outcome,
                "p": ended.position,
                "attempts": live.attempts,
                "worker": ended.worker,
            }
            record |= {"code": ended.code, "message": ended.message}
            self._note(ended.job, record, durable=True)

    def _over(self, token: str) -> None:
        job = self.jobs.pop(token)
        self._world.disk[token].over = True
        self._world.over(token)
        line = self._lines[job.job_id]
        line.remove(token)
        if line:
            self._arrive(self.jobs[line[0]])

    # --- the pipes ------------------------------------------------------------------------------------------

    def hear(self, process: WorkerProcess, message: wire.Message) -> None:
        """What arrives from a worker, as Pool understands it."""
        self._world.act()
        now, worker, generation = self._world.at, process.number, process.generation
        handle = self._handles[worker]
        match message:
            case wire.Gone(reason, lost):
                process.told_gone = True
                for number, held in handle.tickets.items():
                    if lost or number not in handle.begun:
                        self._given_back(held)
                    else:
                        self.killers.add((held.job, held.position))
                del self._handles[worker]
                self.apply(events.WorkerGone(now, worker, generation, reason, lost))
            case wire.Ready(slots):
                self._recycling.discard(worker)
                self.apply(events.WorkerReady(now, worker, generation, slots))
            case wire.Beat(resident_bytes):
                self.apply(events.WorkerBeat(now, worker, generation, resident_bytes))
            case wire.Begun(ticket):
                dispatch = handle.tickets.get(ticket)
                if dispatch is not None and ticket not in handle.begun:
                    handle.begun.add(ticket)
                    live = self._live(dispatch.job, dispatch.position)
                    live.begun = True
                    live.attempts += 1
                    self._note(dispatch.job, {"t": "began", "p": dispatch.position})
                self.apply(events.SegmentBegan(now, worker, generation, ticket))
            case wire.Delivered(ticket, honest):
                dispatch = handle.tickets.pop(ticket, None)
                if dispatch is not None:
                    live = self._live(dispatch.job, dispatch.position)
                    attempts = max(live.attempts, 1)
                    live.give_back()
                    self._take_back(dispatch.job, dispatch.position)
                    self._deliver(Delivery(dispatch.job, dispatch.position, attempts, honest))
                self.apply(events.SegmentDelivered(now, worker, generation, ticket))
            case wire.Failed(ticket, code, retryable, slots):
                dispatch = handle.tickets.pop(ticket, None)
                self._given_back(dispatch)
                if dispatch is not None and retryable and code not in ("disk_full", "out_of_memory"):
                    self._world.failed(dispatch)
                if code == "disk_full":
                    self.pause(2.0)
                    self.apply(events.SegmentReleased(now, worker, generation, ticket, True, blameless=True))
                else:
                    failed = events.SegmentFailed(now, worker, generation, ticket, code, "why", retryable, slots)
                    self.apply(failed)
            case wire.Cancelled(ticket, began):
                self._given_back(handle.tickets.pop(ticket, None))
                self.apply(events.SegmentReleased(now, worker, generation, ticket, began))

    def _take_back(self, token: str, position: int) -> None:
        self._world.disk[token].out.append(b"-%d\n" % position)

    def _given_back(self, dispatch: Dispatch | None) -> None:
        if dispatch is not None:
            live = self._live(dispatch.job, dispatch.position)
            if live.status == "waiting":
                live.give_back()
                self._take_back(dispatch.job, dispatch.position)
                self._note(dispatch.job, {"t": "back", "p": dispatch.position})

    # --- the recorder ---------------------------------------------------------------------------------------

    def _note(
        self, token: str, record: Record, *, durable: bool = False, then: Callable[[], None] = lambda: None
    ) -> None:
        self._noted += 1
        self._notes.append(Note(token, record, durable, then))
        if not self._writing:
            self._writing = True
            self._soon(self._write)

    def _deliver(self, delivery: Delivery) -> None:
        self._deliveries.append((self._noted, delivery))
        if not self._storing:
            self._storing = True
            self._soon(self._store)

    def _soon(self, action: Callable[[], None]) -> None:
        pause = self._world.random.choice((0.0, 0.001, 0.05)) * self._world.faults.slow_disk
        self._world.later(pause, self._world.in_this_life(action))

    def _write(self) -> None:
        """One batch of notes, as the recorder's thread writes it, and word of it."""
        notes, self._notes = self._notes, []
        for token in dict.fromkeys(note.token for note in notes):
            self._world.act()
            group = [note for note in notes if note.token == token]
            self._world.disk[token].append([note.record for note in group], durable=any(n.durable for n in group))
        self._written += len(notes)
        self._writing = False
        for note in notes:
            self._world.act()
            note.then()
        if self._notes and not self._writing:
            self._writing = True
            self._soon(self._write)

    def _store(self) -> None:
        """One batch of deliveries, as the recorder's other thread stores it, and word of it."""
        if self._written < self._deliveries[-1][0]:
            self._soon(self._store)
            return
        batch, self._deliveries = [delivery for _, delivery in self._deliveries], []
        spoilt = []
        for delivery in batch:
            self.looked_at = (delivery.token, delivery.position)
            self._world.disk[delivery.token].out.append(b"?%d\n" % delivery.position)
            self._world.looked_at(delivery.token, delivery.position)
            self._world.act()
            self._take_back(delivery.token, delivery.position)
            self.looked_at = None
            if not delivery.honest or self._world.odds(self._world.faults.spoil):
                spoilt.append(delivery)
                continue
            record = {"t": "ok", "p": delivery.position, "attempts": delivery.attempts, **_OK}
            self._world.disk[delivery.token].append([record], durable=True)
            live = self._live(delivery.token, delivery.position)
            live.status, live.attempts = "ok", delivery.attempts
        self._storing = False
        for delivery in batch:
            self._world.act()
            if delivery in spoilt:
                self._live(delivery.token, delivery.position).begun = False
                spoil = events.SegmentSpoilt(self._world.at, delivery.token, delivery.position, "spoilt", "why")
                self.apply(spoil)
            else:
                self.apply(events.SegmentStored(self._world.at, delivery.token, delivery.position))
        if self._deliveries and not self._storing:
            self._storing = True
            self._soon(self._store)


_OK: Record = {
    "key": None, "seed": 1, "cached": False, "frames": 1, "sample_rate": 1, "sha256": "", "truncated": False,
    "worker": 0, "device": "", "generate_s": 0.0, "seeds": [], "flaws": [],
}  # fmt: skip

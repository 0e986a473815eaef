"""The daemon's mind: what happens goes in, what is to be done comes out.

``Core.handle`` takes one event and gives the commands that follow from it, in order. It reads no clock and no file,
so that the shell, the tests and a simulator of years drive the same code. It joins the scheduler (what waits, what
is held) with the supervisor (which processes there are), and adds what needs both: suspects, out of memory,
recalls, cancelling.

Each event is handled in three steps: the event itself, the deadlines that have run out by then, and last the
dispatch, which looks at nothing but the books and so needs to know no reason: alone work first, then the workers
with the most free slots, then recalls for those that are still idle.

A segment that had begun when its worker died is a *suspect*. It is spoken alone: on a worker that holds nothing
else and is given nothing else. Any worker that holds nothing takes one; when there is none, exactly one is drained
(given nothing new). Only a death while alone counts, so a neighbour is never charged. As long as no worker is known to
be sound, work that is no suspect comes first: should the worker be to blame, nothing is charged for it. A segment that
was dispatched but not begun is not charged either, unless that happens again and again: after ``tries`` such deaths it
becomes a suspect too, and from then on its deaths alone count, begun or not, since a segment that kills its worker
before ``began`` would otherwise do so for ever. What had begun in a place that is lost (a node) counts as not begun.

What was delivered waits to be stored, which takes the disk's time and not the engine's. When ``unstored`` segments
wait for that, nothing more is dispatched, until one of them is stored: a daemon that dies speaks them again.

When the daemon itself dies, all suspects that were out alone are charged, for it can't be told which of them it was.
Each of those is *accused*: from then on it is spoken, and its file looked at, with no other suspect out at any worker,
so that the next death of the daemon charges the one to blame. A neighbour is thus charged once, at most, for a segment
that kills the daemon.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from daemon.core.events import (
    Command,
    Dispatch,
    DispatchPaused,
    DispatchResumed,
    Event,
    JobArrived,
    JobCancelled,
    JobEnded,
    Outcome,
    Recall,
    SegmentBegan,
    SegmentDelivered,
    SegmentEnded,
    SegmentFailed,
    SegmentReleased,
    SegmentSpec,
    SegmentSpoilt,
    SegmentStored,
    Suspected,
    Tick,
    Tried,
    WorkerBeat,
    WorkerGone,
    WorkerReady,
    WorkersPlanned,
)
from daemon.core.scheduler import (
    NOBODY,
    Backlog,
    Credits,
    ImpossibleTransition,
    Job,
    LazyHeap,
    Load,
    Segment,
    Ticket,
)
from daemon.core.supervision import ALIVE, PoolPolicy, Supervisor, Worker, WorkerState

STORY_EVENTS = 40
"""How many events an ImpossibleTransition tells."""

LATE_S = 5.0
"""A deadline that is looked at this much too late says that the daemon stood still, not that a worker did; what
the workers said meanwhile is given as long to be read."""

OUT_OF_MEMORY = "out_of_memory"
WORKER_DIED = "worker_died"
GIVEN_BACK = "given_back"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker for status: ``loads`` times its engine was loaded, ``restarts`` after crashes, ``recycles`` for its age,
    ``in_flight`` tickets held, ``spoken`` segments, ``error`` why it last died, None once it has spoken again."""

    worker: int
    gpu: int | None
    node: str
    generation: int
    state: WorkerState
    loads: int
    restarts: int
    recycles: int
    slots: int
    in_flight: int
    spoken: int
    error: str | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job's segments by where they are; ``in_flight`` includes ``begun``, ``suspects`` wait to be spoken alone,
    ``delivered`` wait to be checked. All but ``begun`` add up to ``total``."""

    total: int
    waiting: int
    suspects: int
    in_flight: int
    begun: int
    delivered: int
    spoken: int
    failed: int
    cancelled: int


class Core:
    """See the module's text. ``random`` is used for the jitter of back-offs only."""

    oddities: int
    """Answers that no worker should have given: to an unknown ticket, a second time, late. They are ignored."""
    last_oddity: str
    unstored: int
    """Segments that were delivered and are not stored yet."""

    def __init__(self, policy: PoolPolicy, random: random.Random) -> None:
        self.oddities = 0
        self.last_oddity = ""
        self.unstored = 0
        self._policy = policy
        self._now = 0.0
        self._commands: list[Command] = []
        self._story: deque[Event | str] = deque(maxlen=STORY_EVENTS)
        self._supervisor = Supervisor(policy, random, lambda command: self._commands.append(command))
        self._backlog = Backlog()
        self._credits = Credits()
        self._jobs: dict[str, Job] = {}
        self._arrivals = 0
        self._tickets = 0
        self._suspects: LazyHeap[Segment] = LazyHeap()
        self._fresh: LazyHeap[Segment] = LazyHeap()
        self._alone_in_flight = 0
        self._accused_in_flight = 0
        self._drained: int | None = None
        self._renewed: int | None = None
        self._paused = False
        self._idle_since: float | None = None

    # --- what the shell sees ----------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """What follows from the event. An event's ``at`` before the last one's is taken as the last one's.

        Raises:
            ValueError: a job of this name is present already, or a job or plan contradicts itself; nothing changed.
            ImpossibleTransition: a mistake of the core's own, told with the events that led to it.
        """
        self._story.append(_briefly(event) if isinstance(event, JobArrived) else event)
        self._commands = []
        deadline = self.next_deadline()
        if deadline is not None and event.at > deadline + LATE_S:
            self._supervisor.forgive(event.at - deadline + LATE_S)
        self._now = max(self._now, event.at)
        if self._idle_since is None and not self._jobs:
            self._idle_since = self._now
        try:
            self._take_in(event)
            self._expire()
            self._dispatch()
        except ImpossibleTransition as error:
            raise ImpossibleTransition(f"{error}; after {self.story()}") from None
        return self._commands

    def next_deadline(self) -> float | None:
        """When a Tick is due at the latest, on the clock of the events; None while nothing is waited for."""
        timers = self._supervisor.timers
        timer = timers.peek()
        rank = None if timer is None else timers.rank(timer)
        deadline = None if rank is None else rank[0]
        release = self._release_at()
        return release if deadline is None or (release is not None and release < deadline) else deadline

    def set_policy(self, policy: PoolPolicy) -> None:
        """From the next event on; deadlines that run keep their time."""
        self._policy = self._supervisor.policy = policy
        for number in self._credits.loads:
            self._place(number)

    @property
    def held(self) -> bool:
        """Nothing is dispatched now: it is paused, or as much as may be waits to be stored."""
        return self._paused or self.unstored >= self._policy.unstored

    def worker_views(self) -> list[WorkerView]:
        """The workers there are, retiring ones too, by number."""
        views = []
        for number in sorted(self._supervisor.workers):
            worker = self._supervisor.workers[number]
            load = self._credits.loads.get(number)
            views.append(
                WorkerView(
                    number,
                    worker.place.gpu,
                    worker.place.node,
                    worker.generation,
                    self._shown_state(worker, load),
                    worker.loads,
                    worker.restarts,
                    worker.recycles,
                    load.slots if load else 0,
                    load.in_flight if load else 0,
                    worker.spoken,
                    worker.error,
                )
            )
        return views

    def job_view(self, job: str) -> JobView:
        """Raises KeyError for a job that is unknown or has ended."""
        there = self._jobs[job]
        return JobView(
            there.total,
            there.waiting,
            len(there.alone),
            len(there.tickets),
            sum(ticket.begun for ticket in there.tickets.values()),
            len(there.delivered),
            there.outcomes["spoken"],
            there.outcomes["failed"],
            there.outcomes["cancelled"],
        )

    def assignment(self, job: str) -> list[tuple[int, list[str], int]]:
        """To whom the job was dealt when it arrived: worker, its speakers, how many segments they have. Empty when no
        worker was planned, or the job is unknown or has ended."""
        there = self._jobs.get(job)
        return [] if there is None else list(there.assignment)

    def story(self) -> str:
        """The last events, oldest first."""
        return "; ".join(map(str, self._story))

    # --- events -----------------------------------------------------------------------------------------

    def _take_in(self, event: Event) -> None:
        match event:
            case JobArrived():
                self._job_arrived(event)
            case JobCancelled():
                self._job_cancelled(event)
            case WorkersPlanned():
                self._workers_planned(event)
            case WorkerReady():
                self._worker_ready(event)
            case WorkerGone():
                self._worker_gone(event)
            case WorkerBeat():
                if (worker := self._worker(event)) is not None:
                    self._supervisor.beat(worker, self._now, event.resident_bytes)
                    self._recycle_old(worker)
            case SegmentBegan():
                self._segment_began(event)
            case SegmentDelivered():
                self._segment_delivered(event)
            case SegmentStored():
                if (segment := self._checked(event)) is not None:
                    self._end(segment, "spoken")
            case SegmentSpoilt():
                if (segment := self._checked(event)) is not None:
                    self._try_again(segment, event.code, event.message)
            case SegmentFailed():
                self._segment_failed(event)
            case SegmentReleased():
                self._segment_released(event)
            case DispatchPaused():
                self._paused = True
            case DispatchResumed():
                self._paused = False
            case Tick():
                pass

    def _job_arrived(self, event: JobArrived) -> None:
        if event.job in self._jobs:
            raise ValueError(f"job {event.job!r} is present already")
        if len({spec.position for spec in event.segments}) != len(event.segments):
            raise ValueError(f"job {event.job!r} has a position twice")
        if not all(0 < spec.cost < float("inf") for spec in event.segments):
            raise ValueError(f"job {event.job!r} has a segment whose cost is not a positive number")
        if not event.segments:
            self._commands.append(JobEnded(event.job))
            return
        job = Job(event.job, event.priority, self._arrivals)
        self._arrivals += 1
        self._jobs[job.name] = job
        self._idle_since = None
        self._supervisor.wake(self._now)
        segments = [self._segment(job, spec) for spec in event.segments]
        job.total = job.open = len(segments)
        job.costliest = max(segment.cost for segment in segments)
        for segment in segments:
            if segment.suspect and segment.tries < self._policy.tries:
                self._wait_alone(segment)
            elif not segment.suspect:
                segment.step("wait")
        self._backlog.add(job, segments, self._dealable())
        for segment in segments:
            if segment.state == "new":
                self._end_dead(segment, "before the daemon was started again")

    def _segment(self, job: Job, spec: SegmentSpec) -> Segment:
        accused = spec.suspect and spec.tries > 0
        return Segment(job, spec.position, spec.speaker, spec.cost, spec.attempts, spec.tries, spec.suspect, accused)

    def _job_cancelled(self, event: JobCancelled) -> None:
        job = self._jobs.get(event.job)
        if job is None or job.cancelled:
            return  # it ended while the wish was on its way, or was wished twice
        job.cancelled = True
        for ticket in job.tickets.values():
            # Also what was recalled already: it may have begun before the worker heard of that.
            worker = self._supervisor.workers[ticket.load.worker]
            if worker.state == "ready":
                self._commands.append(Recall(worker.number, worker.generation, ticket.number, begun=True))
            ticket.load.recall(ticket, None)
            self._place(ticket.load.worker)
        waiting = self._backlog.withdraw(job) + list(job.alone.values())
        for segment in sorted(waiting, key=lambda segment: segment.position):
            self._end(segment, "cancelled")

    def _workers_planned(self, event: WorkersPlanned) -> None:
        changed = self._supervisor.plan(event.workers, restart=event.restart, at=self._now)
        dealable = self._dealable()
        for number in changed:
            worker = self._supervisor.workers.get(number)
            if worker is None or worker.wanted is None:
                self._backlog.redistribute(number, dealable)
            self._place(number)
        if dealable:
            self._backlog.redistribute(NOBODY, dealable)

    def _worker_ready(self, event: WorkerReady) -> None:
        worker = self._worker(event)
        if worker is None:
            return
        if worker.state != "starting":
            if worker.state == "ready":
                self._odd(f"worker {worker.number} says twice that it is ready")
            return  # else it is being stopped or killed already
        self._supervisor.ready(worker, self._now)
        self._credits.loads[worker.number] = Load(worker.number, max(1, event.slots))
        self._place(worker.number)

    def _worker_gone(self, event: WorkerGone) -> None:
        worker = self._worker(event)
        if worker is None:
            return
        load = self._credits.loads.get(worker.number)
        held = list(load.tickets.values()) if load else []
        blamed = any(ticket.alone and ticket.begun and ticket.segment.tries for ticket in held)
        for ticket in held:
            self._take_back(ticket)
        if load is not None:
            self._credits.drop(load)
        for ticket in held:
            if ticket.begun and not event.lost:
                self._survive_begun(ticket, event.reason)
        for ticket in reversed(held):
            if not ticket.begun or event.lost:
                self._survive_unbegun(ticket, event.reason)
        self._supervisor.gone(worker, event.reason, self._now, lost=event.lost, blamed=blamed)
        if worker.state in ("broken", "retired"):
            others = [number for number in self._dealable() if number != worker.number]
            if others or worker.state == "retired":
                self._backlog.redistribute(worker.number, others)

    def _survive_begun(self, ticket: Ticket, reason: str) -> None:
        segment = ticket.segment
        if segment.job.cancelled:
            self._end(segment, "cancelled")
        elif ticket.alone:
            self._charge_death(segment, reason)
        else:
            self._suspect(segment)

    def _survive_unbegun(self, ticket: Ticket, reason: str) -> None:
        segment = ticket.segment
        segment.unbegun_deaths += 1
        if segment.job.cancelled:
            self._end(segment, "cancelled")
        elif ticket.alone and segment.unbegun_deaths > self._policy.tries:
            self._charge_death(segment, reason)
        elif ticket.alone:
            self._backlog.charge(segment.job, -segment.cost)
            self._wait_alone(segment)
        elif segment.unbegun_deaths >= self._policy.tries:
            self._suspect(segment)
        else:
            segment.step("wait")
            self._backlog.put_front(segment, ticket.load.worker, refund=True)

    def _charge_death(self, segment: Segment, reason: str) -> None:
        segment.tries += 1
        if segment.tries >= self._policy.tries:
            self._end_dead(segment, reason)
        else:
            self._wait_alone(segment)

    def _suspect(self, segment: Segment) -> None:
        segment.suspect = True
        self._commands.append(Suspected(segment.job.name, segment.position))
        self._wait_alone(segment)

    def _segment_began(self, event: SegmentBegan) -> None:
        ticket = self._ticket(event)
        if ticket is None:
            return
        if ticket.begun:
            self._odd(f"worker {event.worker} began ticket {event.ticket} twice")
            return
        ticket.segment.step("begin")
        ticket.load.begin(ticket)
        if self._supervisor.workers[event.worker].state == "ready":
            self._time_segment(ticket, self._policy.segment_timeout_s)
        self._place(event.worker)

    def _segment_delivered(self, event: SegmentDelivered) -> None:
        ticket = self._ticket(event)
        if ticket is None:
            return
        segment = ticket.segment
        self._take_back(ticket)
        segment.step("deliver")
        segment.job.delivered[segment.position] = segment
        self.unstored += 1
        self._accused_in_flight += segment.accused  # until its file has been looked at, too
        self._supervisor.finished(self._supervisor.workers[event.worker])
        self._place(event.worker)

    def _segment_failed(self, event: SegmentFailed) -> None:
        ticket = self._ticket(event)
        if ticket is None:
            return
        segment, load = ticket.segment, ticket.load
        self._take_back(ticket)
        if event.slots is not None:
            load.slots = max(1, event.slots)
        if event.code == OUT_OF_MEMORY:
            self._out_of_memory(ticket, event)
        elif event.retryable:
            self._try_again(segment, event.code, event.message)
        elif segment.job.cancelled:
            self._end(segment, "cancelled")
        else:
            self._end(segment, "failed", event.code, event.message)
        self._place(event.worker)

    def _out_of_memory(self, ticket: Ticket, event: SegmentFailed) -> None:
        """Again with the slots that are left; when there are no fewer to try with, alone on a fresh worker."""
        segment = ticket.segment
        if segment.job.cancelled:
            self._end(segment, "cancelled")
        elif ticket.alone and segment.fresh:
            # A fresh worker has all its slots again, but it was alone: halving them would free nothing for it.
            self._end(segment, "failed", event.code, event.message)
        elif event.slots is not None and event.slots < ticket.slots:
            if ticket.alone:
                self._wait_alone(segment)
            else:
                segment.step("wait")
                self._backlog.put_front(segment, event.worker, refund=True)
        else:
            segment.fresh = True
            self._wait_alone(segment)
            self._renew(event.worker)

    def _segment_released(self, event: SegmentReleased) -> None:
        ticket = self._ticket(event)
        if ticket is None:
            return
        segment = ticket.segment
        self._take_back(ticket)
        if segment.job.cancelled:
            self._end(segment, "cancelled")
        elif event.blameless and (segment.suspect or segment.fresh):
            self._wait_alone(segment)
        elif ticket.recalled or event.blameless:
            segment.step("wait")
            thief = ticket.thief.worker if ticket.thief is not None else event.worker
            home = thief if thief in self._credits.loads else event.worker
            self._backlog.put_front(segment, home, refund=True)
        else:
            self._odd(f"worker {event.worker} gave ticket {event.ticket} back unasked")
            self._try_again(segment, GIVEN_BACK, "the worker gave the segment back unasked")
        self._place(event.worker)

    # --- segments ---------------------------------------------------------------------------------------

    def _end(self, segment: Segment, outcome: Outcome, code: str | None = None, message: str | None = None) -> None:
        job = segment.job
        segment.step("end")
        job.alone.pop(segment.position, None)
        self._suspects.discard(segment)
        self._fresh.discard(segment)
        job.outcomes[outcome] += 1
        job.open -= 1
        self._commands.append(
            SegmentEnded(job.name, segment.position, outcome, segment.attempts, segment.worker, code, message)
        )
        if not job.open:
            del self._jobs[job.name]
            self._backlog.forget(job)
            self._commands.append(JobEnded(job.name))
            if not self._jobs:
                self._idle_since = self._now

    def _end_dead(self, segment: Segment, reason: str) -> None:
        died = f"its worker died while it was spoken alone, {segment.tries} times; the last one: {reason}"
        self._end(segment, "failed", WORKER_DIED, died)

    def _try_again(self, segment: Segment, code: str, message: str) -> None:
        """One try is used up; elsewhere, if there is another worker."""
        segment.tries += 1
        if segment.job.cancelled:
            self._end(segment, "cancelled")
            return
        if segment.tries >= self._policy.tries:
            self._end(segment, "failed", code, message)
            return
        self._commands.append(Tried(segment.job.name, segment.position, segment.tries))
        if segment.suspect or segment.fresh:
            self._wait_alone(segment)
        else:
            assert segment.worker is not None
            other = self._credits.quietest.peek_other(segment.worker)
            home = segment.worker if other is None else other
            if home not in self._supervisor.workers:
                home = NOBODY
            segment.step("wait")
            self._backlog.put_front(segment, home, refund=False)

    def _wait_alone(self, segment: Segment) -> None:
        segment.step("wait_alone")
        segment.job.alone[segment.position] = segment
        queue = self._fresh if segment.fresh and not segment.suspect else self._suspects
        queue.set(segment, (-segment.job.priority, segment.accused))

    def _take_back(self, ticket: Ticket) -> None:
        """The ticket is answered, or its worker is gone."""
        load, job = ticket.load, ticket.segment.job
        load.remove(ticket)
        del job.tickets[ticket.number]
        self._alone_in_flight -= ticket.alone
        self._accused_in_flight -= ticket.alone and ticket.segment.accused
        self._supervisor.timers.discard(("segment", load.worker, ticket.number))
        if ticket.thief is not None:
            self._place(ticket.thief.worker)

    # --- deadlines --------------------------------------------------------------------------------------

    def _expire(self) -> None:
        policy, supervisor = self._policy, self._supervisor
        for kind, number, ticket in supervisor.due(self._now):
            worker = supervisor.workers[number]
            if kind in ("restart", "reopen"):
                supervisor.restart(worker, self._now)
                continue
            if kind == "load":
                reason = f"not ready {policy.load_timeout_s:g} s after its start"
            elif kind == "beat":
                reason = f"no sign of life for {policy.beat_timeout_s:g} s"
            elif kind == "begin":
                reason = f"began none of its segments for {policy.segment_timeout_s:g} s"
            else:
                segment = self._credits.loads[number].tickets[ticket].segment
                reason = f"{segment!r} was not finished in time"
            self._kill(worker, reason)
        release = self._release_at()
        if release is not None and self._now >= release:
            supervisor.sleep()
            for number in list(self._credits.loads):
                self._place(number)

    def _release_at(self) -> float | None:
        """When the idle pool is to be released; None when there is something to do, or it sleeps already."""
        if self._idle_since is None or self._policy.idle_release_s <= 0 or self._supervisor.asleep:
            return None
        return self._idle_since + self._policy.idle_release_s

    def _kill(self, worker: Worker, reason: str) -> None:
        if worker.state not in ("starting", "ready"):
            return
        self._supervisor.kill(worker, reason)
        if (load := self._credits.loads.get(worker.number)) is not None:
            for number in load.tickets:
                self._supervisor.timers.discard(("segment", worker.number, number))
        self._place(worker.number)

    def _time_segment(self, ticket: Ticket, seconds: float) -> None:
        self._supervisor.timers.set(("segment", ticket.load.worker, ticket.number), (self._now + seconds,))

    # --- workers ----------------------------------------------------------------------------------------

    def _place(self, number: int) -> None:
        """Bring everything that depends on the worker's load and life up to date; let it leave when it must."""
        worker = self._supervisor.workers.get(number)
        if worker is None:
            return
        load = self._credits.loads.get(number)
        if worker.must_leave and worker.state in ("starting", "ready") and not (load and load.tickets):
            self._supervisor.stop(worker)
        if load is None:
            return
        ready = worker.state == "ready"
        self._credits.place(
            load,
            willing=worker.open and not load.alone and number != self._drained,
            reachable=ready,
            lookahead=self._policy.lookahead,
        )
        begin = ("begin", number, 0)
        if not ready or load.begun or not load.tickets:
            self._supervisor.timers.discard(begin)
        elif begin not in self._supervisor.timers:
            self._supervisor.timers.set(begin, (self._now + self._policy.segment_timeout_s,))

    def _renew(self, number: int) -> None:
        """Replace the worker when what it has begun is finished; the rest it gives back."""
        worker, load = self._supervisor.workers[number], self._credits.loads[number]
        if worker.state != "ready":
            return
        self._renewed = number
        worker.replace = True
        self._recall_unbegun(load)

    def _recycle_old(self, worker: Worker) -> None:
        if reason := self._supervisor.old_age(worker, self._now):
            self._supervisor.recycle(worker, reason)
            self._recall_unbegun(self._credits.loads[worker.number])

    def _recall_unbegun(self, load: Load) -> None:
        """The worker is to leave when what it has begun is finished; others speak the rest."""
        number = load.worker
        worker = self._supervisor.workers[number]
        for ticket in load.tickets.values():
            if not ticket.begun and not ticket.recalled:
                load.recall(ticket, None)
                self._commands.append(Recall(number, worker.generation, ticket.number, begun=False))
        self._place(number)

    def _dealable(self) -> list[int]:
        """The workers that a job is dealt to: those planned, without those whose breaker is open if any is left."""
        wanted = sorted(number for number, worker in self._supervisor.workers.items() if worker.wanted is not None)
        sound = [number for number in wanted if self._supervisor.workers[number].state != "broken"]
        return sound or wanted

    def _shown_state(self, worker: Worker, load: Load | None) -> WorkerState:
        match worker.state:
            case "starting" | "broken" | "restarting" as state:
                return state
            case "ready":
                return "busy" if load is not None and load.tickets else "ready"
            case "stopping" | "killing" if worker.wanted is not None and not self._supervisor.asleep:
                return "restarting"
            case _:
                return "released"

    # --- dispatch ---------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Keep everyone at work."""
        if self.held:
            return
        held, backlog = self._credits, self._backlog
        while True:
            if self._suspects or self._fresh or self._drained is not None:
                self._dispatch_alone()
            top = backlog.top_priority
            while top is not None and backlog.top_priority == top and (number := held.free.peek()) is not None:
                lane = backlog.choose(number)
                if lane.worker != number and held.as_free(lane.worker, number):
                    number = lane.worker  # its owner is as idle as the thief
                self._send(backlog.take(lane, number), held.loads[number], alone=False)
            if backlog.top_priority == top:
                break  # else a lower priority's turn has come, with its suspects first
        while (idle := held.idle()) is not None and (crowded := held.crowded.peek()) is not None:
            load = held.loads[crowded]
            ticket = load.last_queued()
            load.recall(ticket, idle)
            generation = self._supervisor.workers[crowded].generation
            self._commands.append(Recall(crowded, generation, ticket.number, begun=False))
            self._place(crowded)
            self._place(idle.worker)

    def _dispatch_alone(self) -> None:
        """Those that need a fresh worker to an unused one, suspects to any that holds nothing; where there is none,
        one is renewed, or drained."""
        while (segment := self._fresh.peek()) is not None and self._credits.unused and not self._accused_in_flight:
            self._fresh.discard(segment)
            self._send(segment, self._credits.loads[next(iter(self._credits.unused))], alone=True)
        if self._fresh and not self._renewing() and (quietest := self._credits.quietest.peek()) is not None:
            self._renew(quietest)
        if self._drained is not None and not self._may_drain(self._drained):
            self._drained = None
        while (segment := self._eligible_suspect()) is not None and (load := self._empty()) is not None:
            self._suspects.discard(segment)
            self._drained = None if self._drained == load.worker else self._drained
            self._send(segment, load, alone=True)
        drained, wanted = self._drained, None
        if self._eligible_suspect() is not None and not self._alone_in_flight:
            wanted = self._credits.quietest.peek() if drained is None else drained
        if wanted != drained:
            self._drained = wanted
            for number in (drained, wanted):
                if number is not None:
                    self._place(number)

    def _eligible_suspect(self) -> Segment | None:
        """The first suspect, unless work of a higher priority waits, or any other that could show first whether a
        worker is sound, or it and one that is out would be suspected of the same death of the daemon."""
        segment = self._suspects.peek()
        if segment is None or self._accused_in_flight or (segment.accused and self._alone_in_flight):
            return None
        top = self._backlog.top_priority
        if top is None or segment.job.priority > top:
            return segment
        return segment if segment.job.priority == top and self._supervisor.any_sound else None

    def _empty(self) -> Load | None:
        """A worker that holds nothing and may be given a suspect."""
        for number in (self._drained, self._credits.quietest.peek()):
            load = None if number is None else self._credits.loads[number]
            if load is not None and not load.tickets:
                return load
        return None

    def _may_drain(self, number: int) -> bool:
        worker = self._supervisor.workers.get(number)
        return worker is not None and worker.open

    def _renewing(self) -> bool:
        """A worker is on its way to be the fresh one that a segment waits for."""
        worker = None if self._renewed is None else self._supervisor.workers.get(self._renewed)
        return worker is not None and worker.wanted is not None and not worker.open and worker.state != "broken"

    def _send(self, segment: Segment, load: Load, *, alone: bool) -> None:
        job = segment.job
        if load.in_flight >= load.slots + self._policy.lookahead or load.alone or (alone and load.tickets):
            raise ImpossibleTransition(f"worker {load.worker} has no credit for {segment!r}")
        segment.step("dispatch")
        segment.worker = load.worker
        segment.attempts += 1
        self._tickets += 1
        ticket = Ticket(self._tickets, segment, load, alone, load.slots)
        load.add(ticket)
        job.tickets[ticket.number] = ticket
        if alone:
            self._alone_in_flight += 1
            self._accused_in_flight += segment.accused
            del job.alone[segment.position]
            self._backlog.charge(job, segment.cost)
        # A worker takes what it holds in turn, so each of the lookahead waits at most for one segment's time.
        self._time_segment(ticket, (self._policy.lookahead + 1) * self._policy.segment_timeout_s)
        self._place(load.worker)
        self._commands.append(
            Dispatch(
                load.worker,
                self._supervisor.workers[load.worker].generation,
                ticket.number,
                job.name,
                segment.position,
                segment.attempts,
                alone,
                segment.tries + alone,
            )
        )

    # --- the books --------------------------------------------------------------------------------------

    def check(self) -> None:
        """Go through all the books; costs as much as they hold, so it is for tests and simulations.

        Raises:
            ImpossibleTransition: an invariant does not hold.
        """
        self._check_segments()
        self._check_loads()
        self._check_no_one_idles()

    def _check_segments(self) -> None:
        """Every segment is in exactly one place, and every sum is the sum of its parts."""
        places: dict[Segment, str] = {}

        def found(segment: Segment, *states: str) -> None:
            self._require(segment not in places, f"{segment!r} is in two places")
            self._require(segment.state in states, f"{segment!r} is {segment.state}, but where {states} are")
            places[segment] = segment.state

        waiting: dict[Job, int] = {}
        for lane in self._backlog.lanes():
            held = [segment for group in lane.groups.values() for segment in group.segments]
            self._require(bool(held) and all(group.segments for group in lane.groups.values()), "an empty lane")
            cost = sum(segment.cost for segment in held)
            self._require(abs(lane.cost - cost) < 1e-6 * max(1.0, cost), f"a lane of {cost} says {lane.cost}")
            rank = lane.job.fullest.rank(lane.worker)
            self._require(rank is not None and rank[0] == -lane.cost, "a lane's cost is not its rank")
            self._require(lane.worker == NOBODY or lane.worker in self._supervisor.workers, "a lane of a lost worker")
            waiting[lane.job] = waiting.get(lane.job, 0) + len(held)
            for segment in held:
                found(segment, "waiting")
        for queue in (self._suspects, self._fresh):
            for segment in queue:
                found(segment, "suspect")
                self._require(segment.job.alone.get(segment.position) is segment, f"{segment!r} is not its job's")
        for load in self._credits.loads.values():
            for ticket in load.tickets.values():
                found(ticket.segment, "begun" if ticket.begun else "in_flight")
                self._require(ticket.segment.job.tickets.get(ticket.number) is ticket, "a ticket is not its job's")
        for job in self._jobs.values():
            for segment in job.delivered.values():
                found(segment, "delivered")
        unstored = sum(len(job.delivered) for job in self._jobs.values())
        self._require(unstored == self.unstored, "what waits to be stored is miscounted")
        parts: dict[Job, int] = {}
        for segment in places:
            parts[segment.job] = parts.get(segment.job, 0) + 1
        for job in self._jobs.values():
            self._require(parts.get(job, 0) == job.open, f"{job!r} has {parts.get(job, 0)} of {job.open} segments")
            self._require(job.waiting == waiting.get(job, 0), f"{job!r} does not know what waits")
            self._require(job.open + sum(job.outcomes.values()) == job.total, f"{job!r} lost a segment")
        self._require(parts.keys() <= set(self._jobs.values()), "a segment of a job that has ended")
        self._require(sum(waiting.values()) == self._backlog.waiting, "the backlog miscounts")

    def _check_loads(self) -> None:
        """What is held is held by a process; suspects are alone; counts and orders are true."""
        expected: dict[Load, int] = {}
        alone = 0
        for number, load in self._credits.loads.items():
            worker = self._supervisor.workers[number]
            tickets = load.tickets.values()
            self._require(worker.state in ALIVE, f"worker {number} holds work and is {worker.state}")
            self._require(worker.state != "stopping" or not tickets, f"worker {number} was stopped with work")
            self._require(load.alone == any(t.alone for t in tickets), f"worker {number} is wrong about alone")
            self._require(not load.alone or len(tickets) == 1, f"worker {number} holds a suspect and more")
            self._require(load.begun == sum(t.begun for t in tickets), f"worker {number} miscounts begun")
            self._require(load.recalled == sum(t.recalled for t in tickets), f"worker {number} miscounts recalled")
            queued = sum(not t.begun and not t.recalled for t in tickets)
            self._require(load.queued == queued, f"worker {number} miscounts queued")
            credit = load.in_flight + load.expected < load.slots + self._policy.lookahead
            given = worker.open and not load.alone and number != self._drained
            self._require((number in self._credits.free) == (given and credit), f"worker {number}: wrong in free")
            self._require((number in self._credits.quietest) == given, f"worker {number}: wrong in quietest")
            alone += load.alone
            for ticket in tickets:
                if ticket.thief is not None:
                    expected[ticket.thief] = expected.get(ticket.thief, 0) + 1
        for load in self._credits.loads.values():
            self._require(load.expected == expected.get(load, 0), f"worker {load.worker} expects wrongly")
        self._require(alone == self._alone_in_flight, "the suspects in flight are miscounted")
        accused = sum(segment.accused for job in self._jobs.values() for segment in job.delivered.values())
        alone_with_it = not self._accused_in_flight or alone + accused == 1
        self._require(alone_with_it, "another suspect is out beside an accused one")
        for number, worker in self._supervisor.workers.items():
            known = number in self._credits.loads
            self._require(known or worker.state != "ready", f"worker {number} is ready without a load")

    def _check_no_one_idles(self) -> None:
        """Work that may go out has gone out."""
        if self.held:
            return
        self._require(not self._backlog.waiting or not self._credits.free, "work waits beside a free worker")
        self._require(self._credits.idle() is None or not self._credits.crowded, "a worker idles beside a crowded one")
        fresh_waits = self._fresh and self._credits.unused and not self._accused_in_flight
        self._require(not fresh_waits, "work waits beside a fresh worker")
        if self._eligible_suspect() is not None:
            self._require(self._empty() is None, "a suspect waits beside an empty worker")
            served = self._alone_in_flight or self._drained is not None or not self._credits.quietest
            self._require(bool(served), "a suspect waits and no worker is drained")

    @staticmethod
    def _require(holds: bool, what: str) -> None:
        if not holds:
            raise ImpossibleTransition(what)

    # --- oddities ---------------------------------------------------------------------------------------

    def _worker(self, event: WorkerReady | WorkerGone | WorkerBeat) -> Worker | None:
        """The worker, if the event is of its present process."""
        worker = self._supervisor.workers.get(event.worker)
        if worker is None or worker.generation != event.generation or worker.state not in ALIVE:
            self._odd(f"worker {event.worker}, generation {event.generation}, is no more: {type(event).__name__}")
            return None
        return worker

    def _ticket(self, event: SegmentBegan | SegmentDelivered | SegmentFailed | SegmentReleased) -> Ticket | None:
        """The ticket, if the worker holds it."""
        worker = self._supervisor.workers.get(event.worker)
        load = self._credits.loads.get(event.worker)
        ticket = None if load is None else load.tickets.get(event.ticket)
        if ticket is None or worker is None or worker.generation != event.generation:
            self._odd(f"worker {event.worker} answers for ticket {event.ticket}, which it does not hold")
            return None
        return ticket

    def _checked(self, event: SegmentStored | SegmentSpoilt) -> Segment | None:
        """The delivered segment whose file was checked."""
        job = self._jobs.get(event.job)
        segment = None if job is None else job.delivered.pop(event.position, None)
        if segment is None:
            self._odd(f"segment {event.position} of {event.job!r} was checked, but not delivered")
        else:
            self.unstored -= 1
            self._accused_in_flight -= segment.accused
        return segment

    def _odd(self, what: str) -> None:
        self.oddities += 1
        self.last_oddity = what


def _briefly(event: JobArrived) -> str:
    """The event for the story, which must not keep ten thousand segments alive."""
    return f"JobArrived(at={event.at}, job={event.job!r}, priority={event.priority}, {len(event.segments)} segments)"

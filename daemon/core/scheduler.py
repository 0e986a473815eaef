"""Which segment goes to which worker: lanes, stealing, fairness, priority, credits.

Three things live here, each unaware of processes and of time:

``Backlog``
    the work that waits. A job's speakers are dealt round-robin over the workers; what one worker has of one job is
    a *lane*, a queue of speaker groups, spoken group by group so that a voice's prompt is used again. A worker
    without a lane in the job that it should serve steals from that job's fullest lane.
``Credits``
    the work that workers hold. A worker may hold ``slots + lookahead`` tickets; the backlog is asked for one
    segment at a time for the worker with the most free slots.
``LazyHeap``
    what makes every choice O(log n): a heap whose outdated entries stay until they come to the top.

Fairness is by virtual time. Each job carries the cost dispatched for it so far; a new job starts at the least of
the jobs that have work waiting, so it owes nothing for what came before it. Serving always the job that is furthest
behind would tear speakers from their workers, so a worker keeps to its own lanes while their job is at most
``LAG_SEGMENTS`` segments (of the larger of the two jobs' costliest) ahead of the furthest behind. Two jobs of equal
priority with work waiting are therefore never further apart than ``LAG_SEGMENTS + 1`` such segments, give-backs
and suspects aside. A higher priority goes strictly first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LAG_SEGMENTS = 4
"""How many segments a job may be ahead of the one furthest behind and still be served by its own workers."""

OWN_LANES_LOOKED_AT = 4
"""How many outdated entries of a worker's own lanes are brought up to date for one choice; keeps it O(log n)."""

NOBODY = -1
"""The worker whose lanes hold what could not be dealt, because no worker is planned."""

Rank = tuple[float, ...]
Key = TypeVar("Key", bound=Hashable)


class ImpossibleTransition(Exception):
    """The core's own books contradict each other. The message ends with the events that led there."""


def advance(table: Mapping[tuple[str, str], str], what: object, state: str, verb: str) -> str:
    """The state after ``verb``.

    Raises:
        ImpossibleTransition: the table has no such step.
    """
    try:
        return table[state, verb]
    except KeyError:
        raise ImpossibleTransition(f"{what} is {state}: it can't {verb}") from None


class LazyHeap(Generic[Key]):
    """Keys by rank, least first; equal ranks in the order in which they were set. ``set`` and ``discard`` leave the
    old entry in the heap; it is dropped when it comes to the top, or when outdated entries outnumber the others."""

    def __init__(self) -> None:
        self._entries: dict[Key, tuple[Rank, int, Key]] = {}
        self._heap: list[tuple[Rank, int, Key]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def set(self, key: Key, rank: Rank) -> None:
        """Put the key in, or move it."""
        entry = self._entries.get(key)
        if entry is not None and entry[0] == rank:
            return
        entry = (rank, next(self._order), key)
        self._entries[key] = entry
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def discard(self, key: Key) -> None:
        self._entries.pop(key, None)

    def rank(self, key: Key) -> Rank | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def peek(self) -> Key | None:
        """The key of least rank; None when empty."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            if entries.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(heap)
        return None

    def peek_other(self, key: Key) -> Key | None:
        """The key of least rank that is not ``key``."""
        rank = self.rank(key)
        if rank is None:
            return self.peek()
        self.discard(key)
        other = self.peek()
        self.set(key, rank)
        return other


# --- work ---------------------------------------------------------------------------------------------------

SEGMENT_STEPS: Mapping[tuple[str, str], str] = {
    ("new", "wait"): "waiting",
    ("new", "wait_alone"): "suspect",
    ("new", "end"): "ended",
    ("waiting", "dispatch"): "in_flight",
    ("waiting", "end"): "ended",
    ("suspect", "dispatch"): "in_flight",
    ("suspect", "end"): "ended",
    ("in_flight", "begin"): "begun",
    ("in_flight", "deliver"): "delivered",
    ("in_flight", "wait"): "waiting",
    ("in_flight", "wait_alone"): "suspect",
    ("in_flight", "end"): "ended",
    ("begun", "deliver"): "delivered",
    ("begun", "wait"): "waiting",
    ("begun", "wait_alone"): "suspect",
    ("begun", "end"): "ended",
    ("delivered", "wait"): "waiting",
    ("delivered", "wait_alone"): "suspect",
    ("delivered", "end"): "ended",
}
"""A segment's life. ``waiting`` is in a lane; ``suspect`` waits to be spoken alone."""


@dataclass(eq=False, slots=True)
class Segment:
    """A segment that has not ended. ``unbegun_deaths``: how many workers died holding it before they began it.
    ``accused``: it was out alone when an earlier life of the daemon died, perhaps beside others.
    ``fresh``: a worker of one slot ran out of memory over it, so it is spoken alone by a newly started worker.
    ``worker``: the one that holds it or held it last."""

    job: Job
    position: int
    speaker: str
    cost: float
    attempts: int = 0
    tries: int = 0
    suspect: bool = False
    accused: bool = False
    fresh: bool = False
    unbegun_deaths: int = 0
    worker: int | None = None
    state: str = "new"

    def step(self, verb: str) -> None:
        self.state = advance(SEGMENT_STEPS, self, self.state, verb)

    def __repr__(self) -> str:
        return f"segment {self.position} of {self.job.name!r}"


@dataclass(eq=False, slots=True)
class Group:
    """One speaker's waiting segments in a lane. ``started``: one of them has been dispatched from this lane."""

    speaker: str
    segments: deque[Segment] = field(default_factory=deque)
    cost: float = 0.0
    started: bool = False

    def append(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.cost += segment.cost


@dataclass(eq=False, slots=True)
class Lane:
    """What waits for one worker of one job. Started groups come before the others."""

    worker: int
    job: Job
    groups: OrderedDict[str, Group] = field(default_factory=OrderedDict)
    cost: float = 0.0

    def add(self, group: Group) -> None:
        """Put the group last, or join it to what waits of its speaker."""
        self.cost += group.cost
        present = self.groups.setdefault(group.speaker, group)
        if present is not group:
            present.segments.extend(group.segments)
            present.cost += group.cost

    def add_front(self, segment: Segment) -> None:
        group = self.groups.setdefault(segment.speaker, Group(segment.speaker))
        group.segments.appendleft(segment)
        group.cost += segment.cost
        group.started = True
        self.groups.move_to_end(segment.speaker, last=False)
        self.cost += segment.cost

    def pop(self) -> Segment:
        speaker, group = next(iter(self.groups.items()))
        segment = group.segments.popleft()
        group.cost -= segment.cost
        group.started = True
        self.cost -= segment.cost
        if not group.segments:
            del self.groups[speaker]
        return segment

    def split(self) -> Group:
        """What a thief takes: the last speaker whole if it is not started, else the tail half of its queue."""
        speaker, group = next(reversed(self.groups.items()))
        if not group.started or len(group.segments) == 1:
            del self.groups[speaker]
            group.started = False
            self.cost -= group.cost
            return group
        taken = [group.segments.pop() for _ in range((len(group.segments) + 1) // 2)]
        stolen = Group(speaker)
        for segment in reversed(taken):
            stolen.append(segment)
        group.cost -= stolen.cost
        self.cost -= stolen.cost
        return stolen


@dataclass(eq=False, slots=True)
class Job:
    """A job that has not ended. ``order``: the arrival's number. ``open``: segments that have not ended.
    ``assignment``: as dealt at its arrival, (worker, speakers, segments) each."""

    name: str
    priority: int
    order: int
    open: int = 0
    total: int = 0
    waiting: int = 0
    virtual_time: float = 0.0
    costliest: float = 0.0
    cancelled: bool = False
    lanes: dict[int, Lane] = field(default_factory=dict)
    fullest: LazyHeap[int] = field(default_factory=LazyHeap)
    alone: dict[int, Segment] = field(default_factory=dict)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    delivered: dict[int, Segment] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=lambda: {"spoken": 0, "failed": 0, "cancelled": 0})
    assignment: list[tuple[int, list[str], int]] = field(default_factory=list)

    @property
    def rank(self) -> Rank:
        return (self.virtual_time, self.order)

    def __repr__(self) -> str:
        return f"job {self.name!r}"


@dataclass(eq=False, slots=True)
class PriorityClass:
    """Jobs of one priority. ``behind``: those with work in lanes, by virtual time. ``floor``: the virtual time of
    the last one served, where a job starts when no other has work waiting."""

    jobs: int = 0
    behind: LazyHeap[Job] = field(default_factory=LazyHeap)
    floor: float = 0.0


class Backlog:
    """The waiting work of all jobs, in lanes. Every choice is O(log n) amortised; ``add``, ``withdraw`` and
    ``redistribute`` cost as much as they move."""

    def __init__(self) -> None:
        self._classes: dict[int, PriorityClass] = {}
        self._top: LazyHeap[int] = LazyHeap()
        self._own: dict[int, dict[int, LazyHeap[Job]]] = {}
        self._turn = 0
        self.waiting = 0

    @property
    def top_priority(self) -> int | None:
        """The highest priority with work in lanes."""
        return self._top.peek()

    def add(self, job: Job, segments: Iterable[Segment], workers: Sequence[int]) -> None:
        """Deal the job's speakers round-robin over ``workers``, in order of first appearance. Suspects count in the
        assignment but get no place in a lane."""
        workers = workers or (NOBODY,)
        groups: dict[str, Group] = {}
        texts: dict[str, int] = {}
        count = 0
        for segment in segments:
            group = groups.setdefault(segment.speaker, Group(segment.speaker))
            texts[segment.speaker] = texts.get(segment.speaker, 0) + 1
            if segment.state == "waiting":
                group.append(segment)
                count += 1
        dealt: dict[int, list[str]] = {}
        lanes = []
        self._classes.setdefault(job.priority, PriorityClass()).jobs += 1
        for turn, (speaker, group) in enumerate(groups.items()):
            worker = workers[turn % len(workers)]
            dealt.setdefault(worker, []).append(speaker)
            if group.segments:
                lane = self._lane(job, worker)
                lane.add(group)
                lanes.append(lane)
        job.assignment = [
            (worker, speakers, sum(texts[speaker] for speaker in speakers))
            for worker, speakers in dealt.items()
            if worker != NOBODY
        ]
        self._count(job, count)
        for lane in lanes:
            self._weigh(lane)

    def forget(self, job: Job) -> None:
        """The job has ended."""
        ranked = self._classes[job.priority]
        ranked.jobs -= 1
        if not ranked.jobs:
            del self._classes[job.priority]

    def choose(self, worker: int) -> Lane:
        """Where the worker's next segment is to come from: a lane of its own, or the one to steal from. Something
        must wait."""
        priority = self._top.peek()
        assert priority is not None
        ranked = self._classes[priority]
        behind = ranked.behind.peek()
        assert behind is not None
        ranked.floor = max(ranked.floor, behind.virtual_time)
        lane = self._own_lane(worker, priority, behind) or behind.lanes.get(worker)
        if lane is None:
            fullest = behind.fullest.peek()
            assert fullest is not None
            lane = behind.lanes[fullest]
        return lane

    def take(self, lane: Lane, worker: int) -> Segment:
        """The next segment of the chosen lane for the worker, after it has stolen its part if the lane is not its."""
        job = lane.job
        if lane.worker != worker:
            group = lane.split()
            self._weigh(lane)
            lane = self._lane(job, worker)
            lane.add(group)
        segment = lane.pop()
        job.virtual_time += segment.cost
        self._count(job, -1)
        self._weigh(lane)
        return segment

    def put_front(self, segment: Segment, worker: int, *, refund: bool) -> None:
        """The segment waits again, before all others of its job in the worker's lane. ``refund``: it was dispatched
        for nothing, so its job is not charged."""
        job = segment.job
        if refund:
            job.virtual_time -= segment.cost
        self._count(job, 1)
        lane = self._lane(job, worker)
        lane.add_front(segment)
        self._weigh(lane)

    def charge(self, job: Job, cost: float) -> None:
        """``cost`` was dispatched for the job outside its lanes (a suspect), or given back (negative)."""
        job.virtual_time += cost
        behind = self._classes[job.priority].behind
        if job in behind:
            behind.set(job, job.rank)

    def withdraw(self, job: Job) -> list[Segment]:
        """Everything of the job that waits in lanes, in the order of the job; it waits no more."""
        segments: list[Segment] = []
        for lane in list(job.lanes.values()):
            for group in lane.groups.values():
                segments += group.segments
            lane.groups.clear()
            self._weigh(lane)
        self._count(job, -len(segments))
        return sorted(segments, key=lambda segment: segment.position)

    def redistribute(self, worker: int, others: Sequence[int]) -> None:
        """Deal what waits for the worker to the others (nobody, when there is none), speaker by speaker."""
        others = others or (NOBODY,)
        for heap in list(self._own.get(worker, {}).values()):
            for job in list(heap):
                lane = job.lanes[worker]
                groups = list(lane.groups.values())
                lane.groups.clear()
                self._weigh(lane)
                for group in groups:
                    group.started = False
                    other = self._lane(job, others[self._turn % len(others)])
                    self._turn += 1
                    other.add(group)
                    self._weigh(other)

    def lanes(self) -> Iterator[Lane]:
        """Every lane with work, for checking."""
        for worker, heaps in self._own.items():
            for heap in heaps.values():
                for job in heap:
                    yield job.lanes[worker]

    def _own_lane(self, worker: int, priority: int, behind: Job) -> Lane | None:
        """The worker's lane of its job furthest behind, if that is close enough to the furthest behind of all.
        A job's time moves without its entries in the workers' heaps; a few are brought up to date for each choice,
        which can make the choice less than the best but never unfair."""
        heap = self._own.get(worker, {}).get(priority)
        if heap is None:
            return None
        for _ in range(OWN_LANES_LOOKED_AT):
            job = heap.peek()
            if job is None or heap.rank(job) == job.rank:
                break
            heap.set(job, job.rank)
        job = heap.peek()
        if job is None:
            return None
        lag = LAG_SEGMENTS * max(job.costliest, behind.costliest)
        return job.lanes[worker] if job.virtual_time <= behind.virtual_time + lag else None

    def _lane(self, job: Job, worker: int) -> Lane:
        lane = job.lanes.get(worker)
        if lane is None:
            lane = job.lanes[worker] = Lane(worker, job)
        return lane

    def _weigh(self, lane: Lane) -> None:
        """Bring the heaps up to date with what the lane holds; an empty lane goes."""
        job, worker = lane.job, lane.worker
        heaps = self._own.setdefault(worker, {})
        if lane.groups:
            job.fullest.set(worker, (-lane.cost, worker))
            heap = heaps.get(job.priority)
            if heap is None:
                heap = heaps[job.priority] = LazyHeap()
            if job not in heap:
                heap.set(job, job.rank)
        else:
            job.lanes.pop(worker, None)
            job.fullest.discard(worker)
            if (heap := heaps.get(job.priority)) is not None:
                heap.discard(job)
                if not heap:
                    del heaps[job.priority]
            if not heaps:
                del self._own[worker]

    def _count(self, job: Job, change: int) -> None:
        """``change`` segments more wait in the job's lanes; a job whose first work comes starts level."""
        ranked = self._classes[job.priority]
        if change > 0 and not job.waiting:
            first = ranked.behind.peek()
            job.virtual_time = max(job.virtual_time, ranked.floor if first is None else first.virtual_time)
        job.waiting += change
        self.waiting += change
        if job.waiting:
            ranked.behind.set(job, job.rank)
            if len(ranked.behind) == 1:
                self._top.set(job.priority, (-job.priority,))
        else:
            ranked.behind.discard(job)
            if not ranked.behind:
                self._top.discard(job.priority)


# --- held work ----------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Ticket:
    """One dispatch. ``slots``: how many the worker had. ``thief``: the idle worker for which it is recalled."""

    number: int
    segment: Segment
    load: Load
    alone: bool
    slots: int
    begun: bool = False
    recalled: bool = False
    thief: Load | None = None


@dataclass(eq=False, slots=True)
class Load:
    """What one worker process holds. ``tickets`` in order of dispatch; ``begun`` of them have begun,
    ``recalled`` were asked back, ``queued`` are neither; ``expected`` recalled from others are to come here.
    ``used``: it was given something since it is ready."""

    worker: int
    slots: int
    tickets: dict[int, Ticket] = field(default_factory=dict)
    begun: int = 0
    recalled: int = 0
    queued: int = 0
    expected: int = 0
    alone: bool = False
    used: bool = False

    @property
    def in_flight(self) -> int:
        return len(self.tickets)

    @property
    def excess(self) -> int:
        """Tickets that wait for a slot, and so could be given to another worker."""
        return min(self.queued, self.in_flight - self.recalled - self.slots)

    def add(self, ticket: Ticket) -> None:
        self.tickets[ticket.number] = ticket
        self.queued += 1
        self.used = True
        self.alone = ticket.alone

    def begin(self, ticket: Ticket) -> None:
        self.queued -= not ticket.recalled
        self.begun += 1
        ticket.begun = True

    def recall(self, ticket: Ticket, thief: Load | None) -> None:
        """The ticket is asked back, for ``thief`` or because its job was cancelled."""
        if not ticket.recalled:
            self.queued -= not ticket.begun
            self.recalled += 1
            ticket.recalled = True
            if thief is not None:
                ticket.thief = thief
                thief.expected += 1

    def remove(self, ticket: Ticket) -> None:
        """The ticket is answered: whoever waits for it waits no more."""
        del self.tickets[ticket.number]
        self.begun -= ticket.begun
        self.recalled -= ticket.recalled
        self.queued -= not ticket.begun and not ticket.recalled
        if ticket.alone:
            self.alone = False
        if ticket.thief is not None:
            ticket.thief.expected -= 1

    def last_queued(self) -> Ticket:
        return next(t for t in reversed(self.tickets.values()) if not t.begun and not t.recalled)


class Credits:
    """The loads of the workers that are ready, and who comes first: ``free`` by free slots, the most first, those
    with a credit left; ``quietest`` by tickets held; ``crowded`` by tickets that wait for a slot, the most first;
    ``unused`` newly started ones. A worker that is not willing is given nothing and is in none but ``crowded``."""

    def __init__(self) -> None:
        self.loads: dict[int, Load] = {}
        self.free: LazyHeap[int] = LazyHeap()
        self.quietest: LazyHeap[int] = LazyHeap()
        self.crowded: LazyHeap[int] = LazyHeap()
        self.unused: dict[int, None] = {}

    def place(self, load: Load, *, willing: bool, reachable: bool, lookahead: int) -> None:
        """Bring the orders up to date with the load. ``willing``: it may be given work; ``reachable``: it may be asked
        to give work back."""
        worker, held = load.worker, load.in_flight
        if willing and held + load.expected < load.slots + lookahead:
            self.free.set(worker, (held + load.expected - load.slots, worker))
        else:
            self.free.discard(worker)
        if willing:
            self.quietest.set(worker, (held, worker))
        else:
            self.quietest.discard(worker)
        if willing and not load.used:
            self.unused[worker] = None
        else:
            self.unused.pop(worker, None)
        if reachable and (excess := load.excess) > 0:
            self.crowded.set(worker, (-excess, worker))
        else:
            self.crowded.discard(worker)

    def drop(self, load: Load) -> None:
        """The worker is gone."""
        self.place(load, willing=False, reachable=False, lookahead=0)
        del self.loads[load.worker]

    def as_free(self, worker: int, other: int) -> bool:
        """Both have a credit left, and equally many free slots."""
        rank, others = self.free.rank(worker), self.free.rank(other)
        return rank is not None and others is not None and rank[0] == others[0]

    def idle(self) -> Load | None:
        """The open worker with the most free slots for which nothing is on its way; None when all slots are taken."""
        worker = self.free.peek()
        if worker is None:
            return None
        load = self.loads[worker]
        return load if load.in_flight + load.expected < load.slots else None

"""What the core is told, and what it answers: events in, commands out.

The core reads no clock: every event carries ``at``, seconds on the shell's monotonic clock, never falling.
A segment is named by its job and its position in that job; a dispatch of it by a ticket, an integer that the
core gives out and never uses twice. A worker is named by its number in the plan, and each process that
has been that worker by its generation: an event of an earlier generation is stale and is ignored.

A segment's life in the core::

    waiting -> in flight -> begun -> delivered -> ended (spoken | failed | cancelled)
       ^          |           |          |
       +----------+-----------+----------+   given back, worker gone, failed with a try left, spoilt
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["speak", "encode"]
Outcome = Literal["spoken", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """One piece of work as the core sees it: what it costs and whose voice it needs, never its text."""

    position: int
    speaker: str
    """The voice; segments of one speaker of one job stay together."""
    cost: float = 1.0
    """Expected effort, in any unit that adds up; the shell uses characters of text plus a constant."""
    attempts: int = 0
    """How often it was dispatched before this life of the daemon."""
    tries: int = 0
    """How many of the allowed tries it has used up (deaths while alone, failures that may be retried)."""
    suspect: bool = False
    """It had begun when a worker or the daemon died: it is spoken alone."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker of the plan: its number, and the place it is pinned to: a GPU (None: the CPU) of a node ("": this
    machine). To the core a place is a name; it knows no difference between near and far."""

    worker: int
    gpu: int | None
    node: str = ""


# --- events ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobArrived:
    """A job with its segments that are still to be spoken, in the order of the job; may be none."""

    at: float
    job: str
    priority: int
    segments: tuple[SegmentSpec, ...]


@dataclass(frozen=True, slots=True)
class JobCancelled:
    at: float
    job: str


@dataclass(frozen=True, slots=True)
class WorkersPlanned:
    """The workers that there should be from now on. New ones are started, missing ones drained and stopped;
    one whose place changed is both. With ``restart`` every worker is replaced when it has finished what it
    holds, back-off and breakers are forgotten (a new configuration)."""

    at: float
    workers: tuple[WorkerSpec, ...]
    restart: bool = False


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has loaded its engine and has so many slots."""

    at: float
    worker: int
    generation: int
    slots: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The worker's process has ended, or never started; whatever it answered came before this. ``lost``: the place it
    ran in is gone (its node, the way there), so that neither it nor what it had begun is to blame: no suspects, and no
    crash."""

    at: float
    worker: int
    generation: int
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class WorkerBeat:
    """The worker lives. ``resident_bytes``: the memory of its process, 0 where it does not say."""

    at: float
    worker: int
    generation: int
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SegmentBegan:
    at: float
    worker: int
    generation: int
    ticket: int


@dataclass(frozen=True, slots=True)
class SegmentDelivered:
    """The worker says that it has spoken the segment; its slot is free, the file is yet to be checked and stored. The
    worker is done with it: should the daemon die now, it is no suspect."""

    at: float
    worker: int
    generation: int
    ticket: int


@dataclass(frozen=True, slots=True)
class SegmentStored:
    """The delivered file was good and is recorded: the segment is spoken."""

    at: float
    job: str
    position: int


@dataclass(frozen=True, slots=True)
class SegmentSpoilt:
    """The delivered file was not what the worker said; counts as a failure that may be retried."""

    at: float
    job: str
    position: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SegmentFailed:
    """The worker could not speak the segment. ``code`` "out_of_memory" has rules of its own (design 4).
    ``slots``, when given, is how many the worker has from now on."""

    at: float
    worker: int
    generation: int
    ticket: int
    code: str
    message: str
    retryable: bool
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class SegmentReleased:
    """The worker gave the segment back, after a Recall. ``began``: it had taken a slot. ``blameless``: nobody asked,
    and neither the worker nor the segment is to blame (the disk is full, the daemon drains): it costs no try."""

    at: float
    worker: int
    generation: int
    ticket: int
    began: bool
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class DispatchPaused:
    """Nothing new is dispatched until DispatchResumed (the disk is full; the daemon drains)."""

    at: float


@dataclass(frozen=True, slots=True)
class DispatchResumed:
    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; sent at the latest when ``Core.next_deadline()`` says."""

    at: float


Event = (
    JobArrived
    | JobCancelled
    | WorkersPlanned
    | WorkerReady
    | WorkerGone
    | WorkerBeat
    | SegmentBegan
    | SegmentDelivered
    | SegmentStored
    | SegmentSpoilt
    | SegmentFailed
    | SegmentReleased
    | DispatchPaused
    | DispatchResumed
    | Tick
)

# --- commands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartWorker:
    worker: int
    generation: int
    gpu: int | None
    node: str = ""


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Let it exit by itself (it holds nothing); the shell kills it after a grace. ``reason``: why a fresh process is to
    take its place, "" where it does not go for that."""

    worker: int
    generation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class KillWorker:
    """It hangs or breaks the protocol; WorkerGone follows."""

    worker: int
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the segment to the worker. ``alone``: it is a suspect, nothing else is in flight there, and the
    shell records the try (``tries`` used up if this one kills) durably BEFORE it writes the frame."""

    worker: int
    generation: int
    ticket: int
    job: str
    position: int
    attempt: int
    alone: bool
    tries: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask the worker to give the segment back, if it has not begun. ``begun``: or has; its job was cancelled."""

    worker: int
    generation: int
    ticket: int
    begun: bool


@dataclass(frozen=True, slots=True)
class Suspected:
    """The segment had begun when its worker died; to be remembered on disk."""

    job: str
    position: int


@dataclass(frozen=True, slots=True)
class Tried:
    """The segment has failed in a way that may be retried, and has used up so many tries; to be remembered on disk."""

    job: str
    position: int
    tries: int


@dataclass(frozen=True, slots=True)
class SegmentEnded:
    """The final state of a segment, exactly once. ``attempts``: dispatches, this life's and earlier ones."""

    job: str
    position: int
    outcome: Outcome
    attempts: int
    worker: int | None
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Every segment of the job has ended; follows the last SegmentEnded."""

    job: str


Command = StartWorker | StopWorker | KillWorker | Dispatch | Recall | Suspected | Tried | SegmentEnded | JobEnded

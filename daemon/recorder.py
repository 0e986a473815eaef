"""The one writer of journals: notes in the order they came, deliveries in theirs, many at a time, in a thread each.

Everything that must be remembered passes here, so the order on disk is the order of events, and one sync serves all
that came while the last one was under way. What was noted before a delivery stands before it in the journal; what is
noted after it need not wait until it is stored: on a slow disk, a try that must be recorded before its dispatch would
wait for hundreds of syncs. When the disk refuses, nothing is dropped: the batch is tried again until it is taken, and
meanwhile ``on_trouble`` lets the daemon stop giving out work.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import structlog

from daemon.journal import Record
from daemon.live_job import LiveJob
from daemon.store import Delivery, Spoilt, store

log = structlog.get_logger("dubd.recorder")

BATCH = 256
RETRY_S = 2.0

T = TypeVar("T")


@dataclass(slots=True)
class Note:
    """A record for a job's journal. ``durable``: synced, not only written."""

    job: LiveJob
    record: Record
    durable: bool
    written: bool = False
    done: anyio.Event | None = field(default=None)


class Recorder:
    """``on_stored`` and ``on_spoilt`` are called in the event loop, once for each delivery."""

    def __init__(
        self,
        on_stored: Callable[[Delivery], None],
        on_spoilt: Callable[[Spoilt], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._on_stored = on_stored
        self._on_spoilt = on_spoilt
        self._on_trouble = on_trouble
        self._notes: _Line[Note] = _Line()
        self._deliveries: _Line[tuple[int, Delivery]] = _Line()
        """With how many notes had come before each."""
        self._noted = self._written = 0
        self._more_written = anyio.Event()

    def note(self, job: LiveJob, record: Record, *, durable: bool = False) -> None:
        """Record soon."""
        self._put(Note(job, record, durable))

    async def record(self, job: LiveJob, record: Record) -> None:
        """Record durably; returns when it is."""
        done = anyio.Event()
        self._put(Note(job, record, durable=True, done=done))
        await done.wait()

    def deliver(self, delivery: Delivery) -> None:
        """Check and store a finished file soon."""
        self._deliveries.put((self._noted, delivery))

    @property
    def idle(self) -> bool:
        return self._notes.idle and self._deliveries.idle

    def _put(self, note: Note) -> None:
        self._noted += 1
        self._notes.put(note)

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._notes.run, self._write)
            tasks.start_soon(self._deliveries.run, self._store)

    async def _write(self, notes: Sequence[Note]) -> None:
        await self._insist(partial(_write_notes, notes), self._notes)
        self._written += len(notes)
        self._more_written.set()
        self._more_written = anyio.Event()
        for note in notes:
            if note.done is not None:
                note.done.set()

    async def _store(self, batch: Sequence[tuple[int, Delivery]]) -> None:
        while self._written < batch[-1][0]:
            await self._more_written.wait()
        deliveries = [delivery for _, delivery in batch]
        spoilt: dict[int, Spoilt] = {}

        def store_the_rest() -> None:
            # Deliveries found to be spoilt are settled; the others may have to come again.
            for bad in store([delivery for delivery in deliveries if id(delivery) not in spoilt]):
                spoilt[id(bad.delivery)] = bad

        await self._insist(store_the_rest, self._deliveries)
        for delivery in deliveries:
            if id(delivery) in spoilt:
                self._on_spoilt(spoilt[id(delivery)])
            else:
                self._on_stored(delivery)

    async def _insist(self, step: Callable[[], None], line: _Line[Any]) -> None:
        """Do it in the line's thread, again and again until the disk takes it."""
        troubled = False
        while True:
            try:
                return await anyio.to_thread.run_sync(step, limiter=line.limiter)
            except OSError as error:
                if not troubled:
                    log.error("the state folder can't be written to; trying again", error=str(error))
                    troubled = True
                self._on_trouble(f"the state folder can't be written to: {error.strerror or error}")
                await anyio.sleep(RETRY_S)


class _Line(Generic[T]):
    """What waits for one thread, which is given BATCH of them at most at a time."""

    def __init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(1)
        self._queue: deque[T] = deque()
        self._wake = anyio.Event()
        self._busy = False

    @property
    def idle(self) -> bool:
        return not self._queue and not self._busy

    def put(self, item: T) -> None:
        self._queue.append(item)
        self._wake.set()

    async def run(self, handle: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._queue:
                self._busy = True
                await handle([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
                self._busy = False


def _write_notes(notes: Sequence[Note]) -> None:
    by_job: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        if not note.written and not note.job.closed:
            by_job[note.job.token].append(note)
    for group in by_job.values():
        job = group[0].job
        try:
            job.journal.append([note.record for note in group], durable=any(note.durable for note in group))
        except FileNotFoundError:
            if job.folder.is_dir():
                raise
            # A hand has removed the job from state/; the other jobs must not wait for it to come back.
            log.error("a job's folder is gone; nothing more is recorded of it", job=job.job_id, folder=str(job.folder))
        except OSError:
            raise
        except Exception:
            # A record that can't be written must not keep the other jobs' from the disk, now and for ever.
            log.exception("a job's records can't be written; they are left out", job=job.job_id)
        for note in group:
            note.written = True

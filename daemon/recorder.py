"""The one writer of journals: notes and deliveries in the order they came, many at a time, in one thread.

Everything that must be remembered passes here, so the order on disk is the order of events, and one sync serves all
that came while the last one was under way. When the disk refuses, nothing is dropped: the batch is tried again
until it is taken, and meanwhile ``on_trouble`` lets the daemon stop giving out work.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
import structlog

from daemon.journal import Record
from daemon.live_job import LiveJob
from daemon.store import Delivery, Spoilt, store

log = structlog.get_logger("dubd.recorder")

BATCH = 256
RETRY_S = 2.0


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
        self._queue: deque[Note | Delivery] = deque()
        self._wake = anyio.Event()
        self._limiter = anyio.CapacityLimiter(1)
        self._busy = False

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
        self._put(delivery)

    @property
    def idle(self) -> bool:
        return not self._queue and not self._busy

    def _put(self, item: Note | Delivery) -> None:
        self._queue.append(item)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            while self._queue:
                self._busy = True
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                await self._write(batch)
                self._busy = False

    async def _write(self, batch: Sequence[Note | Delivery]) -> None:
        notes = [item for item in batch if isinstance(item, Note)]
        deliveries = [item for item in batch if isinstance(item, Delivery)]
        troubled = False
        spoilt: dict[int, Spoilt] = {}
        while True:
            try:
                # Deliveries found to be spoilt are settled; the others may have to come again.
                remaining = [delivery for delivery in deliveries if id(delivery) not in spoilt]
                await anyio.to_thread.run_sync(_write_notes, notes, limiter=self._limiter)
                for bad in await anyio.to_thread.run_sync(store, remaining, limiter=self._limiter):
                    spoilt[id(bad.delivery)] = bad
                break
            except OSError as error:
                if not troubled:
                    log.error("the state folder can't be written to; trying again", error=str(error))
                    troubled = True
                self._on_trouble(f"the state folder can't be written to: {error.strerror or error}")
                await anyio.sleep(RETRY_S)
        for note in notes:
            if note.done is not None:
                note.done.set()
        for delivery in deliveries:
            if id(delivery) in spoilt:
                self._on_spoilt(spoilt[id(delivery)])
            else:
                self._on_stored(delivery)


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

"""The jobs that this daemon has taken, and all that is said about their segments.

Stands between the pool, which knows tickets, and the job runs, which know files: it builds the frame that asks for
a segment, hands what comes back to the recorder, tells the core what became of it, and keeps the line of jobs that
share a job_id.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from daemon import files, ownership
from daemon.config import Settings
from daemon.core import events
from daemon.core.core import Core
from daemon.core.job import JobRejected, Reason
from daemon.core.job_id import fold_job_id
from daemon.core.job_settings import LARGEST_SEED
from daemon.embeddings.job_run import EmbeddingsRun
from daemon.embeddings.live_job import LiveEmbeddings
from daemon.ended_jobs import EndedJobs
from daemon.finishing.finisher import FINISHING_FAILED, Finisher
from daemon.hooks import Hooks
from daemon.inbox import Inbox
from daemon.job_run import JobRun, Stumbled
from daemon.live_job import Claim, EngineIdentity, LiveJob
from daemon.mounts import Mounts
from daemon.narration import Narration
from daemon.outbox import OutboxConflict, TakenNames
from daemon.ownership import Neighbours
from daemon.pool import Pool, Ticket
from daemon.recorder import Recorder
from daemon.reuse import ReuseIndex
from daemon.room import DISPATCH_RESUME, Room
from daemon.store import Delivery, Spoilt
from workers.protocol import Message

log = structlog.get_logger("dubd.jobs")

RECENT_JOBS = 50
RECENT_FAILURES = 20
MOST_OF_A_MESSAGE = 500
OUTBOX_THREADS = 8
"""Threads that may wait for the outbox at one time; a share that hangs must not take those of everybody else. More of
them take the interpreter from each other: a flood of jobs made 415 changes of context for each with 32, 350 with 8."""

SPACE_CHECK_S = 2.0

DAMAGED = "damaged"
"""The folder in state/ for what can't be worked on."""

NOT_AS_TOLD = "a worker's file is not what it said"

MOST_TRIES_TOLD = 100
"""Seeds and flaws of one segment that are kept of what a worker tells."""


@dataclass
class Signs:
    """What the parts of the daemon show to people, and how they ask for it to be shown."""

    warnings: dict[str, str] = field(default_factory=dict)
    """What is wrong at present, by what it concerns."""
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT_JOBS))
    """The last jobs that ended, the latest first."""
    failures: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT_FAILURES))
    """The last segments that failed, the latest first."""
    inbox_waiting: int = 0
    paused: bool = False
    """No work is given out, for want of disk space."""
    audio_s: float = 0.0
    """Seconds of audio made in this life of the daemon."""
    wake: Callable[[], None] = lambda: None
    """Something worth showing has changed."""


class Jobs:
    """``settings`` is replaced when the configuration is read again. ``on_room`` is called when a job has ended, so
    that another may be taken; ``reject`` puts a job's claimed file aside."""

    def __init__(
        self,
        settings: Settings,
        inbox: Inbox,
        reuse: ReuseIndex,
        ended: EndedJobs,
        mounts: Mounts,
        core: Core,
        signs: Signs,
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.settings = settings
        self.inbox = inbox
        self.reuse = reuse
        self.ended = ended
        self.mounts = mounts
        self.neighbours = Neighbours(settings.paths.outbox, inbox.claimed.name)
        self.taken_names = TakenNames(settings.paths.outbox, fold_job_id)
        self.signs = signs
        self.hooks = Hooks(settings)
        self.recorder = Recorder(self._on_stored, self._on_spoilt, self.disk_full)
        self.finisher = Finisher(
            self.recorder.deliver, self._on_spoilt, self.disk_full, tries=lambda: self.settings.pool.tries
        )
        self.engine_is_known = anyio.Event()
        self.outbox_threads = anyio.CapacityLimiter(OUTBOX_THREADS)
        self.runs: dict[str, JobRun] = {}
        self.draining = False
        self.pool: Pool
        self.on_room: Callable[[], None] = lambda: None
        self.reject: Callable[[Claim, Sequence[Reason], str | None], Awaitable[None]]
        self._core = core
        self._life = os.urandom(4).hex()
        self._tasks = tasks
        self._lines: dict[str, list[LiveJob]] = {}
        """Jobs of one folded job_id, in order; the first one runs."""
        self.room = Room(self)
        self._clearing: dict[str, anyio.Event] = {}
        """Folded job_ids whose earlier results are being removed."""

    # --- jobs -----------------------------------------------------------------------------------------------

    def live_id(self, folded: str) -> str | None:
        """The job id of this folded form that is being worked on, if any. Safe to call from a thread: nothing is gone
        through that another one may change meanwhile."""
        first = self._lines.get(folded, [])[:1]  # it may become empty while we look
        return first[0].job_id if first else None

    def latest(self, job_id: str) -> Path | None:
        """The folder of the last job of this id that is not over. Safe to call from a thread, as ``live_id``."""
        last = self._lines.get(fold_job_id(job_id), [])[-1:]
        return last[0].folder if last else None

    def line(self, job_id: str) -> list[LiveJob]:
        """The jobs of this id, whatever its case: the one that runs, then those that wait for it."""
        return list(self._lines.get(fold_job_id(job_id), ()))

    def segments(self) -> int:
        """Segments of all jobs taken: what their memory grows with."""
        return sum(len(run.job.segments) for run in self.runs.values())

    def most_outstanding_bytes(self) -> float:
        """What all jobs taken would write if they were at their beginning, about: quickly known."""
        return sum(run.result_bytes for run in self.runs.values())

    def outstanding_bytes(self) -> float:
        """What they will still write, about."""
        return sum(run.outstanding_bytes() for run in self.runs.values())

    def highest_priority(self) -> int:
        return max((run.job.job.priority for run in self.runs.values()), default=0)

    def enqueue(self, job: LiveJob) -> None:
        """Run an accepted job, after those of its job_id that came before."""
        line = self._lines.setdefault(fold_job_id(job.job_id), [])
        run = EmbeddingsRun(job, self) if isinstance(job, LiveEmbeddings) else JobRun(job, self)
        self.runs[job.token] = run
        self.signs.wake()
        if not line:
            line.append(job)
            self._start(job)
            return
        # Admissions overlap; the order is that of the claims, and the first one runs already.
        position = next((p for p, other in enumerate(line) if p and other.token > job.token), len(line))
        line.insert(position, job)
        job.note = "waiting for an earlier job of the same job_id"

    def _start(self, job: LiveJob) -> None:
        job.note = None
        self._tasks.start_soon(self._run, self.runs[job.token], name=f"job {job.token}")

    async def _run(self, run: JobRun) -> None:
        job = run.job
        while (cleared := self._clearing.get(fold_job_id(job.job_id))) is not None:
            job.note = "waiting until earlier results of this job_id are removed"
            await cleared.wait()
            job.note = None
        try:
            await run.run()
        except (OutboxConflict, JobRejected) as error:
            conflict = (Reason("$.job_id", "outbox_conflict", str(error)),)
            claim = Claim(job.token, self.inbox.claimed / job.token / job.name, job.received_at)
            await self.reject(claim, error.reasons if isinstance(error, JobRejected) else conflict, job.job_id)
            with suppress(OSError):
                await run.release()
            job.close()
            await anyio.to_thread.run_sync(files.remove_tree, job.folder)
        except Stumbled as error:
            await self._give_up(job, str(error))
            with suppress(OSError):
                await run.release()
        del self.runs[job.token]
        folded = fold_job_id(job.job_id)
        line = self._lines[folded]
        del line[0]
        if line:
            self._start(line[0])
        else:
            del self._lines[folded]
        self.signs.wake()
        self.on_room()

    async def _give_up(self, job: LiveJob, why: str) -> None:
        """A job that can't be brought to any end is put aside, for people to look at; the others go on."""
        job.close()
        where = str(job.folder)
        try:
            damaged = self.settings.paths.state / DAMAGED
            where = str(await anyio.to_thread.run_sync(files.put_aside, job.folder, damaged))
        except OSError as error:
            log.error("a job can't be put aside; the next start takes it up again", job=job.job_id, error=str(error))
        log.error("a job is given up", job=job.job_id, reason=why, put_aside=where)
        self.warn(f"given up {job.token}", f"the job {job.job_id} is given up and lies in {where}: {why}")

    async def beat(self) -> None:
        """Tell the other daemons on this outbox, while there are jobs, that this one lives."""

        def beat() -> None:
            self.mounts.check(self.settings.paths.outbox)
            self.neighbours.beat()

        limiter = anyio.CapacityLimiter(1)
        while True:
            if self.runs:
                try:
                    await anyio.to_thread.run_sync(beat, abandon_on_cancel=True, limiter=limiter)
                except OSError as error:
                    log.debug("the beat could not be written", error=str(error))
            await anyio.sleep(ownership.BEAT_S)

    def noted(self) -> None:
        self.signs.wake()

    @contextmanager
    def clearing(self, job_id: str) -> Iterator[bool]:
        """While results of this job_id are removed, no job of that id starts. False: one is at work."""
        folded = fold_job_id(job_id)
        if folded in self._lines or folded in self._clearing:
            yield False
            return
        self._clearing[folded] = cleared = anyio.Event()
        try:
            yield True
        finally:
            del self._clearing[folded]
            cleared.set()

    def warn(self, what: str, warning: str | None) -> None:
        """Show a warning to people, or take it back."""
        before = self.signs.warnings.get(what)
        if before == warning:
            return
        if warning is None:
            del self.signs.warnings[what]
        else:
            if before is None:  # else only its figures have changed
                log.warning(warning)
            self.signs.warnings[what] = warning
        self.signs.wake()

    def finished(self, job: LiveJob) -> None:
        """Its manifest is out."""
        self.signs.recent.appendleft(
            {
                "job_id": job.job_id,
                "status": job.status(),
                "ended_at": job.ended_at,
                "counts": job.counts(),
                "report": job.has_report,
            }
        )
        self.hooks.ended(job.token)
        self.signs.wake()

    def workers_of(self, job: LiveJob) -> list[dict[str, Any]]:
        """``workers`` of a job's progress.json: those that speak it now."""
        return [
            {name: row[name] for name in ("worker", "gpu", "activity", "speaker", "spoken")}
            for row in self.pool.worker_rows()
            if row["job"] == job.job_id
        ]

    def arrive(self, job: LiveJob) -> Narration:
        """Give the job to the core; who tells its story."""
        self.signs.wake()
        self.pool.apply(events.JobArrived(anyio.current_time(), job.token, job.job.priority, job.waiting()))
        return Narration(job, self._core.assignment(job.token))

    def finishing(self) -> bool:
        """Whether a job's last segment has ended and its manifest is not out yet."""
        return any(run.finishing for run in self.runs.values())

    def engine_trouble(self) -> str | None:
        """Why no worker has an engine yet, as far as they have said."""
        return next((view.error for view in self._core.worker_views() if view.error), None)

    # --- PoolHost -------------------------------------------------------------------------------------------

    def speak_message(self, ticket: int, token: str, position: int) -> tuple[Message, Path]:
        job = self.runs[token].job
        live = job.segments[position]
        segment, parameters, output = live.segment, job.job.parameters, job.job.output
        # Tickets begin again with each life of the daemon, and a worker of an earlier one may still be writing.
        file = job.segments_folder / f".{self._life}-{ticket}{job.suffix}"
        message: Message = {
            "type": job.job.task,
            "ticket": ticket,
            "text": segment.text,
            "language": job.job.language,
            "voice": {
                "id": segment.speaker,
                "references": [
                    {
                        "path": str(job.folder / "references" / reference.file),
                        "kind": reference.kind,
                        "sha256": reference.sha256,
                        "text": reference.text,
                    }
                    for reference in job.voices[segment.speaker]
                ],
            },
            "parameters": {
                "seed": live.seed,
                "temperature": parameters.temperature,
                "top_p": parameters.top_p,
                "repetition_penalty": parameters.repetition_penalty,
                "max_new_tokens": parameters.max_new_tokens,
            },
            "output": {
                "path": str(file),
                "sample_rate": output.sample_rate,
                # What is finished is rounded once, at the end.
                "subtype": "FLOAT" if _is_finished(job) else output.subtype,
            },
        }
        job.give_out(position)
        return message, file

    async def record_try(self, token: str, position: int, tries: int) -> None:
        job = self.runs[token].job
        job.segments[position].tries = tries
        job.segments[position].alone = True
        await self.recorder.record(job, {"t": "try", "p": position, "tries": tries})

    def began(self, token: str, position: int, worker: int) -> tuple[str, str]:
        run = self.runs[token]
        live = run.job.segments[position]
        live.begun = True
        live.attempts += 1
        self.recorder.note(run.job, {"t": "began", "p": position})
        run.began(worker, live.segment.speaker)
        self.signs.wake()
        return run.job.job_id, live.segment.speaker

    def given_back(self, token: str, position: int) -> None:
        run = self.runs.get(token)
        if run is not None and run.job.segments[position].status == "waiting":
            run.job.segments[position].give_back()
            run.job.take_back(position)
            self.recorder.note(run.job, {"t": "back", "p": position})
            run.changed()

    def suspected(self, token: str, position: int) -> None:
        run = self.runs[token]
        live = run.job.segments[position]
        live.begun, live.suspect, live.alone = False, True, False
        log.warning(
            "its worker died while it was spoken; it is spoken again alone",
            job=run.job.job_id,
            index=live.segment.index,
        )
        self.recorder.note(run.job, {"t": "suspect", "p": position}, durable=True)

    def tried(self, token: str, position: int, tries: int) -> None:
        run = self.runs[token]
        run.job.segments[position].use_up(tries)
        self.recorder.note(run.job, {"t": "tried", "p": position, "tries": tries}, durable=True)

    def delivered(self, ticket: Ticket, message: Message, device: str) -> None:
        run = self.runs[ticket.job]
        live = run.job.segments[ticket.position]
        delivery = Delivery(
            job=run.job,
            position=ticket.position,
            file=ticket.file,
            frames=_number(message["frames"]),
            sample_rate=_number(message.get("sample_rate", 0)),
            seed=_seed(message.get("seed", live.seed or 0)),
            truncated=bool(message.get("truncated", False)),
            generate_s=_seconds(message.get("generate_s", 0.0)),
            worker=ticket.worker,
            device=device,
            attempts=max(live.attempts, 1),
            key=live.key if run.job.engine == self.pool.identity else None,
            seeds=tuple(_seed(seed) for seed in message.get("seeds", ())[:MOST_TRIES_TOLD]),
            flaws=tuple(str(flaw)[:200] for flaw in message.get("flaws", ())[:MOST_TRIES_TOLD]),
        )
        # Its worker is done with it: should the daemon die before it is stored, it is spoken again, but no suspect.
        if _is_finished(run.job):
            self.given_back(ticket.job, ticket.position)
            self.finisher.finish(delivery)
        else:  # what the journal says of it soon is that it is stored
            live.give_back()
            run.job.take_back(ticket.position)
            self.recorder.deliver(delivery)

    def segment_ended(self, ended: events.SegmentEnded) -> None:
        run = self.runs[ended.job]
        live = run.job.segments[ended.position]
        if run.failure is not None and ended.outcome == "cancelled":
            code, message = run.failure
            ended = dataclasses.replace(ended, outcome="failed", code=code, message=message)
        if ended.outcome != "spoken":
            live.status = ended.outcome
            live.begun = live.alone = False
            # A try whose worker was gone before it heard of it is none; one that killed it at once has not begun.
            live.attempts = max(live.attempts, live.tries, int(ended.outcome == "failed"))
            live.worker, live.code, live.message = ended.worker, ended.code, ended.message
            self.recorder.note(
                run.job,
                {
                    "t": ended.outcome,
                    "p": ended.position,
                    "attempts": live.attempts,
                    "worker": live.worker,
                    "code": live.code,
                    "message": live.message,
                },
                durable=True,
            )
            if ended.outcome == "failed":
                self.signs.failures.appendleft(
                    {
                        "job_id": run.job.job_id,
                        "index": live.segment.index,
                        "speaker": live.segment.speaker,
                        "code": ended.code or "unknown",
                        "message": (ended.message or "")[:MOST_OF_A_MESSAGE],
                        "failed_at": round(time.time(), 3),
                    }
                )
                if ended.worker is not None:
                    run.failed(ended.position, ended.worker)
                log.error(
                    "segment has failed",
                    job=run.job.job_id,
                    index=live.segment.index,
                    code=ended.code,
                    message=ended.message,
                )
        run.changed()
        self.signs.wake()

    def job_ended(self, token: str) -> None:
        self.runs[token].end()

    def engine_changed(self) -> None:
        """Another engine is configured: jobs that come now wait until its workers say which one it is."""
        self.pool.identity = None
        self.engine_is_known = anyio.Event()

    def engine_known(self, identity: EngineIdentity) -> None:
        self.engine_is_known.set()
        self.signs.wake()

    def worker_changed(self) -> None:
        self.signs.wake()

    def _on_stored(self, delivery: Delivery) -> None:
        run = self.runs[delivery.job.token]
        if delivery.cached:
            run.changed()
            return
        run.stored(delivery.position, delivery.worker)
        self.signs.audio_s += delivery.frames / delivery.sample_rate if delivery.sample_rate else 0.0
        self.pool.apply(events.SegmentStored(anyio.current_time(), delivery.job.token, delivery.position))

    def _on_spoilt(self, spoilt: Spoilt) -> None:
        delivery = spoilt.delivery
        live = delivery.job.segments[delivery.position]
        live.begun = live.cached = False
        what = "a segment could not be finished" if spoilt.code == FINISHING_FAILED else NOT_AS_TOLD
        log.warning(what, job=delivery.job.job_id, worker=delivery.worker, reason=spoilt.message)
        if not delivery.cached:
            self.pool.apply(
                events.SegmentSpoilt(
                    anyio.current_time(), delivery.job.token, delivery.position, spoilt.code, spoilt.message
                )
            )
        self.runs[delivery.job.token].changed()

    def disk_full(self, reason: str) -> None:
        """Stop giving out work until there is room again."""
        if self.signs.paused or self.draining:
            return
        self.signs.paused = True
        log.error("no more work is given out until the disk takes it", reason=reason)
        self.signs.warnings["disk"] = f"paused: {reason}"
        self.signs.wake()
        self.pool.apply(events.DispatchPaused(anyio.current_time()))
        self._tasks.start_soon(self._resume_when_there_is_room)

    async def _resume_when_there_is_room(self) -> None:
        while True:
            await anyio.sleep(SPACE_CHECK_S)
            enough = self.room.too_little_for_work(DISPATCH_RESUME) is None
            if enough and await anyio.to_thread.run_sync(self._has_room):
                break
        self.signs.paused = False
        self.signs.warnings.pop("disk", None)
        self.signs.wake()
        if not self.draining:
            log.info("the disk takes files again; going on")
            self.pool.apply(events.DispatchResumed(anyio.current_time()))

    def _has_room(self) -> bool:
        state = self.settings.paths.state
        try:
            probe = state / "probe"
            files.write_atomically(probe, b"\0" * 65536)
            files.remove(probe)
        except OSError:
            return False
        return True


def _is_finished(job: LiveJob) -> bool:
    """What workers deliver for it goes through the finisher."""
    return job.job.task == "speak" and job.job.output.finishes


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _seed(value: object) -> int:
    seed = _number(value)
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{seed} is no seed")
    return seed


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError(f"{value!r} is no number of seconds")
    return round(float(value), 4)

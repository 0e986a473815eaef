"""``dubd run``: the daemon put together.

One event loop in the main thread; the core answers every event there and then. Beside it run the workers' pipes (pool),
the one writer of journals (recorder), a task a job (job_run), the look at the inbox, status.json, the plan, the signals
and the service manager's watchdog. A failure in any of these that is not foreseen ends the daemon, with its story in the
log: the next start goes on from what is on disk.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import random
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import structlog

import daemon
from daemon import files, gpus, inbox
from daemon.config import ConfigError, Settings
from daemon.core import events
from daemon.core.core import Core
from daemon.core.job import JobRejected, Reason
from daemon.core.job_id import fold_job_id
from daemon.core.plan import BYTES_PER_GB, Plan, plan_workers
from daemon.core.supervision import PoolPolicy
from daemon.inbox import Inbox, Ready
from daemon.intake import WHATEVER_SIZE, Rejection, accept
from daemon.job_run import JobRun
from daemon.live_job import Claim, EngineIdentity, LiveJob
from daemon.logs import configure_logging
from daemon.notify import Notifier, watchdog_interval
from daemon.outbox import OutboxConflict
from daemon.pool import Pool, Ticket
from daemon.recorder import Recorder
from daemon.reuse import ReuseIndex
from daemon.status import StatusWriter
from daemon.store import Delivery, Spoilt
from daemon.worker_process import Transport, WorkerProcess, worker_command
from workers.protocol import PROTOCOL_VERSION, Message

log = structlog.get_logger("dubd")

MAX_LIVE_JOBS = 200
"""Jobs taken from the inbox at one time; the others wait there, where other daemons may take them too. A job of higher
priority than every live one is taken all the same."""

ADMISSIONS = 4
RECENT_JOBS = 50
SPACE_NEEDED = 64 * 1024 * 1024
"""Bytes that must be free, in state/ and the outbox, before work is given out again after a full disk."""

SPACE_CHECK_S = 2.0
WATCH_RETRY_S = 30.0


class AlreadyRunning(Exception):
    """Another daemon works on the same state folder."""


class Daemon:
    """The daemon's parts and what they tell each other; ``run`` is its life."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        self.settings = settings
        self._reload = reload
        self._started_at = time.time()
        self.host_id = _host_id(settings.paths.state)
        self.inbox = Inbox(settings, self.host_id)
        self.reuse = ReuseIndex(settings.paths.state / "reuse.sqlite3")
        self.recorder = Recorder(self._on_stored, self._on_spoilt, self.disk_full)
        self.core = Core(_policy(settings), random.Random())
        self.pool = Pool(self.core, self, self._make_transport, self._hello, settings)
        self.engine_is_known = anyio.Event()
        self.runs: dict[str, JobRun] = {}
        self._lines: dict[str, deque[LiveJob]] = {}
        """Jobs of one folded job_id, in order; the first one runs."""
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT_JOBS)
        self.state = "starting"
        self.warnings: dict[str, str] = {}
        self._notifier = Notifier()
        self.inbox_waiting = 0
        self._worker_count = 1
        self._plan: Plan | None = None
        self._look = anyio.Event()
        self._admissions = anyio.CapacityLimiter(ADMISSIONS)
        self._admitting = 0
        self._unknown_cancels: dict[str, float] = {}
        self._paused = False
        self.audio_s = 0.0
        self._tasks: anyio.abc.TaskGroup | None = None
        self._status = StatusWriter(self)

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then drained."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                await tasks.start(self.pool.run)
                tasks.start_soon(self.recorder.run)
                await self._make_plan(first=True)
                await self._recover()
                self.state = "running"
                tasks.start_soon(self._status.run)
                tasks.start_soon(self._watch_inbox)
                tasks.start_soon(self._read_inbox)
                tasks.start_soon(self._replan)
                tasks.start_soon(self._keep_watchdog)
                self._notifier.ready(self._status_line())
                log.info("ready", version=daemon.__version__, pid=os.getpid(), inbox=str(self.settings.paths.inbox))
                async for number in signals:
                    if number == signal.SIGHUP:
                        await self._reconfigure()
                    else:
                        log.info("stopping", signal=signal.Signals(number).name)
                        break
                tasks.start_soon(self._stop_at_once, signals)
                await self._drain()
                self.state = "stopped"
                await self._status.write()
            tasks.cancel_scope.cancel()
        self.reuse.close()

    async def _stop_at_once(self, signals: Any) -> None:
        async for number in signals:
            if number in (signal.SIGTERM, signal.SIGINT):
                log.warning("stopping at once")
                assert self._tasks is not None
                self._tasks.cancel_scope.cancel()

    async def _drain(self) -> None:
        """Let what has begun end, give back the rest, and write down that this was no crash."""
        self.state = "draining"
        self._notifier.stopping("finishing the segments that have begun")
        self.pool.apply(events.DispatchPaused(anyio.current_time()))
        self.pool.recall_unbegun()
        with anyio.move_on_after(self.settings.service.drain_seconds) as deadline:
            while self.pool.holding() or not self.recorder.idle:
                await anyio.sleep(0.05)
        if deadline.cancelled_caught:
            log.warning("segments in flight are given up; they are spoken at the next start", number=self.pool.holding())
        self.pool.stop_listening()
        with anyio.move_on_after(5):
            for run in list(self.runs.values()):
                await self.recorder.record(run.job, {"t": "stop"})
        self.pool.ask_to_exit()
        with anyio.move_on_after(min(1.0, self.settings.worker.stop_grace_s)):
            while self.pool.pids:
                await anyio.sleep(0.02)
        log.info("stopped")

    async def _recover(self) -> None:
        """Take up what an earlier life of this daemon has left."""
        jobs = self.settings.paths.state / "jobs"
        files.remove_leftovers(jobs)
        known = set()
        for folder in sorted(path for path in jobs.iterdir() if not path.name.startswith(".")):
            try:
                job = await anyio.to_thread.run_sync(LiveJob.open, folder, WHATEVER_SIZE)
            except (OSError, ValueError, KeyError, TypeError, JobRejected) as error:
                damaged = self.settings.paths.state / "damaged" / folder.name
                log.error("an accepted job can't be read back; it is put aside", folder=str(damaged), error=repr(error))
                files.make_folder(damaged.parent)
                files.rename(folder, damaged)
                continue
            known.add(job.token)
            log.info("taking up job", job=job.job_id, waiting=len(job.waiting()), total=len(job.segments))
            self._enqueue(job)
        with suppress(OSError):
            for claim in await anyio.to_thread.run_sync(self.inbox.claims):
                if claim.token not in known:
                    self._start_admission(claim)

    # --- the inbox ------------------------------------------------------------------------------------------

    async def _read_inbox(self) -> None:
        reachable = True
        while True:
            pause: float = self.settings.inbox.scan_seconds
            try:
                look = await anyio.to_thread.run_sync(self.inbox.look, time.monotonic())
                self.inbox_waiting = look.waiting
                for name in look.cancels:
                    await self._on_cancel_file(name)
                if self.state == "running":
                    await self._take(look.ready)
                if look.more:
                    pause = 0.0
                elif look.next_due is not None:
                    pause = min(pause, max(look.next_due - time.monotonic(), 0.01))
                if not reachable:
                    log.info("the inbox is back", inbox=str(self.settings.paths.inbox))
                    reachable = True
                self.warnings.pop("inbox", None)
            except OSError as error:
                if reachable:
                    log.error("the inbox can't be reached; trying on", inbox=str(self.settings.paths.inbox), error=str(error))
                    reachable = False
                self.warnings["inbox"] = f"the inbox can't be reached: {error.strerror or error}"
            with anyio.move_on_after(pause):
                await self._look.wait()
            self._look = anyio.Event()

    async def _watch_inbox(self) -> None:
        """Events wake the scan; when they fail or the folder is another one, the watch is made anew."""
        while True:
            if not self.settings.inbox.watch:
                await anyio.sleep(self.settings.inbox.scan_seconds)
                continue
            identity = self.inbox.identity()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._cancel_when_replaced, scope, identity)
                    try:
                        async for _ in self.inbox.changes():
                            self._look.set()
                    except Exception as error:  # a name that is not UTF-8, no inotify left: the scan goes on
                        log.warning("file system events have failed; the scan goes on", error=repr(error))
                        await anyio.sleep(WATCH_RETRY_S)
                    await anyio.sleep(self.settings.inbox.scan_seconds)
                    tasks.cancel_scope.cancel()

    async def _cancel_when_replaced(self, scope: anyio.CancelScope, identity: tuple[int, int] | None) -> None:
        while self.inbox.identity() == identity:
            await anyio.sleep(self.settings.inbox.scan_seconds)
        scope.cancel()

    async def _take(self, ready: Sequence[Ready]) -> None:
        for item in ready:
            live = [run.job.job.priority for run in self.runs.values()]
            if len(live) + self._admitting >= MAX_LIVE_JOBS and item.priority <= max(live, default=0):
                return
            if item.reasons:
                await self._reject_unclaimed(item)
                continue
            claim = await anyio.to_thread.run_sync(self.inbox.claim, item)
            if claim is not None:
                self._start_admission(claim)

    async def _reject_unclaimed(self, item: Ready) -> None:
        claim = await anyio.to_thread.run_sync(self.inbox.claim, item)
        if claim is not None:
            await self._reject(claim, item.reasons, None)

    def _start_admission(self, claim: Claim) -> None:
        assert self._tasks is not None
        self._admitting += 1
        self._tasks.start_soon(self._admit, claim)

    async def _admit(self, claim: Claim) -> None:
        try:
            async with self._admissions:
                while True:
                    try:
                        result = await anyio.to_thread.run_sync(
                            accept, claim, self.settings, self._live_ids, abandon_on_cancel=True
                        )
                        break
                    except OSError as error:
                        log.error("a job could not be accepted yet; trying again", name=inbox.printable(claim.name), error=str(error))
                        self.warnings["accept"] = f"{inbox.printable(claim.name)} can't be accepted yet: {error}"
                        await anyio.sleep(SPACE_CHECK_S)
            self.warnings.pop("accept", None)
            if isinstance(result, LiveJob):
                log.info("[Main] Total tasks: %d" % len(result.segments), job=result.job_id, name=inbox.printable(claim.name))
                self._enqueue(result)
            elif result.incomplete and time.time() - claim.received_at < self.settings.inbox.grace_seconds and await self._put_back(claim):
                log.info("a job file changed while it was taken; waiting for it", name=inbox.printable(claim.name))
            else:
                await self._reject(claim, result.reasons, result.job_id)
        finally:
            self._admitting -= 1
            self._look.set()

    async def _put_back(self, claim: Claim) -> bool:
        """Give a file back to the inbox if it has been written to since it settled."""
        try:
            touched = time.time() - claim.file.stat().st_mtime < self.settings.inbox.settle_seconds
            if touched:
                await anyio.to_thread.run_sync(self.inbox.put_back, claim)
            return touched
        except OSError:
            return False

    async def _reject(self, claim: Claim, reasons: Sequence[Reason], job_id: str | None) -> None:
        name = inbox.printable(claim.name)
        while True:
            try:
                error = await anyio.to_thread.run_sync(
                    lambda: inbox.reject(
                        self.settings.paths.rejected, claim.file, reasons, job_id=job_id, now=time.time()
                    )
                )
                await anyio.to_thread.run_sync(self.inbox.forget, claim.token)
                break
            except OSError as failure:
                log.error("a rejected job could not be put aside; trying again", name=name, error=str(failure))
                await anyio.sleep(SPACE_CHECK_S)
        log.warning("rejected", name=name, see=str(error), reasons=[f"{r.path}: {r.message}" for r in reasons[:5]], more=max(0, len(reasons) - 5))

    async def _on_cancel_file(self, name: str) -> None:
        job_id = name[: -len(".cancel")]
        line = self._lines.get(fold_job_id(job_id)) if job_id else None
        if line:
            for job in line:
                log.info("cancelling", job=job.job_id)
                self.runs[job.token].cancel()
        else:
            # Its job may be settling, or being taken, at this moment.
            since = self._unknown_cancels.setdefault(name, time.monotonic())
            if time.monotonic() - since < self.settings.inbox.settle_seconds + self.settings.inbox.grace_seconds:
                return
            log.warning("there is no such job to cancel", name=inbox.printable(name))
        self._unknown_cancels.pop(name, None)
        await anyio.to_thread.run_sync(self.inbox.remove_cancel, name)

    # --- jobs -----------------------------------------------------------------------------------------------

    def _live_ids(self) -> dict[str, str]:
        return {folded: line[0].job_id for folded, line in list(self._lines.items()) if line}

    def _enqueue(self, job: LiveJob) -> None:
        line = self._lines.setdefault(fold_job_id(job.job_id), deque())
        line.append(job)
        self.runs[job.token] = JobRun(job, self)
        if len(line) == 1:
            self._start_run(job)
        else:
            job.note = "waiting for an earlier job of the same job_id"

    def _start_run(self, job: LiveJob) -> None:
        assert self._tasks is not None
        job.note = None
        self._tasks.start_soon(self._run_job, self.runs[job.token], name=f"job {job.token}")

    async def _run_job(self, run: JobRun) -> None:
        job = run.job
        try:
            await run.run()
        except OutboxConflict as error:
            reasons = (Reason("$.job_id", "outbox_conflict", str(error)),)
            claim = Claim(job.token, self.inbox.claimed / job.token / job.name, job.received_at)
            await self._reject(claim, reasons, job.job_id)
            job.closed = True
            await anyio.to_thread.run_sync(files.remove_tree, job.folder)
        del self.runs[job.token]
        folded = fold_job_id(job.job_id)
        line = self._lines[folded]
        line.popleft()
        if line:
            self._start_run(line[0])
        else:
            del self._lines[folded]
        self._look.set()

    def job_finished(self, job: LiveJob) -> None:
        """Its manifest is out."""
        self.recent.appendleft(
            {"job_id": job.job_id, "status": job.status(), "ended_at": job.ended_at, "counts": job.counts()}
        )
        self._status.wake()

    def job_workers(self, job: LiveJob) -> list[dict[str, Any]]:
        """``workers`` of a job's progress.json: those that speak it now."""
        return [
            {name: row[name] for name in ("worker", "gpu", "activity", "speaker", "spoken")}
            for row in self.pool.worker_rows()
            if row["job"] == job.job_id
        ]

    def log_assignment(self, job: LiveJob) -> None:
        """Called before the core gets the job: what it will speak, and with how many workers."""
        log.info(
            "[Main] Speakers: %d" % len(job.job.speakers), job=job.job_id, workers=self._worker_count, waiting=len(job.waiting())
        )

    # --- PoolHost -------------------------------------------------------------------------------------------

    def speak_message(self, ticket: int, token: str, position: int) -> tuple[Message, Path]:
        job = self.runs[token].job
        live = job.segments[position]
        segment, parameters, output = live.segment, job.job.parameters, job.job.output
        file = job.segments_folder / f".{ticket}{job.suffix}"
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
            "output": {"path": str(file), "sample_rate": output.sample_rate, "subtype": output.subtype},
        }
        return message, file

    async def record_try(self, token: str, position: int, tries: int) -> None:
        job = self.runs[token].job
        job.segments[position].tries = tries
        job.segments[position].alone = True
        await self.recorder.record(job, {"t": "try", "p": position, "tries": tries})

    def began(self, token: str, position: int, worker: int) -> None:
        run = self.runs[token]
        live = run.job.segments[position]
        live.begun = True
        live.attempts += 1
        self.recorder.note(run.job, {"t": "began", "p": position})
        run.began()
        self._status.wake()

    def given_back(self, token: str, position: int) -> None:
        run = self.runs.get(token)
        if run is not None and run.job.segments[position].status == "waiting":
            run.job.segments[position].give_back()
            self.recorder.note(run.job, {"t": "back", "p": position})
            run.changed()

    def suspected(self, token: str, position: int) -> None:
        run = self.runs[token]
        live = run.job.segments[position]
        live.begun, live.suspect, live.alone = False, True, False
        log.warning("its worker died while it was spoken; it is spoken again alone", job=run.job.job_id, index=live.segment.index)
        self.recorder.note(run.job, {"t": "suspect", "p": position}, durable=True)

    def delivered(self, ticket: Ticket, message: Message, device: str) -> None:
        run = self.runs[ticket.job]
        live = run.job.segments[ticket.position]
        self.recorder.deliver(
            Delivery(
                job=run.job,
                position=ticket.position,
                file=ticket.file,
                frames=_number(message["frames"]),
                sample_rate=_number(message.get("sample_rate", 0)),
                seed=_number(message.get("seed", live.seed or 0)),
                truncated=bool(message.get("truncated", False)),
                generate_s=round(float(message.get("generate_s", 0.0)), 4),
                worker=ticket.worker,
                device=device,
                attempts=max(live.attempts, 1),
                key=live.key if run.job.engine == self.pool.identity else None,
                seeds=tuple(_number(seed) for seed in message.get("seeds", ())),
                flaws=tuple(str(flaw)[:200] for flaw in message.get("flaws", ())),
            )
        )

    def segment_ended(self, ended: events.SegmentEnded) -> None:
        run = self.runs[ended.job]
        live = run.job.segments[ended.position]
        if ended.outcome != "spoken":
            live.status = ended.outcome
            live.begun = live.alone = False
            live.attempts = max(live.attempts, ended.attempts)
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
                log.error("segment has failed", job=run.job.job_id, index=live.segment.index, code=ended.code, message=ended.message)
        run.changed()
        self._status.wake()

    def job_ended(self, token: str) -> None:
        self.runs[token].end()

    def engine_known(self, identity: EngineIdentity) -> None:
        self.engine_is_known.set()
        self._status.wake()

    def engine_trouble(self) -> str | None:
        """Why no worker has an engine yet, as far as they have said."""
        errors = [view.error for view in self.core.worker_views() if view.error]
        return errors[0] if errors else None

    def _on_stored(self, delivery: Delivery) -> None:
        run = self.runs[delivery.job.token]
        if delivery.cached:
            run.changed()
            return
        run.stored(delivery.position)
        self.audio_s += delivery.frames / delivery.sample_rate if delivery.sample_rate else 0.0
        self.pool.apply(events.SegmentStored(anyio.current_time(), delivery.job.token, delivery.position))

    def _on_spoilt(self, spoilt: Spoilt) -> None:
        delivery = spoilt.delivery
        live = delivery.job.segments[delivery.position]
        live.begun = live.cached = False
        log.warning("a worker's file is not what it said", job=delivery.job.job_id, worker=delivery.worker, reason=spoilt.message)
        if not delivery.cached:
            self.pool.apply(
                events.SegmentSpoilt(
                    anyio.current_time(), delivery.job.token, delivery.position, spoilt.code, spoilt.message
                )
            )
        self.runs[delivery.job.token].changed()

    def disk_full(self, reason: str) -> None:
        """Stop giving out work until there is room again."""
        if self._paused or self.state == "draining":
            return
        self._paused = True
        log.error("no more work is given out until the disk takes it", reason=reason)
        self.warnings["disk"] = f"paused: {reason}"
        self.pool.apply(events.DispatchPaused(anyio.current_time()))
        assert self._tasks is not None
        self._tasks.start_soon(self._resume_when_there_is_room)

    async def _resume_when_there_is_room(self) -> None:
        while True:
            await anyio.sleep(SPACE_CHECK_S)
            if await anyio.to_thread.run_sync(self._has_room):
                break
        self._paused = False
        self.warnings.pop("disk", None)
        if self.state == "running":
            log.info("the disk takes files again; going on")
            self.pool.apply(events.DispatchResumed(anyio.current_time()))

    def _has_room(self) -> bool:
        state = self.settings.paths.state
        try:
            if shutil.disk_usage(state).free < SPACE_NEEDED:
                return False
            probe = state / "probe"
            files.write_atomically(probe, b"\0" * 65536)
            files.remove(probe)
        except OSError:
            return False
        return True

    # --- workers and their plan -----------------------------------------------------------------------------

    def _make_transport(self, worker: int, gpu: int | None) -> tuple[Transport, str]:
        settings = self.settings
        command = worker_command(
            settings.worker.python,
            [str(folder) for folder in settings.worker.path],
            os.environ,
            gpu=gpu is not None,
            threads=self._threads(),
        )
        return WorkerProcess(command), "cpu" if gpu is None else f"cuda:{gpu}"

    def _threads(self) -> int:
        cores = len(os.sched_getaffinity(0))
        return self.settings.worker.threads or max(1, cores // max(1, self._worker_count))

    def _hello(self, worker: int, device: str) -> Message:
        settings = self.settings
        engine = settings.engine
        checkpoint = str(Path(engine.checkpoint).expanduser().absolute()) if engine.checkpoint else ""
        return {
            "type": "hello",
            "protocol": PROTOCOL_VERSION,
            "worker": worker,
            "engine": {
                "name": engine.name,
                "checkpoint": checkpoint,
                "precision": engine.precision,
                "slots": engine.slots,
                "reproducible": engine.reproducible,
                "retries": engine.retries,
                "options": engine.options,
            },
            "device": device,
            "threads": self._threads(),
            "memory_bytes": 0 if device == "cpu" else int(settings.pool.model_memory_gb * BYTES_PER_GB),
            "cache": str(settings.paths.state / "cache"),
            "beat_seconds": settings.worker.beat_seconds,
        }

    async def _compute_plan(self) -> Plan:
        settings = self.settings
        found = [] if settings.engine.name in ("draft", "silence") else await anyio.to_thread.run_sync(gpus.list_gpus, self.pool.pids)
        return plan_workers(
            found,
            mode=settings.pool.mode,
            model_memory_gb=settings.pool.model_memory_gb,
            workers_override=settings.pool.workers,
            per_gpu=settings.pool.per_gpu,
        )

    async def _make_plan(self, *, first: bool = False, restart: bool = False) -> None:
        plan = await self._compute_plan()
        self._plan = plan
        self._worker_count = len(plan.workers)
        for note in plan.notes:
            log.info(note)
        for warning in plan.warnings:
            log.warning(warning)
        if first:
            log.info(f"[Main] Launching {len(plan.workers)} workers...")
        self.pool.apply(events.WorkersPlanned(anyio.current_time(), plan.workers, restart))

    async def _replan(self) -> None:
        """Follow the GPUs' memory; a change counts when two readings in a row agree on it."""
        candidate: Plan | None = None
        while True:
            await anyio.sleep(self.settings.pool.replan_s or 60.0)
            if not self.settings.pool.replan_s or self.state != "running":
                continue
            plan = await self._compute_plan()
            if self._plan is None or plan.workers == self._plan.workers:
                candidate = None
            elif candidate is not None and candidate.workers == plan.workers:
                candidate = None
                log.info("the GPUs' memory has changed; the pool follows", workers=len(plan.workers))
                await self._make_plan()
            else:
                candidate = plan

    async def _reconfigure(self) -> None:
        self._notifier.reloading()
        try:
            settings = await anyio.to_thread.run_sync(self._reload)
        except ConfigError as error:
            log.error("the new configuration is wrong; the old one stays", problems=[str(p) for p in error.problems])
            self._notifier.ready(self._status_line())
            return
        if settings.paths != self.settings.paths:
            log.warning("paths can't change while the daemon runs; restart it for that")
            settings = _with_paths(settings, self.settings)
        workers_change = (settings.engine, settings.worker) != (self.settings.engine, self.settings.worker)
        self.settings = settings
        self.inbox.reload(settings)
        self.pool.settings = settings
        self.core.set_policy(_policy(settings))
        configure_logging(settings.log.level, settings.log.format)
        log.info("the configuration has been read again", workers="all anew" if workers_change else "as they are")
        await self._make_plan(restart=workers_change)
        self._look.set()
        self._notifier.ready(self._status_line())

    # --- signs of life --------------------------------------------------------------------------------------

    def _status_line(self) -> str:
        return f"{len(self.runs)} jobs, {self.pool.spoken} segments spoken"

    async def _keep_watchdog(self) -> None:
        interval = watchdog_interval()
        while True:
            await anyio.sleep(min(interval or 10.0, 10.0))
            if interval:
                self._notifier.watchdog()
            self._notifier.status(self._status_line())

    @property
    def started_at(self) -> float:
        return self._started_at

    @property
    def paused(self) -> bool:
        return self._paused


async def serve(settings: Settings, reload: Callable[[], Settings]) -> int:
    """Run the daemon until it is told to stop; the exit status. ``reload`` gives fresh Settings, for SIGHUP, or raises ConfigError.

    Raises:
        AlreadyRunning: another daemon holds the state folder.
        OSError: a folder can't be made or written to.
    """
    paths = settings.paths
    files.make_folder(paths.state / "jobs")
    with _lock(paths.state / "lock"):
        files.make_folder(paths.state / "cache")
        for folder in (paths.inbox, paths.outbox, paths.rejected, paths.status.parent):
            # A share that is away must not keep the daemon from starting; it is waited for.
            with suppress(OSError):
                files.make_folder(folder)
        await Daemon(settings, reload).run()
    return 0


def _policy(settings: Settings) -> PoolPolicy:
    pool, worker = settings.pool, settings.worker
    return PoolPolicy(
        lookahead=pool.lookahead,
        tries=pool.tries,
        idle_release_s=pool.idle_release_min * 60,
        backoff_min_s=pool.backoff_min_s,
        backoff_max_s=pool.backoff_max_s,
        breaker_crashes=pool.breaker_crashes,
        breaker_window_s=pool.breaker_window_s,
        breaker_open_s=pool.breaker_open_s,
        load_timeout_s=worker.load_timeout_s,
        beat_timeout_s=worker.beat_timeout_s,
        segment_timeout_s=worker.segment_timeout_s,
    )


def _with_paths(settings: Settings, old: Settings) -> Settings:
    return dataclasses.replace(settings, paths=old.paths)


def _host_id(state: Path) -> str:
    """This daemon's name towards its inbox: made once, kept with the state."""
    path = state / "host_id"
    try:
        kept = path.read_text("ascii").strip()
        if kept.isalnum():
            return kept
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    made = os.urandom(8).hex()
    files.write_atomically(path, made.encode("ascii") + b"\n")
    return made


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the state folder: one daemon at a time, freed by the kernel however this one ends.

    Raises:
        AlreadyRunning: another one holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise AlreadyRunning(
                f"another daemon (pid {pid}) works on {path.parent}; stop it, or give this one a paths.state of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value

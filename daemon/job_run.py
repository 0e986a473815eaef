"""The life of one accepted job in the daemon, from its place in the queue to its manifest.

    wait for the engine -> keys -> reuse what is known -> hand the rest to the core
    -> publish what gets stored, write progress -> results.json, manifest.json -> remove the traces

Each job has a task of its own, so that an outbox that hangs or is gone holds up nobody else. Every step may find the
outbox away; it is then tried again, and the job's ``note`` says what it waits for.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import structlog

from daemon import files, outbox, ownership
from daemon.config import Settings
from daemon.core import events
from daemon.core.footprint import result_bytes
from daemon.core.job import JobRejected
from daemon.ended_jobs import EndedJob, EndedJobs
from daemon.hooks import Hooks
from daemon.inbox import Inbox
from daemon.intake import give_keys, renew
from daemon.live_job import EngineIdentity, LiveJob
from daemon.mounts import Mounts
from daemon.narration import Narration
from daemon.outbox import OutboxConflict
from daemon.output_files import write_results
from daemon.ownership import Hold, Neighbours, Owned, TakenOver
from daemon.pool import Pool
from daemon.recorder import Recorder
from daemon.redo import earlier_manifest, keep_earlier, look_back, put_aside
from daemon.report import job_report
from daemon.reuse import Published, ReuseIndex
from daemon.store import Delivery

log = structlog.get_logger("dubd.job")

MOST_OF_AN_ERROR = 300
"""Characters of an unforeseen error that the manifest tells."""

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
PUBLISH_BATCH = 256

T = TypeVar("T")


class JobFailed(Exception):
    """The whole job fails, for this reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stumbled(Exception):
    """A job that the daemon could not bring to any end."""


class JobHost(Protocol):
    """What a job's run needs of the rest of the daemon."""

    settings: Settings
    inbox: Inbox
    pool: Pool
    recorder: Recorder
    reuse: ReuseIndex
    ended: EndedJobs
    hooks: Hooks
    mounts: Mounts
    neighbours: Neighbours
    engine_is_known: anyio.Event
    outbox_threads: anyio.CapacityLimiter
    """Threads that may wait for the outbox at one time."""

    def engine_trouble(self) -> str | None:
        """Why no worker has an engine yet, as far as they have said."""

    def arrive(self, job: LiveJob) -> Narration:
        """Give the job to the core; who tells its story."""

    def workers_of(self, job: LiveJob) -> list[dict[str, Any]]:
        """``workers`` of the job's progress.json."""

    def noted(self) -> None:
        """A job's note has changed: people should see it."""

    def finished(self, job: LiveJob) -> None:
        """The job's manifest is out."""


class JobRun:
    """Runs one job. ``changed``, ``began``, ``stored`` and ``end`` tell it what has become of its segments."""

    def __init__(self, job: LiveJob, jobs: JobHost) -> None:
        self.job = job
        self._jobs = jobs
        self._recorder = jobs.recorder
        self._reuse = jobs.reuse
        self._changed = anyio.Event()
        self._all_ended = False
        self._in_core = False
        self._narration: Narration | None = None
        self._cost_here = 0.0
        self._dispatched_at: float | None = None
        self._last_progress = 0.0
        self._folder = Path()
        self._hold = Hold(job.job_id, job.token, jobs.neighbours)
        self._outbox: tuple[int, int] | None = None
        """Which folder the outbox was when the job's folder was made in it (device and inode)."""
        self._check_stored = False
        self._takes = 0
        """How often that had to be done anew."""
        self._reported = False
        self.failure: tuple[str, str] | None = None
        """The code and the message with which the whole job fails."""
        self.result_bytes = result_bytes(job.job)
        """What the whole job will write, about."""

    # --- what it is told ---------------------------------------------------------------------------

    def changed(self) -> None:
        self._changed.set()

    def began(self, worker: int, speaker: str) -> None:
        if self._dispatched_at is None:
            self._dispatched_at = time.monotonic()
        self._narrate(lambda narration: narration.began(worker, speaker))
        self._changed.set()

    def stored(self, position: int, worker: int) -> None:
        self._cost_here += self.job.segments[position].cost
        self._narrate(lambda narration: narration.spoken(worker, self.job.segments[position].segment.speaker))
        self._changed.set()

    def failed(self, position: int, worker: int) -> None:
        self._narrate(lambda narration: narration.failed(worker, self.job.segments[position].segment.speaker))

    def _narrate(self, tell: Callable[[Narration], None]) -> None:
        """What people follow in the log must not cost the job anything."""
        if self._narration is not None:
            try:
                tell(self._narration)
            except Exception:
                log.exception("a line of the job's story could not be told", job=self.job.job_id)

    def end(self) -> None:
        self._all_ended = True
        self._changed.set()

    def cancel(self) -> None:
        """Cancel what has not been spoken."""
        if not self.job.cancelled:
            self.job.cancelled = True
            self._recorder.note(self.job, {"t": "cancel"}, durable=True)
            if self._in_core:
                self._jobs.pool.apply(events.JobCancelled(anyio.current_time(), self.job.token))
            self._changed.set()

    def _note(self, note: str | None) -> None:
        """What the job waits for, for people to see at once."""
        if self.job.note != note:
            self.job.note = note
            self._jobs.noted()

    @property
    def finishing(self) -> bool:
        """Every segment has ended; what is left takes files alone."""
        return self._all_ended

    def outstanding_bytes(self) -> float:
        """What it will still write, about."""
        return self.job.segments.bytes_waiting

    def eta_s(self) -> float | None:
        """Seconds until the last segment, if it goes on as since the first one began."""
        if self._dispatched_at is None or not self._cost_here:
            return None
        return self.job.segments.cost_waiting / self._cost_here * (time.monotonic() - self._dispatched_at)

    # --- the road -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole road. A mistake of the daemon's own on it fails this job, and nothing else.

        Raises:
            OutboxConflict: the job's folder can't be had.
            JobRejected: it is a redo of what can't be redone.
            Stumbled: the job could not even be failed in order.
        """
        try:
            await self._run()
        except (OutboxConflict, JobRejected):
            raise
        except Exception as error:
            log.exception("the daemon stumbled over a job; it fails, the others go on", job=self.job.job_id)
            code, message = getattr(error, "code", "internal_error"), str(error)
            if not isinstance(error, JobFailed):
                told = f"{type(error).__name__}: {error}"[:MOST_OF_AN_ERROR]
                message = f"the daemon stumbled over this job ({told}); its log has the whole story"
            await self._end_as_failed(code, message)

    async def _end_as_failed(self, code: str, message: str) -> None:
        """Put in order what still can be: what was spoken is published, the rest fails for this reason, and the
        manifest says so."""
        self.failure = code, message
        try:
            try:
                await self._put_in_order()
            except TakenOver:
                await self._give_way()
            await self._insist("giving the folder free", self.release)
            await self._remove_traces()
        except (OutboxConflict, JobRejected, Stumbled):
            raise
        except Exception as error:
            raise Stumbled(message) from error

    async def _put_in_order(self) -> None:
        if self.job.ended:
            return
        if self._outbox is None:
            await self._have_folder()
        for step in (self._fail_what_waits, self._publish_the_rest, self._finish):
            try:
                await step()
            except (OutboxConflict, JobRejected, TakenOver):
                raise
            except Exception:
                log.exception("a job that has failed can't be put in order", job=self.job.job_id)
        if not self.job.ended:
            await self._finish(plainly=True)

    async def _have_folder(self) -> None:
        """Take the folder in the outbox, if that can be done at all.

        Raises:
            OutboxConflict, TakenOver, Stumbled: it can't.
        """
        try:
            self._folder = await self._insist("taking the job's folder in the outbox", self._take)
            self.job.started_at = self.job.started_at or self._now()
        except (OutboxConflict, JobRejected, TakenOver):
            raise
        except Exception as error:
            log.exception("a job that has failed has no folder", job=self.job.job_id)
            raise Stumbled(f"no folder could be made for it: {error!r}") from error

    async def _fail_what_waits(self) -> None:
        assert self.failure is not None
        if self._in_core:
            # What is out at workers comes back first.
            self._jobs.pool.apply(events.JobCancelled(anyio.current_time(), self.job.token))
            while not self._all_ended:
                await self._wait()
            return
        self._all_ended = True
        for position, live in enumerate(self.job.segments):
            if live.status == "waiting":
                live.status, (live.code, live.message) = "failed", self.failure
                record = {"t": "failed", "p": position, "attempts": live.attempts, "code": live.code}
                self._recorder.note(self.job, {**record, "message": live.message})

    async def _publish_the_rest(self) -> None:
        while self.job.has_unpublished:
            await self._insist("publishing", self._publish)

    async def _run(self) -> None:
        overtaken = False
        try:
            await self._go()
        except* TakenOver:  # from a group of tasks, too
            overtaken = True
        if overtaken:
            await self._give_way()
        await self._insist("giving the folder free", self.release)
        await self._remove_traces()

    async def _go(self) -> None:
        job = self.job
        if not job.ended:
            if job.job.redo is not None and not job.taken:
                await self._insist("taking the job's folder in the outbox", partial(self._take, only_own=True))
                await self._insist("reading what is redone", lambda: self._in_outbox(self._read_what_is_redone))
                self.result_bytes = result_bytes(job.job)
            self._folder = await self._insist("taking the job's folder in the outbox", self._take)
            if not job.taken:
                job.taken, job.started_at = True, max(time.time(), job.received_at)
                await self._recorder.record(job, {"t": "taken", "at": job.started_at})
            await self._work()
            await self._finish()

    async def _give_way(self) -> None:
        """Another daemon owns the folder. The job ends here, as if it had done so before that one began its own."""
        job = self.job
        log.warning("another daemon works on this job_id; what is left of this job is cancelled", job=job.job_id)
        self.cancel()
        await self._cancel_what_waits()
        self._all_ended = True
        job.started_at = job.started_at or self._now()
        job.ended_at = self._now()
        manifest = self._manifest()

        def write() -> Path | None:
            self._check_mounted()
            folder = self._jobs.settings.paths.outbox / job.job_id
            return outbox.write_overtaken(folder, manifest) if folder.is_dir() else None

        path = await self._insist("writing the manifest", lambda: self._in_outbox(write))
        await self._end(path)

    async def _cancel_what_waits(self) -> None:
        while self._in_core and not self._all_ended:
            await self._wait()
        for position, live in enumerate(self.job.segments):
            if live.status == "waiting":
                live.status = "cancelled"
                self._recorder.note(self.job, {"t": "cancelled", "p": position, "attempts": live.attempts})

    async def release(self) -> None:
        await self._in_outbox(self._hold.release)

    async def _work(self) -> None:
        """All that lies between the folder in the outbox and the manifest."""
        await self._start(await self._know_engine())
        await self._publish_until_all_ended()

    def _read_what_is_redone(self) -> None:
        """Runs in a thread, before anything is changed in the outbox."""
        mounts, paths = self._jobs.mounts, self._jobs.settings.paths
        try:
            renew(self.job, self._jobs.settings)
            earlier_manifest(paths.outbox / self.job.job_id, self.job)
        except JobRejected:
            # With a share, all that is on it is gone: that is no fault of the job's.
            mounts.check(paths.inbox)
            mounts.check(paths.outbox)
            raise

    async def _take(self, *, only_own: bool = False) -> Path:
        """Own the job's folder, which another daemon may work in for now, and unless ``only_own`` make it ready."""
        folder = self._jobs.settings.paths.outbox

        def take() -> tuple[Path, tuple[int, int] | None] | int | Owned:
            self._check_mounted()
            try:
                # Before the number is reckoned: whoever owns the folder may be moving manifests.
                owned = outbox.own(folder, self.job, self._hold)
            except Owned as another:
                return another
            if only_own:
                return owned, self._outbox
            number = outbox.number_aside(folder / self.job.job_id, self.job)
            if number is not None and number != self.job.aside:
                return number  # which is to be remembered before the manifest is moved
            taken = outbox.take(folder, self.job, self._hold)
            identity = _identity(folder)
            # It may have gone away meanwhile, and what was made lies where nobody will see it.
            self._check_mounted()
            return taken, identity

        waited = False
        while not isinstance(done := await self._in_outbox(take), tuple):
            if isinstance(done, int):
                self.job.aside = done
                await self._recorder.record(self.job, {"t": "aside", "n": done})
                continue
            if self.job.cancelled:
                raise TakenOver(str(done)) from done
            waited = True
            self._note(str(done))
            with anyio.move_on_after(ownership.LOOK_S):
                await self._changed.wait()
            self._changed = anyio.Event()
        if waited:
            self._note(None)
        taken, self._outbox = done
        return taken

    async def _know_engine(self) -> EngineIdentity | None:
        """The engine, once a worker has said which one it has; None when the job is cancelled before."""
        while self._jobs.pool.identity is None and not self.job.cancelled:
            trouble = self._jobs.engine_trouble()
            self._note(f"waiting for the engine: {trouble}" if trouble else "waiting for the engine to load")
            await self._write_progress(force=True)
            with anyio.move_on_after(1.0):
                await self._jobs.engine_is_known.wait()
        self._note(None)
        return self._jobs.pool.identity

    async def _start(self, engine: EngineIdentity | None) -> None:
        job, jobs = self.job, self._jobs
        if job.job.redo is not None:
            await self._insist("looking back at the earlier takes", self._look_back)
        # What was finished before a restart is published first: should a file be missing, it is spoken again.
        self._check_stored = True
        await self._publish_the_rest()
        self._check_stored = False
        if job.lost is not None:
            raise JobFailed("reference_lost", job.lost)
        known: Mapping[str, Published] = {}
        if engine is not None:
            workers = jobs.workers_of(job)
            self._last_progress = time.monotonic()
            known = await self._in_outbox(lambda: self._give_keys(engine, workers))
            self._note_ignored(engine.ignored)
        if job.cancelled:
            await self._cancel_what_waits()
            await self._write_progress(force=True)
        await self._reuse_known(known)
        self._in_core = True
        self._narration = jobs.arrive(job)
        if job.cancelled:
            jobs.pool.apply(events.JobCancelled(anyio.current_time(), job.token))

    def _give_keys(self, engine: EngineIdentity, workers: list[dict[str, Any]]) -> dict[str, Published]:
        """Give every segment its key; what is known of them. Tells that the job has begun, too. Runs in a thread."""
        give_keys(self.job, engine, self._jobs.settings.engine.options)
        self._write_progress_file(self._progress(workers))
        waiting = (live for live in self.job.segments if live.status == "waiting" and not live.again)
        return self._reuse.look_up({live.key for live in waiting if live.key})

    async def _look_back(self) -> None:
        def look() -> None:
            self._hold.check()
            look_back(self._folder, self.job)

        try:
            await self._in_outbox(look)
        except JobRejected:
            give_back = partial(outbox.give_back, self._folder, self.job)
            await self._insist("giving back the earlier manifest", lambda: self._in_outbox(give_back))
            raise

    def _note_ignored(self, names: tuple[str, ...]) -> None:
        engine = self._jobs.settings.engine.name
        for name in names:
            line = f"$.defaults.{name}: the {engine} engine does not use it"
            if line not in self.job.ignored:
                self.job.ignored.append(line)

    async def _reuse_known(self, known: Mapping[str, Published]) -> None:
        """Copy what was spoken before, by content; a file that has changed since is spoken again."""
        job = self.job
        pending = 0
        for position, live in enumerate(job.segments):
            published = known.get(live.key) if live.key and live.status == "waiting" and not live.again else None
            if published is None:
                continue
            copy = partial(anyio.to_thread.run_sync, _copy_known, job, position, published)
            delivery = await self._insist("reusing a known segment", copy)
            if delivery is not None:
                self._recorder.deliver(delivery)
                pending += 1
        while any(live.status == "waiting" and live.cached for live in job.segments):
            await self._wait()
        if pending:
            log.info("reusing known segments", job=job.job_id, segments=pending)

    async def _publish_until_all_ended(self) -> None:
        while True:
            published = await self._insist("publishing", self._publish)
            if self._all_ended and not published and not self.job.has_unpublished:
                return
            await self._write_progress()
            if published and not self._reported and not self._all_ended:
                await self._in_outbox(self._report)
            if not published:
                await self._wait()

    async def _wait(self) -> None:
        """Until something has changed, or progress that was held back is due."""
        pause = self._jobs.settings.service.progress_seconds
        with anyio.move_on_after(pause if self._behind else None):
            await self._changed.wait()
        self._changed = anyio.Event()

    async def _publish(self) -> int:
        positions = [position for position, _ in zip(self.job.unpublished(), range(PUBLISH_BATCH), strict=False)]
        if positions:
            check = self._check_stored
            lost = await self._in_folder(
                lambda: _publish_batch(self._folder, self._hold, self.job, positions, self._reuse, check)
            )
            for position in lost:
                self._lose(position)
        return len(positions)

    def _lose(self, position: int) -> None:
        """A finished file is gone, which only a hand in our folders or a damaged disk can have done."""
        live = self.job.segments[position]
        log.error("a finished segment's file is gone", job=self.job.job_id, index=live.segment.index)
        live.status, live.sha256, live.frames, live.cached = "waiting", None, 0, False
        if self._in_core:
            # The core has ended it; it is too late to speak it again in this run of the job.
            live.status, live.code = "failed", "file_lost"
            live.message = "its finished file has disappeared; submit the job again"
            self._recorder.note(
                self.job,
                {"t": "failed", "p": position, "attempts": live.attempts, "code": live.code, "message": live.message},
            )

    async def _finish(self, *, plainly: bool = False) -> None:
        """The last files. ``plainly``: the manifest alone, with nothing in it but what is sure."""
        job = self.job
        if plainly:
            for live in job.segments:
                live.history, live.finishing, live.seeds, live.flaws = (), None, (), ()
            job.ended_at = job.ended_at or self._now()
            await self._insist_on_all(("writing the manifest", self._write_manifest))
        else:
            await self._insist_on_all(
                ("looking at what was published", self._look_for_lost),
                ("keeping what was not redone", lambda: keep_earlier(self._folder, job)),
                ("writing the results", self._write_results),
                ("writing the report", self._write_last_look),
                ("writing the manifest", self._write_manifest),
            )
        await self._end(self._folder / "manifest.json")

    async def _end(self, manifest: Path | None) -> None:
        job = self.job
        if self._jobs.settings.hooks.on_done and manifest is not None:
            await self._insist("remembering its hook", partial(self._owe_hook, manifest))
        assert job.ended_at is not None
        job.ended = True
        await self._recorder.record(job, {"t": "end", "at": job.ended_at})
        self._tell_end()
        self._jobs.finished(job)

    async def _insist_on_all(self, *steps: tuple[str, Callable[[], None]]) -> None:
        """Do the steps in a thread, with the job's folder there, one after the other and each until it is done; all of
        them again when the folder had to be made anew."""
        done, takes = 0, self._takes

        def work(insisted_on: str) -> None:
            nonlocal done, takes
            if takes != self._takes:
                done, takes = 0, self._takes
            while done < len(steps):
                # A daemon that has stopped, while a share hung, leaves the rest to its next life.
                anyio.from_thread.check_cancelled()
                what, step = steps[done]
                try:
                    step()
                except OSError:
                    if what == insisted_on:
                        raise
                    return  # it is insisted on next, under its own name
                done += 1

        while done < len(steps):
            what = steps[done][0]
            await self._insist(what, partial(self._in_folder, partial(work, what)))

    async def _in_outbox(self, step: Callable[[], T]) -> T:
        """Do it in a thread. In a flood of short jobs such changes of threads were a third of the event loop's time, so
        what belongs together is one step."""
        return await anyio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self._jobs.outbox_threads)

    async def _in_folder(self, step: Callable[[], T]) -> T:
        """Do it in a thread, with the job's folder there. That is made anew if somebody has removed it: what was in it
        is told as lost at the end, the rest goes into the new one. An outbox that is another folder than it was is a
        share that is away, and waited for."""

        def step_if_there() -> tuple[T] | None:
            self._check_mounted()
            removed = not self._folder.is_dir() and _identity(self._folder.parent) == self._outbox
            return None if removed else (step(),)

        while (done := await self._in_outbox(step_if_there)) is None:
            self._folder = await self._take()
            self._takes += 1
        return done[0]

    # The last steps, which run in a thread when nothing else happens to the job any more.

    def _look_for_lost(self) -> None:
        """The manifest names no file that is not there. Killed after its manifest, the daemon tells the same end again:
        somebody may have read that and marked it."""
        names = set(os.listdir(self._folder))
        for position, live in enumerate(self.job.segments):
            if live.status == "ok" and outbox.published_name(self.job, position) not in names:
                anyio.from_thread.run_sync(self._lose, position)
        told = outbox.told_end(self._folder, self.job.received_at)
        self.job.ended_at = told or self._now()

    def _now(self) -> float:
        """As the manifest tells it: never before what came before, whatever somebody does to the clock."""
        return round(max(time.time(), self.job.started_at or 0.0, self.job.received_at), 3)

    def _write_results(self) -> None:
        self._hold.check()
        if self.job.job.results is not None:
            write_results(self._folder, self.job, self._jobs.settings.paths)

    def _write_last_look(self) -> None:
        """progress.json and the report as they stay. Nobody waits for them but people."""
        self._write_progress_file({**self._progress([]), "note": None})  # whatever it waits for now, it will not then
        self._report()

    def _write_manifest(self) -> None:
        manifest = self._manifest()
        assert self.job.ended_at is not None
        sha256 = outbox.write_manifest(self._folder, manifest, self._hold)
        self._jobs.ended.record(EndedJob(self._folder, self.job.job_id, sha256, self.job.ended_at))
        # One that was written as the share went away lies where nobody will see it, and is written again.
        self._check_mounted()

    async def _owe_hook(self, manifest: Path) -> None:
        job = self.job
        await anyio.to_thread.run_sync(
            self._jobs.hooks.owe, job.token, job.job_id, job.status(), manifest, abandon_on_cancel=True
        )

    def _tell_end(self) -> None:
        job = self.job
        assert job.ended_at is not None
        self._narrate(Narration.ended)
        counts = job.counts()
        line = f"[Main] All done! Generated {counts['ok']}/{counts['total']} segments"
        log.info(
            line,
            job=job.job_id,
            status=job.status(),
            **{name: counts[name] for name in ("cached", "failed", "skipped", "cancelled") if counts[name]},
            wall_s=round(job.ended_at - (job.started_at or job.ended_at), 2),
            audio_s=round(job.audio_s(), 2),
        )

    def _check_mounted(self) -> None:
        """Runs in a thread. Raises OSError: the share is away."""
        self._jobs.mounts.check(self._jobs.settings.paths.outbox)

    def _manifest(self) -> dict[str, Any]:
        return outbox.manifest(self.job)

    def _progress(self, workers: list[dict[str, Any]]) -> dict[str, Any]:
        return outbox.progress(self.job, workers, time.time(), self.eta_s())

    def _report(self) -> None:
        """Write the page for people, in a thread. Nobody waits for it but they: what goes wrong with it holds up
        nothing."""
        self._reported = True
        try:
            outbox.put(
                self._folder / job_report.FILE_NAME,
                job_report.build(self.job, time.time()),
                durable=self.job.ended_at is not None,
                holder=self._hold,
            )
        except Exception as error:  # noqa: BLE001 - a mistake in a page must not cost the night's work its manifest
            log.warning("the report could not be written", job=self.job.job_id, error=repr(error))

    async def _remove_traces(self) -> None:
        async def forget() -> None:
            await self._in_outbox(lambda: self._jobs.inbox.forget(self.job.token))

        await self._insist("removing the claimed file", forget)
        self.job.close()
        await self._insist("removing the job's folder", lambda: _in_thread(files.remove_tree, self.job.folder))

    # --- progress -------------------------------------------------------------------------------------------

    _behind = False

    async def _write_progress(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last_progress < self._jobs.settings.service.progress_seconds:
            self._behind = True
            return
        self._behind = False
        self._last_progress = now
        value = self._progress(self._jobs.workers_of(self.job))
        await self._in_outbox(lambda: self._write_progress_file(value))

    def _write_progress_file(self, value: dict[str, Any]) -> None:
        try:
            outbox.write_json(self._folder / "progress.json", value, durable=False, holder=self._hold)
        except OSError as error:
            # Only a look at how far it is; the next one may be written, and publishing will say what is wrong.
            log.debug("progress could not be written", job=self.job.job_id, error=str(error))

    async def _insist(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """Do a step that may find the outbox or inbox away, again and again until it is done."""
        pause = FIRST_RETRY_S
        while True:
            try:
                result = await step()
            except OSError as error:
                if self.job.note is None or not self.job.note.startswith(what):
                    log.error("failed; trying again", step=what, job=self.job.job_id, error=str(error))
                self._note(f"{what} failed ({_words(error)}); trying again")
                await anyio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY_S)
            else:
                if self.job.note is not None and self.job.note.startswith(what):
                    log.info("works again", step=what, job=self.job.job_id)
                    self._note(None)
                return result


async def _in_thread(step: Callable[[Path], None], path: Path) -> None:
    await anyio.to_thread.run_sync(step, path)


def _words(error: OSError) -> str:
    """What is wrong, and with which file where people can get at one: what is moved has its new place second."""
    place = error.filename2 or error.filename
    return (error.strerror or str(error)) + (f": {place}" if isinstance(place, str) else "")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _copy_known(job: LiveJob, position: int, published: Published) -> Delivery | None:
    """Copy a WAV that was published before into the job's folder; None when it is not what it was, or can't be copied
    at a second try either.

    Raises:
        OSError: the disk is full; call again.
    """
    target = job.segments_folder / f".reuse-{position}{job.suffix}"
    for last in (False, True):
        try:
            if not stat.S_ISREG(os.lstat(published.path).st_mode):
                return None
            if files.copy(published.path, target) != published.sha256:
                files.remove(target)
                return None
            break
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # speaking it would take no less room
            if last:
                return None
    live = job.segments[position]
    live.cached = True
    return Delivery(
        job=job,
        position=position,
        file=target,
        frames=published.frames,
        sample_rate=published.sample_rate,
        seed=published.seed,
        truncated=published.truncated,
        generate_s=0.0,
        worker=-1,
        device="",
        attempts=live.attempts,
        key=live.key,
        cached=True,
        finishing=published.finishing,
    )


def _publish_batch(
    folder: Path, hold: Hold, job: LiveJob, positions: list[int], reuse: ReuseIndex, check: bool
) -> list[int]:
    """Publish these; the positions whose file is neither in the state folder nor, whole, in the outbox. ``check``: an
    earlier run of the daemon has stored them, so that they may have been damaged since."""
    lost: list[int] = []
    fresh: list[Published] = []
    if job.job.redo is not None:
        hold.check()
        put_aside(folder, job, positions)
    published: list[int] = []
    for position in positions:
        stored = job.stored_file(position)
        if check and os.path.lexists(stored) and not files.holds(stored, job.segments[position].sha256):
            log.error("a stored segment is not what was stored; it is spoken again", job=job.job_id, file=str(stored))
            files.discard(stored)
        try:
            outbox.publish(folder, job, position, hold)
            published.append(position)
        except FileNotFoundError:
            if not files.holds(folder / outbox.published_name(job, position), job.segments[position].sha256):
                lost.append(position)
                continue
            job.segments[position].published = True
        live = job.segments[position]
        if live.key and live.sha256 and live.seed is not None and job.job.task == "speak":
            path = folder / outbox.published_name(job, position)
            fresh.append(
                Published(
                    *(live.key, path, live.sha256, live.frames, live.sample_rate, live.seed, live.truncated),
                    finishing=live.finishing,
                )
            )
    outbox.settle(folder, job, published)
    reuse.record(fresh, at=time.time())
    return lost

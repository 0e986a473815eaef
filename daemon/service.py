"""``dubd run``: the daemon put together.

One event loop in the main thread; the core answers every event there and then. Beside it run the workers' pipes (pool),
the one writer of journals (recorder), a task a job (job_run), the look at the inbox (reception), status.json, the plan,
the signals and the service manager's watchdog. A failure in any of these that is not foreseen ends the daemon, with its
story in the log: the next start goes on from what is on disk.
"""

from __future__ import annotations

import dataclasses
import fcntl
import gc
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

import daemon
from daemon import files, one_cpu
from daemon.backend import Backend
from daemon.config import ConfigError, Settings
from daemon.copied_references import clear_copies
from daemon.core import events
from daemon.core.core import Core
from daemon.core.plan import Plan
from daemon.core.supervision import PoolPolicy
from daemon.embeddings.live_job import open_job
from daemon.ended_jobs import EndedJobs
from daemon.inbox import Inbox
from daemon.intake import WHATEVER_SIZE, restore_references
from daemon.jobs import DAMAGED, Jobs, Signs
from daemon.live_job import LiveJob
from daemon.logs import configure_logging
from daemon.mounts import Mounts
from daemon.notify import Notifier, watchdog_interval
from daemon.pool import Pool
from daemon.reception import Reception
from daemon.retention import Retention
from daemon.reuse import ReuseIndex
from daemon.status import StatusWriter
from daemon.this_machine import ThisMachine

log = structlog.get_logger("dubd")

STATUS_TO_MANAGER_S = 10.0
DEFAULT_REPLAN_S = 60.0
CLEAR_COPIES_S = 3600.0
OLD_LEFTOVERS_S = 3600.0
HOOKS_GRACE_S = 5.0
"""How long hooks that run, or wait for their turn, may hold up the daemon's end."""

STOP_MARGIN_S = 20.0
"""For what is left to do when all has drained: notes in the journals, the workers' end, the last status."""

SHORTAGE_S = 30.0
"""How long a start waits for what the machine lacks until it is given up."""
SHORTAGE_PAUSE_S = 0.5

MOST_OF_A_NAME = 256

LOCK_TRIES = 25
LOCK_PAUSE_S = 0.02


class AlreadyRunning(Exception):
    """Another daemon works on the same state folder."""


class Daemon:
    """The daemon's parts; ``run`` is its life."""

    def __init__(
        self,
        settings: Settings,
        host_id: str,
        mounts: Mounts,
        reload: Callable[[], Settings],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        self.settings = settings
        self.started_at = time.time()
        self.state = "starting"
        self.host_id = host_id
        self.signs = Signs()
        self.reuse = ReuseIndex(settings.paths.state / "reuse.sqlite3")
        self.ended = EndedJobs(settings.paths.state / "ended.sqlite3")
        inbox = Inbox(settings, self.host_id)
        self.core = Core(_policy(settings), random.Random())
        self.jobs = Jobs(settings, inbox, self.reuse, self.ended, mounts, self.core, self.signs, tasks)
        self.backend = self._make_backend(settings)
        self.pool = Pool(self.core, self.jobs, self.backend.transport, self.backend.hello, settings)
        self.reception = Reception(settings, inbox, self.jobs, self.signs, tasks)
        self.retention = Retention(self.jobs, host_id)
        self.jobs.pool = self.pool
        self.jobs.reject = self.reception.reject
        self.jobs.on_room = self.jobs.room.on_room = self.reception.look_soon
        self._inbox = inbox
        self._reload = reload
        self._tasks = tasks
        self._plan: Plan | None = None
        self._notifier = Notifier()
        self._status = StatusWriter(self)
        self.signs.wake = self._status.wake

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then drained."""
        tasks = self._tasks
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            await tasks.start(self.pool.run)
            tasks.start_soon(self.jobs.recorder.run)
            tasks.start_soon(self.jobs.finisher.run)
            tasks.start_soon(self.jobs.hooks.run)
            tasks.start_soon(self.jobs.beat)
            tasks.start_soon(self.backend.run)
            await self._make_plan()
            line = f"[Main] Launching {len(self.core.worker_views())} workers..."
            log.info(line)
            told = await self._recover_until_told(signals) or await self._work_until_told(signals)
            log.info("stopping", signal=told.name)
            await self._stop(signals)
        # The receiver has put the defaults back. Whoever sends it once more must not turn an orderly end into a death.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.reuse.close()
        self.ended.close()

    async def _recover_until_told(self, signals: AsyncIterator[signal.Signals]) -> signal.Signals | None:
        """What an earlier life has left is taken up, which may take long or wait for what the machine lacks; the signal
        that broke it off. Told to read the configuration anew, it does so once all is taken up."""
        told: signal.Signals | None = None
        reload = False
        async with anyio.create_task_group() as recovering:

            async def listen() -> None:
                nonlocal told, reload
                async for number in signals:
                    if number != signal.SIGHUP:
                        told = signal.Signals(number)
                        recovering.cancel_scope.cancel()
                        return
                    reload = True

            recovering.start_soon(listen)
            recovering.start_soon(self._ask_for_time)
            await self._recover()
            await self.jobs.room.look()
            recovering.cancel_scope.cancel()
        if reload and told is None:
            await self._reconfigure()
        return told

    async def _work_until_told(self, signals: AsyncIterator[signal.Signals]) -> signal.Signals:
        """The signal that ends it."""
        self.state = "running"
        for part in (self.reception.watch, self.reception.run, self._status.run):
            self._tasks.start_soon(part)
        for upkeep in (
            self._replan,
            self._keep_watchdog,
            self._clear_copies,
            self.jobs.room.run,
            self.retention.run_state,
            self.retention.run_outbox,
        ):
            self._tasks.start_soon(upkeep)
        self._notifier.ready(self._status_line())
        if not (paths := self.settings.paths).output_roots and len(paths.allowed_roots) > 1:
            # Before 0.2 they were for both.
            log.info("paths.allowed_roots are for reading; folders that jobs may write to are paths.output_roots")
        log.info("ready", version=daemon.__version__, pid=os.getpid(), inbox=str(self.settings.paths.inbox))
        while (number := await anext(signals)) == signal.SIGHUP:
            await self._reconfigure()
        return signal.Signals(number)

    async def _stop(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Let what has begun end, give back the rest, and write down that this was no crash."""
        self.state = "draining"
        self.jobs.draining = True
        self.reception.open = False
        within = self.settings.service.drain_seconds + self.settings.worker.stop_grace_s + HOOKS_GRACE_S + STOP_MARGIN_S
        self._notifier.stopping("finishing the segments that have begun", within)
        self.pool.apply(events.DispatchPaused(anyio.current_time()))
        self.pool.recall_unbegun()
        self._status.wake()
        async with anyio.create_task_group() as waiting:
            waiting.cancel_scope.deadline = anyio.current_time() + self.settings.service.drain_seconds
            waiting.start_soon(self._cancel_on_interrupt, signals, waiting.cancel_scope)
            while self._still_busy():  # noqa: ASYNC110
                await anyio.sleep(0.02)
            waiting.cancel_scope.cancel()
        if self.pool.holding():
            log.warning("segments in flight are given up; the next start speaks them", number=self.pool.holding())
        self.pool.stop_listening()
        for run in self.jobs.runs.values():
            run.job.stop()
        with anyio.move_on_after(5):
            for run in list(self.jobs.runs.values()):
                await self.jobs.recorder.record(run.job, {"t": "stop"})
        self.pool.ask_to_exit()
        with anyio.move_on_after(min(1.0, self.settings.worker.stop_grace_s)):
            while self.pool.pids:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        with anyio.move_on_after(min(HOOKS_GRACE_S, self.settings.service.drain_seconds)):
            while not self.jobs.hooks.idle:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        if not self.jobs.hooks.idle:
            log.warning("hooks are cut off; the next start runs them again")
        self.state = "stopped"
        with anyio.move_on_after(2), suppress(OSError):
            await self._status.write()
        log.info("stopped")

    def _still_busy(self) -> bool:
        jobs = self.jobs
        return bool(self.pool.holding() or not jobs.finisher.idle or not jobs.recorder.idle or jobs.finishing())

    async def _cancel_on_interrupt(self, signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
        """A second Ctrl-C means now. A second SIGTERM says nothing new: whoever sends it can also kill."""
        async for number in signals:
            if number == signal.SIGINT:
                log.warning("not waiting any longer")
                scope.cancel()

    async def _recover(self) -> None:
        """Take up what an earlier life of this daemon has left."""
        state = self.settings.paths.state
        files.remove_leftovers(state / "jobs")
        for folder in sorted(path for path in (state / "jobs").iterdir() if not path.name.startswith(".")):
            try:
                job = await read_back(folder, state / DAMAGED, self.settings)
            except OSError as error:
                if error.errno in files.SHORTAGES:
                    raise
                log.error("what lies among the accepted jobs can't be put aside", path=str(folder), error=str(error))
                self.signs.warnings[f"left {folder.name}"] = f"{folder} can't be read back nor put aside: {error}"
                continue
            if job is None:
                continue
            log.info("taking up job", job=job.job_id, waiting=len(job.waiting()), total=len(job.segments))
            self.jobs.enqueue(job)

    # --- workers and their plan -----------------------------------------------------------------------------

    def _make_backend(self, settings: Settings) -> Backend:
        if settings.pool.backend == "ray":
            from daemon.cluster.backend import Cluster

            return Cluster(settings, self._follow)
        return ThisMachine(settings, lambda: self.pool.pids)

    def _follow(self, plan: Plan) -> None:
        """Nodes have come or gone: that counts at once."""
        if self._plan is not None and self.state in ("starting", "running"):
            if plan.workers != self._plan.workers:
                log.info("the cluster has changed; the pool follows", workers=len(plan.workers))
                self._adopt(plan)
            self._status.wake()

    async def _make_plan(self, *, restart: bool = False) -> None:
        self._adopt(await self.backend.plan(), restart=restart)

    def _adopt(self, plan: Plan, *, restart: bool = False) -> None:
        self._plan = plan
        for note in plan.notes:
            log.info(note)
        for warning in plan.warnings:
            log.warning(warning)
        self.pool.apply(events.WorkersPlanned(anyio.current_time(), plan.workers, restart))

    async def _replan(self) -> None:
        """Follow the GPUs' memory; a change counts when two readings in a row agree on it."""
        candidate: Plan | None = None
        while True:
            await anyio.sleep(self.settings.pool.replan_s or DEFAULT_REPLAN_S)
            if not self.settings.pool.replan_s or self.state != "running":
                continue
            plan = await self.backend.plan()
            if self._plan is None or plan.workers == self._plan.workers:
                candidate = None
            elif candidate is not None and candidate.workers == plan.workers:
                candidate = None
                log.info("the GPUs' memory has changed; the pool follows", workers=len(plan.workers))
                self._adopt(plan)
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
        if settings.pool.backend != self.settings.pool.backend:
            log.warning("pool.backend can't change while the daemon runs; restart it for that")
            settings = _with_backend(settings, self.settings)
        workers_change = (settings.engine, settings.worker) != (self.settings.engine, self.settings.worker)
        if settings.engine != self.settings.engine:
            self.jobs.engine_changed()
        self.settings = settings
        self._inbox.reload(settings)
        self.reception.settings = self.jobs.settings = self.pool.settings = self.backend.settings = settings
        self.jobs.hooks.settings = settings
        self.core.set_policy(_policy(settings))
        configure_logging(settings.log.level, settings.log.format)
        log.info("the configuration has been read again", workers="all anew" if workers_change else "as they are")
        await self._make_plan(restart=workers_change)
        self.reception.look_soon()
        self.retention.look_soon()
        self._notifier.ready(self._status_line())

    async def _clear_copies(self) -> None:
        while True:
            paths = self.settings.paths
            await anyio.to_thread.run_sync(clear_copies, paths.inbox, paths.outbox, abandon_on_cancel=True)
            await anyio.sleep(CLEAR_COPIES_S)

    # --- signs of life --------------------------------------------------------------------------------------

    def _status_line(self) -> str:
        return f"{len(self.jobs.runs)} jobs, {self.pool.spoken} segments spoken"

    async def _ask_for_time(self) -> None:
        """While what an earlier run has left is taken up, which may take longer than the manager would wait."""
        while True:
            self._notifier.starting(3 * STATUS_TO_MANAGER_S)
            await anyio.sleep(STATUS_TO_MANAGER_S)

    async def _keep_watchdog(self) -> None:
        """From the event loop itself: one that hangs is not to be kept alive."""
        interval = watchdog_interval()
        while True:
            if interval is not None:
                self._notifier.watchdog()
            self._notifier.status(self._status_line())
            await anyio.sleep(min(interval or STATUS_TO_MANAGER_S, STATUS_TO_MANAGER_S))


def _reopen(folder: Path, settings: Settings) -> LiveJob:
    """A job that an earlier run of the daemon has accepted, with what it suspects."""
    job = open_job(folder, WHATEVER_SIZE)
    try:
        job.suspect_what_was_out()
        restore_references(job, settings)
    except BaseException:
        job.close()
        raise
    return job


async def read_back(folder: Path, damaged: Path, settings: Settings) -> LiveJob | None:
    """An accepted job from its folder. One that is not whole is put aside into the folder ``damaged``, which gives
    None: it must not keep the others waiting, and is taken anew from its claimed file. What the machine lacks at the
    moment is no damage: that is waited for, as otherwise what is finished would be spoken again.

    Raises:
        OSError: the machine lacks it still (SHORTAGES); or the folder can't be put aside.
    """
    patience = anyio.current_time() + SHORTAGE_S
    while True:
        try:
            with files.shortage_as_os_error():
                return await anyio.to_thread.run_sync(_reopen, folder, settings)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in files.SHORTAGES:
                log.warning("an accepted job can't be read back yet", folder=str(folder), error=str(error))
                if anyio.current_time() > patience:
                    raise  # another process may have more luck: the service manager starts one
                await anyio.sleep(SHORTAGE_PAUSE_S)
                continue
            aside = await anyio.to_thread.run_sync(files.put_aside, folder, damaged)
            log.error("an accepted job can't be read back; it is put aside", folder=str(aside), error=repr(error))
            return None


async def serve(settings: Settings, reload: Callable[[], Settings]) -> int:
    """Run the daemon until it is told to stop; the exit status. ``reload`` gives fresh Settings, for SIGHUP, or raises
    ConfigError.

    Raises:
        AlreadyRunning: another daemon holds the state folder.
        OSError: a folder can't be made or written to.
    """
    paths = settings.paths
    if settings.service.one_cpu:
        one_cpu.stay()
    # Large jobs are many small objects that live long and know no cycles; looking through them all, again and again,
    # would only hold up the event loop.
    gc.set_threshold(100_000, 20, 100)
    files.make_folder(paths.state / "jobs")
    try:
        files.make_private(paths.state)
    except OSError as error:
        log.warning("the state folder can't be made private", folder=str(paths.state), error=str(error))
    with _lock(paths.state / "lock"):
        files.make_folder(paths.state / "cache")
        mounts = Mounts(paths.state)
        for folder in (paths.inbox, paths.outbox, paths.rejected, paths.status.parent):
            # A share that is away must not keep the daemon from starting; it is waited for.
            with suppress(OSError):
                mounts.check(folder)
                files.make_folder(folder)
        for folder, age in ((paths.state, 0.0), (paths.status.parent, 0.0), (paths.rejected, OLD_LEFTOVERS_S)):
            with suppress(OSError):
                files.remove_temporary_files(folder, older_than_s=age)
        host_id = _host_id(paths.state)
        async with anyio.create_task_group() as tasks:
            await Daemon(settings, host_id, mounts, reload, tasks).run()
            tasks.cancel_scope.cancel()
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
        recycle_segments=pool.recycle_segments,
        recycle_s=pool.recycle_hours * 3600,
        recycle_growth_bytes=int(pool.recycle_growth_gb * 1e9),
    )


def _with_paths(settings: Settings, old: Settings) -> Settings:
    return dataclasses.replace(settings, paths=old.paths)


def _with_backend(settings: Settings, old: Settings) -> Settings:
    return dataclasses.replace(settings, pool=settings.pool.model_copy(update={"backend": old.pool.backend}))


def _host_id(state: Path) -> str:
    """This daemon's name towards its inbox: made once, kept with the state."""
    path = state / "host_id"
    try:
        kept = files.read_regular(path, MOST_OF_A_NAME).decode("ascii").strip()
        if kept.isalnum():
            return kept
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in files.SHORTAGES:
            raise
        aside = files.put_aside(path, state / DAMAGED)
        log.error("the daemon's name can't be read; it gets a new one", put_aside=str(aside), error=str(error))
    made = os.urandom(8).hex()
    files.write_atomically(path, made.encode("ascii") + b"\n")
    return made


def _locked(descriptor: int) -> bool:
    """Commands look whether a daemon lives by locking the file themselves, for a moment."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the state folder: one daemon at a time, freed by the kernel however this one ends.

    Raises:
        AlreadyRunning: another one holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _locked(descriptor):
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise AlreadyRunning(
                f"another daemon (pid {pid}) works on {path.parent}; stop it, or give this one a paths.state of its own"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)

"""What comes in: looks at the inbox, takes what has settled, accepts or rejects it, obeys cancels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from daemon import files
from daemon import inbox as inboxes
from daemon.config import Settings
from daemon.core.job import Reason
from daemon.core.job_id import fold_job_id
from daemon.inbox import Inbox, Look, Ready, printable
from daemon.intake import Rejection, accept, twin_rejection
from daemon.jobs import SPACE_CHECK_S, Jobs, Signs
from daemon.live_job import Claim, LiveJob

log = structlog.get_logger("dubd.inbox")

MAX_LIVE_JOBS = 200
"""Jobs taken from the inbox at one time; the others wait there, where other daemons may take them too. A job of higher
priority than every live one is taken all the same."""

MAX_LIVE_SEGMENTS = 100_000
"""The same bound for their segments, each of which takes about a kilobyte of memory."""

ADMISSIONS = 4
"""Jobs whose references are copied and checked at one time."""

STUMBLES = 3
STUMBLE_PAUSE_S = 0.5
"""Times that the daemon may stumble over a file before that is rejected, and what is between them."""

WATCH_RETRY_S = 30.0


class Reception:
    """``settings`` is replaced when the configuration is read again."""

    def __init__(self, settings: Settings, inbox: Inbox, jobs: Jobs, signs: Signs, tasks: anyio.abc.TaskGroup) -> None:
        self.settings = settings
        self.open = True
        """While it is, jobs are taken; cancels are always obeyed."""
        self._inbox = inbox
        self._jobs = jobs
        self._signs = signs
        self._tasks = tasks
        self._wake = anyio.Event()
        self._admissions = anyio.CapacityLimiter(ADMISSIONS)
        self._rejecting = anyio.CapacityLimiter(1)
        self._admitting: dict[str, float] = {}
        """Tokens of claims that are being accepted or rejected, and what each will take on the disks."""
        self._claims_of: tuple[int, int] | None = None
        self._unmovable: set[str] = set()
        self._unknown_cancels: dict[str, float] = {}
        self._reachable = True

    def look_soon(self) -> None:
        self._wake.set()

    # --- looking --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            pause = await self._look_once()
            with anyio.move_on_after(pause):
                await self._wake.wait()
            self._wake = anyio.Event()

    async def _look_once(self) -> float:
        """One look, and what follows from it; seconds until the next."""
        folder = str(self.settings.paths.inbox)
        try:
            look = await anyio.to_thread.run_sync(self._inbox.look, time.monotonic(), abandon_on_cancel=True)
            if self.open:
                await self._take_up_claims()
            await self._act(look)
        except OSError as error:
            if self._reachable:
                log.error("the inbox can't be reached; trying on", inbox=folder, error=str(error))
                self._signs.wake()
            self._reachable = False
            self._signs.warnings["inbox"] = f"the inbox can't be reached: {error.strerror or error}"
            return self.settings.inbox.scan_seconds
        if not self._reachable:
            log.info("the inbox is back", inbox=folder)
            self._signs.wake()
        self._reachable = True
        self._signs.warnings.pop("inbox", None)
        if look.more:
            return 0.0
        until_due = max(look.next_due - time.monotonic(), 0.01) if look.next_due is not None else float("inf")
        return min(self.settings.inbox.scan_seconds, until_due)

    async def _act(self, look: Look) -> None:
        now = time.monotonic()
        self._signs.inbox_waiting = look.waiting
        self._unknown_cancels = {name: self._unknown_cancels.get(name, now) for name in look.cancels}
        for name in look.cancels:
            await self._obey_cancel(name)
        waiting: list[str] = []
        for item in look.ready:
            full = (
                len(self._jobs.runs) + len(self._admitting) >= MAX_LIVE_JOBS
                or self._jobs.segments() >= MAX_LIVE_SEGMENTS
            )
            if not self.open or self._signs.paused or (full and item.priority <= self._jobs.highest_priority()):
                break
            if self._jobs.room.low is not None:
                break
            if (why := self._refusal(item)) is not None:
                waiting.append(f"{printable(item.name)} waits: {why}")
                continue
            try:
                claim = await anyio.to_thread.run_sync(self._inbox.claim, item)
            except OSError as error:
                if await anyio.to_thread.run_sync(self._inbox.identity) is None:
                    raise
                self._warn_of_unmovable(item.name, error)
                continue
            if claim is not None:
                self.admit(claim, item)
        more = f"; {len(waiting) - 1} more wait" if len(waiting) > 1 else ""
        self._jobs.warn("size", waiting[0] + more if waiting else None)

    def _refusal(self, item: Ready) -> str | None:
        """Why there is no room for a job beside those that were taken; None when there is, or there are none."""
        if not self._jobs.runs and not self._admitting:
            return None
        coming = sum(self._admitting.values())
        room = self._jobs.room
        if room.refusal(item.bytes, self._jobs.most_outstanding_bytes() + coming) is None:
            return None
        return room.refusal(item.bytes, self._jobs.outstanding_bytes() + coming)

    def _warn_of_unmovable(self, name: str, error: OSError) -> None:
        """A file that can't be taken (not ours, in a folder with the sticky bit) is no reason to leave the others."""
        if name not in self._unmovable and len(self._unmovable) < 1000:
            self._unmovable.add(name)
            log.error("a job file can't be taken out of the inbox", name=printable(name), error=str(error))

    async def _take_up_claims(self) -> None:
        """What was claimed and not accepted when an earlier life of the daemon ended, once for each inbox that we see:
        the share may come back later than the daemon. And again when a job has ended while its claim could not be
        seen: a share may have been away between two looks."""
        identity = await anyio.to_thread.run_sync(self._inbox.identity)
        if identity is None or (identity == self._claims_of and not self._inbox.unforgotten):
            return
        ours = {*self._jobs.runs, *self._admitting}  # one of them may end while we look
        for claim in await anyio.to_thread.run_sync(self._inbox.claims):
            if claim.token not in ours:
                self.admit(claim)
        # Where it was another one meanwhile, nobody knows which of them was listed.
        same = await anyio.to_thread.run_sync(self._inbox.identity) == identity
        self._claims_of = identity if same else None

    async def watch(self) -> None:
        """File system events wake the scan; when they fail or the folder is another one, the watch is made anew."""
        while True:
            if not self.settings.inbox.watch:
                await anyio.sleep(self.settings.inbox.scan_seconds)
                continue
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cancel_when_replaced, tasks.cancel_scope, self._inbox.identity())
                try:
                    async for _ in self._inbox.changes():
                        self._wake.set()
                except Exception as error:  # noqa: BLE001 - a name that is not UTF-8, no inotify left: the scan goes on
                    log.warning("file system events have failed; the scan goes on", error=repr(error))
                    await anyio.sleep(WATCH_RETRY_S)
                await anyio.sleep(self.settings.inbox.scan_seconds)
                tasks.cancel_scope.cancel()

    async def _cancel_when_replaced(self, scope: anyio.CancelScope, identity: tuple[int, int] | None) -> None:
        """A watch on a folder that has been removed and made anew stays silent for ever."""
        while await anyio.to_thread.run_sync(self._inbox.identity, abandon_on_cancel=True) == identity:  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(self.settings.inbox.scan_seconds)
        scope.cancel()

    # --- taking ---------------------------------------------------------------------------------------------

    def admit(self, claim: Claim, item: Ready | None = None) -> None:
        """Accept or reject a claimed file, soon."""
        self._admitting[claim.token] = 0.0 if item is None else item.bytes
        self._tasks.start_soon(self._admit, claim, () if item is None else item.reasons)

    async def _admit(self, claim: Claim, reasons: Sequence[Reason]) -> None:
        name = printable(claim.name)
        try:
            if reasons:
                await self._settle(claim)
                await self.reject(claim, reasons, None)
                return
            async with self._admissions:
                result = await self._accept(claim)
            if isinstance(result, LiveJob) and (twin := self._twin_of(result)) is not None:
                await anyio.to_thread.run_sync(files.remove_tree, result.folder)
                result = twin_rejection(result.job_id, twin)
            if result is None:
                log.warning("a job file was taken away while it was being accepted", name=name)
            elif isinstance(result, LiveJob):
                log.info(result.arrival, job=result.job_id, name=name)
                self._jobs.enqueue(result)
            elif result.incomplete and await self._put_back(claim):
                log.info("a job file changed while it was taken; waiting for it", name=name)
            else:
                await self._settle(claim)
                await self.reject(claim, result.reasons, result.job_id)
        finally:
            del self._admitting[claim.token]
            self._wake.set()

    async def _settle(self, claim: Claim) -> None:
        await anyio.to_thread.run_sync(self._inbox.settle, claim, abandon_on_cancel=True)

    def _twin_of(self, job: LiveJob) -> str | None:
        """A live job's id that differs from this one's in case alone: admissions overlap, and it was not live yet when
        this one was looked at."""
        return next((other.job_id for other in self._jobs.line(job.job_id) if other.job_id != job.job_id), None)

    async def _accept(self, claim: Claim) -> LiveJob | Rejection | None:
        """What has come of the claim; None when its file is gone."""
        stumbles = 0
        while True:
            try:
                with files.shortage_as_os_error():  # there may be no thread to be had for it
                    result = await anyio.to_thread.run_sync(
                        accept,
                        claim,
                        self.settings,
                        self._jobs.live_id,
                        self._jobs.taken_names,
                        partial(self._inbox.settle, claim),
                        self._jobs.latest,
                        abandon_on_cancel=True,
                    )
            except OSError as error:
                if await anyio.to_thread.run_sync(self._has_lost, claim, abandon_on_cancel=True):
                    self._signs.warnings.pop("accept", None)
                    return None
                name = printable(claim.name)
                log.error("a job could not be accepted yet; trying again", name=name, error=str(error))
                self._signs.warnings["accept"] = f"{name} can't be accepted yet: {error}"
                self._signs.wake()
                await anyio.sleep(SPACE_CHECK_S)
            except Exception as error:
                # A mistake of ours that this file has found must not end the daemon, now and at every start. Nor must
                # one that the moment has found cost the job.
                log.exception("a job file could not be understood", name=printable(claim.name))
                stumbles += 1
                if stumbles < STUMBLES:
                    await anyio.sleep(STUMBLE_PAUSE_S)
                    continue
                message = f"the daemon stumbled over this file ({type(error).__name__}); its log tells more"
                return Rejection((Reason("$", "internal_error", message),), None, incomplete=False)
            else:
                self._signs.warnings.pop("accept", None)
                return result

    def _has_lost(self, claim: Claim) -> bool:
        """Whether somebody has taken the claimed file away; where the share is away, nobody has."""
        try:
            self._jobs.mounts.check(self.settings.paths.inbox)
        except OSError:
            return False
        return self._inbox.has_lost(claim)

    async def _put_back(self, claim: Claim) -> bool:
        """Give a file back to the inbox if it has been written to since it settled."""

        def put_back() -> bool:
            touched = time.time() - claim.file.stat().st_mtime < self.settings.inbox.settle_seconds
            if touched:
                self._inbox.put_back(claim)
            return touched

        try:
            return await anyio.to_thread.run_sync(put_back)
        except OSError:
            return False

    async def reject(self, claim: Claim, reasons: Sequence[Reason], job_id: str | None) -> None:
        """Put a claimed file into ``rejected`` with the reasons beside it, however long that takes."""
        name = printable(claim.name)

        def put_aside() -> Path:
            self._jobs.mounts.check(self.settings.paths.rejected)
            error = inboxes.reject(self.settings.paths.rejected, claim.file, reasons, job_id=job_id, now=time.time())
            self._inbox.forget(claim.token)
            return error

        while True:
            try:
                error = await anyio.to_thread.run_sync(put_aside, abandon_on_cancel=True, limiter=self._rejecting)
                break
            except OSError as failure:
                log.error("a rejected job could not be put aside; trying again", name=name, error=str(failure))
                await anyio.sleep(SPACE_CHECK_S)
        first = [f"{reason.path}: {reason.message}" for reason in reasons[:5]]
        log.warning("rejected", name=name, see=str(error), reasons=first, more=max(0, len(reasons) - 5))

    async def _obey_cancel(self, name: str) -> None:
        line = self._jobs.line(name[: -len(".cancel")])
        if not line:
            # Its job may be settling, waiting for room, or being taken, at this moment.
            patience = self.settings.inbox.settle_seconds + self.settings.inbox.grace_seconds
            if time.monotonic() - self._unknown_cancels[name] < patience or self._admitting:
                return
            if fold_job_id(name[: -len(".cancel")]) in map(fold_job_id, self._inbox.known_ids()):
                return
            log.warning("there is no such job to cancel", name=printable(name))
        for job in line:
            log.info("cancelling", job=job.job_id)
            self._jobs.runs[job.token].cancel()
        try:
            await anyio.to_thread.run_sync(self._inbox.remove_cancel, name)
        except OSError as error:
            # One that can't be removed must not keep the jobs waiting.
            log.error("a cancel was obeyed and can't be removed", name=printable(name), error=str(error))

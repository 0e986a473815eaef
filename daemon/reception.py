"""What comes in: looks at the inbox, takes what has settled, accepts or rejects it, obeys cancels."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import structlog

from daemon import files
from daemon import rejected as rejections
from daemon.config import Settings
from daemon.core.job import Reason
from daemon.inbox import OBEYED, Cancel, CanNotTake, Inbox, Look, Ready, printable
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

REJECTIONS = 8
"""Files that are put aside at one time: a file system that keeps a journal joins their syncs."""

MOST_WRONG = 64
"""Files that are being rejected at one time. They are taken besides the jobs, so that no job waits for them."""

CANCELS_AT_ONCE = 100
"""Cancels that are gone through before the others have their turn."""

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
        self._rejecting = anyio.CapacityLimiter(REJECTIONS)
        self._reading_wrong = anyio.CapacityLimiter(1)
        self._admitting: dict[str, Ready | None] = {}
        """Tokens of claims that are being accepted or rejected; None for those of an earlier life."""
        self._wrong: set[str] = set()
        """Names that are being taken to be rejected."""
        self._claims_of: tuple[int, int] | None = None
        self._unmovable: set[str] = set()
        self._left: dict[str, str] = {}
        """Files that are left in the inbox, and why."""
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
        if look.waiting != self._signs.inbox_waiting:
            self._signs.inbox_waiting = look.waiting
            self._signs.wake()
        self._warn_of_left(look.stuck)
        held = await self._obey_cancels(look)
        waiting: list[str] = []
        jobs = [item for item in look.ready if not item.wrong]
        for item in jobs:
            full = (
                len(self._jobs.runs) + len(self._admitting) - len(self._wrong) >= MAX_LIVE_JOBS
                or self._jobs.segments() >= MAX_LIVE_SEGMENTS
            )
            if not self._takes or (full and item.priority <= self._jobs.highest_priority()):
                break
            if held.get(item.folded_id or "", item.seen) < item.seen:
                continue
            if (why := self._refusal(item)) is not None:
                waiting.append(f"{printable(item.name)} waits: {why}")
                continue
            claim = await self._claim(item)
            if claim is not None:
                self.admit(claim, item)
        more = f"; {len(waiting) - 1} more wait" if len(waiting) > 1 else ""
        self._jobs.warn("size", waiting[0] + more if waiting else None)
        for item in look.ready[len(jobs) :]:
            if len(self._wrong) >= MOST_WRONG or not self._takes:
                break
            if item.name not in self._wrong:
                self._wrong.add(item.name)
                self._tasks.start_soon(self._refuse, item)

    @property
    def _takes(self) -> bool:
        """Whether files are taken at present."""
        return self.open and not self._signs.paused and self._jobs.room.low is None

    async def _claim(self, item: Ready, limiter: anyio.CapacityLimiter | None = None) -> Claim | None:
        """Take a file; None when it is gone, or can't be taken.

        Raises:
            OSError: the inbox can't be reached, or not be written to.
        """
        try:
            return await anyio.to_thread.run_sync(self._inbox.claim, item, limiter=limiter)
        except CanNotTake as error:
            await self._leave(item.name, await anyio.to_thread.run_sync(self._why_stuck, item.name, error))
        except OSError as error:
            if isinstance(error, PermissionError) or await anyio.to_thread.run_sync(self._inbox.identity) is None:
                raise
            self._warn_of_unmovable(item.name, error)
        return None

    async def _refuse(self, item: Ready) -> None:
        """Take what will be rejected, beside the jobs."""
        try:
            claim = await self._claim(item, self._rejecting)
            if claim is not None:
                self._admitting[claim.token] = item
                await self._admit(claim, item)
        except OSError:
            pass  # the next look says so
        finally:
            self._wrong.discard(item.name)
            if not self._wrong:
                self._wake.set()

    def _refusal(self, item: Ready) -> str | None:
        """Why there is no room for a job beside those that were taken; None when there is, or there are none."""
        if not self._jobs.runs and not self._admitting:
            return None
        coming = sum(item.bytes for item in self._admitting.values() if item is not None)
        room = self._jobs.room
        if room.refusal(item.bytes, self._jobs.most_outstanding_bytes() + coming) is None:
            return None
        return room.refusal(item.bytes, self._jobs.outstanding_bytes() + coming)

    def _warn_of_unmovable(self, name: str, error: OSError) -> None:
        """A file that can't be taken (not ours, in a folder with the sticky bit) is no reason to leave the others."""
        if name not in self._unmovable and len(self._unmovable) < 1000:
            self._unmovable.add(name)
            log.error("a job file can't be taken out of the inbox", name=printable(name), error=str(error))

    def _why_stuck(self, name: str, error: OSError) -> str:
        inbox = self.settings.paths.inbox
        try:
            kept = os.stat(inbox).st_mode & stat.S_ISVTX
            owner = os.lstat(inbox / name).st_uid
        except OSError:
            return str(error)
        us = f"the daemon (user {os.geteuid()})"
        if not kept or owner == os.geteuid():
            return f"{us} may not move it out of the inbox ({error.strerror}): is it immutable (lsattr)?"
        return (
            f"{us} may not move it out of the inbox, whose sticky bit leaves that to its owner (user {owner}): "
            f"take the bit away (chmod -t {inbox}), or let the daemon's user own the inbox"
        )

    async def _leave(self, name: str, why: str) -> None:
        """A file that can't be taken stays, and says in ``rejected`` why; should it or the inbox change, it is tried
        again. It is no reason to leave the others."""
        mark = await anyio.to_thread.run_sync(self._inbox.leave, name)
        if mark is None:
            return
        rejected, reasons = self.settings.paths.rejected, (Reason("$", "not_movable", why),)

        def tell() -> Path:
            self._jobs.mounts.check(rejected)
            file = self.settings.paths.inbox / name
            return rejections.reject(rejected, file, reasons, job_id=None, now=time.time(), stays=mark)

        if self._left.get(name) != why:
            self._left[name] = why
            log.error("a job file can't be taken out of the inbox", name=printable(name), error=why)
        try:
            await anyio.to_thread.run_sync(tell, abandon_on_cancel=True, limiter=self._rejecting)
        except OSError as error:
            log.error("why a job file is left can't be written", name=printable(name), error=str(error))

    def _warn_of_left(self, names: Sequence[str]) -> None:
        self._left = {name: self._left[name] for name in names if name in self._left}
        first = next(iter(self._left.items()), None)
        more = f"; {len(names) - 1} more files can't be taken" if len(names) > 1 else ""
        self._jobs.warn("left", None if first is None else f"{printable(first[0])}: {first[1]}{more}")

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
        self._admitting[claim.token] = item
        self._tasks.start_soon(self._admit, claim, item)

    async def _admit(self, claim: Claim, item: Ready | None) -> None:
        name = printable(claim.name)
        wrong = item is not None and item.wrong
        try:
            if item is not None and item.reasons:
                await self._settle(claim)
                await self.reject(claim, item.reasons, None)
                return
            async with self._reading_wrong if wrong else self._admissions:
                result = await self._accept(claim)
            if isinstance(result, LiveJob) and (twin := self._twin_of(result)) is not None:
                await anyio.to_thread.run_sync(files.remove_tree, result.folder)
                result = twin_rejection(result.job_id, twin)
            if result is None:
                log.warning("a job file was taken away while it was being accepted", name=name)
            elif isinstance(result, LiveJob):
                result.seen = 0 if item is None else item.seen
                log.info(result.arrival, job=result.job_id, name=name)
                self._jobs.enqueue(result)
            elif result.incomplete and await self._put_back(claim, item):
                log.info("a job file changed while it was taken; waiting for it", name=name)
            else:
                await self._settle(claim)
                await self.reject(claim, result.reasons, result.job_id)
        finally:
            del self._admitting[claim.token]
            if not wrong:
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

    async def _put_back(self, claim: Claim, item: Ready | None) -> bool:
        """Give a file back to the inbox if it has been written to since it was observed there."""

        def put_back() -> bool:
            written = self._inbox.was_written_to(claim, item)
            if written:
                self._inbox.put_back(claim, 0 if item is None else item.seen)
            return written

        try:
            return await anyio.to_thread.run_sync(put_back)
        except OSError:
            return False

    async def reject(self, claim: Claim, reasons: Sequence[Reason], job_id: str | None) -> None:
        """Put a claimed file into ``rejected`` with the reasons beside it, however long that takes."""
        name = printable(claim.name)

        def put_aside() -> Path:
            self._jobs.mounts.check(self.settings.paths.rejected)
            error = rejections.reject(self.settings.paths.rejected, claim.file, reasons, job_id=job_id, now=time.time())
            self._inbox.forget(claim.token)
            return error

        while True:
            try:
                error = await anyio.to_thread.run_sync(put_aside, abandon_on_cancel=True, limiter=self._rejecting)
                break
            except rejections.CanNotMove:
                await anyio.to_thread.run_sync(self._inbox.put_back, claim)
                await self._leave(claim.name, "; ".join(reason.message for reason in reasons))
                return
            except OSError as failure:
                log.error("a rejected job could not be put aside; trying again", name=name, error=str(failure))
                await anyio.sleep(SPACE_CHECK_S)
        first = [f"{reason.path}: {reason.message}" for reason in reasons[:5]]
        log.warning("rejected", name=name, see=str(error), reasons=first, more=max(0, len(reasons) - 5))

    # --- cancels --------------------------------------------------------------------------------------------

    async def _obey_cancels(self, look: Look) -> dict[str, int]:
        """Cancel the jobs whose file was seen no later than the cancel; the cancels that wait, by folded job_id, with
        the look that saw them. Until they are gone no later job of that id is taken: so a claimed job is one that each
        cancel in the inbox concerns, also to the next life of the daemon."""
        over: list[Cancel] = []
        held: dict[str, int] = {}
        coming = dict(look.ids)
        for item in self._admitting.values():
            if item is not None and item.folded_id is not None:
                coming[item.folded_id] = min(item.seen, coming.get(item.folded_id, item.seen))
        taking_up = None in self._admitting.values()
        patience = self.settings.inbox.settle_seconds + self.settings.inbox.grace_seconds
        for number, cancel in enumerate(look.requests, 1):
            if number % CANCELS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
            if cancel.seen == OBEYED:
                continue
            line = [job for job in self._jobs.line(cancel.folded_id) if job.seen <= cancel.seen]
            for job in line:
                if not job.cancelled:
                    log.info("cancelling", job=job.job_id)
                    self._jobs.runs[job.token].cancel()
            # One that it concerns may be settling, waiting for room or being taken; or another daemon has it.
            may_come = coming.get(cancel.folded_id, cancel.seen + 1) <= cancel.seen
            may_come = may_come or (look.unread is not None and look.unread <= cancel.seen)
            if may_come or (not line and (taking_up or time.monotonic() - cancel.since < patience)):
                held[cancel.folded_id] = min(cancel.seen, held.get(cancel.folded_id, cancel.seen))
                continue
            if not line:
                log.warning("there is no such job to cancel", name=printable(cancel.name))
            over.append(cancel)
        if over:
            for cancel, error in await anyio.to_thread.run_sync(self._inbox.remove_cancels, over):
                # One that can't be removed must not keep the jobs waiting.
                log.error("a cancel was obeyed and can't be removed", name=printable(cancel.name), error=str(error))
        if held or over:
            try:
                await anyio.to_thread.run_sync(self._inbox.remember)
            except OSError as error:
                log.warning("which cancels wait can't be written down", error=str(error))
        return held

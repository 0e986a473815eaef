"""What goes with time, by the rules of ``[retention]``: results that were read, and what only piles up in state/.

Two rounds, each in a thread of its own and awaited by nobody: one over state/, which is a local disk, one over the
outbox, which may be a share that hangs. A round stops after ROUND_S and is soon followed by the next. Everything that
is removed is told in the log, with the rule that it fell under.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from daemon import files, results
from daemon.config import Retention as Rules
from daemon.config import Settings
from daemon.ended_jobs import EndedJob, EndedJobs
from daemon.mounts import Mounts
from daemon.ownership import Hold, Neighbours
from daemon.reuse import ReuseIndex

log = structlog.get_logger("dubd.retention")

EVERY_S = 600.0
ROUND_S = 60.0
"""How long a round may take before it lets others have the disk; the next one comes PAUSE_S later."""
PAUSE_S = 5.0

DAY_S = 86400.0
GB = 1000**3

UNFINISHED_S = 3600.0
"""A temporary file in the cache that is older than this is nobody's any more."""

LOOKED_UP_AT_ONCE = 20_000
"""Known WAVs that one round looks for; the next one goes on from there."""

_ENCODED = re.compile(r"[0-9a-f]{64}\..+\.npy")
_UNFINISHED = re.compile(r"\..+\.npy")
_DAMAGED_INDEX = re.compile(r"\w+\.sqlite3\.damaged(-wal|-shm)?")


@dataclass(frozen=True, slots=True)
class Due:
    """Results whose time has come, and by which rule."""

    ended: EndedJob
    why: str


@dataclass(slots=True)
class Survey:
    """What the rules say of the outbox: ``due``, in the order in which to remove them; ``bytes`` of all results of
    ours, 0 when nobody has asked; ``gone``: folders that somebody else has removed; ``unread``: kept for that alone;
    ``more``: the round ended before all was looked at."""

    due: list[Due] = field(default_factory=list)
    bytes: int = 0
    gone: list[EndedJob] = field(default_factory=list)
    unread: int = 0
    more: bool = False


class Host(Protocol):
    """What retention needs of the rest of the daemon."""

    settings: Settings
    ended: EndedJobs
    reuse: ReuseIndex
    mounts: Mounts

    def clearing(self, job_id: str) -> AbstractContextManager[bool]:
        """While results of this job_id are removed, no job of that id starts. False: one is at work."""

    def warn(self, what: str, warning: str | None) -> None:
        """Show a warning to people, or take it back."""


class Retention:
    def __init__(self, host: Host, host_id: str) -> None:
        self._host = host
        self._host_id = host_id
        self._wake = {"state": anyio.Event(), "outbox": anyio.Event()}
        self._threads = {"state": anyio.CapacityLimiter(1), "outbox": anyio.CapacityLimiter(1)}
        self._told: set[tuple[str, str]] = set()
        self._looked_up = ""

    def look_soon(self) -> None:
        """The rules have changed."""
        for event in self._wake.values():
            event.set()

    async def run_state(self) -> None:
        while True:
            await self._in_thread(
                "state", lambda: tidy_state(self._host.settings.paths.state, self._rules, time.time())
            )
            await self._pause("state", EVERY_S)

    async def run_outbox(self) -> None:
        while True:
            more = False
            try:
                more = await self._tidy_outbox()
            except OSError as error:
                self._tell_once("outbox", "the outbox can't be looked through for what may go", error=str(error))
            await self._pause("outbox", PAUSE_S if more else EVERY_S)

    @property
    def _rules(self) -> Rules:
        return self._host.settings.retention

    async def _pause(self, part: str, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._wake[part].wait()
        self._wake[part] = anyio.Event()

    async def _in_thread(self, part: str, step: Callable[[], None]) -> None:
        await anyio.to_thread.run_sync(step, abandon_on_cancel=True, limiter=self._threads[part])

    def _tell_once(self, about: str, line: str, **more: object) -> None:
        if (about, line) not in self._told and len(self._told) < 1000:
            self._told.add((about, line))
            log.warning(line, **more)

    # --- the outbox -----------------------------------------------------------------------------------------

    async def _tidy_outbox(self) -> bool:
        """One round; whether there is more to do at once."""
        host, rules, outbox = self._host, self._rules, self._host.settings.paths.outbox
        until = time.monotonic() + ROUND_S
        survey = Survey()

        def look() -> None:
            nonlocal survey
            results.clear_leftovers(outbox, self._host_id)
            survey = survey_outbox(host.ended, outbox, rules, time.time(), until)
            self._looked_up = prune(host.reuse, self._looked_up, until, self._outbox_there(outbox))

        try:
            await self._in_thread("outbox", look)
        except FileNotFoundError:
            return False  # away, or not made yet
        left = survey.bytes
        for due in survey.due:
            if time.monotonic() > until:
                return True
            left -= await self._remove(due)
        cap = rules.outbox_gb * GB
        if cap and left > cap and not survey.more:
            kept = "the rest has not been read" if survey.unread else "the rest is not dubd's alone, or is at work"
            held = f"the results in the outbox hold {left / GB:.1f} GB, over retention.outbox_gb"
            host.warn("retention", f"{held} ({rules.outbox_gb:g}); {kept}")
        else:
            host.warn("retention", None)
        return survey.more

    def _outbox_there(self, outbox: Path) -> Path | None:
        """The outbox, if it is known to be no share that is away: something is in it."""
        try:
            self._host.mounts.check(outbox)
            with os.scandir(outbox) as entries:
                return next((outbox for entry in entries if not entry.name.startswith(".")), None)
        except OSError:
            return None

    async def _remove(self, due: Due) -> int:
        """The bytes that this has freed."""
        ended, freed = due.ended, 0

        def remove() -> None:
            nonlocal freed
            neighbours = Neighbours(ended.folder.parent, self._host_id)
            freed = results.remove(ended, self._host_id, Hold(ended.folder.name, "removal", neighbours))

        with self._host.clearing(ended.job_id) as free:
            if not free:
                return 0
            try:
                await self._in_thread("outbox", remove)
            except results.LeftAlone as why:
                self._tell_once(str(ended.folder), f"a job's folder is kept: it {why}", folder=str(ended.folder))
                return 0
            except FileNotFoundError:
                pass
            except OSError as error:
                self._tell_once(str(ended.folder), "a job's folder can't be removed", error=str(error))
                return 0
        self._host.ended.forget(ended)
        log.info("removed the results of a job", job=ended.job_id, mb=round(freed / 1e6, 1), why=due.why)
        return freed


def survey_outbox(index: EndedJobs, outbox: Path, rules: Rules, now: float, until: float) -> Survey:
    """What the rules say; ``now`` is Unix time, ``until`` the end of the round (monotonic). Forgets what is gone.

    Raises:
        OSError: the outbox failed.
    """
    survey = Survey()
    if not rules.outbox_days and not rules.outbox_gb:
        return survey
    rows = index.in_outbox(outbox)
    if rules.outbox_gb:
        rows = _weigh(index, rows, survey, until)
    excess = survey.bytes - rules.outbox_gb * GB if rules.outbox_gb else 0.0
    oldest = now - rules.outbox_days * DAY_S if rules.outbox_days else float("-inf")
    there = 0
    for ended in rows:
        if ended.ended_at >= oldest and excess <= 0:
            break  # those that follow are younger
        if time.monotonic() > until:
            survey.more = True
            break
        if not os.path.lexists(ended.folder):
            survey.gone.append(ended)
            survey.bytes -= ended.bytes or 0
            excess -= ended.bytes or 0
            continue
        there += 1
        if not results.is_read(ended.folder, ended.manifest_sha256):
            survey.unread += 1
            continue
        aged = ended.ended_at < oldest
        why = f"older than {rules.outbox_days:g} days" if aged else f"the outbox is over {rules.outbox_gb:g} GB"
        survey.due.append(Due(ended, why))
        excess -= ended.bytes or 0
    # Where nothing at all is there, it is the share that is gone.
    if there:
        for ended in survey.gone:
            index.forget(ended)
    return survey


def _weigh(index: EndedJobs, rows: list[EndedJob], survey: Survey, until: float) -> list[EndedJob]:
    """The rows that are there, with their weights."""
    weighed = []
    for ended in rows:
        size = ended.bytes
        if size is None:
            if time.monotonic() > until:
                survey.more = True
                break
            try:
                size = results.weigh(ended)
            except FileNotFoundError:
                survey.gone.append(ended)
                continue
            index.weigh(ended, size)
        survey.bytes += size
        weighed.append(EndedJob(ended.folder, ended.job_id, ended.manifest_sha256, ended.ended_at, size))
    return weighed


def prune(reuse: ReuseIndex, after: str, until: float, there: Path | None = None) -> str:
    """Forget known WAVs that are gone, from the key ``after`` on; where to go on the next time. An outbox of which
    nothing at all is there may be a share that is away, and nothing of it is forgotten, unless it is the one that is
    ``there`` for sure: readers may have moved all of it away."""
    missing: dict[Path, list[tuple[str, str]]] = {}
    seen: set[Path] = {there} if there is not None else set()
    looked_up = 0
    while time.monotonic() < until and looked_up < LOOKED_UP_AT_ONCE:
        places = reuse.places(after)
        looked_up += len(places)
        if not places:
            after = ""
            break
        after = places[-1][0]
        for key, path in places:
            outbox = Path(path).parent.parent
            try:
                os.lstat(path)
            except FileNotFoundError:
                missing.setdefault(outbox, []).append((key, path))
            except OSError as error:
                if error.errno != errno.ENOTDIR:
                    raise
                missing.setdefault(outbox, []).append((key, path))
            else:
                seen.add(outbox)
    for outbox in missing.keys() & seen:
        reuse.forget(missing[outbox])
        log.info("forgot WAVs that are gone", outbox=str(outbox), number=len(missing[outbox]))
    return after


# --- state/ --------------------------------------------------------------------------------------------------


def tidy_state(state: Path, rules: Rules, now: float) -> None:
    """One round over state/; ``now`` is Unix time. What can't be removed is left to the next."""
    if rules.state_days:
        before = now - rules.state_days * DAY_S
        for entry, status in _entries(state / "damaged"):
            # Putting it aside was the last change of its inode; its content is older.
            if status.st_ctime < before:
                with _told("a damaged job's folder", entry, "retention.state_days"):
                    files.remove_tree(entry) if stat.S_ISDIR(status.st_mode) else files.remove(entry)
        for entry, status in _entries(state / "over"):
            if status.st_ctime < before and stat.S_ISREG(status.st_mode):
                with _told("a note on a claim whose share has not come back", entry, "retention.state_days"):
                    files.remove(entry)
        for entry, status in _entries(state):
            if _DAMAGED_INDEX.fullmatch(entry.name) and status.st_ctime < before and stat.S_ISREG(status.st_mode):
                with _told("a damaged index", entry, "retention.state_days"):
                    files.remove(entry)
    _tidy_cache(state / "cache", rules.cache_gb * GB, now)


def _tidy_cache(cache: Path, most: float, now: float) -> None:
    """Encoded references, the least recently used first: the workers touch those that they use."""
    kept: list[tuple[float, int, Path]] = []
    for entry, status in _entries(cache):
        if not stat.S_ISREG(status.st_mode):
            continue
        if _ENCODED.fullmatch(entry.name):
            kept.append((status.st_mtime, status.st_size, entry))
        elif _UNFINISHED.fullmatch(entry.name) and status.st_mtime < now - UNFINISHED_S:
            with suppress(OSError):
                files.remove(entry)
    total = sum(size for _, size, _ in kept)
    if not most or total <= most:
        return
    removed = 0
    for _, size, entry in sorted(kept):
        if total <= most:
            break
        with suppress(OSError):
            files.remove(entry)
            removed += 1
            total -= size
    log.info("removed encoded references that were used least recently", number=removed, why="retention.cache_gb")


@contextmanager
def _told(what: str, path: Path, why: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.warning("can't be removed", what=what, path=str(path), error=str(error))
    else:
        log.info("removed", what=what, path=str(path), why=why)


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
    except OSError:
        return []
    return found

"""The inbox: which files are jobs, when one has come whole, and how it is taken.

A file is taken once it is unchanged over ``settle_seconds`` of our own observations: clocks and modification times of
a share prove nothing. What is observed is the file and, once it parses, the references it names, so that a job that is
copied in together with its recordings is taken when all of them have come. (Those that lie outside of the allowed
folders are not waited for.) Listing the folder is the truth; file
system events only make us look sooner, and where they are silent (SMB, NFS, an overflow, a folder made anew) nothing
is lost but seconds. Taking is one rename into ``.claimed/HOST-ID/TOKEN/``: of several daemons one wins.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import watchfiles

from daemon import files
from daemon.config import Settings
from daemon.core.footprint import result_bytes
from daemon.core.job import EmbeddingsJob, Job, JobRejected, Limits, Reason
from daemon.core.job_id import fold_job_id
from daemon.core.job_parser import parse_job
from daemon.core.redo import read_request
from daemon.live_job import Claim, new_token, received_at, stem_of
from daemon.mapped_paths import path_here
from daemon.sights import STILL_GROWS, Sights, Signature

log = structlog.get_logger("dubd.inbox")

CLAIMED = ".claimed"
CANCEL = ".cancel"
OBEYED = -1
LOOK_BUDGET_S = 0.3
"""How long one look may parse files before the ones that are ready are handed on. Listing them is not counted: a share
on which that alone takes longer must not keep the first file from being read."""

WATCH_MS = 250
"""Milliseconds after which the watcher's thread looks up to see whether it is still wanted."""


@dataclass(slots=True)
class Observation:
    """What we have seen of a name in the inbox: since when it has looked like this, and what it parses to."""

    signature: Signature
    since: float
    seen: int
    """The look that found it; another one where it was written to after it was whole."""
    references: tuple[Signature | None, ...] = ()
    """Of ``reference_paths``, the job's references that are waited for; None for what is not there."""
    reference_paths: tuple[str, ...] = ()
    parsed: bool = False
    complete: bool = False
    priority: int = 0
    job_id: str | None = None
    folded_id: str | None = None
    mtime_ns: int = 0
    regular: bool = True
    bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """A request to cancel: since when (monotonic) it is here, and the look that found it; OBEYED: it means nothing any
    more, and can't be removed."""

    name: str
    folded_id: str
    signature: Signature
    since: float
    seen: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A name in the inbox that has settled: a job, or something to be rejected (``reasons``). ``bytes``: what it will
    take on the disks, about; 0 where that is not known. ``wrong``: it will be rejected, as far as can be seen.
    ``seen`` as in ``Observation``, ``signature`` as it was observed."""

    name: str
    priority: int
    mtime_ns: int
    reasons: tuple[Reason, ...] = ()
    bytes: float = 0.0
    wrong: bool = False
    folded_id: str | None = None
    signature: Signature | None = None
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the inbox found. ``ready``: what will be rejected comes last. ``next_due``: when something may
    have settled (monotonic), or None. ``more``: the look ran out of its budget; look again at once. ``stuck``: files
    that can't be taken out. ``ids``: folded job ids of what is here, and the look that first found a file of each;
    ``unread``: the same of those that have not been read yet, or None."""

    ready: tuple[Ready, ...]
    requests: tuple[Cancel, ...]
    waiting: int
    next_due: float | None
    more: bool
    stuck: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    unread: int | None = None

    @property
    def cancels(self) -> tuple[str, ...]:
        return tuple(cancel.name for cancel in self.requests)


class CanNotTake(OSError):
    """The file may not be renamed by us, though the inbox can be written to."""


class Inbox:
    """``look`` and the others run in a thread, one at a time."""

    def __init__(self, settings: Settings, host_id: str) -> None:
        self._folder = settings.paths.inbox
        self._settings = settings
        self._observations: dict[str, Observation] = {}
        self._cancels: dict[str, Cancel] = {}
        self._sights = Sights(settings.paths.state)
        self._remembered: set[tuple[str, Signature, int]] = set()
        self._put_back: dict[str, tuple[Signature, int]] = {}
        """What was put back: it is the file that was seen before."""
        self._stuck: dict[str, tuple[object, ...]] = {}
        """Files that can't be taken out, and what would have to change before it is tried again."""
        self._warned: set[str] = set()
        self.claimed = self._folder / CLAIMED / host_id
        self._over = settings.paths.state / "over"
        self.unforgotten = False
        """Whether a claim could not be seen when it was to be removed: ``claims`` is to look for it."""

    def reload(self, settings: Settings) -> None:
        """New settle, grace and limits; the folder stays."""
        self._settings = settings

    # --- looking --------------------------------------------------------------------------------------------

    def look(self, now: float) -> Look:
        """List the inbox at ``now`` (monotonic seconds).

        Raises:
            OSError: the inbox can't be listed.
        """
        settle, grace = self._settings.inbox.settle_seconds, self._settings.inbox.grace_seconds
        self._sights.looks += 1
        ready: list[Ready] = []
        cancels: dict[str, Cancel] = {}
        due: list[float] = []
        stuck: list[str] = []
        seen: dict[str, tuple[os.stat_result, Observation]] = {}
        for name, status in self._candidates():
            if stat.S_ISDIR(status.st_mode):
                self._warn_of_folder(name)
            elif name.casefold().endswith(CANCEL):
                cancels[name] = self._cancel(name, status, now)
            else:
                seen[name] = status, self._observe(name, status, now)
        more = self._parse_new(seen, now)
        ids: dict[str, int] = {}
        unread = [found.seen for _, found in seen.values() if found.regular and not found.parsed]
        for name, (status, observation) in seen.items():
            if name in self._stuck:
                if self._stuck[name] == self._stuck_while(status):
                    stuck.append(name)
                    continue
                del self._stuck[name]
            if observation.folded_id is not None:
                ids[observation.folded_id] = min(observation.seen, ids.get(observation.folded_id, observation.seen))
            if observation.regular and not observation.parsed:
                continue
            if now - observation.since < settle:
                due.append(observation.since + settle)
            elif not observation.regular or observation.complete or now - observation.since >= settle + grace:
                ready.append(_ready(name, status, observation))
            else:
                due.append(observation.since + settle + grace)
        self._observations = {name: observation for name, (_, observation) in seen.items()}
        self._cancels = cancels
        self._stuck = {name: self._stuck[name] for name in stuck}
        ready.sort(key=lambda item: (item.wrong, -item.priority, item.mtime_ns, item.name))
        next_due = min(due, default=None)
        return Look(
            ready=tuple(ready),
            requests=tuple(cancels.values()),
            waiting=len(seen),
            next_due=next_due,
            more=more,
            stuck=tuple(sorted(stuck)),
            ids=ids,
            unread=min(unread, default=None),
        )

    def _parse_new(self, seen: Mapping[str, tuple[os.stat_result, Observation]], now: float) -> bool:
        """Read what is new at once, while it settles: then its references settle along with it. Small ones first, and
        as many as the budget allows; whether some are left."""
        new = [(name, found) for name, (_, found) in seen.items() if found.regular and not found.parsed]
        if len(new) > 1:
            new.sort(key=lambda item: item[1].signature[2])
        spent = 0.0
        for name, observation in new:
            if spent > LOOK_BUDGET_S:
                return True
            started = time.monotonic()
            self._parse(name, observation, now)
            spent += time.monotonic() - started
        return False

    def _cancel(self, name: str, status: os.stat_result, now: float) -> Cancel:
        known, signature = self._cancels.get(name), _signature(status)
        if known is None or known.signature != signature:
            seen = self._sights.of(name, signature)
            known = Cancel(name, fold_job_id(name[: -len(CANCEL)]), signature, now, seen)
        return known

    def _candidates(self) -> list[tuple[str, os.stat_result]]:
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                folded = name.casefold()
                if name.startswith(".") or not folded.endswith((".json", ".cancel")):
                    continue
                try:
                    found.append((name, entry.stat(follow_symlinks=False)))
                except OSError:
                    continue  # taken by another daemon, or withdrawn; one that can't be looked at is no other's harm
        return found

    def _observe(self, name: str, status: os.stat_result, now: float) -> Observation:
        signature = _signature(status)
        observation = self._observations.get(name)
        if observation is None or observation.signature != signature:
            seen = self._sights.looks if observation is not None else self._sights.of(name, signature)
            if observation is not None and observation.signature[:2] == signature[:2] and observation.job_id is None:
                seen = observation.seen  # the same one, which is still being written
            before, when = self._put_back.pop(name, (None, 0))
            if before is not None and before[:2] == signature[:2]:
                seen = when
            observation = Observation(
                signature, now, seen, mtime_ns=status.st_mtime_ns, regular=stat.S_ISREG(status.st_mode)
            )
        elif observation.reference_paths:
            references = self._reference_signatures(observation.reference_paths)
            if references != observation.references:
                observation.references = references
                observation.since = now
                observation.complete = None not in references
        return observation

    def _parse(self, name: str, observation: Observation, now: float) -> None:
        observation.parsed = True
        try:
            job = parse_job(
                read_document(self._folder / name, self._settings.limits),
                stem=stem_of(name),
                limits=self._settings.limits,
            )
        except JobRejected as rejected:
            # What is whole and wrong need not wait; what does not parse may still be coming.
            observation.complete = not rejected.incomplete
            if observation.complete:
                self._parse_request(name, observation)
            return
        except OSError:
            observation.complete = False
            return
        observation.priority, observation.job_id = job.priority, job.job_id
        observation.folded_id = fold_job_id(job.job_id)
        observation.bytes = result_bytes(job)
        observation.reference_paths = tuple(self._inside(reference_paths(job)))
        observation.references = self._reference_signatures(observation.reference_paths)
        observation.complete = None not in observation.references
        if observation.references:
            observation.since = now  # they are seen for the first time, whenever the file was

    def _parse_request(self, name: str, observation: Observation) -> None:
        """What is no job may be a request to redo one."""
        limits = self._settings.limits
        with suppress(JobRejected, OSError):
            request = read_request(read_document(self._folder / name, limits), stem=stem_of(name), limits=limits)
            if request is not None:
                observation.job_id, observation.folded_id = request.job_id, fold_job_id(request.job_id)

    def _inside(self, paths: Sequence[str]) -> Iterator[str]:
        """Those that lie in the allowed folders. What lies elsewhere is refused when the job is taken, and when that is
        must not tell whether it is there."""
        places = self._settings.paths
        roots = [os.path.realpath(root) for root in (*places.allowed_roots, places.outbox)]
        for path in paths:
            with suppress(OSError, ValueError):
                full = os.path.realpath(self._folder / path_here(path, self._settings.paths.mapped))
                if any(Path(full).is_relative_to(root) for root in roots):
                    yield path

    def _reference_signatures(self, paths: Sequence[str]) -> tuple[Signature | None, ...]:
        found: list[Signature | None] = []
        for path in paths:
            try:
                here = path_here(path, self._settings.paths.mapped)
                found.append(_signature(os.stat(self._folder / here)))
            except (OSError, ValueError):
                found.append(None)
        return tuple(found)

    def _warn_of_folder(self, name: str) -> None:
        if name not in self._warned and len(self._warned) < 1000:
            self._warned.add(name)
            log.warning("a folder in the inbox is no job; job files go straight into the inbox", name=name)

    def known_ids(self) -> set[str]:
        """Job ids of files that are here and not yet taken."""
        return {observation.job_id for observation in self._observations.values() if observation.job_id}

    # --- taking ---------------------------------------------------------------------------------------------

    def claim(self, ready: Ready) -> Claim | None:
        """Take a file; None when it is not there any more (another daemon's, or withdrawn). Until ``settle`` a power
        cut may undo it.

        Raises:
            CanNotTake: this file may not be renamed.
            OSError: the inbox can't be written to.
        """
        token = new_token()
        folder = self.claimed / token
        target = folder / ready.name
        self._remove_links(token)
        made = False
        try:
            files.make_folder(folder)
            made = True
            files.rename(self._folder / ready.name, target)
        except OSError as error:
            with suppress(OSError):
                files.remove_empty_folder(folder)
            if isinstance(error, FileNotFoundError):
                return None
            if made and isinstance(error, PermissionError):
                raise CanNotTake(*error.args) from error
            raise
        self._observations.pop(ready.name, None)
        return Claim(token, target, received_at(token))

    def settle(self, claim: Claim) -> None:
        """Make a claim last. To be done before anything is kept of it elsewhere: a file that a power cut brought back
        would be done twice. What can't be synced is taken for done, else a share without it could not be used."""
        with suppress(OSError):
            files.fsync_folder(claim.file.parent)
            files.fsync_folder(self._folder)

    def put_back(self, claim: Claim, seen: int = 0) -> None:
        """Undo a claim: the file turned out to be still on its way. ``seen``: as in ``Ready``."""
        self._put_back[claim.name] = _signature(os.lstat(claim.file)), seen
        try:
            files.rename_new(claim.file, self._folder / claim.name)
        except FileExistsError:
            # A newer file of that name has come: then the older, unfinished one is worth nothing.
            files.remove(claim.file)
        self.forget(claim.token)

    def was_written_to(self, claim: Claim, ready: Ready | None) -> bool:
        """Whether a claimed file is not as it was observed before. What an earlier life has claimed had settled then.

        Raises:
            OSError: it is gone, or can't be looked at.
        """
        known = None if ready is None else ready.signature
        return known is not None and _signature(os.lstat(claim.file)) != known

    def leave(self, name: str) -> str | None:
        """Leave a file that can't be taken where it is, until it changes or the inbox does; a name for this very file,
        None where it is gone."""
        try:
            status = os.lstat(self._folder / name)
        except OSError:
            return None
        self._stuck[name] = self._stuck_while(status)
        return f"left-{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"

    def _stuck_while(self, status: os.stat_result) -> tuple[object, ...]:
        inbox = os.stat(self._folder)
        return (_signature(status), status.st_ctime_ns, inbox.st_mode, inbox.st_uid, inbox.st_gid)

    def forget(self, token: str) -> None:
        """Remove the traces of a claim whose job is over, durably: one that came back would be done again. Where they
        can't be seen, the share that holds them may be away: it is remembered that they mean nothing any more.

        Raises:
            OSError: they can't be removed now; call again later.
        """
        try:
            self._remove_traces(token)
        except FileNotFoundError:
            files.make_folder(self._over)
            files.write_atomically(self._over / token, b"")
            self.unforgotten = True

    def _remove_traces(self, token: str) -> None:
        folder = self.claimed / token
        self._remove_links(token)
        opened = files.open_folder(folder, self._folder)
        try:
            for name in os.listdir(opened):
                files.discard(folder / name, opened)
        finally:
            os.close(opened)
        files.remove_empty_folder(folder)
        files.fsync_folder(self.claimed)

    def _remove_links(self, token: str | None = None) -> None:
        """No folder for claimed jobs is a link: whoever has put one there wants us to work, and remove, elsewhere.

        Raises:
            OSError: it can't be removed.
        """
        parts = (self.claimed.parent, self.claimed, *(() if token is None else (self.claimed / token,)))
        for folder in parts:
            if folder.is_symlink():
                log.warning("a link lies where claimed jobs are kept; it is removed", path=printable(str(folder)))
                files.remove(folder)

    def has_lost(self, claim: Claim) -> bool:
        """Whether the claimed file is gone while the inbox is there: somebody has taken it away."""
        return self.identity() is not None and not os.path.lexists(claim.file)

    def claims(self) -> list[Claim]:
        """What this daemon has taken and not finished, the oldest first. What has ended while it could not be seen is
        removed."""
        found = []
        self._remove_links()
        unforgotten, self.unforgotten = self.unforgotten, False
        try:
            tokens = sorted(os.listdir(self.claimed))
        except FileNotFoundError:
            self.unforgotten |= unforgotten
            return []
        for token in tokens:
            try:
                self._remove_links(token)
                received = received_at(token)
                if (self._over / token).exists():
                    try:
                        self._remove_traces(token)
                    except FileNotFoundError:
                        self.unforgotten = True  # the share is away again; the note of it stays
                    else:
                        files.remove(self._over / token)
                    continue
                # NFS leaves hidden files where one was removed that is still open.
                names = sorted(name for name in os.listdir(self.claimed / token) if not name.startswith("."))
                if not names:
                    files.remove_empty_folder(self.claimed / token)
                    continue
                found.append(Claim(token, self.claimed / token / names[0], received))
            except FileNotFoundError:
                self.unforgotten = True  # its job has just ended, or the share is away again: the next look tells
            except (OSError, ValueError):
                log.warning("what lies among the claimed jobs is not ours", name=token)
        return found

    def remove_cancel(self, name: str) -> None:
        """Raises OSError: it can't be removed."""
        files.remove(self._folder / name)

    def remove_cancels(self, cancels: Sequence[Cancel]) -> list[tuple[Cancel, OSError]]:
        """Remove what was obeyed, unless another one has that name by now; those that can't be removed are OBEYED."""
        kept = []
        for cancel in cancels:
            try:
                with suppress(FileNotFoundError):
                    if _signature(os.lstat(self._folder / cancel.name)) == cancel.signature:
                        self.remove_cancel(cancel.name)
                del self._cancels[cancel.name]
            except OSError as error:
                kept.append((cancel, error))
                self._cancels[cancel.name] = dataclasses.replace(cancel, seen=OBEYED)
        return kept

    def remember(self) -> None:
        """Write down which cancels are here, if there are new ones, and when the files came that they may concern: the
        next life of the daemon can't see that any more.

        Raises:
            OSError: it can't be written.
        """
        marks = {(cancel.name, cancel.signature, cancel.seen) for cancel in self._cancels.values()}
        if marks <= self._remembered:
            return
        ids = {cancel.folded_id for cancel in self._cancels.values()}
        seen = {name: (cancel.signature, cancel.seen) for name, cancel in self._cancels.items()}
        for name, found in list(self._observations.items()):
            if found.folded_id in ids:
                seen[name] = found.signature, found.seen
            elif not found.complete:
                seen[name] = (*found.signature[:2], STILL_GROWS, STILL_GROWS), found.seen
        self._sights.keep(seen)
        self._remembered = marks

    # --- waking up ------------------------------------------------------------------------------------------

    async def changes(self) -> AsyncIterator[None]:
        """Yields whenever the file system says that something happened in the inbox; ends when it can't say."""
        with suppress(FileNotFoundError):
            # Its thread can't be cancelled, only waited for: without rust_timeout a stop would take five seconds.
            async for _ in watchfiles.awatch(
                self._folder, recursive=False, debounce=50, step=20, watch_filter=_is_candidate, rust_timeout=WATCH_MS
            ):
                yield

    def identity(self) -> tuple[int, int] | None:
        """Which folder the inbox is now (device and inode): a watch on an earlier one is blind."""
        try:
            status = os.stat(self._folder)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _is_candidate(_change: object, path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and not name.endswith(".part")


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _ready(name: str, status: os.stat_result, observation: Observation) -> Ready:
    size = observation.bytes + sum(signature[2] for signature in observation.references if signature)
    return Ready(
        name,
        observation.priority,
        observation.mtime_ns,
        () if observation.regular else (_irregular(name, status),),
        bytes=size,
        wrong=observation.job_id is None or None in observation.references,
        folded_id=observation.folded_id,
        signature=observation.signature,
        seen=observation.seen,
    )


def _irregular(name: str, status: os.stat_result) -> Reason:
    kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
    return Reason("$", "not_regular", f"{printable(name)} is {kind}; copy the job file itself into the inbox")


def printable(name: str) -> str:
    """A file name as text that any encoding can carry: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def reference_paths(job: Job) -> tuple[str, ...]:
    """The paths that a job's speakers name, each once, in order; the folder of a job of speaker embeddings."""
    if isinstance(job, EmbeddingsJob):
        return (job.utterances_dir,)
    return tuple(dict.fromkeys(reference.path for speaker in job.speakers for reference in speaker.references))


def read_document(path: Path, limits: Limits) -> bytes:
    """A job file's bytes.

    Raises:
        JobRejected: it is larger than ``limits.job_bytes``, no regular file, or not for the daemon to read.
        OSError: the disk or the share failed.
    """
    try:
        descriptor = files.open_regular(path)
    except PermissionError as error:
        message = f"the daemon (user {os.geteuid()}) may not read it: give it read permission (chmod a+r)"
        # Programs that copy a file may set its mode last.
        raise JobRejected([Reason("$", "unreadable", message)], incomplete=True) from error
    except OSError as error:
        if error.errno in files.NOT_REGULAR:
            raise JobRejected([Reason("$", "not_regular", "it is not a regular file")]) from error
        raise
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        document = file.read(limits.job_bytes + 1)
    if len(document) > limits.job_bytes:
        message = (
            f"the file has {max(size, len(document))} bytes, the limit is {limits.job_bytes}; "
            "split the job, or raise limits.job_bytes"
        )
        raise JobRejected([Reason("$", "too_large", message)])
    return document

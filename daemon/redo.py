"""Redoing segments of an ended job: what is kept of the earlier manifest, and what becomes of the earlier takes.

The job is taken again like any other, so its manifest.json has become manifest.N.json, and that N is remembered; it
says what came of each segment before. Those that are not redone keep it, whatever engine runs now and whether or not it
would speak them alike; their files are looked at, not moved. Of those that are redone the earlier WAV stays in its
place until the new one is there, goes then to ``takes/segment_0003.1.wav``, and the manifest lists it in the segment's
``history``. Where nothing new comes of it, the earlier take stays what it was.

What lies in the outbox is others' too: it is opened as such, believed as far as it can be checked, and no WAV is ever
replaced that is not known to be elsewhere. All of this may run again after a crash: it finds the same manifest, and
takes by their content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import soundfile
import structlog

from daemon import files, outbox
from daemon.config import Settings
from daemon.core.earlier import LARGEST_MANIFEST, MOST_TAKES, TOLD_OF_A_TAKE, Entry, read_earlier
from daemon.core.identity import next_seed
from daemon.core.job import JobRejected, Reason
from daemon.core.redo import RedoRequest, compose
from daemon.inbox import read_document
from daemon.live_job import LiveJob, LiveSegment
from daemon.outbox import published_name
from daemon.report.peaks import outline

log = structlog.get_logger("dubd.redo")

TAKES = "takes"

LARGEST_FILE = 1 << 30
"""Bytes; a longer one is no line that was spoken, and is not read through to learn that."""


def compose_redo(request: RedoRequest, settings: Settings, latest: Path | None = None) -> bytes:
    """The job that the request means: what was asked before, with the redo in it. ``latest``: the folder in state/ of
    the last job of this job_id that is not over, if there is one.

    Raises:
        JobRejected: there is no such job, or it can't be read back.
        OSError: the outbox failed.
    """
    asked = settings.paths.outbox / request.job_id / "job.json"
    try:
        if latest is not None:
            with contextlib.suppress(FileNotFoundError):  # it is over by now
                return compose(read_document(latest / "job.json", settings.limits), request)
        return compose(read_document(asked, settings.limits), request)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is no job {request.job_id!r} in the outbox; see 'dubd jobs'"
        raise JobRejected([Reason("$.job_id", "no_such_job", message)]) from error
    except (ValueError, RecursionError) as error:
        message = f"{asked}, which says what the job was, can't be read: {error}; drop the whole job with 'redo' in it"
        raise JobRejected([Reason("$.job_id", "no_such_job", message)]) from error


def seed_of_next_take(job: LiveJob, live: LiveSegment, seed: int) -> int:
    """The seed with which a segment is spoken now. ``seed`` is what it would be given in a job that is no redo."""
    redo = job.job.redo
    if redo is None or not live.again:
        return seed
    wanted = redo.seed if live.segment.index in redo.segments else None
    if isinstance(wanted, int):
        return wanted
    used = [take["seed"] for take in live.history if isinstance(take.get("seed"), int)]
    last = used[-1] if used else seed
    if wanted is None:
        return last
    fresh = next_seed(last)
    while fresh in used:
        fresh = next_seed(fresh)
    return fresh


# --- before it is spoken ----------------------------------------------------------------------------------------


def look_back(folder: Path, job: LiveJob) -> None:
    """Give every segment of a job that is redone in part what is known of it: those that are kept are over, those that
    are redone have their history. Changes nothing on disk. Runs in a thread.

    Raises:
        JobRejected: the earlier manifest can't be used.
        OSError: the outbox failed; call again.
    """
    redo = job.job.redo
    assert redo is not None
    name, entries = earlier_manifest(folder, job)
    if not entries:
        log.warning("there is no earlier manifest to keep anything of", job=job.job_id)
        return
    redone = set(redo.segments)
    for position, live in enumerate(job.segments):
        entry = entries.get(live.segment.index)
        if entry is None:
            continue
        if live.segment.index not in redone:
            if entry["speaker"] != live.segment.speaker or entry["text"] != live.segment.text:
                continue  # another line, which nobody has spoken yet
            if live.status == "waiting" and _keep(folder, job, position, entry):
                job.segments[position].history = tuple(entry["history"])
                continue
        live = job.segments[position]
        take = {key: entry[key] for key in TOLD_OF_A_TAKE if key in entry}
        live.history = (*entry["history"], {**take, "file": None, "manifest": name})[-MOST_TAKES:]
        live.again = True
        job.earlier[position] = entry


def earlier_manifest(folder: Path, job: LiveJob) -> tuple[str, dict[int, Entry]]:
    """The name of the manifest that came before this job, and its segments by their index; none where there is none.

    Raises:
        JobRejected: it can't be used.
        OSError: the outbox failed; call again.
    """
    if job.aside is not None and (job.taken or not os.path.lexists(folder / "manifest.json")):
        name = f"manifest.{job.aside}.json"
    elif not job.taken and os.path.lexists(folder / "manifest.json"):
        name = "manifest.json"  # which is about to be moved aside
    else:
        # Taken by an earlier version, or somebody has removed manifest.json: the last one is the best there is.
        last = max((n for n in outbox.earlier_numbers(folder) if _is_file(folder / f"manifest.{n}.json")), default=None)
        if last is None:
            return "", {}
        name = f"manifest.{last}.json"
    try:
        return name, read_earlier(files.read_regular(folder / name, LARGEST_MANIFEST))
    except ValueError as error:
        why = str(error)
    except FileNotFoundError:
        why = "it is gone"
    except OSError as error:
        if error.errno not in files.NOT_REGULAR | {errno.EFBIG, errno.EACCES}:
            raise
        why = str(error.strerror)
    message = (
        f"{folder / name}, which says what the other segments are, can't be used: {why}. Nothing was changed: put back "
        "what was there, or submit the whole job without redo, which speaks all that is not known"
    )
    raise JobRejected([Reason("$.redo", "bad_manifest", message)])


def _keep(folder: Path, job: LiveJob, position: int, entry: Entry) -> bool:
    """Let the segment be what it was; False when its file is not what it was, so that it must be spoken again."""
    live = job.segments[position]
    kept = LiveSegment(live.segment, attempts=entry.get("attempts", 0))
    match entry["status"]:
        case "failed" | "cancelled" as status:
            error = entry.get("error") or {}
            kept.status = status
            kept.code, kept.message = str(error.get("code")), str(error.get("message"))
        case "ok":
            if not _look_at(folder / published_name(job, position), job, kept, entry["sha256"]):
                return False
            kept.status, kept.cached, kept.published = "ok", True, True
            kept.seed = entry.get("seed") or 0
            kept.truncated = entry.get("truncated", False)
            kept.finishing = entry.get("finishing")
            kept.generate_s = 0.0
            kept.seeds = tuple(entry.get("seeds", ()))
            kept.flaws = tuple(entry.get("flaws", ()))
        case _:
            return True  # skipped, and it will be again
    job.segments[position] = kept
    return True


def _look_at(path: Path, job: LiveJob, kept: LiveSegment, sha256: str) -> bool:
    """Whether the published file is what the manifest says; its length and outline then."""
    if _content(path) != sha256:
        return False
    kept.sha256 = sha256
    if job.job.task == "speak":
        try:
            with (
                open(files.open_regular(path), "rb") as file,
                soundfile.SoundFile(file.fileno(), closefd=False) as wav,
            ):
                kept.frames, kept.sample_rate = wav.frames, wav.samplerate
                kept.peaks = outline(wav)
        except (OSError, soundfile.SoundFileError, RuntimeError):
            return False
    return True


# --- when it is spoken ------------------------------------------------------------------------------------------


def put_aside(folder: Path, job: LiveJob, positions: Iterable[int]) -> None:
    """Move what lies where the new files of these segments are about to come to ``takes/``, durably, under names that
    are free; the history of each segment says where its earlier take is.

    Raises:
        OSError: the outbox failed; call again.
    """
    with contextlib.ExitStack() as stack:
        takes: _Takes | None = None
        for position in positions:
            live, entry = job.segments[position], job.earlier.get(position)
            place = folder / published_name(job, position)
            wanted = entry["sha256"] if entry is not None and entry["status"] == "ok" else None
            there = _content(place)
            if wanted is None and there in (None, live.sha256):
                continue
            takes = takes or stack.enter_context(_opened_takes(folder))
            found = None if wanted is None else takes.find(place.name, wanted)
            if there is not None and (found is None if there == wanted else there != live.sha256):
                moved = takes.add(place, 1 if entry is None else len(entry["history"]) + 1)
                found = moved if there == wanted else found
            if found is not None:
                live.history = (*live.history[:-1], {**live.history[-1], "file": f"{TAKES}/{found}"})


def keep_earlier(folder: Path, job: LiveJob) -> None:
    """Let every segment of which nothing new has come be what it was before; what was tried is told. Runs in a thread,
    when all have ended.

    Raises:
        OSError: the outbox failed; call again.
    """
    for position, entry in job.earlier.items():
        live = job.segments[position]
        if live.status not in ("failed", "cancelled") or entry["status"] != "ok":
            continue
        place = folder / published_name(job, position)
        if _content(place) != entry["sha256"]:
            _bring_back(folder, place, entry["sha256"])
        attempt: Entry = {"status": live.status, "seed": live.seed, "attempts": live.attempts}
        if live.status == "failed":
            attempt["error"] = {"code": live.code or "unknown", "message": live.message or "no reason was given"}
        if _keep(folder, job, position, entry):
            kept = job.segments[position]
            told = {name: attempt[name] for name in ("status", "seed", "error") if name in attempt}
            kept.history = (*entry["history"], {**told, "file": None})[-MOST_TAKES:]
            kept.missed = attempt


def _bring_back(folder: Path, place: Path, sha256: str) -> None:
    """Have the take of this content in its place again, if it is among the takes; what lies there stays among them."""
    with _opened_takes(folder) as takes:
        name = takes.find(place.name, sha256)
        if name is None:
            return
        if _content(place) is not None:
            takes.add(place, 1)
        outbox.make_way(place)
        files.copy(takes.folder / name, place)


@dataclasses.dataclass(slots=True)
class _Takes:
    """The folder ``takes``, open: nothing is moved through a link. ``names``: what is in it."""

    folder: Path
    names: list[str]

    def find(self, published: str, sha256: str) -> str | None:
        """The name of a take of this published file that has this content."""
        stem, _, suffix = published.rpartition(".")
        pattern = re.compile(rf"{re.escape(stem)}\.\d+\.{suffix}")
        return next((n for n in self.names if pattern.fullmatch(n) and _content(self.folder / n) == sha256), None)

    def add(self, place: Path, number: int) -> str:
        """Move the published file here; its name from now on, with the first free number from this one on."""
        stem, _, suffix = place.name.rpartition(".")
        while True:
            name = f"{stem}.{number}.{suffix}"
            try:
                files.rename_new(place, self.folder / name)
            except FileExistsError:
                number += 1
            else:
                files.fsync_folder(self.folder)
                self.names.append(name)
                return name


@contextlib.contextmanager
def _opened_takes(folder: Path) -> Iterator[_Takes]:
    outbox.make_way(folder / TAKES, folder=True)
    descriptor = files.open_folder(folder / TAKES, folder, make=True)
    try:
        yield _Takes(files.held(descriptor), sorted(os.listdir(descriptor)))
    finally:
        os.close(descriptor)


def _content(path: Path) -> str | None:
    """The sha256 of a file, in hex; None where there is none that a segment's could be.

    Raises:
        OSError: it can't be read.
    """
    try:
        with open(files.open_regular(path), "rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                return ""
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno in files.NOT_REGULAR or isinstance(error, FileNotFoundError):
            return None
        raise


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False

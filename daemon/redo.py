"""Redoing segments of an ended job: what is kept of the earlier manifest, and what becomes of the earlier takes.

The job is taken again like any other, so its manifest.json has become manifest.N.json; the last of these says what came
of each segment before. Those that are not redone keep it, whatever engine runs now and whether or not it would speak
them alike; their files are looked at, not moved. Of those that are redone the earlier WAV goes to
``takes/segment_0003.1.wav``, and the manifest lists it in the segment's ``history``.

``look_back`` may run again after a crash: it finds the same manifest, and what it has moved before it leaves alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import soundfile
import structlog

from daemon import files
from daemon.config import Settings
from daemon.core.identity import next_seed
from daemon.core.job import JobRejected, Reason
from daemon.core.redo import RedoRequest, compose
from daemon.inbox import read_document
from daemon.live_job import LiveJob, LiveSegment
from daemon.outbox import published_name
from daemon.report.peaks import outline

log = structlog.get_logger("dubd.redo")

TAKES = "takes"
MOST_TAKES = 100
"""So many earlier takes of a segment are told; the oldest are forgotten first, their WAVs stay."""

Entry = dict[str, Any]
"""A segment as an earlier manifest tells it."""


def compose_redo(request: RedoRequest, settings: Settings) -> bytes:
    """The job that the request means: what was asked before, with the redo in it.

    Raises:
        JobRejected: there is no such job, or it can't be read back.
        OSError: the outbox failed.
    """
    asked = settings.paths.outbox / request.job_id / "job.json"
    try:
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


def look_back(folder: Path, job: LiveJob) -> None:
    """Give every segment of a job that is redone in part what is known of it: those that are kept are over, those that
    are redone have their history, and their earlier files are put aside. Runs in a thread.

    Raises:
        OSError: the outbox failed; call again.
    """
    redo = job.job.redo
    assert redo is not None
    name, earlier = _earlier_manifest(folder)
    if earlier is None:
        log.warning("there is no earlier manifest to keep anything of", job=job.job_id)
        return
    entries = _entries(earlier)
    redone = set(redo.segments)
    for position, live in enumerate(job.segments):
        entry = entries.get(live.segment.index)
        if entry is None:
            continue
        history = _history(entry)
        if live.segment.index not in redone:
            same = entry.get("speaker") == live.segment.speaker and entry.get("text") == live.segment.text
            if live.status != "waiting" or (same and _keep(folder, job, position, entry)):
                job.segments[position].history = history
                continue
            if not same:
                continue  # another line, which nobody has spoken yet
        live = job.segments[position]
        take = _put_aside(folder, job, position, len(history) + 1, entry)
        live.history = (*history, {**take, "manifest": name})[-MOST_TAKES:]
        live.again = True


def _earlier_manifest(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """The name and the content of the last manifest.N.json."""
    numbers = []
    for name in os.listdir(folder):
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "manifest" and parts[2] == "json" and parts[1].isdecimal():
            numbers.append(int(parts[1]))
    if not numbers:
        return "", None
    name = f"manifest.{max(numbers)}.json"
    try:
        content = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError) as error:
        log.error("the earlier manifest can't be read", path=str(folder / name), error=str(error))
        return name, None
    return name, content if isinstance(content, dict) else None


def _entries(manifest: Mapping[str, Any]) -> dict[int, Entry]:
    segments = manifest.get("segments")
    rows = segments if isinstance(segments, list) else []
    return {row["index"]: row for row in rows if isinstance(row, dict) and type(row.get("index")) is int}


def _history(entry: Entry) -> tuple[Entry, ...]:
    history = entry.get("history")
    return tuple(take for take in history if isinstance(take, dict)) if isinstance(history, list) else ()


def _keep(folder: Path, job: LiveJob, position: int, entry: Entry) -> bool:
    """Let the segment be what it was; False when its file is not what it was, so that it must be spoken again."""
    live = job.segments[position]
    kept = dataclasses.replace(live, attempts=_whole(entry.get("attempts")))
    match entry.get("status"):
        case "failed" | "cancelled" as status:
            said = entry.get("error")
            error = said if isinstance(said, dict) else {}
            kept.status = status
            kept.code, kept.message = str(error.get("code")), str(error.get("message"))
        case "ok":
            if not _look_at(folder / published_name(job, position), job, kept, entry.get("sha256")):
                return False
            kept.status, kept.cached, kept.published = "ok", True, True
            kept.seed = _whole(entry.get("seed"))
            kept.truncated = entry.get("truncated") is True
            finishing = entry.get("finishing")
            kept.finishing = finishing if isinstance(finishing, dict) else None
            kept.generate_s = 0.0
            kept.seeds = tuple(seed for seed in _list(entry.get("seeds")) if type(seed) is int)
            kept.flaws = tuple(str(flaw) for flaw in _list(entry.get("flaws")))
        case _:
            return True  # skipped, and it will be again
    job.segments[position] = kept
    return True


def _look_at(path: Path, job: LiveJob, kept: LiveSegment, sha256: object) -> bool:
    """Whether the published file is what the manifest says; its length and outline then."""
    try:
        descriptor = files.open_regular(path)
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
        kept.sha256 = str(sha256)
        if job.job.task == "speak":
            os.lseek(descriptor, 0, os.SEEK_SET)
            try:
                with soundfile.SoundFile(descriptor, closefd=False) as wav:
                    kept.frames, kept.sample_rate = wav.frames, wav.samplerate
                    kept.peaks = outline(wav)
            except (soundfile.SoundFileError, RuntimeError):
                return False
    return True


def _put_aside(folder: Path, job: LiveJob, position: int, number: int, entry: Entry) -> Entry:
    """Move the earlier take's file out of the way, unless that has been done; what the history says of the take."""
    name = published_name(job, position)
    stem, _, suffix = name.rpartition(".")
    aside = f"{TAKES}/{stem}.{number}.{suffix}"
    # A segment that an earlier life has redone already has its new file there.
    if entry.get("status") == "ok" and job.segments[position].status == "waiting" and not (folder / aside).exists():
        files.make_folder(folder / TAKES)
        try:
            files.rename(folder / name, folder / aside)
        except FileNotFoundError:
            pass  # somebody has removed it
        else:
            files.fsync_folder(folder / TAKES)
    told = ("status", "seed", "seeds", "duration_s", "overrun_s", "sha256", "truncated", "finishing", "flaws", "error")
    take = {key: entry[key] for key in told if key in entry}
    return {**take, "file": aside if (folder / aside).is_file() else None}


def _whole(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []

"""What other programs read: the job's folder in the outbox, its progress, its manifest.

Everything appears whole under its name, and manifest.json last of all. The functions here run in threads and may be
repeated; a share that has gone away raises OSError, and the same call is made again when it may be back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from daemon import files, results
from daemon.live_job import LiveJob, LiveSegment
from daemon.ownership import Alone, Holder, TakenOver

log = structlog.get_logger("dubd.outbox")

SCHEMA = 1

LONGEST_JOB_S = 366 * 86_400.0
"""A manifest that tells of a longer job is none of ours."""

_HEAD_BYTES = 1 << 16
_EARLIER_NAME = re.compile(r"manifest\.([1-9][0-9]{0,14})\.json")
_EARLIER = re.compile(rb'\n "earlier": ([0-9]{1,15}),\n')
_TIMINGS = re.compile(
    rb'"received_at": ([0-9]{1,12}\.[0-9]{1,3}),\s+"started_at": [0-9.]+,\s+"ended_at": ([0-9]{1,12}\.[0-9]{1,3})'
)
"""In the head of a manifest as ``as_json`` writes it."""

LISTING_SHARE = 20
"""The outbox is listed for names no more often than so many times what that takes."""


class OutboxConflict(Exception):
    """The name of the job's folder in the outbox is taken by something that is not a folder of ours."""


def published_name(job: LiveJob, position: int) -> str:
    """The name of a segment's file in the job's folder."""
    return f"segment_{job.segments[position].segment.index:04d}{job.suffix}"


ALONE = Alone()


def own(outbox: Path, job: LiveJob, holder: Holder) -> Path:
    """Make the job's folder and own it.

    Raises:
        OutboxConflict: something else has that name.
        ownership.Owned, ownership.TakenOver: another daemon works in it.
    """
    folder = outbox / job.job_id
    files.make_folder(outbox)
    try:
        files.make_unsynced_folder(folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise OutboxConflict(
                f"{folder} exists and is not a folder; move it away or choose another job_id"
            ) from None
    holder.take(job.taken)
    return folder


def take(outbox: Path, job: LiveJob, holder: Holder = ALONE) -> Path:
    """Make the job's folder and own it, move an earlier manifest aside, write what was asked.

    Raises:
        OutboxConflict: something else has that name.
        ownership.Owned, ownership.TakenOver: another daemon works in it.
    """
    folder = own(outbox, job, holder)
    files.remove_leftovers(folder)
    number = number_aside(folder, job)
    if number is not None:
        job.aside = number
        holder.check()
        results.forget_mark(folder)
        aside = folder / f"manifest.{number}.json"
        files.rename_new(folder / "manifest.json", aside)
        try:
            holder.check()
        except TakenOver:
            # It was that of whoever owns the folder now.
            with contextlib.suppress(FileExistsError):
                files.rename_new(aside, folder / "manifest.json")
            raise
    make_way(folder / "job.json")
    files.copy(job.folder / "job.json", folder / "job.json", holder.check)
    files.sync_all([], [folder, outbox])
    return folder


def number_aside(folder: Path, job: LiveJob) -> int | None:
    """The N of the manifest.N.json that the manifest there becomes when this job is taken; None where there is none, or
    the job was taken. It is greater than any that is seen, or that the manifest remembers, so that it says which came
    after which; and remains the same when a crash comes before the manifest has moved."""
    if job.taken or not os.path.lexists(folder / "manifest.json"):
        return None
    if job.aside is not None and not os.path.lexists(folder / f"manifest.{job.aside}.json"):
        return job.aside
    remembered = _EARLIER.search(results.manifest_head(folder, _HEAD_BYTES))
    return max([*earlier_numbers(folder), int(remembered[1]) if remembered else 0]) + 1


def earlier_numbers(folder: Path) -> list[int]:
    """The numbers of the manifest.N.json there, whatever they are."""
    return [int(found[1]) for name in os.listdir(folder) if (found := _EARLIER_NAME.fullmatch(name))]


def give_back(folder: Path, job: LiveJob) -> None:
    """The job is not to be: the manifest that was moved aside for it is the last one again.

    Raises:
        OSError: the outbox failed; call again.
    """
    if job.aside is not None:
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            files.rename_new(folder / f"manifest.{job.aside}.json", folder / "manifest.json")
            files.fsync_folder(folder)


def make_way(path: Path, *, folder: bool = False) -> None:
    """What lies at a place of ours and is no file (no ``folder``), as others may have put it there, gets another name
    beside it, so that it is neither followed nor waited for nor lost.

    Raises:
        OSError: it lies there still.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode):
        return
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.odd.{number}")
        try:
            files.rename_new(path, aside)
        except FileExistsError:
            continue
        except FileNotFoundError:
            return
        log.warning("something in the place of a file of ours was put aside", path=str(path), now=aside.name)
        return


class TakenNames:
    """The names that folders in the outbox have. ``fold`` maps a name to what must be unique. May be used from several
    threads at a time."""

    def __init__(self, outbox: Path, fold: Callable[[str], str]) -> None:
        self._outbox = outbox
        self._fold = fold
        self._names: dict[str, list[str]] = {}
        self._listed_at = -math.inf
        self._cost_s = 0.0

    def twin(self, job_id: str) -> str | None:
        """The name of a folder that differs from ``job_id`` in case only, or None. On Windows and macOS, the two would
        be one folder."""
        started = time.monotonic()
        # Listing a large outbox for every job that comes would take longer than the jobs.
        if started - self._listed_at >= LISTING_SHARE * self._cost_s:
            names: dict[str, list[str]] = {}
            with contextlib.suppress(FileNotFoundError), os.scandir(self._outbox) as entries:
                for entry in entries:
                    names.setdefault(self._fold(entry.name), []).append(entry.name)
            self._names, self._listed_at = names, time.monotonic()
            self._cost_s = self._listed_at - started
        alike = self._names.get(self._fold(job_id), [])
        return None if job_id in alike or not alike else alike[0]

    def add(self, job_id: str) -> None:
        """A folder of this name is about to be made."""
        alike = self._names.setdefault(self._fold(job_id), [])
        if job_id not in alike:
            alike.append(job_id)


def publish(folder: Path, job: LiveJob, position: int, holder: Holder = ALONE) -> None:
    """Put a finished file into the job's folder; ``settle`` makes that last, once for many.

    Raises:
        OSError: it is not there yet; call again.
        FileNotFoundError: the stored file is gone: moved before a crash, or lost.
    """
    place = folder / published_name(job, position)
    make_way(place)
    try:
        files.publish(job.stored_file(position), place, folder, holder.check)
    except FileNotFoundError:
        if not folder.is_dir():
            raise OSError(errno.EIO, "the job's folder in the outbox is gone", str(folder)) from None
        raise
    job.segments[position].published = True


def settle(folder: Path, job: LiveJob, positions: Iterable[int]) -> None:
    """Make what was published last; only then the stored files go.

    Raises:
        OSError: they are still there.
    """
    files.fsync_folder(folder)
    for position in positions:
        files.remove(job.stored_file(position))


def as_json(value: Any) -> bytes:
    """A JSON file for other programs: UTF-8 as it is, a line feed at the end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_json(path: Path, value: Any, *, durable: bool = True, holder: Holder = ALONE) -> None:
    put(path, as_json(value), durable=durable, holder=holder)


def put(path: Path, data: bytes, *, durable: bool = True, holder: Holder = ALONE) -> None:
    """Write a file in a job's folder, whatever lies there."""
    make_way(path)
    files.write_atomically(path, data, durable=durable, check=holder.check)


def write_overtaken(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The manifest of a job whose folder was taken over, as if it had ended before that; where it is."""
    data = as_json(manifest)
    number = 1
    while True:
        path = folder / f"manifest.{number}.json"
        if files.holds(path, hashlib.sha256(data).hexdigest()):
            return path
        try:
            files.write_new(path, data)
        except FileExistsError:
            number += 1
        else:
            return path


def write_manifest(folder: Path, manifest: Mapping[str, Any], holder: Holder = ALONE) -> str:
    """The sha256 of its bytes, in hex. The same one that an earlier life of the daemon has written stays, with the mark
    of who has read it since."""
    data = as_json(manifest)
    if results.manifest_head(folder, len(data) + 1) == data:
        holder.check()
        files.fsync_folder(folder)
    else:
        # Whoever has marked the earlier one as read has not seen this one.
        results.forget_mark(folder)
        put(folder / "manifest.json", data, holder=holder)
    return hashlib.sha256(data).hexdigest()


def told_end(folder: Path, received_at: float) -> float | None:
    """When the job that was received then has ended, as the manifest in its folder says that an earlier life of the
    daemon has written; None where there is none. Others may write there too, so no more is read of it, and nothing
    understood, but the place where we write these two."""
    found = _TIMINGS.search(results.manifest_head(folder, _HEAD_BYTES))
    if found is None or float(found[1]) != round(received_at, 3):
        return None
    # Not held against the clock of now, which somebody may have set back since.
    return float(found[2]) if 0 <= float(found[2]) - round(received_at, 3) <= LONGEST_JOB_S else None


def manifest(job: LiveJob) -> dict[str, Any]:
    """The manifest of a job whose segments have all ended."""
    counts = job.counts()
    del counts["running"]
    assert job.started_at is not None
    assert job.ended_at is not None
    wall_s = max(job.ended_at - job.started_at, 0.0)
    audio_s = job.audio_s()
    engine = job.engine
    return {
        "schema": SCHEMA,
        "job_id": job.job_id,
        "status": job.status(),
        "counts": counts,
        "engine": {
            "name": engine.name if engine else None,
            "model": engine.model if engine else None,
            "version": engine.version if engine else None,
        },
        "timings": {
            "received_at": round(job.received_at, 3),
            "started_at": round(job.started_at, 3),
            "ended_at": round(job.ended_at, 3),
            "wall_s": round(wall_s, 3),
            "audio_s": round(audio_s, 3),
            "xrt": round(audio_s / wall_s, 2) if wall_s > 0 else None,
        },
        **({} if job.aside is None else {"earlier": job.aside}),
        "ignored": job.ignored,
        "segments": [manifest_segment(job, position) for position in range(len(job.segments))],
    }


def manifest_segment(job: LiveJob, position: int) -> dict[str, Any]:
    """What the manifest says of one segment."""
    live = job.segments[position]
    spoken = live.status == "ok"
    duration = live.duration_s if job.job.task == "speak" else None
    slot = live.segment.slot_s
    entry: dict[str, Any] = {
        "index": live.segment.index,
        "speaker": live.segment.speaker,
        "text": live.segment.text,
        "status": live.status,
        "cached": live.cached,
        "file": published_name(job, position) if spoken else None,
        "duration_s": None if duration is None else round(duration, 6),
        "slot_s": None if slot is None else round(slot, 6),
        "overrun_s": None if duration is None or slot is None else round(max(0.0, duration - slot), 6),
        "sample_rate": live.sample_rate if duration is not None else None,
        "seed": live.seed if spoken else live.segment.seed,
        "attempts": live.attempts,
        "truncated": live.truncated,
        "sha256": live.sha256,
        "worker": live.worker,
        "device": live.device,
        "generate_s": live.generate_s,
        "error": _error(live),
    }
    if live.finishing is not None:
        entry["finishing"] = live.finishing
    if live.flaws:
        entry["flaws"] = list(live.flaws)
    if len(live.seeds) > 1:
        entry["seeds"] = list(live.seeds)
    if live.missed is not None:
        entry["missed"] = live.missed
    if live.history:
        entry["history"] = list(live.history)
    return entry


def _error(live: LiveSegment) -> dict[str, str] | None:
    if live.status != "failed":
        return None
    return {"code": live.code or "unknown", "message": live.message or "no reason was given"}


def progress(job: LiveJob, workers: Iterable[dict[str, Any]], now: float, eta_s: float | None) -> dict[str, Any]:
    """What progress.json says; ``now`` is Unix time."""
    counts = job.counts()
    ended = counts["ok"] + counts["failed"] + counts["skipped"] + counts["cancelled"]
    all_ended = ended == counts["total"]
    of_speakers = [
        {"id": speaker.id, "total": job.segments.totals[speaker.id], "ended": job.segments.ended[speaker.id]}
        for speaker in job.job.speakers
    ]
    status: str = "queued" if job.started_at is None or job.engine is None else "running"
    if job.ended_at is not None:
        status = job.status()
    elif all_ended:
        status = "publishing"
    return {
        "schema": SCHEMA,
        "job_id": job.job_id,
        "status": status,
        "counts": counts,
        "fraction": round(ended / counts["total"], 4) if counts["total"] else 1.0,
        "received_at": round(job.received_at, 3),
        "started_at": None if job.started_at is None else round(job.started_at, 3),
        "updated_at": round(now, 3),
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "audio_s": round(job.audio_s(), 3),
        "speakers": of_speakers,
        "workers": list(workers),
        "note": job.note,
    }

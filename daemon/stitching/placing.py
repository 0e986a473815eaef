"""What is to be laid, and where: from a manifest, the job beside it, and the WAVs they name.

The manifest says what came of each segment, the job when it is due. Times are in seconds where they come from files,
and in samples of the track as soon as its rate is known: a segment starts at the sample nearest to its time.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from daemon import files
from daemon.core.job import Job, JobRejected, Limits
from daemon.core.job_parser import parse_job

HUGE = 2**31 - 1

LARGEST_JOB = 256 << 20
"""Bytes of a job.json that is read."""

ANY_JOB = Limits(job_bytes=HUGE, segments=HUGE, text_characters=HUGE, references_per_speaker=HUGE, reference_bytes=HUGE)
"""The daemon has accepted the job, by whatever limits it had then."""


class NotLaid(Exception):
    """There is nothing to lay; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that was spoken. ``start_s`` and ``end_s``: its slot on the film's clock, None where the job gives
    none. ``frames`` of ``sample_rate`` Hz in ``file``."""

    index: int
    speaker: str
    file: Path
    start_s: float | None
    end_s: float | None
    frames: int
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class Missing:
    """A segment that should have been heard and is not in the track."""

    index: int
    speaker: str
    start_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Result:
    job_id: str
    speakers: tuple[str, ...]
    segments: tuple[Segment, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A segment on the track: from sample ``start``, ``frames`` long, both at the track's rate."""

    segment: Segment
    start: int
    frames: int

    @property
    def end(self) -> int:
        return self.start + self.frames


@dataclass(frozen=True, slots=True)
class Overlap:
    """``second`` begins ``frames`` samples before the end of ``first``, or ends with them while that goes on."""

    first: Placed
    second: Placed
    frames: int


def read_result(manifest: Any, folder: Path, *, verify: bool) -> Result:
    """What the job in ``folder`` has come to. ``manifest``: its document. ``verify``: count files that are not what the
    manifest says as missing; else lay them as they are.

    Raises:
        NotLaid: it is no job with speech, or the job beside the manifest can't be read.
    """
    rows = manifest.get("segments") if isinstance(manifest, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and type(row.get("index")) is int for row in rows):
        raise NotLaid(f"{folder} holds no spoken job: its manifest has no segments")
    job = _read_job(folder)
    if job.task != "speak":
        raise NotLaid(f"{job.job_id} has made codes of recordings, no speech")
    times = {segment.index: (segment.start, segment.end) for segment in job.segments}
    segments, missing = [], []
    for row in rows:
        index, speaker, status = row["index"], str(row.get("speaker", "")), row.get("status")
        start_s, end_s = times.get(index, (None, None))
        if status == "skipped":
            continue
        try:
            if status != "ok":
                raise ValueError(_reason(row))
            file = _file(folder, row)
            info = _look_into(file, row.get("sha256") if verify else None)
        except ValueError as error:
            missing.append(Missing(index, speaker, start_s, str(error)))
            continue
        segments.append(Segment(index, speaker, file, start_s, end_s, info.frames, info.samplerate, info.channels))
    if not segments:
        raise NotLaid(f"no segment of {job.job_id} can be laid" + (f": {missing[0].reason}" if missing else ""))
    return Result(job.job_id, tuple(speaker.id for speaker in job.speakers), tuple(segments), tuple(missing))


def _read_job(folder: Path) -> Job:
    try:
        return parse_job(files.read_regular(folder / "job.json", LARGEST_JOB), stem=folder.name, limits=ANY_JOB)
    except OSError as error:
        why = error.strerror or str(error)
        raise NotLaid(f"{folder / 'job.json'}, which says when each line is due, can't be read: {why}") from error
    except JobRejected as rejection:
        reason = rejection.reasons[0]
        raise NotLaid(f"{folder / 'job.json'} is no job: {reason.path}: {reason.message}") from rejection


def _reason(row: dict[str, Any]) -> str:
    error = row.get("error")
    if row.get("status") == "failed" and isinstance(error, dict):
        return f"failed: {error.get('code')}: {error.get('message')}"
    return str(row.get("status"))


def _file(folder: Path, row: dict[str, Any]) -> Path:
    """Raises ValueError: the manifest names none in the folder."""
    name = row.get("file")
    if not isinstance(name, str) or not name or os.path.basename(name) != name:
        raise ValueError("the manifest names no file of this folder")
    return folder / name


def _look_into(file: Path, sha256: str | None) -> Any:
    """What libsndfile says of the file.

    Raises:
        ValueError: it is not there, no recording, or not the one that was spoken.
    """
    try:
        with open(files.open_regular(file), "rb") as stream:
            if sha256 is not None and hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise ValueError(f"{file.name} has been changed since it was spoken (--no-verify lays it all the same)")
            stream.seek(0)
            with soundfile.SoundFile(stream.fileno(), closefd=False) as wav:
                return wav
    except FileNotFoundError as error:
        raise ValueError(f"{file.name} is not there") from error
    except OSError as error:
        raise ValueError(f"{file.name} can't be read: {error.strerror or error}") from error
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(f"{file.name} is no recording that can be decoded") from error


# --- on the track ------------------------------------------------------------------------------------------


def common_rate(segments: Sequence[Segment]) -> int:
    """The rate of the track where none is asked for: the segments' own, the highest where they differ."""
    return max(segment.sample_rate for segment in segments)


def place(segments: Sequence[Segment], sample_rate: int, gap_s: float | None) -> list[Placed]:
    """The segments in the order of the track. Those without a time follow the segment before them in the job after
    ``gap_s`` seconds.

    Raises:
        NotLaid: some have no time, and there is no ``gap_s``.
    """
    untimed = [segment.index for segment in segments if segment.start_s is None]
    if untimed and gap_s is None:
        from daemon.core.redo import indexes_text

        count = "no segment has" if len(untimed) == len(segments) else f"{len(untimed)} segments have no"
        which = "" if len(untimed) == len(segments) else f" ({indexes_text(untimed)})"
        message = f"{count} a start{which}: with --gap 0.3 each follows the one before after 0.3 s"
        raise NotLaid(message.replace("have no a", "have no"))
    placed: list[Placed] = []
    end = 0
    for segment in segments:
        frames = -(-segment.frames * sample_rate // segment.sample_rate)
        if segment.start_s is not None:
            start = round(segment.start_s * sample_rate)
        else:
            start = end + round((gap_s or 0.0) * sample_rate) if placed else 0
        placed.append(Placed(segment, start, frames))
        end = placed[-1].end
    return sorted(placed, key=lambda one: (one.start, one.segment.index))


def overlaps(placed: Sequence[Placed], most: int) -> tuple[list[Overlap], int]:
    """The pairs that are heard at the same time, in order, the first ``most`` of them; and how many there are."""
    found: list[Overlap] = []
    count = 0
    ends: list[int] = []
    """Of those that are going on, the first to end before the others."""
    going_on: list[Placed] = []
    for one in placed:
        while ends and ends[0] <= one.start:
            heapq.heappop(ends)
        count += len(ends)
        if len(found) < most:
            # All that are left are told, so that each is looked at no more often than that, and once when it has ended.
            going_on = [other for other in going_on if other.end > one.start]
            shown = going_on[: most - len(found)]
            found.extend(Overlap(other, one, min(other.end, one.end) - one.start) for other in shown)
        if one.frames:
            heapq.heappush(ends, one.end)
            going_on.append(one)
    return found, count


def overrun_s(one: Placed, sample_rate: int) -> float:
    """Seconds that the segment goes on past its slot; 0 for one that has none."""
    if one.segment.end_s is None or one.segment.start_s is None:
        return 0.0
    return max(0.0, one.end / sample_rate - one.segment.end_s)

"""``dubd stitch``: the segments of a finished job on the film's clock, with a report of what does not fit."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.reading import Document, read_document
from daemon.commands.showing import console, nearest, plain, plural, size

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.stitching.laying import Form, Track
    from daemon.stitching.placing import Overlap, Placed, Result

MOST_TOLD = 10
"""Of each kind of trouble; --json has up to MOST_LISTED."""

MOST_LISTED = 10_000

OVERRUN_TOLD_S = 0.0005
"""Less is rounding."""

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)\Z")


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's options, as ``dubd stitch --help`` explains them."""

    job: str
    output: Path
    per_speaker: bool
    channels: int
    sample_rate: int | None
    subtype: str
    length: str | None
    gain_db: float
    gap_s: float | None
    verify: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What was laid, and what an editor should look at."""

    result: Result
    tracks: list[Track]
    form: Form
    overlaps: list[Overlap]
    overlap_count: int
    overruns: list[tuple[Placed, float]]


def execute(invocation: Invocation, asked: Asked) -> int:
    from daemon.stitching.laying import Unreadable
    from daemon.stitching.placing import NotLaid

    settings = invocation.settings()
    _check(asked)
    try:
        report = _stitch(settings, asked)
    except NotLaid as error:
        raise CommandFailed(plain(error), ExitCode.REJECTED) from error
    except Unreadable as error:
        raise CommandFailed(plain(error)) from error
    if asked.as_json:
        print(json.dumps(_document(report), ensure_ascii=False, indent=1))
    else:
        for line in _lines(report):
            print(line)
    return ExitCode.FAILED if report.result.missing else ExitCode.OK


def _check(asked: Asked) -> None:
    from daemon.stitching.wave_file import BYTES

    if asked.subtype not in BYTES:
        known = ", ".join(BYTES)
        raise CommandFailed(f"--subtype is one of {known}, not {plain(asked.subtype)}", ExitCode.REJECTED)
    if asked.per_speaker:
        if asked.output.exists() and not asked.output.is_dir():
            message = f"{plain(asked.output)} is a file; with --per-speaker name a folder for the tracks"
            raise CommandFailed(message, ExitCode.REJECTED)
        return
    if asked.output.suffix.lower() != ".wav":
        message = f"a track is a WAV, so its name ends with .wav: not {plain(asked.output)}"
        raise CommandFailed(message, ExitCode.REJECTED)
    if asked.output.is_dir():
        raise CommandFailed(f"{plain(asked.output)} is a folder; name a file", ExitCode.REJECTED)
    if not asked.output.parent.is_dir():
        raise CommandFailed(f"there is no folder {plain(asked.output.parent)}; make it first", ExitCode.REJECTED)


def _stitch(settings: Settings, asked: Asked) -> Report:
    from daemon import files
    from daemon.stitching.laying import Form, by_speaker, bytes_needed, lay, track_name
    from daemon.stitching.placing import common_rate, overlaps, overrun_s, place, read_result

    file, manifest = _find(settings, asked.job)
    result = read_result(manifest, file.parent, verify=asked.verify)
    sample_rate = asked.sample_rate or common_rate(result.segments)
    placed = place(result.segments, sample_rate, asked.gap_s)
    frames = _frames(asked.length, placed, sample_rate)
    form = Form(frames, sample_rate, asked.channels, asked.subtype, 10 ** (asked.gain_db / 20))  # type: ignore[arg-type]

    tracks: list[tuple[Path, str | None, list[Placed]]] = [(asked.output, None, placed)]
    if asked.per_speaker:
        files.make_folder(asked.output)
        tracks = [
            (asked.output / track_name(number, speaker), speaker, own)
            for number, (speaker, own) in enumerate(by_speaker(placed, result.speakers).items(), 1)
        ]
    folder = asked.output if asked.per_speaker else asked.output.parent
    needed, free = bytes_needed(len(tracks), form), shutil.disk_usage(folder).free
    if needed > free:
        message = f"{plain(folder)} has {size(free)} free, and {plural(len(tracks), 'track')} of this length need"
        raise CommandFailed(f"{message}{'s' if len(tracks) == 1 else ''} {size(needed)}")
    laid = []
    with _progress(len(tracks), asked) as tell:
        for number, (path, speaker, own) in enumerate(tracks):
            laid.append(lay(own, path, form, speaker=speaker, tell=lambda part, done=number: tell(done + part)))  # type: ignore[misc]
    found, count = overlaps(placed, MOST_LISTED)
    overruns = [(one, past) for one in placed if (past := overrun_s(one, sample_rate)) > OVERRUN_TOLD_S]
    return Report(result, laid, form, found, count, overruns)


def _find(settings: Settings, job: str) -> tuple[Path, Document]:
    """The manifest that ``job`` means: a JOB_ID, a folder, or the file itself."""
    outbox = settings.paths.outbox
    given = Path(job)
    named = outbox / job if os.path.basename(job) == job and job not in (".", "..") else None
    if named is not None and named.is_dir():
        file = named / "manifest.json"
    elif given.is_dir():
        file = given / "manifest.json"
    elif given.is_file():
        file = given.resolve()
    else:
        known = [path.parent.name for path in outbox.glob("*/manifest.json")]
        message = f"there is no job {plain(job)} in {plain(outbox)}, and no such folder.{nearest(job, known)}"
        raise CommandFailed(message, ExitCode.REJECTED)
    manifest = read_document(file)
    if manifest is None and not file.exists():
        message = (
            f"{plain(job)} is not over: there is no {file.name} in {plain(file.parent)} yet ('dubd jobs' tells more)"
        )
        raise CommandFailed(message, ExitCode.REJECTED)
    if manifest is None:
        raise CommandFailed(f"{plain(file)} can't be read as a manifest", ExitCode.REJECTED)
    return file, manifest


def _frames(length: str | None, placed: Sequence[Placed], sample_rate: int) -> int:
    """The length of the track in samples."""
    last = max(placed, key=lambda one: one.end)
    if length is None:
        return last.end
    frames = round(_seconds(length) * sample_rate)
    if frames < last.end:
        over = (last.end - frames) / sample_rate
        message = f"segment {last.segment.index} ends {over:.3f} s after the track would: give a longer --length"
        raise CommandFailed(message, ExitCode.REJECTED)
    return frames


def _seconds(length: str) -> float:
    import soundfile

    if match := _CLOCK.match(length.strip()):
        return (int(match[1] or 0) * 60 + int(match[2])) * 60 + float(match[3].replace(",", "."))
    try:
        seconds = float(length)
    except ValueError:
        pass
    else:
        if 0 < seconds < 1_000_000:
            return seconds
        raise CommandFailed(f"--length can't be {plain(length)} seconds", ExitCode.REJECTED)
    try:
        info = soundfile.info(length)
    except (soundfile.SoundFileError, OSError) as error:
        message = f"--length is seconds, H:MM:SS.mmm, or a recording (its sound, not the film): not {plain(length)}"
        raise CommandFailed(message, ExitCode.REJECTED) from error
    return float(info.frames / info.samplerate)


def _progress(tracks: int, asked: Asked) -> AbstractContextManager[Callable[[float], None]]:
    """Shows how far it is, to a person; ``tell(tracks done)``."""
    terminal = console(error=True)
    if not terminal.is_terminal:
        return nullcontext(lambda done: None)
    return _Bar(tracks, plain(asked.output.name))


class _Bar:
    def __init__(self, tracks: int, name: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, console=console(error=True), transient=True)
        self._task = self._progress.add_task(name, total=tracks)

    def __enter__(self) -> Callable[[float], None]:
        self._progress.start()
        return lambda done: self._progress.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


# --- what there is to say ----------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """ "0:01:02.345"."""
    whole = round(seconds * 1000)
    return f"{whole // 3_600_000}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}"


def decibels(peak: float) -> float:
    """Relative to full scale, 1."""
    return 20 * math.log10(peak) if peak > 0 else -math.inf


def _lines(report: Report) -> Iterator[str]:
    result, form, rate = report.result, report.form, report.form.sample_rate
    channels = "mono" if form.channels == 1 else "stereo"
    laid = f"{len(result.segments)} of {plural(len(result.segments) + len(result.missing), 'segment')} laid"
    yield f"{plain(result.job_id)}: {laid}, {clock(form.frames / rate)} of {channels}, {rate} Hz, {form.subtype}"
    if result.missing:
        yield f"  not laid: {plural(len(result.missing), 'segment')}"
        yield from _some(
            [f"{one.index:>6}  {plain(one.speaker)}{_at(one.start_s)}: {plain(one.reason)}" for one in result.missing]
        )
    if report.overlap_count:
        longest = max(overlap.frames for overlap in report.overlaps) / rate
        yield f"  heard at the same time: {plural(report.overlap_count, 'pair')}, by up to {longest:.3f} s"
        yield from _some([_overlap(overlap, rate) for overlap in report.overlaps], report.overlap_count)
    if report.overruns:
        longest = max(past for _, past in report.overruns)
        yield f"  past the end of their slots: {plural(len(report.overruns), 'segment')}, by up to {longest:.3f} s"
        by_length = sorted(report.overruns, key=lambda overrun: -overrun[1])
        yield from _some(
            [
                f"{one.segment.index:>6}  {plain(one.segment.speaker)}{_at(one.start / rate)}: by {past:.3f} s"
                for one, past in by_length
            ]
        )
    for track in report.tracks:
        yield f"{plain(track.file)}: {_peak(track, report)}"


def _some(lines: Sequence[str], count: int | None = None) -> Iterator[str]:
    for line in lines[:MOST_TOLD]:
        yield f"  {line}"
    more = (count or len(lines)) - MOST_TOLD
    if more > 0:
        yield f"          and {more:,} more; --json lists them"


def _at(seconds: float | None) -> str:
    return "" if seconds is None else f" at {clock(seconds)}"


def _overlap(overlap: Overlap, rate: int) -> str:
    first, second = overlap.first.segment, overlap.second.segment
    who = f"{first.index} and {second.index} ({plain(first.speaker)}, {plain(second.speaker)})"
    return f"{who}{_at(overlap.second.start / rate)}: {overlap.frames / rate:.3f} s"


def _peak(track: Track, report: Report) -> str:
    if not track.limited:
        return f"peak {decibels(track.peak):.1f} dBFS"
    worst = max(track.limited, key=lambda place: place.peak)
    at = clock(worst.at / report.form.sample_rate)
    return f"{plural(len(track.limited), 'peak')} limited, the highest +{decibels(worst.peak):.1f} dBFS at {at}"


def _document(report: Report) -> Document:
    result, form, rate = report.result, report.form, report.form.sample_rate
    return {
        "schema": 1,
        "job_id": result.job_id,
        "sample_rate": rate,
        "channels": form.channels,
        "subtype": form.subtype,
        "frames": form.frames,
        "length_s": round(form.frames / rate, 6),
        "laid": len(result.segments),
        "missing": [
            {"index": one.index, "speaker": one.speaker, "start": one.start_s, "reason": one.reason}
            for one in result.missing
        ],
        "overlap_count": report.overlap_count,
        "overlaps": [
            {
                "first": overlap.first.segment.index,
                "second": overlap.second.segment.index,
                "at_s": round(overlap.second.start / rate, 6),
                "overlap_s": round(overlap.frames / rate, 6),
            }
            for overlap in report.overlaps
        ],
        "overruns": [
            {"index": one.segment.index, "speaker": one.segment.speaker, "overrun_s": round(past, 6)}
            for one, past in report.overruns
        ],
        "tracks": [_track_document(track, rate) for track in report.tracks],
    }


def _track_document(track: Track, rate: int) -> dict[str, Any]:
    return {
        "file": str(track.file),
        "speaker": track.speaker,
        "peak_dbfs": round(decibels(track.peak), 2) if track.peak > 0 else None,
        "limited": [
            {"at_s": round(place.at / rate, 6), "peak_dbfs": round(decibels(place.peak), 2)}
            for place in track.limited[:MOST_LISTED]
        ],
    }

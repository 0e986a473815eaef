"""Makes tracks: sums the segments block by block, so that the longest film takes no more memory than a short one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from daemon import files
from daemon.stitching.limiter import Limiter, Place, loudest
from daemon.stitching.placing import Placed
from daemon.stitching.wave_file import BYTES, Subtype, WaveFile

BLOCK_FRAMES = 1 << 19
"""Samples that are summed at a time: some ten seconds."""

MOST_HELD = 16
"""Resampled segments that are kept for the next block."""

_UNFIT_FOR_A_NAME = re.compile(r'[\x00-\x1f/\\:*?"<>|\s]+')


class Unreadable(Exception):
    """A segment could not be read while it was laid; the message says which."""


@dataclass(frozen=True, slots=True)
class Form:
    """Of the tracks. ``frames``: their length. ``gain`` is a factor."""

    frames: int
    sample_rate: int
    channels: int
    subtype: Subtype
    gain: float = 1.0


@dataclass(slots=True)
class Track:
    """What was made. ``peak``: the highest of the sum, full scale is 1. ``limited``: where that passed full scale."""

    file: Path
    speaker: str | None
    peak: float = 0.0
    limited: list[Place] = field(default_factory=list)


def lay(
    placed: Sequence[Placed], file: Path, form: Form, *, speaker: str | None, tell: Callable[[float], None]
) -> Track:
    """One track in ``file``, whole or not at all, replacing what was there. ``placed`` in the order of the track;
    ``tell`` hears of progress, from 0 to 1.

    Raises:
        OSError: it can't be written.
        Unreadable: a segment can't be read.
    """
    track = Track(file, speaker)
    # What is the same in all channels is summed once.
    channels = form.channels if any(one.segment.channels > 1 for one in placed) else 1
    # A track of floats holds whatever the sum is, and needs no limit.
    limiter = Limiter(form.sample_rate, channels) if form.subtype != "FLOAT" else None
    with files.written_atomically(file) as descriptor:
        wave = WaveFile(descriptor, form.frames, form.sample_rate, form.channels, form.subtype)
        done = 0
        for block in _blocks(placed, form, channels):
            track.peak = max(track.peak, float(loudest(block).max()))
            wave.write(limiter.process(block) if limiter else block)
            done += len(block)
            tell(done / form.frames)
        if limiter:
            wave.write(limiter.finish())
            track.limited = limiter.places
        wave.finish()
    return track


def _blocks(placed: Sequence[Placed], form: Form, channels: int) -> Iterator[NDArray[np.float64]]:
    """The sum, shape (frames, channels), full scale is 1."""
    reader = _Reader(form, channels)
    waiting = iter(placed)
    following = next(waiting, None)
    going_on: list[Placed] = []
    for start in range(0, form.frames, BLOCK_FRAMES):
        block = np.zeros((min(BLOCK_FRAMES, form.frames - start), channels))
        end = start + len(block)
        while following is not None and following.start < end:
            going_on.append(following)
            following = next(waiting, None)
        for one in going_on:
            first, last = max(start, one.start), min(end, one.end)
            block[first - start : last - start] += reader.read(
                one, first - one.start, last - one.start, kept=one.end > end
            )
        going_on = [one for one in going_on if one.end > end]
        yield block


class _Reader:
    """Reads parts of segments at the track's rate."""

    def __init__(self, form: Form, channels: int) -> None:
        self._form = form
        self._channels = channels
        self._held: dict[int, NDArray[np.float64]] = {}

    def read(self, one: Placed, start: int, end: int, *, kept: bool) -> NDArray[np.float64]:
        """Samples ``start`` to ``end`` of the segment, shape (end - start, channels). ``kept``: more will be asked for.

        Raises:
            Unreadable: it can't be read.
        """
        segment = one.segment
        try:
            if segment.sample_rate == self._form.sample_rate:
                return self._fitted(_samples(segment.file, start, end), end - start)
            whole = self._held.pop(segment.index, None)
            if whole is None:
                whole = self._resampled(one)
            if kept and len(self._held) < MOST_HELD:
                self._held[segment.index] = whole
            return whole[start:end]
        except (OSError, soundfile.SoundFileError) as error:
            raise Unreadable(f"{segment.file} can't be read: {error}") from error

    def _resampled(self, one: Placed) -> NDArray[np.float64]:
        import soxr

        samples = _samples(one.segment.file, 0, one.segment.frames)
        resampled = soxr.resample(samples, one.segment.sample_rate, self._form.sample_rate, quality="VHQ")
        return self._fitted(resampled, one.frames)

    def _fitted(self, samples: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
        """In the sum's channels and of this length; a file that has become shorter meanwhile ends in silence."""
        if samples.shape[1] != self._channels:
            samples = np.repeat(samples.mean(axis=1, keepdims=True), self._channels, axis=1)
        if len(samples) == frames:
            return samples * self._form.gain
        fitted = np.zeros((frames, self._channels))
        fitted[: min(frames, len(samples))] = samples[:frames]
        return fitted * self._form.gain


def _samples(file: Path, start: int, end: int) -> NDArray[np.float64]:
    """Raises OSError, SoundFileError: it can't be read."""
    with (
        open(files.open_regular(file), "rb") as stream,
        soundfile.SoundFile(stream.fileno(), closefd=False) as wav,
    ):
        wav.seek(min(start, wav.frames))
        samples: NDArray[np.float64] = wav.read(end - start, dtype="float64", always_2d=True)
        return samples


def by_speaker(placed: Sequence[Placed], speakers: Sequence[str]) -> dict[str, list[Placed]]:
    """The segments of each speaker, in the speakers' order; of those that have any."""
    found: dict[str, list[Placed]] = {speaker: [] for speaker in speakers}
    for one in placed:
        found.setdefault(one.segment.speaker, []).append(one)
    return {speaker: own for speaker, own in found.items() if own}


def track_name(number: int, speaker: str) -> str:
    """The file of a speaker's track: numbered, so that tracks keep the speakers' order and never share a name."""
    name = _UNFIT_FOR_A_NAME.sub("_", speaker).strip("._")[:60]
    return f"{number:02d}_{name}.wav" if name else f"{number:02d}.wav"


def bytes_needed(tracks: int, form: Form) -> int:
    """Of the disk, for so many tracks."""
    return tracks * form.frames * form.channels * BYTES[form.subtype]

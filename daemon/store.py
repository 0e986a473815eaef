"""From a worker's "spoken" to a segment that survives everything: checked, synced, renamed, journalled.

Many segments at once, because the disk's price is for the sync and not for the segment: each file is synced, then the
folders and journals once. Runs in a thread. Every step may be repeated: a delivery remembers how far it has come, so
that after a full disk the same batch is simply stored again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from daemon import files
from daemon.live_job import LiveJob, LiveSegment, spoken_record
from daemon.report.peaks import outline

_NO_FILE = files.NOT_REGULAR | {errno.ENOENT, errno.EACCES, errno.EPERM}
"""What says that the worker left nothing readable there, and not that the disk is in trouble."""

MAX_FILE_BYTES = 1 << 30
"""Largest WAV that a worker may hand over; an hour of 44.1 kHz 32-bit mono is 0.6 GB."""


@dataclass(slots=True)
class Delivery:
    """A file that a worker says it has finished, with what it said of it."""

    job: LiveJob
    position: int
    file: Path
    frames: int
    sample_rate: int
    seed: int
    truncated: bool
    generate_s: float
    worker: int
    device: str
    attempts: int
    key: str | None
    seeds: tuple[int, ...] = ()
    flaws: tuple[str, ...] = ()
    cached: bool = False
    checked: str | None = None
    """The sha256 of the file's content, once that has been checked."""
    sync_failed: bool = False
    """A sync of the file has failed: it is copied into a new one, since a second sync of it would prove nothing."""
    sha256: str | None = None
    """Set once the file has been checked and lies under its lasting name."""
    recorded: bool = False
    peaks: str | None = None
    """The recording's outline, once it has been checked (see report.peaks)."""
    finishing: dict[str, Any] | None = None
    """What was done to it since the worker made it (see finishing.steps.finish)."""


@dataclass(frozen=True, slots=True)
class Spoilt:
    """A delivery whose file is not what the worker said."""

    delivery: Delivery
    code: str
    message: str


def store(deliveries: Sequence[Delivery]) -> list[Spoilt]:
    """Store them all, and mark their segments; the ones that are not what they should be come back.

    Raises:
        OSError: the disk did not take it (full, failing); call again with the same deliveries later.
    """
    spoilt: list[Spoilt] = []
    waiting = [delivery for delivery in deliveries if delivery.sha256 is None]
    for start in range(0, len(waiting), files.SYNCS_AT_ONCE):
        spoilt += _take_in(waiting[start : start + files.SYNCS_AT_ONCE])
    by_job: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        if delivery.sha256 is not None:
            by_job[delivery.job.token].append(delivery)
    for group in by_job.values():
        fresh = [delivery for delivery in group if not delivery.recorded]
        if not fresh:
            continue
        job = fresh[0].job
        files.fsync_folder(job.segments_folder)
        records = [spoken_record(delivery.position, _as_segment(delivery)) for delivery in fresh]
        try:
            job.journal.append(records)
        except ValueError as error:  # it holds a number that JSON can't; where there are more, each is tried by itself
            spoilt += (
                [Spoilt(fresh[0], "internal_error", f"it can't be recorded: {error}")]
                if len(fresh) == 1
                else [bad for delivery in fresh for bad in store([delivery])]
            )
            continue
        for delivery in fresh:
            delivery.recorded = True
            job.finish(delivery.position, _as_segment(delivery))
    return spoilt


def _take_in(deliveries: Sequence[Delivery]) -> list[Spoilt]:
    """Check them, sync them together, and bring them under their lasting names; the ones that are not what they should
    be."""
    spoilt: list[Spoilt] = []
    good: list[Delivery] = []

    def give_up(delivery: Delivery, bad: _Bad) -> None:
        files.discard(delivery.file)
        spoilt.append(Spoilt(delivery, bad.code, str(bad)))

    for delivery in deliveries:
        try:
            if delivery.checked is None:
                delivery.job.look_at(delivery.position)
                delivery.checked = _check(delivery)
                delivery.job.take_back(delivery.position)
            good.append(delivery)
        except _Bad as bad:
            delivery.job.take_back(delivery.position)
            give_up(delivery, bad)
    unsynced = [delivery for delivery in good if not delivery.sync_failed]
    errors = files.fsync_files([delivery.file for delivery in unsynced])
    for delivery, error in zip(unsynced, errors, strict=True):
        delivery.sync_failed = error is not None
    failed = [error for error in errors if error is not None]
    if failed:
        raise failed[0]
    for delivery in good:
        stored = delivery.job.stored_file(delivery.position)
        if not delivery.sync_failed:
            files.rename(delivery.file, stored)
        elif files.copy(delivery.file, stored) == delivery.checked:
            files.discard(delivery.file)
        else:
            files.discard(stored)
            give_up(delivery, _Bad("bad_audio", "the disk has not kept what the worker wrote, and said so"))
            continue
        delivery.sha256 = delivery.checked
    return spoilt


def _as_segment(delivery: Delivery) -> LiveSegment:
    before = delivery.job.segments[delivery.position]
    return LiveSegment(
        segment=before.segment,
        status="ok",
        attempts=delivery.attempts,
        tries=before.tries,
        key=delivery.key,
        seed=delivery.seed,
        cached=delivery.cached,
        frames=delivery.frames,
        sample_rate=delivery.sample_rate,
        sha256=delivery.sha256,
        truncated=delivery.truncated,
        worker=None if delivery.cached else delivery.worker,
        device=None if delivery.cached else delivery.device,
        generate_s=delivery.generate_s,
        seeds=delivery.seeds,
        flaws=delivery.flaws,
        peaks=delivery.peaks,
        finishing=delivery.finishing,
        again=before.again,
        history=before.history,
    )


class _Bad(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _check(delivery: Delivery) -> str:
    """The sha256 of the file's content in hex, once that is known to be what the worker announced."""
    try:
        descriptor = files.open_regular(delivery.file)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _Bad("no_audio", f"the worker said it had written the audio, but: {error.strerror}") from error
        raise
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_size > MAX_FILE_BYTES:
            raise _Bad("bad_audio", f"the worker's file has more than {MAX_FILE_BYTES} bytes")
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if delivery.job.job.task == "encode":
            _check_codes(file.read(MAX_FILE_BYTES), delivery.frames)
        else:
            delivery.peaks = _check_wav(
                descriptor, delivery.frames, delivery.sample_rate, delivery.job.job.output.sample_rate
            )
    return sha256


def _check_wav(descriptor: int, frames: int, sample_rate: int, asked: int | None) -> str:
    """The recording's outline, once it is known to be whole and to have the rate that was ``asked`` for, if any."""
    try:
        # By its descriptor: for a Python object libsndfile needs callbacks in memory that is both writable and
        # executable, which hardened systems deny.
        with soundfile.SoundFile(descriptor, closefd=False) as wav:
            found = (wav.frames, wav.samplerate)
            peaks = outline(wav)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise _Bad("bad_audio", f"the worker's file can't be read as audio: {error}") from error
    if asked is not None and found[1] != asked:
        raise _Bad("bad_audio", f"{asked} Hz were asked for, the worker's file has {found[1]} Hz")
    if found != (frames, sample_rate) or frames <= 0:
        raise _Bad(
            "bad_audio",
            f"the worker announced {frames} samples at {sample_rate} Hz, its file holds {found[0]} at {found[1]} Hz",
        )
    return peaks


def _check_codes(content: bytes, frames: int) -> None:
    try:
        # Not numpy.load, which takes archives and pickles for arrays too.
        codes = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a header is read as a Python literal, and may ask for more memory than there is
        raise _Bad("bad_codes", f"the worker's codes can't be read: {error}") from error
    if codes.ndim != 2 or codes.shape[1] != frames or codes.dtype.kind not in "iu":
        raise _Bad("bad_codes", f"the worker announced {frames} frames, its codes have shape {codes.shape}")

"""A speaker's references as codec codes: recordings are encoded once and kept by content, codes read and checked."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from workers.engine import EngineError, Reference, non_finite, write_failed
from workers.engines.fish.codec import Codec, Codes
from workers.engines.fish.resampling import resample

MAX_SECONDS = 180
"""Longest reference, whatever its header says: the codec has positions for 190 seconds. The daemon's own limit is
shorter (limits.reference_seconds_max)."""

_BLOCK_FRAMES = 1 << 16
_RATES = (1_000, 768_000)
"""Sample rates that a recording may have; outside is a broken header, and would become any amount of audio."""
_CACHE_VERSION = 1
"""To be raised with any change of how a recording becomes what the codec is given."""

_log = logging.getLogger(__name__)


class ReferenceCache:
    """References as codes. ``cache_folder`` holds a small file for each recording ever encoded, by its content and the
    codec's; it may be deleted at any time, may be shared by workers, and "" does without."""

    def __init__(self, codec: Codec, cache_folder: str) -> None:
        self._codec = codec
        self._folder = Path(cache_folder) if cache_folder else None

    def codes(self, reference: Reference) -> Codes:
        """(codebooks, frames), at least one frame.

        Raises:
            EngineError: "bad_codes" for a file of codes that holds something else; "unreadable", "empty",
                "too_long" or "non_finite" for a recording, the last too where the codec is to blame.
        """
        return self.codes_of([reference])[0]

    def codes_of(self, references: list[Reference]) -> list[Codes]:
        """As ``codes``, for several: recordings that have to be encoded go through the codec together."""
        found: dict[int, Codes] = {}
        recordings: dict[int, NDArray[np.float32]] = {}
        for index, reference in enumerate(references):
            if reference.kind == "codes":
                found[index] = read_codes(reference.path, self._codec.codebook_sizes)
                continue
            kept = self._kept(reference)
            if kept is None:
                recordings[index] = read_recording(reference.path, self._codec.sample_rate)
            else:
                found[index] = kept
        encoded = self._codec.encode(list(recordings.values())) if recordings else []
        for index, codes in zip(recordings, encoded, strict=True):
            if codes.min() < 0:
                raise non_finite(f"the codec, encoding {Path(references[index].path).name},")
            self._keep(references[index], codes)
            found[index] = codes
        return [found[index] for index in range(len(references))]

    def encode_to(self, reference: Reference, path: str) -> int:
        """Writes the reference's codes to a .npy of int64 at ``path``; how many frames they are.

        Raises:
            EngineError: as ``codes``, and "write_failed" or, where there is no space, workers.engine.DISK_FULL.
        """
        codes = self.codes(reference)
        try:
            with open(path, "wb") as file:
                np.save(file, codes.astype(np.int64), allow_pickle=False)
        except OSError as error:
            failed = write_failed(0, path, error)
            raise EngineError(failed.code, failed.message, retryable=failed.retryable) from error
        return int(codes.shape[1])

    def _path(self, reference: Reference) -> Path | None:
        if self._folder is None or re.fullmatch("[0-9a-f]{64}", reference.sha256) is None:
            return None
        return self._folder / f"{reference.sha256}.{self._codec.codec_id}.{_CACHE_VERSION}.npy"

    def _kept(self, reference: Reference) -> Codes | None:
        path = self._path(reference)
        if path is None or not path.exists():
            return None
        try:
            codes = read_codes(str(path), self._codec.codebook_sizes)
        except EngineError as error:
            _log.warning("a cached reference is damaged and is made again: %s", error)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the daemon removes those that have not been used for longest
        return codes

    def _keep(self, reference: Reference, codes: Codes) -> None:
        path = self._path(reference)
        if path is None:
            return
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".npy", dir=path.parent)
            with open(descriptor, "wb") as file:
                np.save(file, codes, allow_pickle=False)
            os.replace(temporary, path)
        except OSError as error:
            # It is only a cache: without it the recording is encoded again.
            _log.warning("an encoded reference can't be kept at %s: %s", path, error)
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def read_codes(path: str, codebook_sizes: tuple[int, ...]) -> Codes:
    """The codes in a .npy: integers (codebooks, frames), each row below its codebook's size.

    Raises:
        EngineError: "bad_codes", saying what it is instead.
    """
    name = Path(path).name
    try:
        # Mapped, so that a header that promises more than the file holds is found out before memory is taken for it.
        array = np.lib.format.open_memmap(path, mode="r")
    # The header is a Python literal, and can fail in as many ways as Python has.
    except (OSError, ValueError, TypeError, SyntaxError, LookupError, ArithmeticError, MemoryError) as error:
        raise EngineError("bad_codes", f"{name} is not a .npy as numpy.save writes it: {error}") from error
    if array.dtype.kind not in "iu":
        raise EngineError("bad_codes", f"{name} holds {array.dtype} where codes are integers")
    count = len(codebook_sizes)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] == 0:
        raise EngineError("bad_codes", f"{name} has the shape {array.shape}; codes have ({count}, frames)")
    longest = MAX_SECONDS * 22  # a frame is 1/21.53 s
    if array.shape[1] > longest:
        raise EngineError("bad_codes", f"{name} has {array.shape[1]} frames; a reference has at most {longest}")
    for row, size in enumerate(codebook_sizes):
        low, high = int(array[row].min()), int(array[row].max())
        if low < 0 or high >= size:
            raise EngineError("bad_codes", f"{name}: row {row} goes from {low} to {high}; codes are 0 to {size - 1}")
    return np.array(array, dtype=np.int64, order="C")


def read_recording(path: str, sample_rate: int) -> NDArray[np.float32]:
    """A recording of any rate, channels and format that libsndfile reads: its channels' mean at ``sample_rate``.

    Raises:
        EngineError: "unreadable", "empty", "too_long" or "non_finite".
    """
    name = Path(path).name
    blocks: list[NDArray[np.float32]] = []
    frames = 0
    try:
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            if not _RATES[0] <= rate <= _RATES[1]:
                raise EngineError("unreadable", f"{name} claims {rate} samples a second; save it at 44100 or 48000")
            # Block by block: a small compressed file can become any amount of audio.
            while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                frames += len(block)
                if frames > MAX_SECONDS * rate:
                    raise EngineError("too_long", f"{name} is longer than {MAX_SECONDS} s; cut it to what is needed")
                blocks.append(block.mean(axis=1, dtype=np.float32))
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise EngineError("unreadable", f"{name} can't be read as audio: {error}; save it as WAV or FLAC") from error
    if frames == 0:
        raise EngineError("empty", f"{name} has no samples; record it again")
    samples = np.concatenate(blocks)
    if not np.isfinite(samples).all():
        raise EngineError("non_finite", f"{name} has samples that are no numbers (NaN or infinite); export it again")
    resampled = resample(samples, rate, sample_rate)
    if len(resampled) == 0:
        raise EngineError("empty", f"{name} has too few samples to hear; record it again")
    return resampled

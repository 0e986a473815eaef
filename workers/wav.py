"""WAV files whose bytes depend on the samples alone."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

from workers.engine import EngineError, non_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = {
    "PCM_U8": (1, 8),
    "PCM_16": (1, 16),
    "PCM_24": (1, 24),
    "PCM_32": (1, 32),
    "FLOAT": (3, 32),
    "DOUBLE": (3, 64),
}
"""Subtypes, by their libsndfile names, that silence can be written in: format tag and bits a sample."""


def write_wav(path: str, samples: NDArray[np.float32] | NDArray[np.int16], sample_rate: int, subtype: str) -> None:
    """Write ``samples``, shape (frames,) or (frames, channels), floats in [-1, 1] (what is beyond is clipped in
    integer subtypes) or 16-bit integers, to a WAV at ``path``. The file is closed when this returns.

    Raises:
        EngineError: ``unsupported_output``, no WAV can have this subtype; ``non_finite``, see check_finite.
        OSError: the file can't be written (see workers.engine.write_failed).
    """
    import soundfile

    if not soundfile.check_format("WAV", subtype):
        raise EngineError("unsupported_output", f"a WAV can't have the subtype {subtype!r}; PCM_16 suits most")
    check_finite(samples)
    if samples.dtype.kind == "i" and subtype in ("FLOAT", "DOUBLE"):
        # libsndfile would write 16-bit integers as floats of the same value, where full scale is 1.
        samples = (samples / 32768).astype("float32")
    # In memory first: of an error while writing libsndfile knows only that there was one. By a descriptor, since for a
    # Python file object it needs callbacks in writable and executable memory, which hardened systems deny.
    memory = os.memfd_create("wav", os.MFD_CLOEXEC)
    with os.fdopen(memory, "rb") as copy:
        soundfile.write(memory, samples, sample_rate, subtype=subtype, format="WAV", closefd=False)
        copy.seek(0)
        content = bytearray(copy.read())
    if subtype in ("FLOAT", "DOUBLE"):
        _erase_peak_time(content)
    with open(path, "wb") as file:
        file.write(content)


def check_finite(samples: NDArray[np.float32] | NDArray[np.int16]) -> None:
    """Raises EngineError ``non_finite`` for NaN or infinite samples: they would be clicks, or silence."""
    import numpy as np

    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise non_finite("the audio")


def _erase_peak_time(content: bytearray) -> None:
    """libsndfile stamps the time of writing into a PEAK chunk (version, time, then a pair a channel); equal samples
    are to be equal files."""
    start = 12
    while start + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, start)
        if name == b"PEAK":
            content[start + 12 : start + 16] = bytes(4)
            return
        if name == b"data":
            return
        start += 8 + size + size % 2


def silent_wav(frames: int, sample_rate: int, subtype: str) -> bytes:
    """The bytes of a mono WAV of digital silence; by the standard library alone.

    Raises:
        EngineError: ``unsupported_output``, not one of FORMATS.
    """
    if subtype not in FORMATS:
        known = ", ".join(FORMATS)
        raise EngineError("unsupported_output", f"silence has no subtype {subtype!r}, only {known}")
    tag, bits = FORMATS[subtype]
    width = bits // 8
    body = (b"\x80" if subtype == "PCM_U8" else bytes(width)) * frames
    form: tuple[Any, ...] = (b"fmt ", 16, tag, 1, sample_rate, sample_rate * width, width, bits)
    padding = bytes(len(body) % 2)
    chunks = struct.pack("<4sIHHIIHH", *form) + struct.pack("<4sI", b"data", len(body)) + body + padding
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunks), b"WAVE") + chunks

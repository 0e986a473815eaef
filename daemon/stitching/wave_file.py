"""WAV files written piece by piece, whose length is known beforehand; RF64 where they pass 4 GiB.

Written here and not by libsndfile since what goes wrong on the disk is then told as it is (a full one as that), and the
samples are rounded: libsndfile scales floats to integers by 32,767 and reads them by 32,768, so that what is only
copied would come out changed.
"""

from __future__ import annotations

import struct
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from daemon import files

Subtype = Literal["PCM_16", "PCM_24", "FLOAT"]
BYTES: dict[str, int] = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
"""Bytes a sample, by the subtype's name in libsndfile."""

_PCM, _IEEE_FLOAT = 1, 3
_LARGEST_RIFF = 2**32 - 1


class WaveFile:
    """A WAV of ``frames`` frames, written to an open descriptor. ``data_bytes``: what the samples take."""

    def __init__(self, descriptor: int, frames: int, sample_rate: int, channels: int, subtype: Subtype) -> None:
        self._descriptor = descriptor
        self._subtype = subtype
        self._channels = channels
        self.data_bytes = frames * channels * BYTES[subtype]
        self._left = frames
        files.append(descriptor, header(frames, sample_rate, channels, subtype), durable=False)

    def write(self, samples: NDArray[np.float64]) -> None:
        """``samples``: shape (frames, channels), or (frames, 1) for the same in all channels; full scale is 1, and what
        passes it is cut off in integers.

        Raises:
            OSError: the disk refuses them.
        """
        assert len(samples) <= self._left
        self._left -= len(samples)
        files.append(self._descriptor, encoded(samples, self._channels, self._subtype), durable=False)

    def finish(self) -> None:
        assert self._left == 0
        files.append(self._descriptor, bytes(self.data_bytes % 2), durable=False)


def encoded(samples: NDArray[np.float64], channels: int, subtype: Subtype) -> bytes:
    """The samples as the file holds them: little-endian, channels side by side."""
    whole = samples.astype("<f4") if subtype == "FLOAT" else _integers(samples, 8 * BYTES[subtype])
    if whole.shape[1] != channels:
        whole = np.repeat(whole, channels, axis=1)
    if subtype == "PCM_24":
        return whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return whole.tobytes()


def _integers(samples: NDArray[np.float64], bits: int) -> NDArray[np.int16] | NDArray[np.int32]:
    """Rounded to the nearest of ``bits`` bits, in the smallest type that holds them."""
    scale = float(2 ** (bits - 1))
    whole = samples * scale
    np.rint(whole, out=whole)
    np.clip(whole, -scale, scale - 1, out=whole)
    return whole.astype("<i2" if bits == 16 else "<i4")


def header(frames: int, sample_rate: int, channels: int, subtype: Subtype) -> bytes:
    """All before the samples. RF64 as in EBU Tech 3306: the sizes that 32 bits can't hold stand in a ds64 chunk."""
    width = BYTES[subtype]
    tag = _IEEE_FLOAT if subtype == "FLOAT" else _PCM
    block = channels * width
    data = frames * block
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, sample_rate, sample_rate * block, block, 8 * width)
    if subtype == "FLOAT":
        form += struct.pack("<4sII", b"fact", 4, min(frames, _LARGEST_RIFF))
    riff = 4 + len(form) + 8 + data + data % 2
    if riff <= _LARGEST_RIFF:
        return struct.pack("<4sI4s", b"RIFF", riff, b"WAVE") + form + struct.pack("<4sI", b"data", data)
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, riff + 36, data, frames, 0)
    head = struct.pack("<4sI4s", b"RF64", _LARGEST_RIFF, b"WAVE")
    return head + sizes + form + struct.pack("<4sI", b"data", _LARGEST_RIFF)

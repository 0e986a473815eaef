"""The outline of a recording, small enough to be kept beside its record: what a waveform in a page is drawn from.

It is a text of at most BARS characters. The recording is cut into so many stretches of equal length, and each
character stands for the largest sample of one, on a scale from 0 to 63 that is the square root of the amplitude, as
quiet speech would not be seen on a straight one. The digits are those of base64url (RFC 4648, section 5).
"""

from __future__ import annotations

import numpy as np
import soundfile

BARS = 64

DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

_BLOCK_SAMPLES = 1 << 20


def outline(recording: soundfile.SoundFile) -> str:
    """The outline of an open recording, read from where it stands to its end.

    Raises:
        soundfile.SoundFileError: it can't be decoded.
    """
    stretch = max(1, -(-recording.frames // BARS))
    # A long one is read in pieces that are whole stretches.
    block = stretch * max(1, _BLOCK_SAMPLES // recording.channels // stretch)
    loudest = []
    while len(samples := recording.read(block, dtype="float32", always_2d=True)):
        size = np.nan_to_num(np.abs(samples).max(axis=1), nan=0.0, posinf=1.0)
        whole = np.pad(size, (0, -len(size) % stretch))
        loudest.append(whole.reshape(-1, stretch).max(axis=1))
    if not loudest:
        return ""
    levels = np.rint(np.sqrt(np.minimum(np.concatenate(loudest)[:BARS], 1.0)) * (len(DIGITS) - 1)).astype(int)
    return "".join(DIGITS[level] for level in levels)

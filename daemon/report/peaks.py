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
_FULL_SCALE = 32_767.0


def outline(recording: soundfile.SoundFile) -> str:
    """The outline of an open recording, read from where it stands to its end.

    Raises:
        soundfile.SoundFileError: it can't be decoded.
    """
    stretch = max(1, -(-recording.frames // BARS))
    # A long one is read in pieces that are whole stretches.
    block = stretch * max(1, _BLOCK_SAMPLES // recording.channels // stretch)
    # In whole numbers the loudest is found several times faster, and most recordings hold them; a recording of floats
    # would be read as nothing but -1, 0 and 1.
    whole = recording.subtype.startswith("PCM_")
    loudest = []
    while len(samples := recording.read(block, dtype="int16" if whole else "float32", always_2d=True)):
        full = samples if len(samples) % stretch == 0 else np.pad(samples, ((0, -len(samples) % stretch), (0, 0)))
        by_stretch = full.reshape(-1, stretch * recording.channels)
        highest, lowest = by_stretch.max(axis=1).astype(float), by_stretch.min(axis=1).astype(float)
        loudest.append(np.maximum(highest, -lowest) / (_FULL_SCALE if whole else 1.0))
    if not loudest:
        return ""
    amplitude = np.clip(np.nan_to_num(np.concatenate(loudest)[:BARS], nan=0.0, posinf=1.0), 0.0, 1.0)
    levels = np.rint(np.sqrt(amplitude) * (len(DIGITS) - 1)).astype(int)
    return "".join(DIGITS[level] for level in levels)

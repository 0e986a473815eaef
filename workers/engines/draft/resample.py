"""A change of sample rate by a windowed sinc, in numpy.

Each output sample is the sum of input samples weighted by a low-pass filter centred on its time (J. O. Smith, "Digital
Audio Resampling Home Page", Stanford University). The ratio of two rates repeats after ``up`` output samples, so
the weights form a table of ``up`` phases. The window is Kaiser's: with BETA the side lobes lie under -96 dB, below
the steps of 16 bits, and the pass band ends at ROLL_OFF of the lower Nyquist frequency.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np
from numpy.typing import NDArray

BETA = 9.6
"""Kaiser's formula for 96 dB: 0.1102 * (96 - 8.7)."""
ZERO_CROSSINGS = 48
"""Of the sinc, to each side. With BETA the transition is (96 - 8) / (2.285 * 96 * pi) = 0.13 of the Nyquist frequency
wide: ROLL_OFF is set half of that below 1."""
ROLL_OFF = 0.935
BLOCK = 1 << 14
"""Output samples computed together; bounds the memory."""

Samples = NDArray[np.float32]


def resample(samples: Samples, rate: int, new_rate: int) -> Samples:
    """``samples``, shape (frames,), at ``rate`` Hz, as they are at ``new_rate`` Hz: ceil(frames * new_rate / rate)
    samples, in time with the first. Beyond the ends there is silence."""
    if rate == new_rate or not len(samples):
        return samples
    common = gcd(rate, new_rate)
    up, down = new_rate // common, rate // common
    table = _table(up, down)
    taps = table.shape[1]
    padded = np.concatenate([np.zeros(taps // 2 - 1, np.float32), samples, np.zeros(taps // 2 + 1, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(ceil(len(samples) * up / down), np.float32)
    for start in range(0, len(result), BLOCK):
        ticks = np.arange(start, min(start + BLOCK, len(result)), dtype=np.int64) * down
        result[start : start + BLOCK] = np.einsum("nt,nt->n", windows[ticks // up], table[ticks % up])
    return result


@lru_cache(maxsize=4)
def _table(up: int, down: int) -> Samples:
    """The weights, shape (up, taps): row p is for output samples p/up of an input sample after the input sample at
    tap ``taps // 2 - 1``."""
    cutoff = ROLL_OFF * min(1.0, up / down)
    half = ceil(ZERO_CROSSINGS / cutoff)
    table = np.empty((up, 2 * half), np.float32)
    offsets = np.arange(2 * half) - (half - 1)
    for start in range(0, up, BLOCK // 16):
        phases = np.arange(start, min(start + BLOCK // 16, up)) / up
        distances = offsets[None, :] - phases[:, None]
        window = np.i0(BETA * np.sqrt(np.maximum(0.0, 1.0 - np.square(distances / half)))) / np.i0(BETA)
        rows = cutoff * np.sinc(cutoff * distances) * window
        # Each phase passes a constant as it is: no ripple at the rate of the phases.
        table[start : start + BLOCK // 16] = rows / rows.sum(axis=1, keepdims=True)
    return table

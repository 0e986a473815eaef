"""The fundamental frequency of a voice: YIN, in numpy.

The method is that of A. de Cheveigné and H. Kawahara, "YIN, a fundamental frequency estimator for speech and music",
J. Acoust. Soc. Am. 111 (4), 2002, steps 1 to 5: the difference function, its cumulative mean normalisation, the
absolute threshold and parabolic interpolation. A frame counts as voiced when its dip goes under the threshold and its
energy is not far below that of the loud frames. Only the median over voiced frames is given out, which an octave
error here and there does not move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.engines.draft.resample import resample

LOWEST_HZ = 45.0
HIGHEST_HZ = 500.0
"""The range of speaking voices, from the ends of a deep voice's sentences to children."""

ANALYSIS_RATE = 8_000
"""Hz. Keeps some ten harmonics of a voice; interpolation makes up for the coarse lags."""
WINDOW = 320
HOP = 80
"""Samples at ANALYSIS_RATE: 40 ms every 10 ms."""
THRESHOLD = 0.15
"""Of the normalised difference; the paper's 0.1 for clean speech, with room for compressed and noisy recordings."""
QUIET = 1e-3
"""Frames with less than this share of the loud frames' energy (-30 dB) are pauses."""
FEWEST_VOICED = 10
"""Voiced frames, 0.1 s, below which a median says nothing."""
BLOCK = 512
"""Frames looked at together; bounds the memory."""

Samples = NDArray[np.float32]


def median_f0(samples: Samples, sample_rate: int) -> float | None:
    """The median fundamental frequency in Hz of what is voiced in ``samples``, shape (frames,); None when nothing, or
    next to nothing, is."""
    finite = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    signal = resample(finite, sample_rate, ANALYSIS_RATE).astype(np.float64)
    longest = int(ANALYSIS_RATE / LOWEST_HZ) + 1
    if len(signal) < WINDOW + longest:
        return None
    signal -= signal.mean()
    frames = np.lib.stride_tricks.sliding_window_view(signal, WINDOW + longest)[::HOP]
    energy = np.concatenate([np.square(block[:, :WINDOW]).sum(axis=1) for block in _blocks(frames)])
    loud = float(np.percentile(energy, 90))
    if loud <= 0.0:
        return None
    frames = frames[energy > QUIET * loud]
    pitches = np.concatenate([_yin(block, longest) for block in _blocks(frames)])
    voiced = pitches[np.isfinite(pitches)]
    return float(np.median(voiced)) if len(voiced) >= FEWEST_VOICED else None


def _blocks(frames: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [frames[start : start + BLOCK] for start in range(0, len(frames), BLOCK)]


def _yin(frames: NDArray[np.float64], longest: int) -> NDArray[np.float64]:
    """The frequency in Hz of each frame, NaN where it is not voiced. ``frames``: shape (n, WINDOW + longest)."""
    count = len(frames)
    size = 1 << (WINDOW + longest - 1).bit_length()
    head = np.fft.rfft(frames[:, :WINDOW], size)
    correlation = np.fft.irfft(np.conj(head) * np.fft.rfft(frames, size), size)[:, : longest + 1]
    sums = np.concatenate([np.zeros((count, 1)), np.cumsum(np.square(frames), axis=1)], axis=1)
    energy = sums[:, WINDOW : WINDOW + longest + 1] - sums[:, : longest + 1]
    difference = np.maximum(energy[:, :1] + energy - 2.0 * correlation, 0.0)

    lags = np.arange(1, longest + 1)
    mean = np.cumsum(difference[:, 1:], axis=1) / lags
    normalised = np.ones_like(difference)
    np.divide(difference[:, 1:], mean, out=normalised[:, 1:], where=mean > 0.0)

    # The first local minimum under the threshold, from the shortest lag on.
    shortest = int(ANALYSIS_RATE / HIGHEST_HZ)
    middle = normalised[:, shortest:longest]
    is_dip = (
        (middle < THRESHOLD)
        & (middle <= normalised[:, shortest - 1 : longest - 1])
        & (middle < normalised[:, shortest + 1 : longest + 1])
    )
    found = is_dip.any(axis=1)
    lag = np.where(found, is_dip.argmax(axis=1) + shortest, shortest)

    rows = np.arange(count)
    before, at, after = (normalised[rows, lag + offset] for offset in (-1, 0, 1))
    curvature = before - 2.0 * at + after
    shift = np.zeros(count)
    np.divide(before - after, 2.0 * curvature, out=shift, where=curvature > 0.0)
    return np.where(found, ANALYSIS_RATE / (lag + np.clip(shift, -1.0, 1.0)), np.nan)

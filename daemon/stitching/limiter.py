"""Keeps a sum of voices within full scale.

Where two people speak at once the sum may pass it, and cut off it crackles. So the gain goes down a few milliseconds
before such a peak and comes back after it; everywhere else samples stay as they are, to the bit.

The gain at a sample is the mean, over ``REACH_S`` to either side, of the least gain that any peak within ``REACH_S``
of there needs. Every term of the mean at a peak knows of that peak, so that the mean is never above what it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REACH_S = 0.005

CEILING = 10 ** (-0.1 / 20)
"""Peaks past full scale are brought down to -0.1 dBFS."""


@dataclass(slots=True)
class Place:
    """Where the sum passed full scale: the sample of its highest peak, and that peak (above 1)."""

    at: int
    peak: float


class Limiter:
    """Takes a track's samples block by block, in order, and gives them back limited, two reaches behind."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._reach = max(1, round(REACH_S * sample_rate))
        # Silence before the first sample, for the windows that reach there.
        self._held = np.zeros((2 * self._reach, channels))
        self._position = -2 * self._reach
        self.places: list[Place] = []

    def process(self, block: NDArray[np.float64]) -> NDArray[np.float64]:
        """``block`` has shape (frames, channels). What is ready, of the same shape but for the first and last."""
        self._note(block)
        return self._give(np.concatenate((self._held, block)))

    def finish(self) -> NDArray[np.float64]:
        """The rest."""
        return self._give(np.concatenate((self._held, np.zeros((2 * self._reach, self._held.shape[1])))))

    def _give(self, samples: NDArray[np.float64]) -> NDArray[np.float64]:
        """What lies two reaches inside of ``samples``; what the next call needs again is held."""
        inside = samples[2 * self._reach : len(samples) - 2 * self._reach]
        self._held = samples[max(0, len(samples) - 4 * self._reach) :]
        self._position += len(samples) - len(self._held)
        peaks = loudest(samples)
        if not len(inside) or peaks.max() <= 1.0:
            return inside
        needed = np.where(peaks > 1.0, CEILING / np.maximum(peaks, 1.0), 1.0)
        window = 2 * self._reach + 1
        least = np.lib.stride_tricks.sliding_window_view(needed, window).min(axis=1)
        gain = np.convolve(least, np.full(window, 1.0 / window), mode="valid")
        # The sum of so many equal parts of 1 is not quite 1.
        gain[np.lib.stride_tricks.sliding_window_view(least, window).min(axis=1) == 1.0] = 1.0
        return inside * gain[:, np.newaxis]

    def _note(self, block: NDArray[np.float64]) -> None:
        peaks = loudest(block)
        start = self._position + len(self._held)
        for place in np.flatnonzero(peaks > 1.0):
            at, peak = start + int(place), float(peaks[place])
            if self.places and at - self.places[-1].at <= 4 * self._reach:
                if peak > self.places[-1].peak:
                    self.places[-1] = Place(at, peak)
            else:
                self.places.append(Place(at, peak))


def loudest(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest magnitude of all channels at each sample: shape (frames, channels) to (frames,). Channel by channel,
    since numpy is slow at the maximum of many short rows."""
    highest = np.abs(samples[:, 0])
    for channel in range(1, samples.shape[1]):
        np.maximum(highest, np.abs(samples[:, channel]), out=highest)
    return highest

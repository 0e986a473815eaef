"""How loud a recording is after ITU-R BS.1770, and the gain that makes it as loud as was asked for.

Samples are as in ``steps``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyloudnorm
import scipy.signal
from numpy.typing import NDArray

Samples = NDArray[np.float32]

BLOCK_S = 0.4
"""The gating block of ITU-R BS.1770-5, annex 1."""

HIGHEST_PEAK_DBTP = -1.0
"""Highest true peak after a gain: what EBU R 128 allows a programme, so that no later converter or codec clips."""

_OVERSAMPLING = 4
"""Of the true-peak meter in ITU-R BS.1770-5, annex 2, for rates of 48 kHz and around."""

_PEAK_CHUNK = 1 << 18
_PEAK_MARGIN = 64
"""Samples on either side of a chunk that the meter's filter reaches over: half its length of 2 * 10 * 4 + 1."""


def normalize(samples: Samples, rate: int, target_lufs: float) -> tuple[Samples, dict[str, Any]]:
    """With the gain that brings them to ``target_lufs``, or to as much of it as the true peak allows."""
    measured = loudness(samples, rate)
    peak = true_peak(samples)
    if measured is None:
        return samples, {
            "measured_lufs": None,
            "gain_db": 0.0,
            "loudness_lufs": None,
            "true_peak_dbtp": _decibels(peak),
            "limited_by_peak": False,
        }
    wanted = target_lufs - measured
    room = HIGHEST_PEAK_DBTP - 20 * math.log10(peak)
    gain = min(wanted, room)
    made = (samples * np.float32(10 ** (gain / 20))).astype(np.float32)
    return made, {
        "measured_lufs": round(measured, 2),
        "gain_db": round(gain, 2),
        "loudness_lufs": round(measured + gain, 2),
        "true_peak_dbtp": _decibels(peak * 10 ** (gain / 20)),
        "limited_by_peak": room < wanted,
    }


def loudness(samples: Samples, rate: int) -> float | None:
    """Integrated loudness in LUFS after ITU-R BS.1770; None for silence. What is shorter than a gating block is one
    block as long as it is: made up to 400 ms with silence, a short word would count as quieter than the same voice in
    a sentence, and be made louder than it."""
    seconds = len(samples) / rate
    meter = pyloudnorm.Meter(rate, block_size=min(BLOCK_S, seconds))
    found = float(meter.integrated_loudness(samples.astype(np.float64)))
    return found if math.isfinite(found) else None


def true_peak(samples: Samples) -> float:
    """The highest value of the signal between the samples too, 1.0 at full scale (ITU-R BS.1770-5, annex 2)."""
    highest = float(np.abs(samples).max(initial=0.0))
    for start in range(0, len(samples), _PEAK_CHUNK):
        chunk = samples[max(0, start - _PEAK_MARGIN) : start + _PEAK_CHUNK + _PEAK_MARGIN]
        between = scipy.signal.resample_poly(chunk, _OVERSAMPLING, 1, axis=0)
        highest = max(highest, float(np.abs(between).max()))
    return highest


def _decibels(amplitude: float) -> float | None:
    return round(20 * math.log10(amplitude), 2) if amplitude > 0 else None

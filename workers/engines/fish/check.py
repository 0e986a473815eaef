"""Listens to a spoken segment for what can go wrong without anyone noticing: nothing there, cut off, running on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.engines.fish.text import expected_seconds

_WINDOW_S = 0.05
"""A syllable lasts some 0.2 s; shorter windows see the gaps inside words as silence."""
_SILENT_LEVEL = 1e-3
"""-60 dB of full scale, root mean square: speech is delivered at about -23 (EBU R 128), so this lies below
any voice that was meant to be heard."""
_SOUNDING_RATIO = 10 ** (-45 / 20)
"""A window sounds if it is at most 45 dB below the loudest: unvoiced consonants lie some 30 dB below vowels."""
_CLIPPED_LEVEL = 0.999
_CLIPPED_RUN = 3
"""As many samples in a row at full scale are a flattened peak; the tip of a clean one has one or two at 44.1 kHz."""
_CLIPPED_SHARE = 1e-3
"""A thousandth of the samples flattened can be heard as crackling; a single flattened peak can't."""


def check_audio(samples: NDArray[np.float32], sample_rate: int, text: str, language: str) -> tuple[str, ...]:
    """The flaws of a segment, (samples,), that should say ``text``; none if it may pass.

    "non_finite": NaN or an infinity among the samples (nothing else is then looked for). "silent": nothing above
    -60 dB. "clipped": peaks are flattened audibly. "too_short": from the first sound to the last, less than the
    text can be said in. "too_long": longer than it may take.
    """
    if not np.isfinite(samples).all():
        return ("non_finite",)
    levels = _levels(samples, sample_rate)
    loudest = float(levels.max(initial=0.0))
    if loudest < _SILENT_LEVEL:
        return ("silent",)
    flaws = []
    if _clipped_share(samples) > _CLIPPED_SHARE:
        flaws.append("clipped")
    sounding = np.flatnonzero(levels >= max(loudest * _SOUNDING_RATIO, _SILENT_LEVEL))
    sounding_s = (sounding[-1] - sounding[0] + 1) * _WINDOW_S
    shortest, longest = expected_seconds(text, language)
    if sounding_s < shortest:
        flaws.append("too_short")
    if len(samples) / sample_rate > longest:
        flaws.append("too_long")
    return tuple(flaws)


def _levels(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Root mean square of each window, (windows,); the last one filled up with silence."""
    size = max(1, round(_WINDOW_S * sample_rate))
    windows = -(-len(samples) // size)
    padded = np.zeros(windows * size, np.float32)
    padded[: len(samples)] = samples
    power = np.einsum("ij,ij->i", *(padded.reshape(windows, size),) * 2, dtype=np.float64)
    levels: NDArray[np.float64] = np.sqrt(power / size)
    return levels


def _clipped_share(samples: NDArray[np.float32]) -> float:
    """Share of the samples that lie in runs of _CLIPPED_RUN at full scale."""
    full = np.abs(samples) >= _CLIPPED_LEVEL
    if not full.any():
        return 0.0
    edges = np.flatnonzero(np.diff(full.astype(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    return float(lengths[lengths >= _CLIPPED_RUN].sum()) / len(samples)

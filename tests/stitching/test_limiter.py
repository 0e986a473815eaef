"""The limiter: never above its ceiling, never touching what is far from a peak, whatever the blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from daemon.stitching.limiter import CEILING, REACH_S, Limiter

RATE = 8_000
REACH = round(REACH_S * RATE)


def limit(samples: NDArray[np.float64], sizes: list[int]) -> tuple[NDArray[np.float64], Limiter]:
    """The samples, given in blocks of these sizes and the rest."""
    limiter = Limiter(RATE, samples.shape[1])
    given_back = []
    for size in sizes:
        given_back.append(limiter.process(samples[:size]))
        samples = samples[size:]
    given_back += [limiter.process(samples), limiter.finish()]
    return np.concatenate(given_back), limiter


@given(
    peaks=st.lists(st.tuples(st.integers(0, 1999), st.floats(1.0, 8.0)), max_size=5),
    sizes=st.lists(st.integers(1, 700), max_size=6),
    channels=st.sampled_from([1, 2]),
)
def test_peaks_are_held_down_and_the_rest_is_the_same_to_the_bit(
    peaks: list[tuple[int, float]], sizes: list[int], channels: int
) -> None:
    """No sample is lost or moved by the blocks they come in."""
    samples = np.random.default_rng(2).uniform(-0.9, 0.9, (2000, channels))
    for at, peak in peaks:
        samples[at, -1] = -peak
    limited, limiter = limit(samples, sizes)
    assert limited.shape == samples.shape
    assert np.abs(limited).max() <= 1.0
    over = np.abs(samples).max(axis=1) > 1.0
    assert np.all(np.abs(limited[over]) <= CEILING + 1e-12)
    far = np.ones(2000, dtype=bool)
    for at in np.flatnonzero(over).tolist():
        far[max(0, at - 2 * REACH) : at + 2 * REACH + 1] = False
    assert np.array_equal(limited[far], samples[far])
    assert np.all(np.abs(limited) <= np.abs(samples))
    assert {place.at for place in limiter.places} <= set(np.flatnonzero(over).tolist())
    assert bool(limiter.places) == bool(over.any())


def test_the_gain_moves_gently() -> None:
    """Over some milliseconds, and not in a step that crackles."""
    samples = np.full((2000, 1), 0.5)
    samples[1000] = 4.0
    limited, limiter = limit(samples, [512, 512])
    gain = limited[:, 0] / samples[:, 0]
    assert np.abs(np.diff(gain)).max() < 1.2 / REACH
    assert [(place.at, place.peak) for place in limiter.places] == [(1000, 4.0)]

"""The fundamental frequency of recordings."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workers.draft.conftest import hum
from workers.engines.draft.fundamental import median_f0


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("f0_hz", [65.0, 110.0, 160.0, 220.0, 330.0, 440.0])
def test_a_voice_is_heard_at_its_pitch(f0_hz: float, rate: int) -> None:
    """Within 2 %, at any rate, with a pause and some noise in it."""
    assert median_f0(hum(f0_hz, rate=rate), rate) == pytest.approx(f0_hz, rel=0.02)


def test_noise_does_not_matter_much() -> None:
    """A hiss 20 dB under the voice, as of an old recording."""
    assert median_f0(hum(120.0, noise=0.03), 16_000) == pytest.approx(120.0, rel=0.02)


def test_the_level_does_not_matter() -> None:
    """Nor does a constant offset."""
    assert median_f0(hum(200.0, noise=0.0) * np.float32(1e-4) + np.float32(0.2), 16_000) == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32),
        np.zeros(100, np.float32),
        np.zeros(32_000, np.float32),
        np.ones(32_000, np.float32),
        np.full(32_000, np.nan, np.float32),
        np.random.default_rng(1).standard_normal(32_000).astype(np.float32),
        hum(150.0, seconds=0.05),
    ],
    ids=["empty", "short", "silence", "constant", "nan", "noise", "a_click_of_voice"],
)
def test_where_there_is_no_voice_there_is_no_pitch(samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    """None, not a guess."""
    assert median_f0(samples, 16_000) is None

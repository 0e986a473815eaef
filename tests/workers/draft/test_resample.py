"""The change of sample rate."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest

from workers.engines.draft.resample import resample


@pytest.mark.parametrize(
    ("rate", "new_rate"),
    [(22_050, 44_100), (22_050, 48_000), (22_050, 16_000), (22_050, 8_000), (44_100, 8_000), (22_050, 22_051)],
)
@pytest.mark.parametrize("hertz", [40.0, 1_000.0, 3_500.0])
def test_tones_keep_their_time_and_level(rate: int, new_rate: int, hertz: float) -> None:
    """What both rates can carry differs from the true tone by less than a step of 15 bits, away from the ends."""
    if hertz > 0.45 * min(rate, new_rate):
        hertz = 0.45 * min(rate, new_rate)
    tone = np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32)
    result = resample(tone, rate, new_rate)
    assert result.dtype == np.float32
    assert len(result) == ceil(rate * new_rate / rate)
    truth = np.sin(2 * np.pi * hertz * np.arange(len(result)) / new_rate)
    middle = slice(len(result) // 10, -len(result) // 10)
    assert np.abs(result - truth)[middle].max() < 2**-15


def test_what_the_lower_rate_cannot_carry_is_gone() -> None:
    """No mirror images: a tone above the new Nyquist frequency is 90 dB down."""
    tone = np.sin(2 * np.pi * 5_000 * np.arange(22_050) / 22_050).astype(np.float32)
    assert np.abs(resample(tone, 22_050, 8_000)[1_000:-1_000]).max() < 10 ** (-90 / 20)


def test_nothing_to_do() -> None:
    """The same rate, or no samples."""
    tone = np.ones(10, np.float32)
    assert resample(tone, 8_000, 8_000) is tone
    assert len(resample(np.empty(0, np.float32), 8_000, 16_000)) == 0

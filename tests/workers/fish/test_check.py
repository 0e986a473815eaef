"""What is wrong with a spoken segment is found, and what is right passes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.engines.fish.check import check_audio

RATE = 44100
TEXT = "It is raining again, so we are staying at home today."


def speech(seconds: float, level: float = 0.1) -> NDArray[np.float32]:
    """Noise in syllables, four a second."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(0, level, len(time))
    return (noise * np.maximum(0.02, np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(seconds * RATE), np.float32)


def flaws(samples: NDArray[np.float32], text: str = TEXT) -> tuple[str, ...]:
    return check_audio(samples, RATE, text, "en")


@pytest.mark.parametrize("level", [0.01, 0.1, 0.25])
def test_speech_passes(level: float) -> None:
    """Soft and loud, with some silence around it."""
    assert flaws(np.concatenate((silence(0.3), speech(3.5, level), silence(0.3)))) == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(bad: float) -> None:
    """One is enough, and nothing else is then said."""
    samples = speech(3.5)
    samples[1000] = bad
    assert flaws(samples) == ("non_finite",)


@pytest.mark.parametrize("samples", [silence(0.0), silence(3.5), speech(3.5, 1e-5)])
def test_silence(samples: NDArray[np.float32]) -> None:
    """None at all, digital zero, and noise far below any voice."""
    assert flaws(samples) == ("silent",)


def test_clipping() -> None:
    """Flattened peaks count; a peak that touches full scale does not."""
    assert flaws(np.clip(speech(3.5, 1.0), -1, 1)) == ("clipped",)
    touching = speech(3.5)
    touching[::500] = 1.0
    assert flaws(touching) == ()


def test_a_stop_in_the_middle() -> None:
    """Silence after it doesn't make it longer."""
    assert flaws(speech(0.5)) == ("too_short",)
    assert flaws(np.concatenate((silence(1.0), speech(0.5), silence(2.0)))) == ("too_short",)


def test_a_soft_start_and_end_are_speech() -> None:
    """Consonants some 30 dB below the vowels still count as sound."""
    soft = speech(1.5) * 0.03
    assert flaws(np.concatenate((soft, speech(0.3), soft))) == ()


def test_running_on() -> None:
    """Babble, and silence that never ends."""
    assert flaws(speech(40.0)) == ("too_long",)
    assert flaws(np.concatenate((speech(3.0), silence(40.0)))) == ("too_long",)


def test_several_at_once() -> None:
    """Each is named."""
    assert flaws(np.clip(speech(40.0, 1.0), -1, 1)) == ("clipped", "too_long")


def test_other_rates() -> None:
    """Time is told in seconds."""
    assert check_audio(speech(3.5)[::2], RATE // 2, TEXT, "en") == ()

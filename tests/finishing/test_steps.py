"""The arithmetic of finishing, on sounds whose every sample is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from daemon.finishing.loudness import loudness, true_peak
from daemon.finishing.settings import Settings
from daemon.finishing.steps import Samples, finish, fit, stretch, trim

RATE = 16_000


def silence(seconds: float, noise: float = 0.0) -> Samples:
    return (noise * np.random.default_rng(1).standard_normal(round(seconds * RATE))).astype(np.float32)


def voice(seconds: float, pitch: float = 150.0, level: float = 0.3) -> Samples:
    """A buzz of eight harmonics."""
    times = np.arange(round(seconds * RATE)) / RATE
    numbers = np.arange(1, 9)[:, None]
    return np.asarray(level / 2 * (np.sin(2 * np.pi * pitch * numbers * times) / numbers).sum(axis=0), np.float32)


@pytest.mark.parametrize("noise", [0.0, 10 ** (-68 / 20)])
def test_silence_is_cut_down_to_50_ms(noise: float) -> None:
    """At both ends, a floor of noise too; what is heard, a whispered edge with it, stays to the sample."""
    whisper = 0.01 * voice(0.05)  # 40 dB under the rest
    heard = np.concatenate([whisper, voice(0.5), silence(0.4, noise), voice(0.3), whisper])
    kept, start, end = trim(np.concatenate([silence(0.31, noise), heard, silence(0.23, noise)]), RATE)
    assert start / RATE == pytest.approx(0.26, abs=0.006)
    assert end / RATE == pytest.approx(0.18, abs=0.006)
    edge = round(0.31 * RATE) - start
    assert kept[edge : edge + len(heard)] == pytest.approx(heard)
    assert kept[0] == 0.0 and abs(kept[-1]) < 1e-6


@pytest.mark.parametrize("samples", [silence(0.5), voice(0.5), voice(0.003), silence(0.0), silence(0.5, 0.1)])
def test_nothing_is_trimmed_where_nothing_is_silent_or_everything(samples: Samples) -> None:
    kept, start, end = trim(samples, RATE)
    assert kept is samples and (start, end) == (0, 0)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("speed", [1.0001, 1.01, 1.05, 1.3, 2.0])
def test_the_length_is_exact(rate: int, speed: float) -> None:
    samples = voice(0.7)
    frames = math.floor(len(samples) / speed)
    made = stretch(samples, rate, frames)
    assert made.shape == (frames,) and made.dtype == np.float32
    assert abs(made).max() <= abs(samples).max() * 1.001


def test_a_slot_is_kept_to_the_sample() -> None:
    """3.4 - 1.2 is a hair less than 2.2; the slot has all its samples."""
    assert len(fit(voice(2.5), RATE, 3.4 - 1.2, 1.25)) == 2.2 * RATE
    assert len(fit(voice(2.5), RATE, 0.0, 1.25)) == 2.0 * RATE
    for slot in (2.5, None):
        samples = voice(2.5)
        assert fit(samples, RATE, slot, 1.25) is samples


def test_quiet_speech_is_stretched_as_finely_as_loud() -> None:
    """The stretcher reckons in 16 bits; 80 dB below full scale they would be three steps."""
    loud, quiet = (stretch(level * voice(0.5), RATE, 7000) for level in (1.0, 1e-4))
    assert quiet * 1e4 == pytest.approx(loud, abs=0.001)


def test_two_channels_stay_together() -> None:
    both = np.stack([voice(0.5), 0.5 * voice(0.5)], axis=1)
    settings = Settings(fit="speed", slot_s=0.45, loudness_lufs=-20.0, trim_silence=True)
    made, told = finish(both, RATE, settings)
    assert made.shape == (round(0.45 * RATE), 2)
    assert made[:, 1] == pytest.approx(0.5 * made[:, 0], abs=0.001)
    assert told["speed"] == pytest.approx(0.5 / 0.45, rel=0.001)


def test_a_short_word_is_measured_over_itself() -> None:
    """As loud as the same voice in a sentence, not as a sentence that is mostly silence."""
    sentence = loudness(voice(2.0), RATE)
    assert sentence is not None
    for seconds in (0.39, 0.1, 0.02):
        assert loudness(voice(seconds), RATE) == pytest.approx(sentence, abs=0.5)
    assert loudness(silence(0.5), RATE) is None
    assert loudness(silence(0.1), RATE) is None


def test_a_tone_of_known_loudness() -> None:
    """ITU-R BS.1770-5, annex 1: 997 Hz at full scale in one channel is -3.01 LKFS."""
    tone = np.sin(2 * np.pi * 997 * np.arange(48_000 * 2) / 48_000).astype(np.float32)
    assert loudness(tone, 48_000) == pytest.approx(-3.01, abs=0.05)


def test_the_peak_between_samples_counts() -> None:
    """A quarter of the rate, an eighth of a period off: no sample comes near the crest. In a long recording too."""
    tone = (0.5 * np.sin(2 * np.pi * np.arange(600_000) / 4 + np.pi / 4)).astype(np.float32)
    assert abs(tone).max() == pytest.approx(0.5 / math.sqrt(2), rel=0.001)
    assert true_peak(tone[1000:]) == pytest.approx(0.5, rel=0.03)


def test_a_peak_limits_the_gain() -> None:
    click = voice(1.0, level=0.05)
    click[5000] = 0.9
    made, told = finish(click, RATE, Settings(loudness_lufs=-10.0))
    assert told["limited_by_peak"] and told["true_peak_dbtp"] == -1.0
    assert told["loudness_lufs"] == pytest.approx(told["measured_lufs"] + told["gain_db"], abs=0.011)
    assert true_peak(made) == pytest.approx(10 ** (-1 / 20), rel=0.001)


@pytest.mark.parametrize("samples", [silence(0.5), silence(0.001), voice(0.0002)])
def test_what_is_hardly_anything_is_finished_too(samples: Samples) -> None:
    settings = Settings(fit="speed", slot_s=0.0, loudness_lufs=-23.0, trim_silence=True)
    made, told = finish(samples, RATE, settings)
    assert len(made) == math.floor(len(samples) / 1.25)
    assert told["gain_db"] == 0.0 or told["loudness_lufs"] is not None

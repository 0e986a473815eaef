"""The outline of a recording."""

from __future__ import annotations

import io

import numpy
import pytest
import soundfile

from daemon.report.peaks import BARS, DIGITS, outline


def outline_of(sound: numpy.ndarray, subtype: str = "PCM_16") -> str:
    file = io.BytesIO()
    soundfile.write(file, sound, 8000, format="WAV", subtype=subtype)
    file.seek(0)
    with soundfile.SoundFile(file) as recording:
        return outline(recording)


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 1000, 8000, 3_000_001])
def test_an_outline_is_small_whatever_the_length(frames: int) -> None:
    """At most BARS digits, and they go to the end of the recording."""
    sound = numpy.zeros(frames)
    sound[-1] = 1.0
    drawn = outline_of(sound)
    assert 1 <= len(drawn) <= BARS
    assert drawn[-1] == DIGITS[-1]
    assert set(drawn[:-1]) <= {DIGITS[0]}


def test_it_follows_the_loudness() -> None:
    """The loudest sample of each stretch, on a scale of square roots, whichever channel it is in."""
    sound = numpy.zeros((64 * 100, 2))
    sound[:3200, 0] = -0.25
    sound[3200:, 1] = 1.0
    levels = [DIGITS.index(digit) for digit in outline_of(sound)]
    assert levels[:32] == [32] * 32  # half of 63, rounded
    assert levels[32:] == [63] * 32


def test_what_is_no_number_is_silence() -> None:
    """And what is too loud is loud."""
    sound = numpy.array([numpy.nan] * 100 + [numpy.inf] * 100 + [5.0] * 100)
    drawn = outline_of(sound, "FLOAT")
    assert drawn[0] == DIGITS[0]
    assert drawn[-1] == DIGITS[-1]

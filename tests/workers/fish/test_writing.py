"""WAVs are written on a thread, at the rate and in the form that was asked for, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from workers.engine import EngineError
from workers.engines.fish.writing import Writer

RATE = 44100


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


def tone(seconds: float = 0.5) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize(("subtype", "exact"), [("PCM_16", 4e-5), ("PCM_24", 2e-7), ("FLOAT", 0.0)])
def test_writes_what_it_is_given(writer: Writer, tmp_path: Path, subtype: str, exact: float) -> None:
    """As fine as the subtype is."""
    path = tmp_path / "a.wav"
    assert writer.submit(tone(), RATE, str(path), None, subtype).result(30) == (RATE // 2, RATE)
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    assert soundfile.info(path).subtype == subtype
    np.testing.assert_allclose(samples, tone(), rtol=0, atol=exact)


@pytest.mark.parametrize("rate", [8000, 16000, 48000, 96000])
def test_resamples(writer: Writer, tmp_path: Path, rate: int) -> None:
    """The tone keeps its pitch, level and length; frames and rate are those of the file."""
    pytest.importorskip("soxr")
    path = tmp_path / "a.wav"
    frames, written_rate = writer.submit(tone(), RATE, str(path), rate, "FLOAT").result(30)
    samples, file_rate = soundfile.read(path, dtype="float32")
    assert (len(samples), file_rate) == (frames, written_rate) == (rate // 2, rate)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(frames) / rate)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], rtol=0, atol=1e-3)


def test_its_own_rate_is_not_resampled(writer: Writer, tmp_path: Path) -> None:
    """The samples stay, bit for bit."""
    writer.submit(tone(), RATE, str(tmp_path / "a.wav"), RATE, "FLOAT").result(30)
    assert np.array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], tone())


def test_too_loud_is_limited_not_wrapped(writer: Writer, tmp_path: Path) -> None:
    """A peak over full scale must not come out with the other sign."""
    samples = np.array([0.5, 1.5, -1.5], np.float32)
    writer.submit(samples, RATE, str(tmp_path / "a.wav"), None, "PCM_16").result(30)
    assert np.allclose(soundfile.read(tmp_path / "a.wav")[0], [0.5, 1.0, -1.0], atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_clicks(writer: Writer, tmp_path: Path, bad: float) -> None:
    """Samples that are no numbers fail the file; none is there then, and the next one is written."""
    samples = tone()
    samples[77] = bad
    failed = writer.submit(samples, RATE, str(tmp_path / "a.wav"), None, "PCM_16")
    following = writer.submit(tone(), RATE, str(tmp_path / "b.wav"), None, "PCM_16")
    with pytest.raises(EngineError) as caught:
        failed.result(30)
    assert caught.value.code == "non_finite"
    assert caught.value.retryable
    following.result(30)
    assert [path.name for path in tmp_path.iterdir()] == ["b.wav"]


def test_a_form_that_no_wav_has(writer: Writer, tmp_path: Path) -> None:
    """Said before anything is written."""
    with pytest.raises(EngineError) as caught:
        writer.submit(tone(), RATE, str(tmp_path / "a.wav"), None, "VORBIS").result(30)
    assert caught.value.code == "unsupported_output"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(writer: Writer, tmp_path: Path) -> None:
    """The disk's no is the segment's error, not the thread's end."""
    with pytest.raises(EngineError) as caught:
        writer.submit(tone(), RATE, str(tmp_path / "no" / "a.wav"), None, "PCM_16").result(30)
    assert caught.value.code == "write_failed"
    writer.submit(tone(), RATE, str(tmp_path / "a.wav"), None, "PCM_16").result(30)


def test_closing_finishes_what_was_submitted(tmp_path: Path) -> None:
    """Nothing is lost by stopping."""
    writer = Writer()
    writes = [writer.submit(tone(), RATE, str(tmp_path / f"{index}.wav"), None, "PCM_16") for index in range(20)]
    writer.close()
    assert all(write.done() for write in writes)
    assert len(list(tmp_path.iterdir())) == 20


def test_an_empty_one(writer: Writer, tmp_path: Path) -> None:
    """Is a WAV of no frames."""
    assert writer.submit(np.zeros(0, np.float32), RATE, str(tmp_path / "a.wav"), None, "PCM_16").result(30) == (0, RATE)
    assert soundfile.info(tmp_path / "a.wav").frames == 0

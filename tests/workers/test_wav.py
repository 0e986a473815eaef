"""WAVs: right for any reader, and equal bytes for equal samples."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from workers.engine import EngineError
from workers.wav import FORMATS, silent_wav, write_wav

TONE = (0.5 * np.sin(np.arange(1_001) / 7)).astype(np.float32)


@pytest.mark.parametrize("subtype", FORMATS)
def test_what_was_written_can_be_read(tmp_path: Path, subtype: str) -> None:
    """Rate, subtype and samples come back, within the subtype's steps; whatever the file is called."""
    path = tmp_path / "wav.tmp"
    write_wav(str(path), TONE, 22_050, subtype)
    information = soundfile.info(path)
    assert (information.format, information.subtype) == ("WAV", subtype)
    assert (information.samplerate, information.frames, information.channels) == (22_050, len(TONE), 1)
    samples, _ = soundfile.read(path)
    assert np.abs(samples - TONE).max() < (0.02 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_no_time_of_writing_in_the_file(tmp_path: Path, subtype: str) -> None:
    """libsndfile's PEAK chunk is there with its time erased: the same WAV tomorrow has the same sha256."""
    path = tmp_path / "wav.tmp"
    write_wav(str(path), TONE, 22_050, subtype)
    content = path.read_bytes()
    peak = content.index(b"PEAK")
    assert content[peak + 12 : peak + 16] == bytes(4)
    assert soundfile.read(path)[0].tolist() == TONE.tolist()


def test_integers_are_written_as_they_are(tmp_path: Path) -> None:
    """16-bit samples of an engine lose nothing on their way."""
    samples = np.array([0, 1, -1, 32_767, -32_768], np.int16)
    path = tmp_path / "wav.tmp"
    write_wav(str(path), samples, 16_000, "PCM_16")
    assert soundfile.read(path, dtype="int16")[0].tolist() == samples.tolist()


@pytest.mark.parametrize("subtype", FORMATS)
def test_integers_are_as_loud_in_every_subtype(tmp_path: Path, subtype: str) -> None:
    """In those that hold floats, full scale is 1."""
    path = tmp_path / "wav.tmp"
    write_wav(str(path), np.array([0, 16_384, -16_384], np.int16), 16_000, subtype)
    assert soundfile.read(path)[0].tolist() == [0.0, 0.5, -0.5]


def test_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    """And does not wrap around."""
    path = tmp_path / "wav.tmp"
    write_wav(str(path), np.array([2.0, -2.0], np.float32), 16_000, "PCM_16")
    assert soundfile.read(path, dtype="int16")[0].tolist() == [32_767, -32_768]


@pytest.mark.parametrize("subtype", ["VORBIS", "nonsense", ""])
def test_a_subtype_no_wav_has(tmp_path: Path, subtype: str) -> None:
    """Refused for good, and nothing is left behind."""
    with pytest.raises(EngineError) as caught:
        write_wav(str(tmp_path / "wav.tmp"), TONE, 22_050, subtype)
    assert (caught.value.code, caught.value.retryable) == ("unsupported_output", False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The system's own error comes through, not one of libsndfile."""
    with pytest.raises(FileNotFoundError):
        write_wav(str(tmp_path / "missing" / "wav.tmp"), TONE, 22_050, "PCM_16")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_by_its_name() -> None:
    """So that the daemon can wait for space."""
    with pytest.raises(OSError) as caught:
        write_wav("/dev/full", np.tile(TONE, 100), 22_050, "PCM_16")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("subtype", FORMATS)
@pytest.mark.parametrize("frames", [0, 1, 4_411])
def test_silence_is_a_wav(subtype: str, frames: int) -> None:
    """Made without libsndfile, read by it: as many frames as asked for, all of them zero."""
    samples, rate = soundfile.read(io.BytesIO(silent_wav(frames, 44_100, subtype)))
    assert (len(samples), rate) == (frames, 44_100)
    assert not np.any(samples)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_samples_that_are_no_numbers(tmp_path: Path, bad: float, subtype: str) -> None:
    """No engine's NaN becomes a WAV; nothing is begun."""
    samples = TONE.copy()
    samples[77] = bad
    with pytest.raises(EngineError) as caught:
        write_wav(str(tmp_path / "wav.tmp"), samples, 22_050, subtype)
    assert caught.value.code == "non_finite"
    assert not list(tmp_path.iterdir())

"""WAV headers and samples, as libsndfile reads them back."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from daemon.stitching.wave_file import BYTES, WaveFile, encoded, header


@pytest.mark.parametrize("subtype", BYTES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frames", [0, 1, 1001])
def test_libsndfile_reads_what_was_written(tmp_path: Path, subtype: str, channels: int, frames: int) -> None:
    """The samples to the bit, in pieces or at once; odd lengths are padded."""
    samples = np.random.default_rng(1).integers(-(2**15), 2**15, (frames, channels)) / 2**15
    descriptor = os.open(tmp_path / "a.wav", os.O_WRONLY | os.O_CREAT)
    wave = WaveFile(descriptor, frames, 48_000, channels, subtype)  # type: ignore[arg-type]
    wave.write(samples[:100])
    wave.write(samples[100:])
    wave.finish()
    os.close(descriptor)
    info = soundfile.info(str(tmp_path / "a.wav"))
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (frames, 48_000, channels, subtype)
    read, _ = soundfile.read(str(tmp_path / "a.wav"), dtype="float64", always_2d=True)
    assert np.array_equal(read, samples)
    size = (tmp_path / "a.wav").stat().st_size
    assert size == len(header(frames, 48_000, channels, subtype)) + wave.data_bytes + wave.data_bytes % 2  # type: ignore[arg-type]


def test_one_channel_is_written_to_both() -> None:
    """And full scale is the largest number there is."""
    samples = np.array([[0.5], [1.0], [-1.0]])
    both = np.frombuffer(encoded(samples, 2, "PCM_16"), "<i2").reshape(-1, 2)
    assert both.tolist() == [[16384, 16384], [32767, 32767], [-32768, -32768]]


def test_past_4_gib_it_is_rf64(tmp_path: Path) -> None:
    """libsndfile finds every sample of 10 hours; the file is mostly a hole."""
    frames = 36_000 * 48_000
    with (tmp_path / "long.wav").open("wb") as file:
        head = header(frames, 48_000, 2, "PCM_24")
        file.write(head)
        file.truncate(len(head) + frames * 6)
        file.seek(len(head) + (frames - 1) * 6)
        file.write(encoded(np.array([[0.25]]), 2, "PCM_24"))
    info = soundfile.info(str(tmp_path / "long.wav"))
    assert (info.format, info.frames, info.subtype) == ("RF64", frames, "PCM_24")
    last, _ = soundfile.read(str(tmp_path / "long.wav"), start=frames - 1, dtype="float64")
    assert last.tolist() == [[0.25, 0.25]]
    assert soundfile.info(io.BytesIO(header(0, 8000, 1, "PCM_16"))).format == "WAV"

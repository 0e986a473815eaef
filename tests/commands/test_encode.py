"""``dubd encode``, by a real worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy
import pytest

from tests.commands.conftest import Place, sample_recording, wait_until


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "anna.flac"
    path.write_bytes(sample_recording())
    return path


def test_a_recording_becomes_codes(place: Place, recording: Path) -> None:
    """No daemon is needed; an old file of that name is replaced, and nothing else is left."""
    output = place.folder / "anna.npy"
    output.write_bytes(b"old")
    before = set(os.listdir(place.folder))
    done = place.dubd("encode", "anna.flac", "-o", "anna.npy")
    assert done.returncode == 0, done.stderr
    assert "anna.npy: 7 frames" in done.stdout
    codes = numpy.load(output)
    assert codes.shape == (10, 7)
    assert set(os.listdir(place.folder)) == before


def test_ctrl_c_leaves_nothing(place: Place, recording: Path) -> None:
    """Neither half a file, nor a worker, nor a traceback."""
    slow = recording.rename(recording.with_name("slow.flac"))
    process = place.start("encode", str(slow), "-o", "slow.npy")
    wait_until(lambda: any(name.startswith(".dubd-") for name in os.listdir(place.folder)), "the start")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert os.listdir(place.folder) == ["slow.flac"]


@pytest.mark.parametrize("engine", ["draft", "silence"])
def test_an_engine_without_a_codec_says_so(place: Place, recording: Path, engine: str) -> None:
    """Before any worker is started."""
    done = place.dubd("encode", str(recording), "-o", "x.npy", "--set", f"engine.name={engine}")
    assert done.returncode == 2
    assert "engine.name=fish" in done.stderr


def test_mistakes_in_the_paths_exit_2(place: Place, recording: Path) -> None:
    """A missing recording, one that is none, a folder to write to, a missing folder."""
    (place.folder / "text.wav").write_text("no recording")
    for reference, output in (
        ("nowhere.wav", "x.npy"),
        ("text.wav", "x.npy"),
        ("anna.flac", "."),
        ("anna.flac", "nowhere/x.npy"),
    ):
        done = place.dubd("encode", reference, "-o", output)
        assert done.returncode == 2, (reference, output)
        assert done.stderr.startswith("dubd: ")
    assert sorted(os.listdir(place.folder)) == ["anna.flac", "text.wav"]


def test_an_engine_that_can_not_be_loaded_is_told_with_its_reason(place: Place, recording: Path) -> None:
    """What the worker says, and where to look further; an old output stays."""
    (place.folder / "x.npy").write_bytes(b"old")
    done = place.dubd("encode", "anna.flac", "-o", "x.npy", "--set", "engine.name=nowhere:Engine")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert (place.folder / "x.npy").read_bytes() == b"old"


def test_an_interpreter_that_is_not_there_is_told(place: Place, recording: Path) -> None:
    """With the name of the one that was tried."""
    done = place.dubd("encode", "anna.flac", "-o", "x.npy", "--set", "worker.python=/nowhere/python")
    assert done.returncode == 1
    assert "/nowhere/python" in done.stderr
    assert "dubd doctor" in done.stderr

"""``dubd stitch``: which job, which tracks, what it tells, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner, Result

from daemon.cli import app
from tests.stitching.conftest import Finished, noise


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """A job in the outbox: two speakers, an overlap, an overrun, a failure."""
    monkeypatch.chdir(tmp_path)
    finished = Finished(Path("var/outbox/film"))
    finished.folder.mkdir(parents=True)
    finished.add(0.0, noise(8000), end=0.75)
    finished.add(0.5, noise(4000, seed=1), speaker="bo", end=2.0)
    finished.add(2.0, None, status="failed", speaker="bo")
    finished.write()
    return finished


def stitch(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["stitch", *map(str, arguments)])


def test_what_is_missing_or_does_not_fit_is_told(film: Finished) -> None:
    """The track is there all the same; exit code 1."""
    done = stitch("film", "-o", "t.wav")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "film: 2 of 3 segments laid, 0:00:01.000 of mono, 8000 Hz, PCM_16",
        "  not laid: 1 segment",
        "       2  bo at 0:00:02.000: failed: no_speech: nothing but noise came of it",
        "  heard at the same time: 1 pair, by up to 0.500 s",
        "  0 and 1 (anna, bo) at 0:00:00.500: 0.500 s",
        "  past the end of their slots: 1 segment, by up to 0.250 s",
        "       0  anna at 0:00:00.000: by 0.250 s",
        done.stdout.splitlines()[-1],
    ]
    assert done.stdout.splitlines()[-1].startswith("t.wav: peak -")
    assert soundfile.info("t.wav").frames == 8000


def test_a_track_for_each_speaker(film: Finished) -> None:
    """All of one length, in a folder that is made, in the form that was asked for."""
    done = stitch(
        film.folder, "-o", "tracks", "--per-speaker", "--stereo", "--subtype", "PCM_24", "--length", "0:03", "--json"
    )
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert [track["file"] for track in document["tracks"]] == ["tracks/01_anna.wav", "tracks/02_bo.wav"]
    assert [one["index"] for one in document["missing"]] == [2]
    assert document["overlaps"] == [{"first": 0, "second": 1, "at_s": 0.5, "overlap_s": 0.5}]
    for name in ("01_anna", "02_bo"):
        info = soundfile.info(f"tracks/{name}.wav")
        assert (info.frames, info.channels, info.subtype) == (24_000, 2, "PCM_24")


def test_the_length_of_the_film(film: Finished) -> None:
    """From a recording of it, or in words; never shorter than what is said."""
    soundfile.write("film.wav", noise(22_050 * 4), 22_050)
    for length in ("film.wav", "4", "0:04.0", "0:00:04,000"):
        stitch(film.folder / "manifest.json", "-o", "t.wav", "--length", length)
        assert soundfile.info("t.wav").frames == 32_000
    refused = stitch("film", "-o", "t.wav", "--length", "0.9")
    assert (refused.exit_code, "segment 0 ends 0.100 s after" in refused.stderr) == (2, True)


def test_gain_and_rate(film: Finished) -> None:
    """Decibels on all; another rate by conversion."""
    stitch("film", "-o", "t.wav", "--gain", "-20", "--sample-rate", "16000", "--subtype", "FLOAT")
    samples, rate = soundfile.read("t.wav")
    assert rate == 16_000
    assert 0.03 < abs(samples).max() < 0.15


def test_a_changed_file_is_laid_when_asked(film: Finished) -> None:
    """An editor's retouched WAV; by default it counts as missing."""
    soundfile.write(film.folder / "segment_0001.wav", noise(4000, seed=9), 8000)
    assert "segment_0001.wav has been changed" in stitch("film", "-o", "t.wav").stdout
    assert "2 of 3 segments laid" in stitch("film", "-o", "t.wav", "--no-verify").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("flim", "-o", "t.wav"), "Did you mean film?"),
        (("film", "-o", "t.mp3"), "ends with .wav"),
        (("film", "-o", "none/t.wav"), "there is no folder none"),
        (("film", "-o", "t.wav", "--subtype", "ULAW"), "PCM_16, PCM_24, FLOAT"),
        (("film", "-o", "t.wav", "--length", "long"), "--length is seconds"),
        (("film", "-o", "t.wav", "--length", "-3"), "--length can't be -3 seconds"),
        (("film", "-o", "config", "--per-speaker"), "config is a file"),
        (("untimed", "-o", "t.wav"), "no segment has a start"),
        (("running", "-o", "t.wav"), "running is not over"),
        (("corpus", "-o", "t.wav"), "holds no spoken job"),
        (("alone", "-o", "t.wav"), "which says when each line is due, can't be read"),
        (("silent", "-o", "t.wav"), "no segment of film can be laid: cancelled"),
    ],
)
def test_refusals_exit_2_and_write_nothing(film: Finished, arguments: tuple[str, ...], told: str) -> None:
    """Each says what to do instead."""
    outbox = Path("var/outbox")
    Path("config").touch()
    untimed = Finished(outbox / "untimed")
    untimed.add(None, noise(80))
    untimed.write()
    silent = Finished(outbox / "silent")
    silent.add(0.0, None, status="cancelled")
    silent.write()
    (outbox / "running").mkdir()
    (outbox / "corpus").mkdir()
    (outbox / "corpus" / "manifest.json").write_text('{"kind": "speaker_embeddings", "speakers": []}')
    (outbox / "alone").mkdir()
    (outbox / "alone" / "manifest.json").write_bytes((film.folder / "manifest.json").read_bytes())
    refused = stitch(*arguments)
    assert refused.exit_code == 2, refused.output
    assert told in refused.stderr
    assert not list(Path().glob("**/t.*"))

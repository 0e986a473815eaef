"""From subtitles to a track on the film's clock, by the draft engine; and the examples, as they stand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.end_to_end.conftest import ROOT, DaemonUnderTest, shared_daemon

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def dubd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonUnderTest]:
    yield from shared_daemon(tmp_path_factory, engine__name="draft", engine__options={})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `dubd` is this checkout's."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "dubd"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m daemon "$@"\n')
    command.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run(path: str, *command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        timeout=55,
        check=False,
    )


def onset(track: np.ndarray, segment: np.ndarray, near: int, reach: int) -> int:
    """Where the segment's samples stand in the track, looked for ``reach`` samples around ``near``: the shift at which
    the two differ least."""
    shifts = range(max(0, near - reach), min(near + reach, len(track) - len(segment)) + 1)
    part = segment.astype(np.float64)
    return min(shifts, key=lambda shift: float(np.abs(track[shift : shift + len(part)] - part).sum()))


def test_subtitles_become_a_track_on_the_films_clock(dubd: DaemonUnderTest, path: str, tmp_path: Path) -> None:
    """SRT to job to WAVs to track: every segment's samples are found where its time says, within a millisecond; in fact
    to the sample. Two who speak in one cue, fractions of samples, another rate."""
    (tmp_path / "Ferry Night.srt").write_bytes(
        "1\r\n00:00:00,333 --> 00:00:02,000\r\nINES: Evening, café.\r\n\r\n"
        "2\r\n00:00:03,001 --> 00:00:06,777\r\n- BO: It knocks.\r\n- INES: Again?\r\n\r\n"
        "3\r\n00:00:07,123 --> 00:00:09,000\r\n[horn] Bo: Yes.\r\n".encode("cp1252")
    )
    options = ("--config", dubd.config)
    command = ("dubd", "srt", "Ferry Night.srt", "--voices", EXAMPLES / "cast.toml", "--wait", *options)
    made = run(path, *command, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "Windows-1252 (Western Europe) (guessed" in made.stderr
    assert "Ferry Night: done, 4/4 segments spoken" in made.stdout
    folder = dubd.outbox / "Ferry Night"
    job, manifest = json.loads((folder / "job.json").read_bytes()), dubd.manifest("Ferry Night")
    for rate in (None, 48_000):
        shown = ("--sample-rate", rate) if rate else ()
        stitched = run(path, "dubd", "stitch", "Ferry Night", "-o", "t.wav", "--json", *shown, *options, cwd=tmp_path)
        assert stitched.returncode == 0, stitched.stderr
        report = json.loads(stitched.stdout)
        assert (report["laid"], report["missing"]) == (4, [])
        track, track_rate = soundfile.read(str(tmp_path / "t.wav"), dtype="float64")
        assert len(track) == report["frames"]
        for asked, spoken in zip(job["segments"], manifest["segments"], strict=True):
            segment, segment_rate = soundfile.read(str(folder / spoken["file"]), dtype="float64")
            if rate:
                import soxr

                segment = soxr.resample(segment, segment_rate, rate, quality="VHQ")
            else:
                assert track_rate == segment_rate
            middle = segment[: track_rate // 2]
            found = onset(track, middle, round(asked["start"] * track_rate), track_rate // 200)
            assert abs(found / track_rate - asked["start"]) < 0.001
            assert found == round(asked["start"] * track_rate)
            if not rate:
                assert np.array_equal(track[found : found + len(middle)], middle)


def test_the_shell_example_dubs_a_film(dubd: DaemonUnderTest, path: str, tmp_path: Path) -> None:
    """Subtitles and cast to one track; further options reach both commands."""
    script = (EXAMPLES / "dub_film.sh", EXAMPLES / "ferry.srt", EXAMPLES / "cast.toml", "track.wav")
    done = run(path, *script, "--config", dubd.config, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ferry: 5 of 5 segments laid" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["track.wav"]
    speakers = [segment["speaker"] for segment in dubd.manifest("ferry")["segments"]]
    assert speakers == ["ines", "ines", "bo", "bo", "teo"]


def test_the_example_job_is_submitted_as_it_stands(dubd: DaemonUnderTest, path: str, tmp_path: Path) -> None:
    """As its README says."""
    job = EXAMPLES / "two_voices.json"
    done = run(path, "dubd", "submit", job, "--wait", "--config", dubd.config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "two_voices: done, 4/4 segments spoken" in done.stdout


def test_the_python_example_drops_a_job_and_lists_its_lines(dubd: DaemonUnderTest, path: str, tmp_path: Path) -> None:
    """Twice: an earlier manifest of the same name is not taken for the new one. A rejected job tells why."""
    shutil.copytree(EXAMPLES.parent / "daemon" / "sample", tmp_path / "daemon" / "sample")
    job = tmp_path / "examples" / "lifted.json"
    job.parent.mkdir()
    job.write_text((EXAMPLES / "two_voices.json").read_text("utf-8").replace("two_voices", "lifted"), "utf-8")
    command = (sys.executable, "-I", EXAMPLES / "drop_job.py", job, dubd.root)
    for text in ("Barely.", "Hardly."):
        job.write_text(job.read_text("utf-8").replace("Barely.", text), "utf-8")
        done = run(path, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 4
        assert text in dubd.manifest("lifted")["segments"][1]["text"]
    job.write_text(job.read_text("utf-8").replace('"index": 3', '"index": 0'), "utf-8")
    for _ in range(2):
        done = run(path, *command, cwd=tmp_path)
        assert (done.returncode, "duplicate_index" in done.stderr) == (2, True)


def test_the_shell_example_drops_a_job(dubd: DaemonUnderTest, path: str, tmp_path: Path) -> None:
    """References relative to the inbox; and a rejected job ends it, too."""
    shutil.copyfile(EXAMPLES.parent / "daemon" / "sample" / "bo.flac", dubd.inbox / "bo.flac")
    job = tmp_path / "plain.json"
    speaker = {"id": "bo", "references": [{"audio": "bo.flac", "text": "An engine."}]}
    job.write_text(json.dumps({"speakers": [speaker], "segments": [{"index": 0, "speaker": "bo", "text": "Hello."}]}))
    done = run(path, EXAMPLES / "drop_job.sh", job, dubd.root, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{dubd.outbox}/plain/manifest.json\n"), done.stderr
    job.write_text("{}")
    done = run(path, EXAMPLES / "drop_job.sh", job, dubd.root, cwd=tmp_path)
    assert (done.returncode, "rejected" in done.stderr) == (2, True)

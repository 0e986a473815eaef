"""``dubd srt``: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from daemon.cli import app
from tests.commands.conftest import sample_recording

FILM = """1
00:00:01,000 --> 00:00:02,000
ANNA: Hello.

2
00:00:01,500 --> 00:00:03,000
[bang] Hey...

3
00:00:03,500 --> 00:00:04,000
you.
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("film.srt").write_text(FILM, "utf-8")
    Path("anna.flac").write_bytes(sample_recording())
    Path("bo.flac").write_bytes(sample_recording("bo"))


def srt(*arguments: str) -> Result:
    voices = ("--voice", "anna=anna.flac:I am Anna.", "--voice", "bo=bo.flac:I am Bo.")
    return CliRunner().invoke(app, ["srt", "film.srt", *voices, "--default-speaker", "bo", *arguments])


def test_the_jobs_path_alone_is_on_standard_output() -> None:
    """So that another command can take it; what was assumed and left out is on standard error, with lines."""
    done = srt()
    assert (done.exit_code, done.stdout) == (0, "film.json\n")
    assert [segment["speaker"] for segment in json.loads(Path("film.json").read_bytes())["segments"]] == [
        "anna",
        "bo",
        "bo",
    ]
    assert done.stderr.splitlines() == [
        "film.srt: SubRip, UTF-8",
        "  3 cues, 3 lines to speak: bo 2, anna 1",
        "  1 line without a tag, spoken by the default speaker: line 7",
        "  1 line without a tag, the rest of a sentence of who spoke before: line 11",
        "  left out as no speech: 1 text, such as [bang]",
        "    in line 7",
        "  1 cue before the end of another (by up to 0.50 s): line 7",
    ]


def test_a_job_that_somebody_has_changed_is_not_replaced_unasked() -> None:
    """Unless it is named; the same job again is fine."""
    assert srt().exit_code == srt().exit_code == 0
    changed = Path("film.json").read_text("utf-8") + "\n"
    Path("film.json").write_text(changed, "utf-8")
    refused = srt()
    assert (refused.exit_code, Path("film.json").read_text("utf-8")) == (2, changed)
    assert "replace it with -o film.json" in refused.stderr
    assert srt("-o", "film.json").exit_code == 0
    assert Path("film.json").read_text("utf-8") != changed


def test_printed_to_a_pipe() -> None:
    """With references relative to where we are; such a job can't be submitted, too."""
    done = srt("-o", "-", "--job-id", "printed")
    assert json.loads(done.stdout)["job_id"] == "printed"
    assert not Path("film.json").exists()
    assert srt("-o", "-", "--submit").exit_code == 2


def test_mistakes_exit_2_and_nothing_is_written() -> None:
    """Those of the subtitles by line, the recordings', the table's; in one go."""
    Path("film.srt").write_text(FILM.replace("ANNA:", "ANA:").replace("you.", "ZED: x"), "utf-8")
    Path("bo.flac").write_bytes(b"not a recording")
    Path("cast.csv").write_text("9,bo\n")
    done = srt("--speakers", "cast.csv", "--language", "?")
    assert done.exit_code == 2
    assert not Path("film.json").exists()
    assert [line.partition(": ")[0].strip() for line in done.stderr.splitlines()[1:]] == [
        "line 3", "line 11", "cast.csv line 1", "--voice anna=anna.flac", "--language", "--voice bo=bo.flac",
    ]  # fmt: skip
    assert "inbox" not in done.stderr
    assert srt("--speaker-tag", "braces").exit_code == 2


def test_without_a_daemon_a_submitted_job_stays_as_a_file() -> None:
    """Exit code 3, as for submit."""
    assert srt("--submit").exit_code == 3
    assert Path("film.json").exists()

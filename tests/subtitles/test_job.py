"""Subtitles and voices to a job: who speaks each line, when, and every mistake with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.core.job import Limits
from daemon.core.job_parser import parse_job
from daemon.subtitles.job import Composed, Wishes, compose, goes_on

VOICES = ("anna=anna.wav:I am Anna.", "bo=bo.wav:I am Bo.")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def srt(*cues: str) -> str:
    """Cues of a second each, two seconds apart: the times of cue N begin at 2N seconds, in line 3N - 1 if each has one
    line."""
    return "".join(
        f"{number}\n00:00:{2 * number:02d},000 --> 00:00:{2 * number + 1:02d},000\n{text}\n"
        for number, text in enumerate(cues, 1)
    )


def make(text: str, **wishes: Any) -> Composed:
    Path("film.srt").write_text(text, "utf-8")
    options: dict[str, Any] = {"voices": VOICES, **wishes}
    made = compose(Wishes(subtitles=Path("film.srt"), folder=Path(), **options), Limits())
    if not made.mistakes:
        parse_job(json.dumps(made.document).encode(), stem="film", limits=Limits())
    return made


def spoken(text: str, **wishes: Any) -> list[tuple[str, str]]:
    """Speaker and text of every segment of a film without mistakes."""
    made = make(text, **wishes)
    assert not made.mistakes
    return [(segment["speaker"], segment["text"]) for segment in made.document["segments"]]


def mistakes(text: str, **wishes: Any) -> dict[str, str]:
    """What is wrong, by place."""
    return {mistake.where: mistake.message for mistake in make(text, **wishes).mistakes}


def test_a_job_of_tagged_lines() -> None:
    """Names without regard to case, times in seconds, references relative to the job, the rest as asked."""
    Path("film.srt").write_text(srt("ANNA: Hello.", "<v Bo>Hi.</v>"), "utf-8")
    wishes = Wishes(
        subtitles=Path("film.srt"),
        folder=Path(),
        voices=(*VOICES, "Anna=codes.npy:Again."),
        language="en-GB",
        priority=3,
        settings=("output.sample_rate=48000", "output.subtype=PCM_24", "defaults.seed=7"),
    )
    assert compose(wishes, Limits()).document == {
        "schema": 1,
        "job_id": "film",
        "language": "en-GB",
        "priority": 3,
        "output": {"sample_rate": 48000, "subtype": "PCM_24"},
        "defaults": {"seed": 7},
        "speakers": [
            {
                "id": "anna",
                "references": [{"audio": "anna.wav", "text": "I am Anna."}, {"codes": "codes.npy", "text": "Again."}],
            },
            {"id": "bo", "references": [{"audio": "bo.wav", "text": "I am Bo."}]},
        ],
        "segments": [
            {"index": 0, "speaker": "anna", "text": "Hello.", "start": 2.0, "end": 3.0},
            {"index": 1, "speaker": "bo", "text": "Hi.", "start": 4.0, "end": 5.0},
        ],
    }


def test_two_in_a_cue_share_its_time_by_what_they_say() -> None:
    """One after the other, without a gap."""
    made = make(srt("- ANNA: Yes.\n- BO: Certainly"))
    times = [(segment["start"], segment["end"]) for segment in made.document["segments"]]
    assert times == [(2.0, 2.25), (2.25, 3.0)]


def test_segments_are_in_the_order_of_the_film() -> None:
    """Whatever the order of the file; overlaps are told."""
    made = make("1\n0:0:5 --> 0:0:9\nBO: Second.\n2\n0:0:1 --> 0:0:6,5\nANNA: First.\n")
    assert [segment["text"] for segment in made.document["segments"]] == ["First.", "Second."]
    assert [(line.text, by) for line, by in made.overlaps()] == [("Second.", 1500)]


def test_who_speaks_without_a_tag() -> None:
    """The rest of a sentence is spoken by who began it; else the default speaker, or who spoke before; a single voice
    speaks all."""
    film = srt("ANNA: I thought...", "that you knew.", "Nobody knows.", "- It is.\n- BO: Is it?")
    assert spoken(film, default_speaker="Bo")[1:4] == [
        ("anna", "that you knew."),
        ("bo", "Nobody knows."),
        ("bo", "It is."),
    ]
    assert spoken(film, keep_speaker=True, default_speaker="bo")[2:4] == [("anna", "Nobody knows."), ("bo", "It is.")]
    assert spoken(srt("One.", "Two."), voices=VOICES[:1]) == [("anna", "One."), ("anna", "Two.")]
    assert "--default-speaker" in mistakes(film)["lines 9 and 12"]


def test_what_goes_on() -> None:
    """Marks and small letters only: many subtitles have no full stops."""
    assert goes_on("I thought,", "John", 100) and goes_on("I thought", "that", 100) and goes_on("So", "… he went", 100)
    assert not goes_on("I thought,", "John", 3000)
    assert not goes_on("我想", "你知道", 100)
    assert not goes_on("I thought.", "that", 100)


def test_joined_sentences_are_one_line() -> None:
    """From the first start to the last end; not over another's line, nor past the limit of a text."""
    film = srt("ANNA: I thought...", "...that you", "BO: What?", "ANNA: knew.")
    made = make(film, join=True)
    segments = made.document["segments"]
    assert [segment["text"] for segment in segments] == ["I thought... that you", "What?", "knew."]
    assert (segments[0]["start"], segments[0]["end"]) == (2.0, 5.0)


def test_a_table_of_speakers_decides() -> None:
    """By number, range, part of a cue and time; over tags. Semicolons, headings and other encodings are fine."""
    film = srt("One.", "Two.", "- Three.\n- Four.", "ANNA: Five.", "Six.", "Seven.")
    table = "Cue;Text;Speaker\n1-2;x;Anna\n3/1;x;bo\n3/2;x;ANNA\n4;x;Bo\n00:00:10,000;x;zoë\n00:00:12.500;x;bo\n"
    Path("cast.csv").write_bytes(table.encode("cp1252"))
    voices = (*VOICES, "Zoë=zoe.wav:I am Zoë.")
    assert [speaker for speaker, _ in spoken(film, voices=voices, speaker_table=Path("cast.csv"))] == [
        "anna", "anna", "bo", "anna", "bo", "Zoë", "bo",
    ]  # fmt: skip


def test_rows_that_fit_nothing_are_told() -> None:
    """Each with its line in the table."""
    Path("cast.csv").write_text("1,anna\n1,bo\n9,bo\nx,bo\n2/3,bo\n0:01:00,bo\n2,zoe\n2,bo,more\n5-3,bo\n")
    found = mistakes(srt("A.", "B."), speaker_table=Path("cast.csv"), default_speaker="anna")
    assert {place for place in found if place.startswith("cast.csv")} == {
        f"cast.csv line {line}" for line in (2, 3, 4, 5, 6, 7, 8, 9)
    }


def test_voices_from_options_files_and_jobs() -> None:
    """Colons and quotes in paths and texts, a text of its own file or beside the recording, other names of a voice. A
    voice of a file that nobody speaks with is left out."""
    Path("an: a.wav").touch()
    Path("bo.txt").write_text("He says:\n  this.", "utf-8")
    Path("lin.txt").write_bytes("Où ?".encode("cp1252"))
    Path("sub").mkdir()
    Path("sub/cast.toml").write_text(
        '["the captain"]\nalso = ["Skipper"]\nreferences = [{codes = "c.npy", text = "One."},'
        ' {audio = "c.wav", text_file = "../bo.txt"}]\n[idle]\naudio = "i.wav"\ntext = "x"\n'
    )
    Path("old.json").write_text('{"speakers": [{"id": 7, "references": [{"audio": "/v/7.wav", "text": "Seven."}]}]}')
    made = make(
        srt("ANNA: A.", "BO: B.", "LIN: C.", "SKIPPER: D.", "7: E.", "WAITER: F."),
        voices=('anna=an: a.wav:"Well: hello"', "bo=bo.wav", "lin=x/lin.wav:@lin.txt"),
        voice_files=(Path("sub/cast.toml"), Path("old.json")),
        aliases=("waiter=bo",),
    )
    assert not made.mistakes
    assert [segment["speaker"] for segment in made.document["segments"]] == [
        "anna", "bo", "lin", "the captain", "7", "bo",
    ]  # fmt: skip
    assert [speaker["references"] for speaker in made.document["speakers"]] == [
        [{"audio": "an: a.wav", "text": "Well: hello"}],
        [{"audio": "bo.wav", "text": "He says: this."}],
        [{"audio": "x/lin.wav", "text": "Où ?"}],
        [
            {"codes": "sub/c.npy", "text": "One."},
            {"audio": "sub/c.wav", "text": "He says: this."},
        ],
        [{"audio": "/v/7.wav", "text": "Seven."}],
    ]


def test_every_mistake_at_once() -> None:
    """Tags without a voice (with the lines of each), voices without lines, voices that are none, the job's own."""
    Path("cast.toml").write_text('[zed]\naudio = "z.wav"\ncolour = "red"\n[yes]\n')
    found = mistakes(
        srt("ANA: One.", "BO: Two.", "ANA: Three.", "CARL: Four.", "BO: " + "long " * 500),
        voices=(*VOICES, "nothing", "dora=dora.wav", "eve=eve.wav: ", "fay=fay.wav:@none.txt"),
        voice_files=(Path("cast.toml"), Path("none.toml")),
        aliases=("carl", "carl=zora"),
        default_speaker="zora",
        speaker_table=Path("none.csv"),
        job_id="a/b",
        language="klingon!",
        settings=("output.colour=red", "nonsense", "segments=[]"),
    )
    assert found.pop("lines 3 and 9").startswith("'ANA' has no voice; did you mean 'anna'?")
    assert found.pop("line 12").startswith("'CARL' has no voice")
    assert "limit is 2000" in found.pop("line 15")
    for place in (
        "--voice anna=anna.wav", "--voice nothing", "--voice dora=dora.wav", "--voice eve=eve.wav",
        "--voice fay=fay.wav", "cast.toml: zed", "cast.toml: yes", "--voices none.toml", "--alias carl",
        "--alias carl=zora", "--default-speaker", "none.csv", "--job-id", "--language", "$.output.colour",
        "--job-set nonsense", "--job-set segments=[]",
    ):  # fmt: skip
        assert found.pop(place), place
    assert not found


def test_nothing_to_say_is_told() -> None:
    """A file of sounds alone is no job."""
    assert mistakes(srt("[wind]", "♪ la ♪"), voices=VOICES[:1])["film.srt"] == "no line in it is speech"

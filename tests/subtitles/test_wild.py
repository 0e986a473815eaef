"""Subtitles as people's files have them: what is speech is spoken, and nothing else is. Each input has failed once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from daemon.core.job import Limits
from daemon.subtitles.job import Composed, Wishes, compose

ANNA, BO = "anna=anna.wav:One.", "bo=bo.wav:Two."


def made(folder: Path, content: str | bytes, **options: Any) -> Composed:
    file = folder / "film.srt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    wishes = Wishes(subtitles=file, folder=folder, voices=(ANNA, BO), default_speaker="anna", **options)
    composed = compose(wishes, Limits())
    composed.mistakes = [mistake for mistake in composed.mistakes if "no line is spoken by" not in mistake.message]
    return composed


def spoken(folder: Path, content: str | bytes, **options: Any) -> list[str]:
    """The texts of a file without mistakes, with their speaker where it is not Anna."""
    composed = made(folder, content, **options)
    assert not composed.mistakes
    return [line.text if line.voice.name == "anna" else f"{line.voice.name}: {line.text}" for line in composed.lines]


def places(composed: Composed) -> set[str]:
    return {mistake.where for mistake in composed.mistakes}


def srt(*texts: str) -> str:
    """A file with these cues, one a second."""
    return "\n".join(f"{n}\n00:00:{n:02d},000 --> 00:00:{n + 1:02d},000\n{text}\n" for n, text in enumerate(texts, 1))


TIMES = [
    "00：00：03，000 --> 00：00：04，000",
    "００:００:０３,０００ --> ００:００:０４,０００",
    "٠٠:٠٠:٠٣٫٠٠٠ --> ٠٠:٠٠:٠٤٫٠٠٠",
    "00:00:03,000 --&gt; 00:00:04,000",
    "00:00:03,000 --&amp;gt; 00:00:04,000",
    "00:00:03,000 --＞ 00:00:04,000",
    "00:00:03,000 – 00:00:04,000",
    "00:00:03,000 - 00:00:04,000",
    "00:00:03,000 to 00:00:04,000",
    "00:00:03,000 → 00:00:04,000",
    "00:00:03,000 >> 00:00:04,000",
    "00:00:03,000 00:00:04,000",
    "00:00:03.000,00:00:04.000",
    "00:00:03;000 --> 00:00:04;000",
    "00:00:03、000 --> 00:00:04、000",
    "\u200e00:00:03,000 --> 00:00:04,000\u200f",
    "00:00:03,000 --> 00:00:04,000:",
    "00:00:03,000 --> 00:00:04,000.",
]


@pytest.mark.parametrize("line", TIMES)
@pytest.mark.parametrize("numbers", [True, False])
def test_times_in_every_dress_are_times(tmp_path: Path, line: str, numbers: bool) -> None:
    """Digits, signs and arrows as translators, spreadsheets and web pages change them."""
    one, two, three = ("1\n", "2\n", "3\n") if numbers else ("", "", "")
    first, last = "00:00:01,000 --> 00:00:02,000", "00:00:05,000 --> 00:00:06,000"
    text = f"{one}{first}\nFirst.\n\n{two}{line}\nSecond.\n\n{three}{last}\nThird.\n"
    composed = made(tmp_path, text)
    assert not composed.mistakes
    assert [(line.text, line.start_ms, line.end_ms) for line in composed.lines] == [
        ("First.", 1000, 2000),
        ("Second.", 3000, 4000),
        ("Third.", 5000, 6000),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "00:00:03,000 --> 00:00:0 4,000",
        "00:00:03.000,000 --> 00:00:04,000",
        "00:00:03,000 --> 00:00:04,000 Second, on this line",
        "00:00:03,000 -->",
        "--> 00:00:04,000",
        "00:00:03,000",
        "00:00:03,000 and 00:00:04,000",
        "10:30 - 11:45",
        "O0:00:03,000 --> 00:00:04,000",
    ],
)
@pytest.mark.parametrize("numbers", [True, False])
def test_what_looks_like_times_is_never_spoken(tmp_path: Path, line: str, numbers: bool) -> None:
    """It is reported with its line."""
    one, two = ("1\n", "2\n") if numbers else ("", "")
    composed = made(tmp_path, f"{one}00:00:01,000 --> 00:00:02,000\nFirst.\n\n{two}{line}\nSecond.\n")
    assert places(composed) == {f"line {6 if numbers else 4}"}


def test_hours_of_the_day_are_said(tmp_path: Path) -> None:
    """They are no times of a cue."""
    texts = ["Time now: 12:30. Note this.", "Open 10:30 to 11:45, or 9:15.", "11:30", "Ratio 3:2, then 2:13:05 in all."]
    assert spoken(tmp_path, srt(*texts)) == texts


@pytest.mark.parametrize("number", ["四", "#4", "4.", "No. 4", "(4)", "４", "\ufeff4", "٤"])
def test_numbers_in_every_dress_are_no_text(tmp_path: Path, number: str) -> None:
    """Translated, or written by hand."""
    text = srt("a", "b", "c", "d").replace("\n4\n", f"\n{number}\n")
    assert spoken(tmp_path, text) == ["a", "b", "c", "d"]


def test_what_stands_in_the_place_of_a_number_is_reported(tmp_path: Path) -> None:
    """A name of a scene, a number without its cue, one that is there twice."""
    assert places(made(tmp_path, srt("a", "b", "c").replace("\n3\n", "\nScene 5\n"))) == {"line 9"}
    assert places(made(tmp_path, srt("a", "b") + "\n3\n")) == {"line 9"}
    assert places(made(tmp_path, srt("a", "b").replace("\n2\n", "\n2\n2\n"))) == {"line 5"}


ROLLING = """WEBVTT
Kind: captions

00:00:00.160 --> 00:00:03.429 align:start position:0%
_
the<00:00:00.500><c> harbour</c><00:00:01.000><c> was</c>

00:00:03.429 --> 00:00:03.439 align:start position:0%
the harbour was
_

00:00:03.439 --> 00:00:05.749 align:start position:0%
the harbour was
empty<00:00:03.760><c> when</c>

00:00:05.749 --> 00:00:05.759 align:start position:0%
empty when
_

00:00:05.759 --> 00:00:08.000 align:start position:0%
empty when
we<00:00:06.000><c> came</c>
""".replace("_", " ")


def test_captions_that_roll_up_are_spoken_once(tmp_path: Path) -> None:
    """As YouTube makes them, and as their conversion to SubRip has them; that they were folded is said."""
    composed = made(tmp_path, ROLLING)
    expected = [("the harbour was", 160), ("empty when", 3439), ("we came", 5759)]
    assert [(line.text, line.start_ms) for line in composed.lines] == expected
    assert any("roll up" in notice.message for notice in composed.notices)
    plain = "\n".join(
        line for line in ROLLING.replace("<c>", "").replace("</c>", "").split("\n") if line.strip() or line == ""
    )
    converted = "".join(part.partition(">")[2] if at else part for at, part in enumerate(plain.split("<")))
    composed = made(tmp_path, converted.partition("\n\n")[2].replace(" align:start position:0%", ""))
    assert [(line.text, line.start_ms) for line in composed.lines] == expected


def test_what_is_said_twice_is_spoken_twice(tmp_path: Path) -> None:
    """Where the file does not roll."""
    assert spoken(tmp_path, srt("No.", "No.", "Yes.", "Well?", "Yes.", "Yes.")) == [
        "No.", "No.", "Yes.", "Well?", "Yes.", "Yes.",
    ]  # fmt: skip


MARKUP: Mapping[str, str] = {
    "First half<br>second half": "First half second half",
    "Third part<br />fourth part": "Third part fourth part",
    "<p>One</p><p>two</p>": "One two",
    r"We waited\nall night.": "We waited all night.",
    r"We waited\Nall night.": "We waited all night.",
    "And then|they came.": "And then they came.",
    "&lt;i&gt;Far away&lt;/i&gt;": "Far away",
    "Tom &amp;amp; Jerry &amp;quot;quoted&amp;quot;": 'Tom & Jerry "quoted"',
    "Salt&nbsp;and&nbsp;pepper": "Salt and pepper",
    r'<font face="Arial" size="20"><b>{\an8}{\fad(200,200)}Hello</b></font>': "Hello",
    "{an8}Broken tag <i>and no end": "Broken tag and no end",
    r"{\an8 Hello there": "Hello there",
    r"{\an8}{\i1}Hello{\i0}": "Hello",
    '<font color="#ff0000" Hello there': "Hello there",
    "<font color=#ff0000 Hello there": "Hello there",
    "Hello there</i": "Hello there",
    "< i >Spaced tags< / i >": "Spaced tags",
    "If x <5 and y> 3 it works; I <3 you": "If x <5 and y> 3 it works; I <3 you",
    "This is **very** good": "This is very good",
    "I *really* mean it": "I really mean it",
    "{y:i}Old player": "Old player",
}


@pytest.mark.parametrize("written", MARKUP)
def test_markup_is_never_spoken(tmp_path: Path, written: str) -> None:
    """Whole, escaped, broken, of other formats; and not a word goes with it."""
    assert spoken(tmp_path, srt(written)) == [MARKUP[written]]


def test_changes_of_speaker(tmp_path: Path) -> None:
    """Chevrons of captions for the deaf, tags in the middle of a line."""
    assert spoken(tmp_path, srt(">> Where were you?\n>> At the harbour.", ">> BO: All night?", ">>> The weather.")) == [
        "Where were you?", "At the harbour.", "bo: All night?", "The weather.",
    ]  # fmt: skip
    assert spoken(tmp_path, srt("&gt;&gt; Yes. &gt;&gt; No.")) == ["Yes.", "No."]
    assert spoken(tmp_path, srt("ANNA: Where? BO: There.", "BO (off): I hear you. Anna: Good.")) == [
        "Where?", "bo: There.", "bo: I hear you.", "Good.",
    ]  # fmt: skip
    assert places(made(tmp_path, srt("ANNA: Where? CARL: There."))) == {"line 3"}


@pytest.mark.parametrize(
    "text", ["[MUSIC PLAYING", "*door creaks*", "¶ over the sea ¶", "(DOOR SLAMS", "♪ la la", "# la #"]
)
def test_sounds_are_left_out(tmp_path: Path, text: str) -> None:
    """Also where their bracket is not closed; what is said beside them is spoken."""
    composed = made(tmp_path, srt(text, "Said."))
    assert [line.text for line in composed.lines] == ["Said."]
    assert [left.line for left in composed.left_out] == [3]
    assert spoken(tmp_path, srt("*sighs* I don't know.", "Come in. [MUSIC")) == ["I don't know.", "Come in."]


ASS = """[Script Info]
ScriptType: v4.00+

{styles}[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{{\\blur5\\bord4}}The door is open.
Dialogue: 1,0:00:01.00,0:00:03.00,Default,,0,0,0,,{{\\bord1}}The door is open.
Dialogue: 0,0:00:04.00,0:00:04.04,Default,,0,0,0,,{{\\pos(0,200)}}HARBOUR
Dialogue: 0,0:00:04.04,0:00:04.08,Default,,0,0,0,,{{\\pos(1,200)}}HARBOUR
Dialogue: 0,0:00:05.00,0:00:05.04,Default,Bo,0,0,0,,{{\\pos(1,200)}}Here.
Dialogue: 0,0:00:05.04,0:00:05.08,Default,Bo,0,0,0,,{{\\pos(2,200)}}Here.
Dialogue: 0,0:00:07.00,0:00:09.00,Default,,0,0,0,,{{\\k20}}We {{\\k30}}are\\Nhere
Dialogue: 0,0:00:09.00,0:00:11.00,Default,,0,0,0,,No.
Dialogue: 0,0:00:11.00,0:00:12.00,Default,,0,0,0,,No.
"""


@pytest.mark.parametrize("styles", ["", "[V4+ Styles]\nFormat: Name, Fontname\nStyle: Default,Arial\n\n"])
def test_typeset_substation(tmp_path: Path, styles: str) -> None:
    """Layers and pictures of a line are one line, signs are left out and told; styles may be missing."""
    composed = made(tmp_path, ASS.format(styles=styles))
    assert not composed.mistakes
    assert [(line.text, line.start_ms, line.end_ms) for line in composed.lines] == [
        ("The door is open.", 1000, 3000), ("Here.", 5000, 5080), ("We are here", 7000, 9000),
        ("No.", 9000, 11000), ("No.", 11000, 12000),
    ]  # fmt: skip
    assert len(composed.notices) == 2


def test_a_broken_byte_does_not_change_the_encoding(tmp_path: Path) -> None:
    """It is told with its line, and taken for what it is in the old encoding of the language."""
    texts = ["Das Mädchen fragt: „Wo?“", "Die Tür ist grün.", "Ein Café hier."]
    content = srt(*texts).encode().replace("é".encode(), b"\xe9")
    composed = made(tmp_path, content)
    assert [line.text for line in composed.lines] == texts
    assert [(notice.where, "0xe9" in notice.message) for notice in composed.notices] == [("line 11", True)]


def test_the_language_weighs_in_the_guess(tmp_path: Path) -> None:
    """A few letters are too little for statistics."""
    assert spoken(tmp_path, srt("你好。").encode("gbk"), language="zh") == ["你好。"]
    assert spoken(tmp_path, srt("Да.").encode("cp1251"), language="ru") == ["Да."]


def test_what_was_saved_in_a_wrong_encoding(tmp_path: Path) -> None:
    """All of it: it is read as it was. A line of it: it is reported."""
    twice = srt("Das Mädchen fragt.", "Grüße!").encode().decode("cp1252").encode()
    composed = made(tmp_path, twice)
    assert [line.text for line in composed.lines] == ["Das Mädchen fragt.", "Grüße!"]
    assert composed.decoded is not None
    assert composed.decoded.guessed
    assert places(made(tmp_path, srt("Das Mädchen fragt.", "GrÃ¼ÃŸe!", "Ein Caf\ufffd."))) == {"line 7", "line 11"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"PK\x03\x04\x14\x00", "ZIP"), (b"\x1f\x8b\x08\x00", "gzip"), (b"%PDF-1.7", "PDF"), (b"{\\rtf1 a", "RTF"),
     (b"\n<!DOCTYPE html><p>1", "web page"), (b"\x00\x00\x00\x20ftypisom", "MP4")],
)  # fmt: skip
def test_what_is_no_text_is_called_by_its_name(tmp_path: Path, content: bytes, kind: str) -> None:
    """Not a broken encoding."""
    (mistake,) = made(tmp_path, content).mistakes
    assert kind in mistake.message


HLS = """WEBVTT
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

00:00:01.000 --> 00:00:02.000
First.

WEBVTT
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:{ticks}

00:00:03.000 --> 00:00:04.000
Second.
"""


def test_joined_segments_of_a_stream(tmp_path: Path) -> None:
    """Their heads are not spoken; their clocks are one."""
    for ticks, start in ((900_000, 3000), (1_800_000, 13_000)):
        composed = made(tmp_path, HLS.format(ticks=ticks))
        assert [(line.text, line.start_ms) for line in composed.lines] == [("First.", 1000), ("Second.", start)]


def test_times_that_count_pictures(tmp_path: Path) -> None:
    """They are told, and read at the rate that is given."""
    text = "1\n00:00:01:00 --> 00:00:02:12\nFirst.\n\n2\n00:00:03:24 --> 00:00:05;20\nSecond.\n"
    composed = made(tmp_path, text)
    assert [(line.start_ms, line.end_ms) for line in composed.lines] == [(1000, 2480), (3960, 5800)]
    assert [notice.where for notice in composed.notices] == ["times"]
    composed = made(tmp_path, text, fps=30)
    assert ([line.end_ms for line in composed.lines], composed.notices) == ([2400, 5667], [])
    assert places(made(tmp_path, text, fps=24)) == {"line 6"}


def test_a_film_that_starts_at_one_hour(tmp_path: Path) -> None:
    """A hint; the offset puts it right, and may not put a cue before the film."""
    text = "1\n01:00:01,000 --> 01:00:02,000\nReel one.\n"
    composed = made(tmp_path, text)
    assert ("--offset -1:00:00" in composed.notices[0].message, composed.lines[0].start_ms) == (True, 3_601_000)
    composed = made(tmp_path, text, offset_ms=-3_600_000)
    assert (composed.notices, composed.lines[0].start_ms) == ([], 1000)
    assert places(made(tmp_path, text, offset_ms=-3_602_000)) == {"line 2"}


def test_a_cue_without_length_is_told(tmp_path: Path) -> None:
    """It has no end in the job, so that nothing is fitted into no time."""
    composed = made(tmp_path, "1\n00:00:01,000 --> 00:00:01,000\nNo time.\n")
    assert [notice.where for notice in composed.notices] == ["line 2"]
    assert "end" not in composed.document["segments"][0]


@pytest.mark.parametrize(
    "table",
    ["cue;speaker;note\n2;bo;höflich\n", "sep=;\ncue;speaker\n2;bo\n", '"sep=,"\n2,bo\n', "note,speaker,cue\nx,bo,2\n"],
)
def test_tables_as_spreadsheets_save_them(tmp_path: Path, table: str) -> None:
    """Further columns with headings, Excel's first line, a mark of the encoding."""
    file = tmp_path / "cast.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        file.write_bytes(table.replace("\n", "\r\n").encode(encoding))
        assert spoken(tmp_path, srt("a", "b"), speaker_table=file) == ["a", "bo: b"]


CAST = '[anna]\naudio = "a.wav"\ntext = "Größe."\n[bo]\naudio = "b.wav"\ntext = "Two."\n'


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_files_of_voices_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """What had to be guessed is said."""
    voices = tmp_path / "cast.toml"
    voices.write_bytes(CAST.encode(encoding))
    (tmp_path / "film.srt").write_text(srt("BO: a", "ANNA: b"))
    composed = compose(Wishes(tmp_path / "film.srt", tmp_path, voice_files=(voices,)), Limits())
    assert not composed.mistakes
    assert [voice.references[0].text for voice in composed.voices] == ["Two.", "Größe."]
    assert bool(composed.notices) == (encoding == "cp1252")


def test_a_path_of_windows_in_a_file_of_voices(tmp_path: Path) -> None:
    """What to write instead."""
    voices = tmp_path / "cast.toml"
    voices.write_text('[anna]\naudio = "C:\\voices\\anna.wav"\ntext = "One."\n')
    (mistake,) = (m for m in made(tmp_path, srt("a"), voice_files=(voices,)).mistakes if "voices" in m.where)
    assert "needs \\\\ for each \\" in mistake.message


def test_a_reference_text_in_another_encoding(tmp_path: Path) -> None:
    """That it was guessed is said, with the text to judge it by."""
    (tmp_path / "a.txt").write_bytes("你好，世界。".encode("gbk"))
    voice = f"anna={tmp_path / 'a.wav'}:@{tmp_path / 'a.txt'}"
    (tmp_path / "film.srt").write_text(srt("a"))
    composed = compose(Wishes(tmp_path / "film.srt", tmp_path, voices=(voice,), language="zh"), Limits())
    assert composed.voices[0].references[0].text == "你好，世界。"
    assert ["你好，世界。" in notice.message for notice in composed.notices] == [True]

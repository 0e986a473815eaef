"""Cues and their lines: SubRip, WebVTT and SubStation as the wild has them; nothing said is lost, nothing unsaid is
added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.subtitles import Cue, Mistake
from daemon.subtitles.cues import CueFile, read_cues


def read(text: str) -> tuple[CueFile, list[str]]:
    mistakes: list[Mistake] = []
    return read_cues(text, mistakes), [f"{mistake.where}: {mistake.message}" for mistake in mistakes]


def good(text: str) -> list[tuple[int, int, int, str]]:
    """Number, start, end and text of each cue of a file without mistakes."""
    found, mistakes = read(text)
    assert not mistakes
    return [brief(cue) for cue in found.cues]


def brief(cue: Cue) -> tuple[int, int, int, str]:
    return cue.number, cue.start_ms, cue.end_ms, "|".join(text for _, text in cue.lines)


# --- SubRip ------------------------------------------------------------------------------------------------


def test_times_as_people_and_programs_write_them() -> None:
    """Dots, missing hours and thousandths, spaces, positions behind, arrows that a word processor has mended."""
    text = """1
00:00:01,000 --> 00:00:02,500
comma
2
00:00:03.000 --> 00:00:04.25 X1:40 X2:600 Y1:20 Y2:50
dot
3
0:0:5 -> 00:06,5
short
4
00: 00: 07, 000 –> 00:00:08:000
mended
5
123:00:09,000 → 123:00:10,000
a long film
"""
    assert good(text) == [
        (1, 1000, 2500, "comma"),
        (2, 3000, 4250, "dot"),
        (3, 5000, 6500, "short"),
        (4, 7000, 8000, "mended"),
        (5, 442_809_000, 442_810_000, "a long film"),
    ]


def test_a_number_that_is_said_is_no_number_of_a_cue() -> None:
    """Neither at the end of a cue, nor as all of it; an empty line in a cue does not end it."""
    text = """1
00:00:01,000 --> 00:00:02,000
He is
42

2
00:00:03,000 --> 00:00:04,000
7

3
00:00:05,000 --> 00:00:06,000
one

two
4
00:00:07,000 --> 00:00:08,000

5
00:00:09,000 --> 00:00:10,000
after an empty one
"""
    assert [text for _, _, _, text in good(text)] == ["He is|42", "7", "one|two", "", "after an empty one"]


def test_files_with_an_empty_line_after_each() -> None:
    """What is left of line ends converted twice, or of a web page."""
    assert good("1\n\n00:00:01,000 --> 00:00:02,000\n\nHe is\n\n2\n\n00:00:03,000 --> 00:00:04,000\n\nhere\n") == [
        (1, 1000, 2000, "He is"),
        (2, 3000, 4000, "here"),
    ]


def test_files_without_numbers_or_empty_lines() -> None:
    """Cues are then counted."""
    text = "00:00:01,000 --> 00:00:02,000\nA\n00:00:03,000 --> 00:00:04,000\nB\n"
    assert good(text) == [(1, 1000, 2000, "A"), (2, 3000, 4000, "B")]


def test_every_mistake_is_told_with_its_line() -> None:
    """Times that are none, an end before its start, text before all cues."""
    text = """written by me

1
00:00:01,000 --> 00:00:0x,000
A

2
00:00:05,000 --> 00:00:04,000
B

3
-00:00:01,000 --> 00:00:04,000
C
"""
    _, mistakes = read(text)
    assert {mistake.partition(":")[0] for mistake in mistakes} == {"line 1", "line 4", "line 8", "line 12"}


def test_a_cue_without_times_is_told() -> None:
    """And not spoken with the one before it, its number among the words."""
    text = "1\n00:00:01,000 --> 00:00:02,000\nOne\n\n2\nTwo\n\n3\n00:00:05,000 --> 00:00:06,000\nThree\n"
    assert read(text)[1] == ["line 5: cue 2 has no times"]


def test_what_is_far_too_long_is_told_and_not_looked_into() -> None:
    """Another kind of file, which would take for ever."""
    times = "00:00:01,000 --> 00:00:02,000\n"
    assert read(f"{times}{'1:1 ' * 10**6}")[1] == ["line 2: more than 4,096 characters: these are no subtitles"]
    found, mistakes = read(times + "[a\n" * 10**5)
    assert (found.cues, len(mistakes)) == ((), 1)


def test_what_is_no_subtitle_file_is_told() -> None:
    """An empty one, a letter."""
    for text in ("", "Dear all,\n\nsee you --> there.\n"):
        assert read(text)[1] == ["line 1: there is no cue in it: SubRip, WebVTT and SubStation (ASS) are read"]


WORDS = st.sampled_from(["12", "Hello", "- No.", "NOTE", "WEBVTT", "2024", "[Bo]", "a --> b", "11:30", "♪", "…"])
CUES = st.lists(st.lists(WORDS, max_size=3), min_size=1, max_size=8)


@given(cues=CUES, numbered=st.booleans(), blank=st.booleans(), dot=st.booleans())
def test_all_of_every_cue_is_kept(cues: list[list[str]], numbered: bool, blank: bool, dot: bool) -> None:
    """Whatever is said, and however the file is laid out; a number alone before times without numbers could be one."""
    lines = []
    for place, said in enumerate(cues):
        if said and said[-1].isdigit() and not numbered and not blank:
            said.append("end")
        stamps = (f"00:{place:02d}:01,000 --> 00:{place:02d}:02,000").replace(",", "." if dot else ",")
        lines += [*([str(place + 1)] if numbered else []), stamps, *said, *([""] if blank or not said else [])]
    if lines[0] == "WEBVTT":
        return
    found = good("\n".join(lines))
    expected = [(place + 1, 60_000 * place + 1000, "|".join(said)) for place, said in enumerate(cues)]
    assert [(number, start, text) for number, start, _, text in found] == expected


# --- WebVTT ------------------------------------------------------------------------------------------------

VTT = """WEBVTT - the ferry
Language: de
X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000

STYLE
::cue { color: red }

NOTE
a comment with an --> arrow
of two lines

intro
00:01.000 --> 00:02.000 line:0 align:start
<v Anna>Hello &amp; <i>you</i>

NOTE between cues

7
100:00:02.000 --> 100:00:03.000
42

REGION
id:fred

00:04.000 --> 00:05.000
last
"""


def test_webvtt() -> None:
    """Its head, comments, styles and regions are not spoken, nor are the names of cues."""
    found, mistakes = read(VTT)
    assert (found.format, found.language, mistakes) == ("WebVTT", "de", [])
    assert [brief(cue) for cue in found.cues] == [
        (1, 1000, 2000, "<v Anna>Hello &amp; <i>you</i>"),
        (7, 360_002_000, 360_003_000, "42"),
        (3, 4000, 5000, "last"),
    ]
    assert [cue.line for cue in found.cues] == [13, 19, 25]


def test_text_that_no_webvtt_player_shows_is_told() -> None:
    """An empty line ends a cue there; what follows may be speech, or may not."""
    _, mistakes = read("WEBVTT\n\n00:01.000 --> 00:02.000\nA\n\nB\n\n00:03.000 --> 00:04.000\nC\n")
    assert len(mistakes) == 1
    assert mistakes[0].startswith("line 6: 'B' belongs to no cue")


# --- SubStation --------------------------------------------------------------------------------------------

ASS = """[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,Anna,0,0,0,,{\\i1}Hello,{\\i0}\\Nyou
Comment: 0,0:00:01.00,0:00:02.50,Default,Anna,0,0,0,,not shown
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\p1}m 0 0 l 3 3{\\p0}
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Bye
"""


def test_substation_names_its_actors() -> None:
    """Comments and drawings are no speech; each cue knows its line."""
    found, mistakes = read(ASS)
    assert (found.format, mistakes) == ("SubStation", [])
    assert [(cue.line, cue.actor, *brief(cue)[1:]) for cue in found.cues] == [
        (8, "Anna", 1000, 2500, "Hello,|you"),
        (11, "", 3000, 4000, "Bye"),
    ]


def test_broken_substation_is_told_by_line() -> None:
    """Every line of it, not the first alone."""
    _, mistakes = read(ASS.replace("0:00:01.00,0:00:02.50,Default,Anna", "0:00:0x.00,0:00:02.50,Default,Anna"))
    assert [mistake.partition(":")[0] for mistake in mistakes] == ["line 8", "line 9"]

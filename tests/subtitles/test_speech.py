"""What is said in a cue and by whom: tags, dashes, voices, sounds, marks of type."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from daemon.subtitles import Cue
from daemon.subtitles.speech import FORMS, Form, Rules, looks_like_name, read_speech

VOICES = {"anna", "bo", "张三"}


def hear(text: str, *, evident: Collection[Form] = (), forms: Collection[Form] = FORMS, actor: str = "") -> list[str]:
    """ "NAME: text" of everything that is said, then "- text" of what is left out; a turn is marked with >."""
    lines = tuple((number, line) for number, line in enumerate(text.split("\n"), 11))
    rules = Rules(forms, lambda name: name.casefold() in VOICES, lambda name: name == "Remember", evident)
    said, left_out = read_speech(Cue(1, 10, 0, 1000, lines, actor), rules)
    return [
        *(f"{'>' if one.turn else ''}{one.name or ''}: {one.text}" for one in said),
        *(f"- {one.text}" for one in left_out),
    ]


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        # Names in front.
        ("ANNA: Hello", ["ANNA: Hello"]),
        ("anna:\nHello\nyou", ["anna: Hello you"]),
        ("BOB:Hello", ["BOB: Hello"]),
        ("ANNA (V.O.): Hello", ["ANNA: Hello"]),
        ("Man 2: Hello", ["Man 2: Hello"]),
        ("张三：走吧\n走吧", ["张三: 走吧走吧"]),
        ("[Anna] Hello", ["Anna: Hello"]),
        ("[Anna]: Hello\n【Bo】Hi", ["Anna: Hello", "Bo: Hi"]),
        ("(Anna) Hello", ["Anna: Hello"]),
        ("<v Anna>Hello</v> <v.loud Bo>Hi &amp; bye", ["Anna: Hello", "Bo: Hi & bye"]),
        ("<v Anna>Hello\nyou</v>", ["Anna: Hello you"]),
        ("<i>{\\an8}ANNA: <b>Hello</b></i>", ["ANNA: Hello"]),
        # No names.
        ("I said: no", [": I said: no"]),
        ("Remember: no", [": Remember: no"]),
        ("12:30 is the time", [": 12:30 is the time"]),
        ("http://a.example is down", [": http://a.example is down"]),
        ("他说：走吧", [": 他说：走吧"]),
        # Two in one cue.
        ("- ANNA: Hello\n- BO: Hi\nyou", [">ANNA: Hello", ">BO: Hi you"]),
        ("- Hello.\n- Hi.", [">: Hello.", ">: Hi."]),
        ("Hello.\n- Hi.", [": Hello.", ">: Hi."]),
        ("-Hello.\n-Hi.", [">: Hello.", ">: Hi."]),
        ("- Just me.", [": Just me."]),
        ("-5 degrees", [": -5 degrees"]),
        ("so I\n--went", [": so I went"]),
        ("ANNA:\n- Hello\n- Hi", [">ANNA: Hello", ">: Hi"]),
        # Sounds and songs.
        ("[door slams]", ["- [door slams]"]),
        ("[door\nslams] Oh!", [": Oh!", "- [door slams]"]),
        ("(door\nslams) Oh!", [": Oh!", "- (door slams)"]),
        ("(whispers) ANNA: come", ["ANNA: come", "- (whispers)"]),
        ("Stop [laughs].", [": Stop.", "- [laughs]"]),
        ("It was (I think) fine (SIGHS)", [": It was (I think) fine", "- (SIGHS)"]),
        ("♪ la la\nli li ♪", ["- ♪ la la li li ♪"]),
        ("♪ la la ♪ Hello", [": Hello", "- ♪ la la ♪"]),
        ("# la la #", ["- # la la #"]),
        ("...", ["- ..."]),
        # Marks.
        ("5 < 6 and <3", [": 5 < 6 and <3"]),
        ("AT&T &lt;3 caf&eacute;&nbsp;x", [": AT&T <3 café x"]),
        ("<ruby>漢<rt>kan</rt></ruby>字", [": 漢字"]),
        ("one<00:00:01.500> two\\Nthree", [": one two three"]),
        ("\u202bHello\u202c\x07", [": Hello"]),
    ],
)
def test_what_is_heard(text: str, heard: list[str]) -> None:
    """Without any evidence in the file beside this cue."""
    assert hear(text) == heard


def test_brackets_name_speakers_where_the_file_uses_them_so() -> None:
    """[BOB] and [LAUGHS] look alike; in a file that names others in brackets both must be looked at by somebody."""
    for name in ("BOB", "LAUGHS"):
        assert hear(f"[{name}] Hello") == [": Hello", f"- [{name}]"]
        assert hear(f"[{name}] Hello", evident=["bracket"]) == [f"{name}: Hello"]
        assert hear(f"[{name}]\nHello", evident=["bracket"]) == [f"{name}: Hello"]
        assert hear(f"[{name}]", evident=["bracket"]) == [f"- [{name}]"]
    assert hear("[laughs] Hello", evident=["bracket"]) == [": Hello", "- [laughs]"]
    assert hear("他说：走吧", evident=["colon"]) == ["他说: 走吧"]


def test_forms_can_be_left_out() -> None:
    """Then a name in that form is text, or a sound."""
    assert hear("ANNA: [Bo] hi", forms=[]) == [": ANNA: hi", "- [Bo]"]
    assert hear("<v Anna>Bo: hi", forms=["colon"]) == ["Bo: hi"]
    assert hear("hi", forms=[], actor="Anna") == [": hi"]


def test_an_actor_speaks_until_a_tag() -> None:
    """SubStation's name of the line; a dash may give it to another."""
    assert hear("- hello\n- BO: hi", actor="Anna") == [">Anna: hello", ">BO: hi"]


@pytest.mark.parametrize("name", ["ANNA", "Dr. Okafor", "Man #2", "Lady of the Lake", "O'Neill", "张三", "MAN 2"])
def test_names(name: str) -> None:
    """As casts write them."""
    assert looks_like_name(name)


@pytest.mark.parametrize(
    "name", ["and then he said", "Well, Sir", "What?!", "12", "He said it", "这是一个很长的句子啊"]
)
def test_no_names(name: str) -> None:
    """Speech before a colon."""
    assert not looks_like_name(name)

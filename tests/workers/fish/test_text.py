"""Texts are cut where a speaker would breathe, and nothing is lost."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engines.fish.text import expected_seconds, split_text


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("Hello there. How are you?", 100, ["Hello there. How are you?"]),
        ("Hello there. How are you?", 15, ["Hello there.", "How are you?"]),
        ("He said: “Go!” She went. They stayed.", 26, ["He said: “Go!”", "She went. They stayed."]),
        ("今天天气很好。我们去公园吧！好的。", 12, ["今天天气很好。", "我们去公园吧！好的。"]),
        ("それは本当ですか？「はい。」と彼は言った。", 14, ["それは本当ですか？", "「はい。」と彼は言った。"]),
        ("안녕하세요. 날씨가 좋네요! 산책할까요?", 17, ["안녕하세요. 날씨가 좋네요!", "산책할까요?"]),
        ("One line\nanother line", 14, ["One line", "another line"]),
        ("शुभ प्रभात। आप कैसे हैं?", 15, ["शुभ प्रभात।", "आप कैसे हैं?"]),
    ],
)
def test_cuts_at_the_end_of_a_sentence(text: str, limit: int, pieces: list[str]) -> None:
    """In Latin, Chinese, Japanese, Korean and Indian punctuation, closing quotes included."""
    assert split_text(text, limit) == pieces


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("Dear Mr. Smith waits at the door now", 22, ["Dear Mr. Smith", "waits at the door now"]),
        ("It costs 3.14 in all of the shops", 18, ["It costs 3.14 in", "all of the shops"]),
        ("Well... so be it then, my friend", 22, ["Well... so be it then,", "my friend"]),
    ],
)
def test_a_full_stop_is_not_always_the_end(text: str, limit: int, pieces: list[str]) -> None:
    """Not in an abbreviation, a number, or before a small letter."""
    assert split_text(text, limit) == pieces


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("when it rains, we stay at home", 20, ["when it rains,", "we stay at home"]),
        ("下雨的时候，我们待在家里", 8, ["下雨的时候，", "我们待在家里"]),
        ("no marks in this one at all", 14, ["no marks in", "this one at all"[:14].rstrip(), "l"]),
    ],
)
def test_then_at_a_clause_then_between_words(text: str, limit: int, pieces: list[str]) -> None:
    """The best kind of seam that there is wins."""
    result = split_text(text, limit)
    if len(pieces) == 2:
        assert result == pieces
    assert " ".join(result).split() == text.split() or "".join(result) == text
    assert all(len(piece) <= limit for piece in result)


def test_pieces_are_about_equal() -> None:
    """No scrap of two words is left for the end, where the voice would have nothing to go by."""
    pieces = split_text("This is a sentence of some length. " * 10, 200)
    assert len(pieces) == 2
    assert min(map(len, pieces)) > 150


def test_a_sign_is_not_torn_apart() -> None:
    """A letter keeps its marks, a family of emoji stays together."""
    assert split_text("e\u0301" * 5, 3) == ["e\u0301"] * 5
    family = "👩\u200d👧"
    assert split_text(family * 3, 4) == [family] * 3


def test_the_limits_of_the_limit() -> None:
    """Nothing is no piece; no room is a mistake."""
    assert split_text("", 5) == []
    assert split_text("   ", 5) == ["   "]
    with pytest.raises(ValueError, match="room"):
        split_text("text", 0)


@given(
    st.text(alphabet=st.one_of(st.sampled_from("ab .,!?\n。，！「」x3\u0301\u200d"), st.characters()), max_size=200),
    st.integers(1, 50),
)
def test_nothing_is_lost_or_moved(text: str, limit: int) -> None:
    """White space at the seams aside, the pieces are the text, each within the limit."""
    pieces = split_text(text, limit)
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    at = 0
    for piece in pieces:
        found = text.index(piece, at)
        assert not text[at:found].strip()
        at = found + len(piece)


@pytest.mark.parametrize(
    ("text", "language", "seconds"),
    [
        ("Hello.", "en", 0.5),
        ("The quick brown fox jumps over the lazy dog near the river, and then it rests for a while.", "en", 5.5),
        ("Guten Morgen, meine Damen und Herren, und herzlich willkommen.", "de", 3.5),
        ("Buenos días a todos y bienvenidos a esta casa.", "es", 2.8),
        ("今天天气很好，我们去公园散步吧！", "zh", 3.2),
        ("今天天气很好，我们去公园散步吧！", "zh-CN", 3.2),
        ("それは本当ですか？", "ja", 1.3),
        ("안녕하세요. 오늘은 날씨가 정말 좋네요!", "ko", 2.8),
        ("Selamat pagi, apa kabar hari ini?", "id", 2.2),
        ("Привет, как у тебя дела сегодня?", "ru", 2.2),
        ("1987", "en", 1.5),
        ("BBC", "en", 1.0),
    ],
)
def test_speech_at_a_usual_pace_is_expected(text: str, language: str, seconds: float) -> None:
    """Half and double that pace too; a tenth or ten times the time is not."""
    shortest, longest = expected_seconds(text, language)
    assert shortest <= seconds / 1.8
    assert seconds * 2 <= longest
    assert shortest > seconds / 10
    assert longest < seconds * 6 + 4


def test_more_text_takes_longer() -> None:
    """In proportion."""
    once, twice = expected_seconds("All of this is said. ", "en"), expected_seconds("All of this is said. " * 2, "en")
    assert twice[0] == pytest.approx(2 * once[0])
    assert once[1] < twice[1] < 2 * once[1]


def test_nothing_to_say_takes_no_time() -> None:
    """There is then no shortest time that could be missed."""
    assert expected_seconds("…!", "en")[0] == 0.0


def test_needs_no_model() -> None:
    """The module is imported without torch."""
    import subprocess

    program = "import sys, workers.engines.fish.text; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)

"""Bytes to text: what the wild has, and what is said of it."""

from __future__ import annotations

import pytest

from daemon.subtitles.encoding import NotText, decode

LINES = {
    "fr": ("Où est-elle allée ? Ça m'étonne, à côté de la forêt.", "cp1252"),
    "de": ("Können Sie mir später die Schlüssel geben?", "cp1252"),
    "es": ("¿Dónde está el niño? Mañana lo veré.", "cp1252"),
    "pl": ("Gdzie jest mój żółty łabędź? Proszę, powiedz, że śnię.", "cp1250"),
    "ru": ("Где же она? Я не знаю, куда она ушла сегодня утром.", "cp1251"),
    "el": ("Πού είναι; Δεν ξέρω πού πήγε σήμερα το πρωί.", "cp1253"),
    "ar": ("أين هي؟ لا أعرف أين ذهبت هذا الصباح.", "cp1256"),
    "zh": ("她去哪儿了？我不知道她今天早上去了哪里。", "gbk"),
    "zh-TW": ("她去哪兒了？我不知道她今天早上去了哪裡。", "big5"),
    "ja": ("彼女はどこへ行ったの？今朝どこへ行ったか知りません。", "shift_jis"),
    "ko": ("그녀는 어디에 있어? 오늘 아침 어디로 갔는지 몰라.", "cp949"),
}
ONLY_WITH_LANGUAGE = {
    "he": ("איפה היא? אני לא יודע לאן היא הלכה הבוקר.", "cp1255"),
    "tr": ("Nerede o? Bu sabah nereye gittiğini bilmiyorum, şaşırdım.", "cp1254"),
}


def cue(text: str) -> str:
    return f"1\n00:00:01,000 --> 00:00:03,000\n{text}\n"


@pytest.mark.parametrize("language", LINES)
def test_one_line_is_enough_to_tell_the_encoding(language: str) -> None:
    """Without a hint of the language, and with it; that it is a guess is said."""
    text, encoding = LINES[language]
    for hint in (None, language):
        decoded = decode(cue(text).encode(encoding), language=hint)
        assert decoded.text == cue(text)
        assert decoded.guessed


@pytest.mark.parametrize("language", ONLY_WITH_LANGUAGE)
def test_the_language_tells_apart_what_statistics_do_not(language: str) -> None:
    """Turkish differs from French in six letters."""
    text, encoding = ONLY_WITH_LANGUAGE[language]
    assert decode(cue(text).encode(encoding), language=language).text == cue(text)


@pytest.mark.parametrize(
    ("encoding", "name", "guessed"),
    [
        ("utf-8", "UTF-8", False),
        ("utf-8-sig", "UTF-8", False),
        ("utf-16", "UTF-16", False),
        ("utf-32", "UTF-32", False),
        ("utf-16-le", "UTF-16", True),
        ("utf-16-be", "UTF-16", True),
        ("iso2022_jp", "ISO-2022-JP", True),
    ],
)
def test_unicode_in_all_its_forms(encoding: str, name: str, guessed: bool) -> None:
    """With a mark and without; the mark is no part of the text."""
    decoded = decode(cue("彼女はどこへ").encode(encoding))
    assert (decoded.text, decoded.encoding, decoded.guessed) == (cue("彼女はどこへ"), name, guessed)


def test_all_ends_of_lines() -> None:
    """Those of Windows, of old Macs, and of files that were converted once too often."""
    assert decode(b"a\r\nb\rc\r\r\nd\ne").text == "a\nb\nc\nd\ne"


def test_a_given_encoding_is_obeyed_or_told_to_be_wrong() -> None:
    """With the line, so that it can be looked at."""
    assert decode("één".encode("cp850"), encoding="cp850").text == "één"
    for encoding, told in (("utf-8", "line 3"), ("klingon", "no encoding 'klingon'"), ("base64", "no encoding")):
        with pytest.raises(NotText, match=told):
            decode(cue("één").encode("cp1252"), encoding=encoding)


def test_what_is_no_text_is_told() -> None:
    """A recording, a picture."""
    with pytest.raises(NotText, match="--encoding"):
        decode(bytes(range(256)) * 20)

"""Texts in pieces that the model can speak, and how long speaking them takes. Knows many scripts and no model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_CLOSING = "\"'”’»›)\\]}」』）】》〉〕＂＇"
_SENTENCE = re.compile(
    rf"""
      (?: [。！？｡．!?…‼⁇⁈⁉]+ (?<=[。！？｡．‼⁇⁈⁉]) [{_CLOSING}]*      # CJK: no space follows
        | [.!?…؟۔।॥]+ [{_CLOSING}]* (?=\s)                        # a space follows
        | [\r\n\u2028\u2029]+
      )""",
    re.VERBOSE,
)
_CLAUSE = re.compile(rf"[，、；：､]+[{_CLOSING}]*|[,;:،؛][{_CLOSING}]*(?=\s)|(?:(?<=\s)[-–—]|[—―]+)(?=\s|\w)")
_WORD = re.compile(r"\s+")

_ABBREVIATION = re.compile(
    r"""(?: \b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|no|nr|ca|bzw|etc|e\.g|i\.e|z\.b|d\.h|u\.a|p\.ej|mme|mlle|cf|vol|fig)
          | \b\w )\.$""",
    re.IGNORECASE | re.VERBOSE,
)
"""A full stop after one of these, or after a single letter, mostly ends no sentence."""


def split_text(text: str, limit_characters: int) -> list[str]:
    """Pieces of at most ``limit_characters``, of about equal length: cut at the end of a sentence, else of a clause,
    else between words, else anywhere. Nothing is lost or moved but the white space at the cuts. A text within the limit
    is one piece as it stands; an empty one is none.

    Raises:
        ValueError: the limit is below 1.
    """
    if limit_characters < 1:
        raise ValueError("a piece needs room for a character")
    pieces: list[str] = []
    rest = text
    while len(rest) > limit_characters:
        cut = _cut(rest, limit_characters)
        piece, rest = rest[:cut].rstrip(), rest[cut:].lstrip()
        if piece:
            pieces.append(piece)
    if rest:
        pieces.append(rest)
    return pieces


def _cut(text: str, limit: int) -> int:
    """Where the first piece of a text over the limit ends: the seam of the best kind that lies nearest to an even
    share, and leaves no scrap."""
    share = len(text) / -(-len(text) // limit)
    for seams in (_sentence_ends(text, limit), _ends(_CLAUSE, text, limit), _ends(_WORD, text, limit)):
        good = [seam for seam in seams if seam >= share / 3 and _sayable(text[:seam]) and _sayable(text[seam:])]
        if good:
            return min(good, key=lambda seam: abs(seam - share))
    cut = limit
    # A mark belongs to the letter before it, and what a joiner joins is one sign.
    while cut > 1 and (unicodedata.combining(text[cut]) or text[cut] in _JOINING or text[cut - 1] == _JOINER):
        cut -= 1
    return cut if cut > 1 else limit


_JOINER = "\u200d"
_JOINING = _JOINER + "\ufe0e\ufe0f\u3099\u309a"


def _sayable(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _ends(kind: re.Pattern[str], text: str, limit: int) -> Iterator[int]:
    """Ends of the matches that leave at most ``limit`` characters before them, white space not counted."""
    for match in kind.finditer(text, 0, min(len(text), 2 * limit)):
        if len(text[: match.end()].rstrip()) > limit:
            return
        if match.end() > 0:
            yield match.end()


def _sentence_ends(text: str, limit: int) -> Iterator[int]:
    for end in _ends(_SENTENCE, text, limit):
        after = text[end:].lstrip()
        if after[:1].islower() or _ABBREVIATION.search(text[max(0, end - 8) : end]):
            continue
        yield end


_SYLLABLES_PER_SECOND = {"de": 5.97, "en": 6.19, "es": 7.82, "fr": 7.18, "it": 6.99, "ja": 7.84, "zh": 5.18}
"""Mean rate of reading aloud, pauses left out: Pellegrino, Coupé and Marsico (2011), "A cross-language perspective on
speech information rate", Language 87(3), table 1; for Japanese they are morae."""
_OTHER_RATE = 6.7
"""The mean of those seven."""
_FASTEST = 2.0
"""Nobody reads aloud at twice the mean rate."""
_SLOWEST = 0.35
"""At a third of it one dictates."""
_MARGIN_S = 1.5
"""What breath and silence at both ends may add."""
_PAUSE_S = 1.2
"""What a pause at a punctuation mark may last: those of read speech stay under a second (Campione and Véronis, 2002, "A
large-scale multilingual study of silent pause duration")."""

_VOWELS = re.compile(
    "[aeiouyàáâãäåæèéêëìíîïòóôõöøùúûüýÿāēīōūăĕĭŏŭąęįųőűœ]+"  # a run of Latin vowels is about a syllable
    "|[аеёиоуыэюяіїєαεηιουωάέήίόύώ]"  # a Cyrillic or Greek vowel is one
)
_PAUSE = re.compile(r"[.,;:!?…—–。、，；：！？]+|\n+")


def expected_seconds(text: str, language: str) -> tuple[float, float]:
    """The shortest and the longest time, in seconds, that saying the text can plausibly take, ``language`` a code
    such as "en" or "zh-CN". Wide on purpose: it is to tell speech from a stop in the middle and from babble that
    never ends, not good pace from bad."""
    code = language.lower().replace("_", "-").partition("-")[0]
    rate = _SYLLABLES_PER_SECOND.get(code, _OTHER_RATE)
    syllables = _syllables(text.lower(), 1.8 if code == "ja" else 1.0)
    if syllables == 0:
        return 0.0, _MARGIN_S
    pauses = len(_PAUSE.findall(text))
    return syllables / (rate * _FASTEST), syllables / (rate * _SLOWEST) + pauses * _PAUSE_S + _MARGIN_S


def _syllables(text: str, per_ideograph: float) -> float:
    """About how many syllables (in Japanese morae) a text in lower case has."""
    latin = len(_VOWELS.findall(text))
    count = 0.0
    letters = 0
    for character in text:
        if not character.isalnum() and character not in "ー%$€£¥&+=@":
            continue
        point = ord(character)
        if character.isdigit():
            count += 1.5  # "1987" has six syllables in English
        elif 0x3040 <= point <= 0x30FF:
            count += 0 if character in "ぁぃぅぇぉゃゅょァィゥェォャュョ" else 1
        elif 0xAC00 <= point <= 0xD7A3:
            count += 1
        elif 0x3400 <= point <= 0x9FFF or point >= 0x20000:
            count += per_ideograph
        elif not character.isalnum():
            count += 2  # a sign that is said as a word
        elif point < 0x530:
            letters += 1
        else:
            count += 0.45  # other alphabets: between two and three letters a syllable
    # Letters without a vowel among them are spelt out (BBC) or a sound (hmm).
    return count + (latin or letters / 2)

"""The line of a cue that says when it is shown, as people's files have it.

Such a line passes through spreadsheets, web pages, word processors and translators, which change its digits, signs and
arrow. So it is normalised before it is read: ASCII digits and signs for those of every script, entities as characters.
What then still looks like times, and is none, is a ``doubt``, which is reported: it would be read aloud otherwise.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]")
"""Marks of direction and of line breaking. The joiners U+200C and U+200D are none: they shape words."""

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        **dict.fromkeys("⇒➔➜➝⟶⟹►▶", "→"),
        **dict.fromkeys("∶︓ː꞉", ":"),
        **dict.fromkeys("、，‚،٫ꓹ﹐", ","),
        **dict.fromkeys("。．․", "."),
        **dict.fromkeys("；؛", ";"),
        **dict.fromkeys("＞›˃", ">"),
        "»": ">>",
    }
)
"""Signs of other scripts, and those that word processors put in the place of plain ones."""

_CLOCK = r"(?:(\d{1,9})\s*:\s*)?(\d{1,2})\s*:\s*(\d{1,2})(?:\s*([,.;:])\s*(\d+))?"
_ARROW = r"(?:(?:-\s?){1,3}>+|=+>|→|>>|<->)"
_WEAK = r"(?:-{1,3}|\bto\b|~|/|,|\|)"
"""What stands between two times where it may stand in a sentence, too."""

_LINE = re.compile(rf"\s*{_CLOCK}\s*(?:({_ARROW})|{_WEAK}|\s)\s*{_CLOCK}\s*[:.,;]?(?=\s|\Z)")
_SETTINGS = re.compile(r"(?:\s*(?:[A-Za-z][A-Za-z0-9_-]*:\S*|\{\\[^}]*\}|[XY][12]:\s*\d+))*\s*\Z")
"""What may follow the times: positions, of SubRip and of WebVTT."""

_FULL = (
    r"(?<![\d:])\d{1,9}\s*:\s*\d{1,2}\s*:\s*\d{1,2}(?:\s*[,.;:]\s*\d+)?"
    r"|(?<![\d:])\d{1,2}\s*:\s*\d{1,2}\s*[,;.]\s*\d{3}(?!\d)"
)
"""A time with hours, minutes and seconds, or with thousandths: no hour of the day that somebody says."""

_TWO = re.compile(rf"(?:{_FULL}).*?(?:{_FULL})")
_EXACT = re.compile(r"(?<![\d:])\d{1,9}:\d{1,2}:\d{1,2}[,.;:]\d{2,}")
_NOTHING_ELSE = re.compile(rf"\W*(?:{_FULL})\W*")
_TIMES_ALONE = re.compile(r"\W*\d{1,3}\s*:\s*\d{2}\s*(?:[-~/,|]|\bto\b|\s)+\s*\d{1,3}\s*:\s*\d{2}\W*")
_ARROW_AND_TIME = re.compile(
    rf"\d\s*:\s*\d[^-→]{{0,40}}(?:-+\s?>|→)|(?:-+\s?>|→)\s*\d+\s*:\s*\d|^\s*-->|-->\s*$|^\s*\d[\d\s:.,;]*{_ARROW}\s*\d"
)
_KARAOKE = re.compile(r"<\d[\d:.,]*>")

_PLAIN_NUMBER = re.compile(r"\s*(\d{1,9})\s*\Z")
_DRESSED_NUMBER = re.compile(r"\W*(?:(?:no|nr)\.?\s*|第)?(\d{1,9})\W*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Timing:
    """``start`` and ``end``: the groups of the two times: hours (or None), minutes, seconds, the sign before their
    fraction and the fraction (or None)."""

    start: tuple[str | None, ...]
    end: tuple[str | None, ...]

    @property
    def has_frames(self) -> bool:
        """Its fractions are numbers of a picture, as in 00:00:02:12 and 00:00:02;12."""
        return all(time[3] in (":", ";") and len(time[4] or "") <= 2 for time in (self.start, self.end))


def without_invisible(text: str) -> str:
    """Without marks of direction and line breaking."""
    return INVISIBLE.sub("", text)


def normalised(line: str) -> str:
    """ASCII digits and signs for those that mean the same, entities as characters."""
    if "&" in line:
        line = html.unescape(html.unescape(line))
    if line.isascii():
        return line
    line = unicodedata.normalize("NFKC", line.translate(_SIGNS)).translate(_SIGNS)
    return "".join(_ascii_digit(character) for character in line)


def _ascii_digit(character: str) -> str:
    return character if character.isascii() or not character.isdecimal() else str(unicodedata.decimal(character))


def read_timing(line: str) -> Timing | None:
    """The two times of the cue that begins with this line; None where it is not, or not surely, such a line."""
    if sum(map(str.isdigit, line)) < 4:
        return None
    line = normalised(line)
    match = _LINE.match(line)
    if match is None or not _SETTINGS.match(line, match.end()):
        return None
    groups = match.groups()
    start, arrow, end = groups[:5], groups[5], groups[6:]
    # "11:30 - 12:30" may be said; with hours, minutes and seconds, or with fractions, it is not.
    sure = arrow is not None or all(time[0] is not None or time[4] is not None for time in (start, end))
    return Timing(start, end) if sure else None


def doubt(line: str) -> str | None:
    """Why a line that is no line of times looks like one, for people; None when it doesn't."""
    if not any(map(str.isdigit, line)) and "-->" not in line:
        return None
    line = _KARAOKE.sub("", normalised(line))
    if (match := _LINE.match(line)) and not _SETTINGS.match(line, match.end()) and match.groups()[5]:
        return "text stands behind the times of a cue: it belongs in the next line"
    if _ARROW_AND_TIME.search(line):
        return "these are no times of a cue"
    if _TWO.search(line) or _EXACT.search(line) or _NOTHING_ELSE.fullmatch(line) or _TIMES_ALONE.fullmatch(line):
        return "these look like times of a cue, which nobody says; mend them, or write in words what is said"
    return None


def plain_number(line: str) -> int | None:
    """The number that the line is, in digits of any script."""
    match = _PLAIN_NUMBER.match(line)
    return int(match[1]) if match else None


def dressed_number(line: str) -> int | None:
    """The number that the line is in any dress: "#3", "4.", "No. 5", "四" (0, if it can't be told which)."""
    line = normalised(line).strip()
    if match := _DRESSED_NUMBER.match(line):
        return int(match[1])
    signs = [character for character in line if character.isalnum()]
    if signs and all(unicodedata.numeric(sign, None) is not None for sign in signs):
        return int(unicodedata.numeric(signs[0])) if len(signs) == 1 else 0
    return None

"""Marks of type and place in the text of a cue, in the forms that formats and their converters leave: they go, or are
the space that they show as."""

from __future__ import annotations

import html
import re

from daemon.subtitles.times import INVISIBLE

VOICE_MARK = re.compile(r"<v(?:\.[^\s>]*)?(?:\s+([^>]*))?>|</v\s*>")

_RUBY = re.compile(r"<rt(?:\.[^>]*)?>.*?(?:</rt>|(?=</ruby>)|\Z)", re.DOTALL)
_BREAK = re.compile(r"<\s*/?\s*(?:br|p|div|li)\b[^<>]*>|\\[Nnh]|[|¦｜]", re.IGNORECASE)
"""What shows as a new line or a space."""

_KNOWN = r"(?:i|b|u|s|c|v|font|em|strong|span|small|big|center|tt|ruby|rt|lang|sub|sup|a)"
_ATTRIBUTE = r"""\s+\w+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s<>"']+)"""
_MARK = re.compile(
    # Whole; with spaces where none belong; without its end, of which no more goes than is surely part of it.
    rf"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|<\s*/?\s*{_KNOWN}\s*/?\s*>|<(?:font|span)(?:{_ATTRIBUTE})+|</{_KNOWN}\b|<{_KNOWN}\Z",
    re.IGNORECASE,
)
_OVERRIDE = re.compile(
    r"\{\\[^}]*\}|\{(?:an?\d{1,2}|[YyCcPpFfSs]:[^}]*|[ibus][01]?)\}|\{(?:\\[A-Za-z]+(?:\d+(?![A-Za-z])|\([^)]*\)|&H\w+&)?)+"
)
_EMPHASIS = re.compile(r"\*\*|(?<!\w)__|__(?!\w)")
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

MOST_ESCAPES = 3
"""A text that was escaped more often is meant."""


def unescaped(text: str) -> str:
    """Entities as characters, also those of a text that was escaped twice."""
    for _ in range(MOST_ESCAPES):
        once = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
        if once == text:
            break
        text = once
    return text


def plain(text: str) -> str:
    """The text without marks of type and place."""
    text = _RUBY.sub("", _OVERRIDE.sub("", unescaped(text)))
    text = _EMPHASIS.sub("", _MARK.sub("", _BREAK.sub(" ", text)))
    return " ".join(_CONTROL.sub(" ", INVISIBLE.sub("", text)).split())

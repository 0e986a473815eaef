"""Bytes to a JSON tree, with all that ``json.loads`` lets through or falls over checked on the way.

Checked before anything is built: size, encoding, nesting, number of values. Then the document is parsed, and what
JSON allows and no job means (a key twice, NaN, a number out of range, half a surrogate pair) is noted with its path.
Every step takes time in proportion to the document, whatever is in it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from typing import Any, NamedTuple

from daemon.core.job import Limits
from daemon.core.reasons import Reasons, member, quoted

_LONGEST_INTEGER = 40
_LONGEST_FRACTION = 400
_LEAST_VALUES_ALLOWED = 100_000
_VALUES_PER_SEGMENT = 64

_STRING = re.compile(rb'"[^"]*+(?:"|\Z)')
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


UNESCAPED = "a backslash is written \\\\, as in C:\\\\clips\\\\anna.wav, or / is written in its place"
"""What to do about a path of Windows whose backslashes are not escaped."""


class BadNumber(NamedTuple):
    """Stands in the tree for a number that was refused; the reason has been noted."""

    literal: str


class _Repeating(dict[str, Any]):
    """An object that names keys more than once."""

    repeated: tuple[str, ...] = ()


def read_json(document: bytes, *, limits: Limits, reasons: Reasons) -> Any:
    """The tree of dict, list, str, int, float, bool and None, with a BadNumber for each number that was refused.

    Notes duplicate keys, numbers that are none and lone surrogates in ``reasons`` and goes on.

    Raises:
        JobRejected: there is no tree: too large, too many values, too deep; or the wrong encoding, or not JSON,
            and then ``incomplete``: the file may still be on its way.
    """
    if len(document) > limits.job_bytes:
        reasons.add(
            "$", "too_large", f"the job has {len(document)} bytes; the limit is {limits.job_bytes}: split it into jobs"
        )
        raise reasons.rejection()
    _check_structure(document, limits, reasons)
    text = _decode(document, reasons)
    return _Parser(reasons).parse(text)


def _check_structure(document: bytes, limits: Limits, reasons: Reasons) -> None:
    """Nesting and number of values, from the brackets and commas outside of strings.

    ``json.loads`` recurses once a level and builds objects of 64 bytes and more out of two, so this comes first. In a
    document that is not JSON the counts mean little, but such a one is rejected all the same.
    """
    without_escapes = document.replace(b"\\\\", b"").replace(b'\\"', b"")
    most_values = max(_LEAST_VALUES_ALLOWED, _VALUES_PER_SEGMENT * limits.segments)
    structure = without_escapes.translate(None, _ALL_BUT_STRUCTURE)
    # A value has two texts at most, its key and itself. Counted before they are taken out, which would make an object
    # of what lies between each two.
    too_many = structure.count(b'"') > 4 * most_values
    if not too_many:
        structure = _STRING.sub(b"", structure)
        too_many = structure.count(b",") + structure.count(b"[") + structure.count(b"{") > most_values
    if too_many:
        reasons.add("$", "too_many_values", f"the job holds more than {most_values} values: split it into jobs")
        raise reasons.rejection()
    depth = 0
    for byte in structure.replace(b",", b""):
        depth += 1 if byte in b"[{" else -1
        if depth > limits.json_depth:
            reasons.add("$", "too_deep", f"the job nests deeper than {limits.json_depth} levels; a job needs 5")
            raise reasons.rejection()


def _decode(document: bytes, reasons: Reasons) -> str:
    head = document[:4]
    if document.startswith(_WIDE_MARKS) or (b"\0" in head and head.strip(b"\0")):
        reasons.add("$", "encoding", "the file is written in UTF-16 or UTF-32: save it as UTF-8")
        raise reasons.rejection(incomplete=True)
    try:
        return document.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reasons.add("$", "encoding", f"the file is not UTF-8 (byte {error.start} can't be read): save it as UTF-8")
        raise reasons.rejection(incomplete=True) from error


class _Parser:
    """One pass of ``json.loads`` with hooks that mark what is odd, and a second one over the tree, only when
    something was, to find where."""

    def __init__(self, reasons: Reasons) -> None:
        self._reasons = reasons
        self._odd = False
        self._trail: list[str | int] = []

    def parse(self, text: str) -> Any:
        try:
            tree = json.loads(
                text,
                object_pairs_hook=self._object,
                parse_int=self._integer,
                parse_float=self._fraction,
                parse_constant=self._bad_number,
            )
        except json.JSONDecodeError as error:
            what = error.msg.removesuffix(" at")
            cut_off = what.startswith("Unterminated") or not text[error.pos : error.pos + 64].strip(" \t\r\n\0")
            hint = "; the file is empty or cut off" if cut_off else ""
            if "escape" in error.msg:
                hint = f"; {UNESCAPED}"
            message = f"not JSON: {what} at line {error.lineno}, column {error.colno}{hint}"
            self._reasons.add("$", "not_json", message)
            raise self._reasons.rejection(incomplete=True) from error
        except RecursionError as error:  # only where limits.json_depth was raised beyond what Python can follow
            self._reasons.add("$", "too_deep", "the job nests deeper than this daemon can follow")
            raise self._reasons.rejection() from error
        if self._odd or _SURROGATE_ESCAPE.search(text):
            self._report(tree)
        return tree

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) == len(pairs):
            return members
        self._odd = True
        repeating = _Repeating(members)
        repeating.repeated = tuple(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return repeating

    def _integer(self, literal: str) -> int | BadNumber:
        return int(literal) if len(literal) <= _LONGEST_INTEGER else self._bad_number(literal)

    def _fraction(self, literal: str) -> float | BadNumber:
        if len(literal) > _LONGEST_FRACTION:
            return self._bad_number(literal)
        value = float(literal)
        return self._bad_number(literal) if value in (float("inf"), float("-inf")) else value

    def _bad_number(self, literal: str) -> BadNumber:
        self._odd = True
        return BadNumber(literal)

    def _report(self, value: Any) -> None:
        """Note what is odd in ``value``, which lies at ``self._trail``. Recurses no deeper than the nesting limit."""
        if isinstance(value, BadNumber):
            self._note("bad_number", f"{value.literal[:40]} is not a number that a job can hold")
        elif isinstance(value, str):
            self._check_text(value)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                self._trail.append(position)
                self._report(item)
                self._trail.pop()
        elif isinstance(value, dict):
            for key in value.repeated if isinstance(value, _Repeating) else ():
                self._note("duplicate_key", f"{quoted(key)} is given more than once: keep one", key)
            for key, item in value.items():
                self._trail.append(key)
                self._check_text(key)
                self._report(item)
                self._trail.pop()

    def _check_text(self, text: str) -> None:
        if _LONE_SURROGATE.search(text):
            self._note("lone_surrogate", "the text holds half of a surrogate pair (\\ud800 to \\udfff), no character")

    def _note(self, code: str, message: str, *more: str) -> None:
        if self._reasons.full:
            self._reasons.add_unlisted()
            return
        path = "$"
        for step in (*self._trail, *more):
            path = f"{path}[{step}]" if isinstance(step, int) else member(path, step)
        self._reasons.add(path, code, message)

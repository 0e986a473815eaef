"""An earlier manifest, read back: it has lain where others may write, so it is checked like a job file.

What is believed of it goes into the next manifest, and nothing else: only the fields that are known here, each of its
kind and within its bounds. One that is wrong anywhere is not used at all, since nobody could say what else is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from daemon.core.job import JobRejected, Limits
from daemon.core.job_settings import LARGEST_INDEX, LARGEST_SEED
from daemon.core.json_document import read_json
from daemon.core.reasons import Reasons

LARGEST_MANIFEST = 128 << 20
"""Bytes. With 10,000 lines, so much for each that a hundred earlier takes find room."""

MOST_TAKES = 100
"""So many earlier takes of a segment are told; the oldest are forgotten first, their WAVs stay."""

_LIMITS = Limits(job_bytes=LARGEST_MANIFEST, segments=100_000)
_LONGEST_TEXT = 100_000
_MOST_VALUES = 100
_LARGEST_NUMBER = 1e12
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_TAKE_FILE = re.compile(r"takes/segment_[0-9]{4,10}\.[0-9]{1,12}\.(wav|npy)\Z")
_MANIFEST_NAME = re.compile(r"manifest\.[0-9]{1,15}\.json\Z")

Entry = dict[str, Any]
"""A segment as an earlier manifest tells it."""

Check = Callable[[Any], bool]


def read_earlier(document: bytes) -> dict[int, Entry]:
    """The segments that a manifest tells of, by their index.

    Raises:
        ValueError: it can't be used; the message says where it is wrong, and how.
    """
    reasons = Reasons()
    try:
        tree = read_json(document, limits=_LIMITS, reasons=reasons)
        reasons.raise_if_any()
    except JobRejected as rejected:
        first = rejected.reasons[0]
        raise ValueError(f"{first.path}: {first.message}") from rejected
    rows = tree.get("segments") if isinstance(tree, dict) else None
    if not isinstance(rows, list):
        raise ValueError("$.segments: it tells of no segments")
    found: dict[int, Entry] = {}
    for position, row in enumerate(rows):
        path = f"$.segments[{position}]"
        entry = _read(row, _ENTRY, path)
        if not {"index", "speaker", "text", "status"} <= entry.keys():
            raise ValueError(f"{path}: it lacks its index, speaker, text or status")
        if entry["index"] in found:
            raise ValueError(f"{path}.index: there is another segment {entry['index']}")
        if entry["status"] == "ok" and entry.get("sha256") is None:
            raise ValueError(f"{path}.sha256: it is missing")
        history = entry.get("history") or []
        entry["history"] = [_read(take, _TAKE, f"{path}.history[{n}]") for n, take in enumerate(history)]
        found[entry["index"]] = entry
    return found


def _read(value: Any, checks: Mapping[str, Check], path: str) -> Entry:
    """The members of an object that are known."""
    if not isinstance(value, dict):
        raise ValueError(f"{path}: it is no object")
    known = {name: value[name] for name in checks if name in value}
    for name, given in known.items():
        if not checks[name](given):
            raise ValueError(f"{path}.{name}: it is not what dubd writes there")
    return known


def _whole(most: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= most


def _word(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _like(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.match(value) is not None


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, most: int) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # The reader has let none through that is not finite.
    return type(value) in (int, float) and abs(value) <= _LARGEST_NUMBER


def _is_seconds(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_simple(value: Any) -> bool:
    return value is None or _is_bool(value) or _is_number(value) or _is_text(value)


def _is_finishing(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= _MOST_VALUES and all(map(_is_simple, value.values()))


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"code", "message"} and all(map(_is_text, value.values()))


_OF_A_TAKE: dict[str, Check] = {
    "status": _word("ok", "failed", "skipped", "cancelled"),
    "seed": _or_none(_whole(LARGEST_SEED)),
    "seeds": _list_of(_whole(LARGEST_SEED), _MOST_VALUES),
    "duration_s": _or_none(_is_seconds),
    "overrun_s": _or_none(_is_seconds),
    "sha256": _or_none(_like(_SHA256)),
    "truncated": _is_bool,
    "finishing": _or_none(_is_finishing),
    "flaws": _list_of(_is_text, _MOST_VALUES),
    "error": _or_none(_is_error),
}
TOLD_OF_A_TAKE = tuple(_OF_A_TAKE)
"""What a segment's history keeps of the segment as a manifest told it."""

_TAKE = {**_OF_A_TAKE, "file": _or_none(_like(_TAKE_FILE)), "manifest": _like(_MANIFEST_NAME)}
_ENTRY = {
    **_OF_A_TAKE,
    "index": _whole(LARGEST_INDEX),
    "speaker": _is_text,
    "text": _is_text,
    "attempts": _whole(1 << 31),
    "history": _list_of(lambda take: isinstance(take, dict), MOST_TAKES),
}

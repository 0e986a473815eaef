"""Goes through a pickle's opcodes before anything is made of them, and refuses what would take too much.

The unpickler believes what it reads: nine bytes have it set aside gigabytes for its memo, and a few hundred make a
tuple of tuples that can't be hashed in a lifetime. So every length and every index of the memo is held against the data
that is there, and what the opcodes make is counted. Opcodes that nobody writes for what an embedding's file may hold
are refused: those that refer to elsewhere, and those that take something off the stack again.

Lists that hold one list many times are bounded by who reads them: nobody hashes or compares a list.
"""

from __future__ import annotations

import pickle
from typing import NoReturn

MOST_OBJECTS = 1 << 20
"""Objects that a pickle may make, of some 64 bytes each; a tuple that is referred to counts whole each time."""

MOST_KEYS = 1 << 13
"""Keys and values of all its dictionaries and sets: keys can be chosen so that each is compared with all others."""

_LONGEST_NUMBER = 1 << 10
"""Bytes of a whole number, or of its digits: far more than a float can hold."""

_NOT_FIXED = -1
_FIXED = [_NOT_FIXED] * 256
"""How many bytes follow an opcode, where that does not depend on them."""
for _code in b"N)]}\x8f(taesudlRbo\x81\x85\x86\x87\x88\x89\x90\x91\x92\x93\x94.":
    _FIXED[_code] = 0
for _code, _size in zip(b"\x80KMJGhqjr\x95", (1, 1, 2, 4, 8, 1, 1, 4, 4, 8), strict=True):
    _FIXED[_code] = _size

_NUMBER, _BYTES, _TEXT = 0, 6, 4
_COUNTED = {
    pickle.LONG1[0]: (1, _NUMBER),
    pickle.LONG4[0]: (4, _NUMBER),
    pickle.SHORT_BINBYTES[0]: (1, _BYTES),
    pickle.BINBYTES[0]: (4, _BYTES),
    pickle.BINBYTES8[0]: (8, _BYTES),
    pickle.BYTEARRAY8[0]: (8, _BYTES),
    pickle.SHORT_BINSTRING[0]: (1, _TEXT),
    pickle.BINSTRING[0]: (4, _TEXT),
    pickle.SHORT_BINUNICODE[0]: (1, _TEXT),
    pickle.BINUNICODE[0]: (4, _TEXT),
    pickle.BINUNICODE8[0]: (8, _TEXT),
}
"""Opcodes followed by a length, of so many bytes, and as much data; 64 bytes of memory are so many of them, as a power
of two: a character of a text may take four times what it is written in."""

_LINES = {
    **dict.fromkeys((pickle.INT[0], pickle.LONG[0], pickle.FLOAT[0]), (1, _NUMBER)),
    **dict.fromkeys((pickle.STRING[0], pickle.UNICODE[0]), (1, _TEXT)),
    **dict.fromkeys((pickle.GLOBAL[0], pickle.INST[0]), (2, _TEXT)),
    **dict.fromkeys((pickle.PUT[0], pickle.GET[0]), (1, _NUMBER)),
}
"""Opcodes followed by so many lines of text."""

_MARK, _FRAME, _STOP, _SETITEM, _MEMOIZE = b"(\x95.s\x94"
_PUTS = {pickle.PUT[0], pickle.BINPUT[0], pickle.LONG_BINPUT[0], _MEMOIZE}
_GETS = {pickle.GET[0], pickle.BINGET[0], pickle.LONG_BINGET[0]}
_TO_MARK = set(b"teudloi\x90\x91")
_KEYED = set(b"ud\x90\x91")
_HEAVY = set(b"}\x8fRoi")
_WEIGHT = 4
"""What a dictionary, a set, or what comes of a call takes, in objects."""

_UNSHARED = {code for code in range(256) if _FIXED[code] >= 0} | set(_COUNTED) | set(_LINES)
_UNSHARED -= _PUTS | _GETS | set(b"t\x85\x86\x87\x91")
"""Opcodes that leave no tuple on the stack: what is noted after them counts as one object wherever it is used."""

_SPECIAL = [_FIXED[code] < 0 or code in _PUTS | _GETS | _TO_MARK | _HEAVY | {_MARK, _FRAME, _STOP, _SETITEM}
            for code in range(256)]  # fmt: skip


class Excess(Exception):
    """It is no whole pickle, or would take too much; the message says which."""


_MOST_KNOWN = 256
_MOST_KEPT = 4096

_known: dict[int, list[tuple[int, int, bytes]]] = {}
"""Of pickles that were found good, by their length: what stands between the data that their lengths announce. The
files of a corpus are alike, and one that equals another in all of this has the same opcodes."""


def _is_known(data: bytes) -> bool:
    pieces = _known.get(len(data))
    return pieces is not None and all(data[start:end] == piece for start, end, piece in pieces)


def _remember(data: bytes, spans: list[tuple[int, int]], end: int) -> None:
    pieces = []
    at = 0
    for first, last in spans:
        pieces.append((at, first, data[at:first]))
        at = last
    pieces.append((at, end, data[at:end]))
    if sum(len(piece) for _, _, piece in pieces) <= _MOST_KEPT:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[len(data)] = pieces


def check_opcodes(data: bytes, most_objects: int = MOST_OBJECTS) -> None:
    """Raises Excess: see there."""
    if _is_known(data):
        return
    spans: list[tuple[int, int]] = []
    end = len(data)
    at = objects = keys = before = 0
    above = 0  # at most so many things lie above the last mark
    marks: list[int] = []
    memo: dict[int, int] = {}
    while at < end and objects <= most_objects:
        code = data[at]
        at += 1
        objects += 1
        above += 1
        if not _SPECIAL[code]:
            at += _FIXED[code]
            before = code
            continue
        first = at
        if (size := _FIXED[code]) >= 0:
            at += size
        elif code in _COUNTED:
            size, kind = _COUNTED[code]
            length = int.from_bytes(data[at : at + size], "little")
            at += size + length
            spans.append((at - length, at))
            if kind == _NUMBER and length > _LONGEST_NUMBER:
                raise Excess("it holds a number without end")
            objects += length >> (kind or _BYTES)
        elif code in _LINES:
            lines, kind = _LINES[code]
            for _ in range(lines):
                at = data.find(b"\n", at) + 1 or end + 1
            if kind == _NUMBER and at - first > _LONGEST_NUMBER:
                raise Excess("it holds a number without end")
            objects += (at - first) >> (kind or _BYTES)
        else:
            raise Excess(f"its byte {at - 1:,} is no opcode that belongs into it")
        if at > end:
            _torn()
        if code in _PUTS or code in _GETS:
            if code == _MEMOIZE:
                index = len(memo)
            elif size == _NOT_FIXED:
                index = _index(data[first : at - 1])
            else:
                index = int.from_bytes(data[first:at], "little")
            if index > end:
                raise Excess(f"it numbers {index:,} things, and has {end:,} bytes")
            if code in _PUTS:
                memo[index] = 0 if before in _UNSHARED else objects
            else:
                objects += memo.get(index, 0)
        elif code in _TO_MARK:
            if code in _KEYED:
                keys += above
            if not marks:
                _torn()
            above = marks.pop() + 1
        elif code == _MARK:
            marks.append(above)
            above = 0
        elif code == _SETITEM:
            keys += 2
        elif code == _FRAME and int.from_bytes(data[first:at], "little") > end - at:
            _torn()
        if code in _HEAVY:
            objects += _WEIGHT
        if keys > MOST_KEYS:
            break
        if code == _STOP and objects <= most_objects:
            if most_objects == MOST_OBJECTS:
                _remember(data, spans, at)
            return
        before = code
    else:
        if objects <= most_objects:
            _torn()
    raise Excess("it makes more objects than an embedding's file may hold")


def _index(digits: bytes) -> int:
    if not digits.isdigit():
        raise Excess(f"{ascii(digits)[:40]} is no number of a thing")
    return int(digits)


def _torn() -> NoReturn:
    raise Excess("it is torn")

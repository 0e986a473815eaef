"""Reads the objects of a job field by field; whatever is wrong becomes a reason, and reading goes on.

A schema library stops at a field's first fault and skips the checks across fields once any field is wrong; a job's
author is to see every fault at once, the unknown speaker in line 7 beside the missing text in line 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from daemon.core.json_document import UNESCAPED, BadNumber
from daemon.core.reasons import Reasons, member, nearest, quoted

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/\x00-\x1f]")
_DIGITS = re.compile(r"[+-]?[0-9]{1,18}\Z")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?\Z")
_CLOCK = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,2}):([0-9]{1,2}(?:[.,][0-9]{1,9})?)\Z")


def spellings(names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Every accepted spelling of a field to its name, from each name's aliases."""
    table = {name: name for name in names}
    table.update({alias: name for name, aliases in names.items() for alias in aliases})
    return table


def describe(value: Any) -> str:
    """A value of the document in a few words, for "…, not …"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "a list" if isinstance(value, list) else "an object"


class Fields:
    """One object of the document. ``path`` is where it lies, ``known`` the table of ``spellings()``.

    A reader gives None for a field that is absent, null, or was refused; a missing required one is noted. ``unknown``
    holds the names that ``known`` lacks, for the caller to refuse or to ignore.
    """

    __slots__ = ("_known", "_reasons", "_values", "_written", "path", "unknown")

    def __init__(self, values: Mapping[str, Any], path: str, known: Mapping[str, str], reasons: Reasons) -> None:
        self.path = path
        self.unknown: list[str] = []
        self._known = known
        self._reasons = reasons
        self._values: dict[str, Any] = {}
        self._written: dict[str, str] = {}
        for key, value in values.items():
            name = known.get(key)
            if name is None:
                self.unknown.append(key)
            elif name in self._values:
                first = self._written[name]
                message = f"{quoted(key)} means the same as {quoted(first)}, which is given too: keep one"
                reasons.add(member(path, key), "alias_conflict", message)
            else:
                self._values[name] = value
                self._written[name] = key

    def refuse_unknown(self, what: str) -> None:
        """Note each unknown field of ``what`` ("a segment"), with the known one it may be a slip for."""
        for key in self.unknown:
            if self._reasons.full:
                self._reasons.add_unlisted()
                continue
            near = nearest(key, self._known)
            names = ", ".join(dict.fromkeys(self._known.values()))
            hint = f"did you mean {quoted(near)}?" if near else f"the fields are {names}"
            self._reasons.add(member(self.path, key), "unknown_field", f"{quoted(key)} is no field of {what}; {hint}")

    def path_of(self, name: str) -> str:
        """The JSON path of the field, in the spelling that the document uses."""
        return member(self.path, self._written.get(name, name))

    def refuse(self, name: str, code: str, message: str) -> None:
        if self._reasons.full:
            self._reasons.add_unlisted()
        else:
            self._reasons.add(self.path_of(name), code, message)

    def given(self, name: str) -> bool:
        """The field is there and not null."""
        return self._values.get(name) is not None

    def raw(self, name: str, *, required: bool = False) -> Any:
        """The field as it stands."""
        value = self._values.get(name)
        if value is None and required:
            if name in self._values:
                self.refuse(name, "wrong_type", f"{self._written[name]} is null; it must be given")
            else:
                self.refuse(name, "missing_field", f"{name} is missing; it must be given")
        return None if isinstance(value, BadNumber) else value

    def wrong_type(self, name: str, expected: str, value: Any) -> None:
        self.refuse(name, "wrong_type", f"{self._written[name]} must be {expected}, not {describe(value)}")

    def integer(self, name: str, low: int, high: int, *, required: bool = False) -> int | None:
        """A whole number; as a text, "3", and as 3.0 it is one too, but true is none."""
        value = self.raw(name, required=required)
        if value is None:
            return None
        as_text = isinstance(value, str) and _DIGITS.match(value.strip())
        if as_text or (isinstance(value, float) and value.is_integer()):
            value = int(value)
        if type(value) is not int:
            self.wrong_type(name, "a whole number", value)
        elif not low <= value <= high:
            self.refuse(name, "out_of_range", f"{self._written[name]} is {value}; it must be from {low} to {high}")
        else:
            return value
        return None

    def number(self, name: str, accepts: Callable[[float], bool], expected: str) -> float | None:
        """A finite number that ``accepts`` likes, or a text that is one; ``expected`` says which ones those are ("above
        0")."""
        return self._number(name, self.raw(name), accepts, expected)

    def moment(self, name: str, latest: float) -> float | None:
        """Seconds from 0 to ``latest``, also as a clock shows them: "1.2", "00:00:01,200"."""
        value = self.raw(name)
        if isinstance(value, str) and (clock := _CLOCK.match(value.strip())):
            hours, minutes, seconds = clock.groups()
            value = int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
        return self._number(name, value, lambda moment: 0 <= moment <= latest, f"from 0 to {latest:,.0f} seconds")

    def _number(self, name: str, value: Any, accepts: Callable[[float], bool], expected: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, str) and _DECIMAL.match(value.strip()):
            value = float(value)
        if type(value) is not int and type(value) is not float:
            self.wrong_type(name, "a number", value)
        elif not accepts(value):
            self.refuse(name, "out_of_range", f"{self._written[name]} is {value}; it must be {expected}")
        else:
            return float(value)
        return None

    def text(self, name: str, longest: int, *, required: bool = False) -> str | None:
        """A text of at most ``longest`` characters, without control characters other than tab and line ends."""
        value = self.raw(name, required=required)
        if value is None:
            return None
        if not isinstance(value, str):
            self.wrong_type(name, "a text", value)
        elif len(value) > longest:
            message = f"{self._written[name]} has {len(value)} characters; the limit is {longest}"
            self.refuse(name, "too_long", message)
        elif control := _CONTROL.search(value):
            what = UNESCAPED if _WINDOWS_PATH.match(value) else "take it out"
            message = f"{self._written[name]} holds the control character U+{ord(control[0]):04X}: {what}"
            self.refuse(name, "control_character", message)
        else:
            return value
        return None

    def flag(self, name: str) -> bool | None:
        """true or false."""
        value = self.raw(name)
        if value is None or isinstance(value, bool):
            return value
        self.wrong_type(name, "true or false", value)
        return None

    def items(self, name: str) -> list[Any] | None:
        """A list that must be given."""
        value = self.raw(name, required=True)
        if value is None or isinstance(value, list):
            return value
        self.wrong_type(name, "a list", value)
        return None

    def inner(self, name: str, known: Mapping[str, str], what: str) -> Fields:
        """The object in the field, its unknown fields refused; one without fields when it is absent or no object."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            self.wrong_type(name, "an object", value)
            value = None
        fields = Fields(value or {}, self.path_of(name), known, self._reasons)
        fields.refuse_unknown(what)
        return fields


def objects(items: list[Any], path: str, known: Mapping[str, str], reasons: Reasons) -> list[Fields]:
    """The objects of a list that lies at ``path``; an item that is none is noted and left out."""
    found = []
    for position, item in enumerate(items):
        if isinstance(item, dict):
            found.append(Fields(item, f"{path}[{position}]", known, reasons))
        elif reasons.full or isinstance(item, BadNumber):  # the number has its own reason already
            reasons.add_unlisted(0 if isinstance(item, BadNumber) else 1)
        else:
            reasons.add(f"{path}[{position}]", "wrong_type", f"must be an object, not {describe(item)}")
    return found

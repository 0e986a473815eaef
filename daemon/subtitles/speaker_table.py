"""Who speaks when, from a CSV: a cue's number, or a time in it, and a name.

``12,anna`` is cue 12, ``12/2,bo`` the second who speaks in it, ``20-25,anna`` six cues; ``00:01:02.500,bo`` the cue
that is shown then. Fields are separated by commas, semicolons or tabs, as spreadsheets in different countries write
them; a first row of headings may say which of several columns are meant.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from daemon.core.reasons import quoted
from daemon.subtitles import Cue, Mistake
from daemon.subtitles.cues import milliseconds

MOST_CUES_IN_A_RANGE = 100_000

CUE_HEADINGS = frozenset(("cue", "number", "no", "no.", "nr", "nr.", "#", "index", "id", "time", "start", "in"))
NAME_HEADINGS = frozenset(("speaker", "name", "character", "voice", "actor", "role"))

_SEPARATOR = re.compile(r'"?sep=([,;|\t])"?\s*\Z', re.IGNORECASE)
_CUES = re.compile(r"#?(\d{1,9})(?:\s*[-–]\s*(\d{1,9})|\s*/\s*(\d{1,3}))?\Z")
_TIME = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[.,:](\d{1,9}))?\Z")


@dataclass(frozen=True, slots=True)
class Assigned:
    """``where``: the row, as mistakes say it."""

    name: str
    where: str


class SpeakerTable:
    """Who speaks in a cue: by its place in the file, and the number of the speech in it, from 1; 0: all of it."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], Assigned] = {}

    def add(self, cue: int, part: int, assigned: Assigned, mistakes: list[Mistake]) -> None:
        earlier = self._rows.setdefault((cue, part), assigned)
        if earlier.name != assigned.name:
            message = f"{earlier.where} gives the same to {quoted(earlier.name)}"
            mistakes.append(Mistake(assigned.where, message))

    def find(self, cue: int, part: int) -> Assigned | None:
        return self._rows.get((cue, part)) or self._rows.get((cue, 0))

    def parts(self) -> list[tuple[int, int, Assigned]]:
        """The rows that name one of several who speak in a cue."""
        return [(cue, part, assigned) for (cue, part), assigned in self._rows.items() if part]


def read_speaker_table(text: str, name: str, cues: Sequence[Cue], mistakes: list[Mistake]) -> SpeakerTable:
    """The table in ``text``, whose file is called ``name``; rows that fit no cue are mistakes."""
    table = SpeakerTable()
    find = _Finder(cues)
    lines = text.split("\n")
    place = next((place for place, line in enumerate(lines) if line.strip()), 0)
    delimiter = max(",;\t", key=lines[place].count)
    if said := _SEPARATOR.match(lines[place]):  # Excel's own first line
        delimiter, lines[place] = said[1], ""
    rows = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True)
    columns: tuple[int, int] | None = None
    named = False
    try:
        for row in rows:
            fields = [field.strip() for field in row]
            if not any(fields):
                continue
            if columns is None:
                columns, is_heading, named = _columns(fields)
                if is_heading:
                    continue
            where = f"{name} line {rows.line_num}"
            if len(fields) <= max(columns) or (not named and any(fields[2:])):
                message = "a row is a cue's number or a time, and a name; more columns need headings (cue, speaker)"
                mistakes.append(Mistake(where, message))
                continue
            key, speaker = fields[columns[0]], fields[columns[1]]
            try:
                places = find(key) if speaker else []
            except ValueError as error:
                mistakes.append(Mistake(where, str(error)))
                continue
            for place, part in places:
                table.add(place, part, Assigned(speaker, where), mistakes)
    except csv.Error as error:
        mistakes.append(Mistake(f"{name} line {rows.line_num}", f"it is no CSV: {error}"))
    return table


def _columns(fields: Sequence[str]) -> tuple[tuple[int, int], bool, bool]:
    """Where the cue and the name stand in each row, whether this first row is one of headings, and whether these say
    where."""
    folded = [field.casefold() for field in fields]
    keys = [place for place, field in enumerate(folded) if field in CUE_HEADINGS]
    names = [place for place, field in enumerate(folded) if field in NAME_HEADINGS]
    if keys and names:
        return (keys[0], names[0]), True, True
    return (0, 1), not any(character.isdigit() for character in fields[0]), False


class _Finder:
    """The cues that a row is about, each by its place, with the part of it (0: all).

    Raises:
        ValueError: there are none.
    """

    def __init__(self, cues: Sequence[Cue]) -> None:
        self._cues = cues
        self._by_number: dict[int, list[int]] = {}
        self._by_start: dict[int, list[int]] = {}
        for place, cue in enumerate(cues):
            self._by_number.setdefault(cue.number, []).append(place)
            self._by_start.setdefault(cue.start_ms, []).append(place)

    def __call__(self, key: str) -> list[tuple[int, int]]:
        if match := _CUES.match(key):
            return self._numbered(key, match)
        if match := _TIME.match(key):
            return [(self._shown(key, milliseconds(match[1], match[2], match[3], match[4])), 0)]
        raise ValueError(f"{quoted(key)} is neither a cue's number nor a time such as 00:01:02.500")

    def _numbered(self, key: str, match: re.Match[str]) -> list[tuple[int, int]]:
        first = int(match[1])
        last = int(match[2] or first)
        if not first <= last < first + MOST_CUES_IN_A_RANGE:
            raise ValueError(f"{quoted(key)} is no range of cues")
        found = []
        for number in range(first, last + 1):
            places = self._by_number.get(number, [])
            if len(places) > 1:
                lines = ", ".join(str(self._cues[place].line) for place in places[:3])
                raise ValueError(f"several cues have the number {number} (lines {lines}): give a time instead")
            found += [(place, int(match[3] or 0)) for place in places]
        if not found:
            raise ValueError(f"there is no cue {key}")
        return found

    def _shown(self, key: str, moment: int) -> int:
        found = self._by_start.get(moment) or [
            place for place, cue in enumerate(self._cues) if cue.start_ms <= moment < cue.end_ms
        ]
        if not found:
            raise ValueError(f"no cue is shown at {key}")
        if len(found) > 1:
            raise ValueError(f"several cues are shown at {key}: give their numbers instead")
        return found[0]

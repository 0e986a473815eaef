"""The table of what was tried: fault, tries, survived."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A fault, how often it was tried, how often every promise held. ``note``: what else is worth knowing."""

    fault: str
    tries: int
    survived: int
    note: str = ""

    @classmethod
    def from_json(cls, text: str) -> Row:
        return cls(**json.loads(text))

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def lost(self) -> int:
        return self.tries - self.survived

    def __str__(self) -> str:
        return f"{self.fault:<58} {self.tries:>8,} {self.survived:>9,}  {self.note}".rstrip()


def as_text(rows: Iterable[Row]) -> str:
    """The whole table, for people."""
    return "\n".join([f"{'fault':<58} {'tries':>8} {'survived':>9}", "-" * 77, *map(str, rows)])


def rows_of(attack: str, parts: Iterable[tuple[str, int, Callable[[], Row]]]) -> Iterator[Row]:
    """The rows of an attack's parts: name, tries, and what gives the row. One that stumbles has survived nothing."""
    for name, tries, run in parts:
        try:
            yield run()
        except Exception as error:  # noqa: BLE001 - whatever a check stumbles over is a finding
            print(f"{attack}: {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            yield Row(f"{attack}: {name}", tries, 0)

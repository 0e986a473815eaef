"""Where the WAV of a given content key lies: an index over what has been published.

It is an index, not a record: what counts is the sha256 it holds, which the journal said, against the file as it is
now. Losing it, or deleting it, costs only that known lines are spoken again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.index_file import IndexFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spoken (
    key TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL,
    frames INTEGER NOT NULL, sample_rate INTEGER NOT NULL, seed INTEGER NOT NULL, truncated INTEGER NOT NULL,
    recorded_at REAL NOT NULL, finishing TEXT
) WITHOUT ROWID
"""
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Published:
    """A WAV that was published: where, its sha256 (hex), its samples per channel and rate (Hz), how it was spoken and
    finished."""

    key: str
    path: Path
    sha256: str
    frames: int
    sample_rate: int
    seed: int
    truncated: bool
    finishing: dict[str, Any] | None = None


class ReuseIndex(IndexFile):
    """Safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA)

    def _open(self, path: Path | str) -> sqlite3.Connection:
        connection = super()._open(path)
        if "finishing" not in {row[1] for row in connection.execute("PRAGMA table_info(spoken)")}:
            connection.execute("ALTER TABLE spoken ADD COLUMN finishing TEXT")  # an earlier version made it
        return connection

    def record(self, published: Iterable[Published], *, at: float) -> None:
        """Remember where these lie now; ``at`` is Unix time. A failure is nobody's loss and is not reported."""
        rows = [
            (
                *(p.key, str(p.path), p.sha256, p.frames, p.sample_rate, p.seed, int(p.truncated), at),
                None if p.finishing is None else json.dumps(p.finishing),
            )
            for p in published
        ]
        self.write("INSERT OR REPLACE INTO spoken VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def look_up(self, keys: Iterable[str]) -> dict[str, Published]:
        """What is known of these keys. The files may have changed since: compare their sha256."""
        wanted = list(keys)
        found: dict[str, Published] = {}
        for start in range(0, len(wanted), _BATCH):
            batch = wanted[start : start + _BATCH]
            marks = ",".join("?" * len(batch))
            columns = "key, path, sha256, frames, sample_rate, seed, truncated, finishing"
            query = f"SELECT {columns} FROM spoken WHERE key IN ({marks})"
            for key, path, sha256, frames, rate, seed, truncated, told in self.read(query, batch):
                try:
                    finishing = None if told is None else json.loads(told)
                except ValueError:  # damaged: it is as good as unknown
                    continue
                found[key] = Published(key, Path(path), sha256, frames, rate, seed, bool(truncated), finishing)
        return found

    def places(self, after: str) -> list[tuple[str, str]]:
        """Keys and paths, some of them, in the order of the keys: those that come ``after`` this one."""
        return self.read("SELECT key, path FROM spoken WHERE key > ? ORDER BY key LIMIT ?", (after, _BATCH))

    def forget(self, places: Iterable[tuple[str, str]]) -> None:
        """Forget these keys, unless they lie elsewhere by now."""
        self.write("DELETE FROM spoken WHERE key = ? AND path = ?", places)

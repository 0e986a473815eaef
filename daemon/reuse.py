"""Where the WAV of a given content key lies: an index over what has been published.

It is an index, not a record: what counts is the sha256 it holds, which the journal said, against the file as it is
now. Losing it, or deleting it, costs only that known lines are spoken again; so it is kept in SQLite without waiting
for the disk, and a damaged one is put aside.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon import files

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spoken (
    key TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL,
    frames INTEGER NOT NULL, sample_rate INTEGER NOT NULL, seed INTEGER NOT NULL, truncated INTEGER NOT NULL,
    recorded_at REAL NOT NULL
) WITHOUT ROWID
"""
_LOOKUP_BATCH = 500


@dataclass(frozen=True, slots=True)
class Published:
    """A WAV that was published: where, its sha256 (hex), its samples per channel and rate (Hz), how it was spoken."""

    key: str
    path: Path
    sha256: str
    frames: int
    sample_rate: int
    seed: int
    truncated: bool


class ReuseIndex:
    """Safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = self._open_somehow()

    def _open_somehow(self) -> sqlite3.Connection:
        try:
            return self._open(self._path)
        except sqlite3.Error:
            pass
        try:
            self._put_aside()
            return self._open(self._path)
        except (sqlite3.Error, OSError):
            # The disk is full, or no folder of ours: known lines are then known for this life of the daemon.
            return self._open(":memory:")

    def _put_aside(self) -> None:
        for ending in ("", "-wal", "-shm"):  # what was being written to the damaged one must not get into the new one
            with contextlib.suppress(FileNotFoundError):
                files.rename(
                    self._path.with_name(self._path.name + ending),
                    self._path.with_name(f"{self._path.name}.damaged{ending}"),
                )

    @staticmethod
    def _open(path: Path | str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def record(self, published: Iterable[Published], *, at: float) -> None:
        """Remember where these lie now; ``at`` is Unix time. A failure is nobody's loss and is not reported."""
        rows = [
            (p.key, str(p.path), p.sha256, p.frames, p.sample_rate, p.seed, int(p.truncated), at) for p in published
        ]
        with self._lock, contextlib.suppress(sqlite3.Error), self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO spoken VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def look_up(self, keys: Iterable[str]) -> dict[str, Published]:
        """What is known of these keys. The files may have changed since: compare their sha256."""
        wanted = list(keys)
        found: dict[str, Published] = {}
        with self._lock, contextlib.suppress(sqlite3.Error):
            for start in range(0, len(wanted), _LOOKUP_BATCH):
                batch = wanted[start : start + _LOOKUP_BATCH]
                marks = ",".join("?" * len(batch))
                query = (
                    f"SELECT key, path, sha256, frames, sample_rate, seed, truncated FROM spoken WHERE key IN ({marks})"
                )
                for key, path, sha256, frames, sample_rate, seed, truncated in self._connection.execute(query, batch):
                    found[key] = Published(key, Path(path), sha256, frames, sample_rate, seed, bool(truncated))
        return found

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

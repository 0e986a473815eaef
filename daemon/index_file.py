"""An index of ours in SQLite: what it says may be looked up elsewhere or done without, so nobody waits for the disk.

Losing it, or deleting it, costs convenience alone; a damaged one is put aside, and where there is no place for one the
daemon remembers for as long as it runs.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon import files

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""What SQLite says of a file that is no index of ours; the last: its table is another one."""


class IndexFile:
    """Safe to call from any thread. ``schema``: one statement that makes the table where there is none."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._schema = schema
        self._lock = threading.Lock()
        self._connection = self._open_somehow()

    def _open_somehow(self) -> sqlite3.Connection:
        try:
            try:
                return self._open(self._path)
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
                if code not in _DAMAGED and not self._path.is_dir():
                    raise
            self._put_aside()
            return self._open(self._path)
        except (sqlite3.Error, OSError):
            # The disk is full, or no folder of ours.
            return self._open(":memory:")

    def _put_aside(self) -> None:
        for ending in ("", "-wal", "-shm"):  # what was being written to the damaged one must not get into the new one
            with contextlib.suppress(FileNotFoundError):
                files.rename(
                    self._path.with_name(self._path.name + ending),
                    self._path.with_name(f"{self._path.name}.damaged{ending}"),
                )

    def _open(self, path: Path | str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(self._schema)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def read(self, query: str, parameters: Sequence[object] = ()) -> list[Any]:
        """The rows; a failure is as if there were none."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            return self._connection.execute(query, parameters).fetchall()
        return []

    def write(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute it for each of the rows, for all or none; a failure is nobody's loss and is not reported."""
        with self._lock, contextlib.suppress(sqlite3.Error), self._transaction() as connection:
            connection.executemany(statement, rows)

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

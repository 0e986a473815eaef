"""One append-only journal a job: what has happened to it, as a restart must know it.

A line is ``CRC32 JSON``: eight hex digits over the JSON's bytes, a space, one object, a line feed. Reading stops at
the first line that is torn or does not fit its sum; everything before it stands. Records that must survive a power
cut are synced before ``append`` returns; the others only survive the death of the daemon, which is all they are for.

After any failed write the file's tail is unknown, so the journal makes itself a new file from the lines that read
well and the records it was asked to add, before it says that they are recorded (see files, on failed syncs).
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from daemon import files

Record = dict[str, Any]


class Journal:
    """The journal at ``path``, opened for appending; made when missing. May be appended to from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._recorded: int | None = None
        """Bytes of the file that are recorded, always whole lines; None until we have looked."""
        self._lock = threading.Lock()
        self._torn = False
        """Something may stand behind them: the next records go into a new file."""

    def append(self, records: Iterable[Record], *, durable: bool = True) -> None:
        """Add records, all or (for the reader) a prefix of them.

        Raises:
            OSError: they are not recorded; the same call may be tried again and then makes a new file.
            ValueError: a record holds a value that JSON can't hold (NaN, an infinity); nothing is recorded.
        """
        data = b"".join([_line(record) for record in records])
        with self._lock:
            self._append(data, durable)

    def _append(self, data: bytes, durable: bool) -> None:
        if self._recorded is None:
            self._recorded = sum(len(line) for line in _good_lines(self._path))
            self._torn = self._recorded != _size(self._path)
        if self._torn:
            self._rewrite(data)
            return
        try:
            if self._descriptor is None:
                self._descriptor = files.open_for_append(self._path)
            files.append(self._descriptor, data, durable=durable)
        except OSError:
            self.close()
            self._torn = True
            raise
        self._recorded += len(data)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rewrite(self, data: bytes) -> None:
        self.close()
        # What a failed write did bring to disk lies behind what is recorded, and is asked for again.
        kept = b"".join(_good_lines(self._path))[: self._recorded]
        files.write_atomically(self._path, kept + data)
        self._recorded, self._torn = len(kept) + len(data), False


def read_journal(path: Path) -> list[Record]:
    """The records that read well, in order; none when there is no file."""
    return [json.loads(line[9:]) for line in _good_lines(path)]


def _line(record: Record) -> bytes:
    body = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body), body)


MOST_BYTES = 1 << 30
"""A journal of 10,000 segments that are all tried a hundred times has a tenth of that."""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _good_lines(path: Path) -> Iterable[bytes]:
    try:
        content = files.read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or line[8:9] != b" ":
            return
        try:
            expected = int(line[:8], 16)
        except ValueError:
            return
        if zlib.crc32(line[9:-1]) != expected:
            return
        yield line

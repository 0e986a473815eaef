"""The copies of references that ``dubd submit`` puts into the inbox, and when they go.

A copy is in use while a job file in the inbox, or one that a daemon has claimed, or one in the outbox, whose segments
may be redone, names it. Every hour the daemon clears away those that nobody has used for an hour.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from daemon import files

FOLDER = ".references"

UNUSED_SECONDS = 3600.0
"""How old a copy must be before it is cleared away: far longer than any submission takes between making its copies and
dropping its job."""

LARGEST_JOB = 256 << 20
"""Bytes; what is larger is no job under any sensible ``limits.job_bytes``."""


def clear_copies(inbox: Path, outbox: Path, *, unused_seconds: float = UNUSED_SECONDS) -> None:
    """Remove the reference copies that no job names any more and nobody has touched for ``unused_seconds``."""
    try:
        # Whoever may write to the inbox could put a link there, and have us clear away what lies elsewhere.
        folder = files.open_folder(inbox / FOLDER, inbox)
    except OSError:
        return
    try:
        with os.scandir(folder) as entries:
            now = time.time()
            old = [e.name for e in entries if now - e.stat(follow_symlinks=False).st_mtime > unused_seconds]
        for file in _job_files(inbox, outbox):
            if not old:
                return
            content = _read(file)
            old = [name for name in old if os.fsencode(name.partition(".")[0]) not in content]
        for name in old:
            os.unlink(name, dir_fd=folder)
    except OSError:
        # Housekeeping: what can't be read or removed now is left to the next hour.
        return
    finally:
        os.close(folder)


def _job_files(inbox: Path, outbox: Path) -> Iterator[Path]:
    """Every job in the inbox, every one that a daemon has claimed, and every one whose results are there."""
    for path in (*inbox.iterdir(), *(inbox / ".claimed").rglob("*")):
        if path.name.casefold().endswith(".json"):
            yield path
    with os.scandir(outbox) as folders:
        for folder in folders:
            yield Path(folder.path, "job.json")


def _read(path: Path) -> bytes:
    """The file's content; nothing of what is no file, or larger than any job.

    Raises:
        OSError: it can't be read now.
    """
    try:
        descriptor = files.open_regular(path)
    except OSError as error:
        if error.errno in files.NOT_REGULAR | {errno.ENOENT, errno.ENOTDIR}:
            return b""
        raise
    with open(descriptor, "rb") as file:
        return file.read() if os.fstat(descriptor).st_size <= LARGEST_JOB else b""

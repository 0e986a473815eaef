"""The copies of references that ``dubd submit`` puts into the inbox, and when they go.

A copy is in use while a job file in the inbox, or one that a daemon has claimed, or one in the outbox, whose segments
may be redone, names it. Every hour the daemon clears away those that nobody has used for an hour.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = ".references"

UNUSED_SECONDS = 3600.0
"""How old a copy must be before it is cleared away: far longer than any submission takes between making its copies and
dropping its job."""


def clear_copies(inbox: Path, outbox: Path, *, unused_seconds: float = UNUSED_SECONDS) -> None:
    """Remove the reference copies that no job names any more and nobody has touched for ``unused_seconds``."""
    try:
        with os.scandir(inbox / FOLDER) as entries:
            now = time.time()
            old = {entry.name: entry for entry in entries if now - entry.stat().st_mtime > unused_seconds}
        for file in _job_files(inbox, outbox):
            if not old:
                return
            content = file.read_bytes()
            for name in [name for name in old if name.partition(".")[0].encode() in content]:
                del old[name]
        for entry in old.values():
            os.unlink(entry.path)
    except OSError:
        # Housekeeping: what can't be read or removed now is left to the next hour.
        return


def _job_files(inbox: Path, outbox: Path) -> Iterator[Path]:
    """Every job in the inbox, every one that a daemon has claimed, and every one whose results are there."""
    for path in (*inbox.iterdir(), *(inbox / ".claimed").rglob("*")):
        if path.is_file() and path.suffix != ".cancel":
            yield path
    with os.scandir(outbox) as folders:
        for folder in folders:
            job = Path(folder.path, "job.json")
            if job.is_file():
                yield job

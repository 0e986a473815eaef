"""In which order the files of the inbox were first seen: the number of the look that found each.

No clock of a share, and no time of ours after a restart, says whether a cancel came before a job of its id. So what was
seen is counted in looks, and what matters of it is written down while a cancel waits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from daemon import files

FILE_NAME = "seen.json"

Signature = tuple[int, int, int, int]
"""Device, inode, size, modification time in ns."""

STILL_GROWS = -1
"""In place of the size and time of a file that was not whole when it was written down."""


class Sights:
    """``state``: the folder in which they are kept."""

    def __init__(self, state: Path) -> None:
        self._file = state / FILE_NAME
        self.looks = 0
        """The number of the look at present, over all lives of the daemon that had something to keep."""
        self._kept: dict[str, list[int]] = {}
        self._read()

    def of(self, name: str, signature: Signature) -> int:
        """The look that found this file, as an earlier life has kept it; else the present one."""
        inode, size, mtime_ns, seen = self._kept.get(name, (0, 0, 0, 0))
        if inode == signature[1] and (size == STILL_GROWS or (size, mtime_ns) == signature[2:]):
            return seen
        return self.looks

    def keep(self, seen: Mapping[str, tuple[Signature, int]]) -> None:
        """Write down, for another life, these files and the looks that found them.

        Raises:
            OSError: it can't be written.
        """
        kept = {name: [*signature[1:], look] for name, (signature, look) in seen.items()}
        document = json.dumps({"looks": self.looks, "seen": kept})
        files.write_atomically(self._file, document.encode("ascii") + b"\n")

    def _read(self) -> None:
        """Nothing where the file is none of ours."""
        try:
            document = json.loads(self._file.read_bytes())
            looks, kept = int(document["looks"]), dict(document["seen"])
            self._kept = {str(name): [int(number) for number in row] for name, row in kept.items() if len(row) == 4}
            self.looks = looks
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            self._kept = {}

"""Which file systems the daemon's folders lie on, so that a share that is not mounted is waited for.

Where a share is unmounted, the folder below it shows: empty, writable, and seen by nobody once the share is back. What
was published into it would be lost. So it is remembered, over restarts too, at which mount point each folder was found;
when that one is missing, the share is away. A mount point that is new, further down the path, is a share that has come.
"""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

from daemon import files

FILE_NAME = "mounts.json"

_OCTAL = re.compile(r"\\([0-7]{3})")


MOST_BYTES = 1 << 20


class Mounts:
    """``state``: the folder in which it is remembered. May be used from several threads at a time."""

    def __init__(self, state: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._file = state / FILE_NAME
        self._mountinfo = mountinfo
        self._known = self._read()

    def check(self, folder: Path) -> None:
        """Look whether ``folder`` lies where it lay.

        Raises:
            OSError: ENOTCONN, the file system that it lay on is not mounted; or the state can't be written to.
        """
        path = os.path.abspath(folder)
        now = mount_point(path, self._mountinfo)
        known = self._known.get(path)
        if now is None or now == known:
            return
        if known is not None and len(now) < len(known):
            message = f"nothing is mounted at {known}, where its file system was; mount it, or remove {self._file}"
            raise OSError(errno.ENOTCONN, message, path)
        # Made anew and not changed, since another thread may be reading it.
        self._known = {**self._known, path: now}
        files.write_atomically(self._file, json.dumps(self._known, indent=1).encode() + b"\n")

    def _read(self) -> dict[str, str]:
        """What is known; nothing where the file is none of ours."""
        try:
            known = json.loads(files.read_regular(self._file, MOST_BYTES))
            return {path: point for path, point in known.items() if isinstance(point, str)}
        except (OSError, ValueError, AttributeError):
            return {}


def mount_point(path: str, mountinfo: Path) -> str | None:
    """The mount point that ``path`` lies below; None where the kernel does not say."""
    try:
        lines = mountinfo.read_bytes().splitlines()
    except OSError:
        return None
    longest = None
    real = os.path.realpath(path)
    for line in lines:
        # proc(5): the fifth field is the mount point, with space, tab, line feed and backslash in octal.
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), os.fsdecode(line.split(b" ")[4]))
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) > len(longest or ""):
            longest = point
    return longest

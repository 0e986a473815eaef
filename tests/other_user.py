"""Runs a program as a user without any rights, which only root can."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534

_OPENED = """
kept=$(mktemp -d) && mount --bind "$1" "$kept" && mount -t tmpfs -o mode=755 tmpfs "$2" && mkdir -p "$1" &&
mount --move "$kept" "$1" && rmdir "$kept" && shift 2 && exec "$@"
"""
"""Where our Python lies in a folder that others may not enter, that folder is another one to the program."""


def possible() -> bool:
    """Whether we are root, and have the tools for it."""
    return os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "unshare", "mount")))


def as_nobody(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` as NOBODY; the process stays the one that was started."""
    line = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    prefix = Path(sys.base_prefix).resolve()
    closed = [folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001]
    if not closed:
        return line
    return ["unshare", "--mount", "sh", "-c", _OPENED, "sh", str(prefix), str(closed[0]), *line]

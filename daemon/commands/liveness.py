"""Is there a live daemon behind these folders?

Two signs, the stronger first. The daemon holds a lock on state/lock as long as it lives, whatever it is doing; but a
client that reaches the daemon over a share sees no state. There the ``seq`` of status.json tells, which moves at the
latest every STATUS_SECONDS.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from daemon import files
from daemon.commands.invocation import CommandFailed, ExitCode
from daemon.commands.reading import Document, identity, number, read_document, word

if TYPE_CHECKING:
    from daemon.config import Settings

STATUS_SECONDS = 5.0
"""An idle daemon replaces status.json at least so often; while something moves, more often."""

STALE_SECONDS = 300.0
"""A status.json whose file time is older than this by our clock is not waited for: no two clocks differ by so much."""

MOST_OF_A_NAME = 4096
"""Bytes of a daemon's name."""

Lock = Literal["held", "free", "unknown"]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of the daemon. ``status`` is its status.json, of a daemon that has gone too; ``reason`` says in
    words why it counts as live or not."""

    live: bool
    reason: str
    status: Document | None


def look(settings: Settings, *, patience_s: float = STATUS_SECONDS + 2.0) -> Sight:
    """Look for the daemon. Only a client without access to state/ ever waits, up to ``patience_s``, for seq to move."""
    path = settings.paths.status
    status = read_document(path)
    lock = probe_lock(settings.paths.state / "lock")
    if lock == "held":
        return Sight(True, f"it holds {settings.paths.state / 'lock'}", status)
    if status is None:
        return Sight(False, f"there is no {path}", None)
    if word(status, "state") == "stopped":
        return Sight(False, f"{path} says that it has stopped", status)
    if lock == "free" and word(status, "host_id") == _host_id(settings.paths.state):
        return Sight(False, f"it ended without a word: nobody holds {settings.paths.state / 'lock'}", status)
    try:
        age = abs(time.time() - path.stat().st_mtime)
    except OSError:
        return Sight(False, f"{path} has gone", status)
    if age > STALE_SECONDS:
        return Sight(False, f"{path} has not changed for {age / 60:.0f} minutes", status)
    first = (number(status, "seq"), identity(path))
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(0.1)
        status = read_document(path) or status
        if (number(status, "seq"), identity(path)) != first:
            return Sight(word(status, "state") != "stopped", f"{path} moves", status)
    return Sight(False, f"{path} has not moved for {patience_s:.0f} seconds", status)


def require(settings: Settings, *, purpose: str = "") -> Sight:
    """The live daemon.

    Raises:
        CommandFailed: there is none, or its folder is closed to who asks; says how to start one, or to be let in.
            ``purpose`` adds what was not done for that reason.
    """
    if (folder := _closed_to_us(settings.paths.status)) is not None:
        raise CommandFailed(_closed_message(folder, purpose), ExitCode.NO_DAEMON)
    sight = look(settings)
    if sight.live:
        return sight
    raise CommandFailed(no_daemon_message(settings, sight.reason, purpose), ExitCode.NO_DAEMON)


def _closed_to_us(path: Path) -> Path | None:
    """The folder on the way to ``path`` that this user may not look into, if there is one."""
    try:
        path.stat()
    except PermissionError:
        return next(folder for folder in path.parents if not os.access(folder, os.X_OK) and os.path.lexists(folder))
    except OSError:
        return None
    return None


def _closed_message(folder: Path, purpose: str) -> str:
    gid = folder.stat().st_gid
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    lines = [
        f"you may not look into {folder}, which is open to the group {group}: whether a daemon runs can't be told.",
        *([purpose] if purpose else []),
        f"To be let in: 'sudo usermod -aG {group} YOUR_NAME', then log in again.",
    ]
    return "\n".join(lines)


def no_daemon_message(settings: Settings, reason: str, purpose: str = "") -> str:
    lines = [
        f"no daemon is running for {settings.paths.root} ({reason}).",
        *([purpose] if purpose else []),
        "Start one with 'dubd run' in another terminal, or 'systemctl start dubd' where it is installed as a service.",
        "If it runs with other folders, name its configuration with --config FILE or --set paths.root=FOLDER.",
    ]
    return "\n".join(lines)


def probe_lock(path: Path) -> Lock:
    """Whether a daemon holds the lock file. Asks for a shared lock and gives it back at once."""
    try:
        descriptor = files.open_regular(path)
    except FileNotFoundError:
        return "free"
    except OSError:
        return "unknown"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return "held" if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else "unknown"
    else:
        return "free"
    finally:
        os.close(descriptor)


def _host_id(state: Path) -> str | None:
    try:
        return files.read_regular(state / "host_id", MOST_OF_A_NAME).decode().strip()
    except (OSError, ValueError):
        return None


class Pulse:
    """Watches a daemon over time without ever waiting: for commands that follow it."""

    GONE_SECONDS = 3 * STATUS_SECONDS
    """A client without access to state/ takes the daemon for gone when seq has not moved for so long."""

    def __init__(self, settings: Settings) -> None:
        self._status = settings.paths.status
        self._state = settings.paths.state
        self._seen: object = None
        self._moved_at = time.monotonic()
        self._last_live = self._moved_at

    def silent_s(self) -> float:
        """Seconds since the daemon was last seen alive; 0 while it is."""
        now = time.monotonic()
        mark = identity(self._status)
        if mark is not None and mark != self._seen:
            self._seen, self._moved_at = mark, now
        lock = probe_lock(self._state / "lock")
        if lock == "held":
            self._last_live = now
        elif lock == "free" and word(read_document(self._status), "host_id") == _host_id(self._state):
            # It is the daemon of this very state folder, and it has let go of it.
            pass
        elif now - self._moved_at < self.GONE_SECONDS:
            self._last_live = now
        return now - self._last_live

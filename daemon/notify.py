"""Tells the service manager how the daemon is: systemd's notification protocol, see sd_notify(3).

One datagram of ``NAME=VALUE`` lines to the socket that $NOTIFY_SOCKET names. Without that variable every call does
nothing, so that the daemon runs the same under systemd and in a terminal. The small packages for it on the index add
little to the send itself, and are years old; the whole protocol as the daemon speaks it is below.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)

_SEND_TIMEOUT_S = 1.0
"""The manager reads at once; a socket that stays full that long must not hold up the daemon."""


class Notifier:
    """Where to send what the manager should know. Nothing here raises: the daemon works without being heard."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        name = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of Linux's abstract sockets, which an environment can't hold.
        self._address = "\0" + name[1:] if name.startswith("@") else name

    @property
    def listened_to(self) -> bool:
        """Whether there is a manager to tell."""
        return self._address[:1] in ("/", "\0")

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over: jobs are being taken."""
        self._send("READY=1", *_status_line(status))

    def reloading(self) -> None:
        """The configuration is being read again; ``ready`` follows. The time stamp lets the manager tell this reload
        from an earlier one (Type=notify-reload)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, status: str) -> None:
        """One line for people, shown by ``systemctl status``."""
        self._send(*_status_line(status))

    def watchdog(self) -> None:
        """The daemon lives; to be said every ``watchdog_interval()``."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str = "", within_s: float = 0.0) -> None:
        """The daemon has begun to stop, and asks for so many seconds, should the manager's own patience be shorter."""
        self._send("STOPPING=1", *_more_time(within_s), *_status_line(status))

    def starting(self, within_s: float) -> None:
        """Start-up goes on, and asks for so many seconds from now until it is ready or asks again."""
        self._send(*_more_time(within_s))

    def _send(self, *lines: str) -> None:
        if not self.listened_to or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            log.debug("the service manager does not listen", error=str(error))


def watchdog_interval(environ: Mapping[str, str] | None = None, pid: int | None = None) -> float | None:
    """Seconds between two calls of ``Notifier.watchdog``: half the manager's patience, as sd_watchdog_enabled(3)
    advises. None when no watchdog waits for this process.

    Args:
        environ: where WATCHDOG_USEC and WATCHDOG_PID are looked up; this process's environment unless given.
        pid: the process that would call; this one unless given.
    """
    environ = os.environ if environ is None else environ
    patience = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if not _is_number(patience) or int(patience) == 0:
        return None
    if meant and meant != str(os.getpid() if pid is None else pid):
        return None
    return int(patience) / 2 / 1_000_000


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _more_time(seconds: float) -> tuple[str, ...]:
    """The manager only ever lengthens its own patience by this."""
    return (f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}",) if seconds else ()


def _status_line(status: str) -> tuple[str, ...]:
    """On one line, whatever is in it: a line of its own would be another message to the manager."""
    return (f"STATUS={' '.join(status.split())}",) if status else ()

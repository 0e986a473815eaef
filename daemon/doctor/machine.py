"""The machine: limits of the kernel that a daemon meets, its clock, and whether a daemon runs already."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from daemon.config import Settings
from daemon.doctor.finding import Finding

FILES_NEEDED = 256
"""Open files: six for each worker, a few for each job and the watcher; more are wanted for many workers."""

EARLIEST = 1_735_689_600.0
"""The first second of 2025: this version did not exist before, so a clock that says so is wrong."""


def check(settings: Settings) -> list[Finding]:
    return [
        *check_running(settings.paths.state),
        *check_open_files(),
        *(check_events() if settings.inbox.watch else ()),
        *check_clock(time.time()),
    ]


def check_running(state: Path) -> Iterator[Finding]:
    """Whether a daemon holds this state already: then 'dubd run' would refuse to start."""
    from daemon.commands.liveness import probe_lock

    lock = state / "lock"
    held = probe_lock(lock)
    if held == "held":
        try:
            pid = lock.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            pid = ""
        yield Finding.ok("daemon", f"running (pid {pid or 'unknown'})")
    elif held == "unknown":
        yield Finding.fail(
            "daemon",
            f"{lock} can't be opened by this user",
            f"Run as the user who owns {state}, or give this daemon a paths.state of its own.",
        )
    else:
        yield Finding.ok("daemon", "not running; 'dubd run' would start one")


def check_open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wide = "without limit" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < FILES_NEEDED:
        allowed = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        mend = f"ulimit -n {allowed}, or LimitNOFILE= in the unit file."
        yield Finding.warn("open files", f"only {soft} files may be open at once", mend)
    else:
        yield Finding.ok("open files", wide)


def check_events() -> Iterator[Finding]:
    """Whether one more inotify instance can be had. Without it the inbox is still scanned."""
    name = "file events"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor >= 0:
        os.close(descriptor)
        yield Finding.ok(name, "inotify works")
        return
    number = ctypes.get_errno()
    why = "this user has used up its inotify instances" if number == errno.EMFILE else os.strerror(number)
    yield Finding.warn(
        name,
        f"the inbox can't be watched: {why}; new jobs are seen at the next scan only",
        "sysctl fs.inotify.max_user_instances=1024, or set inbox.watch = false.",
    )


def check_clock(now: float) -> Iterator[Finding]:
    if now < EARLIEST:
        yield Finding.warn("clock", f"it says {time.strftime('%Y-%m-%d', time.gmtime(now))}", "Set it (timedatectl).")
    else:
        yield Finding.ok("clock", time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))

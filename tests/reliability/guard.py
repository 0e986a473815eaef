"""Attacks run in a process of their own, and nothing of them outlives it, however it ends.

Whatever an attack starts carries the run's mark in its environment, and whatever it makes lies in the run's two folders
(one of them in memory). At the end, on a signal too, marked processes are killed and the folders removed. What a run
whose processes were all killed at once has left is cleared away by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.reliability.table import Row

MARK = "DUBD_RELIABILITY_RUN"
PREFIX = "dubd-reliability-"
PR_SET_PDEATHSIG = 1
SWEEP_S = 20.0
INTERRUPTED = 130


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Be sent this signal when the thread that forked us ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(INTERRUPTED)


def memory_folder() -> Path | None:
    """Where files of a run can lie in memory, cleared away with it; None where there is no such place."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return None
    name = os.environ.get(MARK)
    folder = memory if name is None else memory / name
    folder.mkdir(exist_ok=True)
    return folder


def marked(name: str) -> list[int]:
    """The processes of this run, but for this one; zombies are none."""
    wanted = f"{MARK}={name}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def kill_marked(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process of this run and to no other, should its number have become somebody else's."""
    try:
        holder = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        wanted = f"{MARK}={os.environ[MARK]}".encode()
        if wanted not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        signal.pidfd_send_signal(holder, number)
    except OSError:
        return False
    finally:
        os.close(holder)
    return True


def strays() -> list[str]:
    """What runs of this run beside those who run the attacks: its command lines."""
    found = []
    for pid in marked(os.environ[MARK]):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if "multiprocessing.resource_tracker" not in command:
                found.append(f"{pid}: {command}")
    return found


def sweep(name: str) -> None:
    """End what is left of a run, and remove its folders."""
    deadline = time.monotonic() + SWEEP_S
    while (left := marked(name)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for folder in _folders(name):
        _unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


def run_guarded(arguments: Sequence[str]) -> int:
    """``python -m tests.reliability --inside ARGUMENTS`` as a run; its exit status."""
    _sweep_dead_runs()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability", "--inside", *arguments],
            env={**os.environ, MARK: folder.name, "TMPDIR": str(folder)},
            start_new_session=True,
        )
        return process.wait()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        sweep(folder.name)
        os.close(lock)


def run_attacks_in_process(arguments: Sequence[str]) -> list[Row]:
    """Attacks in a process of their own, beside others; their rows. Called from the process that runs the attacks; may
    be called from a thread."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "tests.reliability", "--inside", "--rows", str(writer), *arguments]
    process = subprocess.Popen(command, pass_fds=[writer])
    os.close(writer)
    with open(reader, encoding="utf-8") as told:
        rows = [Row.from_json(line) for line in told]
    if status := process.wait():
        rows.append(Row(f"the attacks {' '.join(arguments)} ended with {status}", 1, 0))
    return rows


def begin_inside() -> None:
    """In the process that runs the attacks: when the one that waits for it dies, end what was started, too."""
    signal.signal(signal.SIGTERM, _abandon)
    die_with_parent(signal.SIGTERM)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def _abandon(_number: int, _frame: FrameType | None) -> NoReturn:
    sweep(os.environ[MARK])
    os._exit(INTERRUPTED)


def _folders(name: str) -> list[Path]:
    return [Path(tempfile.gettempdir()).parent / name, Path(tempfile.gettempdir(), name), Path("/dev/shm", name)]


def _unmount_below(folder: Path) -> None:
    """Only what this process sees: an attack that mounts does so in a name space that ends with it."""
    with contextlib.suppress(OSError):
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted(mounts, reverse=True):
            if mount.startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", mount], check=False)


def _sweep_dead_runs() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sweep(folder.name)
            finally:
                os.close(lock)

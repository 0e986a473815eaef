"""A disk that fails where it is told, in place of ``daemon.files.disk``, in a daemon's own process.

Each change has a name, its *point*: the operation, the path with all that differs between runs taken out, and how many
of that name came before, as ``fsync state/jobs/TOKEN/segments #2``. A fault is armed at a point, so it strikes the same
change in every run, however the daemon's threads take turns. The points that a run meets are reported, and so a matrix
finds out by itself what there is to break.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from daemon import files
from tests.reliability.power import Ledger

T = TypeVar("T")

Kind = Literal["kill", "torn", "EIO", "ENOSPC", "power", "half_power"]
KINDS: tuple[Kind, ...] = ("kill", "torn", "EIO", "ENOSPC", "power", "half_power")
"""kill: the process ends before the change. torn: in the middle of one that has a middle. EIO, ENOSPC: it fails, a
write after half of it. power: the process ends before it, and all that was not synced is lost. half_power: of what was
not synced the names are kept and the contents lost, as a journal of metadata alone leaves it."""

TEARABLE = frozenset({"write", "remove_all"})
FILLING = frozenset({"create", "write", "fsync", "fdatasync", "rename", "rename_new", "link", "mkdir"})
"""What a full disk may refuse."""

KILLED = 86
"""The exit status of a daemon that was ended at its point."""

_NAMES = (
    (re.compile(r"\d{20}-[0-9a-f]{8}"), "TOKEN"),
    (re.compile(r"(?<=\.claimed/)[0-9a-f]{16}"), "HOST"),
    (re.compile(r"\.[0-9a-f]+-[0-9a-f]{12}\.part"), ".PART"),
    (re.compile(r"(?<=/segments/)\.[0-9a-f]{8}-\d+(?=\.)"), ".TICKET"),
    (re.compile(r"[0-9a-f]{64}"), "SHA256"),
    (re.compile(r" \(deleted\)$"), ""),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """``then``: a second one, which waits for its own point once this one has struck."""

    kind: Kind
    point: str
    then: Fault | None = None


def applies(kind: Kind, point: str) -> bool:
    """Whether the fault makes a difference at such a point."""
    operation = point.split(" ", 1)[0]
    if kind == "torn":
        return operation in TEARABLE
    if kind == "ENOSPC":
        return operation in FILLING
    if kind == "EIO":
        return operation != "remove_all"
    return True


class FaultyDisk(files.Disk):
    """``roots``: name of each folder that is watched over, and where it is. ``report``: a file that gets a line for
    each point met, and ``! POINT`` for the one that struck. ``ledger``: keeps what a power cut would leave."""

    def __init__(
        self, roots: dict[str, Path], report: Path, fault: Fault | None = None, ledger: Ledger | None = None
    ) -> None:
        self._roots = roots
        self._report = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._fault = fault
        self._ledger = ledger
        self._met: Counter[str] = Counter()
        # One change at a time, so that the ledger's order is the disk's.
        self._lock = threading.RLock()

    # --- the changes ----------------------------------------------------------------------------------------

    def create(self, path: Path, flags: int, mode: int) -> int:
        return self._do("create", path, lambda: super(FaultyDisk, self).create(path, flags, mode))

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        def half() -> None:
            os.write(descriptor, data[: len(data) // 2])

        return self._do("write", _path_of(descriptor), lambda: os.write(descriptor, data), half)

    def fsync(self, descriptor: int) -> None:
        self._sync("fsync", descriptor, lambda: os.fsync(descriptor))

    def fdatasync(self, descriptor: int) -> None:
        self._sync("fdatasync", descriptor, lambda: os.fdatasync(descriptor))

    def _sync(self, name: str, descriptor: int, sync: Callable[[], None]) -> None:
        with self._lock:
            try:
                self._do(name, _path_of(descriptor), sync)
            except OSError:
                if self._ledger is not None:
                    self._ledger.sync_failed(descriptor)
                raise
            if self._ledger is not None:
                self._ledger.synced(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._rename("rename", source, target, super().rename)

    def rename_new(self, source: Path, target: Path) -> None:
        self._rename("rename_new", source, target, super().rename_new)

    def _rename(self, name: str, source: Path, target: Path, rename: Callable[[Path, Path], None]) -> None:
        source, target = named(source), named(target)
        with self._lock:
            before = None if self._ledger is None else self._ledger.before_rename(source, target)
            self._do(name, target, lambda: rename(source, target))
            if self._ledger is not None and before is not None:
                self._ledger.renamed(before)

    def link(self, source: Path, target: Path) -> None:
        self._do("link", target, lambda: super(FaultyDisk, self).link(source, target))

    def unlink(self, path: Path) -> None:
        self._do("unlink", path, lambda: os.unlink(path))

    def unlink_in(self, folder: int, name: str) -> None:
        self._do("unlink", _path_of(folder) / name, lambda: os.unlink(name, dir_fd=folder))

    def mkdir(self, folder: Path, mode: int) -> None:
        self._do("mkdir", folder, lambda: os.mkdir(folder, mode))

    def rmdir(self, folder: Path) -> None:
        self._do("rmdir", folder, lambda: os.rmdir(folder))

    def remove_all(self, folder: Path, parent: int | None = None) -> None:
        def half() -> None:
            for entry in sorted(os.listdir(folder))[:2]:
                with contextlib.suppress(OSError):
                    os.unlink(folder / entry)
                shutil.rmtree(folder / entry, ignore_errors=True)

        self._do("remove_all", folder, lambda: super(FaultyDisk, self).remove_all(folder, parent), half)

    # --- the faults -----------------------------------------------------------------------------------------

    def _do(self, operation: str, path: Path, change: Callable[[], T], half: Callable[[], None] | None = None) -> T:
        with self._lock:
            name = f"{operation} {general(path, self._roots)}"
            self._met[name] += 1
            point = f"{name} #{self._met[name]}"
            fault = self._fault
            if fault is None or fault.point != point:
                self._say(point)
                return change()
            self._say(f"! {point}")
            self._fault = fault.then
            if fault.kind in ("kill", "power", "half_power"):
                os._exit(KILLED)
            if half is not None:
                half()
            if fault.kind == "torn":
                os._exit(KILLED)
            number = errno.EIO if fault.kind == "EIO" else errno.ENOSPC
            raise OSError(number, os.strerror(number), str(path))

    def _say(self, line: str) -> None:
        os.write(self._report, line.encode() + b"\n")


def general(path: Path, roots: dict[str, Path]) -> str:
    """The path without what differs between runs. ``roots`` by their names; none lies in another."""
    text = str(named(path))
    for name, root in roots.items():
        if text == str(root) or text.startswith(f"{root}/"):
            text = name + text[len(str(root)) :]
            break
    for pattern, word in _NAMES:
        text = pattern.sub(word, text)
    return text


def named(path: Path) -> Path:
    """The path by names, where it goes by an open folder."""
    if path.parts[1:4] != ("proc", "self", "fd"):
        return path
    return Path(os.readlink(Path(*path.parts[:5])), *path.parts[5:])


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


class SlowDisk(files.Disk):
    """A disk that takes so many seconds for each sync; as many as are asked for at a time go on side by side."""

    def __init__(self, sync_s: float) -> None:
        self._sync_s = sync_s

    def fsync(self, descriptor: int) -> None:
        time.sleep(self._sync_s)
        super().fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        time.sleep(self._sync_s)
        super().fdatasync(descriptor)

"""Writes files that appear whole and last: many of them for the price of one sync.

A file is written without a name, synced, and only then given its own; where a file system has no files without names,
it has a temporary one. On ext4 the sync of one small file costs four times as much as making it, and most of a
millisecond's wait. A sync of the whole file system costs that once for all files that wait for it, as a database
commits many transactions at once (group commit). It also writes what others have there and have not synced, so it is
left alone for a while where it has taken long.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import time
from collections.abc import Callable, Sequence

FILE_MODE = 0o664

MOST_S = 0.25
"""A sync of a file system that took longer is somebody else's data."""

MOST_UNSYNCED = 256 << 20
"""Bytes of everybody's that are not on the disks yet, beyond which it is not tried: nobody knows how long it takes."""

ALONE = 64
"""How many batches are synced file by file after that."""

SYNCED_TOGETHER = frozenset({b"ext2", b"ext3", b"ext4", b"xfs", b"f2fs", b"tmpfs"})
"""File systems of which a sync is known to write every file to the disk, and to be no heavier than that. A share's may
not reach its server's disk, and what FUSE makes of one is each file system's own affair."""

REPORTS_ERRORS = (5, 8)
"""The version of Linux since which a sync of a file system tells that a file could not be written (syncfs(2))."""


class NewFile:
    """A file that is to appear under ``path``; until then it has no name, or where that can't be a temporary one beside
    it.

    Raises:
        OSError: it can't be written; nothing is left of it.
    """

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self._temporary: str | None = None
        descriptor = _open_nameless(path)
        if descriptor is None:
            self._temporary = _beside(path)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._temporary, flags, FILE_MODE)
        self.descriptor = descriptor
        try:
            self.device = os.fstat(descriptor).st_dev
            view = memoryview(data)
            while view:
                view = view[os.write(self.descriptor, view) :]
        except BaseException:
            self.drop()
            raise

    def appear(self) -> None:
        """Take its own name, now that it is synced.

        Raises:
            OSError: it could not; what was there is as it was.
        """
        try:
            if self._temporary is None:
                try:
                    _link(self.descriptor, self.path)
                except FileExistsError:  # only a rename replaces what is there
                    temporary = _beside(self.path)
                    _link(self.descriptor, temporary)
                    self._temporary = temporary
            if self._temporary is not None:
                os.rename(self._temporary, self.path)
        except BaseException:
            self.drop()
            raise
        os.close(self.descriptor)

    def drop(self) -> None:
        """As far as a disk in trouble lets that be done: what is left is cleared away by a later run."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)


NO_NAMES = frozenset(
    {errno.ENOENT, errno.EPERM, errno.EACCES, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ELOOP}
)
"""Errors by which a system says that it does not give such files a name: there is no /proc, say. Others pass."""

_can_be_named: dict[int, bool] = {}
"""By device: whether a file that was made without a name can be given one."""


def _open_nameless(path: str) -> int | None:
    """A file without a name, to be given one in the folder of ``path``; None where there are none, or where they stay
    without: on file systems without links, or without /proc."""
    folder, flags = os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags, FILE_MODE)
        known = _can_be_named.get(device := os.fstat(descriptor).st_dev)
        if known:
            return descriptor
        if known is None and (known := _is_named(descriptor, _beside(path))) is not None:
            _can_be_named[device] = known
        os.close(descriptor)  # what has had a name and lost it can't be given another
        return os.open(folder, flags, FILE_MODE) if known else None
    except OSError:  # what is wrong with the folder itself is told by who opens a file with a name there
        return None


def _is_named(descriptor: int, path: str) -> bool | None:
    """Whether it can be given a name; None where that can't be told now, as on a disk that is full."""
    try:
        _link(descriptor, path)
        os.unlink(path)
    except OSError as error:
        return False if error.errno in NO_NAMES else None
    return True


def _link(descriptor: int, path: str) -> None:
    """Give a file without a name this one, in the way of open(2).

    Raises:
        OSError: it could not be done.
    """
    # Python follows the link of /proc only if it is given a descriptor too.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


def _beside(path: str) -> str:
    """A temporary name in the same folder, which tells whose it is."""
    return os.path.join(os.path.dirname(path), f".{os.getpid():x}-{os.urandom(6).hex()}.part")


class Disk:
    """Keeps new files, on whatever file systems they are. For one thread."""

    def __init__(self) -> None:
        self._syncfs = _syncfs()
        self._together: dict[int, bool] = {}
        self._alone = 0

    def keep(self, files: Sequence[NewFile]) -> list[OSError | None]:
        """Sync them and give each its name; what went wrong with each. That the names last too is to be seen to by
        syncing their folders, each once for many."""
        return [error or give_name(file) for file, error in zip(files, self.sync(files), strict=True)]

    def sync(self, files: Sequence[NewFile]) -> list[OSError | None]:
        """What went wrong with each; nothing is left of such a file."""
        if self._sync_together(files):
            return [None] * len(files)
        for file in files:
            # The kernel begins to write all of them, so that the sync of one commits the others as well.
            with contextlib.suppress(OSError):  # no more than a hint
                os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return [_sync(file) for file in files]

    def _sync_together(self, files: Sequence[NewFile]) -> bool:
        """Whether all are synced. Where that failed, each file's own sync still tells whether it is that one's fault:
        the kernel notes an error for each file, and tells it once to each who has it open."""
        if self._syncfs is None or len(files) < 2:
            return False
        if self._alone:
            self._alone -= 1
            return False
        # Of each file system the descriptor that was opened first: a sync tells of the errors since then.
        devices = {file.device: file.descriptor for file in reversed(files)}
        if not all(map(self._may_sync, devices)) or _unsynced() > MOST_UNSYNCED:
            return False
        begun = time.monotonic()
        done = not any(list(map(self._syncfs, devices.values())))
        if time.monotonic() - begun > MOST_S:
            self._alone = ALONE
        return done

    def _may_sync(self, device: int) -> bool:
        if device not in self._together:
            self._together[device] = _kind_of(device) in SYNCED_TOGETHER
        return self._together[device]


def _sync(file: NewFile) -> OSError | None:
    try:
        os.fsync(file.descriptor)
    except OSError as error:
        file.drop()
        return error
    except BaseException:
        file.drop()
        raise
    return None


def give_name(file: NewFile) -> OSError | None:
    """Give a file its name, now that it is synced; what went wrong."""
    try:
        file.appear()
    except OSError as error:
        return error
    return None


def _unsynced() -> int:
    """Bytes that the kernel has yet to write, of all file systems (proc(5), meminfo)."""
    kilobytes = 0
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith((b"Dirty:", b"Writeback:")):
                kilobytes += int(line.split()[1])
    return kilobytes << 10


def _syncfs() -> Callable[[int], int] | None:
    """The C library's function; None where it is not there, or does not tell of errors."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < REPORTS_ERRORS:
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "syncfs", None)
    return function


def _kind_of(device: int) -> bytes:
    """The kind of file system that a device number stands for, b"" where that can't be told (proc(5), mountinfo)."""
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                before, _, after = line.partition(b" - ")
                if before.split()[2] == number:
                    return after.split()[0]
    except (OSError, IndexError):
        pass
    return b""

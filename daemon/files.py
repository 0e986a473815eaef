"""Every durable operation of the daemon, and nothing else.

"Durable" means: after the call has returned, neither a killed process nor a power cut undoes it; before it has
returned, either nothing of it is seen or all of it. The rules behind these few functions:

- A file appears under its name whole: it is written under a hidden temporary name in the same folder, synced,
  renamed, and the folder is synced.
- A failed fsync is never tried again on the same file: the kernel may have dropped the pages it could not write and
  then report success. Whoever sees one makes a new file from what is in memory.
- A folder fsync answered EINVAL or ENOTSUP counts as done: network file systems that do not know it order their
  renames themselves.
- rename() replaces silently. Where a name may belong to somebody else, ``rename_new`` is used.

Nothing here logs or retries; an OSError goes to the caller, who knows whose work it is. Every system call that changes
something goes through ``disk``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

FILE_MODE = 0o664
"""Group-writable, less the umask: editors in the daemon's group own the results as much as it does."""

FOLDER_MODE = 0o775

PRIVATE_MODE = 0o700
"""Of the state folder, which keeps people's voices: nobody else gets at what is in it, whatever its own mode."""

COPY_BYTES = 1 << 20

SYNCS_AT_ONCE = 16
"""A file system that keeps a journal joins syncs that are asked for together: so many cost hardly more than one."""

_OUR_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]+-[0-9a-f]{12}\.part")

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_LINKS = _NOT_SUPPORTED | {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES}
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """The system calls that change what is on disk, one method each and nothing around them: whoever replaces ``disk``
    sees all that the daemon does to its files, in order, and may fail any of it."""

    def create(self, path: Path, flags: int, mode: int) -> int:
        return os.open(path, flags, mode)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        """Raises OSError: FileExistsError when ``target`` exists, one of _NOT_SUPPORTED when it can't be said."""
        result = _libc.renameat2(
            _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_NOREPLACE)
        )
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(source), None, str(target))

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, folder: Path, mode: int) -> None:
        os.mkdir(folder, mode)

    def chmod(self, folder: Path, mode: int) -> None:
        os.chmod(folder, mode)

    def rmdir(self, folder: Path) -> None:
        os.rmdir(folder)

    def unlink_in(self, folder: int, name: str) -> None:
        os.unlink(name, dir_fd=folder)

    def rmdir_in(self, folder: int, name: str) -> None:
        os.rmdir(name, dir_fd=folder)

    def remove_all(self, folder: Path, parent: int | None = None) -> None:
        """The folder and what is in it, as far as that goes; many calls, whose order is nobody's business. ``parent``:
        the open folder that holds it, where its path may lead elsewhere by now."""
        shutil.rmtree(folder if parent is None else folder.name, ignore_errors=True, dir_fd=parent)


disk = Disk()
"""Every change passes here."""

NO_THREAD = "can't start new thread"
"""What Python says with its RuntimeError when the kernel gives it no memory, or no task, for one."""


SHORTAGES = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE})
"""Errors of a machine or a process that lacks something at the moment: they say nothing of the file."""


@contextlib.contextmanager
def shortage_as_os_error() -> Iterator[None]:
    """Tell of the machine's want of memory by OSError: whoever waits for a disk can wait for that too."""
    try:
        yield
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        raise OSError(errno.EAGAIN, NO_THREAD) from error


_syncers = ThreadPoolExecutor(SYNCS_AT_ONCE, thread_name_prefix="sync")


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path`` that no scan of ours takes for a finished file. Short, since ``path``'s own name
    may already be as long as a name can be."""
    return path.parent / f".{os.getpid():x}-{os.urandom(6).hex()}.part"


def write_atomically(
    path: Path,
    data: bytes,
    *,
    durable: bool = True,
    mode: int = FILE_MODE,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Put ``data`` under ``path``, replacing what was there. Not ``durable``: still whole or not at all for every
    reader, but a power cut may bring back the old content (for files that are rewritten every second). ``check`` is
    called before the name changes, and what it raises leaves all as it was."""
    if _given_up:
        _remove_given_up(path.parent)
    temporary = temporary_name(path)
    try:
        _write_file(temporary, data, durable=durable, mode=mode)
        check()
        disk.rename(temporary, path)
    except BaseException:
        _give_up(temporary)
        raise
    if durable:
        fsync_folder(path.parent)


def write_unsynced(path: Path, data: bytes) -> None:
    """Write a new file where nobody looks yet; the caller syncs it, and its folder.

    Raises:
        FileExistsError: something has that name.
    """
    _write_file(path, data, durable=False, mode=FILE_MODE)


def write_new(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, durably, never replacing anything.

    Raises:
        FileExistsError: ``path`` exists.
    """
    temporary = temporary_name(path)
    try:
        _write_file(temporary, data, durable=True, mode=FILE_MODE)
        rename_new(temporary, path)
    except BaseException:
        _give_up(temporary)
        raise
    fsync_folder(path.parent)


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[int]:
    """A descriptor to ``append`` to, for files that are too long to be held: when the block ends well, what it has
    written is under ``path``, durably, replacing what was there; else nothing is changed."""
    temporary = temporary_name(path)
    descriptor = create(temporary)
    try:
        try:
            yield descriptor
            disk.fsync(descriptor)
        finally:
            os.close(descriptor)
        disk.rename(temporary, path)
    except BaseException:
        _give_up(temporary)
        raise
    fsync_folder(path.parent)


NOT_REGULAR = frozenset({errno.EINVAL, errno.ELOOP, errno.ENXIO})
"""What says that a name is no regular file: a folder, a pipe or a device; a link; a socket, or a device that nobody
serves."""


def open_regular(path: Path | str, within: int | None = None) -> int:
    """A descriptor to read a file by that somebody else may have put there: no link is followed, nothing is waited for.
    ``within``: the open folder that a relative path starts in.

    Raises:
        OSError: it is missing or can't be opened, or (one of NOT_REGULAR) is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    except OSError as error:
        if error.errno in NOT_REGULAR:
            raise OSError(error.errno, "not a regular file", str(path)) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path | str, most: int, within: int | None = None) -> bytes:
    """The content of a small file that somebody else may have put there, opened by ``open_regular``.

    Raises:
        OSError: as ``open_regular``; or (EFBIG) it holds more than ``most`` bytes.
    """
    with open(open_regular(path, within), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def sha256_of(path: Path) -> str | None:
    """The sha256, in hex, of a regular file's content; None where there is none that can be read.

    Raises:
        OSError: the machine lacks what it takes to look (SHORTAGES).
    """
    try:
        with open(open_regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return None


def holds(path: Path, sha256: object) -> bool:
    """Whether a regular file of that content is there and can be read.

    Raises:
        OSError: the machine lacks what it takes to look (SHORTAGES).
    """
    return sha256 is not None and sha256_of(path) == sha256


def fsync_file(path: Path) -> None:
    """Sync a file that another process has written and closed.

    Raises:
        OSError: it is missing, is not a regular file, or could not be synced.
    """
    descriptor = open_regular(path)
    try:
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_files(paths: Sequence[Path]) -> list[OSError | None]:
    """As ``fsync_file``, all at once; for each of them the error that it met, or None."""

    def sync(path: Path) -> OSError | None:
        try:
            fsync_file(path)
        except OSError as error:
            return error
        return None

    return [sync(path) for path in paths] if len(paths) < 2 else list(_syncers.map(sync, paths))


def sync_all(paths: Sequence[Path], folders: Sequence[Path], also: Sequence[Callable[[], None]] = ()) -> None:
    """Sync these files and folders, and do what else is given, all at once.

    Raises:
        OSError: one of them failed; which of the others did not is unknown.
    """
    steps: list[Callable[[], None]] = [partial(fsync_file, path) for path in paths]
    steps += [partial(fsync_folder, folder) for folder in folders]
    pending = [_syncers.submit(step) for step in (*steps, *also)]
    wait(pending)
    for done in pending:
        done.result()


def fsync_folder(folder: Path) -> None:
    """Make renames into and out of ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within one file system, replacing ``target``. The caller syncs the folder, once for many renames."""
    disk.rename(source, target)


def rename_new(source: Path, target: Path) -> None:
    """Rename within one file system, never replacing anything.

    Raises:
        FileExistsError: ``target`` exists.
    """
    try:
        disk.rename_new(source, target)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    else:
        return
    # A file system without it (NFS, some FUSE): look first. Two daemons never share a target of ours, so the gap
    # between the look and the rename is open only to a person who creates that very name in it.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    disk.rename(source, target)


def put_aside(path: Path, folder: Path) -> Path:
    """Move what lies at ``path``, of any kind, into ``folder``, which is made, under its own name or a free one like
    it; where it is then. Both are on one file system.

    Raises:
        OSError: it still lies where it was.
    """
    make_folder(folder)
    for number in itertools.count(1):
        aside = folder / (path.name if number == 1 else f"{path.name}.{number}")
        if not os.path.lexists(aside):
            with contextlib.suppress(FileExistsError):
                rename_new(path, aside)
                return aside
    raise AssertionError  # there is always another number


def place_new(source: Path, target: Path) -> bool:
    """Have ``source`` under ``target`` as well, never replacing anything: by a link where the file system has them,
    else by a copy. False when another file has that name; True too when an earlier call has done it. The caller syncs
    ``target``'s folder.

    Raises:
        FileNotFoundError: ``source`` is gone.
        OSError: EINVAL or ELOOP, it is no regular file and can't be copied; or anything failed on the way.
    """
    try:
        disk.link(source, target)
    except FileExistsError:
        return _same_file(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    temporary = temporary_name(target)
    sha256 = copy(source, temporary)
    try:
        rename_new(temporary, target)
    except FileExistsError:
        _give_up(temporary)
        return holds(target, sha256)
    except BaseException:
        _give_up(temporary)
        raise
    return True


def publish(source: Path, target: Path, folder: Path, check: Callable[[], None]) -> None:
    """Have a synced file of ours under ``target`` too, replacing what is there, over file systems as well. It lies in
    ``folder``, on ``target``'s file system, under a hidden name when ``check`` is called, and is then renamed. The
    caller syncs ``target``'s folder, and then removes ``source``: a crash in between takes neither.

    Raises:
        FileNotFoundError: ``source`` is gone, or ``folder``.
        OSError: anything failed on the way; what ``check`` raises. ``target`` is as it was.
    """
    if _same_file(source, target):
        check()
        return
    temporary = temporary_name(folder / target.name)
    try:
        disk.link(source, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy(source, temporary)
    try:
        check()
        try:
            disk.rename(temporary, target)
        except FileNotFoundError as error:
            # Somebody has cleared it away, who may own the folder by now.
            raise OSError(errno.EIO, "what was to be published is gone", str(temporary)) from error
    except BaseException:
        _give_up(temporary)
        raise


def copy(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> str:
    """Copy a file to ``target`` under a temporary name, sync and rename it; the sha256 of what was copied, in hex.
    The caller syncs ``target``'s folder. ``check``: as in ``write_atomically``.

    Raises:
        OSError: ``source`` is missing, no regular file, or a link; or anything failed on the way.
    """
    temporary = temporary_name(target)
    digest = hashlib.sha256()
    reader = open_regular(source)
    try:
        writer = create(temporary)
        try:
            while block := os.read(reader, COPY_BYTES):
                digest.update(block)
                _write_all(writer, block)
            disk.fsync(writer)
        finally:
            os.close(writer)
        check()
        disk.rename(temporary, target)
    except BaseException:
        _give_up(temporary)
        raise
    finally:
        os.close(reader)
    return digest.hexdigest()


def create(path: Path, mode: int = FILE_MODE) -> int:
    """A new file, open for writing; the caller closes it.

    Raises:
        FileExistsError: something has that name.
    """
    return disk.create(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_for_append(path: Path) -> int:
    """The file, made when missing, open for appending; the caller closes it. Its name is durable on return."""
    descriptor = disk.create(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fsync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_unsynced(path: Path) -> int:
    """As ``open_for_append``, for what need not survive a power cut: its name is not durable either."""
    return disk.create(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)


def append(descriptor: int, data: bytes, *, durable: bool) -> None:
    """Append to an open file. After an OSError the file's tail is unknown and it must not be used again."""
    _write_all(descriptor, data)
    if durable:
        disk.fdatasync(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents; each new one is synced into its parent.

    Raises:
        OSError: it can't be made; FileExistsError or NotADirectoryError when a file has the name of one of them.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            make_new_folder(new)
        except FileExistsError:
            if not new.is_dir():
                raise  # else somebody else was faster


def make_private(folder: Path) -> None:
    """Let nobody but the daemon's user into a folder.

    Raises:
        OSError: it is somebody else's, or on a file system without such modes.
    """
    if stat.S_IMODE(os.stat(folder).st_mode) & 0o077:
        disk.chmod(folder, PRIVATE_MODE)


def make_new_folder(folder: Path) -> None:
    """Make a folder, synced into its parent.

    Raises:
        FileExistsError: something has that name.
    """
    disk.mkdir(folder, FOLDER_MODE)
    try:
        fsync_folder(folder.parent)
    except BaseException:
        # One that stayed would be taken for durable the next time.
        with contextlib.suppress(OSError):
            disk.rmdir(folder)
        raise


def open_folder(folder: Path, root: Path, *, make: bool = False) -> int:
    """The folder, which lies below ``root``, open, with no link on the way to it from there; the caller closes it.
    With ``make``, it and its missing parents are made. What is then done at ``held(descriptor)`` is done in that very
    folder, whatever its name leads to by then.

    Raises:
        OSError: ENOTDIR or ELOOP, there is a link or a file on the way; or it is not there, or can't be made.
        ValueError: it does not lie below ``root``.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    found = os.open(root, flags)
    try:
        for name in folder.relative_to(root).parts:
            try:
                below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=found)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):  # somebody else was faster
                    make_new_folder(held(found) / name)
                below = os.open(name, flags | os.O_NOFOLLOW, dir_fd=found)
            os.close(found)
            found = below
    except BaseException:
        os.close(found)
        raise
    return found


def held(folder: int) -> Path:
    """A path to an open folder that leads nowhere else."""
    return Path(f"/proc/self/fd/{folder}")


def make_unsynced_folder(folder: Path) -> None:
    """Make a folder; the caller syncs its parent.

    Raises:
        FileExistsError: something has that name.
    """
    disk.mkdir(folder, FOLDER_MODE)


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is fine."""
    _forget(path)


def remove_empty_folder(folder: Path) -> None:
    """Raises OSError: it is not empty, or not there."""
    disk.rmdir(folder)


def discard(path: Path, folder: int | None = None) -> None:
    """Remove what lies there, a folder too, as far as that is possible: nothing depends on it. ``folder``: the open
    folder that holds it, where ``path`` may lead elsewhere by now."""
    try:
        if folder is None:
            disk.unlink(path)
        else:
            disk.unlink_in(folder, path.name)
    except (IsADirectoryError, PermissionError):
        disk.remove_all(path, folder)
    except OSError:
        pass


def remove_in(folder: int, name: str) -> None:
    """Remove a file of the folder that is open as ``folder``, wherever that has been moved; one that is gone already is
    fine."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink_in(folder, name)


def remove_empty_folder_in(folder: int, name: str) -> None:
    """Raises OSError: it is not empty, or not there."""
    disk.rmdir_in(folder, name)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours: it disappears at once under its name, then piece by piece under a hidden one, so that
    a crash in between leaves nothing that could be taken for a whole folder."""
    hidden = folder.parent / f".{folder.name}.gone"
    try:
        disk.rename(folder, hidden)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        disk.remove_all(hidden)
        disk.rename(folder, hidden)
    disk.remove_all(hidden)


def remove_leftovers(folder: Path) -> None:
    """Clear away what crashed operations of ours have left in ``folder``, which is ours alone."""
    remove_temporary_files(folder)
    for entry in _entries(folder):
        if entry.name.startswith(".") and entry.name.endswith((".gone", ".new")):
            disk.remove_all(Path(entry.path))


def remove_temporary_files(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Clear away the half-written files that a crash has left in ``folder``, which may hold others' files too. Where
    another daemon may be writing now, only those that are older than any writing takes."""
    for entry in _entries(folder):
        if _OUR_TEMPORARY_NAME.fullmatch(entry.name) and (
            not older_than_s or time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than_s
        ):
            _forget(Path(entry.path))


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _write_file(path: Path, data: bytes, *, durable: bool, mode: int) -> None:
    descriptor = create(path, mode)
    try:
        _write_all(descriptor, data)
        if durable:
            disk.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[disk.write(descriptor, view) :]


def _forget(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)


_given_up: dict[Path, None] = {}
"""Temporary files that could not be removed; the next one that is written to their folder tries again."""


def _give_up(temporary: Path) -> None:
    """Remove it, now or later: what went wrong before is to be told, and not that this did too."""
    try:
        _forget(temporary)
    except OSError:
        _given_up[temporary] = None


def _remove_given_up(folder: Path) -> None:
    # In no other folder, which may be on a share that hangs.
    for temporary in [path for path in list(_given_up) if path.parent == folder]:
        with contextlib.suppress(OSError):
            _forget(temporary)
            _given_up.pop(temporary, None)

"""The results of a job that is over, as something that may be removed: what is ours in its folder, and who has read it.

The outbox is others' as much as ours. So a folder is removed only if its manifest is, to the byte, the one that this
daemon has written; if everything in it has a name that dubd gives; and if somebody has said that the manifest was read,
with a file ``manifest.read`` beside it. Access times can't say that: most file systems keep them lazily or not at all,
shares and backups change them, and this daemon's own looks would count. In doubt a folder stays.

Nothing here follows a link or leaves the folder's file system. A folder disappears at once under its name, and is then
taken apart by the open folder itself, whatever is put in its place meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from daemon import files
from daemon.ended_jobs import EndedJob
from daemon.ownership import Hold, Owned

READ_MARK = "manifest.read"
"""A file of this name beside a manifest says that the manifest has been read. It is empty, or holds the sha256 of the
manifest that is meant, in hex."""

_MOST_OF_A_MARK = 256

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_TEMPORARY = r"\.[0-9a-f]+-[0-9a-f]{12}\.part"
_LITTER = r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini"
"""What file managers leave in every folder they show."""

_NAMES: dict[str, re.Pattern[str]] = {
    "": re.compile(
        r"segment_\d{4,}\.(wav|npy)|manifest(\.\d+)?\.json|manifest\.read|(job|progress|results)\.json|report\.html"
        rf"|{_TEMPORARY}|{_LITTER}"
    ),
    "takes": re.compile(rf"segment_\d{{4,}}\.\d+\.(wav|npy)|{_TEMPORARY}|{_LITTER}"),
    "speakers": re.compile(_LITTER),
    "speakers/*": re.compile(rf".+\.(pkl|npz)|{_TEMPORARY}|{_LITTER}"),
}
"""The names of files that a job's folder may hold, by the folder inside it."""

_FOLDERS = {"": ("takes", "speakers"), "speakers": ("*",)}
"""The folders inside it."""


class LeftAlone(Exception):
    """Why a folder is not removed, as the rest of a sentence about it."""


@dataclass(slots=True)
class Tree:
    """The names in a folder of ours. ``bytes``: what its files hold, in all folders below too."""

    names: list[str] = field(default_factory=list)
    folders: dict[str, Tree] = field(default_factory=dict)
    bytes: int = 0


def mark_as_read(folder: Path) -> None:
    """Say that the manifest in ``folder`` has been read.

    Raises:
        OSError: there is none, or the mark can't be written.
    """
    with _regular_file(folder / "manifest.json") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    files.write_atomically(folder / READ_MARK, f"{sha256}\n".encode("ascii"))


def forget_mark(folder: Path) -> None:
    """The manifest is another one from now on. A mark that can't be removed says nothing: it is no file of ours."""
    if os.path.lexists(folder / READ_MARK):
        with contextlib.suppress(OSError):
            files.remove(folder / READ_MARK)


def is_read(folder: Path, manifest_sha256: str) -> bool:
    """Whether somebody has said so of the manifest with this sha256."""
    try:
        with _regular_file(folder / READ_MARK) as file:
            said = file.read(_MOST_OF_A_MARK).split()
    except OSError:
        return False
    return not said or said[0] == manifest_sha256.encode("ascii")


def has_been_read(folder: Path) -> bool:
    """As ``is_read``, of the manifest that is there now."""
    if not os.path.lexists(folder / READ_MARK):
        return False
    try:
        with _regular_file(folder / "manifest.json") as file:
            return is_read(folder, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return False


def manifest_head(folder: Path, most: int) -> bytes:
    """At most so many of the first bytes of the manifest in ``folder``; none where there is none that can be read."""
    try:
        with _regular_file(folder / "manifest.json") as file:
            return file.read(most)
    except OSError:
        return b""


def weigh(ended: EndedJob) -> int:
    """The bytes of the job's folder, 0 when it is not ours any more.

    Raises:
        OSError: it can't be looked at; FileNotFoundError: it is gone.
    """
    try:
        with _opened(ended.folder) as folder:
            return _look_through(folder).bytes
    except LeftAlone:
        return 0


def remove(ended: EndedJob, host_id: str, hold: Hold | None = None) -> int:
    """Remove the job's folder; the bytes that this has freed. Crashed half-way, ``clear_leftovers`` does the rest.

    Raises:
        LeftAlone: it is not ours, or not only ours, or at work, or its manifest has not been read.
        OSError: the outbox failed; FileNotFoundError: the folder is gone.
    """
    if hold is None or not hold.counts or not ended.folder.is_dir():
        return _remove(ended, host_id)
    try:
        hold.take(began=False)
    except Owned as owned:
        raise LeftAlone(f"is at work: {owned}") from owned
    try:
        return _remove(ended, host_id)
    finally:
        hold.release()


def _remove(ended: EndedJob, host_id: str) -> int:
    with _opened(ended.folder) as folder:
        tree = _look_through(folder)
        if _sha256(folder, "manifest.json") != ended.manifest_sha256:
            raise LeftAlone("has another manifest than the one that this daemon has written")
        if not is_read(ended.folder, ended.manifest_sha256):
            raise LeftAlone(f"has not been read: there is no {READ_MARK}")
        hidden = ended.folder.parent / f".{host_id}-{time.time_ns():x}.gone"
        files.rename_new(ended.folder, hidden)
        if not os.path.samestat(os.fstat(folder), os.lstat(hidden)):
            files.rename_new(hidden, ended.folder)
            raise LeftAlone("was replaced while it was looked at")
        try:
            _take_apart(folder, tree)
            files.remove_empty_folder(hidden)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Somebody has put a file there at the last moment, and is to find it again.
            files.rename_new(hidden, ended.folder)
        return tree.bytes


def clear_leftovers(outbox: Path, host_id: str) -> None:
    """Finish what an earlier life of this daemon began to remove.

    Raises:
        OSError: the outbox can't be listed.
    """
    ours = re.compile(rf"\.{re.escape(host_id)}-[0-9a-f]+\.gone")
    with os.scandir(outbox) as entries:
        names = [entry.name for entry in entries if ours.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError, LeftAlone):
            with _opened(outbox / name) as folder:
                _take_apart(folder, _look_through(folder))
            files.remove_empty_folder(outbox / name)


@contextlib.contextmanager
def _opened(path: Path | str, within: int | None = None) -> Iterator[int]:
    try:
        descriptor = os.open(path, _FOLDER, dir_fd=within)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LeftAlone("is no folder") from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _look_through(folder: int, place: str = "") -> Tree:
    """What it holds.

    Raises:
        LeftAlone: something that dubd has not put there.
        OSError: the outbox failed.
    """
    tree = Tree()
    device = os.fstat(folder).st_dev
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, status in found:
        inside = _FOLDERS.get(place, ())
        kind = f"{place}/*" if "*" in inside else name
        if stat.S_ISDIR(status.st_mode) and (name in inside or "*" in inside) and status.st_dev == device:
            with _opened(name, folder) as below:
                tree.folders[name] = _look_through(below, kind)
            tree.bytes += tree.folders[name].bytes
        elif stat.S_ISREG(status.st_mode) and _NAMES[place].fullmatch(name):
            tree.names.append(name)
            tree.bytes += status.st_size
        else:
            raise LeftAlone(f"holds {name!r}, which dubd has not put there")
    return tree


def _take_apart(folder: int, tree: Tree) -> None:
    for name, below in tree.folders.items():
        with _opened(name, folder) as descriptor:
            _take_apart(descriptor, below)
        files.remove_empty_folder_in(folder, name)
    for name in tree.names:
        files.remove_in(folder, name)


def _sha256(folder: int, name: str) -> str | None:
    try:
        with _regular_file(name, folder) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _regular_file(path: Path | str, within: int | None = None) -> Iterator[BufferedReader]:
    """Open for reading. Raises OSError, FileNotFoundError too when it is no regular file."""
    try:
        descriptor = files.open_regular(path, within)
    except OSError as error:
        if error.errno in files.NOT_REGULAR:
            raise FileNotFoundError(errno.ENOENT, "no regular file", str(path)) from error
        raise
    with open(descriptor, "rb") as file:
        yield file

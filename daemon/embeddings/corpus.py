"""The folder of utterances: opened safely, and listed without ever holding all of it.

Speakers lie at exactly one depth, DATASET/SPEAKER/. For a job the path comes from whoever may write to the inbox, so
what counts is the folder that was opened, not its name, and no link below it is followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from daemon.config import Settings
from daemon.core.dealing import Speaker
from daemon.core.reasons import quoted
from daemon.mapped_paths import path_here
from workers.protocol import Message


class CorpusRefused(Exception):
    """The folder can't be used. ``code`` is missing, not_a_folder, unreadable or outside_allowed_roots; the message
    says how to mend it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Corpus:
    """An open folder of utterances; ``allowed_roots`` None: any will do, and links in it are followed.

    Raises:
        CorpusRefused: see there.
    """

    def __init__(self, path: Path, *, allowed_roots: tuple[Path, ...] | None, apart_from: Path | None = None) -> None:
        self.path = path
        self.follow_links = allowed_roots is None
        self._root = _open(path, allowed_roots)
        status = os.fstat(self._root)
        self._identity = status.st_dev, status.st_ino
        self._apart_from = _identity(apart_from)
        self._flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if self.follow_links else os.O_NOFOLLOW)
        self.unreadable: dict[str, str] = {}
        """Datasets whose speakers could not be listed, and why: nobody knows what is missing."""

    def close(self) -> None:
        os.close(self._root)

    def message(self) -> Message:
        """``utterances`` of a process's hello. The name that the kernel has for the open folder: whatever links led to
        it may lead elsewhere by now."""
        device, inode = self._identity
        path = os.readlink(f"/proc/self/fd/{self._root}")
        return {"path": path, "device": device, "inode": inode, "follow_links": self.follow_links}

    def speakers(self, *, weigh: bool = True) -> Iterator[Speaker]:
        """Every speaker, in no order; its weight is the number of names in its folder, or with ``weigh`` false nought,
        which is much faster. One whose folder can't be listed comes with a weight of nought: who computes it will say
        why. A dataset that can't be listed has none, and stands in ``unreadable`` then.

        Raises:
            OSError: the folder can't be listed any more.
        """
        # Opened anew: two listings of one descriptor would share their place in it.
        root = os.open(".", self._flags, dir_fd=self._root)
        try:
            for dataset in self._folders(root):
                if self._is_apart(dataset, root):
                    continue
                try:
                    above = os.open(dataset, self._flags, dir_fd=root)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self.unreadable[dataset] = error.strerror or str(error)
                    continue
                try:
                    for name in self._folders(above):
                        yield Speaker(dataset, name, self._weight(name, above) if weigh else 0)
                except OSError as error:
                    self.unreadable[dataset] = error.strerror or str(error)
                finally:
                    os.close(above)
        finally:
            os.close(root)

    def _folders(self, folder: int) -> Iterator[str]:
        """The names of the folders in an open one; hidden ones are nobody's speakers."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and self._is_folder(entry):
                    yield entry.name

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir(follow_symlinks=self.follow_links)
        except OSError:
            return False  # a link that leads round in a circle, or to where nobody may look

    def _is_apart(self, dataset: str, root: int) -> bool:
        """Whether it is the folder of the results, which may lie in this one and would look like a dataset."""
        if self._apart_from is None:
            return False
        try:
            status = os.stat(dataset, dir_fd=root)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._apart_from

    def _weight(self, name: str, above: int) -> int:
        try:
            folder = os.open(name, self._flags, dir_fd=above)
        except OSError:
            return 0
        try:
            with os.scandir(folder) as entries:
                return sum(1 for _ in entries)
        except OSError:
            return 0
        finally:
            os.close(folder)


def open_corpus(utterances_dir: str, settings: Settings) -> Corpus:
    """The folder that a job names, relative to the inbox or absolute.

    Raises:
        CorpusRefused: see there.
    """
    here = path_here(utterances_dir, settings.paths.mapped)
    return Corpus(settings.paths.inbox / here, allowed_roots=tuple(settings.paths.allowed_roots))


def _open(path: Path, allowed_roots: tuple[Path, ...] | None) -> int:
    shown = quoted(str(path))
    if allowed_roots is not None:
        # Whether a folder outside of the roots exists is nobody's business.
        _check_inside(os.path.realpath(path), allowed_roots, shown)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = "give the folder that holds DATASET/SPEAKER/UTTERANCE.pkl"
        raise CorpusRefused("missing", f"there is no folder {shown}: {hint}") from None
    except NotADirectoryError:
        raise CorpusRefused("not_a_folder", f"{shown} is a file; give the folder that holds the datasets") from None
    except (OSError, ValueError) as error:  # a ValueError for a NUL, or a character that no file name can hold
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CorpusRefused("unreadable", f"{shown} can't be opened: {why}") from None
    try:
        if allowed_roots is not None:
            _check_inside(os.readlink(f"/proc/self/fd/{descriptor}"), allowed_roots, shown)
    except CorpusRefused:
        os.close(descriptor)
        raise
    return descriptor


def _check_inside(path: str, allowed_roots: tuple[Path, ...], shown: str) -> None:
    if not any(Path(path).is_relative_to(os.path.realpath(root)) for root in allowed_roots):
        message = f"{shown} lies outside of the allowed folders: add its folder to paths.allowed_roots"
        raise CorpusRefused("outside_allowed_roots", message)


def _identity(path: Path | None) -> tuple[int, int] | None:
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)

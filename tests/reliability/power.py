"""What a power cut leaves: the files and names that were synced, as a ledger of the daemon's syncs knows them.

The strictest disk that POSIX allows: a file holds what its last good sync saw, a folder the names that its last sync
saw. A rename from one folder into another is one step, as every journalling file system makes it: when either folder
is synced, both know. After a failed sync a file's content is lost for good, whatever a later sync says.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Node = tuple[int, int]
"""Device and inode."""

Entry = tuple[Node, bool]
"""What a name stands for, and whether that is a folder."""


Rename = tuple[Node, str, Node, str, Entry]
"""Folder and name before, folder and name after, and what was renamed."""


class Ledger:
    """Lives in the daemon's process; what it knows lies in ``store``, so that it outlives it. Every inode it has
    written down stays open, so that none is given to another file."""

    def __init__(self, store: Path, roots: Iterable[Path]) -> None:
        self._store = store
        self._pinned: dict[Node, int] = {}
        self._lost: set[Node] = set()
        self._folders: dict[Node, dict[str, Entry]] = {}
        self._renames: list[Rename] = []
        store.mkdir(parents=True, exist_ok=True)
        for root in roots:
            self._take_in(root)

    def _take_in(self, folder: Path) -> None:
        """What is there at the start is there for good."""
        for path, _, names in os.walk(folder):
            for name in names:
                descriptor = os.open(os.path.join(path, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    self.synced(descriptor)
                finally:
                    os.close(descriptor)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.synced(descriptor)
            finally:
                os.close(descriptor)

    def synced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        node = (status.st_dev, status.st_ino)
        if not stat.S_ISDIR(status.st_mode):
            self._pin(node, f"/proc/self/fd/{descriptor}", follow=True)
            if node not in self._lost:
                shutil.copyfile(f"/proc/self/fd/{descriptor}", self._store / _name(node))
            return
        folder = f"/proc/self/fd/{descriptor}"
        self._folders[node] = self._listing(folder)
        self._pin(node, folder, follow=True)
        self._commit_renames(node)
        self._save(node)

    def sync_failed(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            node = (status.st_dev, status.st_ino)
            self._lost.add(node)
            self._pin(node, f"/proc/self/fd/{descriptor}", follow=True)

    def before_rename(self, source: Path, target: Path) -> Rename | None:
        try:
            return (_node(source.parent), source.name, _node(target.parent), target.name, _entry(source))
        except OSError:
            return None

    def renamed(self, rename: Rename) -> None:
        if rename[0] != rename[2]:
            self._renames.append(rename)

    def _commit_renames(self, synced: Node) -> None:
        waiting = []
        for rename in self._renames:
            source, old, target, new, moved = rename
            if synced not in (source, target):
                waiting.append(rename)
                continue
            if synced == target and self._folders.get(source, {}).get(old) == moved:
                del self._folders[source][old]
                self._save(source)
            elif synced == source and target in self._folders:
                self._folders[target][new] = moved
                self._save(target)
        self._renames = waiting

    def _listing(self, folder: str) -> dict[str, Entry]:
        listing = {}
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            try:
                entry = _entry(Path(path))
                self._pin(entry[0], path, follow=False)
            except OSError:
                continue  # a worker has just taken it away
            listing[name] = entry
        return listing

    def _pin(self, node: Node, path: str, *, follow: bool) -> None:
        if node not in self._pinned:
            self._pinned[node] = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))

    def _save(self, node: Node) -> None:
        text = json.dumps({name: [*node, is_folder] for name, (node, is_folder) in self._folders[node].items()})
        (self._store / f"{_name(node)}.folder").write_text(text, "utf-8")


def cut(root: Path, store: Path, *, keep_names: bool) -> None:
    """Make ``root`` what the power cut leaves of it. ``keep_names``: all names are kept as they are, and only contents
    are lost."""
    rebuilt = root.with_name(root.name + ".rebuilt")
    _rebuild(root, _node(root), rebuilt, store, {}, keep_names=keep_names)
    shutil.rmtree(root)
    rebuilt.rename(root)


def _rebuild(
    there: Path | None, node: Node, target: Path, store: Path, done: dict[Node, Path], *, keep_names: bool
) -> None:
    """``there``: the folder as it is, if its names are to be kept. ``done``: where files lie already, which may have
    more than one name."""
    target.mkdir()
    record = store / f"{_name(node)}.folder"
    entries: dict[str, Entry] = {}
    if keep_names and there is not None:
        entries = {name: _entry(there / name) for name in os.listdir(there)}
    elif record.exists():
        saved: dict[str, Any] = json.loads(record.read_text("utf-8"))
        entries = {name: ((device, inode), is_folder) for name, (device, inode, is_folder) in saved.items()}
    for name, (entry, is_folder) in entries.items():
        content = store / _name(entry)
        if is_folder:
            below = there / name if there is not None else None
            _rebuild(below, entry, target / name, store, done, keep_names=keep_names)
            continue
        if entry in done:
            (target / name).hardlink_to(done[entry])
        elif content.exists():
            shutil.copyfile(content, target / name)
        else:
            (target / name).touch()
        done[entry] = target / name


def _node(path: Path) -> Node:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _entry(path: Path) -> Entry:
    status = os.lstat(path)
    return (status.st_dev, status.st_ino), stat.S_ISDIR(status.st_mode)


def _name(node: Node) -> str:
    return f"{node[0]}-{node[1]}"

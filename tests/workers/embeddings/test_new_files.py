"""Files that appear whole and last: together where the file system allows it, and each by itself where it does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from workers.embeddings import new_files
from workers.embeddings.new_files import Disk, NewFile


class CountedSync:
    """What is synced how often, and by which of the two ways."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, together: Callable[[], int] = lambda: 0) -> None:
        self.whole, self.single = 0, 0
        fsync = os.fsync

        def syncfs() -> Callable[[int], int]:
            return lambda descriptor: self._sync_all(together)

        def sync(descriptor: int) -> None:
            self.single += 1
            fsync(descriptor)

        monkeypatch.setattr(new_files, "_syncfs", syncfs)
        monkeypatch.setattr(new_files, "_kind_of", lambda device: b"ext4")
        monkeypatch.setattr(new_files, "_unsynced", lambda: 0)
        monkeypatch.setattr(os, "fsync", sync)

    def _sync_all(self, together: Callable[[], int]) -> int:
        self.whole += 1
        return together()


@pytest.fixture(params=["no names", "no links", "temporary names"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files before they appear: without a name where that goes, and beside their place where it does not."""
    monkeypatch.setattr(new_files, "_can_be_named", {})
    if request.param == "temporary names":
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # as a file system that knows no such flag
    if request.param == "no links":

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


def make(folder: Path, count: int) -> list[NewFile]:
    return [NewFile(str(folder / f"{number}.pkl"), b"%d" % number * 10_000) for number in range(count)]


def check(folder: Path, numbers: list[int]) -> None:
    """These files are there, whole, and nothing else is."""
    assert sorted(os.listdir(folder)) == sorted(f"{number}.pkl" for number in numbers)
    for number in numbers:
        assert (folder / f"{number}.pkl").read_bytes() == b"%d" % number * 10_000


@pytest.mark.usefixtures("_way")
def test_nothing_is_there_before_it_is_kept(tmp_path: Path) -> None:
    files = make(tmp_path, 5)
    assert not list(tmp_path.glob("*.pkl"))
    before = len(os.listdir("/proc/self/fd"))
    assert Disk().keep(files) == [None] * 5
    check(tmp_path, list(range(5)))
    assert len(os.listdir("/proc/self/fd")) == before - 5


@pytest.mark.usefixtures("_way")
def test_what_is_there_is_replaced(tmp_path: Path) -> None:
    """At once, and by nothing of its own beside it."""
    for number in range(3):
        (tmp_path / f"{number}.pkl").write_bytes(b"before")
    assert Disk().keep(make(tmp_path, 3)) == [None] * 3
    check(tmp_path, list(range(3)))


@pytest.mark.usefixtures("_way")
def test_a_file_is_dropped_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "0.pkl").mkdir()
    assert [type(error) for error in Disk().keep(make(tmp_path, 2))] == [IsADirectoryError, type(None)]
    assert sorted(os.listdir(tmp_path)) == ["0.pkl", "1.pkl"]
    before = len(os.listdir("/proc/self/fd"))
    for file in make(tmp_path, 2):
        file.drop()
    assert sorted(os.listdir(tmp_path)) == ["0.pkl", "1.pkl"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_but_whole_files_is_ever_seen(tmp_path: Path) -> None:
    """On a file system that has files without names, as this one should."""
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has none")
    files = make(tmp_path, 2)
    assert not os.listdir(tmp_path)
    assert Disk().keep(files) == [None] * 2


def test_many_for_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = CountedSync(monkeypatch)
    Disk().keep(make(tmp_path, 5))
    assert (sync.whole, sync.single) == (1, 0)
    check(tmp_path, list(range(5)))


def test_a_file_system_that_could_not_write_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose fault it was, each file's own sync tells."""
    sync = CountedSync(monkeypatch, together=lambda: -1)
    assert Disk().keep(make(tmp_path, 5)) == [None] * 5
    assert (sync.whole, sync.single) == (1, 5)
    check(tmp_path, list(range(5)))


def test_a_file_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails alone, and nothing is left of it."""
    CountedSync(monkeypatch, together=lambda: -1)
    files = make(tmp_path, 5)
    fsync, broken = os.fsync, files[2].descriptor

    def fail(descriptor: int) -> None:
        if descriptor == broken:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    errors = Disk().keep(files)
    assert [error.errno if error else None for error in errors] == [None, None, errno.EIO, None, None]
    check(tmp_path, [0, 1, 3, 4])


def test_a_folder_that_has_gone(tmp_path: Path) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    gone.mkdir()
    files = [*make(here, 2), *make(gone, 1)]
    gone.rename(tmp_path / "moved")
    errors = Disk().keep(files)
    assert [type(error) for error in errors] == [type(None), type(None), FileNotFoundError]
    check(here, [0, 1])


def test_a_file_system_with_much_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left alone for a while, and then tried again."""
    sync = CountedSync(monkeypatch)
    monkeypatch.setattr(new_files, "MOST_S", -1.0)
    monkeypatch.setattr(new_files, "ALONE", 2)
    disk = Disk()
    for _ in range(4):
        disk.keep(make(tmp_path, 3))
    assert (sync.whole, sync.single) == (2, 6)


def test_much_that_is_not_on_the_disks_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync of everything could take minutes."""
    sync = CountedSync(monkeypatch)
    monkeypatch.setattr(new_files, "_unsynced", lambda: 1 << 30)
    Disk().keep(make(tmp_path, 3))
    assert (sync.whole, sync.single) == (0, 3)


def test_a_sync_tells_of_all_errors_since_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells an error to each descriptor that was open by then, and to no later one."""
    asked: list[int] = []

    def syncfs(descriptor: int) -> int:
        asked.append(descriptor)
        return 0

    CountedSync(monkeypatch)
    disk, files = Disk(), make(tmp_path, 3)
    disk._syncfs = syncfs
    first = files[0].descriptor
    disk.keep(files)
    assert asked == [first]


@pytest.mark.parametrize("kind", [b"nfs4", b"cifs", b"fuse.sshfs", b""])
def test_other_file_systems_are_synced_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    sync = CountedSync(monkeypatch)
    monkeypatch.setattr(new_files, "_kind_of", lambda device: kind)
    Disk().keep(make(tmp_path, 3))
    assert (sync.whole, sync.single) == (0, 3)


@pytest.mark.parametrize(("release", "known"), [("5.7.19-generic", False), ("5.10.0-28-amd64", True), ("odd", False)])
def test_a_kernel_that_does_not_tell_of_errors(monkeypatch: pytest.MonkeyPatch, release: str, known: bool) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert (new_files._syncfs() is not None) == known


def test_the_kind_of_file_system() -> None:
    assert new_files._kind_of(os.stat("/proc").st_dev) == b"proc"
    assert new_files._kind_of(os.makedev(4095, 4095)) == b""

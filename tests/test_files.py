"""Durable operations, on real files and two real file systems."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import files

ROOT = Path(__file__).parents[1]
FULL = Path("/dev/full")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="dubd-test-"))
    yield folder
    shutil.rmtree(folder)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def with_file_size_limit(size: int, code: str) -> str:
    """What the code prints when no file may grow beyond ``size`` bytes: the kernel's own full disk."""
    script = f"""
    import resource, signal
    from pathlib import Path
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
    from daemon import files
    """
    return subprocess.run(
        [sys.executable, "-B", "-c", textwrap.dedent(script) + textwrap.dedent(code)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip


# --- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    """The new content stands under the name, and nothing else is left in the folder."""
    path = tmp_path / "status.json"
    for content in (b"old", b"", b"new and longer"):
        files.write_atomically(path, content, durable=durable)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["status.json"]


def test_a_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    """Whoever has the old file open goes on reading the old content; a link in the way is replaced, not followed."""
    path, target = tmp_path / "a", tmp_path / "target"
    target.write_bytes(b"untouched")
    path.symlink_to(target)
    files.write_atomically(path, b"one")
    with path.open("rb") as reader:
        files.write_atomically(path, b"two")
        assert reader.read() == b"one"
    assert target.read_bytes() == b"untouched" and not path.is_symlink()


def test_names_as_long_as_they_can_be(tmp_path: Path) -> None:
    """The temporary name does not grow with the file's own."""
    files.write_atomically(tmp_path / ("x" * 255), b"content")
    assert names(tmp_path) == ["x" * 255]


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    """An interrupted write changes nothing and leaves nothing behind, whether it writes or copies."""
    kept, source = tmp_path / "kept", tmp_path / "source"
    kept.write_bytes(b"old")
    source.write_bytes(b"x" * 3000)
    said = with_file_size_limit(
        1024,
        f"""
        for step in (lambda: files.write_atomically(Path({str(kept)!r}), b"n" * 3000),
                     lambda: files.copy(Path({str(source)!r}), Path({str(kept)!r}))):
            try:
                step()
            except OSError as error:
                print(error.errno)
        """,
    )
    assert said.split() == [str(errno.EFBIG)] * 2
    assert kept.read_bytes() == b"old"
    assert names(tmp_path) == ["kept", "source"]


def test_append_to_a_full_device() -> None:
    """What the device does not take is an OSError."""
    descriptor = os.open(FULL, os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            files.append(descriptor, b"data", durable=False)
    finally:
        os.close(descriptor)
    assert caught.value.errno == errno.ENOSPC


# --- syncing -----------------------------------------------------------------------------------------------


def test_only_regular_files_are_synced(tmp_path: Path) -> None:
    """A FIFO does not block, and nothing but a file passes for one."""
    regular, fifo, link = tmp_path / "a", tmp_path / "fifo", tmp_path / "link"
    regular.write_bytes(b"x")
    os.mkfifo(fifo)
    link.symlink_to(regular)
    files.fsync_file(regular)
    for path in (fifo, link, tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError):
            files.fsync_file(path)


def test_a_file_of_others_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    """What is no regular file is refused at once, nothing is waited for, and no more is read than is allowed."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_regular(path, 5) == b"12345"
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert files.read_regular("file", 5, folder) == b"12345"
    finally:
        os.close(folder)
    with pytest.raises(OSError) as refused:
        files.read_regular(path, 4)
    assert refused.value.errno == errno.EFBIG
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("fifo", "link", "folder", "socket"):
            with pytest.raises(OSError, match="not a regular file") as refused:
                files.read_regular(tmp_path / name, 5)
            assert refused.value.errno in files.NOT_REGULAR
    with pytest.raises(OSError, match="not a regular file"):
        files.read_regular(Path("/dev/zero"), 5)
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "none", 5)


def test_what_a_file_holds(tmp_path: Path) -> None:
    """Anything else under its name holds nothing, and no descriptor is left open over it."""
    path, sha256 = tmp_path / "a", hashlib.sha256(b"x").hexdigest()
    path.write_bytes(b"x")
    assert files.holds(path, sha256)
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "fifo", "folder", "missing"):
        assert not files.holds(tmp_path / name, sha256)
    path.write_bytes(b"y")
    assert not files.holds(path, sha256)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_knows_no_sync_counts_as_synced() -> None:
    """/proc answers EINVAL to fsync of a folder, as network shares do."""
    files.fsync_folder(Path("/proc/self"))


# --- renaming and moving -----------------------------------------------------------------------------------


def test_rename_new_never_replaces(tmp_path: Path) -> None:
    """Not a file, not a folder, not even a link that leads nowhere."""
    source = tmp_path / "source"
    source.write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"theirs")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for taken in ("file", "folder", "link"):
        with pytest.raises(FileExistsError):
            files.rename_new(source, tmp_path / taken)
    assert (tmp_path / "file").read_bytes() == b"theirs"
    files.rename_new(source, tmp_path / "free")
    assert (tmp_path / "free").read_bytes() == b"mine" and not source.exists()
    with pytest.raises(FileNotFoundError):
        files.rename_new(source, tmp_path / "another")


def test_rename_new_where_the_kernel_can_not(tmp_path: Path) -> None:
    """A file system without RENAME_NOREPLACE is asked by looking first: still nothing is replaced."""
    source, taken = tmp_path / "source", tmp_path / "taken"
    source.write_bytes(b"mine")
    taken.write_bytes(b"theirs")
    # The flags 1 | 2 (no replacing, and exchange) contradict each other: the real kernel refuses them by EINVAL, as
    # a file system does that knows no flags.
    said = with_file_size_limit(
        1 << 20,
        f"""
        files._RENAME_NOREPLACE = 3
        try:
            files.rename_new(Path({str(source)!r}), Path({str(taken)!r}))
        except FileExistsError:
            print("refused")
        files.rename_new(Path({str(source)!r}), Path({str(tmp_path / "free")!r}))
        """,
    )
    assert said == "refused"
    assert taken.read_bytes() == b"theirs" and (tmp_path / "free").read_bytes() == b"mine"


def test_publish_replaces_within_a_file_system(tmp_path: Path) -> None:
    """The same file under another name too; it lies there under a hidden one when it is asked whether it may."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    seen: list[tuple[int, bytes]] = []
    files.publish(source, target, tmp_path, lambda: seen.append((len(names(tmp_path)), target.read_bytes())))
    assert seen == [(3, b"old")]
    assert target.read_bytes() == b"new" and target.samefile(source)
    files.publish(source, target, tmp_path, lambda: None)  # again, after a crash
    assert names(tmp_path) == ["a", "b"]


def test_publish_across_file_systems(tmp_path: Path, elsewhere: Path) -> None:
    """The content arrives whole, and what fails or may not be leaves all as it was."""
    content = os.urandom(files.COPY_BYTES + 12_345)
    source, target = elsewhere / "a.wav", tmp_path / "b.wav"
    source.write_bytes(content)
    with pytest.raises(FileNotFoundError):
        files.publish(source, tmp_path / "missing" / "b.wav", tmp_path / "missing", lambda: None)

    def overtaken() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        files.publish(source, target, tmp_path, overtaken)
    assert source.exists() and names(tmp_path) == []
    files.publish(source, target, tmp_path, lambda: None)
    assert target.read_bytes() == content and names(tmp_path) == ["b.wav"]
    source.unlink()
    with pytest.raises(FileNotFoundError):
        files.publish(source, target, tmp_path, lambda: None)


def test_a_link_is_not_carried_to_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    """What it points to is nobody's to copy."""
    (elsewhere / "secret").write_bytes(b"secret")
    (elsewhere / "link").symlink_to(elsewhere / "secret")
    with pytest.raises(OSError) as caught:
        files.publish(elsewhere / "link", tmp_path / "link", tmp_path, lambda: None)
    assert caught.value.errno == errno.ELOOP
    assert names(tmp_path) == []


def test_copy_says_what_it_copied(tmp_path: Path) -> None:
    """The sha256 is that of the bytes written, over several blocks, and of an empty file too."""
    for content in (b"", b"short", os.urandom(3 * files.COPY_BYTES + 1)):
        (tmp_path / "source").write_bytes(content)
        said = files.copy(tmp_path / "source", tmp_path / "target")
        assert said == hashlib.sha256(content).hexdigest()
        assert (tmp_path / "target").read_bytes() == content


def test_copy_takes_regular_files_only(tmp_path: Path) -> None:
    """No FIFO blocks it, no link leads it astray, and nothing is left of the attempt."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    for source in before:
        with pytest.raises(OSError):
            files.copy(tmp_path / source, tmp_path / "target")
    assert names(tmp_path) == before


def test_files_are_made_for_the_group(tmp_path: Path) -> None:
    """Editors in the daemon's group may remove and replace what it writes, as the umask allows."""
    umask = os.umask(0o002)
    try:
        files.write_atomically(tmp_path / "a", b"")
        files.copy(tmp_path / "a", tmp_path / "b")
        files.make_folder(tmp_path / "c")
    finally:
        os.umask(umask)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b", "c")]
    assert modes == [0o664, 0o664, 0o775]


# --- folders -----------------------------------------------------------------------------------------------


def test_make_folder(tmp_path: Path) -> None:
    """Missing parents are made; one that is there is fine, through a link too."""
    files.make_folder(tmp_path / "a" / "b" / "c")
    files.make_folder(tmp_path / "a" / "b" / "c")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    files.make_folder(tmp_path / "link" / "d")
    assert (tmp_path / "a" / "d").is_dir()


def test_what_is_no_folder_can_not_become_one(tmp_path: Path) -> None:
    """A file, or a link that leads nowhere, in the place of the folder or of a parent is an error, not a folder."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("nowhere")
    for path in ("file", "file/below", "link", "link/below"):
        with pytest.raises(OSError):
            files.make_folder(tmp_path / path)


def test_remove_tree(tmp_path: Path) -> None:
    """The whole folder goes; one that is gone already is fine."""
    folder = tmp_path / "token"
    (folder / "segments").mkdir(parents=True)
    (folder / "job.json").write_bytes(b"{}")
    files.remove_tree(folder)
    files.remove_tree(folder)
    assert names(tmp_path) == []


def test_a_removal_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    """What a crash left half removed is no folder of that name, and is in nobody's way."""
    folder, hidden = tmp_path / "token", tmp_path / ".token.gone"
    (hidden / "segments").mkdir(parents=True)
    files.remove_tree(folder)
    assert names(tmp_path) == []
    (hidden / "segments").mkdir(parents=True)
    folder.mkdir()
    (folder / "job.json").write_bytes(b"{}")
    files.remove_tree(folder)
    assert names(tmp_path) == []


def test_leftovers_are_ours_alone(tmp_path: Path) -> None:
    """Temporary files and folders go; what others have put there stays, and a missing folder has none."""
    files.temporary_name(tmp_path / "x").write_bytes(b"half")
    (tmp_path / ".a.gone").mkdir()
    (tmp_path / ".b.new" / "references").mkdir(parents=True)
    (tmp_path / "segment_0000.wav").write_bytes(b"")
    (tmp_path / "film.json.part").write_bytes(b"")
    files.remove_leftovers(tmp_path)
    files.remove_leftovers(tmp_path / "missing")
    assert names(tmp_path) == ["film.json.part", "segment_0000.wav"]


def test_discard_takes_whatever_lies_there(tmp_path: Path) -> None:
    """A file, a folder, a link, nothing: no complaint, and what a link points to stays."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(ROOT)
    for name in ("file", "folder", "link", "missing", "x" * 300):
        files.discard(tmp_path / name)
    assert names(tmp_path) == [] and ROOT.is_dir()

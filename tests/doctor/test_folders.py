"""The doctor's look at the folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daemon.commands.invocation import Invocation
from daemon.config import Settings
from daemon.doctor import folders
from daemon.doctor.folders import Mount


def settings(root: Path, *overrides: str) -> Settings:
    return Invocation(overrides=(f"paths.root={root}", *overrides)).settings()


def levels(findings: object) -> list[tuple[str, str]]:
    return [(finding.check, finding.level) for finding in findings]  # type: ignore[attr-defined]


def test_folders_that_are_yet_to_be_made_are_fine(tmp_path: Path) -> None:
    """And are not made by looking."""
    found = folders.check(settings(tmp_path / "var"))
    assert all(finding.level != "fail" for finding in found), found
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_fails(tmp_path: Path) -> None:
    """However far up the path it lies."""
    (tmp_path / "var").write_text("")
    found = folders.check(settings(tmp_path / "var" / "deep"))
    assert ("paths.inbox", "fail") in levels(found)


def test_a_folder_that_may_not_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its owner and mode, and how to mend it. (A superuser may write everywhere: the question is answered for
    one who may not.)"""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and not (mode & os.W_OK))
    (finding,) = folders.check_folder("paths.inbox", tmp_path, [])
    assert finding.level == "fail"
    assert "chown" in finding.mend


def test_a_status_that_is_a_folder_fails(tmp_path: Path) -> None:
    """It is to be a file."""
    (tmp_path / "status.json").mkdir()
    assert ("paths.status", "fail") in levels(folders.check(settings(tmp_path)))


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_state_on_a_share_fails(tmp_path: Path, kind: str) -> None:
    """The inbox and the outbox may lie there."""
    (finding,) = folders.check_state(tmp_path / "state", [Mount("/", "ext4"), Mount(str(tmp_path), kind)])
    assert finding.level == "fail"
    assert kind in finding.message


def test_state_in_memory_is_warned_of(tmp_path: Path) -> None:
    """It works, until the machine restarts."""
    (finding,) = folders.check_state(tmp_path, [Mount("/", "ext4"), Mount(str(tmp_path), "tmpfs")])
    assert finding.level == "warn"


def test_mounts_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    """Optional fields, escaped spaces, and a mount that hides another."""
    source = tmp_path / "mountinfo"
    source.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "40 22 0:50 / /mnt/my\\040share rw - nfs4 server:/ rw\n"
        "41 22 0:51 / /mnt rw,relatime shared:2 master:3 - tmpfs tmpfs rw\n"
        "42 41 0:52 / /mnt rw - xfs /dev/sdb rw\n"
        "broken line\n"
    )
    mounts = folders.read_mounts(source)
    assert folders.mount_of(Path("/mnt/my share/dub"), mounts) == Mount("/mnt/my share", "nfs4")
    assert folders.mount_of(Path("/mnt/elsewhere"), mounts).kind == "xfs"
    assert folders.mount_of(Path("/mntx"), mounts).kind == "ext4"
    assert folders.read_mounts(tmp_path / "nowhere") == []


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little room is a warning, next to none a failure."""
    for free, level in ((50 * 1000**2, "fail"), (1000**3, "warn")):
        usage = type("Usage", (), {"free": free})()
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: usage)
        assert ("paths.outbox", level) in levels(folders.check_room("paths.outbox", tmp_path, tmp_path))


def test_a_umask_that_locks_submitters_out_is_warned_of(tmp_path: Path) -> None:
    """Who may write to the inbox should be able to read the outbox."""
    inbox, outbox = tmp_path / "inbox", tmp_path / "outbox"
    inbox.mkdir()
    outbox.mkdir()
    inbox.chmod(0o2775)
    before = os.umask(0o077)
    try:
        assert levels(folders.check_sharing(inbox, outbox)) == [("sharing", "warn")]
    finally:
        os.umask(before)


def test_allowed_roots_that_are_not_there_are_warned_of(tmp_path: Path) -> None:
    """Jobs that name files in them would be rejected."""
    found = folders.check(settings(tmp_path, 'paths.allowed_roots=["/nowhere/at/all"]'))
    assert ("paths.allowed_roots", "warn") in levels(found)


def test_an_inbox_whose_files_can_not_be_taken_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sticky bit a file is its owner's alone to move. (A superuser may: the question is answered for one who
    may not.)"""
    tmp_path.chmod(0o1777)
    assert levels(folders.check_taking(tmp_path)) == []
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    (tmp_path / "film.json").touch()
    monkeypatch.setattr(os, "access", lambda path, mode, **_: False)
    sticky, unreadable = folders.check_taking(tmp_path)
    assert (sticky.level, unreadable.level) == ("fail", "warn")
    assert "chmod -t" in sticky.mend and "film.json" in unreadable.message

"""A share that is not mounted is waited for, and nothing is published below it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from daemon.mounts import Mounts, mount_point


def table(tmp_path: Path, *points: str) -> Path:
    """A mountinfo as in proc(5), with these mount points."""
    file = tmp_path / "mountinfo"
    escaped = [point.replace("\\", "\\134").replace(" ", "\\040") for point in ("/", *points)]
    lines = [f"{number} 1 0:{number} / {point} rw - tmpfs x rw\n" for number, point in enumerate(escaped)]
    file.write_text("".join(lines))
    return file


def test_the_mount_point_is_the_deepest(tmp_path: Path) -> None:
    """Names that only begin alike are other folders; the kernel writes blanks in octal."""
    info = table(tmp_path, "/srv", "/srv/films", "/srv/films two", "/srv/back\\slash")
    for path, point in (
        ("/srv/films/outbox", "/srv/films"),
        ("/srv/films", "/srv/films"),
        ("/srv/filmsX/outbox", "/srv"),
        ("/srv/films two/outbox", "/srv/films two"),
        ("/srv/back\\slash/x", "/srv/back\\slash"),
        ("/home", "/"),
    ):
        assert mount_point(path, info) == point
    assert mount_point("/srv", tmp_path / "missing") is None


def test_a_share_that_is_not_mounted_is_away(tmp_path: Path) -> None:
    """In this life and the next, until it is back; one that is mounted later, further down the path, is taken."""
    outbox = Path("/srv/films/outbox")
    mounts = Mounts(tmp_path, table(tmp_path))
    mounts.check(outbox)
    table(tmp_path, "/srv/films")
    mounts.check(outbox)
    table(tmp_path)
    for again in (mounts, Mounts(tmp_path, tmp_path / "mountinfo")):
        with pytest.raises(OSError, match="nothing is mounted at /srv/films") as caught:
            again.check(outbox)
        assert caught.value.errno == errno.ENOTCONN
        again.check(Path("/home/inbox"))
    table(tmp_path, "/srv/films")
    mounts.check(outbox)
    (tmp_path / "mounts.json").write_text("[]")
    Mounts(tmp_path, table(tmp_path)).check(outbox)

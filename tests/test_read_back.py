"""Reading an accepted job back at a start: what is damaged is put aside, what the machine lacks is waited for."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon import service
from daemon.embeddings.live_job import open_job
from daemon.live_job import LiveJob
from daemon.service import read_back
from tests.shell import job_document, make_live_job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    job = make_live_job(jobs, job_document(["one", "two"]))
    job.close()
    return job.folder


def run(folder: Path) -> LiveJob | None:
    return anyio.run(read_back, folder, folder.parent.parent / "damaged" / folder.name)


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "memory"),
        OSError(errno.EMFILE, "files"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_the_machine_lacks_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    """Put aside, all that is finished would be spoken again."""
    tries = 0

    def fail_twice(*arguments: Any) -> LiveJob:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise shortage
        return open_job(*arguments)

    monkeypatch.setattr(service, "open_job", fail_twice)
    monkeypatch.setattr(service, "SHORTAGE_PAUSE_S", 0.0)
    job = run(folder)
    assert job is not None and (job.token, tries) == (folder.name, 3)
    assert not (folder.parent.parent / "damaged").exists()


def test_a_machine_that_still_lacks_it_ends_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> LiveJob:
        raise MemoryError

    monkeypatch.setattr(service, "open_job", fail)
    monkeypatch.setattr(service, "SHORTAGE_S", 0.0)
    monkeypatch.setattr(service, "SHORTAGE_PAUSE_S", 0.0)
    with pytest.raises(OSError, match="memory"):
        run(folder)
    assert folder.exists()


def test_a_folder_that_is_not_whole_is_put_aside(folder: Path) -> None:
    os.unlink(folder / "about.json")
    assert run(folder) is None
    assert os.listdir(folder.parent) == []
    assert os.listdir(folder.parent.parent / "damaged") == [folder.name]

"""Reading an accepted job back at a start: what is damaged is put aside, what the machine lacks is waited for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon import files, service
from daemon.core.job import Limits
from daemon.embeddings.live_job import open_job
from daemon.live_job import OUT_FILE, LiveJob
from daemon.service import read_back
from tests.end_to_end.conftest import ROOT, toml
from tests.shell import job_document, make_live_job, settings_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    job = make_live_job(jobs, job_document(["one", "two"]))
    job.close()
    return job.folder


def run(folder: Path) -> LiveJob | None:
    return anyio.run(read_back, folder, folder.parent.parent / "damaged", settings_in(folder.parent.parent))


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


def test_what_was_out_is_waited_for_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not read, a line that ends every daemon would be nobody's suspect, and given out beside others again."""
    job = LiveJob.open(folder, Limits())
    job.give_out(1)
    job.close()
    read, tries = files.read_regular, 0

    def fail_twice(path: Path, most: int) -> bytes:
        nonlocal tries
        if path.name == OUT_FILE and (tries := tries + 1) < 3:
            raise OSError(errno.ENOMEM, "memory")
        return read(path, most)

    monkeypatch.setattr(files, "read_regular", fail_twice)
    monkeypatch.setattr(service, "SHORTAGE_PAUSE_S", 0.0)
    again = run(folder)
    assert again is not None and tries == 3
    again.close()
    assert [segment.suspect for segment in again.segments] == [False, True]


def test_a_start_that_waits_hears_of_its_end(folder: Path, tmp_path: Path) -> None:
    """For as long as the machine lacks something the daemon is not ready, but it is not deaf."""
    state = tmp_path / "state"
    state.mkdir()
    folder.parent.rename(state / "jobs")
    program = """
        from daemon import cli, service

        def lacking(*_):
            raise MemoryError

        service.open_job = lacking
        cli.main()
    """
    config = tmp_path / "config.toml"
    config.write_text(toml({"paths.root": tmp_path, "engine.name": "silence", "log.format": "json"}))
    command = [sys.executable, "-c", textwrap.dedent(program), "run", "--config", str(config)]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "can't be read back yet" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, lines
    assert any('"stopping"' in line for line in lines), lines
    assert (state / "jobs" / folder.name).exists() and not (state / "damaged").exists()


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

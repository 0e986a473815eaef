"""The loop over the inbox, in a real daemon: what may go wrong with one file, and what others notice of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.live_job import new_token
from tests.end_to_end.conftest import DaemonUnderTest, make_job, wait_for


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonUnderTest]:
    """With two workers, running."""
    daemon = DaemonUnderTest(tmp_path)
    yield daemon.start()
    daemon.end_test()


def immovable(path: Path) -> bool:
    """Take from everybody, us too, the right to rename the file; False where the file system can't."""
    tool = shutil.which("chattr")
    return tool is not None and subprocess.run([tool, "+i", path], capture_output=True, check=False).returncode == 0


def empty_claims(daemon: DaemonUnderTest) -> list[Path]:
    """The folders that were made for a file which could not be taken."""
    found = []
    for path in daemon.inbox.glob(".claimed/*/*"):
        with suppress(FileNotFoundError):
            if not os.listdir(path):
                found.append(path)
    return found


def test_a_file_that_can_not_be_taken(daemon: DaemonUnderTest) -> None:
    """It stays where it is, is told of, and the others go their way; nothing piles up beside it."""
    stuck = daemon.inbox / "stuck.json"
    daemon.signal(signal.SIGSTOP)  # else it may take the file first
    daemon.drop("stuck", make_job(["stuck"]))
    stays = immovable(stuck)
    daemon.signal(signal.SIGCONT)
    if not stays:
        pytest.skip("no file can be made immovable here")
    try:
        manifest = daemon.run("film", make_job(["hello"]))
        assert manifest["status"] == "done"
        wait_for(lambda: daemon.lines("a job file can't be taken out of the inbox"), "the word of it")
        wait_for(lambda: empty_claims(daemon) == [], "an end of the last try, whose folder is there while it lasts")
    finally:
        subprocess.run(["chattr", "-i", stuck], check=True)
    assert daemon.manifest("stuck")["status"] == "done"


def test_claims_in_an_inbox_that_comes_later(daemon: DaemonUnderTest) -> None:
    """What an earlier life has claimed and not accepted is taken up when the share is there, be it after the start."""
    host = daemon.status()["host_id"]
    assert daemon.stop() == 0
    daemon.drop("film", make_job(["hello"]))
    claimed = daemon.inbox / ".claimed" / host / new_token()
    claimed.mkdir(parents=True)
    (daemon.inbox / "film.json").rename(claimed / "film.json")
    daemon.inbox.rename(daemon.root / "away")
    daemon.start()
    shutil.rmtree(daemon.inbox)
    wait_for(lambda: daemon.status().get("inbox", {}).get("reachable") is False, "the loss of the inbox")
    (daemon.root / "away").rename(daemon.inbox)
    assert daemon.manifest("film")["status"] == "done"
    wait_for(lambda: not claimed.exists(), "the end of the claim")

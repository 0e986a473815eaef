"""The loop over the inbox, in a real daemon: what may go wrong with one file, and what others notice of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from daemon import files, reception
from daemon.intake import Rejection
from daemon.live_job import Claim, new_token
from tests.end_to_end.conftest import DaemonUnderTest, make_job, wait_for
from tests.shell import settings_in


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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("stumbles", "error", "accepted"),
    [
        (2, RuntimeError("dictionary changed size during iteration"), True),
        (5, RuntimeError(files.NO_THREAD), True),
        (3, LookupError("our mistake"), False),
    ],
)
async def test_a_mistake_of_the_moment_costs_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stumbles: int, error: Exception, accepted: bool
) -> None:
    """One that comes again and again is the file's; what the machine lacks is nobody's, however long it lasts."""
    settings = settings_in(tmp_path)
    tries = 0

    def accept(*_: object) -> object:
        nonlocal tries
        tries += 1
        if tries <= stumbles:
            raise error
        return "the job"

    monkeypatch.setattr(reception, "accept", accept)
    monkeypatch.setattr(reception, "STUMBLE_PAUSE_S", 0.0)
    monkeypatch.setattr(reception, "SPACE_CHECK_S", 0.0)
    signs = SimpleNamespace(warnings={}, wake=lambda: None)
    jobs = SimpleNamespace(live_id=None, taken_names=None, mounts=SimpleNamespace(check=lambda folder: None))
    inbox = SimpleNamespace(settle=print, has_lost=lambda claim: False)
    one = reception.Reception(settings, inbox, jobs, signs, tasks=None)  # type: ignore[arg-type]
    found: object = await one._accept(Claim(new_token(), tmp_path / "film.json", 0.0))
    assert (found == "the job") is accepted and not signs.warnings
    if not accepted:
        assert isinstance(found, Rejection) and tries == stumbles

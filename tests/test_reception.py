"""The loop over the inbox, in a real daemon: what may go wrong with one file, and what others notice of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import files, reception
from daemon.intake import Rejection
from daemon.live_job import Claim, new_token
from tests.end_to_end.conftest import ROOT, DaemonUnderTest, make_job, recording, wait_for
from tests.other_user import NOBODY, as_nobody, possible
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
    mounts = SimpleNamespace(check=lambda folder: None)
    jobs = SimpleNamespace(live_id=None, taken_names=None, latest=None, mounts=mounts)
    inbox = SimpleNamespace(settle=print, has_lost=lambda claim: False)
    one = reception.Reception(settings, inbox, jobs, signs, tasks=None)  # type: ignore[arg-type]
    found: object = await one._accept(Claim(new_token(), tmp_path / "film.json", 0.0))
    assert (found == "the job") is accepted and not signs.warnings
    if not accepted:
        assert isinstance(found, Rejection) and tries == stumbles


# --- cancels that come late ---------------------------------------------------------------------------------


def seen_by_now(daemon: DaemonUnderTest, mark: str) -> None:
    """What was dropped before this has been seen: a file that came later has been looked at."""
    daemon.drop(mark, b'{"segments": 3}')
    daemon.rejection(mark)


@pytest.mark.parametrize("death", [False, True], ids=["one life", "a death between"])
def test_a_late_cancel_is_not_for_the_next_job(tmp_path: Path, death: bool) -> None:
    """It concerns what was seen no later, also where the daemon can't remember what it saw."""
    daemon = DaemonUnderTest(tmp_path, inbox__grace_seconds=3.0)
    daemon.start()
    try:
        daemon.run("film", make_job(["The first."]))
        wait_for(lambda: not daemon.status()["jobs"], "the end of the first")
        (daemon.inbox / "film.cancel").touch()
        seen_by_now(daemon, "mark")
        daemon.drop("film", make_job(["The correction."]))
        seen_by_now(daemon, "another")
        if death:
            daemon.kill()
            daemon.start()
        wait_for((daemon.outbox / "film" / "manifest.1.json").exists, "the second one's turn")
        manifest = daemon.manifest("film")
        assert (manifest["status"], manifest["segments"][0]["text"]) == ("done", "The correction.")
        assert not (daemon.inbox / "film.cancel").exists()
    finally:
        daemon.end_test()


@pytest.mark.parametrize("death", [False, True], ids=["one life", "a death between"])
def test_a_cancel_concerns_all_that_came_before(tmp_path: Path, death: bool) -> None:
    """The job that runs, and the one of the same id that is still settling."""
    daemon = DaemonUnderTest(tmp_path)
    daemon.start()
    try:
        daemon.drop("film", make_job(["Held {hold}"]))
        wait_for(lambda: daemon.job_row("film")["state"] == "running", "the first one")
        job = make_job(["Held as well {hold}"])
        job["speakers"][0]["references"][0]["audio"] = "late.flac"
        daemon.reload(inbox__grace_seconds=60.0)
        daemon.drop("film", job, recorded=False)
        seen_by_now(daemon, "mark")
        (daemon.inbox / "film.cancel").touch()
        assert daemon.manifest("film")["status"] == "cancelled"
        seen_by_now(daemon, "another")
        assert (daemon.inbox / "film.json").exists() and (daemon.inbox / "film.cancel").exists()
        if death:
            daemon.kill()
            daemon.start()
        shutil.copy(daemon.inbox / "anna.flac", daemon.inbox / "late.flac")
        wait_for((daemon.outbox / "film" / "manifest.1.json").exists, "the second one's turn")
        assert daemon.manifest("film")["status"] == "cancelled"
        wait_for(lambda: not (daemon.inbox / "film.cancel").exists(), "the end of the cancel")
    finally:
        daemon.end_test()


# --- files of the future, files of others --------------------------------------------------------------------


def test_a_broken_file_of_the_future_is_rejected_once(daemon: DaemonUnderTest) -> None:
    """The clock of a share says nothing."""
    path = daemon.inbox / ".broken"
    path.write_bytes(b'{"segments": [')
    os.utime(path, (4e9, 4e9))
    path.rename(daemon.inbox / "broken.json")
    assert daemon.rejection("broken") == [("$", "not_json")]
    assert not daemon.lines("a job file changed while it was taken; waiting for it")


class OfNobody(DaemonUnderTest):
    """A daemon without any rights, whose folders are its own but for the inbox, which is ours."""

    def __init__(self, folder: Path, mode: int, **settings: Any) -> None:
        super().__init__(folder, **settings)
        folder.chmod(0o755)
        self.root.mkdir()
        self.inbox.mkdir()
        for path in (self.folder, self.root):
            os.chown(path, NOBODY, NOBODY)
        self.inbox.chmod(mode)

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                as_nobody([sys.executable, "-m", "daemon", "run", "--config", str(self.config), *options]),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)},
            )


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that other users may reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def secret(daemon: DaemonUnderTest, name: str, content: bytes) -> None:
    """As tempfile makes one: for its owner alone."""
    path = daemon.inbox / f".{name}"
    path.write_bytes(content)
    path.chmod(0o600)
    path.rename(daemon.inbox / f"{name}.json")


as_root = pytest.mark.skipif(not possible(), reason="only root may be another user")


@as_root
def test_a_file_that_the_daemon_may_not_read(base: Path) -> None:
    """It is put aside with its reason, as every other file is; those after it go their way."""
    daemon = OfNobody(base, 0o777)
    daemon.start()
    try:
        secret(daemon, "film", b"whose?")
        assert daemon.rejection("film") == [("$", "unreadable")]
        wait_for(lambda: not list(daemon.inbox.glob(".claimed/*/*")), "the end of the claim")
        kept = daemon.rejected / "film.json"
        assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (b"whose?", 0o600)
        assert daemon.run("next", make_job(["Hello."]))["status"] == "done"
    finally:
        daemon.end_test()


@as_root
@pytest.mark.parametrize("readable", [True, False])
def test_a_file_that_the_daemon_may_not_move(base: Path, readable: bool) -> None:
    """It stays, which is told once, also over a restart; and is taken when its folder lets it go."""
    daemon = OfNobody(base, 0o1777)
    daemon.start()
    try:
        daemon.put("anna.flac", b"")
        daemon.drop("film", make_job(["Hello."]))
        job = (daemon.inbox / "film.json").read_bytes()
        if not readable:
            secret(daemon, "film", job)
        assert daemon.rejection("film") == [("$", "not_movable")]
        wait_for(lambda: any("sticky" in line for line in daemon.status()["warnings"]), "the warning")
        daemon.kill()
        daemon.start()
        wait_for(lambda: any("sticky" in line for line in daemon.status()["warnings"]), "the warning, again")
        assert [path.name for path in daemon.rejected.iterdir()] == ["film.error.json"]
        assert len(daemon.lines("a job file can't be taken out of the inbox")) == 2, "once in each life"
        assert (daemon.inbox / "film.json").read_bytes() == job
        assert not list(daemon.inbox.glob(".claimed/*/*"))
        (daemon.inbox / "film.json").chmod(0o644)
        (daemon.inbox / "anna.flac").write_bytes(recording())
        daemon.inbox.chmod(0o777)
        assert daemon.manifest("film")["status"] == "done"
        wait_for(lambda: not daemon.status()["warnings"], "the end of the warning")
    finally:
        daemon.end_test()


@as_root
def test_a_file_that_can_be_neither_read_nor_carried(base: Path) -> None:
    """The folder of the rejected ones is on another file system: it goes back, and its reasons stand there."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(base).st_dev:
        pytest.skip("there is one file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as far:
        os.chown(far, NOBODY, NOBODY)
        daemon = OfNobody(base, 0o777, paths__rejected=far)
        daemon.start()
        try:
            job = json.dumps(make_job(["Hello."])).encode()
            secret(daemon, "film", job)
            assert daemon.rejection("film") == [("$", "not_movable")]
            wait_for(lambda: any("chmod a+r" in line for line in daemon.status()["warnings"]), "the warning")
            assert (daemon.inbox / "film.json").read_bytes() == job
            daemon.put("anna.flac", recording())
            (daemon.inbox / "film.json").chmod(0o644)
            assert daemon.manifest("film")["status"] == "done"
        finally:
            daemon.end_test()

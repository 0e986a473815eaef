"""What earlier versions have left on disk is read, finished and redone by this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.intake import WHATEVER_SIZE
from daemon.live_job import LiveJob
from tests.end_to_end.conftest import ROOT, DaemonUnderTest, wait_for
from tests.frozen.make import FROZEN

VERSIONS = sorted(path.name for path in FROZEN.iterdir())


def dubd_command(dubd: DaemonUnderTest, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon", "--config", str(dubd.config), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_journals_of_old_are_read(version: str) -> None:
    """To the same state: what was spoken is, what had begun is suspected, the rest waits."""
    film, queued = (LiveJob.open(path, WHATEVER_SIZE) for path in sorted((FROZEN / version / "state/jobs").iterdir()))
    assert [segment.status for segment in film.segments] == ["ok"] * 8 + ["waiting"] * 33
    assert [spec.position for spec in film.waiting() if spec.suspect] == [8]
    assert (film.job_id, film.taken, film.job.priority, film.segments[0].seed) == ("film", True, 5, 7)
    assert (queued.job_id, queued.taken, len(queued.waiting())) == ("queued", True, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_folders_of_old_are_taken_up(version: str, tmp_path: Path) -> None:
    """Listed as they are; their jobs are finished, without speaking again what was spoken; what has ended is redone."""
    frozen = FROZEN / version
    dubd = DaemonUnderTest(tmp_path)
    dubd.configure(engine__name="draft", engine__options={})
    shutil.copytree(frozen, dubd.root)
    listed = {job["job_id"]: job["state"] for job in json.loads(dubd_command(dubd, "jobs", "--json").stdout)["jobs"]}
    assert listed == {
        "ended": "done",
        "clip": "done",
        "film": "interrupted",
        "queued": "interrupted",
        "bad": "rejected",
    }
    try:
        dubd.start()
        film = dubd.manifest("film")
        dubd.check_manifest(film)
        assert (film["status"], film["counts"]["ok"], film["counts"]["skipped"]) == ("done", 40, 1)
        assert [segment["attempts"] for segment in film["segments"][:10]] == [1] * 8 + [2, 1]
        spoken = [*(frozen / "outbox/film").glob("*.wav"), *frozen.glob("state/jobs/*/segments/*.wav")]
        contents = {path.read_bytes() for path in spoken}
        published = [dubd.outbox / "film" / f"segment_{index:04d}.wav" for index in range(8)]
        assert {path.read_bytes() for path in published} == contents and len(contents) == 8
        assert dubd.manifest("queued")["status"] == "done"
        done = dubd_command(dubd, "redo", "ended", "--segments", "0", "--wait")
        assert done.returncode == 0, done.stderr
        ended = dubd.manifest("ended")
        assert [len(segment.get("history", ())) for segment in ended["segments"]] == [1, 1, 0]
        assert (dubd.outbox / "ended" / "manifest.2.json").exists()
        wait_for(lambda: dubd.lines("there is no such job to cancel"), "the word on a cancel of old")
        assert dubd_command(dubd, "status").returncode == 0
        dubd.check_nothing_left()
        assert dubd.stop() == 0
    finally:
        dubd.end_test()

"""What the daemon does to last: clearing away, watching its disks, renewing its workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Make, make_job, wait_for


def test_read_results_go_and_all_others_stay(make: Make) -> None:
    """Results that somebody has marked as read go when they are old, and no folder that the daemon has not made; the
    same job is then spoken anew."""
    dubd = make(retention__outbox_days=1e-6).start()
    dubd.run("film", make_job(["One.", "Two."]))
    dubd.run("unread", make_job(["Three."]))
    foreign = dubd.outbox / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_bytes((dubd.outbox / "film" / "manifest.json").read_bytes())
    (foreign / "manifest.read").touch()
    command = [sys.executable, "-m", "daemon", "jobs", "--config", str(dubd.config), "--read", "film", "--read", "../x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "film: read\n")
    assert "no job '../x'" in done.stderr
    dubd.reload()
    wait_for(lambda: not (dubd.outbox / "film").exists(), "the end of what was read")
    (line,) = wait_for(lambda: dubd.lines("removed the results of a job"), "a word on it")
    assert (line["job"], line["why"]) == ("film", "older than 1e-06 days")
    assert dubd.run("film", make_job(["One.", "Two."]))["counts"]["cached"] == 0
    dubd.reload()
    wait_for(lambda: len(dubd.lines("the configuration has been read again")) == 2, "another round")
    assert {path.name for path in dubd.outbox.glob("[!.]*")} == {"film", "unread", "foreign"}


def test_workers_that_have_spoken_enough_are_replaced_in_turn(make: Make) -> None:
    """In the middle of a job: all of it is spoken, each line once, by processes that live one after the other."""
    dubd = make(pool__recycle_segments=2, worker__beat_seconds=0.05).start()
    manifest = dubd.run("film", make_job([f"Line {number}." for number in range(24)], speakers=4))
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert set(dubd.told_texts().values()) == {1}
    rows = wait_for(lambda: [row for row in dubd.workers() if row["recycles"]], "a word on it in the status")
    assert sum(row["restarts"] for row in rows) == 0
    lines = dubd.lines("a fresh process takes the worker's place")
    assert lines and all("segments" in line["reason"] for line in lines)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if mounting.returncode:
        pytest.skip(f"a file system can't be mounted here: {mounting.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_jobs_wait_before_the_disk_is_full(make: Make, disk: Path) -> None:
    """Below the floor none is taken, and it says so everywhere; what was taken is finished. Large ones wait for the
    jobs at work, smaller ones pass them; with room all of them are done."""
    dubd = make(
        paths__outbox=str(disk / "outbox"),
        disk__outbox_free_gb=0.02,
        disk__state_free_gb=0.0,
    ).start()
    dubd.drop("running", make_job(["{hold}"]))
    wait_for(lambda: dubd.job_row("running")["state"] == "running", "the first job")
    dubd.drop("large", make_job(["x" * 1990 for _ in range(3)]))
    wait_for(lambda: any("large.json waits" in warning for warning in dubd.status()["warnings"]), "the word on it")
    dubd.run("small", make_job(["y"]))
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * 25_000_000)
    wait_for(lambda: dubd.status()["disk"]["taking_jobs"] is False, "the pause")
    shown = subprocess.run(
        [sys.executable, "-m", "daemon", "status", "--config", str(dubd.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "none is taken for want of disk space" in shown.stdout and "disk.outbox_free_gb" in shown.stdout
    dubd.drop("late", make_job(["z"]))
    dubd.open_gate()
    assert dubd.manifest("running")["status"] == "done"
    wait_for(lambda: dubd.status()["inbox"]["waiting"] == 2, "the two that wait")
    assert not (dubd.outbox / "late").exists() and not (dubd.outbox / "large").exists()
    ballast.unlink()
    assert dubd.manifest("late")["status"] == dubd.manifest("large")["status"] == "done"
    wait_for(lambda: not dubd.status()["warnings"], "the end of the warnings")

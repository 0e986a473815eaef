"""What the daemon does to last: clearing away, watching its disks, renewing its workers."""

from __future__ import annotations

import subprocess
import sys

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
    assert {path.name for path in dubd.outbox.iterdir()} == {"film", "unread", "foreign"}


def test_workers_that_have_spoken_enough_are_replaced_in_turn(make: Make) -> None:
    """In the middle of a job: all of it is spoken, at the first attempt, by processes that live one after the other."""
    dubd = make(pool__recycle_segments=2, worker__beat_seconds=0.05).start()
    manifest = dubd.run("film", make_job([f"Line {number}." for number in range(24)], speakers=4))
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert {segment["attempts"] for segment in manifest["segments"]} == {1}
    assert set(dubd.told_texts().values()) == {1}
    rows = wait_for(lambda: [row for row in dubd.workers() if row["recycles"]], "a word on it in the status")
    assert sum(row["restarts"] for row in rows) == 0
    lines = dubd.lines("a fresh process takes the worker's place")
    assert lines and all("segments" in line["reason"] for line in lines)

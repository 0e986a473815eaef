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

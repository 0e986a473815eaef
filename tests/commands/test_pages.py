"""The pages that a daemon leaves beside its results and its status."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.commands.conftest import PATIENCE_S, ROOT, Place, wait_until


def data(page: Path) -> dict[str, Any]:
    """What a page shows."""
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', page.read_bytes(), re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_report_comes_early_and_at_the_end(live: Place, closed_gate: Path, tmp_path: Path) -> None:
    """Once while the job runs, and once when it is over, with what the manifest says."""
    process = live.start("submit", str(live.write_job(tmp_path, "reported", ["one", "two", "hold three"])), "--wait")
    report = live.var / "outbox" / "reported" / "report.html"
    wait_until(report.exists, "the early report")
    assert data(report)["status"] == "running"
    closed_gate.touch()
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    shown = data(report)
    manifest = json.loads((report.parent / "manifest.json").read_bytes())
    assert shown["status"] == manifest["status"]
    assert shown["counts"]["ok"] == 3
    rows = [dict(zip(shown["columns"], row, strict=True)) for row in shown["rows"]]
    assert [row["file"] for row in rows] == [segment["file"] for segment in manifest["segments"]]
    assert all(row["peaks"] for row in rows)


def test_a_report_that_can_not_be_written_holds_up_nothing(live: Place, tmp_path: Path) -> None:
    """Here, since something else has its name."""
    (live.var / "outbox" / "unreported" / "report.html").mkdir(parents=True)
    done = live.dubd("submit", str(live.write_job(tmp_path, "unreported", ["one"])), "--wait")
    assert done.returncode == 0, done.stderr


def test_the_status_page_lives_and_ends_with_its_daemon(place: Place) -> None:
    """It is there with status.json, says the same, and at the end that the daemon has stopped."""
    command = [sys.executable, "-m", "daemon", "run", *place.options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = place.var / "status.html"
        wait_until(page.exists, "status.html")
        assert data(page)["pid"] == process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    assert data(page)["state"] == "stopped"
    assert json.loads((place.var / "status.json").read_bytes())["state"] == "stopped"

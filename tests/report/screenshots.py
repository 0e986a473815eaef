"""Makes the pictures of the pages in docs/: ``make screenshots``.

A real daemon speaks the sample job with the draft engine, some slots made too short and two lines made to fail, so that
there is something to be seen; a real browser looks at what comes of it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon.sample import JOB_FILE_NAME, sample_folder
from tests.report.browser import Browser, chromium

ROOT = Path(__file__).resolve().parents[2]
ENGINES = Path(__file__).parent / "engines"
PATIENCE_S = 120.0
SCENE_S = 240.0
"""A little longer than the sample scene."""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come about within {PATIENCE_S:g} s")
        time.sleep(0.1)


def film(job_id: str = "night_ferry", copies: int = 1) -> dict[str, Any]:
    """The sample scene, one time after the other, with every fifth slot a little too short."""
    job: dict[str, Any] = json.loads(sample_folder().joinpath(JOB_FILE_NAME).read_bytes())
    job["job_id"] = job_id
    for segment in job["segments"][4::5]:
        segment["end"] = round(segment["start"] + 0.62 * (segment["end"] - segment["start"]), 2)
    job["segments"] = [
        {
            **segment,
            "index": len(job["segments"]) * copy + segment["index"],
            "text": segment["text"] if copy == 0 else f"{segment['text']} And then {copy}.",
            "start": round(segment["start"] + SCENE_S * copy, 2),
            "end": round(segment["end"] + SCENE_S * copy, 2),
        }
        for copy in range(copies)
        for segment in job["segments"]
    ]
    return job


def drop(inbox: Path, name: str, job: dict[str, Any]) -> None:
    hidden = inbox / f".{name}.part"
    hidden.write_text(json.dumps(job))
    hidden.rename(inbox / f"{name}.json")


def main(docs: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = folder / "dubd"
        inbox = root / "inbox"
        inbox.mkdir(parents=True)
        for entry in sample_folder().iterdir():
            if entry.name.endswith(".flac"):
                (inbox / entry.name).write_bytes(entry.read_bytes())
        settings = {
            "paths.root": root,
            "engine.name": "patchy:PatchyEngine",
            "engine.options": '{stumbles = "grandmother"}',
            "worker.path": json.dumps([str(ENGINES)]),
            "pool.workers": 2,
            "inbox.settle_seconds": 0.2,
        }
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "daemon", "run", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        daemon = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            drop(inbox, "night_ferry", film())
            until((root / "outbox/night_ferry/manifest.json").exists, "the sample job")
            redo = {"schema": 1, "kind": "redo", "job_id": "night_ferry", "segments": [3, 9], "seed": "new"}
            drop(inbox, "night_ferry.redo", redo)
            until((root / "outbox/night_ferry/manifest.1.json").exists, "the redo")
            until((root / "outbox/night_ferry/manifest.json").exists, "the redo")
            with chromium(folder / "profile", width=1280, height=1240, scale=1.5) as browser:
                look_at_report(browser, root / "outbox/night_ferry/report.html", docs)
                drop(inbox, "feature_film", film("feature_film", copies=60))
                drop(inbox, "documentary", {**film("documentary", copies=40), "language": "de"})
                status = root / "status.json"
                until(lambda: jobs_under_way(status) >= 2, "two jobs at once")
                page = root / "status.html"
                since = page.stat().st_mtime
                until(lambda: page.stat().st_mtime > since + 1, "a newer status.html")
                look_at_status(browser, page, docs)
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()


def jobs_under_way(status: Path) -> int:
    return sum(job["counts"]["ok"] > 3 for job in json.loads(status.read_bytes())["jobs"])


def look_at_report(browser: Browser, report: Path, docs: Path) -> None:
    browser.open(report)
    browser.run("document.querySelector('[data-index=\"4\"] .play').click()")
    until(
        lambda: browser.run("return document.querySelector('[data-index=\"4\"] path.heard').getAttribute('d')"), "sound"
    )
    browser.run("document.querySelector('[data-index=\"3\"] .mark').click()")
    browser.run("document.querySelector('[data-index=\"4\"] .mark').click()")
    browser.run("scrollTo(0, 0)")
    for scheme in ("light", "dark"):
        browser.emulate(prefers_color_scheme=scheme)
        browser.picture(docs / f"report-{scheme}.png")
    browser.emulate(prefers_color_scheme="light")


def look_at_status(browser: Browser, page: Path, docs: Path) -> None:
    browser.open(page)
    for scheme in ("light", "dark"):
        browser.emulate(prefers_color_scheme=scheme)
        browser.picture(docs / f"status-{scheme}.png")


if __name__ == "__main__":
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        raise SystemExit("pictures need a browser: apt-get install chromium chromium-driver")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    main(target)

"""status.html in a real browser."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from daemon.report import page, status_page
from tests.report.browser import Browser
from tests.report.conftest import wait_for
from tests.shell import settings_in

COUNTS = {"ok": 20, "cached": 5, "failed": 1, "skipped": 0, "cancelled": 0, "running": 4, "total": 46}
HOSTILE = "</script><script>document.title = 'broken'</script><b>\u202efilm"


def worker(number: int, **more: Any) -> dict[str, Any]:
    return {
        "worker": number, "gpu": number // 2, "device": "cuda:0", "pid": 7 + number, "engine": "fish", "state": "busy",
        "loads": 1, "restarts": 0, "slots": 8, "in_flight": 8, "spoken": 120,
        "activity": "decoding 8 rows", "job": "film", "speaker": "anna", "memory_bytes": 6_000_000_000, "error": None,
        **more,
    }  # fmt: skip


def status(**more: Any) -> dict[str, Any]:
    """A status.json of now."""
    hour = {"segments": [0] * 50 + [60] * 10, "audio_s": [0.0] * 50 + [150.0] * 10}
    failure = {
        "job_id": "film",
        "index": 3,
        "speaker": "anna",
        "code": "nothing_spoken",
        "message": "silence",
        "failed_at": 1.0,
    }
    job = {"job_id": "film", "state": "running", "priority": 0, "counts": COUNTS, "created_at": 1.0, "started_at": 2.0,
           "eta_s": 83.0, "note": None}  # fmt: skip
    return {
        "schema": 1, "seq": 1, "pid": 4242, "host_id": "a", "version": "0.1", "started_at": time.time() - 7300,
        "updated_at": time.time(), "state": "running", "paused": False, "config": None,
        "engine": {"name": "fish", "model": "s1-mini", "version": "0.1.0"},
        "workers": [worker(0), worker(1, state="broken", in_flight=0, error="bad_checkpoint: no model.pth"), worker(2)],
        "jobs": [job], "recent": [{"job_id": "a #1?", "status": "done", "ended_at": 9.0, "counts": COUNTS}],
        "failures": [{**failure, "index": 4}, failure],
        "inbox": {"waiting": 2, "reachable": True},
        "throughput": {"segments_per_minute": 60.0, "audio_s_per_s": 2.5, "last_hour": hour},
        "warnings": ["the disk is full"], **more,
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "var" / "status.html"


def write(file: Path, content: dict[str, Any]) -> None:
    """As the daemon does, but to be read again at once."""
    document = {**status_page.document(content, settings_in(file.parent.parent)), "refresh_s": 0.1}
    new = file.with_suffix(".new")
    new.write_bytes(page.build("status", "dubd", document, policy=status_page.POLICY))
    new.rename(file)


def text(browser: Browser) -> str:
    said: str = browser.run("return document.querySelector('main').innerText")
    return said


def test_what_the_page_says(browser: Browser, file: Path) -> None:
    """Workers by GPU with memory, activity and speaker; jobs with what is left; the last hour; the last failures and
    what to do about them; warnings; what has ended, with a link to its report."""
    write(file, status())
    browser.open(file)
    said = text(browser)
    for part in (
        "GPU 0", "GPU 1", "11.2 GB of 16.0 GB", "anna", "decoding 8 rows", "bad_checkpoint: no model.pth",
        "21 of 46, 1 min 23 s left", "600 segments", "2 more in the inbox", "the disk is full", "2 of 3", "2 h 01 min",
        "segments 3 (anna), 4 (anna)", "nothing_spoken: silence", "Redo it with a new seed",
    ):  # fmt: skip
        assert part in said, part
    link = browser.run("return document.querySelector('#recent a').getAttribute('href')")
    assert link == "outbox/a%20%231%3F/report.html"
    assert not browser.run("return document.querySelector('#silent').offsetParent")
    assert browser.console() == []


def test_it_follows_the_daemon_by_itself(browser: Browser, file: Path) -> None:
    """Without a server, from its own file, keeping its place; nothing but itself is asked for."""
    write(file, status())
    browser.open(file)
    browser.run("document.body.style.minHeight = '5000px'; scrollTo(0, 700)")
    write(file, status(seq=2, engine={"name": "draft", "model": "newer", "version": "1"}))
    wait_for(browser, "document.querySelector('#facts').innerText.includes('newer')")
    assert browser.run("return scrollY") == 700
    assert browser.console() == []
    assert {url.rpartition("/")[2].partition("?")[0] for url in browser.requests()} == {"status.html"}


def test_a_daemon_that_does_not_move(browser: Browser, file: Path) -> None:
    """Is called that, by the page's own time at first; as soon as something new comes it lives, whatever its clock."""
    write(file, status(updated_at=time.time() - 3600))
    browser.open(file)
    assert "The daemon does not move" in text(browser)
    assert "silent" in text(browser)
    write(file, status(updated_at=time.time() - 3500, seq=2))
    wait_for(browser, "!document.querySelector('#silent').offsetParent")
    write(file, status(seq=3, state="stopped"))
    wait_for(browser, "document.querySelector('#silent').innerText.includes('The daemon has stopped')")


def test_a_page_that_can_not_read_itself_says_how_old_it_is(browser: Browser, file: Path) -> None:
    """When the share has gone, what was seen last stays."""
    write(file, status(updated_at=time.time() - 60))
    browser.open(file)
    file.unlink()
    wait_for(browser, "document.querySelector('#silent').innerText.includes('is the folder still there?')")
    assert "GPU 0" in text(browser)


def test_hostile_names_are_names(browser: Browser, file: Path) -> None:
    """In jobs, speakers, activities, failures and warnings."""
    job = {**status()["jobs"][0], "job_id": HOSTILE, "note": HOSTILE}
    failure = {**status()["failures"][0], "job_id": HOSTILE, "speaker": HOSTILE, "message": HOSTILE}
    ended = {**status()["recent"][0], "job_id": HOSTILE}
    workers = [worker(0, speaker=HOSTILE, activity=HOSTILE, job=HOSTILE, error=HOSTILE)]
    write(file, status(jobs=[job], failures=[failure], recent=[ended], workers=workers, warnings=[HOSTILE]))
    browser.open(file)
    assert browser.chrome.title == "dubd · running"
    assert browser.run("return document.querySelectorAll('main b b, main script').length") == 0
    assert text(browser).count("document.title = 'broken'") >= 8
    assert browser.console() == []


def test_an_idle_daemon(browser: Browser, file: Path) -> None:
    """Nothing to do, nothing spoken, nothing loaded yet."""
    nothing = {"segments": [0] * 60, "audio_s": [0.0] * 60}
    engine = {"name": "fish", "model": None, "version": None}
    idle = status(jobs=[], workers=[], failures=[], recent=[], warnings=[], engine=engine)
    idle["throughput"] = {"segments_per_minute": 0.0, "audio_s_per_s": 0.0, "last_hour": nothing}
    write(file, idle)
    browser.open(file)
    assert "Nothing to do" in text(browser)
    assert browser.console() == []

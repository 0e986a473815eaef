"""``dubd status``, ``jobs`` and ``cancel``, against a real daemon."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

from rich.console import Console

from daemon.commands.reading import read_document
from daemon.commands.status import view
from tests.commands.conftest import Place, wait_until


def test_status_shows_workers_and_jobs(live: Place, tmp_path: Path, closed_gate: Path) -> None:
    """Who does what, how far each job is, and what has ended."""
    assert live.dubd("submit", "--wait", str(live.write_job(tmp_path / "a", "seen_ended", ["Hello."]))).returncode == 0
    live.dubd("submit", str(live.write_job(tmp_path / "b", "seen_running", ["hold, to be seen", "Bye."])))
    wait_until(lambda: "holding" in json.dumps(read_document(live.var / "status.json")), "the activity")
    done = live.dubd("status")
    assert done.returncode == 0, done.stderr
    for shown in ("running", "scripted", "CPU", "seen_running", "seen_ended", "holding 1"):
        assert shown in done.stdout
    closed_gate.touch()


def test_status_json_is_the_file_as_it_is(live: Place) -> None:
    """For programs that do not know where the file lies."""
    done = live.dubd("status", "--json")
    assert {"seq", "pid", "state", "workers", "jobs"} <= json.loads(done.stdout).keys()


def test_status_without_a_daemon_exits_3(place: Place) -> None:
    """Nothing is on standard output for a program to misread."""
    done = place.dubd("status", "--json")
    assert done.returncode == 3
    assert done.stdout == ""


def test_status_watch_goes_on_until_it_is_interrupted(live: Place) -> None:
    """In a pipe every new status is a line of JSON; Ctrl-C ends it without noise."""
    process = live.start("status", "--watch", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert second["seq"] > first["seq"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""


def test_what_jobs_say_never_steers_the_terminal() -> None:
    """Markup stays text and control characters are made visible, wherever they come from."""
    evil = "[red]\x1b]0;owned\x07\r\nname"
    status = {
        "state": evil,
        "workers": [{"worker": 0, "state": evil, "activity": evil, "error": evil}],
        "jobs": [{"job_id": evil, "state": evil, "note": evil, "counts": {"total": 3, "ok": "many"}}],
        "recent": [{"job_id": evil, "status": evil, "ended_at": 1e300}],
        "warnings": [evil, 7],
        "engine": "none",
    }
    sink = io.StringIO()
    Console(file=sink, width=300).print(view(status))
    assert "\x1b" not in sink.getvalue()
    assert "\x07" not in sink.getvalue()
    assert "[red]" in sink.getvalue()


def test_jobs_lists_every_kind(live: Place, tmp_path: Path, closed_gate: Path) -> None:
    """Finished, rejected and running ones, for people and for machines."""
    assert live.dubd("submit", "--wait", str(live.write_job(tmp_path / "a", "listed_done", ["Hello."]))).returncode == 0
    (live.var / "inbox" / "listed_bad.json").write_text("{")
    live.dubd("submit", str(live.write_job(tmp_path / "b", "listed_open", ["hold, to be listed"])))
    wait_until((live.var / "rejected" / "listed_bad.error.json").exists, "the rejection")
    wait_until((live.var / "outbox" / "listed_open" / "progress.json").exists, "the start")

    def states() -> dict[str, str]:
        document = json.loads(live.dubd("jobs", "--json").stdout)
        assert document["live"] is True
        return {job["job_id"]: job["state"] for job in document["jobs"]}

    wait_until(lambda: states().get("listed_open") == "running", "the open job in the list")
    assert states()["listed_done"] == "done"
    assert states()["listed_bad"] == "rejected"
    shown = live.dubd("jobs").stdout
    assert "listed_done" in shown
    assert "1/1" in shown
    closed_gate.touch()


def test_jobs_without_a_daemon_lists_what_lies_there(place: Place) -> None:
    """A job that nobody works on is interrupted, not running."""
    folder = place.var / "outbox" / "half"
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({"job_id": "half", "status": "running", "counts": {"total": 2}}))
    (place.var / "inbox").mkdir()
    (place.var / "inbox" / "next.json").write_text("{}")
    done = place.dubd("jobs", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["live"] is False
    assert [(job["job_id"], job["state"]) for job in document["jobs"]] == [("half", "interrupted"), ("next", "waiting")]


def test_cancel_stops_a_job(live: Place, tmp_path: Path, closed_gate: Path) -> None:
    """Its manifest says so; the id may be given in other case."""
    live.dubd("submit", str(live.write_job(tmp_path, "To_Stop", ["hold, until cancelled", "Hello."])))
    wait_until((live.var / "outbox" / "To_Stop" / "progress.json").exists, "the start")
    done = live.dubd("cancel", "to_stop")
    assert done.returncode == 0, done.stderr
    manifest = live.var / "outbox" / "To_Stop" / "manifest.json"
    wait_until(manifest.exists, "the manifest")
    assert json.loads(manifest.read_text())["status"] == "cancelled"


def listed(live: Place) -> set[str]:
    """The jobs that the daemon says are not over."""
    return {job["job_id"] for job in (read_document(live.var / "status.json") or {"jobs": []})["jobs"]}


def test_cancel_of_an_unknown_job_names_the_nearest(live: Place, tmp_path: Path, closed_gate: Path) -> None:
    """Exit 2; nothing is dropped into the inbox."""
    live.dubd("submit", str(live.write_job(tmp_path, "film_english", ["hold, to be near"])))
    wait_until((live.var / "outbox" / "film_english" / "progress.json").exists, "the start")
    done = live.dubd("cancel", "film_englsh")
    assert done.returncode == 2
    assert "Did you mean film_english?" in done.stderr
    closed_gate.touch()
    wait_until((live.var / "outbox" / "film_english" / "manifest.json").exists, "the end")
    # Its traces go after its manifest; until then it is listed, and can be cancelled as far as anybody knows.
    wait_until(lambda: "film_english" not in listed(live), "the end of its traces")
    over = live.dubd("cancel", "film_english")
    assert over.returncode == 2
    assert "over already" in over.stderr


def test_cancel_without_a_daemon_exits_3(place: Place) -> None:
    """And drops nothing."""
    done = place.dubd("cancel", "film")
    assert done.returncode == 3
    assert not (place.var / "inbox").exists()


def test_eighty_columns_are_enough() -> None:
    """Every line fits, and what is cut for it is a name or an activity: never a number or a state."""
    counts = {"ok": 9_990, "failed": 10, "total": 10_000}
    status = {
        "state": "running",
        "workers": [
            {"worker": 15, "gpu": 7, "state": "restarting", "restarts": 12, "memory_bytes": 23_900_000_000,
             "in_flight": 64, "slots": 64, "spoken": 123_456, "speaker": "anna " * 20, "activity": "decoding"}
        ],
        "jobs": [{"job_id": "film " * 24, "state": "publishing", "counts": counts, "eta_s": 7260.0}],
        "recent": [{"job_id": "film " * 24, "status": "cancelled", "ended_at": 1.0, "counts": counts}],
    }  # fmt: skip
    sink = io.StringIO()
    Console(file=sink, width=80).print(view(status, width=80))
    lines = sink.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for whole in ("GPU 7", "restarting", "12", "22.3 GB", "64/64", "123456", "publishing", "10000/10000", "2 h 01 min"):
        assert whole in sink.getvalue(), whole
    assert "cancelled" in sink.getvalue()


def test_the_last_failures_say_what_to_do() -> None:
    """Those of one job that failed alike in one line."""
    failure = {"job_id": "film", "code": "nothing_spoken", "message": "silence"}
    sink = io.StringIO()
    failures = [{**failure, "index": index} for index in (5, 3, 4)]
    Console(file=sink, width=200).print(view({"failures": failures}))
    assert "film: segments 3-5 failed: nothing_spoken: silence" in sink.getvalue()
    assert "Redo it with a new seed" in sink.getvalue()

"""Which manifest is ours: the files that a daemon would leave, without one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.commands.following import Awaited, Followed, awaited, summary
from daemon.core.job_parser import parse_job
from tests.commands.conftest import Place

DOCUMENT = {
    "job_id": "film",
    "speakers": [{"id": "anna", "references": [{"audio": "anna.wav", "text": "hm"}]}],
    "segments": [{"index": 0, "speaker": "anna", "text": "Hello."}],
}
DROPPED_AT = 1_000_000.0


@pytest.fixture
def outbox(place: Place) -> Path:
    folder = place.var / "outbox" / "film"
    folder.mkdir(parents=True)
    return folder


def drop(place: Place) -> Awaited:
    """The job as if it had been dropped now, and claimed at once."""
    settings = place.settings
    job = parse_job(json.dumps(DOCUMENT).encode(), stem="film", limits=settings.limits)
    before = awaited(settings, job)
    return before.dropped_as(settings.paths.inbox / "film.json", DROPPED_AT, DOCUMENT)


def write_manifest(folder: Path, *, received_at: float, name: str = "manifest.json", status: str = "done") -> None:
    document = {
        "job_id": "film",
        "status": status,
        "counts": {"ok": 1, "total": 1},
        "timings": {"received_at": received_at},
    }
    temporary = folder / f".{name}"
    temporary.write_text(json.dumps(document))
    temporary.rename(folder / name)


def write_asked(folder: Path, document: dict[str, Any]) -> None:
    (folder / "job.json").write_text(json.dumps(document))


def status(seq: int, *jobs: str) -> dict[str, Any]:
    return {"seq": seq, "jobs": [{"job_id": job} for job in jobs]}


def test_an_old_manifest_is_not_ours(place: Place, outbox: Path) -> None:
    """Nor is it when it has been moved aside since; the new one is."""
    write_manifest(outbox, received_at=DROPPED_AT - 50, status="failed")
    job = Followed(drop(place))
    job.look(status(1))
    assert not job.over
    os.rename(outbox / "manifest.json", outbox / "manifest.1.json")
    job.look(status(2))
    assert not job.over
    write_manifest(outbox, received_at=DROPPED_AT + 2)
    write_asked(outbox, DOCUMENT)
    job.look(status(3))
    assert job.over
    assert job.state == "done"


def test_the_manifest_of_a_namesake_that_was_running_is_not_ours(place: Place, outbox: Path) -> None:
    """It was received before our drop, and what was asked differs; however often one looks."""
    job = Followed(drop(place))
    write_asked(outbox, {**DOCUMENT, "priority": 1})
    write_manifest(outbox, received_at=DROPPED_AT + 1)
    for seq in range(10):
        job.look(status(seq))
    assert not job.over


def test_an_equal_job_that_was_running_is_told_by_its_time(place: Place, outbox: Path) -> None:
    """As long as the daemon lists ours."""
    job = Followed(drop(place))
    write_asked(outbox, DOCUMENT)
    write_manifest(outbox, received_at=DROPPED_AT - 1)
    for seq in range(10):
        job.look(status(seq, "film"))
    assert not job.over


def test_a_daemon_whose_clock_is_behind_is_believed_in_the_end(place: Place, outbox: Path) -> None:
    """Once it has not listed the job in three more of its status.json."""
    job = Followed(drop(place))
    write_asked(outbox, DOCUMENT)
    write_manifest(outbox, received_at=DROPPED_AT - 300)
    for seq in (7, 8, 9):
        job.look(status(seq))
        assert not job.over
    job.look(status(10))
    assert job.over


def test_ours_is_found_when_a_later_namesake_has_moved_it_aside(place: Place, outbox: Path) -> None:
    """It lies in manifest.N.json then."""
    write_manifest(outbox, received_at=DROPPED_AT - 50, name="manifest.1.json")
    job = Followed(drop(place))
    write_manifest(outbox, received_at=DROPPED_AT + 2, name="manifest.2.json", status="partial")
    write_asked(outbox, {**DOCUMENT, "priority": 1})
    job.look(status(1, "film"))
    assert job.state == "partial"


def test_a_job_still_in_the_inbox_has_no_manifest(place: Place, outbox: Path) -> None:
    """Whatever lies in the outbox."""
    job = Followed(drop(place))
    job.awaited.file.parent.mkdir(parents=True)
    job.awaited.file.write_text("{}")
    write_manifest(outbox, received_at=DROPPED_AT + 2)
    job.look(status(1))
    assert job.state == "waiting to be taken"


def test_a_rejection_of_an_earlier_file_of_that_name_is_not_ours(place: Place) -> None:
    """A new one is, and its reasons are told."""
    rejected = place.var / "rejected"
    rejected.mkdir(parents=True)
    error = rejected / "film.error.json"
    error.write_text(json.dumps({"name": "film.json", "reasons": []}))
    job = Followed(drop(place))
    job.look(status(1))
    assert not job.over
    reasons = [{"path": "$.job_id", "code": "twin", "message": "there is Film already"}]
    (rejected / "film.2.error.json").write_text(json.dumps({"name": "film.json", "reasons": reasons}))
    job.look(status(2))
    assert job.state == "rejected"
    assert "  $.job_id: there is Film already" in summary(job)


def test_garbage_in_the_outbox_is_not_believed(place: Place, outbox: Path) -> None:
    """A file half-copied over a share is read again later."""
    job = Followed(drop(place))
    (outbox / "manifest.json").write_text('{"job_id": "film", "sta')
    (outbox / "progress.json").write_text("[1, 2]")
    job.look(status(1))
    assert not job.over
    assert job.state == "taken"


def test_a_summary_names_some_failures_and_how_to_try_them_again(place: Place, outbox: Path) -> None:
    """A thousand lines would bury what matters."""
    job = Followed(drop(place))
    job.manifest = {
        "job_id": "film",
        "status": "failed",
        "segments": [
            {
                "index": index,
                "speaker": "anna",
                "status": "failed",
                "error": {"code": "nothing_spoken", "message": "hm"},
            }
            for index in range(50)
        ],
    }
    lines = summary(job)
    assert len([line for line in lines if "nothing_spoken" in line]) == 10
    assert "  and 40 more; report.html shows them all" in lines
    assert "  To try them again: dubd redo film --segments failed --seed new" in lines

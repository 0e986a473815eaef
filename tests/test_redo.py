"""Looking back at an earlier manifest: what is kept, what is put aside, and that a crash in between changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import outbox
from daemon.core.job import JobRejected, Redo
from daemon.core.redo import RedoRequest
from daemon.intake import give_keys
from daemon.live_job import EngineIdentity, LiveJob
from daemon.redo import compose_redo, look_back
from daemon.store import store
from tests.shell import deliver, failing_at, job_document, make_live_job, settings_in

ENGINE = EngineIdentity("draft", "1", "espeak-ng-1", "fp32")
ANOTHER = EngineIdentity("fish", "2", "s1-mini", "bf16")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The outbox folder of a job of four lines that has ended: two spoken, one failed, one skipped."""
    jobs, folder = tmp_path / "jobs", tmp_path / "film"
    jobs.mkdir()
    job = make_live_job(jobs, document())
    outbox.take(tmp_path, job)
    give_keys(job, ENGINE, {})
    told = {"spoken_s": 0.012, "speed": 1.2}
    assert not store([deliver(job, p, seed=job.segments[p].seed, finishing=told) for p in (0, 1)])
    for position in (0, 1):
        outbox.publish(folder, job, position)
    job.segments[2].status, job.segments[2].code, job.segments[2].message = "failed", "nothing_spoken", "silence"
    job.started_at, job.ended_at = 1.0, 2.0
    outbox.write_json(folder / "manifest.json", outbox.manifest(job))
    return folder


def document(**more: Any) -> dict[str, Any]:
    return job_document(["one", "two", "three", "…"], job_id="film", **more)


def again(folder: Path, segments: list[int], **more: Any) -> LiveJob:
    """The job taken once more."""
    job = make_live_job(folder.parent / "jobs", document(redo={"segments": segments, **more}))
    outbox.take(folder.parent, job)
    return job


def told(job: LiveJob) -> list[Any]:
    """What is known of each segment, but for what belongs to one life."""
    return [outbox.manifest_segment(job, position) for position in range(len(job.segments))]


def test_what_is_not_redone_is_over_at_once(folder: Path) -> None:
    """With what it was: WAV, seed and failure, though another engine would have another key for it."""
    before = json.loads((folder / "manifest.json").read_bytes())["segments"]
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    give_keys(job, ANOTHER, {})
    assert [live.status for live in job.segments] == ["ok", "waiting", "failed", "skipped"]
    after = told(job)
    for position in (0, 2):
        kept = ("status", "file", "duration_s", "seed", "sha256", "error")
        assert [after[position][key] for key in kept] == [before[position][key] for key in kept]
    assert job.segments[0].cached
    assert job.segments[0].peaks
    assert after[0]["finishing"] == job.segments[1].history[0]["finishing"] == {"spoken_s": 0.012, "speed": 1.2}
    assert job.segments[1].seed not in (None, before[1]["seed"])


def test_it_may_be_looked_back_again(folder: Path) -> None:
    """After a crash everything is as if there had been none: the take that was put aside, its history, the new seed."""
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    give_keys(job, ENGINE, {})
    restarted = again(folder, [1], seed="new")
    look_back(folder, restarted)
    give_keys(restarted, ENGINE, {})
    assert told(restarted) == told(job)
    assert [live.seed for live in restarted.segments] == [live.seed for live in job.segments]
    assert (folder / "takes" / "segment_0001.1.wav").is_file()
    assert not (folder / "segment_0001.wav").exists()


def test_a_redone_segment_is_not_put_aside_by_a_restart(folder: Path) -> None:
    """Its new file is published; the history is the earlier take alone."""
    job = again(folder, [1])
    look_back(folder, job)
    assert not store([deliver(job, 1, frames=160)])
    outbox.publish(folder, job, 1)
    restarted = LiveJob.open(job.folder, settings_in(folder.parent).limits)
    look_back(folder, restarted)
    assert (folder / "segment_0001.wav").is_file()
    assert restarted.segments[1].status == "ok"
    assert len(restarted.segments[1].history) == 1


def test_a_folder_in_the_place_of_a_take(folder: Path) -> None:
    """What was there is spoken again; the folder is put aside, as a file would be, and is no take."""
    (folder / "segment_0000.wav").rename(folder.parent / "taken_away.wav")
    (folder / "segment_0000.wav").mkdir()
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    give_keys(job, ANOTHER, {})
    assert [live.status for live in job.segments] == ["waiting", "waiting", "failed", "skipped"]
    assert (folder / "takes" / "segment_0000.1.wav").is_dir()
    assert [take["file"] for take in job.segments[0].history] == [None]


def test_a_disk_in_trouble_leaves_it_to_be_tried_again(folder: Path) -> None:
    """Whichever step fails."""
    for number in range(1, 100):
        for name in ("segment_0000", "segment_0001"):
            if (folder / "takes" / f"{name}.1.wav").exists():
                (folder / "takes" / f"{name}.1.wav").rename(folder / f"{name}.wav")
        job = again(folder, [0, 1])
        with failing_at(number) as came_to_it:
            try:
                look_back(folder, job)
            except OSError:
                look_back(folder, job)
        assert [take["file"] for live in job.segments[:2] for take in live.history] == [
            "takes/segment_0000.1.wav",
            "takes/segment_0001.1.wav",
        ]
        if not came_to_it():
            break
    else:
        raise AssertionError("it never ends")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"segments": 3}',
        b'{"segments": [3, {"index": "0"}, {"index": 1, "history": 7, "error": []}]}',
        b'{"segments": [{"index": 0, "speaker": "anna", "text": "one", "status": "ok", "sha256": 7, "seed": -1}]}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_keeps_nothing(folder: Path, content: bytes) -> None:
    """Others may write to the outbox: what can't be believed is spoken anew."""
    (folder / "manifest.json").write_bytes(content)
    job = again(folder, [1])
    look_back(folder, job)
    assert {live.status for live in job.segments} == {"waiting"}
    give_keys(job, ENGINE, {})
    assert all(live.seed is not None for live in job.segments)


def test_another_text_is_spoken(folder: Path) -> None:
    """A line that was changed in the job is not what was spoken, and has no history."""
    changed = document(redo={"segments": [1]})
    changed["segments"][0]["text"] = "another"
    job = make_live_job(folder.parent / "jobs", changed)
    outbox.take(folder.parent, job)
    look_back(folder, job)
    assert [live.status for live in job.segments[:2]] == ["waiting", "waiting"]
    assert not job.segments[0].history


def test_what_was_asked_must_be_there(tmp_path: Path) -> None:
    """And be a job."""
    settings = settings_in(tmp_path)
    request = RedoRequest("film", Redo((1,)))
    with pytest.raises(JobRejected, match="there is no job 'film'"):
        compose_redo(request, settings)
    folder = settings.paths.outbox / "film"
    folder.mkdir()
    (folder / "job.json").write_text("[")
    with pytest.raises(JobRejected, match="can't be read"):
        compose_redo(request, settings)

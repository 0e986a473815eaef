"""What other programs read: the folder of a job, its progress, its manifest, its results."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from daemon import files, outbox
from daemon.config import Settings
from daemon.core.job_id import fold_job_id
from daemon.live_job import EngineIdentity, LiveJob
from daemon.outbox import (
    OutboxConflict,
    TakenNames,
    manifest,
    progress,
    publish,
    published_name,
    settle,
    take,
)
from daemon.results import READ_MARK, has_been_read, mark_as_read
from daemon.store import store
from tests.shell import deliver, job_document, make_live_job, settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def job(settings: Settings) -> LiveJob:
    return make_live_job(settings.paths.state / "jobs")


def finish(job: LiveJob, folder: Path) -> None:
    """All spoken and published, ten seconds after the start."""
    waiting = [position for position, live in enumerate(job.segments) if live.status == "waiting"]
    store([deliver(job, position, frames=8_000) for position in waiting])
    for position in waiting:
        publish(folder, job, position)
    job.started_at, job.ended_at = 1000.0, 1010.0


# --- the folder --------------------------------------------------------------------------------------------


def test_taking_a_folder(settings: Settings, job: LiveJob) -> None:
    """It is made, and holds what was asked, byte for byte; taking it twice is taking it once."""
    for _ in range(2):
        folder = take(settings.paths.outbox, job)
        assert folder == settings.paths.outbox / "film"
        assert os.listdir(folder) == ["job.json"]
        assert (folder / "job.json").read_bytes() == (job.folder / "job.json").read_bytes()


def test_an_earlier_manifest_moves_aside(settings: Settings, job: LiveJob) -> None:
    """To the first free number, once for each time the JOB_ID is taken; other files stay."""
    folder = settings.paths.outbox / "film"
    folder.mkdir()
    (folder / "segment_0000.wav").write_bytes(b"earlier")
    (folder / "manifest.1.json").write_bytes(b"1")
    (folder / "manifest.json").write_bytes(b"2")
    files.temporary_name(folder / "job.json").write_bytes(b"of a crash")
    take(settings.paths.outbox, job)
    assert sorted(os.listdir(folder)) == ["job.json", "manifest.1.json", "manifest.2.json", "segment_0000.wav"]
    assert (folder / "manifest.2.json").read_bytes() == b"2"
    (folder / "manifest.json").write_bytes(b"ours")
    job.taken = True
    take(settings.paths.outbox, job)
    assert (folder / "manifest.json").read_bytes() == b"ours", "a restart after the manifest is no new taking"


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_name_that_is_taken_by_something_else(settings: Settings, job: LiveJob, kind: str) -> None:
    """A file is not replaced and a link is not followed."""
    place = settings.paths.outbox / "film"
    if kind == "file":
        place.write_bytes(b"theirs")
    else:
        place.symlink_to(settings.paths.inbox if kind == "link" else "nowhere")
    with pytest.raises(OutboxConflict, match="film"):
        take(settings.paths.outbox, job)
    assert os.listdir(settings.paths.inbox) == []


def test_case_twins(settings: Settings) -> None:
    """A folder that differs in case alone is told of; the very same one is no twin."""
    found = settings.paths.outbox
    for name in ("Film", "straße"):
        (found / name).mkdir()
    for job_id, twin in (("film", "Film"), ("STRASSE", "straße"), ("Film", None), ("other", None)):
        assert TakenNames(found, fold_job_id).twin(job_id) == twin
    assert TakenNames(found / "missing", fold_job_id).twin("a") is None


def test_a_large_outbox_is_not_listed_for_every_job(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile the names of jobs that were accepted are known without."""
    monkeypatch.setattr(outbox, "LISTING_SHARE", 1e12)
    names = TakenNames(settings.paths.outbox, fold_job_id)
    assert names.twin("fresh") is None
    names.add("Fresh")
    (settings.paths.outbox / "unseen").mkdir()
    assert (names.twin("FRESH"), names.twin("Fresh"), names.twin("UNSEEN")) == ("Fresh", None, None)


# --- publishing --------------------------------------------------------------------------------------------


def test_publishing_moves_the_file(settings: Settings, job: LiveJob) -> None:
    """It replaces an earlier run's; what is gone from state/ is told apart from a folder that is gone."""
    folder = take(settings.paths.outbox, job)
    store([deliver(job, position) for position in range(2)])
    content = job.stored_file(1).read_bytes()
    (folder / "segment_0001.wav").write_bytes(b"earlier")
    publish(folder, job, 1)
    settle(folder, job, [1])
    assert (folder / "segment_0001.wav").read_bytes() == content
    assert job.segments[1].published and not job.stored_file(1).exists()
    with pytest.raises(FileNotFoundError):
        publish(folder, job, 1)
    with pytest.raises(OSError) as caught:
        publish(folder.parent / "gone", job, 0)
    assert not isinstance(caught.value, FileNotFoundError)
    assert job.stored_file(0).exists() and not job.segments[0].published


def test_names_go_by_index(settings: Settings) -> None:
    """At least four digits of the segment's index, not of its place."""
    document = job_document()
    for segment, index in zip(document["segments"], (7, 4321, 1_234_567), strict=True):
        segment["index"] = index
    job = make_live_job(settings.paths.state / "jobs", document)
    assert [published_name(job, position) for position in range(3)] == [
        "segment_0007.wav", "segment_4321.wav", "segment_1234567.wav",
    ]  # fmt: skip


# --- the manifest ------------------------------------------------------------------------------------------


def test_the_manifest_of_a_job(settings: Settings) -> None:
    """Every field that is promised, of each outcome; the counts add up."""
    document = job_document(["spoken", "known", "refused", "...", "stopped"])
    document["segments"][0] |= {"start": 1.0, "end": 1.25, "seed": 7}
    document["segments"][2] |= {"start": 2.0, "end": 3.0, "seed": 9}
    job = make_live_job(settings.paths.state / "jobs", document)
    folder = take(settings.paths.outbox, job)
    store([
        deliver(job, 0, frames=4_000, seed=7, attempts=2, truncated=True, seeds=(6, 7), flaws=("clicks",)),
        deliver(job, 1, frames=800, seed=11, cached=True, attempts=0, generate_s=0.0),
    ])  # fmt: skip
    for position in range(2):
        publish(folder, job, position)
    refused, skipped, stopped = job.segments[2:]
    refused.status, refused.code, refused.message, refused.attempts = "failed", "bad_voice", "no voice", 3
    skipped.status, stopped.status = "skipped", "cancelled"
    job.engine = EngineIdentity("draft", "1.2", "espeak", "fp32")
    job.started_at, job.ended_at = 1000.0, 1002.0
    value = manifest(job)
    assert {key: value[key] for key in value if key not in ("segments", "timings")} == {
        "schema": 1, "job_id": "film", "status": "cancelled",
        "counts": {"ok": 2, "cached": 1, "failed": 1, "skipped": 1, "cancelled": 1, "total": 5},
        "engine": {"name": "draft", "model": "espeak", "version": "1.2"},
        "ignored": [],
    }  # fmt: skip
    timings = value["timings"]
    assert (timings["wall_s"], timings["audio_s"], timings["xrt"]) == (2.0, 0.6, 0.3)
    fields = [
        "index",
        "speaker",
        "text",
        "status",
        "cached",
        "file",
        "duration_s",
        "slot_s",
        "overrun_s",
        "sample_rate",
        "seed",
        "attempts",
        "truncated",
        "sha256",
        "worker",
        "device",
        "generate_s",
        "error",
    ]
    assert all(set(fields) <= set(segment) for segment in value["segments"])
    first, second, third, fourth, fifth = value["segments"]
    assert first["sha256"] == hashlib.sha256((folder / "segment_0000.wav").read_bytes()).hexdigest()
    assert {name: first[name] for name in fields if name != "sha256"} == {
        "index": 0, "speaker": "anna", "text": "spoken", "status": "ok", "cached": False, "file": "segment_0000.wav",
        "duration_s": 0.5, "slot_s": 0.25, "overrun_s": 0.25, "sample_rate": 8_000, "seed": 7, "attempts": 2,
        "truncated": True, "worker": 1, "device": "cpu", "generate_s": 0.5, "error": None,
    }  # fmt: skip
    assert (first["seeds"], first["flaws"]) == ([6, 7], ["clicks"])
    assert (second["cached"], second["worker"], second["slot_s"], second["overrun_s"]) == (True, None, None, None)
    assert "seeds" not in second and "flaws" not in second
    assert third["error"] == {"code": "bad_voice", "message": "no voice"}
    assert (third["file"], third["duration_s"], third["slot_s"], third["seed"]) == (None, None, 1.0, 9)
    assert [segment["status"] for segment in (third, fourth, fifth)] == ["failed", "skipped", "cancelled"]
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_a_failure_always_has_a_reason(job: LiveJob) -> None:
    """Even when nobody gave one."""
    job.segments[0].status = "failed"
    job.started_at, job.ended_at = 5.0, 5.0
    value = manifest(job)
    assert value["segments"][0]["error"]["code"] and value["segments"][0]["error"]["message"]
    assert value["timings"]["xrt"] is None, "no time, no rate"


def test_progress(settings: Settings, job: LiveJob) -> None:
    """From queued to the manifest's own status; the fraction counts what has ended, however."""
    assert progress(job, [], 5.0, None)["status"] == "queued"
    folder = take(settings.paths.outbox, job)
    job.started_at, job.engine = 1000.0, EngineIdentity("draft", "1", "m", "fp32")
    job.segments[0].begun = True
    value = progress(job, [{"worker": 0}], 1001.23456, 2.34)
    assert (value["status"], value["fraction"], value["eta_s"], value["updated_at"]) == ("running", 0.0, 2.3, 1001.235)
    assert (value["counts"]["running"], value["workers"]) == (1, [{"worker": 0}])
    assert value["speakers"] == [{"id": "anna", "total": 3, "ended": 0}]
    job.segments[2].status = "skipped"
    assert progress(job, [], 1.0, None)["fraction"] == 0.3333
    store([deliver(job, 0), deliver(job, 1)])
    value = progress(job, [], 1.0, None)
    assert (value["status"], value["fraction"]) == ("publishing", 1.0)
    for position in range(2):
        publish(folder, job, position)
    job.ended_at = 1001.0
    assert progress(job, [], 1.0, None)["status"] == "done"


def test_json_for_others(tmp_path: Path) -> None:
    """Readable as it stands; a lone surrogate, which UTF-8 can't hold, stays JSON."""
    path = tmp_path / "a.json"
    outbox.write_json(path, {"text": "größer 日本 \ud800"})
    assert "größer 日本" in path.read_text("utf-8") and path.read_bytes().endswith(b"}\n")
    assert json.loads(path.read_bytes()) == {"text": "größer 日本 \ud800"}
    with pytest.raises(ValueError):
        outbox.write_json(path, {"rate": float("inf")})


def test_a_manifest_of_an_earlier_life_stays(tmp_path: Path) -> None:
    """With its end and the mark of who has read it; what somebody else has put there tells of nothing."""
    timings = {"received_at": 1766000000.25, "started_at": 1766000001.0, "ended_at": 1766000002.5}
    told = {"schema": 1, "timings": timings}
    outbox.write_manifest(tmp_path, told)
    mark_as_read(tmp_path)
    assert outbox.told_end(tmp_path, 1766000000.2503) == 1766000002.5
    assert outbox.told_end(tmp_path, 1766000000.0) is None
    outbox.write_manifest(tmp_path, told)
    assert has_been_read(tmp_path)
    outbox.write_manifest(tmp_path, {**told, "status": "done"})
    assert not (tmp_path / READ_MARK).exists()
    for end in ("NaN", "1e999", "99999999999.0", "1765999999.0", '"soon"'):
        text = f'{{"received_at": 1766000000.25, "started_at": 1.0, "ended_at": {end}}}'
        (tmp_path / "manifest.json").write_text(text)
        assert outbox.told_end(tmp_path, 1766000000.25) is None
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    assert outbox.told_end(tmp_path, 1766000000.25) is None

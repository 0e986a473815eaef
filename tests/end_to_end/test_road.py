"""A job goes in, its WAVs come out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
import soundfile

from tests.end_to_end.conftest import DaemonUnderTest, make_job, sample_job, shared_daemon, wait_for

MANIFEST = ["schema", "job_id", "status", "counts", "engine", "timings", "ignored", "segments"]
SEGMENT = [
    "index", "speaker", "text", "status", "cached", "file", "duration_s", "slot_s", "overrun_s", "sample_rate", "seed",
    "attempts", "truncated", "sha256", "worker", "device", "generate_s", "error",
]  # fmt: skip


@pytest.fixture(scope="module")
def dubd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonUnderTest]:
    """A daemon with two draft workers."""
    yield from shared_daemon(tmp_path_factory, engine__name="draft", engine__options={})


def test_every_line_of_the_sample_is_spoken(dubd: DaemonUnderTest) -> None:
    """46 lines of 6 speakers: a WAV each, as the manifest says it is; the scene's job file is not needed again."""
    manifest = dubd.run("first", sample_job() | {"job_id": "first"})
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert manifest["counts"] == {"ok": 46, "cached": 0, "failed": 0, "skipped": 0, "cancelled": 0, "total": 46}
    for segment in manifest["segments"]:
        with soundfile.SoundFile(dubd.outbox / "first" / segment["file"]) as wav:
            assert wav.samplerate == segment["sample_rate"]
            assert wav.subtype == "PCM_16"
            assert wav.frames / wav.samplerate == pytest.approx(segment["duration_s"], abs=1e-6)
            assert abs(wav.read(dtype="int16")).max() > 1000
    assert len({segment["speaker"] for segment in manifest["segments"]}) == 6
    assert not (dubd.inbox / "first.json").exists()


def test_the_manifest_is_as_promised(dubd: DaemonUnderTest) -> None:
    """Its fields, no more and no less, and what each says."""
    manifest = dubd.run("fields", sample_job() | {"job_id": "fields", "defaults": {"temperature": 0.6}})
    assert list(manifest) == MANIFEST
    assert (manifest["schema"], manifest["job_id"]) == (1, "fields")
    assert list(manifest["counts"]) == ["ok", "cached", "failed", "skipped", "cancelled", "total"]
    assert manifest["engine"]["name"] == "draft" and all(manifest["engine"].values())
    assert list(manifest["engine"]) == ["name", "model", "version"]
    timings = manifest["timings"]
    assert list(timings) == ["received_at", "started_at", "ended_at", "wall_s", "audio_s", "xrt"]
    assert timings["received_at"] <= timings["started_at"] <= timings["ended_at"]
    assert timings["audio_s"] == pytest.approx(sum(s["duration_s"] for s in manifest["segments"]), abs=0.01)
    asked = {segment["index"]: segment for segment in sample_job()["segments"]}
    for segment in manifest["segments"]:
        was = asked[segment["index"]]
        assert list(segment) == SEGMENT
        assert (segment["speaker"], segment["text"]) == (was["speaker"], was["text"])
        assert segment["file"] == f"segment_{segment['index']:04d}.wav"
        assert segment["slot_s"] == pytest.approx(was["end"] - was["start"], abs=1e-5)
        assert segment["overrun_s"] == pytest.approx(max(0, segment["duration_s"] - segment["slot_s"]), abs=1e-5)
        assert isinstance(segment["seed"], int)
        assert segment["error"] is None


def test_the_outbox_holds_what_was_asked_and_how_far_it_is(dubd: DaemonUnderTest) -> None:
    """job.json is the job byte for byte; progress.json ends as the manifest does."""
    job = sample_job() | {"job_id": "asked"}
    dubd.run("asked", job)
    assert (dubd.outbox / "asked" / "job.json").read_bytes() == json.dumps(job).encode()
    progress = dubd.progress("asked")
    assert (progress["status"], progress["fraction"]) == ("done", 1.0)
    assert progress["counts"]["ok"] == 46 and progress["counts"]["running"] == 0
    assert [(s["id"], s["total"] - s["ended"]) for s in progress["speakers"]] == [
        (speaker["id"], 0) for speaker in job["speakers"]
    ]
    wait_for(lambda: dubd.job_row("asked")["state"] is None, "the job's leaving the status")
    dubd.check_nothing_left()
    names = {path.name for path in (dubd.outbox / "asked").iterdir()}
    wavs = {f"segment_{number:04d}.wav" for number in range(46)}
    assert names == {"job.json", "progress.json", "manifest.json", "report.html"} | wavs


def test_a_second_job_loads_nothing(dubd: DaemonUnderTest) -> None:
    """The workers stay warm: the same processes, each having loaded once."""
    dubd.run("warm_1", make_job(["The first job of all."]))
    before = {row["worker"]: row["pid"] for row in dubd.workers()}
    dubd.run("warm_2", make_job(["The second job of all."]))
    wait_for(lambda: dubd.status()["recent"][0]["job_id"] == "warm_2", "the second job in the status")
    rows = dubd.workers()
    assert {row["worker"]: row["pid"] for row in rows} == before
    assert [(row["loads"], row["restarts"]) for row in rows] == [(1, 0), (1, 0)]


def test_the_status_shows_the_whole_daemon(dubd: DaemonUnderTest) -> None:
    """What other programs rely on is there, and seq moves with what happens."""
    first = dubd.status()
    dubd.run("seen", make_job(["Something to see."]))
    assert {"seq", "pid", "state", "workers", "jobs"} <= first.keys()
    for row in first["workers"]:
        assert {"worker", "gpu", "pid", "engine", "state", "loads", "restarts", "in_flight", "spoken"} <= row.keys()
        assert (row["engine"], row["gpu"]) == ("draft", None)
    wait_for(lambda: dubd.status()["seq"] > first["seq"], "a later status")


def test_lines_with_nothing_to_say_are_skipped(dubd: DaemonUnderTest) -> None:
    """Empty and punctuation-only lines are no errors; a job of nothing else is done too."""
    manifest = dubd.run("skipped", make_job(["Something.", "", " … !?", "—"]))
    dubd.check_manifest(manifest)
    assert [segment["status"] for segment in manifest["segments"]] == ["ok", "skipped", "skipped", "skipped"]
    assert manifest["status"] == "done"
    silent = dubd.run("all_skipped", make_job(["", "..."]))
    dubd.check_manifest(silent)
    assert (silent["status"], silent["counts"]["skipped"]) == ("done", 2)


def test_the_output_is_in_the_form_that_was_asked_for(dubd: DaemonUnderTest) -> None:
    manifest = dubd.run("form", make_job(["In another form."], output={"sample_rate": 16_000, "subtype": "FLOAT"}))
    info = soundfile.info(dubd.outbox / "form" / manifest["segments"][0]["file"])
    assert (info.samplerate, info.subtype) == (16_000, "FLOAT")
    assert manifest["segments"][0]["sample_rate"] == 16_000


def test_every_worker_and_moment_gives_the_same_wav(dubd: DaemonUnderTest) -> None:
    """A line's audio depends on the line, not on what was spoken before it or where: spoken again from scratch, the
    job has the same sums."""
    texts = [f"The same line, whoever speaks it and when. This is number {number}." for number in range(12)]
    first = dubd.run("same_1", make_job(texts, speakers=3))
    (dubd.outbox / "same_1").rename(dubd.folder / "hidden")
    second = dubd.run("same_2", make_job(texts, speakers=3))
    assert second["counts"]["cached"] == 0
    assert [s["sha256"] for s in first["segments"]] == [s["sha256"] for s in second["segments"]]


def test_old_names_of_fields_are_understood(dubd: DaemonUnderTest) -> None:
    """The aliases that editors write today, numbers as speaker ids among them; indices need not begin at 0."""
    dubd.put("anna.flac", (dubd.inbox / "ines.flac").read_bytes())
    job = {
        "speakers": [{"id": 0, "references": [{"audio": "anna.flac", "text": "Hello there, this is me."}]}],
        "segments": [
            {"segment_index": 12, "speaker_id": 0, "target_text": "Later.", "start_time": 4.0, "end_time": 5.0},
            {"segment_index": 10_007, "speaker_id": "0", "target_text": "Last."},
            {"segment_index": 3, "speaker_id": 0, "target_text": "Earlier."},
        ],
    }
    manifest = dubd.run("aliases", job)
    dubd.check_manifest(manifest)
    assert [(s["index"], s["file"], s["speaker"]) for s in manifest["segments"]] == [
        (3, "segment_0003.wav", "0"), (12, "segment_0012.wav", "0"), (10_007, "segment_10007.wav", "0"),
    ]  # fmt: skip
    assert manifest["segments"][1]["slot_s"] == 1.0


def test_the_name_of_the_job_may_be_any_fair_text(dubd: DaemonUnderTest) -> None:
    """What is no valid id is refused (test_bad_input); what is valid is the folder's name, as it is."""
    name = "Ночной паром — 夜 № 1"
    manifest = dubd.run(name, make_job(["Any name."]))
    assert manifest["job_id"] == name
    content = (dubd.outbox / name / "segment_0000.wav").read_bytes()
    assert hashlib.sha256(content).hexdigest() == manifest["segments"][0]["sha256"]


def test_the_log_tells_the_story_that_people_look_for(dubd: DaemonUnderTest) -> None:
    """Workers loading and loaded, the assignment with counts of texts, speaker i of n, progress, the end."""
    dubd.run("story", sample_job() | {"job_id": "story", "defaults": {"temperature": 0.8}})
    wait_for(lambda: dubd.status()["recent"][0]["job_id"] == "story", "the job in the status")
    events = [line["event"] for line in dubd.lines() if line.get("job") in ("story", None)]
    for expected in (
        "[Worker 0] Starting on cpu, loading the draft engine",
        "[Worker 1] Models loaded! Ready on cpu",
        "[Main] Total tasks: 46",
        "[Main] Worker 0: 3 speakers (IDs: [ines, mara, lin]), 24 texts",
        "[Main] Worker 1: 3 speakers (IDs: [teo, okafor, bo]), 22 texts",
        "[Main] All done! Generated 46/46 segments",
    ):
        assert expected in events

"""Looking back at an earlier manifest: what is kept, what is put aside, and that a crash in between changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon import outbox
from daemon.core.job import JobRejected, Redo
from daemon.core.redo import RedoRequest
from daemon.intake import give_keys
from daemon.live_job import EngineIdentity, LiveJob
from daemon.redo import compose_redo, earlier_manifest, keep_earlier, look_back, put_aside
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
    assert (folder / "segment_0001.wav").is_file()
    speak(folder, restarted, 1)
    put_aside(folder, restarted, [1])
    assert (folder / "takes" / "segment_0001.1.wav").is_file()


def speak(folder: Path, job: LiveJob, position: int, frames: int = 160) -> None:
    """A new take, up to where it lies in the outbox."""
    assert not store([deliver(job, position, frames=frames)])
    put_aside(folder, job, [position])
    outbox.publish(folder, job, position)


def test_a_redone_segment_is_not_put_aside_by_a_restart(folder: Path) -> None:
    """Its new file is published; the history is the earlier take alone."""
    job = again(folder, [1])
    look_back(folder, job)
    speak(folder, job, 1)
    restarted = LiveJob.open(job.folder, settings_in(folder.parent).limits)
    look_back(folder, restarted)
    assert (folder / "segment_0001.wav").is_file()
    assert restarted.segments[1].status == "ok"
    put_aside(folder, restarted, [1])
    assert [take["file"] for take in restarted.segments[1].history] == ["takes/segment_0001.1.wav"]
    assert os.listdir(folder / "takes") == ["segment_0001.1.wav"]


def test_a_folder_in_the_place_of_a_take(folder: Path) -> None:
    """What was there is spoken again; the folder is put aside, under a name that says so, and is no take."""
    (folder / "segment_0000.wav").rename(folder.parent / "taken_away.wav")
    (folder / "segment_0000.wav").mkdir()
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    give_keys(job, ANOTHER, {})
    assert [live.status for live in job.segments] == ["waiting", "waiting", "failed", "skipped"]
    speak(folder, job, 0)
    assert (folder / "segment_0000.wav.odd.1").is_dir()
    assert (folder / "segment_0000.wav").is_file()
    assert [take["file"] for take in job.segments[0].history] == [None]


def test_a_disk_in_trouble_leaves_it_to_be_tried_again(folder: Path) -> None:
    """Whichever step fails."""
    for number in range(1, 100):
        for name in ("segment_0000", "segment_0001"):
            if (folder / "takes" / f"{name}.1.wav").exists():
                (folder / "takes" / f"{name}.1.wav").rename(folder / f"{name}.wav")
        job = again(folder, [0, 1])
        look_back(folder, job)
        with failing_at(number) as came_to_it:
            try:
                put_aside(folder, job, [0, 1])
            except OSError:
                put_aside(folder, job, [0, 1])
        assert [take["file"] for live in job.segments[:2] for take in live.history] == [
            "takes/segment_0000.1.wav",
            "takes/segment_0001.1.wav",
        ]
        if not came_to_it():
            break
    else:
        raise AssertionError("it never ends")


ROW = {"index": 0, "speaker": "anna", "text": "one", "status": "ok", "sha256": "0" * 64}

WRONG: list[dict[str, Any]] = [
    {"sha256": 7}, {"sha256": None}, {"seed": -1}, {"seed": True}, {"seeds": ["1"]}, {"overrun_s": "1"},
    {"finishing": {"speed": []}}, {"finishing": 3}, {"history": 7}, {"history": [7]},
    {"history": [{}] * 101},
    {"history": [{"file": "../../etc/passwd"}]}, {"history": [{"sha256": "x"}]}, {"status": "waiting"},
    {"index": -1}, {"text": None}, {"error": []}, {"flaws": [1]}, {"attempts": -1}, {"truncated": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"segments": 3}', b'{"segments": [3]}', b'{"segments": [{"index": "0"}]}',
        b'{"segments": [], "overrun_s": NaN}', b'{"segments": [], "x": 1e999}', b'{"segments": [], "segments": []}',
        b"[" * 100_000, b'{"segments": [' + b"[]," * 9_000_000 + b"1]}",
        *(
            json.dumps({"segments": [{**ROW, **wrong}]}).encode()
            for wrong in WRONG
        ),
        json.dumps({"segments": [ROW, ROW]}).encode(),
    ],
    ids=lambda content: content[:90].decode() + ("…" if len(content) > 90 else ""),
)  # fmt: skip
def test_a_manifest_that_is_none_is_not_believed(folder: Path, content: bytes) -> None:
    """Others may write to the outbox: the redo says so, and takes nothing away."""
    (folder / "manifest.json").write_bytes(content)
    before = state_of(folder)
    job = make_live_job(folder.parent / "jobs", document(redo={"segments": [1]}))
    with pytest.raises(JobRejected, match="can't be used"):
        earlier_manifest(folder, job)
    assert state_of(folder) == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "zero", "sparse"])
def test_what_is_no_manifest_is_not_waited_for(folder: Path, kind: str) -> None:
    """Nor followed, nor read through."""
    path = folder / "manifest.json"
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("manifest.json")
        case "zero":
            path.symlink_to("/dev/zero")
        case "sparse":
            path.touch()
            os.truncate(path, 200 << 30)
    job = make_live_job(folder.parent / "jobs", document(redo={"segments": [1]}))
    with pytest.raises(JobRejected, match="can't be used"):
        earlier_manifest(folder, job)


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder: Path, job: LiveJob) -> dict[str, Any]:
    """The manifest of a job that has ended."""
    job.started_at, job.ended_at = 1.0, 2.0
    keep_earlier(folder, job)
    found = outbox.manifest(job)
    outbox.write_json(folder / "manifest.json", found)
    return found


def spoken_again(folder: Path, segments: list[int], frames: int) -> dict[str, Any]:
    job = again(folder, segments, seed="new")
    look_back(folder, job)
    give_keys(job, ENGINE, {})
    for position in segments:
        speak(folder, job, position, frames)
    return written(folder, job)


def test_no_take_is_replaced(folder: Path) -> None:
    """A name in takes/ that is somebody's, or an earlier life's of this job_id, is left to them."""
    spoken_again(folder, [1], 100)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["segments"][1]["history"]  # as after the whole job was submitted once more
    outbox.write_json(folder / "manifest.json", manifest)
    told = spoken_again(folder, [1], 120)["segments"][1]["history"]
    assert [take["file"] for take in told] == ["takes/segment_0001.2.wav"]
    for take in told:
        assert hashlib.sha256((folder / take["file"]).read_bytes()).hexdigest() == take["sha256"]
    assert len(os.listdir(folder / "takes")) == 2


def test_numbers_of_manifests_only_grow(folder: Path) -> None:
    """Whatever somebody tidies away, the last one is the last one: the chosen take stays."""
    spoken_again(folder, [1], 100)
    chosen = spoken_again(folder, [1], 120)["segments"][1]["sha256"]
    (folder / "manifest.1.json").unlink()
    manifest = spoken_again(folder, [0], 140)
    assert manifest["segments"][1]["sha256"] == chosen
    assert manifest["earlier"] == 3
    for number in (2, 3):
        (folder / f"manifest.{number}.json").unlink()
    assert spoken_again(folder, [0], 160)["earlier"] == 4


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_redo_of_which_nothing_comes_takes_nothing_away(folder: Path, status: Any) -> None:
    """The earlier take is what it was; that another was tried, and with which seed, is told."""
    before = json.loads((folder / "manifest.json").read_bytes())["segments"]
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    give_keys(job, ENGINE, {})
    tried = job.segments[1].seed
    job.segments[1].status, job.segments[1].code, job.segments[1].message = status, "nothing_spoken", "silence"
    manifest = written(folder, job)
    after = manifest["segments"][1]
    for name in ("status", "file", "sha256", "seed", "duration_s"):
        assert after[name] == before[1][name]
    assert (folder / "segment_0001.wav").is_file()
    assert manifest["counts"]["ok"] == 2
    assert manifest["status"] == {"failed": "partial"}.get(status, status)
    assert (after["missed"]["status"], after["missed"]["seed"]) == (status, tried)
    assert [take["seed"] for take in after["history"]] == [tried]
    later = again(folder, [1], seed="new")
    look_back(folder, later)
    give_keys(later, ENGINE, {})
    assert later.segments[1].seed not in (tried, before[1]["seed"])


def test_a_take_that_was_moved_before_the_new_one_was_lost_comes_back(folder: Path) -> None:
    """Its place was made free, and then nothing came."""
    job = again(folder, [1], seed="new")
    look_back(folder, job)
    put_aside(folder, job, [1])
    assert not (folder / "segment_0001.wav").exists()
    job.segments[1].status = "failed"
    assert written(folder, job)["segments"][1]["status"] == "ok"
    assert (folder / "segment_0001.wav").is_file()


@pytest.mark.parametrize("kind", ["file", "link", "loop"])
def test_nothing_leaves_through_a_link(folder: Path, tmp_path: Path, kind: str) -> None:
    """What is no folder and called takes gets another name."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match kind:
        case "file":
            (folder / "takes").write_text("mine")
        case "link":
            (folder / "takes").symlink_to(elsewhere)
        case "loop":
            (folder / "takes").symlink_to("takes")
    spoken_again(folder, [1], 100)
    assert os.listdir(folder / "takes") == ["segment_0001.1.wav"]
    assert os.path.lexists(folder / "takes.odd.1")
    assert not os.listdir(elsewhere)


def test_what_somebody_has_put_in_the_place_of_a_line_is_kept(folder: Path) -> None:
    """It is no take of ours, and is not lost."""
    (folder / "segment_0001.wav").write_bytes(b"an editor's")
    told = spoken_again(folder, [1], 100)["segments"][1]["history"]
    assert [take["file"] for take in told] == [None]
    assert (folder / "takes" / "segment_0001.1.wav").read_bytes() == b"an editor's"


def test_odd_names_are_no_manifests_of_ours(folder: Path) -> None:
    """A folder, a loop and a pipe whose names look like one."""
    (folder / "manifest.5.json").mkdir()
    (folder / "manifest.6.json").symlink_to("manifest.6.json")
    (folder / "manifest.007.json").write_text("7")
    os.mkfifo(folder / "manifest.9.json")
    for name in ("job.json", "progress.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    manifest = spoken_again(folder, [1], 100)
    outbox.write_json(folder / "progress.json", {})
    assert manifest["earlier"] == 10
    assert manifest["segments"][1]["history"][0]["manifest"] == "manifest.10.json"
    assert (folder / "job.json").is_file()
    assert (folder / "job.json.odd.1").is_dir()


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

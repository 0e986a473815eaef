"""Workers and daemons that die in the middle of a job: nothing is lost, nothing that was finished is spoken again,
nobody is charged for another's death."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, is_alive, make_job, wait_for

Segments = list[dict[str, Any]]


def lines(first: int, end: int, mark: str = "") -> list[str]:
    return [f"This is line {number} of the scene.{mark}" for number in range(first, end)]


def held_job(free: int, held: int, **more: Any) -> dict[str, Any]:
    """Lines of two speakers that are spoken at once, and then lines of four others that wait for the gate."""
    job = make_job(lines(0, free) + lines(free, free + held, " {hold}"), speakers=6, **more)
    for segment in job["segments"]:
        index = segment["index"]
        segment["speaker"] = f"s{index % 2}" if index < free else f"s{2 + index % 4}"
    return job


def begun(dubd: DaemonUnderTest, job_id: str) -> int:
    running: int = dubd.progress(job_id)["counts"].get("running", 0)
    return running


# --- workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [1, 2])
def test_killed_workers_cost_nothing_but_time(dubd: DaemonUnderTest, victims: int) -> None:
    """kill -9 of one worker, or of all, with segments in flight: the job is done, every WAV whole, the restarts are
    counted, and no segment has used up a try of its own for it."""
    dubd.drop("scene", held_job(16, 30))
    wait_for(lambda: dubd.progress("scene")["counts"].get("ok") == 16 and begun(dubd, "scene") == 8, "the middle")
    for row in dubd.workers()[:victims]:
        os.kill(row["pid"], signal.SIGKILL)
    wait_for(lambda: len(dubd.lines("worker has ended")) == victims, "the deaths")
    dubd.open_gate()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 46)
    attempts = Counter(segment["attempts"] for segment in manifest["segments"])
    assert attempts == {1: 46 - 4 * victims, 2: 4 * victims}
    wait_for(lambda: sum(row["restarts"] for row in dubd.workers()) == victims, "the restarts in the status")
    assert all(count == 1 for count in dubd.told_texts().values())
    dubd.check_nothing_left()


def test_a_worker_that_dies_again_and_again_costs_nothing(make: Make) -> None:
    """Each time with other segments in flight, while others finish: the restarts are all counted."""
    dubd = make(pool__workers=1, engine__slots=2).start()
    dubd.drop("scene", make_job([f"{line}" for line in lines(0, 3)] + lines(3, 9, " {hold}")))
    for death in range(1, 4):
        wait_for(lambda: begun(dubd, "scene") > 0, "a segment in flight")
        os.kill(dubd.workers()[0]["pid"], signal.SIGKILL)
        wait_for(lambda wanted=death: len(dubd.lines("worker has ended")) == wanted, "the death")  # type: ignore[misc]
        wait_for(lambda wanted=death: dubd.workers()[0]["loads"] > wanted, "a new worker")  # type: ignore[misc]
    dubd.open_gate()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    wait_for(lambda: dubd.workers()[0]["restarts"] == 3, "the restarts in the status")


@pytest.mark.parametrize("fault", ["crash", "kill", "exit", "raise-submit"])
def test_a_poison_segment_fails_alone(make: Make, fault: str) -> None:
    """It has its three tries alone; its neighbours are spoken, and were dispatched twice at most."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}).start()
    texts = lines(0, 20)
    texts[7] = f"poison {{{fault}}}"
    manifest = dubd.run("poison", make_job(texts, speakers=3))
    dubd.check_manifest(manifest)
    poison = manifest["segments"].pop(7)
    assert (manifest["status"], manifest["counts"]["failed"], manifest["counts"]["ok"]) == ("partial", 1, 19)
    assert (poison["status"], poison["file"]) == ("failed", None)
    assert poison["error"]["code"] == ("engine_error" if fault == "raise-submit" else "worker_died")
    assert poison["attempts"] >= 3
    assert {segment["attempts"] for segment in manifest["segments"]} <= {1, 2}
    assert dubd.is_alive()


def test_several_poison_segments_fail_each_for_itself(make: Make) -> None:
    """Where every other line kills, every other line is spoken."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}, pool__breaker_crashes=100).start()
    texts = [line + (" {crash}" if number % 2 else "") for number, line in enumerate(lines(0, 8))]
    manifest = dubd.run("poisons", make_job(texts, speakers=2))
    dubd.check_manifest(manifest)
    assert [segment["status"] for segment in manifest["segments"]] == ["ok", "failed"] * 4


@pytest.mark.parametrize("fault", ["hang", "freeze"])
def test_a_segment_that_hangs_fails_alone(make: Make, fault: str) -> None:
    """A worker that does not come back, with or without beats, is killed; the segment that does it is found."""
    dubd = make(
        engine__name="faulty:Faulty",
        engine__options={},
        engine__slots=2,
        worker__segment_timeout_s=2.0,
        worker__beat_timeout_s=4.0,
        pool__tries=2,
        pool__breaker_crashes=100,
    ).start()
    texts = lines(0, 9)
    texts[4] = f"poison {{{fault}}}"
    manifest = dubd.run("hangs", make_job(texts, speakers=2))
    dubd.check_manifest(manifest)
    poison = manifest["segments"].pop(4)
    assert (poison["status"], poison["error"]["code"]) == ("failed", "worker_died")
    assert manifest["counts"]["ok"] == 8
    assert {segment["attempts"] for segment in manifest["segments"]} <= {1, 2}


def test_a_fault_that_does_not_come_back_fails_nothing(make: Make, tmp_path: Path) -> None:
    """Segments that crash, hang or fail once are spoken in the end."""
    dubd = make(
        engine__name="faulty:Faulty", engine__options={}, worker__segment_timeout_s=1.0, pool__breaker_crashes=100
    ).start()
    faults = ("crash", "kill", "hang", "raise", "fail", "memory", "lie-missing", "lie-frames", "lie-torn", "lie-noise")
    texts = lines(0, 6) + [f"once {{{fault} {tmp_path / fault}}}" for fault in faults]
    manifest = dubd.run("once", make_job(texts, speakers=4))
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", len(texts))


def test_a_worker_that_lies_costs_its_segment_alone(make: Make) -> None:
    """Files that are missing, torn or other than announced are never published; answers to nobody's question and noise
    on standard output harm nobody."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}).start()
    lies = ("lie-missing", "lie-frames", "lie-torn", "lie-noise")
    harmless = ("lie-ticket", "lie-twice", "print")
    texts = lines(0, 4) + [f"{{{lie}}}" for lie in lies] + [f"{{{name}}}" for name in harmless]
    manifest = dubd.run("lies", make_job(texts, speakers=2))
    dubd.check_manifest(manifest)
    statuses = [segment["status"] for segment in manifest["segments"]]
    assert statuses == ["ok"] * 4 + ["failed"] * 4 + ["ok"] * 3
    codes = [segment["error"]["code"] for segment in manifest["segments"][4:8]]
    assert codes == ["no_audio", "bad_audio", "bad_audio", "bad_audio"]
    assert [segment["attempts"] for segment in manifest["segments"][4:8]] == [3] * 4


def test_a_batch_too_large_for_the_memory_is_spoken_with_fewer_slots(make: Make) -> None:
    dubd = make(engine__name="faulty:Faulty", engine__options={}, pool__workers=1).start()
    manifest = dubd.run("memory", make_job([*lines(0, 6), "{memory-batch}"], speakers=2))
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 7)


def test_a_segment_too_large_for_the_memory_fails_alone(make: Make) -> None:
    """Slots are halved, then it has a fresh worker for itself, then it fails; its neighbours are spoken."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}, pool__workers=1).start()
    manifest = dubd.run("memory", make_job([*lines(0, 6), "too large for anyone {memory}"], speakers=2))
    dubd.check_manifest(manifest)
    assert [segment["status"] for segment in manifest["segments"]] == ["ok"] * 6 + ["failed"]
    assert manifest["segments"][6]["error"]["code"] == "out_of_memory"


# --- the daemon --------------------------------------------------------------------------------------------


def test_a_killed_daemon_goes_on_where_it_was(make: Make) -> None:
    """kill -9 in the middle of a job: its workers die with it; the next start ends the job as done, and speaks nothing
    twice that was finished."""
    dubd = make().start()
    dubd.drop("scene", held_job(20, 26))
    wait_for(lambda: dubd.progress("scene")["counts"].get("ok") == 20 and begun(dubd, "scene") == 8, "the middle")
    wait_for(lambda: sum(record["t"] == "began" for record in dubd.journals()) == 28, "the notes of what has begun")
    wait_for(lambda: len(list((dubd.outbox / "scene").glob("*.wav"))) == 20, "the publishing")
    pids = [row["pid"] for row in dubd.workers()]
    finished = set(dubd.ok_in_journal())
    published = {path.name: path.stat().st_ino for path in (dubd.outbox / "scene").glob("*.wav")}
    assert len(finished) == len(published) == 20
    dubd.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "the end of the workers")
    assert dubd.manifest_now("scene") is None
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"], manifest["counts"]["cached"]) == ("done", 46, 0)
    assert all(count == 1 for count in dubd.told_texts().values())
    assert published == {name: (dubd.outbox / "scene" / name).stat().st_ino for name in published}
    assert Counter(segment["attempts"] for segment in manifest["segments"]) == {1: 38, 2: 8}
    dubd.check_nothing_left()


def test_a_daemon_killed_again_and_again_loses_nothing(make: Make) -> None:
    """Wherever the deaths fall, in claiming, speaking, storing or publishing: in the end everything is there, and what
    a journal called finished was spoken once."""
    dubd = make(engine__options={}, engine__name="silence", pool__tries=20)
    jobs = {f"job_{number}": make_job(lines(100 * number, 100 * number + 60), speakers=3) for number in range(4)}
    dubd.inbox.mkdir(parents=True)
    for name, job in jobs.items():
        dubd.drop(name, job)
    inodes: dict[Path, int] = {}
    for life in range(6):
        dubd.start(ready=False)
        wait_for(
            lambda wanted=(life + 1) * 30: len(list(dubd.outbox.glob("*/*.wav"))) >= wanted,  # type: ignore[misc]
            "some progress",
        )
        dubd.kill()
        for path, inode in inodes.items():
            assert path.stat().st_ino == inode, f"{path} was made anew"
        inodes = {path: path.stat().st_ino for path in dubd.outbox.glob("*/*.wav")}
    dubd.start()
    for name in jobs:
        manifest = dubd.manifest(name)
        dubd.check_manifest(manifest)
        assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 60)
    dubd.check_nothing_left()


def test_what_had_begun_when_the_daemon_died_is_spoken_alone(make: Make) -> None:
    """A segment that may have killed the daemon's machine is not let near others again; its neighbours, begun in the
    same moment, use up none of their tries: they may die again with the daemon and are still spoken."""
    dubd = make(pool__workers=1, pool__tries=1, engine__slots=4).start()
    dubd.drop("scene", make_job(lines(0, 6, " {hold}")))
    wait_for(lambda: begun(dubd, "scene") == 4, "four in flight")
    dubd.kill()
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 6)


def test_a_poison_segment_that_takes_the_daemon_along_fails_in_the_end(make: Make) -> None:
    """Only a death while it is alone counts, and it is counted on disk before the dispatch."""
    dubd = make(pool__workers=1, pool__tries=2).start()
    dubd.drop("scene", make_job(["This one waits {hold}"]))
    for life in range(1, 4):
        wait_for(
            lambda wanted=life: [r["t"] for r in dubd.journals()].count("began") == wanted,  # type: ignore[misc]
            "the segment in flight",
        )
        dubd.kill()
        dubd.start(ready=False)
    manifest = dubd.manifest("scene")
    assert (manifest["status"], manifest["segments"][0]["error"]["code"]) == ("failed", "worker_died")
    assert manifest["segments"][0]["attempts"] == 3


def test_a_job_whose_publishing_was_cut_off_is_published(make: Make) -> None:
    """Finished segments that had not reached the outbox are published by the next life, not spoken again."""
    dubd = make().start()
    dubd.drop("scene", held_job(4, 1))
    wait_for(lambda: len(dubd.ok_in_journal()) == 4 and begun(dubd, "scene") == 1, "the middle")
    wait_for(lambda: len(list((dubd.outbox / "scene").glob("*.wav"))) == 4, "the publishing")
    dubd.kill()
    (job,) = (dubd.state / "jobs").iterdir()
    # As if the death had come after the journal and before the outbox.
    (dubd.outbox / "scene" / "segment_0001.wav").rename(job / "segments" / "1.wav")
    # And as if the disk had lost one: it is spoken again.
    (dubd.outbox / "scene" / "segment_0002.wav").unlink()
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert dubd.told_texts() == Counter(lines(0, 4) + lines(4, 5, " {hold}") + lines(2, 3))


def test_a_torn_journal_loses_no_job(make: Make) -> None:
    """A record that was being written when the machine died is as if it had not been; what stands before it counts."""
    dubd = make().start()
    dubd.drop("scene", held_job(5, 1))
    wait_for(lambda: len(dubd.ok_in_journal()) == 5 and begun(dubd, "scene") == 1, "the middle")
    dubd.kill()
    (journal,) = (dubd.state / "jobs").glob("*/journal.jsonl")
    with journal.open("ab") as file:
        file.write(b'1234abcd {"t":"ok","p":5,"key":nul')
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert (manifest["status"], max(dubd.told_texts().values())) == ("done", 1)


def test_a_job_that_cant_be_read_back_is_taken_again(make: Make) -> None:
    """Its folder in state/ is damaged: it is put aside, and the job taken anew from its claimed file."""
    dubd = make().start()
    dubd.drop("scene", held_job(2, 1))
    wait_for(lambda: begun(dubd, "scene") == 1, "the middle")
    dubd.kill()
    (job,) = (dubd.state / "jobs").iterdir()
    (job / "about.json").write_text("{}")
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 3)
    assert [path.name for path in (dubd.state / "damaged").iterdir()] == [job.name]
    dubd.check_nothing_left()


def test_a_claim_that_was_never_accepted_is_taken_up(make: Make) -> None:
    """Death between the rename in the inbox and the copy in state/: the claimed file is still the job."""
    dubd = make().start()
    claimed = dubd.inbox / ".claimed" / dubd.status()["host_id"] / "00001732155600000000-0123abcd"
    dubd.kill()
    dubd.drop("scene", make_job(lines(0, 3)))
    claimed.mkdir(parents=True)
    (dubd.inbox / "scene.json").rename(claimed / "scene.json")
    dubd.start()
    assert dubd.manifest("scene")["status"] == "done"
    dubd.check_nothing_left()


def test_no_worker_outlives_a_hanging_c_call(make: Make) -> None:
    """The daemon is killed while a worker sleeps in C, holding the interpreter's lock: the worker ends all the same."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}, pool__workers=1).start()
    dubd.drop("scene", make_job(["{freeze}"]))
    wait_for(lambda: begun(dubd, "scene") == 1, "the segment in flight")
    pid = dubd.workers()[0]["pid"]
    dubd.kill()
    wait_for(lambda: not is_alive(pid), "the end of the worker")

"""A job in state/ comes back from its folder as it was, whenever the daemon died."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from daemon.core.footprint import segment_bytes
from daemon.core.job import JobRejected, Limits
from daemon.journal import Record
from daemon.live_job import LiveJob, VoiceReference, build_folder, new_token, received_at, spoken_record, stem_of
from daemon.store import store
from tests.shell import deliver, failing_at, job_document, make_live_job

SAMPLES = Path(__file__).parent / "data" / "journals"


@pytest.fixture
def job(tmp_path: Path) -> LiveJob:
    return make_live_job(tmp_path)


def replayed(job: LiveJob, *records: Record) -> LiveJob:
    """The job as a restart finds it after these."""
    job.journal.append(records)
    job.journal.close()
    return LiveJob.open(job.folder, Limits())


# --- the folder --------------------------------------------------------------------------------------------


def test_a_job_comes_back(tmp_path: Path) -> None:
    """What was asked, under which name, with which voices; untouched so far."""
    live = make_live_job(tmp_path, job_document(["a", "b"], priority=3), name="my film.JSON")
    again = LiveJob.open(live.folder, Limits())
    assert (again.job_id, again.name, again.job.priority) == ("my film", "my film.JSON", 3)
    assert again.voices == {"anna": (VoiceReference("0.audio", "audio", "0" * 64, "hello"),)}
    assert again.received_at == received_at(again.token) == live.received_at
    assert (again.taken, again.cancelled, again.ended, again.started_at) == (False, False, False, None)
    assert [(spec.position, spec.attempts, spec.tries, spec.suspect) for spec in again.waiting()] == [
        (0, 0, 0, False),
        (1, 0, 0, False),
    ]
    assert again.waiting()[0].cost > 0


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    """The file's name is kept byte for byte."""
    name = os.fsdecode(b"\xff.json")
    live = make_live_job(tmp_path, job_document(job_id="film"), name=name)
    assert LiveJob.open(live.folder, Limits()).name == name


@pytest.mark.parametrize("name", ["job.json", "about.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"name": "a.json"}', b'{"name": 3, "voices": {}}', b"\xff"])
def test_a_folder_that_is_not_whole_is_told(job: LiveJob, name: str, content: bytes) -> None:
    """By an error that the daemon can tell from a mistake of its own."""
    (job.folder / name).write_bytes(content)
    with pytest.raises((OSError, ValueError, LookupError, TypeError, AttributeError, JobRejected)):
        LiveJob.open(job.folder, Limits())


def test_a_crash_while_the_folder_is_made_leaves_no_job(tmp_path: Path) -> None:
    """It appears under its name when it is whole."""
    token = new_token()
    staged = tmp_path / f".{token}.new"
    (staged / "references").mkdir(parents=True)
    (tmp_path / token).mkdir()
    (tmp_path / token / "in the way").write_bytes(b"")
    with pytest.raises(OSError):
        build_folder(tmp_path, token, "a.json", b"{}", {}, staged)
    shutil.rmtree(tmp_path / token)
    shutil.rmtree(staged)
    (staged / "references").mkdir(parents=True)
    assert build_folder(tmp_path, token, "a.json", b"{}", {}, staged) == tmp_path / token
    assert sorted(os.listdir(tmp_path / token)) == ["about.json", "job.json", "references", "segments"]
    assert os.listdir(tmp_path) == [token]


def test_tokens_sort_by_time() -> None:
    """And none is given twice."""
    tokens = [new_token() for _ in range(1000)]
    assert len(set(tokens)) == 1000
    assert [received_at(token) for token in tokens] == sorted(map(received_at, tokens))
    assert [received_at(token) for token in sorted(tokens)] == sorted(map(received_at, tokens))


def test_stems() -> None:
    """The name of a job that names itself not."""
    assert [stem_of(name) for name in ("a.json", "a.JSON", "a.b.json", "a.json.json", "json", "a.txt")] == [
        "a", "a", "a.b", "a.json", "json", "a.txt",
    ]  # fmt: skip


# --- the journal -------------------------------------------------------------------------------------------


def test_a_segment_that_had_begun_is_a_suspect(job: LiveJob) -> None:
    """The daemon died, and nobody knows of what."""
    again = replayed(job, {"t": "began", "p": 1})
    assert [(spec.suspect, spec.attempts, spec.tries) for spec in again.waiting()] == [
        (False, 0, 0),
        (True, 1, 0),
        (False, 0, 0),
    ]


def test_one_that_was_given_back_is_none(job: LiveJob) -> None:
    """Nor one that ended, nor any after an orderly stop."""
    again = replayed(
        job,
        {"t": "began", "p": 0},
        {"t": "back", "p": 0},
        {"t": "began", "p": 1},
        {"t": "failed", "p": 1, "attempts": 1, "worker": 0, "code": "c", "message": "m"},
        {"t": "began", "p": 2},
        {"t": "stop"},
    )
    assert [segment.suspect for segment in again.segments] == [False] * 3
    assert [segment.attempts for segment in again.segments] == [1, 1, 1]
    assert (again.segments[1].status, again.segments[1].code, again.segments[1].message) == ("failed", "c", "m")


def test_a_stop_does_not_clear_earlier_suspicion(job: LiveJob) -> None:
    """What a worker died of is still spoken alone by the next daemon; what begins after a stop is suspect again."""
    again = replayed(
        job,
        {"t": "began", "p": 0},
        {"t": "suspect", "p": 0},
        {"t": "stop"},
        {"t": "began", "p": 1},
    )
    assert [segment.suspect for segment in again.segments] == [True, True, False]


def test_a_try_counts_unless_it_is_given_back(job: LiveJob) -> None:
    """It is written before the dispatch: with a death after it, it is used up; given back or stopped in order, not."""
    alone: list[Record] = [{"t": "suspect", "p": 0}, {"t": "try", "p": 0, "tries": 1}]
    again = replayed(job, *alone)
    assert (again.segments[0].tries, again.segments[0].suspect) == (1, True)
    again = replayed(again, {"t": "began", "p": 0}, {"t": "back", "p": 0})
    assert (again.segments[0].tries, again.segments[0].suspect) == (0, True)
    again = replayed(again, {"t": "try", "p": 0, "tries": 1}, {"t": "began", "p": 0}, {"t": "stop"}, {"t": "stop"})
    assert again.segments[0].tries == 0
    again = replayed(again, {"t": "try", "p": 0, "tries": 1}, {"t": "suspect", "p": 0}, {"t": "back", "p": 0})
    assert again.segments[0].tries == 1, "a death stays counted, whatever comes after it"
    again = replayed(again, {"t": "try", "p": 0, "tries": 2}, {"t": "began", "p": 0})
    assert (again.segments[0].tries, again.segments[0].suspect) == (2, True)


def test_a_failure_stays_counted(job: LiveJob) -> None:
    """A restart gives no tries anew; what gives a dispatch back does not give back what was used up before it."""
    again = replayed(job, {"t": "began", "p": 0}, {"t": "back", "p": 0}, {"t": "tried", "p": 0, "tries": 1})
    assert (again.segments[0].tries, again.segments[0].suspect) == (1, False)
    assert again.waiting()[0].tries == 1
    alone: list[Record] = [{"t": "suspect", "p": 0}, {"t": "try", "p": 0, "tries": 2}, {"t": "began", "p": 0}]
    again = replayed(again, *alone, {"t": "tried", "p": 0, "tries": 2}, {"t": "stop"})
    assert (again.segments[0].tries, again.segments[0].suspect) == (2, True)


def test_every_outcome_comes_back(job: LiveJob) -> None:
    """And none of them waits."""
    store([deliver(job, 0)])
    again = replayed(
        job,
        {"t": "cancel"},
        {"t": "cancelled", "p": 1, "attempts": 2},
        {"t": "skipped", "p": 2},
        {"t": "taken", "at": 5.0},
        {"t": "end", "at": 6.0},
    )
    assert [segment.status for segment in again.segments] == ["ok", "cancelled", "skipped"]
    assert spoken_record(0, again.segments[0]) == spoken_record(0, job.segments[0])
    assert (again.cancelled, again.taken, again.started_at, again.ended, again.ended_at) == (True, True, 5.0, True, 6.0)
    assert again.waiting() == ()
    assert again.segments[1].attempts == 2


def test_spoken_again_replaces(job: LiveJob) -> None:
    """A file that was lost is spoken once more; the later record holds."""
    store([deliver(job, 0, seed=1)])
    store([deliver(job, 0, seed=2)])
    assert replayed(job).segments[0].seed == 2


def test_records_of_a_later_version_are_passed_over(job: LiveJob) -> None:
    """One that concerns no segment, and one that does: neither costs the job."""
    again = replayed(job, {"t": "paused", "at": 1.0}, {"t": "praised", "p": 0}, {"t": "began", "p": 0})
    assert again.segments[0].suspect


def test_a_record_that_can_not_be_is_told(job: LiveJob) -> None:
    """The journal of another job, say."""
    with pytest.raises(LookupError):
        replayed(job, {"t": "began", "p": 77})


def test_what_was_given_out_is_suspected(job: LiveJob) -> None:
    """Whatever it did to the daemon, and however soon: it is noted before a worker is asked. What came back, and what
    has ended, is not; and the next life knows it too."""
    for position in range(3):
        job.give_out(position)
    job.take_back(1)
    job.journal.append([spoken_record(2, dataclasses.replace(job.segments[2], status="ok", sha256="0"))])
    with (job.folder / "out").open("ab") as file:
        file.write(b"7\nx\n0")  # of no segment, no number, torn
    for _ in range(2):
        again = LiveJob.open(job.folder, Limits())
        again.suspect_what_was_out()
        assert [segment.suspect for segment in again.segments] == [True, False, False]
    assert not (job.folder / "out").exists()


def test_an_orderly_end_does_not_clear_the_death_before_it(job: LiveJob) -> None:
    """A start may be broken off before anything is given out: what the life before it died with stays suspected, and
    what it was charged with stays charged."""
    job.journal.append([{"t": "began", "p": 0}, {"t": "suspect", "p": 1}, {"t": "try", "p": 1, "tries": 1}])
    job.give_out(2)
    for _ in range(2):
        again = LiveJob.open(job.folder, Limits())
        again.suspect_what_was_out()
        assert [(segment.suspect, segment.tries) for segment in again.segments] == [(True, 0), (True, 1), (True, 0)]
        assert again.counts()["running"] == 0
        again.journal.append([{"t": "stop"}])


def test_an_orderly_end_leaves_no_suspects(job: LiveJob) -> None:
    """What was out had been given up in order; and a disk that is full when something is given out does not matter."""
    job.give_out(0)
    job.journal.append([{"t": "stop"}])
    again = LiveJob.open(job.folder, Limits())
    again.suspect_what_was_out()
    with failing_at(1, error=errno.ENOSPC):
        again.give_out(1)
    assert not any(segment.suspect for segment in again.segments)


def outs(job: LiveJob) -> list[tuple[bool, int]]:
    """Suspect or not, and tries, as the next life and the one after it find them."""
    found = []
    for _ in range(2):
        again = LiveJob.open(job.folder, Limits())
        again.suspect_what_was_out()
        found.append([(segment.suspect, segment.tries) for segment in again.segments])
        again.close()
    assert found[0] == found[1]
    return found[0]


def test_what_was_delivered_is_no_suspect(job: LiveJob) -> None:
    """Whatever the journal says by then, which a slow disk holds up: the worker is done with it. A try that it was made
    for is not used up."""
    for position in range(3):
        job.give_out(position)
    for position in range(2):
        job.take_back(position)
    job.journal.append([{"t": "suspect", "p": 1}, {"t": "try", "p": 1, "tries": 2}])
    job.journal.append([{"t": "began", "p": position} for position in range(3)])
    assert outs(job) == [(False, 0), (True, 1), (True, 0)]


def test_a_file_that_kills_whoever_looks_at_it_is_suspected(job: LiveJob) -> None:
    """Also alone, where that try counts."""
    job.journal.append([{"t": "suspect", "p": 1}, {"t": "try", "p": 1, "tries": 1}])
    for position in range(3):
        job.give_out(position)
        job.take_back(position)
        job.look_at(position)
    job.take_back(2)
    assert outs(job) == [(True, 0), (True, 1), (False, 0)]


def test_an_orderly_end_is_told_without_the_journal(job: LiveJob) -> None:
    """Which may be too slow for it."""
    job.journal.append([{"t": "suspect", "p": 1}, {"t": "try", "p": 1, "tries": 1}, {"t": "began", "p": 1}])
    job.journal.append([{"t": "began", "p": 0}])
    for position in range(3):
        job.give_out(position)
    job.stop()
    assert outs(job) == [(False, 0), (True, 0), (False, 0)]


def test_an_earlier_orderly_end_clears_nothing(job: LiveJob) -> None:
    """A line that ends the daemon before anything of it is in the journal is suspected, in its first life too."""
    job.journal.append([{"t": "taken", "at": 1.0}, {"t": "stop"}])
    again = LiveJob.open(job.folder, Limits())
    again.suspect_what_was_out()
    again.give_out(1)
    again.close()
    assert outs(job) == [(False, 0), (True, 0), (False, 0)]


def test_jobs_of_earlier_versions_open(tmp_path: Path) -> None:
    """A frozen sample with every kind of record."""
    (sample,) = SAMPLES.glob("*/")
    folder = tmp_path / sample.name
    shutil.copytree(sample, folder)
    live = LiveJob.open(folder, Limits())
    assert (live.job_id, live.name, live.received_at) == ("film_en", "film_en.json", 1_766_000_000.0)
    assert (live.taken, live.started_at, live.cancelled, live.ended) == (True, 1_766_000_001.5, True, False)
    assert live.ignored == ["$.x: dubd does not use this key"]
    assert live.voices["bo"] == (VoiceReference("b" * 64 + ".npy", "codes", "b" * 64, "参考"),)
    assert [(s.status, s.attempts, s.tries, s.suspect, s.cached) for s in live.segments] == [
        ("ok", 1, 0, False, False),
        ("ok", 0, 0, False, True),
        ("failed", 3, 0, False, False),
        ("waiting", 1, 0, True, False),
        ("waiting", 2, 0, True, False),
        ("waiting", 1, 0, True, False),
        ("waiting", 2, 2, True, False),
        ("cancelled", 0, 0, False, False),
        ("skipped", 0, 0, False, False),
        ("waiting", 0, 0, False, False),
    ]
    assert live.segments[0].seeds == (7,) and live.segments[0].flaws == ()
    assert list(live.unpublished()) == [0, 1]


# --- what it adds up to ------------------------------------------------------------------------------------


def test_counts_and_status(job: LiveJob) -> None:
    """done: none failed; failed: none ok; partial between; cancelled when that stopped anything."""
    ok, failed, cancelled, skipped = "ok", "failed", "cancelled", "skipped"
    for statuses, status in (
        ((ok, ok, ok), "done"),
        ((ok, skipped, ok), "done"),
        ((skipped, skipped, skipped), "done"),
        ((ok, failed, ok), "partial"),
        ((failed, skipped, failed), "failed"),
        ((ok, failed, cancelled), "cancelled"),
    ):
        for segment, value in zip(job.segments, statuses, strict=True):
            segment.status = value  # type: ignore[assignment]
        assert job.status() == status
        counts = job.counts()
        assert counts["total"] == 3 == sum(counts[name] for name in (ok, failed, cancelled, skipped))


def test_counts_are_kept_as_segments_change(job: LiveJob) -> None:
    """They are what counting would give, after any change, from any thread."""
    dice = random.Random(1)
    for _ in range(300):
        position = dice.randrange(3)
        match dice.randrange(5):
            case 0:
                store([deliver(job, position, frames=dice.randrange(1, 200), cached=dice.random() < 0.5)])
            case 1:
                job.segments[position].begun = dice.random() < 0.5
            case 2:
                job.segments[position].give_back()
            case 3:
                job.segments[position].status = dice.choice(("waiting", "failed", "skipped", "cancelled"))
            case 4:
                job.segments[position] = dataclasses.replace(job.segments[position], begun=True)
        found, segments = job.segments, list(job.segments)
        ok = [segment for segment in segments if segment.status == "ok"]
        waiting = [segment for segment in segments if segment.status == "waiting"]
        assert job.counts()["ok"] == len(ok) and job.counts()["cached"] == sum(segment.cached for segment in ok)
        assert job.counts()["running"] == sum(segment.begun for segment in waiting)
        assert round(job.audio_s(), 9) == round(sum(segment.duration_s or 0 for segment in ok), 9)
        assert found.cost_waiting == sum(segment.cost for segment in waiting)
        assert round(found.bytes_waiting) == round(sum(segment_bytes(job.job, s.segment) for s in waiting))
        assert found.ended["anna"] == 3 - len(waiting)


def test_the_first_segment_is_one_too(job: LiveJob) -> None:
    """Its position is 0, which is no less unpublished than any other."""
    assert not job.has_unpublished
    store([deliver(job, 0)])
    assert job.has_unpublished and list(job.unpublished()) == [0]
    job.segments[0].published = True
    assert not job.has_unpublished


def test_duration(job: LiveJob) -> None:
    """Seconds of finished audio; none of what is not finished, or has no rate (codes)."""
    store([deliver(job, 0, frames=800)])
    assert job.segments[0].duration_s == 0.1 and job.segments[1].duration_s is None
    assert job.audio_s() == 0.1
    job.segments[0].sample_rate = 0
    assert job.segments[0].duration_s is None


def test_the_claimed_bytes_are_kept(job: LiveJob) -> None:
    """job.json is what was dropped, byte for byte."""
    assert json.loads((job.folder / "job.json").read_bytes()) == job_document()

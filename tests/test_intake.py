"""From a claimed file to an accepted job, or to every reason why not."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import soundfile

from daemon import files
from daemon.config import Settings
from daemon.core.job_id import fold_job_id
from daemon.intake import WHATEVER_SIZE, Rejection, accept, give_keys
from daemon.live_job import Claim, EngineIdentity, LiveJob, new_token, received_at
from daemon.outbox import TakenNames
from tests.shell import Fault, failing_at, job_document, settings_in

ENGINE = EngineIdentity("draft", "1", "m", "fp32")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a recording where the jobs of these tests expect it."""
    settings = settings_in(tmp_path)
    refs = settings.paths.inbox / "refs"
    refs.mkdir()
    soundfile.write(refs / "anna.wav", [0.1, -0.1] * 8_000, 8_000)
    return settings


def claim(settings: Settings, document: dict[str, Any] | bytes, name: str = "film.json") -> Claim:
    token = new_token()
    file = settings.paths.inbox / ".claimed" / "host" / token / name
    file.parent.mkdir(parents=True)
    file.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return Claim(token, file, received_at(token))


def nobody(folded: str) -> str | None:
    """No job is being worked on."""
    return None


def accepted(settings: Settings, document: dict[str, Any], **live: str) -> LiveJob:
    job = accept(
        claim(settings, document),
        settings,
        lambda folded: live.get(folded),
        TakenNames(settings.paths.outbox, fold_job_id),
    )
    assert isinstance(job, LiveJob), job
    return job


def refused(settings: Settings, taken: Claim, **live: str) -> Rejection:
    """The reasons; and nothing is left of the attempt."""
    rejection = accept(taken, settings, lambda folded: live.get(folded), TakenNames(settings.paths.outbox, fold_job_id))
    assert isinstance(rejection, Rejection)
    assert os.listdir(settings.paths.state / "jobs") == [] and taken.file.exists()
    return rejection


def codes(rejection: Rejection) -> list[tuple[str, str]]:
    return [(reason.path, reason.code) for reason in rejection.reasons]


def test_an_accepted_job_needs_the_inbox_no_more(settings: Settings) -> None:
    """It has its document and its references with it, and opens again without them."""
    job = accepted(settings, job_document())
    shutil.rmtree(settings.paths.inbox)
    again = LiveJob.open(job.folder, WHATEVER_SIZE)
    (reference,) = again.voices["anna"]
    assert (job.folder / "references" / reference.file).stat().st_size > 16_000
    assert (again.job_id, len(again.segments)) == ("film", 3)
    assert os.listdir(settings.paths.state / "jobs") == [job.token]


def test_a_shared_recording_is_kept_once(settings: Settings) -> None:
    """However many speakers and names it has, each with a text of its own."""
    shutil.copy(settings.paths.inbox / "refs" / "anna.wav", settings.paths.inbox / "refs" / "copy.wav")
    document = job_document()
    document["speakers"] = [
        {"id": speaker, "references": [{"audio": path, "text": speaker}]}
        for speaker, path in (("anna", "refs/anna.wav"), ("bo", "refs/anna.wav"), ("cy", "refs/copy.wav"))
    ]
    job = accepted(settings, document)
    assert len(os.listdir(job.folder / "references")) == 1
    assert [job.voices[speaker][0].text for speaker in ("anna", "bo", "cy")] == ["anna", "bo", "cy"]


def test_every_bad_reference_is_named(settings: Settings) -> None:
    """With its place in the document."""
    (settings.paths.inbox / "noise.wav").write_bytes(b"noise" * 1000)
    (settings.paths.inbox.parent / "outside.wav").write_bytes(b"")
    paths = ["refs/anna.wav", "missing.wav", "noise.wav", "../outside.wav", "missing.wav"]
    document = job_document()
    document["speakers"] = [
        {"id": "anna", "references": [{"audio": path, "text": "r"} for path in paths[:3]]},
        {"id": "bo", "references": [{"audio": paths[3], "text": "r"}, {"codes": paths[4], "text": "r"}]},
    ]
    assert codes(refused(settings, claim(settings, document))) == [
        ("$.speakers[0].references[1].audio", "missing"),
        ("$.speakers[0].references[2].audio", "unreadable"),
        ("$.speakers[1].references[0].audio", "outside_allowed_roots"),
        ("$.speakers[1].references[1].codes", "missing"),
    ]


def test_all_references_of_a_job_have_a_limit(settings: Settings) -> None:
    """Each file counts once; what comes after too many is not even opened."""
    size = (settings.paths.inbox / "refs" / "anna.wav").stat().st_size
    for number in range(2):
        content = (settings.paths.inbox / "refs" / "anna.wav").read_bytes()
        (settings.paths.inbox / f"{number}.wav").write_bytes(content[:-2] + bytes([number, 0]))
    document = job_document()
    document["speakers"] = [
        {"id": f"s{number}", "references": [{"audio": path, "text": "r"}]}
        for number, path in enumerate(("refs/anna.wav", "refs/anna.wav", "0.wav", "1.wav", "missing.wav"))
    ]
    document["segments"][0]["speaker"] = document["segments"][1]["speaker"] = "s0"
    document["segments"][2]["speaker"] = "s0"
    limits = dataclasses.replace(settings.limits, job_reference_bytes=2 * size)
    limited = dataclasses.replace(settings, limits=limits)
    rejection = refused(limited, claim(settings, document))
    assert codes(rejection) == [("$.speakers[4].references[0].audio", "too_large")]
    del document["speakers"][3:]
    accepted(limited, document)


def test_taking_a_job_waits_for_the_disk_only_twice(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is in its folder is synced at once, the claim with it; then the folder's own name."""
    alone: list[Path] = []
    beside: list[Path] = []
    here = threading.get_ident()

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        (alone if threading.get_ident() == here else beside).append(path)
        os.fsync(descriptor)

    monkeypatch.setattr(files.disk, "fsync", fsync)
    settled: list[int] = []
    taken = claim(settings, job_document())
    job = accept(
        taken,
        settings,
        nobody,
        TakenNames(settings.paths.outbox, fold_job_id),
        lambda: settled.append(len(list((settings.paths.state / "jobs").glob("[0-9]*")))),
    )
    assert isinstance(job, LiveJob)
    jobs = settings.paths.state / "jobs"
    assert alone == [jobs] and settled == [0]
    staged = jobs / f".{taken.token}.new"
    (reference,) = job.voices["anna"]
    names = ("", "references", "segments", "job.json", "about.json", f"references/{reference.file}")
    assert sorted(beside) == sorted(staged / name for name in names)


def test_documents_that_are_none(settings: Settings) -> None:
    """Cut off is told apart from wrong, since it may still be coming."""
    whole = json.dumps(job_document()).encode()
    assert refused(settings, claim(settings, whole[:-5])).incomplete
    rejection = refused(settings, claim(settings, b'{"segments": 3}'))
    assert not rejection.incomplete and len(rejection.reasons) > 1


def test_case_twins(settings: Settings) -> None:
    """A live job's, or a folder's in the outbox; the very same id is welcome."""
    assert codes(refused(settings, claim(settings, job_document()), film="FILM")) == [("$.job_id", "case_twin")]
    (settings.paths.outbox / "Film").mkdir()
    rejection = refused(settings, claim(settings, job_document()))
    assert (codes(rejection), rejection.job_id) == ([("$.job_id", "case_twin")], "film")
    (settings.paths.outbox / "film").mkdir()
    accepted(settings, job_document(), film="film")


def test_a_failure_at_any_step_leaves_the_claim(settings: Settings) -> None:
    """Whichever change on disk fails, the next try accepts the job, whole and once."""
    number, failures = 0, 0
    while True:
        number += 1
        taken = claim(settings, job_document())
        with failing_at(number, error=errno.ENOSPC) as fired:
            try:
                job = accept(taken, settings, nobody, TakenNames(settings.paths.outbox, fold_job_id))
            except Fault:
                failures += 1
                job = accept(taken, settings, nobody, TakenNames(settings.paths.outbox, fold_job_id))
        assert isinstance(job, LiveJob) and job.token == taken.token
        assert LiveJob.open(job.folder, WHATEVER_SIZE).waiting() == job.waiting()
        assert not (settings.paths.state / "jobs" / f".{taken.token}.new").exists()
        if not fired():
            break
    assert failures > 15


@pytest.mark.parametrize("shortage", [MemoryError(), RuntimeError(files.NO_THREAD)])
def test_a_machine_short_of_memory_leaves_the_claim(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    """No job is refused for what the machine lacks at the moment."""

    def submit(*_: object) -> None:
        raise shortage

    taken = claim(settings, job_document())
    with monkeypatch.context() as short:
        short.setattr(files._syncers, "submit", submit)
        with pytest.raises(OSError, match=r"memory|thread"):
            accept(taken, settings, nobody, TakenNames(settings.paths.outbox, fold_job_id))
    assert os.listdir(settings.paths.state / "jobs") == [] and taken.file.exists()
    job = accept(taken, settings, nobody, TakenNames(settings.paths.outbox, fold_job_id))
    assert isinstance(job, LiveJob) and job.token == taken.token


# --- keys and seeds ----------------------------------------------------------------------------------------


def test_keys_and_seeds(settings: Settings) -> None:
    """Each segment's own, else the job's, else one derived from its content; lines that repeat differ."""
    document = job_document(["a", "a", "b", "..."])
    document["segments"][2]["seed"] = 5
    job = accepted(settings, document)
    give_keys(job, ENGINE, {})
    first, second, third, fourth = job.segments
    assert third.seed == 5 and fourth.status == "skipped"
    assert len({first.seed, second.seed}) == len({first.key, second.key}) == 2
    again = accepted(settings, document)
    give_keys(again, ENGINE, {})
    assert [(s.key, s.seed) for s in again.segments] == [(s.key, s.seed) for s in job.segments]
    other = accepted(settings, document)
    give_keys(other, EngineIdentity("draft", "2", "m", "fp32"), {})
    assert not {s.key for s in other.segments} & {s.key for s in job.segments}
    seeded = accepted(settings, document | {"defaults": {"seed": 9}})
    give_keys(seeded, ENGINE, {})
    assert [segment.seed for segment in seeded.segments[:3]] == [9, 9, 5]
    assert seeded.segments[0].key == seeded.segments[1].key


def test_what_has_ended_keeps_its_key(settings: Settings) -> None:
    """After a restart the others get theirs; what was recorded stays."""
    job = accepted(settings, job_document(["a", "b"]))
    job.segments[0].status, job.segments[0].key, job.segments[0].seed = "ok", "recorded", 1
    give_keys(job, ENGINE, {})
    assert (job.segments[0].key, job.segments[0].seed) == ("recorded", 1)
    assert job.segments[1].key not in (None, "recorded")

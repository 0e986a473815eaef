"""From a claimed file to an accepted job: parsed, its references snapshot, its folder in state/. Runs in threads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon import files, finishing
from daemon.config import Settings
from daemon.core.identity import EngineContent, Occurrences, ReferenceContent, derive_seed, segment_key
from daemon.core.job import EmbeddingsJob, Job, JobRejected, Limits, Reason, Reference, Segment
from daemon.core.job_id import fold_job_id
from daemon.core.job_parser import parse_job
from daemon.core.redo import read_request
from daemon.embeddings.corpus import CorpusRefused, open_corpus
from daemon.embeddings.live_job import open_job
from daemon.inbox import read_document
from daemon.live_job import (
    MOST_STATE_BYTES,
    REQUEST_FILE,
    Claim,
    EngineIdentity,
    LiveJob,
    LiveSegment,
    VoiceReference,
    about_job,
    build_folder,
    stem_of,
)
from daemon.outbox import TakenNames
from daemon.redo import compose_redo, seed_of_next_take
from daemon.references import ReferenceRefused, snapshot_reference
from daemon.tally import Segments

log = structlog.get_logger("dubd.job")

MAX_REASONS = 200

WHATEVER_SIZE = Limits(
    job_bytes=1 << 40,
    json_depth=200,
    segments=1 << 31,
    text_characters=1 << 31,
    references_per_speaker=1 << 31,
    reference_seconds_min=0.0,
    reference_seconds_max=1e9,
    reference_bytes=1 << 40,
    job_reference_bytes=1 << 50,
)
"""The limits for a job that was accepted before: those of today must not undo it."""


@dataclass(frozen=True, slots=True)
class Rejection:
    reasons: tuple[Reason, ...]
    job_id: str | None
    incomplete: bool


@files.shortage_as_os_error()
def accept(
    claim: Claim,
    settings: Settings,
    live_id: Callable[[str], str | None],
    taken: TakenNames,
    settle: Callable[[], None] = lambda: None,
    latest: Callable[[str], Path | None] = lambda job_id: None,
) -> LiveJob | Rejection:
    """Accept a claimed job, or say every reason why not. ``live_id``: the job id of a folded form that is being worked
    on, if any; ``taken``: the names in the outbox; ``settle`` makes the claim last, and is called before the job is
    kept; ``latest``: the folder of the last job of an id that is not over.

    Raises:
        OSError: the disk or the share failed, or the machine is short of memory; nothing is decided and the claim
            stands.
    """
    jobs = settings.paths.state / "jobs"
    try:
        document = dropped = read_document(claim.file, settings.limits)
        request = read_request(document, stem=stem_of(claim.name), limits=settings.limits)
        if request is not None:
            # What it is of may be another job when its turn has come (see renew); this one says what is wrong now.
            document = compose_redo(request, settings, latest(request.job_id))
        job = parse_job(document, stem=stem_of(claim.name), limits=settings.limits)
    except JobRejected as rejected:
        return Rejection(tuple(rejected.reasons), None, rejected.incomplete)
    twin = live_id(fold_job_id(job.job_id)) or job.job_id
    if twin == job.job_id:
        twin = taken.twin(job.job_id) or job.job_id
    if twin != job.job_id:
        return twin_rejection(job.job_id, twin)
    staged = jobs / f".{claim.token}.new"
    # What an earlier try has left that did not end well.
    files.discard(staged)
    files.remove_tree(jobs / claim.token)
    try:
        files.make_folder(jobs)
        files.make_unsynced_folder(staged)
        files.make_unsynced_folder(staged / "references")
        voices, reasons = _snapshot(job, settings, staged / "references")
        reasons += _check_corpus(job, settings)
        if reasons:
            # With the claimed file, what it names may have gone: a share that is away is no fault of the job's.
            os.lstat(claim.file)
            return Rejection(tuple(reasons), job.job_id, incomplete=False)
        taken.add(job.job_id)
        folder = build_folder(
            jobs, claim.token, claim.name, document, voices, staged, settle, None if request is None else dropped
        )
    finally:
        files.discard(staged)
    return open_job(folder, WHATEVER_SIZE)


def renew(job: LiveJob, settings: Settings) -> None:
    """Have a job that was a request to redo mean what was asked last, now that its turn has come. Runs in a thread,
    before anything is done about the job.

    Raises:
        JobRejected: that can't be redone.
        OSError: the disk or the share failed; call again.
    """
    try:
        dropped = files.read_regular(job.folder / REQUEST_FILE, MOST_STATE_BYTES)
    except FileNotFoundError:
        return
    request = read_request(dropped, stem=stem_of(job.name), limits=WHATEVER_SIZE)
    assert request is not None
    document = compose_redo(request, settings)
    if document == files.read_regular(job.folder / "job.json", MOST_STATE_BYTES):
        return
    asked = parse_job(document, stem=stem_of(job.name), limits=settings.limits)
    folder = job.folder / "references"
    voices, reasons = _snapshot(asked, settings, folder)
    if reasons:
        raise JobRejected(reasons)
    files.sync_all([folder / one.file for references in voices.values() for one in references], [folder])
    # In this order: as long as job.json is not what was asked last, all of this is done again.
    files.write_atomically(job.folder / "about.json", about_job(job.name, voices))
    files.write_atomically(job.folder / "job.json", document)
    log.info("what is redone was submitted again meanwhile; the redo is of that", job=job.job_id)
    job.job, job.voices, job.lost = asked, voices, None
    job.segments = Segments(asked, [LiveSegment(segment) for segment in asked.segments])
    job.ignored = list(asked.ignored)


def _check_corpus(job: Job, settings: Settings) -> list[Reason]:
    """Why the folder of a job of speaker embeddings can't be used."""
    if isinstance(job, EmbeddingsJob):
        try:
            open_corpus(job.utterances_dir, settings).close()
        except CorpusRefused as refused:
            return [Reason("$.utterances_dir", refused.code, str(refused))]
    return []


def twin_rejection(job_id: str, twin: str) -> Rejection:
    """Why ``job_id`` can't be taken beside ``twin``, which it equals but for the case of letters."""
    message = f"it differs from {twin!r}, which exists, in case alone; choose another job_id, or that very one"
    return Rejection((Reason("$.job_id", "case_twin", message),), job_id, incomplete=False)


def _snapshot(job: Job, settings: Settings, folder: Path) -> tuple[dict[str, tuple[VoiceReference, ...]], list[Reason]]:
    reasons: list[Reason] = []
    done: dict[tuple[str | None, str | None], VoiceReference | ReferenceRefused] = {}
    voices: dict[str, tuple[VoiceReference, ...]] = {}
    most = settings.limits.job_reference_bytes
    taken = 0
    for speaker in job.speakers:
        references = []
        for reference in speaker.references:
            if taken > most:
                message = (
                    f"the references of this job have more than {most} bytes up to here, the limit for all of one job: "
                    "use shorter recordings, fewer speakers in a job, or raise limits.job_reference_bytes"
                )
                return voices, [*reasons, Reason(reference.where, "too_large", message)]
            fresh = (reference.audio, reference.codes) not in done
            result = _snapshot_once(reference, settings, folder, done)
            if fresh and isinstance(result, VoiceReference):
                taken += (folder / result.file).stat().st_size
            if isinstance(result, ReferenceRefused):
                if len(reasons) < MAX_REASONS:
                    reasons.append(Reason(reference.where, result.code, str(result)))
                continue
            references.append(dataclasses.replace(result, text=reference.text))
        voices[speaker.id] = tuple(references)
    return voices, reasons


def _snapshot_once(
    reference: Reference,
    settings: Settings,
    folder: Path,
    done: dict[tuple[str | None, str | None], VoiceReference | ReferenceRefused],
) -> VoiceReference | ReferenceRefused:
    """A recording that several speakers share is copied and checked once."""
    key = (reference.audio, reference.codes)
    if key not in done:
        try:
            snapshot = snapshot_reference(
                reference,
                base_folder=settings.paths.inbox,
                # Codes that an earlier job has made lie in the outbox.
                allowed_roots=(*settings.paths.allowed_roots, settings.paths.outbox),
                mapped=settings.paths.mapped,
                folder=folder,
                limits=settings.limits,
            )
            done[key] = VoiceReference(snapshot.path.name, snapshot.kind, snapshot.sha256, reference.text)
        except ReferenceRefused as bad:
            done[key] = bad
    return done[key]


def restore_references(job: LiveJob, settings: Settings) -> None:
    """Look whether the references of a job from an earlier run of the daemon are what was accepted. One that is not is
    copied anew from where it came from, if that is the same still; else ``job.lost`` says so. Runs in a thread.

    Raises:
        OSError: the machine lacks what it takes to look (SHORTAGES).
    """
    folder = job.folder / "references"
    asked = {speaker.id: speaker.references for speaker in job.job.speakers}
    for speaker, references in job.voices.items():
        for kept, reference in zip(references, asked.get(speaker, ()), strict=False):
            path = folder / kept.file
            if files.holds(path, kept.sha256):
                continue
            log.error("a reference is not what was accepted; it is copied anew", job=job.job_id, file=str(path))
            files.discard(path)
            try:
                files.make_folder(folder)
                again = _snapshot_once(reference, settings, folder, {})
                why = str(again) if isinstance(again, ReferenceRefused) else "it is another recording now"
            except OSError as error:
                if error.errno in files.SHORTAGES:
                    raise
                again, why = None, error.strerror or str(error)
            if not isinstance(again, VoiceReference) or again.sha256 != kept.sha256:
                job.lost = (
                    f"the copy of {reference.path} was damaged, and can't be made anew: {why}; submit the job again"
                )


def give_keys(job: LiveJob, engine: EngineIdentity, options: dict[str, object]) -> None:
    """Give every segment its seed and content key, and skip those with nothing to say."""
    job.engine = engine
    content = EngineContent(engine.name, engine.version, engine.model, engine.precision, options)
    occurrences = Occurrences()
    for live in job.segments:
        segment = live.segment
        seed = segment.seed if segment.seed is not None else job.job.parameters.seed
        if seed is None:
            unseeded = _key(job, segment, content, None)
            seed = derive_seed(unseeded, occurrences.next(unseeded))
        if live.status == "waiting":
            live.seed = seed = seed_of_next_take(job, live, seed)
            live.key = _key(job, segment, content, seed)
            if job.job.task == "speak" and not segment.sayable:
                live.status = "skipped"


def _key(job: LiveJob, segment: Segment, engine: EngineContent, seed: int | None) -> str:
    references = [ReferenceContent(r.kind, r.sha256, r.text) for r in job.voices[segment.speaker]]
    return segment_key(
        text=segment.text,
        language=job.job.language,
        references=references,
        parameters=dataclasses.replace(job.job.parameters, seed=seed),
        engine=engine,
        output=job.job.output,
        task=job.job.task,
        slot_s=segment.slot_s,
        finishing_version=finishing.version() if job.job.output.finishes else "",
    )

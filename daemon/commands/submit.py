"""``dubd submit``: checks jobs, drops them into the inbox with their references, and may follow them to their end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.commands import liveness
from daemon.commands.dropping import drop_document
from daemon.commands.following import Followed, awaited, follow, told_when_interrupted
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation, complain, describe_os_error
from daemon.commands.reference_copies import (
    Mistake,
    make_copy,
    place_references,
    read_regular,
    readable_as,
    set_mode,
)
from daemon.commands.showing import plain, plural
from daemon.copied_references import FOLDER

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.core.job import Job


@dataclass(frozen=True, slots=True)
class Submission:
    """A job file that was found good, on its way into the inbox: its bytes as they are, and the document with its
    references' places in the inbox. ``copies``: reference file → name under FOLDER."""

    file: Path
    raw: bytes
    job: Job
    document: dict[str, Any]
    copies: dict[Path, str]


def execute(invocation: Invocation, job_files: Sequence[Path], *, wait: bool) -> int:
    settings = invocation.settings()
    submissions: list[Submission] = []
    rejected = 0
    for file in job_files:
        submission, mistakes = prepare(file, settings)
        if submission is not None and not mistakes:
            mistakes = [*_twins(submission, submissions)]
        if mistakes:
            rejected += 1
            tell_mistakes(file, mistakes)
        elif submission is not None:
            submissions.append(submission)
    if rejected:
        others = "" if len(job_files) == rejected else " The others were not submitted either."
        raise CommandFailed(f"{plural(rejected, 'job')} rejected.{others}", ExitCode.REJECTED)

    liveness.require(settings, purpose="Nothing was submitted.")
    dropped: list[Followed] = []
    with told_when_interrupted(dropped, len(submissions)):
        for number, submission in enumerate(submissions):
            try:
                drop(submission, settings, dropped)
            except OSError as error:
                what = "was submitted, but not all of its recordings" if len(dropped) > number else "was not submitted"
                mend = f"{plain(submission.file)} {what}: {describe_os_error(error)}"
                raise CommandFailed(mend, ExitCode.REJECTED) from error
            if not wait:
                job = dropped[-1].awaited
                print(f"{plain(job.job_id)}: submitted. Its results: {plain(job.folder)}", flush=True)
        return follow(settings, dropped) if wait else ExitCode.OK


def tell_mistakes(file: Path, mistakes: Sequence[Mistake]) -> None:
    lines = [f"{plain(file)} can't be submitted:"]
    lines += [f"  {plain(mistake.where)}: {plain(mistake.message)}" for mistake in mistakes]
    complain("\n".join(lines))


# --- checking ----------------------------------------------------------------------------------------------


def prepare(file: Path, settings: Settings) -> tuple[Submission | None, list[Mistake]]:
    """Read and check one job file and its references: a submission, and every mistake in it. No submission where
    the file is no job at all."""
    from daemon.core.job import JobRejected
    from daemon.core.job_parser import parse_job

    if os.path.realpath(file.parent) == os.path.realpath(settings.paths.inbox) and not file.name.startswith("."):
        return None, [Mistake("$", "lies in the inbox already: the daemon takes it by itself. See 'dubd jobs'.")]
    try:
        raw = read_regular(file, settings.limits.job_bytes + 1)
    except OSError as error:
        return None, [Mistake("$", describe_os_error(error))]
    try:
        job = parse_job(raw, stem=file.stem, limits=settings.limits)
    except JobRejected as rejection:
        reasons = [Mistake(reason.path, reason.message) for reason in rejection.reasons]
        return None, [*reasons, *_reference_mistakes(raw, file, settings)]
    document = json.loads(raw)
    copies, mistakes = place_references(document, file, settings)
    return Submission(file, raw, job, document, copies), mistakes


def _reference_mistakes(raw: bytes, file: Path, settings: Settings) -> list[Mistake]:
    """What is wrong with the references of a job that is wrong anyway, as far as it can be read: every reason in one
    go, as everywhere."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    return place_references(document, file, settings)[1] if isinstance(document, dict) else []


def _twins(submission: Submission, others: Sequence[Submission]) -> Iterator[Mistake]:
    for other in others:
        if other.job.job_id.casefold() == submission.job.job_id.casefold():
            yield Mistake(
                "$.job_id",
                f"{submission.job.job_id!r} is also the job of {other.file}. Give one of them another job_id, or "
                "submit them one after the other.",
            )


# --- dropping ----------------------------------------------------------------------------------------------


def drop(submission: Submission, settings: Settings, dropped: list[Followed]) -> None:
    """Copy the references, then put the job under a name of its own into the inbox, whole or not at all; it is among
    ``dropped`` as soon as it is there.

    Raises:
        CommandFailed: a reference changed meanwhile.
        OSError: the inbox can't be written.
    """
    from daemon import files

    inbox = settings.paths.inbox
    references = inbox / FOLDER
    mode = readable_as(inbox)
    if submission.copies:
        files.make_folder(references)
        set_mode(references, inbox.stat().st_mode & 0o7777)
        for source, name in submission.copies.items():
            make_copy(source, references / name, mode)
        files.fsync_folder(references)
    before = awaited(settings, submission.job)

    def content(name: str) -> bytes:
        return _document_bytes(submission, name)

    def note(file: Path, at: float) -> None:
        dropped.append(Followed(before.dropped_as(file, at, json.loads(content(file.name)))))

    drop_document(inbox, submission.job.job_id, content, note)
    for source, name in submission.copies.items():
        # Another submission may have cleared an old copy away between our look at it and the job's arrival.
        if not (references / name).exists():
            make_copy(source, references / name, mode)


def _document_bytes(submission: Submission, name: str) -> bytes:
    """The job as it is dropped under ``name``: as it was written, unless something in it had to be changed."""
    renamed = name != f"{submission.file.stem}.json"
    changed = bool(submission.copies) or submission.document != json.loads(submission.raw)
    if not changed and not renamed:
        return submission.raw
    document = dict(submission.document)
    if renamed:
        # Its id must not follow from a name that is not the one it was given.
        document.setdefault("job_id", submission.job.job_id)
    return json.dumps(document, ensure_ascii=False, indent=1).encode()

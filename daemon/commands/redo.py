"""``dubd redo``: speaks some segments of an ended job once more; all others stay what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.commands import liveness
from daemon.commands.dropping import drop_document
from daemon.commands.following import Followed, awaited, follow, told_when_interrupted
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.reading import LARGEST_DOCUMENT, count, read_document, rows, word
from daemon.commands.showing import nearest, plain, plural
from daemon.files import read_regular

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.core.job import Job
    from daemon.core.redo import RedoRequest

FAILED = "failed"
"""In place of numbers: the segments that the manifest calls failed."""


def execute(invocation: Invocation, job_id: str, *, segments: str, seed: str | None, wait: bool) -> int:
    settings = invocation.settings()
    request, job, document = prepare(settings, job_id, segments, seed)
    liveness.require(settings, purpose="Nothing is redone.")
    dropped: list[Followed] = []
    with told_when_interrupted(dropped, 1):
        drop(settings, request, job, document, dropped)
        if wait:
            return follow(settings, dropped)
        amount = plural(len(request.redo.segments), "segment")
        print(
            f"{plain(job_id)}: {amount} to be spoken again. The results: {plain(dropped[0].awaited.folder)}", flush=True
        )
        return ExitCode.OK


def prepare(settings: Settings, job_id: str, segments: str, seed: str | None) -> tuple[RedoRequest, Job, bytes]:
    """The request, and the job that the daemon will make of it, as data and as a document.

    Raises:
        CommandFailed: with every reason why that can't be.
    """
    from daemon.core.job import JobRejected, Redo
    from daemon.core.job_parser import parse_job
    from daemon.core.redo import RedoRequest, compose, parse_indexes

    folder = settings.paths.outbox / job_id
    try:
        asked = read_regular(folder / "job.json", LARGEST_DOCUMENT)
    except (OSError, ValueError) as error:
        known = [path.parent.name for path in settings.paths.outbox.glob("*/job.json")]
        message = f"there is no job {plain(job_id)} in {settings.paths.outbox}.{nearest(job_id, known)}"
        raise CommandFailed(message, ExitCode.REJECTED) from error
    try:
        indexes = _failed(folder) if segments == FAILED else parse_indexes(segments, settings.limits.segments)
        request = RedoRequest(job_id, Redo(indexes, _seed(seed)))
        document = compose(asked, request)
        job = parse_job(document, stem=job_id, limits=settings.limits)
    except ValueError as error:
        raise CommandFailed(str(error), ExitCode.REJECTED) from error
    except JobRejected as rejection:
        lines = [f"  {plain(reason.path)}: {plain(reason.message)}" for reason in rejection.reasons]
        raise CommandFailed("\n".join([f"{plain(job_id)} can't be redone:", *lines]), ExitCode.REJECTED) from rejection
    _check_references(settings, job)
    return request, job, document


def _failed(folder: Path) -> tuple[int, ...]:
    found = [row for row in rows(read_document(folder / "manifest.json"), "segments") if word(row, "status") == FAILED]
    if not found:
        raise ValueError(f"no segment is called failed in {folder / 'manifest.json'}")
    return tuple(sorted(count(row, "index") for row in found))


def _seed(seed: str | None) -> int | None:
    if seed is None or seed == "new":
        return seed  # type: ignore[return-value]  # "new" is one of the two words that Redo knows
    if not seed.isascii() or not seed.isdecimal():
        raise ValueError(f"--seed is 'new' or a whole number from 0, not {plain(seed)}")
    return int(seed)


def _check_references(settings: Settings, job: Job) -> None:
    from daemon.inbox import reference_paths
    from daemon.mapped_paths import path_here

    if missing := [
        path
        for path in reference_paths(job)
        if not (settings.paths.inbox / path_here(path, settings.paths.mapped)).exists()
    ]:
        lines = [f"  {plain(path)}" for path in missing]
        message = "the recordings of its speakers are needed again, and these are gone:"
        raise CommandFailed("\n".join([message, *lines]), ExitCode.REJECTED)


def drop(settings: Settings, request: RedoRequest, job: Job, document: bytes, dropped: list[Followed]) -> None:
    """Put the request into the inbox, whole or not at all; its job is among ``dropped`` as soon as it is there.

    Raises:
        OSError: the inbox can't be written.
    """
    redo = {"segments": list(request.redo.segments), "seed": request.redo.seed}
    body = {"schema": 1, "kind": "redo", "job_id": request.job_id, **redo}
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    before = awaited(settings, job)

    def note(file: Path, at: float) -> None:
        # The rest of the job is what was submitted last when its turn comes.
        asked = {name: json.loads(document)[name] for name in ("job_id", "redo")}
        dropped.append(Followed(before.dropped_as(file, at, asked)))

    drop_document(settings.paths.inbox, f"{request.job_id}.redo", lambda name: data, note)

"""``dubd cancel``: asks the daemon to stop a job, by a file JOB_ID.cancel in the inbox."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.commands import liveness
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.listing import Listed, list_jobs
from daemon.commands.reading import Document, read_document
from daemon.commands.showing import nearest, plain

if TYPE_CHECKING:
    from daemon.config import Settings

POLL_SECONDS = 0.1

PATIENCE_SECONDS = 5.0
"""Beyond the longest time between two scans of the inbox."""


def execute(invocation: Invocation, job_id: str) -> int:
    settings = invocation.settings()
    sight = liveness.require(settings, purpose="Nothing was cancelled.")
    job = find_patiently(settings, job_id, sight.status)
    request = drop(settings, job.job_id)
    deadline = time.monotonic() + settings.inbox.scan_seconds + PATIENCE_SECONDS
    while request.exists():
        if time.monotonic() > deadline:
            raise CommandFailed(f"the daemon has not taken {request} yet; it will when it next lists its inbox")
        time.sleep(POLL_SECONDS)
    print(f"{plain(job.job_id)}: cancelled. What was spoken before is in {plain(settings.paths.outbox / job.job_id)}")
    return ExitCode.OK


def find_patiently(settings: Settings, job_id: str, status: Document | None) -> Listed:
    """As ``find``, but a job may be on its way: out of the inbox, and in the next status.json only.

    Raises:
        CommandFailed: as ``find``.
    """
    deadline = time.monotonic() + max(3 * settings.service.status_seconds, 1.0)
    while True:
        try:
            return find(job_id, list_jobs(settings, status))
        except CommandFailed:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
        status = read_document(settings.paths.status) or status


def find(job_id: str, jobs: list[Listed]) -> Listed:
    """The job that can be cancelled. An id in other case means the same job, as it would in the outbox.

    Raises:
        CommandFailed: there is none, or it is over.
    """
    wanted = job_id.casefold()
    same = [job for job in jobs if job.job_id.casefold() == wanted]
    open_ones = [job for job in jobs if not job.over and job.state != "interrupted"]
    for job in same:
        if job in open_ones:
            return job
    if same:
        message = f"{plain(same[-1].job_id)} is over already ({plain(same[-1].state)}): there is nothing to cancel"
        raise CommandFailed(message, ExitCode.REJECTED)
    names = [job.job_id for job in open_ones]
    listed = nearest(job_id, names) or (
        f" Jobs that can be cancelled: {', '.join(map(plain, names[:10]))}." if names else " There are no open jobs."
    )
    raise CommandFailed(f"there is no job {plain(job_id)}.{listed}", ExitCode.REJECTED)


def drop(settings: Settings, job_id: str) -> Path:
    """Put the request into the inbox, whole at once; the file."""
    from daemon import files

    request = settings.paths.inbox / f"{job_id}.cancel"
    files.write_atomically(request, b"")
    return request

"""Every job that the folders know of: waiting in the inbox, held by the daemon, over, or rejected."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import results
from daemon.commands.reading import Document, number, read_document, read_head, rows, table, word

if TYPE_CHECKING:
    from daemon.config import Settings


@dataclass(frozen=True, slots=True)
class Listed:
    """One job. ``state``: waiting, queued, running, publishing, interrupted (no daemon works on it), done, partial,
    failed, cancelled, rejected. ``place``: where its file or its results are. Times are Unix seconds.
    ``read``: somebody has said that its results have been read."""

    job_id: str
    state: str
    place: str
    counts: dict[str, Any] = field(default_factory=dict)
    received_at: float | None = None
    ended_at: float | None = None
    eta_s: float | None = None
    read: bool = False

    @property
    def over(self) -> bool:
        return self.state in ("done", "partial", "failed", "cancelled", "rejected")

    def as_document(self) -> Document:
        return {name: getattr(self, name) for name in self.__slots__}


def list_jobs(settings: Settings, status: Document | None) -> list[Listed]:
    """All jobs: those that are over first, the latest last, then the running and the waiting ones. ``status`` is the
    live daemon's status.json, None where there is none."""
    outbox = settings.paths.outbox
    held = [_held(job, outbox) for job in rows(status, "jobs")]
    names = {job.job_id for job in held}
    over = [_in_outbox(folder) for folder in _folders(outbox) if folder.name not in names]
    rejected = [_rejected(path) for path in _files(settings.paths.rejected, ".error.json")]
    ended = sorted((job for job in (*over, *rejected) if job is not None), key=lambda job: job.ended_at or 0.0)
    return [*ended, *held, *waiting(settings.paths.inbox)]


def waiting(inbox: Path) -> list[Listed]:
    """The job files in the inbox that no daemon has taken yet."""
    found = []
    for file in _files(inbox, ".json"):
        try:
            received_at = file.lstat().st_mtime
        except OSError:
            continue
        job_id = word(read_document(file), "job_id") or file.stem
        found.append(Listed(job_id, "waiting", str(file), received_at=received_at))
    return sorted(found, key=lambda job: job.received_at or 0.0)


def _held(job: Document, outbox: Path) -> Listed:
    job_id = word(job, "job_id")
    return Listed(
        job_id,
        word(job, "state") or "queued",
        str(outbox / job_id),
        table(job, "counts"),
        received_at=number(job, "created_at"),
        eta_s=number(job, "eta_s"),
    )


def _in_outbox(folder: Path) -> Listed | None:
    manifest = read_head(folder / "manifest.json")
    if manifest is not None:
        timings = table(manifest, "timings")
        return Listed(
            word(manifest, "job_id") or folder.name,
            word(manifest, "status"),
            str(folder),
            table(manifest, "counts"),
            received_at=number(timings, "received_at"),
            ended_at=number(timings, "ended_at"),
            read=results.has_been_read(folder),
        )
    progress = read_document(folder / "progress.json")
    if progress is None:
        return None
    return Listed(
        word(progress, "job_id") or folder.name,
        "interrupted",
        str(folder),
        table(progress, "counts"),
        received_at=number(progress, "started_at"),
        ended_at=number(progress, "updated_at"),
    )


def _rejected(path: Path) -> Listed:
    error = read_document(path)
    name = word(error, "name") or path.name.removesuffix(".error.json")
    return Listed(
        word(error, "job_id") or Path(name).stem, "rejected", str(path), ended_at=number(error, "rejected_at")
    )


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _files(folder: Path, suffix: str) -> list[Path]:
    return [path for path in _entries(folder) if path.name.endswith(suffix)]


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError:
        return []

"""report.html of a job: what was asked, what has come of it, and how each line sounds.

It shows a job at any time of its life; of one that is not over it says so, and looks for a newer self.
"""

from __future__ import annotations

from typing import Any

from daemon import outbox
from daemon.live_job import LiveJob
from daemon.report import page
from daemon.report.advice import advice

FILE_NAME = "report.html"

POLICY = "media-src 'self' file:"
"""The WAVs beside the page: of the server it came from, or of the file system, where 'self' means nothing."""

COLUMNS = (
    "index", "speaker", "text", "status", "cached", "file", "start", "slot", "duration", "overrun", "seed",
    "attempts", "truncated", "peaks", "device", "generate", "code", "message", "flaws", "seeds", "history",
    "finishing",
)  # fmt: skip
"""What the page's script finds in each row, in this order; ``speaker`` is a place in ``speakers``."""


def build(job: LiveJob, now: float) -> bytes:
    """The page. ``now`` is Unix time."""
    return page.build("report", f"{job.job_id} \N{MIDDLE DOT} dubd", document(job, now), policy=POLICY)


def document(job: LiveJob, now: float) -> dict[str, Any]:
    """What the page shows, for its script. Times are Unix time or seconds, as in the manifest."""
    places = {speaker.id: place for place, speaker in enumerate(job.job.speakers)}
    rows = [_row(job, position, places) for position in range(len(job.segments))]
    codes = {row[COLUMNS.index("code")] for row in rows} - {None}
    engine, end = job.engine, job.ended_at
    wall_s = None if job.started_at is None else max(0.0, (now if end is None else end) - job.started_at)
    audio_s = job.audio_s()
    return {
        "schema": 1,
        "job_id": job.job_id,
        "status": "running" if end is None else job.status(),
        "task": job.job.task,
        "language": job.job.language,
        "counts": job.counts(),
        "engine": {"name": engine.name, "model": engine.model, "version": engine.version} if engine else None,
        "written_at": round(now, 3),
        "received_at": round(job.received_at, 3),
        "ended_at": None if end is None else round(end, 3),
        "wall_s": None if wall_s is None else round(wall_s, 3),
        "audio_s": round(audio_s, 3),
        "xrt": round(audio_s / wall_s, 2) if wall_s else None,
        "ignored": job.ignored,
        "speakers": [speaker.id for speaker in job.job.speakers],
        "advice": {code: advice(code) for code in sorted(codes)},
        "columns": COLUMNS,
        "rows": rows,
    }


def _row(job: LiveJob, position: int, places: dict[str, int]) -> list[Any]:
    live = job.segments[position]
    said = outbox.manifest_segment(job, position)
    error = said["error"] or {}
    return [
        said["index"],
        places[said["speaker"]],
        said["text"],
        said["status"],
        int(said["cached"]),
        said["file"],
        live.segment.start,
        said["slot_s"],
        said["duration_s"],
        said["overrun_s"],
        # Beyond 2**53 a browser's numbers are not exact.
        None if said["seed"] is None else str(said["seed"]),
        said["attempts"],
        int(said["truncated"]),
        live.peaks,
        said["device"],
        said["generate_s"],
        error.get("code"),
        error.get("message"),
        said.get("flaws"),
        None if "seeds" not in said else [str(seed) for seed in said["seeds"]],
        said.get("history"),
        said.get("finishing"),
    ]

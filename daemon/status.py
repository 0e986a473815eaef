"""status.json: the whole daemon at a glance, for programs and people that can only read files.

``seq`` moves with every writing, which is at most once in ``service.status_seconds`` and at least every HEARTBEAT_S: a
reader that sees it stand still for longer knows that the daemon does not move.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

import daemon as package
from daemon import outbox
from daemon.config import Settings
from daemon.job_run import JobRun
from daemon.jobs import Jobs, Signs
from daemon.pool import Pool

log = structlog.get_logger("dubd.status")

HEARTBEAT_S = 5.0
RATE_WINDOW_S = 60.0


class Shown(Protocol):
    """The parts of the daemon that status.json shows."""

    settings: Settings
    state: str
    host_id: str
    started_at: float
    pool: Pool
    jobs: Jobs
    signs: Signs


class StatusWriter:
    """Writes the status of ``daemon`` whenever it was woken, and as a heartbeat."""

    def __init__(self, daemon: Shown) -> None:
        self._daemon = daemon
        self._seq = 0
        self._wake = anyio.Event()
        self._spoken: deque[tuple[float, int, float]] = deque()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        failed = False
        while True:
            try:
                await self.write()
                failed = False
            except OSError as error:
                if not failed:
                    log.error("status.json can't be written; trying on", error=str(error))
                    failed = True
            await anyio.sleep(self._daemon.settings.service.status_seconds)
            with anyio.move_on_after(HEARTBEAT_S - self._daemon.settings.service.status_seconds):
                await self._wake.wait()
            self._wake = anyio.Event()

    async def write(self) -> None:
        self._seq += 1
        value = self.value()
        await anyio.to_thread.run_sync(
            lambda: outbox.write_json(self._daemon.settings.paths.status, value, durable=False), abandon_on_cancel=True
        )

    def value(self) -> dict[str, Any]:
        daemon = self._daemon
        identity = daemon.pool.identity
        rows = daemon.pool.worker_rows()
        warnings = list(daemon.signs.warnings.values())
        warnings += [
            f"worker {row['worker']}: {row['error']}" for row in rows if row["error"] and row["state"] != "ready"
        ]
        return {
            "schema": 1,
            "seq": self._seq,
            "pid": os.getpid(),
            "host_id": daemon.host_id,
            "version": package.__version__,
            "started_at": round(daemon.started_at, 3),
            "updated_at": round(time.time(), 3),
            "state": daemon.state,
            "paused": daemon.signs.paused,
            "config": None if daemon.settings.source is None else str(daemon.settings.source),
            "engine": {
                "name": daemon.settings.engine.name,
                "model": identity.model if identity else None,
                "version": identity.version if identity else None,
            },
            "workers": rows,
            "jobs": [self._job(run) for run in daemon.jobs.runs.values()],
            "recent": list(daemon.signs.recent),
            "inbox": {"waiting": daemon.signs.inbox_waiting, "reachable": "inbox" not in daemon.signs.warnings},
            "throughput": self._throughput(),
            "warnings": warnings,
        }

    def _job(self, run: JobRun) -> dict[str, Any]:
        job = run.job
        counts = job.counts()
        state = "queued" if job.started_at is None or job.engine is None else "running"
        if counts["total"] == counts["ok"] + counts["failed"] + counts["skipped"] + counts["cancelled"]:
            state = "publishing"
        eta = run.eta_s()
        return {
            "job_id": job.job_id,
            "state": state,
            "priority": job.job.priority,
            "counts": counts,
            "created_at": round(job.received_at, 3),
            "started_at": None if job.started_at is None else round(job.started_at, 3),
            "eta_s": None if eta is None else round(eta, 1),
            "note": job.note,
        }

    def _throughput(self) -> dict[str, float]:
        """Over the last RATE_WINDOW_S."""
        now = time.monotonic()
        spoken = self._daemon.pool.spoken
        audio_s = self._daemon.signs.audio_s
        self._spoken.append((now, spoken, audio_s))
        while len(self._spoken) > 1 and now - self._spoken[0][0] > RATE_WINDOW_S:
            self._spoken.popleft()
        since, spoken_then, audio_then = self._spoken[0]
        elapsed = max(now - since, 1e-9)
        if len(self._spoken) == 1:
            return {"segments_per_minute": 0.0, "audio_s_per_s": 0.0}
        return {
            "segments_per_minute": round((spoken - spoken_then) / elapsed * 60, 2),
            "audio_s_per_s": round((audio_s - audio_then) / elapsed, 2),
        }

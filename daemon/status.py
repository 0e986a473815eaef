"""status.json: the whole daemon at a glance, for programs and people that can only read files.

``seq`` moves with every writing, which is at most once in ``service.status_seconds`` and at least every HEARTBEAT_S: a
reader that sees it stand still for longer knows that the daemon does not move.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from typing import Any, Protocol

import anyio
import anyio.to_thread
import structlog

import daemon as package
from daemon import files, outbox
from daemon.backend import Backend
from daemon.config import Settings
from daemon.job_run import JobRun
from daemon.jobs import Jobs, Signs
from daemon.pool import Pool
from daemon.report import status_page

log = structlog.get_logger("dubd.status")

HEARTBEAT_S = 5.0
RATE_WINDOW_S = 60.0
MINUTES_SHOWN = 60

PAGE_TOLERANCE_S = 0.5
"""So much too early counts as due: the next heartbeat would be far too late."""


class Shown(Protocol):
    """The parts of the daemon that status.json shows."""

    settings: Settings
    state: str
    host_id: str
    started_at: float
    pool: Pool
    backend: Backend
    jobs: Jobs
    signs: Signs


class StatusWriter:
    """Writes the status of ``daemon`` whenever it was woken, and as a heartbeat."""

    def __init__(self, daemon: Shown) -> None:
        self._daemon = daemon
        self._seq = 0
        self._wake = anyio.Event()
        self._spoken: deque[tuple[float, int, float]] = deque()
        self._minutes: deque[tuple[int, int, float]] = deque()
        self._writing = anyio.Lock()
        self._page_written = 0.0
        self._page_state = ""

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
        async with self._writing:  # the last to begin must be the last to end: it says that the daemon has stopped
            self._seq += 1
            value = self.value()
            await anyio.to_thread.run_sync(
                lambda: outbox.write_json(self._daemon.settings.paths.status, value, durable=False),
                abandon_on_cancel=True,
            )
            await self._write_page(value)

    async def _write_page(self, value: dict[str, Any]) -> None:
        """status.html, as often as people look; it is a whole page, and what it lies on may be a slow share."""
        now = time.monotonic()
        if value["state"] == self._page_state and now - self._page_written < status_page.WRITE_S - PAGE_TOLERANCE_S:
            return
        settings = self._daemon.settings
        await anyio.to_thread.run_sync(
            lambda: files.write_atomically(
                settings.paths.status.with_suffix(".html"), status_page.build(value, settings), durable=False
            ),
            abandon_on_cancel=True,
        )
        self._page_written, self._page_state = now, value["state"]

    def value(self) -> dict[str, Any]:
        daemon = self._daemon
        identity = daemon.pool.identity
        rows = daemon.pool.worker_rows()
        warnings = list(daemon.signs.warnings.values())
        cluster = daemon.backend.shown()
        if cluster is not None and cluster["problem"]:
            warnings.append(f"the cluster at {cluster['address']}: {cluster['problem']}")
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
            "disk": daemon.jobs.room.document(),
            "config": None if daemon.settings.source is None else str(daemon.settings.source),
            "engine": {
                "name": daemon.settings.engine.name,
                "model": identity.model if identity else None,
                "version": identity.version if identity else None,
            },
            "cluster": cluster,
            "workers": rows,
            "jobs": [self._job(run) for run in daemon.jobs.runs.values()],
            "recent": list(daemon.signs.recent),
            "failures": list(daemon.signs.failures),
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

    def _throughput(self) -> dict[str, Any]:
        """Over the last RATE_WINDOW_S, and minute by minute over the last hour."""
        now = time.monotonic()
        spoken = self._daemon.pool.spoken
        audio_s = self._daemon.signs.audio_s
        self._spoken.append((now, spoken, audio_s))
        while len(self._spoken) > 1 and now - self._spoken[0][0] > RATE_WINDOW_S:
            self._spoken.popleft()
        hour = self._last_hour(spoken, audio_s)
        since, spoken_then, audio_then = self._spoken[0]
        elapsed = max(now - since, 1e-9)
        if len(self._spoken) == 1:
            return {"segments_per_minute": 0.0, "audio_s_per_s": 0.0, "last_hour": hour}
        return {
            "segments_per_minute": round((spoken - spoken_then) / elapsed * 60, 2),
            "audio_s_per_s": round((audio_s - audio_then) / elapsed, 2),
            "last_hour": hour,
        }

    def _last_hour(self, spoken: int, audio_s: float) -> dict[str, list[float]]:
        """What was made in each of the last MINUTES_SHOWN minutes of the clock, the present one last."""
        minute = int(time.time() // 60)
        if not self._minutes or self._minutes[-1][0] != minute:
            # How much there was when the minute began, as nearly as we looked.
            self._minutes.append((minute, spoken, audio_s))
        while self._minutes[0][0] <= minute - MINUTES_SHOWN and len(self._minutes) > 1:
            self._minutes.popleft()
        segments, seconds = [0.0] * MINUTES_SHOWN, [0.0] * MINUTES_SHOWN
        marks = [*self._minutes, (minute + 1, spoken, audio_s)]
        for (then, spoken_then, audio_then), (_, spoken_after, audio_after) in itertools.pairwise(marks):
            place = MINUTES_SHOWN - 1 - (minute - then)
            if 0 <= place < MINUTES_SHOWN:
                segments[place] = spoken_after - spoken_then
                seconds[place] = round(audio_after - audio_then, 1)
        return {"segments": segments, "audio_s": seconds}

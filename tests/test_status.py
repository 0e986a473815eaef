"""status.json: it moves while the daemon lives, and says what is so."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
import structlog.testing

from daemon import status as statuses
from daemon.backend import Backend
from daemon.config import Settings
from daemon.core.core import Core
from daemon.core.events import WorkerSpec, WorkersPlanned
from daemon.core.supervision import PoolPolicy
from daemon.ended_jobs import EndedJobs
from daemon.inbox import Inbox
from daemon.jobs import Jobs, Signs
from daemon.live_job import EngineIdentity
from daemon.mounts import Mounts
from daemon.pool import Pool
from daemon.reuse import ReuseIndex
from daemon.status import StatusWriter
from daemon.this_machine import ThisMachine
from daemon.transport import Transport
from daemon.worker_process import WorkerProcess, worker_command
from tests.shell import make_live_job, settings_in

pytestmark = pytest.mark.anyio


@dataclass
class Parts:
    """The parts of a daemon that its status shows, none of them running."""

    settings: Settings
    state: str
    host_id: str
    started_at: float
    pool: Pool
    backend: Backend
    jobs: Jobs
    signs: Signs
    core: Core
    tasks: anyio.abc.TaskGroup

    def read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.settings.paths.status.read_bytes())
        except FileNotFoundError:
            return {"seq": 0}
        return found


def put_together(folder: Path, tasks: anyio.abc.TaskGroup) -> Parts:
    settings = settings_in(folder, "service.status_seconds=0.1", "paths.status=shown/status.json")
    settings.paths.status.parent.mkdir()
    core, signs = Core(PoolPolicy(), random.Random(1)), Signs()
    reuse = ReuseIndex(settings.paths.state / "reuse.sqlite3")
    ended = EndedJobs(settings.paths.state / "ended.sqlite3")
    jobs = Jobs(settings, Inbox(settings, "host"), reuse, ended, Mounts(settings.paths.state), core, signs, tasks)

    def make_transport(place: WorkerSpec) -> tuple[Transport, str]:
        return WorkerProcess(worker_command("/bin/false", [], os.environ, gpu=False, threads=1)), "cpu"

    pool = Pool(core, jobs, make_transport, lambda place, device: {"type": "hello"}, settings)
    jobs.pool = pool
    here = ThisMachine(settings, lambda: pool.pids)
    return Parts(settings, "running", "host", 1000.0, pool, here, jobs, signs, core, tasks)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with anyio.create_task_group() as tasks:
        made = put_together(tmp_path, tasks)
        yield made
        made.jobs.reuse.close()
        tasks.cancel_scope.cancel()


async def until_seq(parts: Parts, seq: int) -> dict[str, Any]:
    """status.json, once its seq has come so far."""
    with anyio.fail_after(20):
        while (found := parts.read())["seq"] < seq:  # noqa: ASYNC110 - a file tells by its content alone
            await anyio.sleep(0.01)
    return found


async def test_it_moves_by_itself(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that has nothing to tell shows that it lives."""
    monkeypatch.setattr(statuses, "HEARTBEAT_S", 0.1)
    parts.tasks.start_soon(StatusWriter(parts).run)
    await until_seq(parts, 3)


async def test_it_moves_when_woken(parts: Parts) -> None:
    """What has changed is shown without waiting for the heartbeat."""
    writer = StatusWriter(parts)
    parts.tasks.start_soon(writer.run)
    found = await until_seq(parts, 1)
    assert found["state"] == "running"
    parts.state = "draining"
    writer.wake()
    assert (await until_seq(parts, found["seq"] + 1))["state"] == "draining"


async def test_a_folder_that_is_away(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share with status.json goes and comes back: so does the file, with a seq that has gone on."""
    monkeypatch.setattr(statuses, "HEARTBEAT_S", 0.1)
    parts.tasks.start_soon(StatusWriter(parts).run)
    seen = (await until_seq(parts, 1))["seq"]
    folder = parts.settings.paths.status.parent
    with structlog.testing.capture_logs() as entries, anyio.fail_after(20):
        folder.rename(folder.with_name("away"))
        while not entries:  # noqa: ASYNC110 - a log tells by its entries alone
            await anyio.sleep(0.01)
    assert entries[0]["log_level"] == "error"
    folder.with_name("away").rename(folder)
    await until_seq(parts, seen + 2)


async def test_what_it_says(parts: Parts) -> None:
    """The fields that other programs rely on, of a daemon with a job and a worker."""
    value = StatusWriter(parts).value()
    assert (value["pid"], value["state"], value["workers"], value["jobs"]) == (os.getpid(), "running", [], [])
    assert value["inbox"] == {"waiting": 0, "reachable": True}
    await parts.tasks.start(parts.pool.run)
    parts.pool.apply(WorkersPlanned(anyio.current_time(), (WorkerSpec(0, None),)))
    job = make_live_job(parts.settings.paths.state / "jobs")
    parts.jobs.enqueue(job)
    job.segments[0].status, job.segments[1].begun = "skipped", True
    parts.signs.warnings["inbox"] = "the inbox can't be reached"
    value = StatusWriter(parts).value()
    (worker,) = value["workers"]
    assert {"worker", "gpu", "pid", "engine", "state", "loads", "restarts", "in_flight", "spoken"} <= set(worker)
    assert (worker["worker"], worker["gpu"], worker["state"], worker["loads"]) == (0, None, "starting", 0)
    (row,) = value["jobs"]
    assert (row["job_id"], row["state"], row["counts"]["running"]) == ("film", "queued", 1)
    assert value["warnings"] == ["the inbox can't be reached"] and not value["inbox"]["reachable"]
    job.started_at, job.engine = 1000.0, EngineIdentity("draft", "1", "m", "fp32")
    assert StatusWriter(parts).value()["jobs"][0]["state"] == "running"
    for segment in job.segments:
        segment.status = "skipped"
    assert StatusWriter(parts).value()["jobs"][0]["state"] == "publishing"
    assert json.loads(json.dumps(value, allow_nan=False)) == value


async def test_a_worker_that_does_not_start_is_warned_of(parts: Parts) -> None:
    """With its reason, until it is ready."""
    await parts.tasks.start(parts.pool.run)
    parts.pool.apply(WorkersPlanned(anyio.current_time(), (WorkerSpec(0, None),)))
    with anyio.fail_after(20):
        while not StatusWriter(parts).value()["warnings"]:  # noqa: ASYNC110 - a process ends when it ends
            await anyio.sleep(0.01)
    (warning,) = StatusWriter(parts).value()["warnings"]
    assert warning.startswith("worker 0: ")


async def test_throughput(parts: Parts) -> None:
    """Rates over the last minute: none at the first look, then what was made since."""
    writer = StatusWriter(parts)
    first = writer.value()["throughput"]
    assert (first["segments_per_minute"], first["audio_s_per_s"]) == (0.0, 0.0)
    parts.pool.spoken, parts.signs.audio_s = 30, 60.0
    second = writer.value()["throughput"]
    assert second["segments_per_minute"] > 0 and second["audio_s_per_s"] > 0
    assert sum(second["last_hour"]["segments"]) == 30 and len(second["last_hour"]["segments"]) == 60

"""The workers as child processes on the GPUs of this machine: ``pool.backend = "local"``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import anyio.to_thread

from daemon import gpus, one_cpu
from daemon.backend import WITHOUT_GPU, device_of, hello, threads_of_each
from daemon.config import Settings
from daemon.core.events import WorkerSpec
from daemon.core.plan import Plan, plan_workers
from daemon.transport import Transport
from daemon.worker_process import WorkerProcess, worker_command
from workers.protocol import Message


class ThisMachine:
    """See daemon/backend.py. ``own_pids`` tells the processes of this daemon's workers."""

    def __init__(self, settings: Settings, own_pids: Callable[[], Collection[int]]) -> None:
        self.settings = settings
        self._own_pids = own_pids
        self._workers = 1
        """Of the last plan."""

    async def run(self) -> None:
        """Nothing goes on but the workers."""

    def shown(self) -> None:
        return None

    async def plan(self) -> Plan:
        settings = self.settings
        found = (
            []
            if settings.engine.name in WITHOUT_GPU
            else await anyio.to_thread.run_sync(gpus.list_gpus, self._own_pids())
        )
        plan = plan_workers(
            found,
            mode=settings.pool.mode,
            model_memory_gb=settings.pool.model_memory_gb,
            workers_override=settings.pool.workers,
            per_gpu=settings.pool.per_gpu,
        )
        self._workers = len(plan.workers)
        return plan

    def transport(self, place: WorkerSpec) -> tuple[Transport, str]:
        worker = self.settings.worker
        command = worker_command(
            worker.python,
            [str(folder) for folder in worker.path],
            os.environ,
            gpu=place.gpu is not None,
            threads=self._threads(),
        )
        return WorkerProcess(command), device_of(place)

    def hello(self, place: WorkerSpec, device: str) -> Message:
        settings = self.settings
        checkpoint = settings.engine.checkpoint
        return hello(
            settings,
            place,
            device,
            threads=self._threads(),
            checkpoint=str(Path(checkpoint).expanduser().absolute()) if checkpoint else "",
            cache=str(settings.paths.state / "cache"),
        )

    def _threads(self) -> int:
        return threads_of_each(self.settings, len(one_cpu.processors()), self._workers)

"""Where the workers run: what the daemon needs of the place, be it this machine or a cluster."""

from __future__ import annotations

from typing import Any, Protocol

from daemon.config import Settings
from daemon.core.events import WorkerSpec
from daemon.core.plan import BYTES_PER_GB, Plan
from daemon.transport import Transport
from workers.protocol import PROTOCOL_VERSION, Message

WITHOUT_GPU = ("draft", "silence")
"""Engines that use none, whatever a machine has."""


class Backend(Protocol):
    """``settings`` is replaced when the configuration is read again."""

    settings: Settings

    async def run(self) -> None:
        """Whatever must go on while the daemon lives."""

    def shown(self) -> dict[str, Any] | None:
        """``cluster`` of status.json; None where there is none."""

    async def plan(self) -> Plan:
        """The workers that there should be, by what the GPUs have left now."""

    def transport(self, place: WorkerSpec) -> tuple[Transport, str]:
        """A worker of the plan, not started yet, and the device it is pinned to, as the worker calls it."""

    def hello(self, place: WorkerSpec, device: str) -> Message:
        """What that worker is told first."""


def device_of(place: WorkerSpec) -> str:
    return "cpu" if place.gpu is None else f"cuda:{place.gpu}"


def hello(settings: Settings, place: WorkerSpec, device: str, *, threads: int, checkpoint: str, cache: str) -> Message:
    """The message hello (see workers/protocol.py); ``checkpoint`` and ``cache`` are paths where the worker runs."""
    engine = settings.engine
    return {
        "type": "hello",
        "protocol": PROTOCOL_VERSION,
        "worker": place.worker,
        "engine": {
            "name": engine.name,
            "checkpoint": checkpoint,
            "precision": engine.precision,
            "slots": engine.slots,
            "reproducible": engine.reproducible,
            "retries": engine.retries,
            "options": engine.options,
        },
        "device": device,
        "threads": threads,
        "memory_bytes": 0 if device == "cpu" else int(settings.pool.model_memory_gb * BYTES_PER_GB),
        "cache": cache,
        "beat_seconds": settings.worker.beat_seconds,
    }


def threads_of_each(settings: Settings, cores: int, workers: int) -> int:
    """CPU threads for each of so many workers of one machine."""
    return settings.worker.threads or max(1, cores // max(1, workers))

"""The workers on the nodes of a Ray cluster: ``pool.backend = "ray"`` (see the package's text)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from daemon.backend import WITHOUT_GPU, device_of, hello, threads_of_each
from daemon.cluster.connection import ClusterNode, Connection
from daemon.config import Settings
from daemon.core.events import WorkerSpec
from daemon.core.numbering import Numbering
from daemon.core.plan import BYTES_PER_GB, USABLE_SHARE, Gpu, Plan, plan_workers
from daemon.transport import Transport
from workers.protocol import Message

SMALLEST_SHARE = 10_000
"""Ray counts GPUs in steps of 1/10,000."""


class Cluster:
    """See daemon/backend.py. ``on_plan`` is called with a new plan whenever nodes have come or gone."""

    def __init__(self, settings: Settings, on_plan: Callable[[Plan], None]) -> None:
        self._settings = settings
        self._on_plan = on_plan
        self._numbering = Numbering()
        self._plan = Plan((), (), (), ())
        self.connection = Connection(settings, self._nodes_changed)

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        changed = settings.cluster != self._settings.cluster
        self._settings = self.connection.settings = settings
        if changed:
            self.connection.reset()

    async def run(self) -> None:
        await self.connection.run()

    async def plan(self) -> Plan:
        await self.connection.look()
        return self.plan_now()

    def plan_now(self) -> Plan:
        """By what the nodes said last; no workers without a cluster."""
        plan = plan_nodes(list(self.connection.nodes.values()), self._settings)
        if not self.connection.nodes:
            note = f"[Main] No node of the cluster is known: {self.connection.problem or 'it has none'}"
            plan = Plan((), (), (note,), ())
        self._plan = dataclasses.replace(plan, workers=self._numbering.number(plan.workers))
        return self._plan

    def _nodes_changed(self) -> None:
        self._on_plan(self.plan_now())

    def transport(self, place: WorkerSpec) -> tuple[Transport, str]:
        worker = self._settings.worker
        order = {
            "node": place.node,
            "gpu": place.gpu,
            "num_gpus": self._share(place),
            "num_cpus": 1 if place.gpu is None else 0,
            "python": worker.python,
            "path": [str(folder) for folder in worker.path],
            "threads": self._threads(place),
        }
        return self.connection.worker(order), device_of(place)

    def hello(self, place: WorkerSpec, device: str) -> Message:
        settings = self._settings
        return hello(
            settings,
            place,
            device,
            threads=self._threads(place),
            checkpoint=settings.engine.checkpoint,
            cache=str(settings.cluster.folder / "encoded"),
        )

    def shown(self) -> dict[str, Any]:
        """``cluster`` of status.json."""
        return {
            "address": self._settings.cluster.address,
            "problem": self.connection.problem,
            "nodes": [
                {
                    "node": node.name,
                    "address": node.address,
                    "cpus": node.cpus,
                    "gpus": [gpu.name for gpu in node.gpus],
                    "workers": sum(worker.node == node.name for worker in self._plan.workers),
                }
                for node in sorted(self.connection.nodes.values(), key=by_name)
            ],
        }

    def _threads(self, place: WorkerSpec) -> int:
        node = self.connection.nodes.get(place.node)
        there = sum(worker.node == place.node for worker in self._plan.workers)
        return threads_of_each(self._settings, 1 if node is None else node.cores, there)

    def _share(self, place: WorkerSpec) -> float:
        """Of its GPU, in Ray's books: what it takes of the memory that the plan may use, however many there are."""
        node = self.connection.nodes.get(place.node)
        if node is None or place.gpu is None:
            return 0.0
        needed = Fraction(str(self._settings.pool.model_memory_gb)) * BYTES_PER_GB
        fit = max(int(USABLE_SHARE * gpu.total_bytes // needed) for gpu in node.gpus if gpu.index == place.gpu)
        planned = sum((worker.node, worker.gpu) == (place.node, place.gpu) for worker in self._plan.workers)
        return math.floor(SMALLEST_SHARE / max(1, fit, planned)) / SMALLEST_SHARE


def plan_nodes(nodes: Sequence[ClusterNode], settings: Settings) -> Plan:
    """The workers for these nodes, numbered from 0 in the order of the nodes' names. On the CPU they run on the nodes
    whose CPUs Ray may give out."""
    ordered = sorted(nodes, key=by_name)
    uses_gpus = settings.engine.name not in WITHOUT_GPU
    return plan_workers(
        [_sized(gpu, settings) for node in ordered for gpu in node.gpus] if uses_gpus else [],
        mode=settings.pool.mode,
        model_memory_gb=settings.pool.model_memory_gb,
        workers_override=settings.pool.workers,
        per_gpu=settings.pool.per_gpu,
        cpu_nodes=[node.name for node in ordered if node.cpus >= 1],
    )


def _sized(gpu: Gpu, settings: Settings) -> Gpu:
    """A GPU of which nobody says how large it is has room for one worker."""
    if gpu.total_bytes:
        return gpu
    needed = Fraction(str(settings.pool.model_memory_gb)) * BYTES_PER_GB / USABLE_SHARE
    return dataclasses.replace(gpu, total_bytes=math.ceil(needed))


def by_name(node: ClusterNode) -> list[tuple[int, str]]:
    """Names with numbers in them in the numbers' order."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", node.name)]

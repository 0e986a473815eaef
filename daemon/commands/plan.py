"""``dubd plan``: which workers would run on which GPU. Asks NVML, or the cluster's nodes; loads no model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation, complain
from daemon.commands.showing import plain

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.core.plan import Gpu, Mode, Plan


def execute(
    invocation: Invocation,
    *,
    described: Sequence[str],
    model_memory_gb: float | None,
    speakers: int | None,
    mode: str,
    as_json: bool,
) -> int:
    from daemon.core.plan import plan_workers

    settings = invocation.settings()
    if settings.pool.backend == "ray" and not described:
        return show(
            cluster_plan(settings, checked_mode(mode), checked_memory(model_memory_gb, settings)), speakers, as_json
        )
    gpus = described_gpus(described) if described else machine_gpus()
    # What the configuration says for this machine's own GPUs says nothing about described ones; --set does.
    told = not described or any(given.startswith(("pool.workers", "pool.per_gpu")) for given in invocation.overrides)
    plan = plan_workers(
        gpus,
        mode=checked_mode(mode),
        model_memory_gb=checked_memory(model_memory_gb, settings),
        workers_override=settings.pool.workers if told else 0,
        per_gpu=settings.pool.per_gpu if told else {},
    )
    return show(plan, speakers, as_json)


def show(plan: Plan, speakers: int | None, as_json: bool) -> int:
    from daemon.core.plan import assign_round_robin

    assignment = assign_round_robin(speakers or 0, len(plan.workers))
    if as_json:
        workers = [
            {"worker": worker.worker, "gpu": worker.gpu, **({"node": worker.node} if worker.node else {})}
            for worker in plan.workers
        ]
        print(json.dumps({"workers": workers, "assignment": assignment}))
        for warning in plan.warnings:
            complain(warning)
    else:
        print("\n".join(lines(plan, assignment)))
    return ExitCode.OK


def checked_mode(mode: str) -> Mode:
    from daemon.core.plan import Mode

    for known in get_args(Mode):
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise CommandFailed(f"--mode {plain(mode)}: no such mode; give multi, single or auto", ExitCode.REJECTED)


def checked_memory(given: float | None, settings: Settings) -> float:
    if given is None:
        return settings.pool.model_memory_gb
    if not math.isfinite(given) or given <= 0:
        message = f"--model-memory-gb {given:g}: give the GB of GPU memory that one worker takes, such as 8.0"
        raise CommandFailed(message, ExitCode.REJECTED)
    return given


def described_gpus(descriptions: Sequence[str]) -> list[Gpu]:
    """GPUs as --gpu NAME:GB describes them, numbered in their order, with nothing else running on them.

    Raises:
        CommandFailed: with every description that is none.
    """
    from daemon.core.plan import BYTES_PER_GB, Gpu

    gpus, mistakes = [], []
    for index, description in enumerate(descriptions):
        name, _, size = description.rpartition(":")
        try:
            gigabytes = float(size.strip().lower().removesuffix("gb"))
        except ValueError:
            gigabytes = math.nan
        if not name.strip() or not 0 < gigabytes < math.inf:
            mistakes.append(f"--gpu {plain(description)}: give a name and its memory in GB, such as 'RTX 4090:24'")
            continue
        gpus.append(Gpu(index=index, name=name.strip(), total_bytes=round(gigabytes * BYTES_PER_GB)))
    if mistakes:
        raise CommandFailed("\n".join(mistakes), ExitCode.REJECTED)
    return gpus


def machine_gpus() -> list[Gpu]:
    """This machine's GPUs as they are now, a running daemon's workers being among what others hold."""
    from daemon.gpus import read_gpus

    return list(read_gpus(set()).gpus)


def cluster_plan(settings: Settings, mode: Mode, model_memory_gb: float) -> Plan:
    """For the nodes that the configured cluster has now.

    Raises:
        CommandFailed: Ray is not installed, no cluster answers, or it has no node for workers.
    """
    import anyio

    from daemon.cluster.backend import plan_nodes
    from daemon.cluster.connection import RayMissing, nodes_of

    settings = replace(
        settings, pool=settings.pool.model_copy(update={"mode": mode, "model_memory_gb": model_memory_gb})
    )
    try:
        nodes = anyio.run(nodes_of, settings)
    except (RayMissing, ConnectionError) as error:
        raise CommandFailed(str(error)) from error
    plan = plan_nodes(nodes, settings)
    if not plan.workers:
        raise CommandFailed(f"the cluster at {settings.cluster.address} has no node that workers may run on")
    return plan


def lines(plan: Plan, assignment: Sequence[Sequence[int]]) -> list[str]:
    """The plan for people: what each GPU can run, where each worker goes, who speaks whom."""
    shown = [plain(note) for note in plan.notes]
    shown += [f"Warning: {plain(warning)}" for warning in plan.warnings]
    shown.append("")
    for worker, speakers in zip(plan.workers, assignment, strict=True):
        place = "the CPU" if worker.gpu is None else f"GPU {worker.gpu}"
        place += f" of {plain(worker.node)}" if worker.node else ""
        mine = f": [{', '.join(f'Speaker {speaker}' for speaker in speakers)}]" if any(assignment) else ""
        shown.append(f"Worker {worker.worker}{mine} \N{RIGHTWARDS ARROW} {place}")
    return shown

"""Which workers run on which GPU, and which speakers go to which worker.

A GPU offers the smaller of 0.9 of its memory and what other programs leave of it; a worker takes ``model_memory_gb``
of that (GB of 1024**3 bytes, as GPUs are sold). Figures are exact fractions of the decimal numbers that people write:
in binary floating point four workers of 5.4 GB would not fit into 21.6 GB.

The GPUs may be those of one machine or of a cluster's nodes; a GPU is named by its node ("": this machine) and its
index there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from daemon.core.events import WorkerSpec

Mode = Literal["auto", "multi", "single"]

BYTES_PER_GB = 1024**3
USABLE_SHARE = Fraction(9, 10)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML describes it. ``used_by_others_bytes``: what processes other than this daemon's workers hold,
    without ``reserved_bytes``, which the driver keeps for itself and which the unusable tenth covers."""

    index: int
    name: str
    total_bytes: int
    used_by_others_bytes: int = 0
    reserved_bytes: int = 0
    uuid: str = ""
    node: str = ""

    @property
    def place(self) -> tuple[str, int]:
        return self.node, self.index

    def __str__(self) -> str:
        return f"GPU {self.index}" + (f" of {self.node}" if self.node else "")


@dataclass(frozen=True, slots=True)
class Recorded:
    """How fast a whole job was with so many workers on one GPU: xRT by number of workers. ``gpu``: how the GPU's name
    begins."""

    gpu: str
    speed: Mapping[int, float]

    def fastest(self, fits: int) -> int:
        """The number of workers, of those that fit, that was fastest, the smaller of equals; ``fits`` where none of
        them does."""
        fitting = [workers for workers in self.speed if workers <= fits]
        return max(fitting, key=lambda workers: (self.speed[workers], -workers), default=fits)


RECORDED: tuple[Recorded, ...] = ()
"""Our own figures, which mode "auto" follows: docs/benchmarks.md, "On a GPU", tells how they are taken. None has been
taken yet, so that "auto" is "multi" everywhere."""


@dataclass(frozen=True, slots=True)
class GpuShare:
    """A GPU's part in the plan: bytes that workers may take together, how many workers that is enough for, and how
    many it gets."""

    gpu: Gpu
    available_bytes: int
    fits: int
    workers: int


@dataclass(frozen=True, slots=True)
class Plan:
    """``workers`` are numbered from 0, GPU by GPU. ``notes`` tell how it came about, in the words that people who set
    FISH_MODEL_MEMORY_GB look for in the log; ``warnings`` tell what was probably not wanted."""

    workers: tuple[WorkerSpec, ...]
    per_gpu: tuple[GpuShare, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_workers(
    gpus: Sequence[Gpu],
    *,
    mode: Mode = "auto",
    model_memory_gb: float = 8.0,
    workers_override: int = 0,
    per_gpu: Mapping[int, int] | None = None,
    cpu_nodes: Sequence[str] = ("",),
    recorded: Sequence[Recorded] = RECORDED,
) -> Plan:
    """The workers for these GPUs; never none at all, unless there is no node.

    Args:
        gpus: those of the machine, or of all nodes, node by node; none of them: the workers run on CPUs.
        mode: "multi": as many as fit; "single": one, on the roomiest GPU; "auto": as "multi", or
            fewer, with more slots each, on a GPU of which it is ``recorded`` that this is faster.
        model_memory_gb: what one worker takes, GB.
        workers_override: the number of workers in all, whatever fits; 0: as the mode says. They are spread over the
            GPUs by what each has left.
        per_gpu: the number of workers on single GPUs, by index (on every node), whatever fits; 0 keeps a GPU free. The
            others get what the mode says, or share what is left of ``workers_override``.
        cpu_nodes: where workers may run on the CPU; without a GPU each of them gets one.

    Raises:
        ValueError: ``model_memory_gb`` is not above 0, or a number of workers is below 0.
    """
    fixed = dict(per_gpu or {})
    if not model_memory_gb > 0:
        raise ValueError(f"model_memory_gb is {model_memory_gb}; it must be above 0")
    if workers_override < 0 or any(count < 0 for count in fixed.values()):
        raise ValueError("a number of workers can't be below 0")
    nodes = list(dict.fromkeys(gpu.node for gpu in gpus))
    ordered = sorted(gpus, key=lambda gpu: (nodes.index(gpu.node), gpu.index))
    per_worker = Fraction(str(model_memory_gb)) * BYTES_PER_GB
    rooms = [_Room(gpu, _available(gpu), per_worker) for gpu in ordered]
    warnings = [
        f"pool.per_gpu names GPU {index}, which {'no node has' if any(nodes) else 'this machine does not have'}"
        for index in sorted(fixed.keys() - {gpu.index for gpu in ordered})
    ]
    figures = recorded if mode == "auto" else ()
    counts = _count(rooms, mode, workers_override, fixed, warnings, figures)
    shares = tuple(GpuShare(room.gpu, int(room.available), room.fits, counts[room.gpu.place]) for room in rooms)
    warnings += [
        f"{share.gpu} gets {share.workers} workers; "
        f"at {model_memory_gb:g} GB each its memory is enough for {share.fits}"
        for share in shares
        if share.workers > max(share.fits, 1)
    ]
    places: list[tuple[str, int | None]] = [share.gpu.place for share in shares for _ in range(share.workers)]
    if not places:
        each = 1 if mode == "single" else len(cpu_nodes)
        places = [(node, None) for node in _share_out(cpu_nodes, workers_override or each)]
    workers = tuple(WorkerSpec(number, gpu, node) for number, (node, gpu) in enumerate(places))
    return Plan(workers, shares, _notes(shares, workers), tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Room:
    gpu: Gpu
    available: Fraction
    per_worker: Fraction

    @property
    def fits(self) -> int:
        return int(self.available // self.per_worker)

    def left(self, workers: int) -> Fraction:
        return self.available - workers * self.per_worker


def _available(gpu: Gpu) -> Fraction:
    return max(min(USABLE_SHARE * gpu.total_bytes, Fraction(gpu.total_bytes - gpu.used_by_others_bytes)), Fraction(0))


def _count(
    rooms: Sequence[_Room],
    mode: Mode,
    workers_override: int,
    fixed: Mapping[int, int],
    warnings: list[str],
    recorded: Sequence[Recorded],
) -> Counter[tuple[str, int]]:
    """Workers by GPU."""
    counts = Counter({room.gpu.place: fixed[room.gpu.index] for room in rooms if room.gpu.index in fixed})
    free = [room for room in rooms if room.gpu.index not in fixed]
    if workers_override:
        _spread(free, workers_override - counts.total(), counts)
        if rooms and counts.total() != workers_override:
            warnings.append(f"pool.per_gpu asks for {counts.total()} workers, pool.workers for {workers_override}")
    elif mode == "single":
        _spread(free, 1 - counts.total(), counts)
    else:
        counts.update({room.gpu.place: _as_recorded(room, recorded) for room in free})
    if not counts.total() and free:
        roomiest = max(free, key=lambda room: room.available)
        counts[roomiest.gpu.place] = 1
    if not rooms:
        warnings.append("no GPU was found: the workers run on the CPU")
    elif not counts.total():
        warnings.append("pool.per_gpu keeps every GPU free: the workers run on the CPU")
    warnings += [
        f"one worker takes {float(room.per_worker / BYTES_PER_GB):g} GB and {room.gpu} has "
        f"{float(room.available / BYTES_PER_GB):.2f} GB for it: it may run out of memory"
        for room in free
        if counts[room.gpu.place] and not room.fits
    ]
    return counts


def _as_recorded(room: _Room, recorded: Sequence[Recorded]) -> int:
    """As many workers as fit, or those that were fastest on such a GPU."""
    known = next((one for one in recorded if room.gpu.name.startswith(one.gpu)), None)
    return room.fits if known is None else known.fastest(room.fits)


def _spread(rooms: Sequence[_Room], workers: int, counts: Counter[tuple[str, int]]) -> None:
    """Give so many more workers, one by one, each to the GPU that has most left (the first of equals)."""
    for _ in range(workers if rooms else 0):
        roomiest = max(rooms, key=lambda room: room.left(counts[room.gpu.place]))
        counts[roomiest.gpu.place] += 1


def _share_out(nodes: Sequence[str], workers: int) -> list[str]:
    """The node of each of so many workers, as evenly as can be, node by node."""
    each, more = divmod(workers, len(nodes)) if nodes else (0, 0)
    return [node for position, node in enumerate(nodes) for _ in range(each + (position < more))]


def _notes(shares: Sequence[GpuShare], workers: Sequence[WorkerSpec]) -> tuple[str, ...]:
    notes = []
    for share in shares:
        total = share.gpu.total_bytes / BYTES_PER_GB
        notes.append(f"[{share.gpu}] {share.gpu.name}, Total Memory: {total:.2f} GB")
        available = share.available_bytes / BYTES_PER_GB
        notes.append(f"[{share.gpu}] Can run {share.fits} workers (Available: {available:.2f} GB)")
    used = [share for share in shares if share.workers]
    nodes = len({worker.node for worker in workers})
    where = f"across {len(used)} GPU(s)" if used else "on the CPU"
    where += f" of {nodes} node(s)" if any(worker.node for worker in workers) else ""
    notes.append(f"[Main] Using {len(workers)} parallel workers {where}")
    notes += [f"[Main] {share.gpu}: {share.workers} workers" for share in used]
    return tuple(notes)


def assign_round_robin(speaker_count: int, worker_count: int) -> list[list[int]]:
    """The speakers of each worker, by position in order of first appearance: 6 on 4 is [[0, 4], [1, 5], [2], [3]].

    Raises:
        ValueError: there is no worker.
    """
    if worker_count < 1:
        raise ValueError(f"speakers can't be assigned to {worker_count} workers")
    return [list(range(worker, speaker_count, worker_count)) for worker in range(worker_count)]

"""The worker plan: the tables that people plan their machines by, and the rules at their edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.events import WorkerSpec
from daemon.core.plan import BYTES_PER_GB, Gpu, Mode, Plan, Recorded, assign_round_robin, plan_workers


def gpu(index: int, gigabytes: float, others: float = 0, name: str = "NVIDIA GeForce RTX 4090") -> Gpu:
    return Gpu(
        index=index,
        name=name,
        total_bytes=round(gigabytes * BYTES_PER_GB),
        used_by_others_bytes=round(others * BYTES_PER_GB),
    )


def placed(plan: Plan) -> list[int | None]:
    """The GPU of each worker; checks that workers are numbered from 0 in that order."""
    assert [worker.worker for worker in plan.workers] == list(range(len(plan.workers)))
    return [worker.gpu for worker in plan.workers]


@pytest.mark.parametrize(
    ("gigabytes", "model_memory_gb", "workers"),
    [
        ([24], 8.0, [0, 0]),
        ([24], 6.0, [0, 0, 0]),
        ([24], 5.3, [0, 0, 0, 0]),
        ([16], 8.0, [0]),
        ([16], 7.0, [0, 0]),
        ([12], 9.0, [0]),
        ([80], 8.0, [0] * 9),
        ([80], 6.5, [0] * 11),
        ([24, 24], 8.0, [0, 0, 1, 1]),
        ([24, 24], 6.0, [0, 0, 0, 1, 1, 1]),
        ([12, 12], 9.0, [0, 1]),
        ([16, 16], 8.0, [0, 1]),
    ],
)
@pytest.mark.parametrize("mode", ["multi", "auto"])
def test_the_table_holds(mode: Mode, gigabytes: list[int], model_memory_gb: float, workers: list[int]) -> None:
    """Every row of the table, workers numbered GPU by GPU."""
    gpus = [gpu(index, size) for index, size in enumerate(gigabytes)]
    plan = plan_workers(gpus, mode=mode, model_memory_gb=model_memory_gb)
    assert placed(plan) == workers
    assert plan.warnings == ()


def test_auto_follows_our_own_figures() -> None:
    """The fastest number of workers that fits, on GPUs that were measured; what a person says goes before."""
    recorded = (Recorded("NVIDIA H200", {1: 400.0, 2: 410.0, 4: 300.0}), Recorded("NVIDIA H100", {1: 300.0, 2: 300.0}))
    gpus = [gpu(0, 140, name="NVIDIA H200"), gpu(1, 80, name="NVIDIA H100 80GB HBM3"), gpu(2, 24)]
    assert placed(plan_workers(gpus, recorded=recorded)) == [0, 0, 1, 2, 2]
    assert placed(plan_workers(gpus, per_gpu={0: 1, 1: 3}, recorded=recorded)) == [0, 1, 1, 1, 2, 2]
    small = [gpu(0, 10, name="NVIDIA H200")]
    assert placed(plan_workers(small, recorded=recorded)) == [0]
    multi = plan_workers(gpus, mode="multi", recorded=recorded)
    assert placed(multi) == placed(plan_workers(gpus, recorded=()))


def test_the_gpus_of_a_cluster_are_planned_node_by_node() -> None:
    """In the nodes' order; per_gpu counts on every node, and single is one worker in all, on the roomiest GPU."""
    north = [replace(gpu(index, 24), node="north") for index in (1, 0)]
    gpus = [*north, replace(gpu(0, 80), node="south")]
    plan = plan_workers(gpus, model_memory_gb=20)
    assert plan.workers == (
        WorkerSpec(0, 0, "north"),
        WorkerSpec(1, 1, "north"),
        *(WorkerSpec(number, 0, "south") for number in (2, 3, 4)),
    )
    assert "[GPU 0 of south] NVIDIA GeForce RTX 4090, Total Memory: 80.00 GB" in plan.notes
    assert "[Main] Using 5 parallel workers across 3 GPU(s) of 2 node(s)" in plan.notes
    fixed = plan_workers(gpus, model_memory_gb=20, per_gpu={0: 0})
    assert fixed.workers == (WorkerSpec(0, 1, "north"),)
    assert plan_workers(gpus, mode="single", model_memory_gb=20).workers == (WorkerSpec(0, 0, "south"),)
    spread = plan_workers(gpus, model_memory_gb=20, workers_override=4)
    assert [worker.node for worker in spread.workers] == ["north", "south", "south", "south"]


def test_nodes_without_gpus_get_a_worker_each() -> None:
    """Or their part of pool.workers; without a node there is no worker at all."""
    nodes = ("north", "south")
    assert plan_workers([], cpu_nodes=nodes).workers == (WorkerSpec(0, None, "north"), WorkerSpec(1, None, "south"))
    assert plan_workers([], cpu_nodes=nodes, mode="single").workers == (WorkerSpec(0, None, "north"),)
    many = plan_workers([], cpu_nodes=nodes, workers_override=5)
    assert [worker.node for worker in many.workers] == ["north"] * 3 + ["south"] * 2
    assert plan_workers([], cpu_nodes=()).workers == ()


@pytest.mark.parametrize(("model_memory_gb", "fits"), [(5.4, 4), (7.2, 3), (2.7, 8), (0.9, 24), (0.1, 216), (1.2, 18)])
def test_a_worker_that_fits_exactly_fits(model_memory_gb: float, fits: int) -> None:
    """21.6 GB holds four workers of 5.4 GB, though not in binary floating point."""
    plan = plan_workers([gpu(0, 24)], mode="multi", model_memory_gb=model_memory_gb)
    assert len(plan.workers) == fits


def test_what_other_programs_hold_is_not_available() -> None:
    """Memory that others hold counts once it reaches into the usable nine tenths."""
    assert len(plan_workers([gpu(0, 24, others=2.4)], mode="multi").workers) == 2
    assert len(plan_workers([gpu(0, 24, others=9)], mode="multi").workers) == 1


def test_reserved_memory_is_nobody_elses() -> None:
    """What the driver reserves does not count as held by others."""
    with_reserve = Gpu(index=0, name="A", total_bytes=24 * BYTES_PER_GB, reserved_bytes=BYTES_PER_GB)
    assert len(plan_workers([with_reserve], mode="multi", model_memory_gb=5.4).workers) == 4


def test_where_none_fits_one_worker_takes_the_roomiest_gpu() -> None:
    """Too little memory everywhere: one worker all the same, and a warning."""
    plan = plan_workers([gpu(0, 6), gpu(1, 8), gpu(2, 8)], mode="multi", model_memory_gb=9.0)
    assert placed(plan) == [1]
    assert "GPU 1 has 7.20 GB" in plan.warnings[0]


def test_a_gpu_that_others_fill_offers_nothing() -> None:
    """More used than there is (a driver's rounding) is nothing left, not less than nothing."""
    plan = plan_workers([gpu(0, 24, others=25), gpu(1, 24)], mode="multi")
    assert placed(plan) == [1, 1]
    assert plan.per_gpu[0].available_bytes == 0


@pytest.mark.parametrize("mode", ["multi", "auto", "single"])
def test_without_a_gpu_one_worker_runs_on_the_cpu(mode: Mode) -> None:
    plan = plan_workers([], mode=mode)
    assert plan.workers == (WorkerSpec(0, None),)
    assert plan.warnings == ("no GPU was found: the workers run on the CPU",)
    assert plan.notes[-1] == "[Main] Using 1 parallel workers on the CPU"


def test_single_is_one_worker_on_the_roomiest_gpu() -> None:
    assert placed(plan_workers([gpu(0, 24, others=12), gpu(1, 16)], mode="single")) == [1]
    assert placed(plan_workers([gpu(0, 24), gpu(1, 24)], mode="single")) == [0]


@pytest.mark.parametrize(
    ("workers_override", "expected"),
    [(1, [0]), (2, [0, 1]), (3, [0, 0, 1]), (4, [0, 0, 1, 1]), (7, [0, 0, 0, 0, 1, 1, 1])],
)
def test_a_number_of_workers_is_spread_over_the_gpus(workers_override: int, expected: list[int]) -> None:
    plan = plan_workers([gpu(0, 24), gpu(1, 24)], mode="multi", workers_override=workers_override)
    assert placed(plan) == expected
    assert bool(plan.warnings) == (workers_override > 4)


def test_a_number_of_workers_holds_on_the_cpu_too() -> None:
    assert placed(plan_workers([], mode="multi", workers_override=3)) == [None, None, None]


def test_per_gpu_is_obeyed_and_the_others_are_planned() -> None:
    """A GPU that is named gets exactly that many, 0 keeps it free; one that is not gets what fits."""
    gpus = [gpu(0, 24), gpu(1, 24), gpu(2, 24)]
    plan = plan_workers(gpus, mode="multi", per_gpu={0: 3, 1: 0})
    assert placed(plan) == [0, 0, 0, 2, 2]
    assert plan.warnings == ("GPU 0 gets 3 workers; at 8 GB each its memory is enough for 2",)


def test_per_gpu_and_a_number_of_workers() -> None:
    """What per_gpu leaves of the number goes to the other GPUs; where the two disagree, per_gpu wins and says so."""
    gpus = [gpu(0, 24), gpu(1, 24)]
    assert placed(plan_workers(gpus, workers_override=3, per_gpu={0: 1})) == [0, 1, 1]
    plan = plan_workers(gpus, workers_override=1, per_gpu={0: 2, 1: 2})
    assert placed(plan) == [0, 0, 1, 1]
    assert plan.warnings == ("pool.per_gpu asks for 4 workers, pool.workers for 1",)


def test_per_gpu_can_name_a_gpu_that_is_not_there() -> None:
    plan = plan_workers([gpu(0, 24)], per_gpu={3: 1})
    assert placed(plan) == [0, 0]
    assert plan.warnings == ("pool.per_gpu names GPU 3, which this machine does not have",)


def test_every_gpu_kept_free_leaves_the_cpu() -> None:
    plan = plan_workers([gpu(0, 24)], per_gpu={0: 0})
    assert placed(plan) == [None]
    assert plan.warnings == ("pool.per_gpu keeps every GPU free: the workers run on the CPU",)


@pytest.mark.parametrize(
    ("model_memory_gb", "workers_override", "per_gpu"),
    [(0, 0, {}), (-1, 0, {}), (float("nan"), 0, {}), (8, -1, {}), (8, 0, {0: -1})],
)
def test_nonsense_is_refused(model_memory_gb: float, workers_override: int, per_gpu: dict[int, int]) -> None:
    with pytest.raises(ValueError):
        plan_workers([gpu(0, 24)], model_memory_gb=model_memory_gb, workers_override=workers_override, per_gpu=per_gpu)


def test_the_notes_are_the_lines_that_people_look_for() -> None:
    plan = plan_workers([gpu(0, 24), gpu(1, 24)], mode="multi", model_memory_gb=8.0)
    assert plan.notes == (
        "[GPU 0] NVIDIA GeForce RTX 4090, Total Memory: 24.00 GB",
        "[GPU 0] Can run 2 workers (Available: 21.60 GB)",
        "[GPU 1] NVIDIA GeForce RTX 4090, Total Memory: 24.00 GB",
        "[GPU 1] Can run 2 workers (Available: 21.60 GB)",
        "[Main] Using 4 parallel workers across 2 GPU(s)",
        "[Main] GPU 0: 2 workers",
        "[Main] GPU 1: 2 workers",
    )


@pytest.mark.parametrize(
    ("workers", "assignment"),
    [
        (1, [[0, 1, 2, 3, 4, 5]]),
        (2, [[0, 2, 4], [1, 3, 5]]),
        (3, [[0, 3], [1, 4], [2, 5]]),
        (4, [[0, 4], [1, 5], [2], [3]]),
        (7, [[0], [1], [2], [3], [4], [5], []]),
    ],
)
def test_speakers_go_round(workers: int, assignment: list[list[int]]) -> None:
    assert assign_round_robin(6, workers) == assignment


def test_speakers_need_a_worker() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        assign_round_robin(6, 0)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 192 * 1024), st.integers(0, 192 * 1024)), max_size=8),
    tenths=st.integers(1, 2000),
    workers_override=st.integers(0, 40),
    mode=st.sampled_from(["auto", "multi", "single"]),
)
def test_any_plan_is_whole(sizes: list[tuple[int, int]], tenths: int, workers_override: int, mode: Mode) -> None:
    """Whatever the machine: at least one worker, numbered GPU by GPU, the counts adding up, and without an override
    no GPU given more than fits, except for the one worker that there must be."""
    gpus = [Gpu(i, "G", total << 20, used_by_others_bytes=others << 20) for i, (total, others) in enumerate(sizes)]
    plan = plan_workers(gpus, mode=mode, model_memory_gb=tenths / 10, workers_override=workers_override)
    order = placed(plan)
    assert order
    assert order == sorted(order, key=lambda index: -1 if index is None else index)
    assert [order.count(share.gpu.index) for share in plan.per_gpu] == [share.workers for share in plan.per_gpu]
    if workers_override:
        assert len(order) == workers_override
    elif len(order) > 1:
        assert all(share.workers <= share.fits for share in plan.per_gpu)
    for share in plan.per_gpu:
        assert 10 * share.available_bytes <= 9 * share.gpu.total_bytes
        assert share.fits * tenths * BYTES_PER_GB <= 10 * (share.available_bytes + 1)

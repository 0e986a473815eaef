"""What the daemon makes of what the bridge says; the real bridge is told of in test_cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daemon.cluster.backend import Cluster, by_name
from daemon.core.plan import BYTES_PER_GB, Plan
from tests.shell import settings_in
from workers.protocol import Message


def node(name: str, *gigabytes: int, others: int = 0) -> Message:
    gpus: list[dict[str, Any]] = [
        {
            "index": index,
            "name": "RTX 4090",
            "total_bytes": size * BYTES_PER_GB,
            "used_by_others_bytes": others * BYTES_PER_GB,
        }
        for index, size in enumerate(gigabytes)
    ]
    problems: list[str] = []
    here: Message = {"type": "node", "node": name, "address": "10.0.0.2", "cores": 8, "cpus": 8.0}
    return {**here, "gpus": gpus, "problems": problems}


class Seen:
    """A backend without a bridge, and the plans that it asked the daemon to follow."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.plans: list[Plan] = []
        self.cluster = Cluster(settings_in(folder, "pool.backend=ray", *overrides), self.plans.append)

    def say(self, *messages: Message) -> list[list[tuple[int, str]]]:
        """The plans that follow from this, as numbers and nodes."""
        self.plans.clear()
        for message in messages:
            self.cluster.connection._understand(message)
        return [[(worker.worker, worker.node) for worker in plan.workers] for plan in self.plans]


LOOKED: Message = {"type": "looked"}


def test_what_comes_and_goes_counts_at_once_and_memory_does_not(tmp_path: Path) -> None:
    """Nodes that were told together are planned together; a game that somebody starts is left to the replanning, which
    wants two readings."""
    seen = Seen(tmp_path)
    assert seen.say(node("a", 24), node("b", 24), LOOKED) == [[(0, "a"), (1, "a"), (2, "b"), (3, "b")]]
    assert seen.say(node("a", 24, others=12), LOOKED) == []
    assert [worker.worker for worker in seen.cluster.plan_now().workers] == [0, 2, 3]
    assert seen.say({"type": "node_gone", "node": "a"}) == [[(2, "b"), (3, "b")]]
    assert seen.say(LOOKED, LOOKED) == []
    assert seen.say(node("a", 24), LOOKED) == [[(0, "a"), (1, "a"), (2, "b"), (3, "b")]]
    assert seen.say({"type": "silent", "reason": "no word"}) == []
    assert seen.cluster.shown()["problem"] == "no word"
    assert len(seen.say(LOOKED)) == 1 and seen.cluster.shown()["problem"] is None


def test_the_share_of_a_gpu_is_that_of_its_memory(tmp_path: Path) -> None:
    """It does not depend on how many are planned now: Ray's books must have room for those that come later."""
    seen = Seen(tmp_path)
    seen.say(node("a", 24, others=12), LOOKED)
    (worker,) = seen.cluster.plan_now().workers
    transport, device = seen.cluster.transport(worker)
    assert (transport.order["num_gpus"], transport.order["num_cpus"], device) == (0.5, 0, "cuda:0")  # type: ignore[attr-defined]


def test_nodes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """render-10 comes after render-9."""
    seen = Seen(tmp_path)
    seen.say(*(node(f"render-{number}", 24) for number in (10, 9, 1)), LOOKED)
    nodes = sorted(seen.cluster.connection.nodes.values(), key=by_name)
    assert [one.name for one in nodes] == ["render-1", "render-9", "render-10"]

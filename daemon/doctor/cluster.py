"""The cluster of ``pool.backend = "ray"``: whether Ray is here, the head answers, and its nodes can take workers."""

from __future__ import annotations

import anyio

from daemon.cluster.backend import plan_nodes
from daemon.cluster.connection import ClusterNode, RayMissing, nodes_of, require_ray
from daemon.config import Settings
from daemon.doctor.finding import Finding

MEND_HEAD = (
    "Start the head ('ray start --head') and, unless it runs here, a node on this machine too "
    "('ray start --address=HEAD:PORT'), and give cluster.address; see docs/cluster.md."
)


def check(settings: Settings) -> list[Finding]:
    try:
        require_ray()
    except RayMissing as error:
        return [Finding.fail("Ray", str(error), "pip install 'dubd[ray]'")]
    try:
        nodes = anyio.run(nodes_of, settings)
    except ConnectionError as error:
        return [Finding.fail("cluster", str(error), MEND_HEAD)]
    return [*(_node(node) for node in nodes), _workers(nodes, settings)]


def _node(node: ClusterNode) -> Finding:
    what = f"node {node.name} at {node.address}: {len(node.gpus)} GPUs, {node.cpus:g} CPUs"
    if node.problems:
        mend = "Mend the driver there, or start the node with --num-gpus=0."
        return Finding.warn("cluster", f"{what}; {'; '.join(node.problems)}", mend)
    return Finding.ok("cluster", what)


def _workers(nodes: list[ClusterNode], settings: Settings) -> Finding:
    plan = plan_nodes(nodes, settings)
    if not plan.workers:
        return Finding.fail(
            "cluster", "no node has a GPU or a CPU that workers may use", "Start a node with --num-gpus or --num-cpus."
        )
    places = len({(worker.node, worker.gpu) for worker in plan.workers})
    return Finding.ok("cluster", f"{len(plan.workers)} workers would run in {places} places")

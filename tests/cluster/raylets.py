"""A Ray cluster of several raylets on this machine, in a process of its own: ``python -m tests.cluster.raylets``.

Prints the head's address, then obeys lines: ``add NAME GPUS [GB]``, ``remove NAME`` (as by a power cut), ``lose_head``;
each is answered by ``done``. The cluster ends with its input. GPUs are made up, of so many GB each, or of no known
size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import IO, Any

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""The least that Ray takes."""

SETTINGS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A node without a word is lost after two seconds, not after fifteen."""


class Raylets:
    """The cluster as a test sees it. A context manager: nothing of it runs after the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str]
        self.address = ""

    def __enter__(self) -> Raylets:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.raylets"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "20"},
        )
        self.address = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process as process:
            self._pipe(process.stdin).close()
            process.wait(90)

    def add(self, name: str, gpus: int, gigabytes: str = "") -> None:
        self._do(f"add {name} {gpus} {gigabytes}")

    def remove(self, name: str) -> None:
        self._do(f"remove {name}")

    def lose_head(self) -> None:
        self._do("lose_head")

    def _do(self, line: str) -> None:
        stdin = self._pipe(self._process.stdin)
        stdin.write(line + "\n")
        stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        line = self._pipe(self._process.stdout).readline()
        assert line, "the cluster ended"
        return line.strip()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def main() -> None:
    outgoing = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints

    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    head = {**common, "num_cpus": 0, "num_gpus": 0, "node_name": "head", "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}
    print(cluster.address, file=outgoing, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["add", name, gpus, *size]:
                nodes[name] = cluster.add_node(
                    node_name=name,
                    num_cpus=2,
                    num_gpus=int(gpus),
                    object_store_memory=OBJECT_STORE_BYTES,
                    resources={"dubd_gpu_memory_gb": float(size[0])} if size else {},
                )
            case ["remove", name]:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
            case ["lose_head"]:
                cluster.head_node.kill_gcs_server()
        print("done", file=outgoing, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

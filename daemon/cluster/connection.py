"""The daemon's end of the bridge: keeps one running, knows the nodes, and gives transports to workers on them.

When the bridge ends, so has every worker behind it: their transports return, lost, and the nodes are forgotten until
the next bridge tells of them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog

from daemon.config import Settings
from daemon.core.plan import Gpu
from daemon.flood import Bounded
from daemon.transport import OnLine, OnMessage
from daemon.worker_process import WorkerProcess, ending
from workers.protocol import Message, ProtocolError

log = structlog.get_logger("dubd.cluster")

RECONNECT_MIN_S = 1.0
RECONNECT_MAX_S = 30.0
MOST_OF_A_LINE = 300
ANSWER_S = 90.0
"""Longest that a command waits for a cluster and all of its nodes."""

HOW_TO_INSTALL = (
    'pool.backend is "ray", and Ray is not installed for {python}: '
    "install dubd[ray] there, at the version and with the Python that the cluster has"
)


class RayMissing(Exception):
    """Ray is not installed; the message says how to mend that."""


def require_ray() -> None:
    """Raises RayMissing."""
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(HOW_TO_INSTALL.format(python=sys.executable))


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node as the bridge tells of it: its cores and the CPUs that Ray may give out there. A GPU whose memory is not
    known has ``total_bytes`` 0."""

    name: str
    address: str
    cores: int
    cpus: float
    gpus: tuple[Gpu, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BridgeCommand:
    """How to start the bridge: this daemon's own code, wherever it was imported from."""

    environment: Mapping[str, str]
    python: str = sys.executable

    @property
    def arguments(self) -> Sequence[str]:
        return [self.python, "-m", "daemon.cluster"]


class Connection:
    """``on_nodes`` is called when nodes have come or gone: at once when one has gone."""

    def __init__(self, settings: Settings, on_nodes: Callable[[], None]) -> None:
        self.settings = settings
        self.nodes: dict[str, ClusterNode] = {}
        self.problem: str | None = "not connected yet"
        """Why there is no cluster, or no word from it; None while all is well."""
        self._on_nodes = on_nodes
        self._process: WorkerProcess | None = None
        self._workers: dict[int, ClusterWorker] = {}
        self._links = 0
        self._changed = False
        self._looked = anyio.Event()
        self._last_line = ""
        self._reset = False

    @property
    def bridge_pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Hold the bridge until cancelled."""
        pause = RECONNECT_MIN_S
        while True:
            connected = await self._run_bridge()
            self._reset = False
            pause = RECONNECT_MIN_S if connected else min(pause * 2, RECONNECT_MAX_S)
            await anyio.sleep(pause)

    def reset(self) -> None:
        """Connect anew: the settings have changed."""
        self._reset = True
        if self._process is not None:
            self._process.kill()

    async def look(self) -> None:
        """Have the nodes' GPUs read again; returns when they are, or at once without a cluster."""
        if self._process is None or self.problem is not None:
            return
        if self._looked.is_set():
            self._looked = anyio.Event()
        self._process.send({"type": "look"})
        await self._looked.wait()

    def worker(self, order: Message) -> ClusterWorker:
        """A worker that is not started yet, as ``order`` (the bridge's message ``open``) describes it."""
        self._links += 1
        return ClusterWorker(self, {"type": "open", "link": self._links, **order})

    # --- the bridge ---------------------------------------------------------------------------------------------

    async def _run_bridge(self) -> bool:
        """One life of a bridge; whether it had a cluster."""
        cluster = self.settings.cluster
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        process = WorkerProcess(BridgeCommand(environment))
        process.send(
            {
                "type": "connect",
                "address": cluster.address,
                "folder": str(cluster.folder),
                "cache_bytes": int(cluster.cache_gb * 1024**3),
                "shared": self.settings.paths.shared,
            }
        )
        connected = False

        def on_message(message: Message) -> None:
            nonlocal connected
            if message["type"] == "looked" and not connected:
                connected = True
                log.info("connected to the cluster", address=cluster.address, nodes=len(self.nodes))
            self._understand(message)

        self._process, self._last_line = process, ""
        reason = "stopped with the daemon"
        try:
            with Bounded(self._on_line) as lines:
                reason = await process.run(on_message, lines)
        finally:
            self._process = None
            self.nodes.clear()
            self._looked.set()
            if not self._reset:
                self.problem = self._last_line or f"the connection ended: {reason}"
            for worker in list(self._workers.values()):
                worker.end("the way to the cluster is lost", lost=True)
        log.error("the cluster can't be reached; trying on", address=cluster.address, reason=self.problem)
        self._on_nodes()
        return connected

    def _on_line(self, line: str) -> None:
        if not line.startswith((" ", "\x1b")):  # the story behind a line, which Ray tells at length
            self._last_line = line[:MOST_OF_A_LINE]
        log.debug("the bridge says", line=line)

    def _understand(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("frame", "line", "gone"):
            worker = self._workers.get(message["link"])
            if worker is not None:
                worker.hear(message)
        elif kind == "node":
            node = _node(message)
            if node.name not in self.nodes:
                log.info("a node has come", node=node.name, address=node.address, gpus=len(node.gpus), cpus=node.cpus)
                for problem in node.problems:
                    log.warning("a node's GPUs can't be read", node=node.name, problem=problem)
            # Memory that others take is read at times (pool.replan_s); what the node is counts at once.
            self._changed = self._changed or not _is_alike(node, self.nodes.get(node.name))
            self.nodes[node.name] = node
        elif kind == "node_gone":
            log.warning("a node has gone", node=message["node"])
            self.nodes.pop(message["node"], None)
            self._on_nodes()
        elif kind == "silent":
            if self.problem is None:
                log.warning("the cluster is silent", reason=message["reason"])
            self.problem = message["reason"]
            self._looked.set()
        elif kind == "looked":
            first = self.problem is not None
            self.problem = None
            self._looked.set()
            if self._changed or first:
                self._changed = False
                self._on_nodes()
        else:
            raise ProtocolError(f"the bridge knows a message {kind!r} that the daemon does not")

    # --- for workers --------------------------------------------------------------------------------------------

    def enter(self, worker: ClusterWorker) -> bool:
        """Whether there is a bridge that may start it."""
        if self._process is None:
            return False
        self._workers[worker.link] = worker
        return True

    def leave(self, worker: ClusterWorker) -> None:
        self._workers.pop(worker.link, None)

    def tell(self, message: Message) -> None:
        if self._process is not None:
            self._process.send(message)


async def nodes_of(settings: Settings) -> list[ClusterNode]:
    """The nodes that the cluster has now, each with its GPUs.

    Raises:
        RayMissing: see ``require_ray``.
        ConnectionError: no cluster answers.
    """
    require_ray()
    # A command says itself what it has found.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    connection = Connection(settings, lambda: told.set())
    told = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        with anyio.move_on_after(ANSWER_S):
            await told.wait()
        nodes, problem = list(connection.nodes.values()), connection.problem
        tasks.cancel_scope.cancel()
    if problem is not None:
        raise ConnectionError(f"no cluster answers at {settings.cluster.address}: {problem}")
    return nodes


@dataclass(eq=False)
class ClusterWorker:
    """The transport of a worker on a node (see daemon/transport.py)."""

    connection: Connection
    order: Message
    pid: int | None = None
    lost: bool = False
    _waiting: list[Message] | None = field(default_factory=list)
    """What is to be sent once it is started; None from then on."""
    _reason: str = "stopped with the daemon"
    _ended: anyio.Event = field(default_factory=anyio.Event)
    _killed: bool = False
    _on_message: OnMessage | None = None
    _on_line: OnLine | None = None

    @property
    def link(self) -> int:
        number: int = self.order["link"]
        return number

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        self._on_message, self._on_line = on_message, on_line
        if not self.connection.enter(self):
            self.lost = True
            return f"there is no cluster: {self.connection.problem}"
        try:
            self.connection.tell(self.order)
            waiting, self._waiting = self._waiting or [], None
            for message in waiting:
                self.connection.tell(message)
            await self._ended.wait()
        finally:
            self.connection.leave(self)
            if not self._ended.is_set():
                self.connection.tell({"type": "kill", "link": self.link})
                self._ended.set()
        return self._reason

    def send(self, message: Message) -> None:
        self._tell({"type": "frame", "link": self.link, "message": message})

    def finish(self) -> None:
        self._tell({"type": "finish", "link": self.link})

    def tell_stacks(self) -> None:
        self._tell({"type": "signal", "link": self.link, "number": int(signal.SIGUSR1)})

    def kill(self) -> None:
        if not self._killed:
            self._killed = True
            self._tell({"type": "kill", "link": self.link})

    def _tell(self, message: Message) -> None:
        if self._ended.is_set():
            return
        if self._waiting is not None:
            self._waiting.append(message)
        else:
            self.connection.tell(message)

    # --- what the bridge says -----------------------------------------------------------------------------------

    def hear(self, message: Message) -> None:
        assert self._on_message is not None
        assert self._on_line is not None
        if message["type"] == "frame":
            said: Message = message["message"]
            if said["type"] == "hello" and isinstance(said.get("pid"), int):
                self.pid = said["pid"]
            self._on_message(said)
        elif message["type"] == "line":
            self._on_line(message["line"])
        else:
            self.end(message["reason"] or ending(message["returncode"], spoke=message["spoke"]), lost=message["lost"])

    def end(self, reason: str, *, lost: bool) -> None:
        if not self._ended.is_set():
            self._reason, self.lost = reason, lost
            self._ended.set()


def _is_alike(node: ClusterNode, before: ClusterNode | None) -> bool:
    """Whether it has the same cores and GPUs as before, whoever uses them now."""
    if before is None:
        return False
    ours, theirs = ([(gpu.index, gpu.uuid, gpu.total_bytes) for gpu in one.gpus] for one in (node, before))
    return (node.cores, node.cpus, ours) == (before.cores, before.cpus, theirs)


def _node(message: dict[str, Any]) -> ClusterNode:
    return ClusterNode(
        message["node"],
        message["address"],
        message["cores"],
        message["cpus"],
        tuple(Gpu(**{**gpu, "total_bytes": gpu["total_bytes"] or 0}, node=message["node"]) for gpu in message["gpus"]),
        tuple(message["problems"]),
    )

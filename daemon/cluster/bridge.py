"""The bridge: the process between the daemon and a Ray cluster (see the package's text).

Its standard input and output carry frames, as a worker's do. The first message says where the cluster is::

    > connect   {address, folder, cache_bytes, shared}
    > open      {link, node, gpu, num_gpus, num_cpus, python, path, threads}   start a worker
    > frame     {link, message}                       to the worker
    > finish    {link} · signal {link, number} · kill {link}
    > look      {}                                    read every node's GPUs again
    < node      {node, address, cores, cpus, gpus[], problems[]}               it has come, or changed
    < node_gone {node}
    < looked    {}                                    every node that there is has been told
    < silent    {reason}                              the head does not answer; ``looked`` says that it does again
    < frame     {link, message} · line {link, line}
    < gone      {link, reason, returncode, spoke, lost}

The bridge ends with its input, and with the cluster: Ray ends a driver that has lost its head.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import math
import os
import re
import signal
import sys
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

import daemon.core.plan
import daemon.gpus
import daemon.worker_environment
import workers.protocol
from daemon.cluster import node as node_side
from workers.protocol import FrameDecoder, Message, encode_frame

LOOK_S = 1.0
"""How often the list of nodes is read."""

SILENT_S = 10.0
PROBE_S = 60.0
"""How long a node may take to tell of its GPUs; it is asked again the next time that all are."""

KILL_GRACE_S = 3.0
LOSS_S = 2.0
"""So long is looked whether it was its node that took an actor along."""

TOUCH_S = 1.0
FETCHES = 8
"""Large files that are on their way at a time: what bounds the memory of both ends."""

BATCH = 64
KEPT_BYTES = 256 * 1024 * 1024
"""References that are held in the object store for nodes that have not got them yet."""

MEMORY_RESOURCE = "dubd_gpu_memory_gb"
"""A node's own resource that tells the memory of each of its GPUs; NVML is not asked there."""

LABEL_CHARACTERS = 64
PENDING_S = 20.0
"""After so long without an actor people are told what it waits for."""

LOST: Message = {}

DISK_FULL = "disk_full"
"""The code of workers/engine.py for a segment whose file found no room: the daemon waits, nobody is charged."""

EXIT_AWAY = 3
PR_SET_PDEATHSIG = 1


class Cluster:
    """Ray, as far as the bridge needs it. Everything here that can block is called in threads."""

    def __init__(self, address: str) -> None:
        # What is not set otherwise: nothing is reported to anyone, and a node's Python may differ in its last number.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray: Any = ray
        self._affinity: Any = NodeAffinitySchedulingStrategy
        for module in (node_side, daemon.gpus, daemon.core.plan, daemon.worker_environment):
            ray.cloudpickle.register_pickle_by_value(module)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="dubd")
        self._worker = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=node_side.GROUPS)(
            node_side.NodeWorker
        )
        self._describe = ray.remote(max_retries=0, num_cpus=0)(node_side.describe_node)
        self._read_gpus = ray.put(daemon.gpus.read_gpus)

    def nodes(self) -> list[dict[str, Any]]:
        return [found for found in self.ray.nodes() if found["Alive"]]

    def describe(self, node_id: str, own_pids: list[int]) -> Any:
        return self._describe.options(scheduling_strategy=self._on(node_id)).remote(self._read_gpus, own_pids)

    def actor(self, node_id: str, num_gpus: float, num_cpus: float) -> Any:
        return self._worker.options(
            num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=self._on(node_id)
        ).remote()

    def _on(self, node_id: str) -> Any:
        return self._affinity(node_id, soft=False)


class Node:
    """A living node under the name that the daemon knows it by."""

    def __init__(self, name: str, found: dict[str, Any]) -> None:
        self.name = name
        self.id: str = found["NodeID"]
        self.address: str = found["NodeManagerAddress"]
        self.port: int = found["NodeManagerPort"]
        self.resources: dict[str, float] = found["Resources"]
        self.told: Message | None = None
        self._gone = anyio.Event()

    @property
    def needs_probe(self) -> bool:
        """Whether it has GPUs, and does not say itself how large they are."""
        return self.resources.get("GPU", 0) >= 1 and MEMORY_RESOURCE not in self.resources

    def message(self, described: dict[str, Any]) -> Message:
        """What NVML says of the GPUs that Ray may use here, and of those that NVML does not know what Ray says."""
        declared = int(self.resources.get("GPU", 0))
        gpus = described["gpus"][:declared]
        size = self.resources.get(MEMORY_RESOURCE)
        gpus += [
            {"index": index, "name": "GPU", "total_bytes": None if size is None else int(size * 1024**3)}
            for index in range(len(gpus), declared)
        ]
        return {
            "type": "node",
            "node": self.name,
            "address": self.address,
            "cores": described["cores"] or max(1, int(self.resources.get("CPU", 0))),
            "cpus": self.resources.get("CPU", 0.0),
            "gpus": gpus,
            "problems": described["problems"] if declared and not described["gpus"] else [],
        }

    def drop(self) -> None:
        """It is no more."""
        self._gone.set()

    async def is_gone(self, scope: anyio.CancelScope) -> None:
        """End what goes on with it as soon as it is gone: Ray may keep a call to it waiting for long."""
        await self._gone.wait()
        scope.cancel()

    async def answers(self) -> bool:
        """Whether its raylet takes connections: Ray itself takes many seconds to call a node lost."""
        with anyio.move_on_after(TOUCH_S):
            try:
                stream = await anyio.connect_tcp(self.address, self.port)
            except OSError:
                return False
            await stream.aclose()
            return True
        return False


class Bridge:
    """``incoming`` and ``outgoing`` are descriptors."""

    def __init__(self, cluster: Cluster, connect: Message, incoming: int, outgoing: int) -> None:
        self.cluster = cluster
        self.folder: str = connect["folder"]
        self.cache_bytes: int = connect["cache_bytes"]
        self.shared: bool = connect["shared"]
        self.nodes: dict[str, Node] = {}
        self.fetching = anyio.CapacityLimiter(FETCHES)
        self.tasks: anyio.abc.TaskGroup
        self._incoming, self._outgoing = incoming, outgoing
        self._links: dict[int, Link] = {}
        self._look = anyio.Event()
        self._look_again = False
        self._looking = anyio.Lock()
        archive = pack_workers()
        self.code = sha256(archive).hexdigest()
        self.archive = cluster.ray.put(archive)
        self._references: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def tell(self, message: Message) -> None:
        """To the daemon, which always reads: waiting for it here is what holds the workers up when it can't."""
        frame = memoryview(encode_frame(message))
        while frame:
            frame = frame[os.write(self._outgoing, frame) :]

    async def run(self, decoder: FrameDecoder, first: list[Message]) -> None:
        async with anyio.create_task_group() as tasks:
            self.tasks = tasks
            tasks.start_soon(self._watch_nodes)
            for message in first:
                self._take(message)
            while True:
                await anyio.wait_readable(self._incoming)
                data = os.read(self._incoming, 1 << 16)
                if not data:
                    break
                for message in decoder.feed(data):
                    self._take(message)
            tasks.cancel_scope.cancel()

    def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "look":
            self._look_again = True
            self._look.set()
            return
        number = message["link"]
        if kind == "open":
            link = self._links[number] = Link(self, message)
            self.tasks.start_soon(self._run_link, link)
            return
        known = self._links.get(number)
        if known is not None:
            known.take(kind, message)

    async def _run_link(self, link: Link) -> None:
        try:
            gone = await link.run()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is the end of one worker only
            traceback.print_exc()
            gone = {"reason": f"the bridge failed: {error!r}", "lost": False}
        del self._links[link.number]
        self.tell({"type": "gone", "link": link.number, "returncode": None, "spoke": False, "lost": False, **gone})

    # --- nodes --------------------------------------------------------------------------------------------------

    async def _watch_nodes(self) -> None:
        while True:
            again, self._look_again = self._look_again, False
            await self.look(again=again)
            with anyio.move_on_after(LOOK_S):
                await self._look.wait()
            self._look = anyio.Event()

    async def look(self, *, again: bool = False) -> None:
        """Tell the daemon what has changed; with ``again`` every node is asked for its GPUs once more."""
        async with self._looking:
            found = None
            with anyio.move_on_after(SILENT_S):
                found = await anyio.to_thread.run_sync(self.cluster.nodes, abandon_on_cancel=True)
            if found is None:
                self.tell({"type": "silent", "reason": f"the cluster's head has not answered for {SILENT_S:g} s"})
                return
            alive = {one["NodeID"]: one for one in found}
            for node in list(self.nodes.values()):
                if node.id not in alive:
                    self._drop(node)
            known = {node.id for node in self.nodes.values()}
            for node_id in sorted(alive.keys() - known):
                node = Node(self._name(alive[node_id]), alive[node_id])
                self.nodes[node.name] = node
            asked = [node for node in self.nodes.values() if again or node.told is None]
            async with anyio.create_task_group() as tasks:
                for node in asked:
                    tasks.start_soon(self._probe, node)
            self.tell({"type": "looked"})

    def _drop(self, node: Node) -> None:
        if self.nodes.get(node.name) is node:
            del self.nodes[node.name]
            node.drop()
            if node.told is not None:
                self.tell({"type": "node_gone", "node": node.name})

    def _name(self, found: dict[str, Any]) -> str:
        """What the node is called: by itself, else by its host; with a number where that is taken."""
        address = found["NodeManagerAddress"]
        given = found["NodeName"] if found["NodeName"] not in ("", address) else found["NodeManagerHostname"]
        base = re.sub(r"[^\w.-]", "_", given)[:LABEL_CHARACTERS] or address
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self.nodes)

    async def _probe(self, node: Node) -> None:
        pids = [link.pid for link in self._links.values() if link.node is node and link.pid is not None]
        described = None if node.needs_probe else {"cores": 0, "gpus": [], "problems": []}
        try:
            with anyio.move_on_after(PROBE_S):
                described = described or await self.cluster.describe(node.id, pids)
        except Exception as error:  # noqa: BLE001 - Ray's, of many kinds; the node is asked again
            print(f"node {node.name} can't be asked for its GPUs: {error}", file=sys.stderr)
        if described is None or self.nodes.get(node.name) is not node:
            return
        message = node.message(described)
        if message != node.told:
            node.told = message
            self.tell(message)

    async def is_lost(self, node: Node) -> bool:
        """Whether the node is gone; the daemon is then told so before it is told of what went with it."""
        with anyio.move_on_after(LOSS_S):
            while self.nodes.get(node.name) is node and await node.answers():  # noqa: ASYNC110
                await anyio.sleep(LOSS_S / 4)
        lost = self.nodes.get(node.name) is not node or not await node.answers()
        if lost:
            self._drop(node)
        return lost

    # --- references ---------------------------------------------------------------------------------------------

    async def reference(self, name: str, path: str) -> Any:
        """The file in the object store, from where every node takes it once.

        Raises:
            OSError: it can't be read.
        """
        if name in self._references:
            self._references.move_to_end(name)
            return self._references[name][0]
        content = await anyio.Path(path).read_bytes()
        reference = await anyio.to_thread.run_sync(self.cluster.ray.put, content)
        self._references[name] = (reference, len(content))
        while sum(size for _, size in self._references.values()) > KEPT_BYTES and len(self._references) > 1:
            self._references.popitem(last=False)
        return reference


class Link:
    """One worker on a node: its messages go to its actor in batches, and what it says is asked for by long polls."""

    def __init__(self, bridge: Bridge, order: Message) -> None:
        self.number: int = order["link"]
        self.node: Node | None = bridge.nodes.get(order["node"])
        self.pid: int | None = None
        self._bridge = bridge
        self._order = order
        self._sender, self._outgoing = anyio.create_memory_object_stream[Message](math.inf)
        self._outputs: dict[int, str] = {}
        self._actor: Any = None
        self._killed = False
        self._trouble: str | None = None
        self._spool = ""

    def take(self, kind: str, message: Message) -> None:
        """What the daemon says."""
        if kind == "frame":
            self._sender.send_nowait(message["message"])
        elif kind == "finish":
            self._sender.close()
        elif kind == "signal":
            self._signal(message["number"])
        elif kind == "kill" and not self._killed:
            self._killed = True
            self._signal(signal.SIGKILL)
            self._bridge.tasks.start_soon(self._kill_actor)

    def _signal(self, number: int) -> None:
        if self._actor is not None:
            self._call("signal", "control", number)

    def _call(self, name: str, group: str, *arguments: Any) -> Any:
        return getattr(self._actor, name).options(concurrency_group=group).remote(*arguments)

    async def _kill_actor(self) -> None:
        """An actor that has not started, or whose node does not answer, can't kill its worker."""
        await anyio.sleep(KILL_GRACE_S if self._spool else 0)
        self._end_actor()

    def _end_actor(self) -> None:
        if self._actor is not None:
            with contextlib.suppress(Exception):
                self._bridge.cluster.ray.kill(self._actor, no_restart=True)

    async def run(self) -> dict[str, Any]:
        """From the actor's start to its worker's end: what ``gone`` says of it."""
        node, bridge = self.node, self._bridge
        if node is None or bridge.nodes.get(node.name) is not node:
            return {"reason": f"node {self._order['node']} is not in the cluster", "lost": True}
        ray_error = bridge.cluster.ray.exceptions.RayError
        try:
            self._actor = bridge.cluster.actor(node.id, self._order["num_gpus"], self._order["num_cpus"])
            await self._start(node)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, node)
                tasks.start_soon(node.is_gone, tasks.cancel_scope)
                ended = {"reason": f"node {node.name} is lost", "lost": True}
                try:
                    ended = await self._receive()
                except ray_error as error:
                    ended = await self._death(node, error)
                tasks.cancel_scope.cancel()
        except ray_error as error:
            return await self._death(node, error)
        else:
            with anyio.move_on_after(KILL_GRACE_S), contextlib.suppress(ray_error):
                await self._call("close", "control")
            return ended
        finally:
            self._end_actor()

    async def _death(self, node: Node, error: Exception) -> dict[str, Any]:
        """The actor is gone, or can't be reached: was it the node?"""
        if self._trouble is None and isinstance(error, self._bridge.cluster.ray.exceptions.RayTaskError):
            self._trouble = f"on node {node.name}: {error.cause}"
        if self._trouble is not None:
            return {"reason": self._trouble}
        if await self._bridge.is_lost(node):
            return {"reason": f"node {node.name} is lost", "lost": True}
        return {"reason": "killed" if self._killed else f"its actor on node {node.name} ended: {_briefly(error)}"}

    async def _start(self, node: Node) -> None:
        bridge = self._bridge
        order = {**self._order, "folder": bridge.folder, "cache_bytes": bridge.cache_bytes, "code": bridge.code}
        first = self._call("start", "in", order, [])
        answer = None
        with anyio.move_on_after(PENDING_S):
            answer = await first
        if answer is None:
            self._say(
                f"waiting for Ray to find room on node {node.name}: "
                f"{order['num_gpus']:g} GPUs, {order['num_cpus']:g} CPUs"
            )
            answer = await first
        if answer["missing"]:
            answer = await self._call("start", "in", order, [bridge.archive])
        self._spool = answer["spool"]
        if self._killed:
            self._signal(signal.SIGKILL)

    def _say(self, line: str) -> None:
        self._bridge.tell({"type": "line", "link": self.number, "line": line})

    # --- to the worker ------------------------------------------------------------------------------------------

    async def _send(self, node: Node) -> None:
        errors = self._bridge.cluster.ray.exceptions
        try:
            async for first in self._outgoing:
                batch = [first]
                while len(batch) < BATCH and self._outgoing.statistics().current_buffer_used:
                    batch.append(self._outgoing.receive_nowait())
                await self._send_batch(batch)
            await self._call("finish", "in")
        except errors.RayTaskError as error:
            self._trouble = f"on node {node.name}: {error.cause}"
            self._end_actor()
        except errors.RayError:
            pass  # so will the next call for what the worker says end

    async def _send_batch(self, batch: list[Message]) -> None:
        outputs: dict[int, str] = {}
        needed: dict[str, str] = {}
        frames = b"".join(encode_frame(self._as_there(message, outputs, needed)) for message in batch)
        missing = await self._call("send", "in", frames, outputs, list(needed), {})
        if missing:
            given = {}
            for name in missing:
                # One that is gone belongs to a job that is over; the worker will say that it can't read it.
                with contextlib.suppress(OSError):
                    given[name] = [await self._bridge.reference(name, needed[name])]
            await self._call("send", "in", frames, outputs, list(given), given)

    def _as_there(self, message: Message, outputs: dict[int, str], needed: dict[str, str]) -> Message:
        """The message with the paths that its files have on the node."""
        if self._bridge.shared or message["type"] not in ("speak", "encode"):
            return message
        ticket, output = message["ticket"], message["output"]
        self._outputs[ticket] = output["path"]
        outputs[ticket] = f"{self._spool}/{ticket}{Path(output['path']).suffix}"
        references = []
        for reference in message["voice"]["references"]:
            name = reference["sha256"] + Path(reference["path"]).suffix
            needed[name] = reference["path"]
            references.append({**reference, "path": f"{self._bridge.folder}/references/{name}"})
        return {
            **message,
            "voice": {**message["voice"], "references": references},
            "output": {**output, "path": outputs[ticket]},
        }

    # --- from the worker ----------------------------------------------------------------------------------------

    async def _receive(self) -> dict[str, Any]:
        """Until the worker has ended and all it said is told; how it ended."""
        while True:
            messages, files, lines, ended = await self._call("receive", "out")
            for line in lines:
                self._say(line)
            paths = {number: path for number, message in enumerate(messages) if (path := self._heard(message))}
            along = {n: path for n, path in paths.items() if messages[n]["ticket"] in files}
            if along:
                contents = [(path, files[messages[n]["ticket"]]) for n, path in along.items()]
                errors = await anyio.to_thread.run_sync(_write_all, contents)
                for number, error in zip(along, errors, strict=True):
                    messages[number] = _unless(error, messages[number])
            async with anyio.create_task_group() as tasks:
                for number, path in paths.items():
                    if number not in along:
                        tasks.start_soon(self._fetch, messages, number, path)
            for message in messages:
                if message is not LOST:
                    self._bridge.tell({"type": "frame", "link": self.number, "message": message})
            if ended is not None:
                result: dict[str, Any] = ended
                return result

    def _heard(self, message: Message) -> str | None:
        """Take note of what the worker says; where its file is to be written, if it should have written one."""
        if message["type"] == "hello" and isinstance(message.get("pid"), int):
            self.pid = message["pid"]
        ticket = message.get("ticket")
        if not isinstance(ticket, int) or message["type"] not in ("spoken", "encoded", "failed", "cancelled"):
            return None
        path = self._outputs.pop(ticket, None)
        return path if message["type"] in ("spoken", "encoded") else None

    async def _fetch(self, messages: list[Message], number: int, path: str) -> None:
        """The file of a message, which did not come along. What the worker did not write is not there afterwards
        either, as it would not be from a local worker."""
        async with self._bridge.fetching:
            try:
                content = await self._call("fetch", "out", messages[number]["ticket"])
            except self._bridge.cluster.ray.exceptions.RayError:
                messages[number] = LOST  # with its worker, as the next call will show: it is not spoken
                return
            if content is not None:
                (error,) = await anyio.to_thread.run_sync(_write_all, [(path, content)])
                messages[number] = _unless(error, messages[number])


def _write_all(contents: Sequence[tuple[str, bytes]]) -> list[OSError | None]:
    """Write each file to where the daemon expects it: only then may it hear that it is spoken."""
    errors: list[OSError | None] = []
    for path, content in contents:
        try:
            Path(path).write_bytes(content)
            errors.append(None)
        except OSError as error:
            errors.append(error)
    return errors


def _unless(error: OSError | None, message: Message) -> Message:
    """The message, unless its file could not be written."""
    if error is None:
        return message
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return {
        "type": "failed",
        "ticket": message["ticket"],
        "code": DISK_FULL if full else "write_failed",
        "message": f"{error.filename} can't be written: {error.strerror or error}",
        "retryable": True,
    }


def _briefly(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def pack_workers() -> bytes:
    """The package ``workers`` as an archive; equal code gives equal bytes."""
    package = Path(workers.protocol.__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.writestr(zipfile.ZipInfo(str(Path("workers") / file.relative_to(package))), file.read_bytes())
    return packed.getvalue()


# --- the process ------------------------------------------------------------------------------------------------


def take_streams() -> tuple[int, int]:
    """Descriptors for frames; what Ray and others print goes where standard error goes."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def main() -> int:
    incoming, outgoing = take_streams()
    die_with_parent()
    # Ctrl-C in a terminal reaches everyone; ending is the daemon's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decoder = FrameDecoder()
    messages: list[Message] = []
    while not messages:
        data = os.read(incoming, 1 << 16)
        if not data:
            return 0
        messages += decoder.feed(data)
    connect = messages.pop(0)
    try:
        cluster = Cluster(connect["address"])
    except Exception as error:  # noqa: BLE001 - of many kinds, and all say that there is no such cluster
        print(_briefly(error), file=sys.stderr)
        return EXIT_AWAY
    anyio.run(Bridge(cluster, connect, incoming, outgoing).run, decoder, messages)
    # The cluster ends what this driver has started.
    os._exit(0)


def die_with_parent() -> None:
    parent = os.getppid()
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(0)

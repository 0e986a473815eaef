"""The pool: carries out the core's commands on real workers, and tells the core what became of them.

``apply`` is the one way into the core. It is synchronous and never waits, so events are handled one after the other in
the order they came; what takes time (writing a frame, recording a try, storing a file) happens in tasks, which come
back with an event of their own. A message from a worker is believed only as far as it fits what that worker was given:
its ticket must be out, at that worker, in that generation.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.abc
import structlog

from daemon import files
from daemon.config import Engine, Settings
from daemon.core import events
from daemon.core.core import Core
from daemon.core.events import Command, Dispatch, Event, WorkerSpec
from daemon.flood import Bounded
from daemon.live_job import EngineIdentity
from daemon.transport import Transport
from workers.protocol import PROTOCOL_VERSION, Message

log = structlog.get_logger("dubd.pool")

DISK_FULL = "disk_full"
"""A worker could not write its file for want of space: nobody's fault, the segment is given back."""

STACKS_S = 0.3
"""How long a hung worker has to say where it hangs."""

MESSAGE_CHARACTERS = 2000
"""As much of a worker's message as is kept."""

MOST_SLOTS = 4096
"""More than any engine decodes at a time; who says more would be given all the work there is."""

MOST_RESIDENT_BYTES = 1 << 50
"""More than any machine has; what a worker says beyond is no number to reckon with."""

_SHORTEST_SLEEP_S = 0.005


@dataclass(frozen=True, slots=True)
class Ticket:
    """A dispatch that is out: what it was for, and where its file is to be."""

    number: int
    worker: int
    generation: int
    job: str
    position: int
    attempt: int
    file: Path
    began_at: float | None = None


class PoolHost(Protocol):
    """What the pool needs of the rest of the daemon."""

    def speak_message(self, ticket: int, job: str, position: int) -> tuple[Message, Path]:
        """The frame that asks for this segment, and the file it will be written to."""

    async def record_try(self, job: str, position: int, tries: int) -> None:
        """Record durably that a try is about to be made. May raise OSError."""

    def began(self, job: str, position: int, worker: int) -> tuple[str, str]:
        """The segment has begun; its job_id and speaker, for people."""

    def given_back(self, job: str, position: int) -> None: ...

    def suspected(self, job: str, position: int) -> None: ...

    def tried(self, job: str, position: int, tries: int) -> None:
        """A try was used up, and nobody has died of it."""

    def delivered(self, ticket: Ticket, message: Message, device: str) -> None: ...

    def segment_ended(self, ended: events.SegmentEnded) -> None: ...

    def job_ended(self, job: str) -> None: ...

    def disk_full(self, reason: str) -> None: ...

    def worker_changed(self) -> None:
        """Something that people see of a worker is different now."""

    def engine_known(self, identity: EngineIdentity) -> None: ...


@dataclass(slots=True)
class Handle:
    """A worker process of one generation, as far as the shell knows it."""

    worker: int
    generation: int
    gpu: int | None
    node: str
    device: str
    transport: Transport
    tickets: dict[int, Ticket] = field(default_factory=dict)
    pending: set[int] = field(default_factory=set)
    """Tickets whose try is being recorded before they are sent."""
    engine: str = ""
    asked: Engine | None = None
    """The engine that its process was started for."""
    greeted: bool = False
    """It has said hello, as a worker does before anything else."""
    ready: bool = False
    failure: str | None = None
    kill_reason: str | None = None
    activity: str = "starting"
    memory_bytes: int = 0
    job: str | None = None
    speaker: str | None = None


class Pool:
    """``make_transport`` gives a transport that has not been started and the device it is pinned to; ``hello`` the
    message that a worker for this place and device is greeted with."""

    def __init__(
        self,
        core: Core,
        host: PoolHost,
        make_transport: Callable[[WorkerSpec], tuple[Transport, str]],
        hello: Callable[[WorkerSpec, str], Message],
        settings: Settings,
    ) -> None:
        self._core = core
        self._host = host
        self._make_transport = make_transport
        self._hello = hello
        self.settings = settings
        self._handles: dict[int, Handle] = {}
        self._events: deque[Event] = deque()
        self._applying = False
        self._tasks: anyio.abc.TaskGroup | None = None
        self._oddities = 0
        self._draining = False
        self._ending = False
        self._sleeps_until = math.inf
        self._sooner = anyio.Event()
        """A deadline has come up before the one that is slept for."""
        self.identity: EngineIdentity | None = None
        self.spoken = 0

    # --- the way into the core ------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Tell the core, and do what it says. Called while an earlier event is being handled, the new one waits."""
        if self._ending:
            return
        self._events.append(event)
        if self._applying:
            return
        self._applying = True
        try:
            while self._events:
                for command in self._core.handle(self._events.popleft()):
                    self._carry_out(command)
        finally:
            self._applying = False
        if _never(self._core.next_deadline()) < self._sleeps_until:
            self._sooner.set()
        if self._core.oddities != self._oddities:
            log.warning("a worker answered for a segment it did not hold", times=self._core.oddities - self._oddities)
            self._oddities = self._core.oddities

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Hold the workers until cancelled; then every worker is killed before this returns."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            while True:
                deadline = self._core.next_deadline()
                self._sleeps_until = max(_never(deadline), anyio.current_time() + _SHORTEST_SLEEP_S)
                with anyio.CancelScope(deadline=self._sleeps_until):
                    await self._sooner.wait()
                self._sooner = anyio.Event()
                deadline = self._core.next_deadline()
                if deadline is not None and deadline <= anyio.current_time():
                    self.apply(events.Tick(anyio.current_time()))

    # --- the end --------------------------------------------------------------------------------------------

    def recall_unbegun(self) -> None:
        """Ask every worker to give back what it has not begun: the daemon drains."""
        self._draining = True
        for handle in self._handles.values():
            handle.pending.clear()
            for ticket in handle.tickets.values():
                if ticket.began_at is None:
                    handle.transport.send({"type": "recall", "ticket": ticket.number})

    def stop_listening(self) -> None:
        """From now on nothing that a worker says or does is an event: the daemon ends."""
        self._ending = True

    def ask_to_exit(self) -> None:
        for handle in self._handles.values():
            handle.transport.send({"type": "stop"})
            handle.transport.finish()

    # --- what people and status.json see --------------------------------------------------------------------

    @property
    def pids(self) -> set[int]:
        return {handle.transport.pid for handle in self._handles.values() if handle.transport.pid is not None}

    def holding(self) -> int:
        """How many segments are out at workers."""
        return sum(len(handle.tickets) for handle in self._handles.values())

    def worker_rows(self) -> list[dict[str, Any]]:
        """``workers`` of status.json."""
        rows = []
        for view in self._core.worker_views():
            handle = self._handles.get(view.worker)
            shows_activity = handle is not None and (view.in_flight > 0 or view.state == "starting")
            rows.append(
                {
                    "worker": view.worker,
                    "gpu": view.gpu,
                    "node": view.node or None,
                    "device": handle.device if handle else None,
                    "pid": handle.transport.pid if handle else None,
                    "engine": self.settings.engine.name,
                    # Its GPU is free and it starts again with the next job: to others it is ready.
                    "state": "ready" if view.state == "released" else view.state,
                    "loads": view.loads,
                    "restarts": view.restarts,
                    "recycles": view.recycles,
                    "slots": view.slots,
                    "in_flight": view.in_flight,
                    "spoken": view.spoken,
                    "activity": handle.activity if handle and shows_activity else view.state,
                    "job": handle.job if handle and handle.tickets else None,
                    "speaker": handle.speaker if handle and handle.tickets else None,
                    "memory_bytes": handle.memory_bytes if handle else 0,
                    "error": view.error,
                }
            )
        return rows

    # --- commands -------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case events.Dispatch():
                self._dispatch(command)
            case events.SegmentEnded():
                self._host.segment_ended(command)
            case events.JobEnded(job):
                self._host.job_ended(job)
            case events.Suspected(job, position):
                self._host.suspected(job, position)
            case events.Tried(job, position, tries):
                self._host.tried(job, position, tries)
            case events.Recall(worker, generation, ticket, begun):
                handle = self._handle(worker, generation)
                if handle is not None:
                    self._recall(handle, ticket, begun)
            case events.StartWorker(worker, generation, gpu, node):
                assert self._tasks is not None
                place = WorkerSpec(worker, gpu, node)
                transport, device = self._make_transport(place)
                # At once: a command that follows before the task has begun must find it.
                handle = Handle(
                    worker,
                    generation,
                    gpu,
                    node,
                    device,
                    transport,
                    engine=self.settings.engine.name,
                    asked=self.settings.engine,
                )
                self._handles[worker] = handle
                transport.send(self._hello(place, device))
                self._tasks.start_soon(self._run_worker, handle, name=f"worker {worker}")
            case events.StopWorker(worker, generation, reason):
                handle = self._handle(worker, generation)
                if handle is not None:
                    assert self._tasks is not None
                    if reason:
                        log.info("a fresh process takes the worker's place", worker=worker, reason=reason)
                    else:
                        log.info("stopping worker", worker=worker)
                    self._tasks.start_soon(self._stop_worker, handle)
            case events.KillWorker(worker, generation, reason):
                handle = self._handle(worker, generation)
                if handle is not None:
                    assert self._tasks is not None
                    self._tasks.start_soon(self._kill_hung, handle, reason)

    def _handle(self, worker: int, generation: int) -> Handle | None:
        handle = self._handles.get(worker)
        return handle if handle is not None and handle.generation == generation else None

    def _kill(self, handle: Handle, reason: str) -> None:
        if handle.kill_reason is None:
            handle.kill_reason = reason
            log.warning("killing worker", worker=handle.worker, pid=handle.transport.pid, reason=reason)
        handle.transport.kill()

    async def _kill_hung(self, handle: Handle, reason: str) -> None:
        """Kill a worker that misses its deadlines, after it was asked where it hangs: that is what mends it."""
        log.warning("worker hangs", worker=handle.worker, pid=handle.transport.pid, reason=reason)
        handle.kill_reason = reason
        handle.transport.tell_stacks()
        await anyio.sleep(STACKS_S)
        handle.transport.kill()

    async def _stop_worker(self, handle: Handle) -> None:
        handle.transport.send({"type": "stop"})
        handle.transport.finish()
        await anyio.sleep(self.settings.worker.stop_grace_s)
        if self._handles.get(handle.worker) is handle:
            self._kill(handle, f"it did not stop within {self.settings.worker.stop_grace_s:g} s")

    def _dispatch(self, command: Dispatch) -> None:
        handle = self._handle(command.worker, command.generation)
        if handle is None:
            return  # its WorkerGone is on its way, and gives the segment back
        if command.alone:
            assert self._tasks is not None
            handle.pending.add(command.ticket)
            self._tasks.start_soon(self._dispatch_alone, handle, command)
        else:
            self._send(handle, command)

    async def _dispatch_alone(self, handle: Handle, command: Dispatch) -> None:
        try:
            await self._host.record_try(command.job, command.position, command.tries)
        except OSError as error:
            self._host.disk_full(f"a try could not be recorded: {error}")
            handle.pending.discard(command.ticket)
        if self._handle(command.worker, command.generation) is not handle:
            return
        if command.ticket in handle.pending:
            handle.pending.remove(command.ticket)
            self._send(handle, command)
            return
        self._host.given_back(command.job, command.position)
        self.apply(
            events.SegmentReleased(
                anyio.current_time(), command.worker, command.generation, command.ticket, began=False, blameless=True
            )
        )

    def _recall(self, handle: Handle, ticket: int, begun: bool) -> None:
        if ticket in handle.pending:
            handle.pending.remove(ticket)  # it is given back when its try has been recorded
        else:
            handle.transport.send({"type": "cancel" if begun else "recall", "ticket": ticket})

    def _send(self, handle: Handle, command: Dispatch) -> None:
        message, file = self._host.speak_message(command.ticket, command.job, command.position)
        handle.tickets[command.ticket] = Ticket(
            command.ticket, handle.worker, handle.generation, command.job, command.position, command.attempt, file
        )
        handle.transport.send(message)

    # --- workers --------------------------------------------------------------------------------------------

    async def _run_worker(self, handle: Handle) -> None:
        worker, transport = handle.worker, handle.transport
        line = f"[Worker {worker}] Starting on {handle.device}, loading the {handle.engine} engine"
        log.info(line, worker=worker, gpu=handle.gpu)
        reason = "stopped with the daemon"
        try:
            with Bounded(lambda line: self._on_line(handle, line)) as lines:
                reason = await transport.run(lambda message: self._on_message(handle, message), lines)
        finally:
            if self._handles.get(worker) is handle:
                del self._handles[worker]
            for ticket in handle.tickets.values():
                # Nobody will finish it; the name is used by no other dispatch.
                files.discard(ticket.file)
                if (transport.lost or ticket.began_at is None) and not self._ending:
                    self._host.given_back(ticket.job, ticket.position)  # it is no suspect
        if not handle.greeted and handle.transport.pid is not None and not self._ending:
            interpreter = self.settings.worker.python or sys.executable
            reason = f"{interpreter} ended before its first word as a worker, the log has what it said: {reason}"
        reason = handle.failure or handle.kill_reason or reason
        log.info("worker has ended", worker=worker, reason=reason)
        self._host.worker_changed()
        self.apply(events.WorkerGone(anyio.current_time(), worker, handle.generation, reason, lost=transport.lost))

    def _on_line(self, handle: Handle, line: str) -> None:
        log.info("worker says", worker=handle.worker, pid=handle.transport.pid, line=line)

    def _on_message(self, handle: Handle, message: Message) -> None:
        if handle.kill_reason is not None or self._ending:
            return
        try:
            self._understand(handle, message)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            self._kill(handle, f"broke the protocol: its {message['type']!r} message is wrong: {error!r}")

    def _understand(self, handle: Handle, message: Message) -> None:
        now = anyio.current_time()
        worker, generation = handle.worker, handle.generation
        match message["type"]:
            case "beat":
                activity = str(message.get("activity", ""))[:200]
                if activity != handle.activity:
                    handle.activity = activity
                    self._host.worker_changed()
                handle.memory_bytes = _whole(message, "memory_bytes", 0)
                resident = min(max(_whole(message, "resident_bytes", 0), 0), MOST_RESIDENT_BYTES)
                self.apply(events.WorkerBeat(now, worker, generation, resident))
            case "began":
                ticket = handle.tickets.get(_whole(message, "ticket"))
                if ticket is not None and ticket.began_at is None:
                    handle.tickets[ticket.number] = Ticket(
                        ticket.number, worker, generation, ticket.job, ticket.position, ticket.attempt, ticket.file, now
                    )
                    handle.job, handle.speaker = self._host.began(ticket.job, ticket.position, worker)
                self.apply(events.SegmentBegan(now, worker, generation, _whole(message, "ticket")))
            case "spoken" | "encoded":
                number = _whole(message, "ticket")
                ticket = handle.tickets.get(number)
                if ticket is not None:
                    self._host.delivered(ticket, message, handle.device)
                    del handle.tickets[number]
                    self.spoken += 1
                self.apply(events.SegmentDelivered(now, worker, generation, number))
            case "failed" if message.get("ticket") is None:
                code, text = _text(message, "code", 100), _text(message, "message", MESSAGE_CHARACTERS)
                handle.failure = f"{code}: {text}"
                log.error("worker could not load", worker=worker, code=code, message=text)
            case "failed":
                self._failed(handle, message, now)
            case "cancelled":
                number = _whole(message, "ticket")
                ticket = handle.tickets.pop(number, None)
                if ticket is not None:
                    self._host.given_back(ticket.job, ticket.position)
                began = bool(message.get("began", False))
                self.apply(events.SegmentReleased(now, worker, generation, number, began, blameless=self._draining))
            case "hello":
                handle.greeted = True
                if message.get("protocol") != PROTOCOL_VERSION:
                    handle.failure = (
                        f"wrong_protocol: it speaks version {message.get('protocol')} of the protocol, "
                        f"the daemon {PROTOCOL_VERSION}: update the code of one of them"
                    )
                    self._kill(handle, handle.failure)
            case "ready":
                self._ready(handle, message, now)
            case other:
                raise ValueError(f"no such message: {other!r}")

    def _ready(self, handle: Handle, message: Message, now: float) -> None:
        slots = _whole(message, "slots")
        if not 1 <= slots <= MOST_SLOTS:
            raise ValueError(f"{slots} slots")
        identity = EngineIdentity(
            name=_text(message, "engine", 200),
            version=_text(message, "engine_version", 1000),
            model=_text(message, "model", 1000),
            precision=_text(message, "precision", 50, self.settings.engine.precision),
            ignored=tuple(str(name)[:100] for name in message.get("ignored", ())[:20]),
        )
        handle.ready = True
        handle.activity = "ready"
        handle.device = _text(message, "device", 50, handle.device) + (f" on {handle.node}" if handle.node else "")
        is_current = handle.asked == self.settings.engine
        if is_current:
            if self.identity is not None and self.identity != identity:
                log.warning("the engine has changed", before=self.identity.model, now=identity.model)
            self.identity = identity
        line = f"[Worker {handle.worker}] Models loaded! Ready on {handle.device}"
        log.info(line, worker=handle.worker, slots=slots, load_s=message.get("load_s"))
        if is_current:  # else it was started before the configuration changed, and is about to go
            self._host.engine_known(identity)
        self.apply(events.WorkerReady(now, handle.worker, handle.generation, slots))

    def _failed(self, handle: Handle, message: Message, now: float) -> None:
        number = _whole(message, "ticket")
        code, text = _text(message, "code", 100), _text(message, "message", MESSAGE_CHARACTERS)
        slots = None if message.get("slots") is None else _whole(message, "slots")
        ticket = handle.tickets.pop(number, None)
        if ticket is not None:
            files.discard(ticket.file)
            self._host.given_back(ticket.job, ticket.position)
            log.warning("segment failed", worker=handle.worker, position=ticket.position, code=code, message=text)
        if code == DISK_FULL:
            self._host.disk_full(text)
            self.apply(events.SegmentReleased(now, handle.worker, handle.generation, number, True, blameless=True))
            return
        self.apply(
            events.SegmentFailed(
                now,
                handle.worker,
                handle.generation,
                number,
                code,
                text,
                retryable=bool(message.get("retryable", False)),
                slots=slots,
            )
        )


def _never(deadline: float | None) -> float:
    return math.inf if deadline is None else deadline


def _whole(message: Message, name: str, default: int | None = None) -> int:
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is no whole number")
    return value


def _text(message: Message, name: str, longest: int, default: str | None = None) -> str:
    """A text that UTF-8 can hold, cut to ``longest`` characters."""
    value = message[name] if default is None else message.get(name, default)
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    value.encode("utf-8")
    return value[:longest]

"""The keeper of the finishing processes: takes what workers have delivered, gives it on finished.

The processes are started when there is work and let go when there has been none for a while, so that a daemon whose
jobs ask for nothing has none. Each holds one WAV. When it dies over it, the WAV is given to another; after ``tries``
deaths the segment is handed back as spoilt, and nobody else's is touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import anyio
import anyio.abc
import structlog

from daemon import files, one_cpu
from daemon.detached import DetachedProcess, detached_command
from daemon.finishing.settings import Settings
from daemon.flood import Bounded
from daemon.store import Delivery, Spoilt
from workers.protocol import Message

log = structlog.get_logger("dubd.finishing")

MODULE = "daemon.finishing.process"
FINISHING_FAILED = "finishing_failed"
"""The code of a segment that was spoken, and whose WAV could not be made what the job asked for."""

MOST_PROCESSES = 8
IDLE_S = 60.0
"""A process that has had nothing to do for so long gives its memory back."""

QUEUED_PER_PROCESS = 2
"""So many WAVs must wait for each process before there is one more."""

DEAD_STARTS = 3
"""Processes that end before they are ready, one after the other, until what waits for them is given up."""

RETRY_S = 2.0
"""After a full disk."""


@dataclass(slots=True)
class _Item:
    delivery: Delivery
    deaths: int = 0


@dataclass(slots=True)
class _Process:
    transport: DetachedProcess
    ready: bool = False
    item: _Item | None = None
    idle_since: float = 0.0
    last_line: str = ""
    leaving: bool = False


class Finisher:
    """``on_finished`` and ``on_spoilt`` are called in the event loop, one of them once for each delivery;
    ``on_trouble`` when the disk is full."""

    def __init__(
        self,
        on_finished: Callable[[Delivery], None],
        on_spoilt: Callable[[Spoilt], None],
        on_trouble: Callable[[str], None],
        tries: Callable[[], int],
    ) -> None:
        self._on_finished = on_finished
        self._on_spoilt = on_spoilt
        self._on_trouble = on_trouble
        self._tries = tries
        self._queue: deque[_Item] = deque()
        self._processes: list[_Process] = []
        self._most = min(MOST_PROCESSES, max(1, len(one_cpu.processors()) // 2))
        self._wake = anyio.Event()
        self._delayed = 0
        self._dead_starts = 0

    def finish(self, delivery: Delivery) -> None:
        """Finish it soon."""
        self._queue.append(_Item(delivery))
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._delayed and all(process.item is None for process in self._processes)

    async def run(self) -> None:
        """Until cancelled; the processes end with it."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._deal(tasks)
                with anyio.move_on_after(IDLE_S if self._processes else None):
                    await self._wake.wait()
                self._wake = anyio.Event()

    def _deal(self, tasks: anyio.abc.TaskGroup) -> None:
        now = anyio.current_time()
        for process in self._processes:
            if process.ready and process.item is None and not process.leaving:
                if self._queue:
                    self._give(process, self._queue.popleft(), tasks)
                elif now - process.idle_since >= IDLE_S:
                    process.leaving = True
                    process.transport.finish()
        here = sum(not process.leaving for process in self._processes)
        if here < self._most and len(self._queue) > here * QUEUED_PER_PROCESS:
            process = _Process(DetachedProcess(detached_command(MODULE)))
            self._processes.append(process)
            tasks.start_soon(self._keep, process, tasks, name="finishing process")

    def _give(self, process: _Process, item: _Item, tasks: anyio.abc.TaskGroup) -> None:
        delivery = item.delivery
        output = delivery.job.job.output
        process.item = item
        settings = Settings(
            fit=output.fit,
            max_speed=output.max_speed,
            slot_s=delivery.job.segments[delivery.position].segment.slot_s,
            loudness_lufs=output.loudness_lufs,
            trim_silence=output.trim_silence,
        )
        process.transport.send(
            {
                "type": "finish",
                "ticket": delivery.position,
                "path": str(delivery.file),
                "frames": delivery.frames,
                "sample_rate": delivery.sample_rate,
                "output": str(_finished_file(delivery)),
                "subtype": output.subtype,
                "settings": asdict(settings),
            }
        )

    async def _keep(self, process: _Process, tasks: anyio.abc.TaskGroup) -> None:
        def hear(message: Message) -> None:
            self._hear(process, message, tasks)

        def hear_line(line: str) -> None:
            process.last_line = line
            log.info("a finishing process says", pid=process.transport.pid, line=line)

        with Bounded(hear_line) as lines:
            reason = await process.transport.run(hear, lines)
        self._processes.remove(process)
        if process.item is not None:
            self._died_over(process.item, reason)
        elif not process.ready:
            self._dead_start(process, reason)
        self._wake.set()

    def _hear(self, process: _Process, message: Message, tasks: anyio.abc.TaskGroup) -> None:
        if message["type"] == "ready":
            process.ready = True
            self._dead_starts = 0
        else:
            item, process.item = process.item, None
            if item is not None:
                self._settle(item, message, tasks)
        process.idle_since = anyio.current_time()
        self._wake.set()

    def _settle(self, item: _Item, message: Message, tasks: anyio.abc.TaskGroup) -> None:
        delivery = item.delivery
        if message["type"] == "finished":
            files.discard(delivery.file)
            finished = replace(
                delivery, file=_finished_file(delivery), frames=message["frames"], finishing=message["told"]
            )
            self._on_finished(finished)
        elif message["code"] == "disk_full":
            self._on_trouble(message["message"])
            self._delayed += 1
            tasks.start_soon(self._later, item)
        else:
            self._give_up(delivery, message["code"], message["message"])

    async def _later(self, item: _Item) -> None:
        await anyio.sleep(RETRY_S)
        self._delayed -= 1
        self._queue.appendleft(item)
        self._wake.set()

    def _died_over(self, item: _Item, reason: str) -> None:
        item.deaths += 1
        live = item.delivery.job.segments[item.delivery.position]
        log.warning(
            "a finishing process has died over a segment",
            job=item.delivery.job.job_id,
            index=live.segment.index,
            deaths=item.deaths,
            reason=reason,
        )
        if item.deaths < self._tries():
            self._queue.appendleft(item)
        else:
            message = f"the process that finishes its WAV has died over it {item.deaths} times"
            self._give_up(item.delivery, FINISHING_FAILED, message)

    def _dead_start(self, process: _Process, reason: str) -> None:
        self._dead_starts += 1
        log.error("a finishing process could not start", reason=reason, last_line=process.last_line)
        if self._dead_starts >= DEAD_STARTS:
            self._dead_starts = 0
            message = f"no finishing process can be started: {process.last_line or reason}; see 'dubd doctor'"
            waiting, self._queue = self._queue, deque()
            for item in waiting:
                self._give_up(item.delivery, FINISHING_FAILED, message)

    def _give_up(self, delivery: Delivery, code: str, message: str) -> None:
        files.discard(delivery.file)
        files.discard(_finished_file(delivery))
        self._on_spoilt(Spoilt(delivery, code, message))


def _finished_file(delivery: Delivery) -> Path:
    return delivery.file.with_name(f"{delivery.file.stem}-finished{delivery.file.suffix}")

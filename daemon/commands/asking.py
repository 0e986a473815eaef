"""One worker process, started for one question, without a daemon: ``encode`` and ``doctor`` ask it.

The worker is started exactly as the daemon starts its own, so an answer here is an answer for the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from daemon.worker_process import WorkerProcess, worker_command
from workers.protocol import PROTOCOL_VERSION, Message

if TYPE_CHECKING:
    from daemon.config import Settings

LINES_KEPT = 20
"""Of the worker's standard error, the last so many lines are shown when it fails."""


class WorkerSilent(Exception):
    """The worker ended, or did not answer in time; the message says what is known of it."""


@dataclass(slots=True)
class Conversation:
    """What one worker has said. ``ready`` is its ready message; ``answer`` the one to the request, if there was one."""

    hello: Message | None = None
    ready: Message | None = None
    answer: Message | None = None
    failure: Message | None = None
    lines: list[str] = field(default_factory=list)
    ended: str | None = None


async def ask(
    settings: Settings,
    *,
    engine: str,
    device: str,
    memory_bytes: int,
    cache: str,
    request: Message | None,
    load_timeout_s: float,
    answer_timeout_s: float,
    on_activity: Callable[[str], None] = lambda activity: None,
    environ: Mapping[str, str] = os.environ,
) -> Conversation:
    """Start a worker, wait until its engine is loaded, put the request (an ``encode`` message) to it, and end it.

    ``device`` is "cpu" or "cuda:N"; ``request`` None: loading is all that is asked.

    Raises:
        WorkerSilent: it ended or said nothing within the deadlines. A failure that it names is no exception.
    """
    threads = settings.worker.threads or len(os.sched_getaffinity(0))
    command = worker_command(
        settings.worker.python,
        [str(folder) for folder in settings.worker.path],
        environ,
        gpu=device != "cpu",
        threads=threads,
    )
    transport = WorkerProcess(command)
    said = Conversation()
    moved = anyio.Event()

    def on_message(message: Message) -> None:
        match message["type"]:
            case "hello":
                said.hello = message
            case "ready":
                said.ready = message
            case "failed":
                said.failure = message
            case "beat":
                on_activity(str(message.get("activity", "")))
                return
            case "began":
                return
            case _:
                said.answer = message
        moved.set()

    def on_line(line: str) -> None:
        said.lines.append(line)
        del said.lines[:-LINES_KEPT]

    async def carry() -> None:
        said.ended = await transport.run(on_message, on_line)
        moved.set()

    async def until(condition: Callable[[], bool], seconds: float, doing: str) -> None:
        nonlocal moved
        with anyio.move_on_after(seconds) as scope:
            while not (condition() or said.failure or said.ended):
                moved = anyio.Event()
                await moved.wait()
        if scope.cancelled_caught:
            raise WorkerSilent(_with_lines(f"the worker did not finish {doing} within {seconds:g} seconds", said))
        if said.ended and not condition() and said.failure is None:
            raise WorkerSilent(_with_lines(f"the worker {said.ended} while {doing}", said))

    silent: WorkerSilent | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(carry)
        transport.send(_hello(settings, engine, device, threads, memory_bytes, cache))
        try:
            await until(lambda: said.ready is not None, load_timeout_s, "loading its engine")
            if request is not None and said.failure is None:
                transport.send(request)
                await until(lambda: said.answer is not None, answer_timeout_s, "the request")
        except WorkerSilent as error:
            silent = error
        # The worker is killed on the way out, whatever it is doing.
        tasks.cancel_scope.cancel()
    if silent is not None:
        raise silent
    return said


def _hello(settings: Settings, engine: str, device: str, threads: int, memory_bytes: int, cache: str) -> Message:
    return {
        "type": "hello",
        "protocol": PROTOCOL_VERSION,
        "worker": 0,
        "engine": {
            "name": engine,
            "checkpoint": settings.engine.checkpoint,
            "precision": settings.engine.precision,
            "slots": settings.engine.slots,
            "reproducible": settings.engine.reproducible,
            "retries": settings.engine.retries,
            "options": settings.engine.options if engine == settings.engine.name else {},
        },
        "device": device,
        "threads": threads,
        "memory_bytes": memory_bytes,
        "cache": cache,
        "beat_seconds": min(settings.worker.beat_seconds, 1.0),
    }


def _with_lines(message: str, said: Conversation) -> str:
    """The message, and what the worker wrote last."""
    return "\n".join([message + (":" if said.lines else ""), *(f"  {line}" for line in said.lines)])

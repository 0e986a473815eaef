"""One worker process as the pool sees it: a transport that carries messages both ways until it ends.

A transport knows nothing of segments. It starts the process, gives every message that comes to ``on_message``, every
line of the worker's stderr to ``on_line``, and returns from ``run`` with the reason when the process is gone and all it
had written has been handed over. ``send`` never waits: what a hung worker does not read stays in memory, bounded by
the pool's credits.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc

import workers.protocol
from workers.protocol import (
    EXIT_ENGINE_BROKE,
    EXIT_NOT_LOADED,
    EXIT_PROTOCOL_BROKEN,
    EXIT_STOPPED,
    FrameDecoder,
    Message,
    ProtocolError,
    encode_frame,
)

READ_BYTES = 1 << 16
LINE_BYTES = 8192
"""Longer lines of a worker's stderr are cut into pieces of this size: noise without line feeds must not grow."""

OnMessage = Callable[[Message], None]
OnLine = Callable[[str], None]


class Transport(Protocol):
    """What the pool needs of a worker, local or far away."""

    @property
    def pid(self) -> int | None: ...

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        """Start the worker and carry its messages until it has ended; the reason, for people."""

    def send(self, message: Message) -> None:
        """Queue one message; nothing happens when the worker has ended."""

    def finish(self) -> None:
        """Send nothing more after what is queued: the worker sees the end of its input and exits."""

    def tell_stacks(self) -> None:
        """Ask the worker to write on its stderr where each of its threads stands."""

    def kill(self) -> None:
        """End the worker at once."""


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How to start a worker: the interpreter, the folders that go first on its path, its environment."""

    python: str
    path: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def arguments(self) -> Sequence[str]:
        script = Path(workers.protocol.__file__).with_name("__main__.py")
        return [self.python, str(script), *(part for folder in self.path for part in ("--path", folder))]


def worker_command(
    python: str, path: Sequence[str], environ: Mapping[str, str], *, gpu: bool, threads: int
) -> WorkerCommand:
    """The command for a worker. Another interpreter gets none of what Python-specific variables of the daemon's own
    environment would add to its path."""
    environment = dict(environ)
    if python and Path(python) != Path(sys.executable):
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            environment.pop(name, None)
    environment.pop("NOTIFY_SOCKET", None)
    environment.pop("WATCHDOG_USEC", None)
    environment.pop("WATCHDOG_PID", None)
    # NVML counts GPUs in bus order; CUDA does only when told to.
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    environment["PYTHONUNBUFFERED"] = "1"
    return WorkerCommand(python or sys.executable, tuple(path), environment)


class WorkerProcess:
    """The local transport: a child process and three pipes. ``run`` must be called from the main thread, since the
    worker asks the kernel to be killed when the thread that forked it ends."""

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self._process: anyio.abc.Process | None = None
        self._sender, self._outgoing = anyio.create_memory_object_stream[Message](math.inf)
        self._killed = False
        self._reason: str | None = None
        self._lines_done = anyio.Event()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def send(self, message: Message) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._sender.send_nowait(message)

    def finish(self) -> None:
        self._sender.close()

    def tell_stacks(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        try:
            process = await anyio.open_process(
                self._command.arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._command.environment,
            )
        except OSError as error:
            self._close_streams()
            return f"the worker's interpreter {self._command.python!r} could not be started: {error.strerror or error}"
        self._process = process
        try:
            if self._killed:
                process.kill()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write)
                tasks.start_soon(self._read_lines, on_line)
                await self._read_messages(on_message)
                with anyio.CancelScope(shield=True):
                    await process.wait()
                # A grandchild may hold the write end of stderr open for ever; what has come is what counts.
                with anyio.move_on_after(0.5):
                    await self._lines_done.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        await stream.aclose()
            self._close_streams()
        return self._reason or _ending(process.returncode)

    def _close_streams(self) -> None:
        self._sender.close()
        self._outgoing.close()

    async def _write(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        stdin = self._process.stdin
        try:
            async for message in self._outgoing:
                frames = [encode_frame(message)]
                while self._outgoing.statistics().current_buffer_used:
                    frames.append(encode_frame(self._outgoing.receive_nowait()))
                await stdin.send(b"".join(frames))
            await stdin.aclose()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            # It has closed its input: it is ending, and the reader will see that.
            pass

    async def _read_messages(self, on_message: OnMessage) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        decoder = FrameDecoder()
        try:
            async for data in self._process.stdout:
                for message in decoder.feed(data):
                    on_message(message)
        except ProtocolError as error:
            self._reason = f"broke the protocol: {error}"
            self._process.kill()
        except (anyio.BrokenResourceError, OSError) as error:
            self._reason = f"its pipe broke: {error}"
            self._process.kill()

    async def _read_lines(self, on_line: OnLine) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        rest = b""
        try:
            async for data in self._process.stderr:
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                if len(rest) > LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    if line.strip():
                        on_line(line[:LINE_BYTES].decode("utf-8", "replace"))
        except (anyio.BrokenResourceError, OSError):
            pass
        finally:
            if rest.strip():
                on_line(rest.decode("utf-8", "replace"))
            self._lines_done.set()


_MEANINGS = {
    EXIT_STOPPED: "stopped as it was told",
    EXIT_ENGINE_BROKE: "its engine broke; the story is in its lines above",
    EXIT_NOT_LOADED: "its engine could not be loaded",
    EXIT_PROTOCOL_BROKEN: "could not read what the daemon sent",
}


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "ended"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = " (out of memory on this machine?)" if -returncode == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    return _MEANINGS.get(returncode, f"exited with status {returncode}")

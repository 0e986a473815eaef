"""A worker as a child process of the daemon's own: the local transport (see daemon/transport.py).

It starts the process, reads its pipes, and says how it ended once all that it had written has been handed over. What a
hung worker does not read stays in memory, bounded by the pool's credits.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel

import workers.protocol
from daemon import one_cpu
from daemon.transport import OnLine, OnMessage
from daemon.worker_environment import worker_environment
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

LINES_AT_ONCE = 64
"""After so many lines the others get their turn: a worker that floods its stderr is held up, and nobody else."""

EXIT_GRACE_S = 5.0
"""How long a worker may take to exit once it has closed its end of the pipe and can say nothing more."""

DRAIN_S = 2.0
"""How long what a dead worker has said is waited for, where something that it left behind keeps its pipes open."""


class ChildCommand(Protocol):
    """How to start a child process that speaks in frames."""

    @property
    def python(self) -> str: ...

    @property
    def arguments(self) -> Sequence[str]: ...

    @property
    def environment(self) -> Mapping[str, str]: ...


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
    own_python = not python or Path(python) == Path(sys.executable)
    environment = worker_environment(environ, own_python=own_python, gpu=gpu, threads=threads)
    return WorkerCommand(python or sys.executable, tuple(path), environment)


class _Pipe:
    """A pipe of ours, closed with its scope. Not a stream of the subprocess: that would wait for every process that
    holds the other end, and a worker's forks hold it as well as the worker."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._open = {self.reader, self.writer}

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_exception: object) -> None:
        for descriptor in list(self._open):
            self.close(descriptor)

    def close(self, descriptor: int) -> None:
        """Close one end; closing it again does nothing."""
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)

    async def receive(self) -> bytes:
        """What has come; nothing at the end."""
        os.set_blocking(self.reader, False)
        while True:
            await anyio.wait_readable(self.reader)
            with contextlib.suppress(BlockingIOError):
                return os.read(self.reader, READ_BYTES)

    async def send(self, data: bytes) -> None:
        """Raises OSError: nobody reads any more."""
        os.set_blocking(self.writer, False)
        left = memoryview(data)
        while left:
            await anyio.wait_writable(self.writer)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self.writer, left) :]


class WorkerProcess:
    """The local transport: a child process and three pipes. ``run`` must be called from the main thread, since the
    worker asks the kernel to be killed when the thread that forked it ends."""

    lost = False

    def __init__(self, command: ChildCommand) -> None:
        self._command = command
        self._process: anyio.abc.Process | None = None
        self._sender, self._outgoing = anyio.create_memory_object_stream[Message](math.inf)
        self._killed = False
        self._reason: str | None = None
        self._spoke = False
        self._told = False
        self._could_not_load = False
        self._messages_done = anyio.Event()
        self._lines_done = anyio.Event()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def send(self, message: Message) -> None:
        self._told = self._told or message["type"] == "stop"
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._sender.send_nowait(message)

    def finish(self) -> None:
        self._told = True
        self._sender.close()

    def tell_stacks(self) -> None:
        self._signal(signal.SIGUSR1)

    def kill(self) -> None:
        self._killed = True
        self._signal(signal.SIGKILL)
        if self._process is not None and self._process.returncode is None:
            self._kill_group(self._process.pid)

    def _kill_group(self, pid: int) -> None:
        """What a worker, or the script that starts it, has left running. Called before its end is collected, or right
        after it: as long as any of the group lives its number is nobody else's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            # It may have ended without our having heard of it yet.
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        with _Pipe() as stdin, _Pipe() as stdout, _Pipe() as stderr:
            try:
                with one_cpu.anywhere():
                    process = await anyio.open_process(
                        self._command.arguments,
                        stdin=stdin.reader,
                        stdout=stdout.writer,
                        stderr=stderr.writer,
                        env=self._command.environment,
                        # A group of its own, to be killed with all that it has started.
                        start_new_session=True,
                    )
            except OSError as error:
                why = error.strerror or error
                self._close_streams()
                return f"the worker's interpreter {self._command.python!r} could not be started: {why}"
            self._process = process
            for pipe, end in ((stdin, stdin.reader), (stdout, stdout.writer), (stderr, stderr.writer)):
                pipe.close(end)
            try:
                if self._killed:
                    self.kill()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._write, stdin)
                    tasks.start_soon(self._read_messages, stdout, on_message)
                    tasks.start_soon(self._read_lines, stderr, on_line)
                    tasks.start_soon(self._end_when_silent, process)
                    await self._ended(process)
                    # Processes that it leaves behind may hold its pipes open for ever; what has come is what counts.
                    with anyio.move_on_after(DRAIN_S):
                        await self._messages_done.wait()
                        await self._lines_done.wait()
                    tasks.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    self.kill()
                    await process.wait()
                self._close_streams()
        return self._reason or ending(
            process.returncode, spoke=self._spoke, told=self._told, could_not_load=self._could_not_load
        )

    async def _ended(self, process: anyio.abc.Process) -> None:
        await process.wait()
        self._kill_group(process.pid)

    async def _end_when_silent(self, process: anyio.abc.Process) -> None:
        """A worker whose end of the pipe is closed can say nothing more, and has no business left but to exit."""
        await self._messages_done.wait()
        await anyio.sleep(EXIT_GRACE_S)
        if process.returncode is None:
            self._reason = self._reason or f"closed its pipe and did not exit within {EXIT_GRACE_S:g} s"
            self.kill()

    def _close_streams(self) -> None:
        self._sender.close()
        self._outgoing.close()

    async def _write(self, stdin: _Pipe) -> None:
        with contextlib.suppress(OSError):  # it has closed its input: it is ending, and the reader will see that
            async for message in self._outgoing:
                frames = [encode_frame(message)]
                while self._outgoing.statistics().current_buffer_used:
                    frames.append(encode_frame(self._outgoing.receive_nowait()))
                await stdin.send(b"".join(frames))
        stdin.close(stdin.writer)

    async def _read_messages(self, stdout: _Pipe, on_message: OnMessage) -> None:
        decoder = FrameDecoder()
        try:
            while data := await stdout.receive():
                self._spoke = True
                for message in decoder.feed(data):
                    self._could_not_load |= message["type"] == "failed" and message.get("ticket") is None
                    on_message(message)
        except ProtocolError as error:
            self._reason = f"broke the protocol: {error}"
            self.kill()
        except OSError as error:
            self._reason = f"its pipe broke: {error}"
            self.kill()
        self._messages_done.set()

    async def _read_lines(self, stderr: _Pipe, on_line: OnLine) -> None:
        rest = b""
        said = 0
        try:
            while data := await stderr.receive():
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                if len(rest) >= LINE_BYTES:
                    whole = len(rest) - len(rest) % LINE_BYTES
                    lines, rest = [*lines, rest[:whole]], rest[whole:]
                for line in lines:
                    for start in range(0, len(line), LINE_BYTES):
                        if (piece := line[start : start + LINE_BYTES]).strip():
                            on_line(piece.decode("utf-8", "replace"))
                            said += 1
                            if said % LINES_AT_ONCE == 0:
                                await anyio.lowlevel.checkpoint()
        except OSError:
            pass
        finally:
            if rest.strip():
                on_line(rest.decode("utf-8", "replace"))
            self._lines_done.set()


_MEANINGS = {
    EXIT_STOPPED: "stopped as it was told",
    EXIT_ENGINE_BROKE: "its engine broke; the log has what it said",
    EXIT_NOT_LOADED: "its engine could not be loaded",
    EXIT_PROTOCOL_BROKEN: "could not read what the daemon sent, unless its engine ended it with this status",
}


def ending(returncode: int | None, *, spoke: bool, told: bool = True, could_not_load: bool = True) -> str:
    """How a worker's process has ended, in words. ``spoke``: it has said something, as a worker does at once; else its
    status may mean anything. ``told``: it was told to end. ``could_not_load``: it has said so."""
    if returncode is None:
        return "ended"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        hint = " (out of memory on this machine?)" if -returncode == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    plain = f"exited with status {returncode}"
    if (returncode == EXIT_STOPPED and not told) or (returncode == EXIT_NOT_LOADED and not could_not_load):
        return f"{plain} and was not told to: its engine has ended the process" if spoke else plain
    if spoke and returncode == EXIT_PROTOCOL_BROKEN:
        return f"{plain}: {_MEANINGS[returncode]}"
    return _MEANINGS.get(returncode, plain) if spoke else plain

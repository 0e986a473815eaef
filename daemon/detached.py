"""A process of the daemon that is not its child: the same transport as a worker's, to a process that left home at once.

The daemon's children are its workers and nothing else, so that whoever counts or kills them knows what they are. What
else needs a process (finishing, hooks) is started by ``detached_main``, which forks, and whose first half ends before
anything else happens: the other half belongs to init. It says its process id in its first message; from then on it is
held by a descriptor, which can't come to mean another process. It ends when its pipe does: with the daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio.abc

from daemon.transport import OnLine, OnMessage
from daemon.worker_process import WorkerCommand, WorkerProcess, worker_command
from workers.protocol import Message


class DetachedCommand(WorkerCommand):
    """``python`` runs a module of the daemon's own, whose name stands in ``path``."""

    @property
    def arguments(self) -> Sequence[str]:
        # -P: neither this folder's modules nor the current directory's may pass for others.
        return [self.python, "-P", str(Path(__file__).with_name("detached_main.py")), *self.path]


def detached_command(module: str) -> DetachedCommand:
    """Start ``module``, whose ``main(incoming, outgoing)`` is given the descriptors of the frames."""
    base = worker_command("", (), os.environ, gpu=False, threads=1)
    return DetachedCommand(sys.executable, (module,), base.environment)


class DetachedProcess(WorkerProcess):
    """The transport. Its reasons for an end are poor: nobody but init learns the exit status."""

    def __init__(self, command: DetachedCommand) -> None:
        super().__init__(command)
        self._grown_pid: int | None = None
        self._handle: int | None = None

    @property
    def pid(self) -> int | None:
        return self._grown_pid

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        def hear(message: Message) -> None:
            if message["type"] == "hello":
                self._take_hold(message["pid"])
            else:
                on_message(message)

        try:
            return await super().run(hear, on_line)
        finally:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None
            self._reap()

    def _take_hold(self, pid: int) -> None:
        self._grown_pid = pid
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)
        if self._killed:
            self.kill()

    async def _ended(self, process: anyio.abc.Process) -> None:
        status = await process.wait()
        if status:
            self._reason = f"could not be started: exit status {status}"
            return
        await self._messages_done.wait()
        self._reason = self._reason or "it is gone"

    async def _end_when_silent(self, process: anyio.abc.Process) -> None:
        """Its silence is its end."""

    def _signal(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def _reap(self) -> None:
        """Where the daemon itself is the init of a container, what has left it comes back to it as a zombie."""
        if self._grown_pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._grown_pid, os.WNOHANG)

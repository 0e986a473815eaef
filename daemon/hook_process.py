"""Runs one hook, on behalf of a daemon that it does not belong to: its time, its output, its end.

    < hello  {pid}
    > run    {arguments, environment, timeout_s}
    < line   {line}              what the command writes on standard output and error, line by line
    < ended  {status, error, timed_out, left_out}

``status`` is the exit status, or minus the signal that ended it, null when it could not be started, for the reason in
``error``; ``left_out``: lines that were too many to be passed on. The command is started without a shell, in a session
of its own. All its group is told to end when its time is over, and killed ``GRACE_S`` later; at once when the pipe ends
or SIGTERM comes, which is when the daemon ends. Only the standard library: it has to start quickly.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from typing import Any

from workers.protocol import FrameDecoder, Message, encode_frame

GRACE_S = 2.0
LINE_BYTES = 2000
"""Longer ones are cut into pieces."""

MOST_LINES = 500
READ_BYTES = 1 << 16


class _Output:
    """Lines for the daemon, as many as it is to have."""

    def __init__(self, outgoing: int) -> None:
        self._outgoing = outgoing
        self._rest = b""
        self._told = 0
        self.left_out = 0

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        while len(self._rest) >= LINE_BYTES:
            lines, self._rest = [*lines, self._rest[:LINE_BYTES]], self._rest[LINE_BYTES:]
        for line in lines:
            for start in range(0, len(line), LINE_BYTES):
                self._tell(line[start : start + LINE_BYTES])

    def end(self) -> None:
        self._tell(self._rest)

    def _tell(self, line: bytes) -> None:
        if not line.strip():
            return
        if self._told == MOST_LINES:
            self.left_out += 1
            return
        self._told += 1
        _send(self._outgoing, {"type": "line", "line": line.decode("utf-8", "replace")})


def main(incoming: int, outgoing: int) -> int:
    """Run one command; the exit status, of which nobody learns."""
    _send(outgoing, {"type": "hello", "pid": os.getpid()})
    request = _receive(incoming)
    try:
        command = subprocess.Popen(
            request["arguments"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=request["environment"],
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _send(outgoing, {"type": "ended", "status": None, "error": reason, "timed_out": False, "left_out": 0})
        return 0

    def end_with_daemon(*_signal: Any) -> None:
        _kill(command, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end_with_daemon)
    output = _Output(outgoing)
    timed_out = _follow(command, incoming, output, request["timeout_s"], end_with_daemon)
    output.end()
    ended = {"status": command.returncode, "error": None, "timed_out": timed_out, "left_out": output.left_out}
    _send(outgoing, {"type": "ended", **ended})
    return 0


def _follow(command: subprocess.Popen[bytes], incoming: int, output: _Output, timeout_s: float, leave: Any) -> bool:
    """Until the command has ended and its output too, or nothing has come for a while of what it left behind; whether
    it took too long. ``leave`` is called when the daemon has gone."""
    assert command.stdout is not None
    stdout = command.stdout.fileno()
    child = os.pidfd_open(command.pid)
    open_ends = {incoming, stdout, child}
    deadline: float | None = time.monotonic() + timeout_s
    timed_out = False
    while {stdout, child} & open_ends:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(list(open_ends), [], [], wait)
        if incoming in ready:
            leave()
        if stdout in ready:
            if data := os.read(stdout, READ_BYTES):
                output.take(data)
            else:
                open_ends.remove(stdout)
        if child in ready:
            command.wait()
            open_ends.remove(child)
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() >= deadline:
            if child not in open_ends:
                break  # what it has left behind goes on without us
            _kill(command, signal.SIGKILL if timed_out else signal.SIGTERM)
            deadline = None if timed_out else time.monotonic() + GRACE_S
            timed_out = True
    if timed_out:
        _kill(command, signal.SIGKILL)
    return timed_out


def _kill(command: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(command.pid, number)


def _send(outgoing: int, message: Message) -> None:
    frame = encode_frame(message)
    # A daemon that has gone is seen by its end of the other pipe.
    with contextlib.suppress(BrokenPipeError):
        while frame:
            frame = frame[os.write(outgoing, frame) :]


def _receive(incoming: int) -> Message:
    decoder = FrameDecoder()
    while data := os.read(incoming, READ_BYTES):
        for message in decoder.feed(data):
            return message
    os._exit(0)

"""The pipe between the daemon and a worker: frames, and the messages inside them.

A frame is an unsigned 32-bit big-endian length and that many bytes of UTF-8 JSON, one object with a
``type``. The daemon writes to the worker's standard input and reads from a private copy of its standard
output; nothing else travels there. Audio never does: it goes by file.

The life of a worker, seen on the pipe (``>`` from the daemon, ``<`` from the worker)::

    > hello     {protocol, worker, engine{name, checkpoint, precision, slots, reproducible, retries, options},
                 device, threads, memory_bytes, cache, beat_seconds}
    < hello     {protocol, pid, python}                       at once, before anything heavy is imported
    < ready     {engine, engine_version, model, slots, sample_rate, device, load_s, ignored}
                                                              or failed {ticket: null, code, message} and exit
    > speak     {ticket, text, language, voice, parameters, output}
    < began     {ticket}                                      the segment has taken a slot
    < spoken    {ticket, frames, sample_rate, seed, truncated, generate_s, ...}
    < failed    {ticket, code, message, retryable, slots?}    slots: how many are left after running out of memory
    > recall    {ticket}                                      to give back if it has not begun; else no answer
    > cancel    {ticket}                                      to give back if it has not ended; else no answer
    < cancelled {ticket, began}                               given back; no WAV will follow
    > encode    {ticket, voice, output}                       a reference recording to codec codes (.npy)
    < encoded   {ticket, frames, generate_s}
    < beat      {in_flight, memory_bytes, resident_bytes, activity}
                                                              every beat_seconds, also while loading
    > stop      {}                                            finish nothing more, exit 0

``voice`` is ``{id, references: [{path, kind: "audio"|"codes", sha256, text}]}``; ``parameters`` is
``{seed, temperature, top_p, repetition_penalty, max_new_tokens}``; ``output`` is ``{path, sample_rate,
subtype}``. A worker answers each ticket exactly once, with ``spoken``, ``encoded``, ``failed`` or
``cancelled``; the other side must not rely on it. A worker that loses its footing (an engine that raises while
several segments are running) answers nothing and exits: which of them was to blame is found by speaking them alone.

A reader ignores fields that it does not know; a type that it does not know ends the conversation. The end of the
worker's standard input ends the worker, at once, whatever it is doing.

This module is pure: bytes in, messages out, no file and no process. Both sides import it, and the worker's
side may run in another Python environment, so it needs the standard library alone and Python 3.10.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

PROTOCOL_VERSION = 2

EXIT_STOPPED = 0
"""Told to stop, or the daemon is gone."""
EXIT_ENGINE_BROKE = 1
"""The engine raised what it must not; the traceback is on standard error."""
EXIT_NOT_LOADED = 3
"""The engine could not be loaded; a ``failed`` without a ticket says why."""
EXIT_PROTOCOL_BROKEN = 4
"""What came from the daemon made no sense; standard error says what."""

MAX_FRAME_BYTES = 1 << 20
"""Largest body of a frame. The largest honest one, a 2,000-character text with four references of 2,000
characters each, stays under 64 KiB even when every character is escaped."""

_LENGTH = struct.Struct(">I")

Message = dict[str, Any]


class ProtocolError(Exception):
    """What came is not a frame of ours; the stream can't be read any further."""


def encode_frame(message: Message) -> bytes:
    """One message as one frame.

    Raises:
        ProtocolError: the message is larger than MAX_FRAME_BYTES.
        ValueError: the message holds a value that JSON can't hold (NaN, an infinity).
    """
    body = json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Takes bytes as they come, gives whole messages. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages completed by ``data``, in order.

        Raises:
            ProtocolError: an oversized frame, a body that is not JSON, or one that is not an object with
                a string ``type``. The messages before it have been given out already.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame announces {length} bytes; the limit is {MAX_FRAME_BYTES}")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield _parse(body)
        finally:
            del self._buffer[:start]

    @property
    def unfinished(self) -> int:
        """Bytes held of a frame that has not come whole."""
        return len(self._buffer)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(body)} bytes is not JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a frame is not an object with a type")
    return message


class FrameWriter:
    """Writes whole frames from any thread. A broken pipe ends the process: nobody is there to work for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        frame = memoryview(encode_frame(message))
        with self._lock:
            try:
                while frame:
                    frame = frame[os.write(self._descriptor, frame) :]
            except OSError:
                os._exit(EXIT_STOPPED)

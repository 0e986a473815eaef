"""One finishing process, between its pipe and the WAVs it is given, one at a time.

    < hello     {pid}
    < ready     {}                                                   the libraries are there
    > finish    {ticket, path, frames, sample_rate, output, subtype, settings}
    < finished  {ticket, frames, told}                               ``output`` is written and closed
    < failed    {ticket, code, message}    bad_audio: it is not what the worker said; disk_full; finishing_failed

``settings`` are those of ``settings.Settings``. The process ends with its pipe, and after ``PATIENCE_S`` over one WAV
by an alarm that the kernel sees to, so that no library can hang it for ever.
"""

from __future__ import annotations

import errno
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from daemon import files
from workers.protocol import FrameDecoder, Message, ProtocolError, encode_frame

READ_BYTES = 1 << 16
PATIENCE_S = 60.0
"""For one WAV; a minute of speech takes a second or two."""

SECONDS_PER_MEGABYTE = 1.0
"""And so much more for long ones."""

MEMORY_BYTES = 6 << 30
"""Address space: half an hour of speech needs less. What asks for more fails alone."""

MAX_FILE_BYTES = 1 << 30
MESSAGE_CHARACTERS = 1000
FILE_MODE = 0o664

_NO_WAV = f"the worker's file is not a regular file of at most {MAX_FILE_BYTES} bytes"


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(incoming: int, outgoing: int) -> int:
    """Serve until the pipe ends; the exit status."""

    def send(message: Message) -> None:
        frame = encode_frame(message)
        try:
            while frame:
                frame = frame[os.write(outgoing, frame) :]
        except OSError:
            os._exit(0)

    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(incoming, messages), name="reader", daemon=True).start()
    send({"type": "hello", "pid": os.getpid()})
    # Speaking comes first: what feeds a GPU must not wait for what comes after it.
    os.nice(5)
    import daemon.finishing.steps  # noqa: F401 - so that the first WAV is not charged with it

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    send({"type": "ready"})
    while True:
        message = messages.get()
        send({"ticket": message["ticket"], **_answer(message)})


def _read(incoming: int, messages: queue.SimpleQueue[Message]) -> None:
    """The reader thread."""
    decoder = FrameDecoder()
    try:
        while data := os.read(incoming, READ_BYTES):
            for message in decoder.feed(data):
                messages.put(message)
    except (OSError, ProtocolError) as error:
        print(f"the daemon's frames can't be read: {error}", file=sys.stderr, flush=True)
    os._exit(0)


def _answer(message: Message) -> Message:
    try:
        frames, told = _finish(message)
    except _Refused as refused:
        return _failed(refused.code, str(refused))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _failed("disk_full", f"a finished WAV could not be written: {error.strerror}")
        return _failed("finishing_failed", f"{type(error).__name__}: {error}")
    except MemoryError:
        return _failed("finishing_failed", "there is not enough memory to finish a WAV of this length")
    except Exception as error:  # noqa: BLE001 - libraries raise anything; the next WAV is none the worse for it
        traceback.print_exc()
        return _failed("finishing_failed", f"{type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"type": "finished", "frames": frames, "told": told}


def _failed(code: str, message: str) -> Message:
    text = message[:MESSAGE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    return {"type": "failed", "code": code, "message": text}


def _finish(message: Message) -> tuple[int, dict[str, Any]]:
    from daemon.finishing import steps
    from daemon.finishing.settings import Settings

    samples, size = _samples(message)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S + size / 1e6 * SECONDS_PER_MEGABYTE)
    rate = int(message["sample_rate"])
    finished, told = steps.finish(samples, rate, Settings(**message["settings"]))
    _write(Path(message["output"]), finished, rate, message["subtype"])
    return len(finished), told


def _samples(message: Message) -> tuple[Any, int]:
    """The worker's WAV as the steps take it, and its size in bytes. Nothing that it could have put there may hang or
    mislead."""
    import numpy as np
    import soundfile

    try:
        descriptor = files.open_regular(message["path"])
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _Refused("bad_audio", _NO_WAV) from error
        raise _Refused("no_audio", f"the worker said it had written the audio, but: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if status.st_size > MAX_FILE_BYTES:
            raise _Refused("bad_audio", _NO_WAV)
        try:
            # By its descriptor: for a Python object libsndfile needs memory that is both writable and executable.
            with soundfile.SoundFile(descriptor, closefd=False) as wav:
                found = (wav.frames, wav.samplerate)
                if found != (message["frames"], message["sample_rate"]) or not wav.frames:
                    raise _Refused(
                        "bad_audio",
                        f"the worker announced {message['frames']} samples at {message['sample_rate']} Hz, "
                        f"its file holds {found[0]} at {found[1]} Hz",
                    )
                samples = wav.read(dtype="float32")
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
            raise _Refused("bad_audio", f"the worker's file can't be read as audio: {error}") from error
    finally:
        os.close(descriptor)
    if not np.isfinite(samples).all():
        raise _Refused("bad_audio", "the worker's file holds samples that are no numbers")
    return samples, status.st_size


def _write(path: Path, samples: Any, rate: int, subtype: str) -> None:
    """The WAV under ``path``, closed, not synced: that is the daemon's business."""
    import soundfile

    # In memory first: of an error while writing libsndfile knows only that there was one.
    memory = os.memfd_create("finished", os.MFD_CLOEXEC)
    with os.fdopen(memory, "rb") as copy:
        soundfile.write(memory, samples, rate, subtype=subtype, format="WAV", closefd=False)
        copy.seek(0)
        content = bytearray(copy.read())
    peak = content.find(b"PEAK", 12, 128)
    if peak >= 0 and subtype in ("FLOAT", "DOUBLE"):
        content[peak + 12 : peak + 16] = bytes(4)  # the time of writing: equal samples are to be equal files
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, FILE_MODE), "wb") as file:
        file.write(content)

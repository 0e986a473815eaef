"""A third-party engine for tests: it goes wrong in the ways that a marker in the text asks for.

Named ``faulty:Faulty`` with this folder in ``worker.path``. A text without a marker is spoken at once, as silence.
Markers stand anywhere in the text, in braces; a path after the name limits the fault to the first time, which the
file at that path remembers (``{crash /tmp/once}``):

===================== ==================================================================================
``{crash}``           dies by SIGSEGV inside C
``{kill}``            dies by SIGKILL, as by the kernel when memory runs out
``{exit}``            ends with status 7 and not a word
``{hang}``            sleeps in C for an hour; the other threads, and so the beats, go on
``{freeze}``          the same holding the interpreter's lock: no thread moves, no beat comes
``{wait}``            never ends, but goes on stepping; can be cancelled
``{raise}``           raises out of step()
``{raise-submit}``    raises out of submit()
``{fail}``            fails; another try may succeed
``{refuse}``          fails for good
``{disk}``            finds the disk full
``{memory}``          runs out of memory; gives up half of its slots
``{memory-batch}``    runs out of memory, but not when it is alone
``{lie-missing}``     says that it was spoken and leaves no file
``{lie-frames}``      says one frame more than the file has
``{lie-torn}``        leaves half a file
``{lie-noise}``       leaves a file that is no WAV
``{lie-ticket}``      answers another ticket as well, which nobody gave it
``{lie-twice}``       answers twice
``{print}``           prints by Python, by C and by a child process before it speaks
===================== ==================================================================================

Options: ``load`` is one of fail, raise, crash, exit, hang, print; ``load_once``, a path, limits it to the first
load; ``slots``. The standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time

from workers.engine import DISK_FULL, EngineError, Failed, Segment, Settings, Spoken
from workers.wav import silent_wav

SAMPLE_RATE = 44_100
FRAMES = 4_410
MARKER = re.compile(r"\{([a-z-]+)(?: ([^}]+))?\}")


class Faulty:
    """See the module's text; the contract is workers.engine.Engine."""

    name = "faulty"
    version = "1"
    model = "faulty"
    sample_rate = SAMPLE_RATE
    ignored: tuple[str, ...] = ("temperature", "top_p")

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.slots or 4
        self.device = settings.device
        self._options = settings.options
        self._running: dict[int, Segment] = {}

    def load(self) -> None:
        fault = self._options.get("load")
        once = self._options.get("load_once")
        if fault is None or (once is not None and not _first_time(str(once))):
            return
        if fault == "fail":
            raise EngineError("checkpoint_missing", "the checkpoint is not there; this is what was asked for")
        if fault == "raise":
            raise RuntimeError("loading went wrong in a way nobody thought of")
        if fault == "print":
            _print_everywhere()
        else:
            _go_wrong(str(fault))

    def submit(self, segment: Segment) -> None:
        if _fault_of(segment) == "raise-submit" and _strikes(segment):
            raise RuntimeError("submit broke, as the text asked")
        self._running[segment.ticket] = segment

    def step(self) -> list[Spoken | Failed]:
        outcomes: list[Spoken | Failed] = []
        for segment in list(self._running.values()):
            if _fault_of(segment) == "wait":
                continue
            outcomes += self._speak(segment)
            self._running.pop(segment.ticket, None)
        if not outcomes:
            time.sleep(0.01)
        return outcomes

    def _speak(self, segment: Segment) -> list[Spoken | Failed]:
        fault = _fault_of(segment)
        if fault is not None and not _strikes(segment):
            fault = None
        if fault == "raise":
            raise RuntimeError("step broke, as the text asked")
        if fault == "fail":
            return [Failed(segment.ticket, "faulty", "failed, as the text asked", True)]
        if fault == "refuse":
            return [Failed(segment.ticket, "faulty_for_good", "failed for good, as the text asked", False)]
        if fault == "disk":
            return [Failed(segment.ticket, DISK_FULL, "no space left on device, as the text asked", True)]
        if fault == "memory" or (fault == "memory-batch" and len(self._running) > 1):
            self.slots = max(1, self.slots // 2)
            return [Failed(segment.ticket, "out_of_memory", "out of memory, as the text asked", True, self.slots)]
        if fault == "print":
            _print_everywhere()
        elif fault is not None and not fault.startswith(("lie-", "memory")):
            _go_wrong(fault)
        return self._write(segment, fault)

    def _write(self, segment: Segment, fault: str | None) -> list[Spoken | Failed]:
        content = silent_wav(FRAMES, segment.sample_rate or SAMPLE_RATE, segment.subtype)
        if fault == "lie-torn":
            content = content[: len(content) // 2]
        if fault == "lie-noise":
            content = b"this is not a WAV" * 100
        if fault != "lie-missing":
            with open(segment.path, "wb") as file:
                file.write(content)
        frames = FRAMES + 1 if fault == "lie-frames" else FRAMES
        spoken = Spoken(segment.ticket, frames, segment.sample_rate or SAMPLE_RATE, segment.seed, 0.0)
        if fault == "lie-ticket":
            return [Spoken(segment.ticket + 1_000_000, FRAMES, SAMPLE_RATE, 0, 0.0), spoken]
        return [spoken, spoken] if fault == "lie-twice" else [spoken]

    def cancel(self, ticket: int) -> bool:
        return self._running.pop(ticket, None) is not None

    def activity(self) -> str:
        return f"misbehaving with {len(self._running)} segments"

    def close(self) -> None:
        self._running.clear()


def _fault_of(segment: Segment) -> str | None:
    match = MARKER.search(segment.text)
    return None if match is None else match[1]


def _strikes(segment: Segment) -> bool:
    """Whether the marker's fault is due: always, or the first time only when it names a file."""
    match = MARKER.search(segment.text)
    return match is not None and (match[2] is None or _first_time(match[2]))


def _first_time(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _go_wrong(fault: str) -> None:
    if fault == "crash":
        ctypes.string_at(1)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "exit":
        os._exit(7)
    elif fault == "hang":
        ctypes.CDLL(None).sleep(3_600)
    elif fault == "freeze":
        # PyDLL, unlike CDLL, keeps the interpreter's lock during the call.
        ctypes.PyDLL(None).sleep(3_600)
    else:
        raise ValueError(f"no fault is called {fault!r}")


def _print_everywhere() -> None:
    print("printed by Python on standard output")
    sys.stdout.flush()
    os.write(1, b"written to descriptor 1\n")
    library = ctypes.CDLL(None)
    library.puts(b"put by C on standard output")
    library.fflush(None)
    subprocess.run(["echo", "echoed by a child process"], check=True)

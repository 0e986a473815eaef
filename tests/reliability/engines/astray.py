"""An engine that goes astray in the way that a text names in braces, ``{habit}``; any other text is spoken as silence.

Named ``astray:Astray`` with this folder in ``worker.path``. The standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import locale
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from workers.engine import EngineError, Failed, Segment, Settings, Spoken
from workers.wav import silent_wav

RATE = 8_000
FRAMES = 800
FLOOD_LINES = 200_000
FOR_EVER_S = 3_600


def _fork_sleeper(*, twice: bool = False) -> None:
    if os.fork() == 0:
        if twice and os.fork():
            os._exit(0)
        time.sleep(FOR_EVER_S)
        os._exit(0)


def _starve() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        limit = int(file.read().split()[0]) * 4096 + (100 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    held = []
    while True:
        held.append(bytearray(1 << 20))


def _recurse(depth: int = 0) -> int:
    return _recurse(depth + 1) + 1


def _ignore_signals() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def _close(first: int, last: int) -> None:
    os.closerange(first, last)


def _raise(error: BaseException) -> None:
    raise error


def _fork_and(end: Callable[[], Any]) -> None:
    _fork_sleeper()
    end()


def _thread() -> None:
    threading.Thread(target=time.sleep, args=(FOR_EVER_S,)).start()


ACTS: dict[str, Callable[[], Any]] = {
    "raise": lambda: _raise(RuntimeError("what nobody thought of \x1b[2J\n{}")),
    "raise-empty": lambda: _raise(Exception()),
    "raise-surrogate": lambda: _raise(ValueError("\ud800 \x00")),
    "raise-huge": lambda: _raise(ValueError("x" * (5 << 20))),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "generator-exit": lambda: _raise(GeneratorExit()),
    "sys-exit": lambda: sys.exit(0),
    "sys-exit-text": lambda: sys.exit("a last word"),
    **{f"exit-{status}": lambda status=status: os._exit(status) for status in (0, 1, 2, 3, 4, 77, 255)},  # type: ignore[misc]
    "crash": lambda: ctypes.string_at(1),
    "abort": os.abort,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "kill-group": lambda: os.killpg(0, signal.SIGKILL),
    "hang": lambda: time.sleep(FOR_EVER_S),
    "freeze": lambda: ctypes.PyDLL(None).sleep(FOR_EVER_S),
    "starve": _starve,
    "recurse": _recurse,
    "flood": lambda: [os.write(2, b"a line of a flood, and nothing that anybody needs\n") for _ in range(FLOOD_LINES)],
    "flood-1": lambda: [print("printed on standard output, over and over") for _ in range(FLOOD_LINES // 10)],
    "flood-child": lambda: subprocess.run(["head", "-c", "5000000", "/dev/zero"], check=True),
    "fork": _fork_sleeper,
    "fork-twice": lambda: _fork_sleeper(twice=True),
    "fork-exit": lambda: _fork_and(lambda: os._exit(0)),
    "fork-kill": lambda: _fork_and(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "fork-hang": lambda: _fork_and(lambda: time.sleep(FOR_EVER_S)),
    "start": lambda: subprocess.Popen(["sleep", str(FOR_EVER_S)]),
    "start-shell": lambda: subprocess.run("trap '' TERM HUP INT; sleep 3600 & sleep 3600 &", shell=True, check=True),
    "thread": _thread,
    "close-standard": lambda: _close(0, 3),
    "close-all": lambda: _close(0, 100),
    "chdir": lambda: os.chdir(tempfile.gettempdir()),
    "signals": _ignore_signals,
    "umask": lambda: os.umask(0o077),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "environment": os.environ.clear,
    "path": sys.path.clear,
    "switch": lambda: sys.setswitchinterval(1e-6),
    "stderr-gone": lambda: setattr(sys, "stderr", None),
    "modules": lambda: [sys.modules.pop(name, None) for name in ("json", "os", "traceback")],
}
"""What it does when the segment's turn comes; if that comes back, the segment is spoken."""

ANSWERS: dict[str, Callable[[Segment], Any]] = {
    "answer-huge": lambda segment: _spoken(segment, flaws=("x" * (2 << 20),)),
    "answer-nan": lambda segment: _spoken(segment, generate_s=math.nan),
    "answer-infinite": lambda segment: _spoken(segment, frames=math.inf),
    "answer-negative": lambda segment: _spoken(segment, frames=-1, sample_rate=0),
    "answer-types": lambda segment: _spoken(segment, frames="many", seed=object(), seeds=7),
    "answer-deep": lambda segment: _spoken(segment, flaws=_nested()),
    "answer-other": lambda segment: Failed(segment.ticket + 999_999, "x", "not mine", True),
    "answer-ticket": lambda segment: Spoken([], 1, 1, 1, 0.0),  # type: ignore[arg-type]
    "answer-none": lambda segment: None,
    "answer-failed-huge": lambda segment: Failed(segment.ticket, "x" * (2 << 20), "y" * (2 << 20), True),
    "answer-failed-types": lambda segment: Failed(segment.ticket, None, 7, "maybe", "few"),  # type: ignore[arg-type]
    "answer-error": lambda segment: _raise(EngineError("x" * 100, "told by hand", retryable=True)),
}
"""What it answers instead of the truth."""

OUTPUTS: dict[str, Callable[[str], Any]] = {
    "output-deleted": os.unlink,
    "output-empty": lambda path: os.truncate(path, 0),
    "output-long": lambda path: os.truncate(path, 1 << 32),
    "output-pipe": lambda path: _replace(path, os.mkfifo),
    "output-folder": lambda path: _replace(path, os.mkdir),
    "output-link": lambda path: _replace(path, lambda path: os.symlink("/dev/zero", path)),
    "output-loop": lambda path: _replace(path, lambda path: os.symlink(path, path)),
    "output-locked": lambda path: os.chmod(path, 0),
}
"""What becomes of its file once it is written."""

HABITS = (*ACTS, *ANSWERS, *OUTPUTS)


def _replace(path: str, make: Callable[[str], object]) -> None:
    os.unlink(path)
    make(path)


def _nested() -> Any:
    value: Any = ()
    for _ in range(100_000):
        value = (value,)
    return value


def _spoken(segment: Segment, **more: Any) -> Spoken:
    values = {"frames": FRAMES, "sample_rate": RATE, "seed": segment.seed, "generate_s": 0.0, **more}
    return Spoken(segment.ticket, **values)


class Astray:
    """See the module's text; the contract is workers.engine.Engine. Option ``load``: a habit to load with."""

    name = "astray"
    version = "1"
    model = "astray"
    sample_rate = RATE
    slots = 2
    ignored: tuple[str, ...] = ()

    def __init__(self, settings: Settings) -> None:
        self.device = settings.device
        self._load = str(settings.options.get("load", ""))
        self._running: dict[int, Segment] = {}

    def load(self) -> None:
        if self._load:
            ACTS[self._load]()

    def submit(self, segment: Segment) -> None:
        self._running[segment.ticket] = segment

    def step(self) -> list[Spoken | Failed]:
        ticket, segment = next(iter(self._running.items()))
        match = re.search(r"\{([a-z0-9-]+)\}", segment.text)
        habit = match[1] if match else ""
        if habit in ACTS:
            ACTS[habit]()
        with open(segment.path, "wb") as file:
            file.write(silent_wav(FRAMES, RATE, segment.subtype))
        if habit in OUTPUTS:
            OUTPUTS[habit](segment.path)
        del self._running[ticket]
        return [ANSWERS[habit](segment) if habit in ANSWERS else _spoken(segment)]

    def cancel(self, ticket: int) -> bool:
        return self._running.pop(ticket, None) is not None

    def activity(self) -> str:
        return "x" * (2 << 20)

    def close(self) -> None:
        raise RuntimeError("it does not even close")

"""A test engine whose every WAV is told of and is its text's own: ``listening:Listening``, on ``worker.path``.

Options: ``told``, a file that gets a line of JSON, the text, for each segment BEFORE its WAV is written, so that
nothing spoken stays unheard; ``wait_s``, how long each segment takes (0). The standard library alone, so that workers
start at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

from workers.engine import Failed, Segment, Settings, Spoken, write_failed
from workers.wav import silent_wav

SAMPLE_RATE = 8_000
FRAMES = 256
HEADER = 44


class Listening:
    """See the module's text; the contract is workers.engine.Engine."""

    name = "listening"
    version = "1"
    model = "listening"
    sample_rate = SAMPLE_RATE
    ignored = ("temperature", "top_p")

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.slots or 2
        self.device = settings.device
        self._told = str(settings.options.get("told", os.devnull))
        self._wait_s = float(str(settings.options.get("wait_s", 0)))
        self._running: dict[int, tuple[float, Segment]] = {}

    def load(self) -> None:
        pass

    def submit(self, segment: Segment) -> None:
        self._running[segment.ticket] = (time.monotonic() + self._wait_s, segment)

    def step(self) -> list[Spoken | Failed]:
        now = time.monotonic()
        due = [segment for at, segment in self._running.values() if at <= now]
        if not due:
            time.sleep(0.002)
        return [self._speak(segment) for segment in due]

    def _speak(self, segment: Segment) -> Spoken | Failed:
        del self._running[segment.ticket]
        descriptor = os.open(self._told, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(segment.text).encode("ascii") + b"\n")
        finally:
            os.close(descriptor)
        content = bytearray(silent_wav(FRAMES, SAMPLE_RATE, "PCM_16"))
        noise = hashlib.shake_128(segment.text.encode()).digest(len(content) - HEADER)
        content[HEADER:] = noise
        try:
            with open(segment.path, "wb", buffering=0) as file:
                file.write(content)
        except OSError as error:
            return write_failed(segment.ticket, segment.path, error)
        return Spoken(segment.ticket, FRAMES, SAMPLE_RATE, segment.seed, 0.0)

    def cancel(self, ticket: int) -> bool:
        return self._running.pop(ticket, None) is not None

    def activity(self) -> str:
        return f"listening to {len(self._running)}"

    def close(self) -> None:
        self._running.clear()

"""A test engine that bears witness: it writes down every text once its file is finished, and waits where it is told.

Named ``witness:Witness`` with this folder in ``worker.path``. A text with ``{hold}`` in it is spoken only while the
file of option ``gate`` exists. Option ``told``: a file that gets a line of JSON for each finished segment, {pid, task,
text, speaker}, appended in one write. Each text has an audio of its own, silence of a length that depends on the text
alone; each recording codes of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

import numpy

from workers.engine import Failed, Segment, Settings, Spoken, write_failed
from workers.wav import silent_wav

SAMPLE_RATE = 22_050
CODEBOOKS = 10


class Witness:
    """See the module's text; the contract is workers.engine.Engine."""

    name = "witness"
    sample_rate = SAMPLE_RATE
    ignored = ("temperature", "top_p")

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.slots or 4
        self.device = settings.device
        self.version = str(settings.options.get("version", "1"))
        self.model = "witness"
        self._gate = str(settings.options.get("gate", ""))
        self._told = str(settings.options.get("told", os.devnull))
        self._running: dict[int, Segment] = {}

    def load(self) -> None:
        pass

    def submit(self, segment: Segment) -> None:
        self._running[segment.ticket] = segment

    def step(self) -> list[Spoken | Failed]:
        is_open = os.path.exists(self._gate)
        free = [segment for segment in self._running.values() if is_open or "{hold}" not in segment.text]
        if not free:
            time.sleep(0.01)
        return [self._finish(segment) for segment in free]

    def _finish(self, segment: Segment) -> Spoken | Failed:
        del self._running[segment.ticket]
        rate = segment.sample_rate or SAMPLE_RATE
        content = segment.text if segment.task == "speak" else segment.voice.references[0].sha256
        size = 1 + int.from_bytes(hashlib.sha256(content.encode()).digest()[:2], "big") % 5000
        try:
            if segment.task == "speak":
                with open(segment.path, "wb", buffering=0) as file:
                    file.write(silent_wav(size, rate, segment.subtype))
            else:
                size = 1 + size % 50
                numpy.save(segment.path, numpy.full((CODEBOOKS, size), size, dtype=numpy.int64))
        except OSError as error:
            return write_failed(segment.ticket, segment.path, error)
        line = {"pid": os.getpid(), "task": segment.task, "text": segment.text, "speaker": segment.voice.id}
        descriptor = os.open(self._told, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(line).encode("ascii") + b"\n")
        finally:
            os.close(descriptor)
        return Spoken(segment.ticket, size, rate, segment.seed, 0.0)

    def cancel(self, ticket: int) -> bool:
        return self._running.pop(ticket, None) is not None

    def activity(self) -> str:
        return f"watching {len(self._running)} segments"

    def close(self) -> None:
        self._running.clear()

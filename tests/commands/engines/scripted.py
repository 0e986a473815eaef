"""A test engine whose segments do what their text says: "refuse …" fails, "hold …" waits until the gate is open; all
others are silence. A reference is encoded to codes that tell its size; one called slow never is.

Option ``gate``: the path of a file; while it is there, the gate is open.
"""

from __future__ import annotations

import os
import time

import numpy

from workers.engine import Failed, Segment, Settings, Spoken
from workers.engines.silence import SilenceEngine


class ScriptedEngine(SilenceEngine):
    name = "scripted"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._gate = str(settings.options.get("gate", ""))
        self._mine: dict[int, Segment] = {}

    def submit(self, segment: Segment) -> None:
        if segment.task == "encode" or segment.text.startswith(("refuse", "hold")):
            self._mine[segment.ticket] = segment
        else:
            super().submit(segment)

    def step(self) -> list[Spoken | Failed]:
        outcomes = super().step()
        for ticket, segment in list(self._mine.items()):
            if segment.task == "encode":
                reference = segment.voice.references[0]
                if "slow" in reference.path:
                    continue
                codes = numpy.full((10, 7), os.path.getsize(reference.path) % 1000, dtype=numpy.int64)
                numpy.save(segment.path, codes)
                outcomes.append(Spoken(ticket, codes.shape[1], self.sample_rate, 0, 0.0))
            elif segment.text.startswith("refuse"):
                outcomes.append(Failed(ticket, "refused", f"it was told to: {segment.text}", False))
            elif os.path.exists(self._gate):
                super().submit(segment)
            else:
                continue
            del self._mine[ticket]
        if not outcomes:
            time.sleep(0.01)
        return outcomes

    def cancel(self, ticket: int) -> bool:
        return self._mine.pop(ticket, None) is not None or super().cancel(ticket)

    def activity(self) -> str:
        return f"holding {len(self._mine)}" if self._mine else super().activity()

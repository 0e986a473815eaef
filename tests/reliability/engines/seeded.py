"""A test engine whose every take is its text's and its seed's own: ``seeded:Seeded``. One seed in six fails."""

from __future__ import annotations

import dataclasses
import hashlib

from listening import Listening  # type: ignore[import-not-found]  # it is on the worker's path

from workers.engine import Failed, Segment, Spoken


class Seeded(Listening):  # type: ignore[misc]
    """See the module's text."""

    name = "seeded"

    def _speak(self, segment: Segment) -> Spoken | Failed:
        take = f"{segment.text} {segment.seed}"
        if hashlib.sha256(take.encode()).digest()[0] % 6 == 0:
            del self._running[segment.ticket]
            return Failed(segment.ticket, "bad_seed", "this seed fails", retryable=False)
        spoken: Spoken | Failed = super()._speak(dataclasses.replace(segment, text=take))
        return spoken

"""A test engine that keeps 4 MB of memory for each segment it has spoken: ``leaking:Leaking``, on ``worker.path``."""

from __future__ import annotations

from listening import Listening  # type: ignore[import-not-found]  # beside this file on the worker's path

from workers.engine import Failed, Segment, Spoken

LEAK_BYTES = 4_000_000


class Leaking(Listening):  # type: ignore[misc]
    """As its base otherwise."""

    name = "leaking"
    model = "leaking"
    kept: list[bytes] = []  # noqa: RUF012 - it is to outlive everything

    def _speak(self, segment: Segment) -> Spoken | Failed:
        self.kept.append(b"\1" * LEAK_BYTES)
        outcome: Spoken | Failed = super()._speak(segment)
        return outcome

"""An engine that costs nothing: digital silence, for measuring what stands around an engine.

Options: ``seconds`` of each WAV (0.1) and ``wait_s``, how long each segment is to take (0). It needs the standard
library alone.
"""

from __future__ import annotations

import time
from functools import lru_cache

from workers.engine import EngineError, Failed, Segment, Settings, Spoken, write_failed
from workers.wav import silent_wav

SAMPLE_RATE = 44_100
DEFAULT_SLOTS = 8


class SilenceEngine:
    """See the module's text; the contract is workers.engine.Engine."""

    name = "silence"
    version = "1"
    model = "silence"
    sample_rate = SAMPLE_RATE
    ignored = ("seed", "temperature", "top_p", "repetition_penalty", "max_new_tokens", "language")

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.slots or DEFAULT_SLOTS
        self.device = settings.device
        self._options = settings.options
        self._seconds = 0.0
        self._wait_s = 0.0
        self._running: dict[int, tuple[float, Segment]] = {}
        """By ticket: when it was submitted, on the performance counter, and what."""

    def load(self) -> None:
        try:
            self._seconds = float(str(self._options.get("seconds", 0.1)))
            self._wait_s = float(str(self._options.get("wait_s", 0.0)))
        except ValueError as error:
            raise EngineError("bad_options", f"engine.options seconds and wait_s are numbers: {error}") from error
        if not 0 <= self._seconds <= 600 or not 0 <= self._wait_s <= 3_600:
            raise EngineError("bad_options", "engine.options: seconds is 0 to 600, wait_s 0 to 3,600")
        self.model = f"silence-{self._seconds:g}s"

    def submit(self, segment: Segment) -> None:
        self._running[segment.ticket] = (time.perf_counter(), segment)

    def step(self) -> list[Spoken | Failed]:
        if self._wait_s and self._running:
            first = min(started for started, _ in self._running.values())
            time.sleep(min(0.02, max(0.0, first + self._wait_s - time.perf_counter())))
        outcomes: list[Spoken | Failed] = []
        for started, segment in list(self._running.values()):
            if time.perf_counter() - started >= self._wait_s:
                del self._running[segment.ticket]
                outcomes.append(self._write(segment, started))
        return outcomes

    def _write(self, segment: Segment, started: float) -> Spoken | Failed:
        if segment.task != "speak":
            return Failed(
                segment.ticket, "unsupported", "silence has no codec codes; encode with the fish engine", False
            )
        rate = segment.sample_rate or SAMPLE_RATE
        frames = round(self._seconds * rate)
        try:
            content = _cached_wav(frames, rate, segment.subtype)
            with open(segment.path, "wb", buffering=0) as file:
                file.write(content)
        except EngineError as error:
            return Failed(segment.ticket, error.code, str(error), error.retryable)
        except OSError as error:
            return write_failed(segment.ticket, segment.path, error)
        return Spoken(segment.ticket, frames, rate, segment.seed, time.perf_counter() - started)

    def cancel(self, ticket: int) -> bool:
        return self._running.pop(ticket, None) is not None

    def activity(self) -> str:
        return f"keeping {len(self._running)} silences"

    def close(self) -> None:
        self._running.clear()


@lru_cache(maxsize=8)
def _cached_wav(frames: int, sample_rate: int, subtype: str) -> bytes:
    return silent_wav(frames, sample_rate, subtype)

"""What follows decoding: codes to samples, the ear's checks, the WAV. Beside the decoding of the other segments."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch

from workers.engines.fish.check import check_audio
from workers.engines.fish.codec import Codec
from workers.engines.fish.speech import Attempt, Speech
from workers.engines.fish.writing import Writer


@dataclass(frozen=True)
class Rendered:
    """A speech with its newest attempt, or what went wrong with the codec."""

    speech: Speech
    attempt: Attempt | None
    error: Exception | None = None


@dataclass(frozen=True)
class Written:
    """A speech whose WAV is being written or has been: (frames, sample rate), or the writer's error."""

    speech: Speech
    result: Future[tuple[int, int]]


class Finisher:
    """Turns finished codes into audio.

    On a GPU a thread with a stream of its own does it, for all speeches that have come meanwhile at once; on the
    CPU, where there is nothing to gain from a second thread, each call of ``rendered`` does one.

    Args:
        steady: the codec takes one row at a time, unpadded, so that a segment's samples depend on it alone.
        checks: whether flaws are looked for.
    """

    def __init__(self, codec: Codec, device: torch.device, *, steady: bool, checks: bool) -> None:
        self._codec = codec
        self._device = device
        self._steady = steady
        self._checks = checks
        self._writer = Writer()
        self._written: list[Written] = []
        self._in: queue.SimpleQueue[Speech | None] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Rendered] = queue.SimpleQueue()
        self._rendering = 0
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            self._thread = threading.Thread(target=self._run, name="codec", daemon=True)
            self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether anything is still to come."""
        return self._rendering > 0 or bool(self._written)

    def render(self, speech: Speech) -> None:
        """Take a speech whose pieces all have their codes."""
        self._rendering += 1
        self._in.put(speech)

    def rendered(self, timeout_s: float) -> list[Rendered]:
        """What has been rendered. Where a thread does it, waits so long for something to come."""
        if self._thread is None and not self._in.empty():
            speech = self._in.get()
            assert speech is not None
            self._render([speech])
        done: list[Rendered] = []
        try:
            while True:
                waiting = timeout_s > 0 and not done and self._rendering > 0
                done.append(self._out.get(block=waiting, timeout=timeout_s))
                self._rendering -= 1
        except queue.Empty:
            return done

    def write(self, speech: Speech, attempt: Attempt) -> None:
        """Write an attempt to the segment's path."""
        segment = speech.segment
        result = self._writer.submit(
            attempt.samples, self._codec.sample_rate, segment.path, segment.sample_rate, segment.subtype
        )
        self._written.append(Written(speech, result))

    def written(self, timeout_s: float) -> list[Written]:
        """Writes that are over; waits so long for the oldest."""
        if timeout_s > 0 and self._written:
            wait([self._written[0].result], timeout_s)
        done = [write for write in self._written if write.result.done()]
        self._written = [write for write in self._written if write not in done]
        return done

    def close(self) -> None:
        """End the threads, after what they have been given."""
        self._in.put(None)
        if self._thread is not None:
            self._thread.join()
        self._writer.close()

    def _run(self) -> None:
        """The codec's thread."""
        torch.cuda.set_device(self._device)
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            while (speech := self._in.get()) is not None:
                speeches = [speech]
                while not self._in.empty():
                    another = self._in.get()
                    if another is None:
                        self._in.put(None)
                        break
                    speeches.append(another)
                self._render(speeches)

    def _render(self, speeches: Sequence[Speech]) -> None:
        try:
            with torch.inference_mode():
                rows = [codes for speech in speeches for codes in speech.joined]
                decode = self._codec.decode_one
                samples = [decode(codes) for codes in rows] if self._steady else self._codec.decode(rows)
        except Exception as error:  # noqa: BLE001 - the engine says what it was, to whom it happened
            if len(speeches) == 1:
                self._out.put(Rendered(speeches[0], None, error))
                return
            # One of them may be too long for the memory there is; let it not take the others with it.
            for speech in speeches:
                self._render([speech])
            return
        for speech in speeches:
            own, samples = samples[: len(speech.pieces)], samples[len(speech.pieces) :]
            joined = np.concatenate(own)
            segment = speech.segment
            flaws: tuple[str, ...] = ()
            if self._checks:
                flaws = check_audio(joined, self._codec.sample_rate, segment.text, segment.language)
            self._out.put(Rendered(speech, Attempt(speech.seeds[-1], joined, speech.truncated, flaws)))

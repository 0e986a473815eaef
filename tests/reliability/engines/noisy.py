"""A test engine in bad company: ``noisy:Noisy`` speaks as Listening does, and meanwhile a library of its, a C program
and Python's own print pour noise over descriptors 1 and 2.

Option ``noise_bytes``: how much of it for each descriptor in all, half at loading and half with the first segment;
afterwards a little with each.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

from listening import Listening  # type: ignore[import-not-found]  # beside this file, on worker.path

from workers.engine import Failed, Segment, Settings, Spoken

BLOCK = 1 << 16


class Noisy(Listening):  # type: ignore[misc]  # its module is found on worker.path alone
    """See the module's text."""

    name = "noisy"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._noise_bytes = int(str(settings.options.get("noise_bytes", BLOCK)))
        self._next_bytes = self._noise_bytes // 2

    def load(self) -> None:
        self._make_noise(random.Random(0), self._noise_bytes // 2)
        super().load()

    def _speak(self, segment: Segment) -> Spoken | Failed:
        self._make_noise(random.Random(segment.ticket), self._next_bytes)
        self._next_bytes = BLOCK // 8
        outcome: Spoken | Failed = super()._speak(segment)
        return outcome

    @staticmethod
    def _make_noise(dice: random.Random, size: int) -> None:
        block = dice.randbytes(BLOCK)
        for descriptor in (1, 2):
            for start in range(0, size, BLOCK):
                os.write(descriptor, block[: size - start])
        print("a frame, perhaps: \x00\x00\x00\x02{}", flush=True)
        sys.stderr.write("x" * BLOCK)
        subprocess.run(["head", "-c", "4096", "/dev/urandom"], check=True)

"""Who a voice sounds like, as far as espeak-ng can: a pitch, a variant, a pace and a liveliness.

The pitch follows the reference: the median fundamental frequency of its recording. Everything else, and the pitch too
where there is no recording, is drawn from the voice's content, so that two speakers sound different and one speaker
always the same, in whatever job.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import soundfile

from workers.engine import EngineError, Reference, Voice
from workers.engines.draft.fundamental import median_f0

Option = TypeVar("Option")

LOW_VARIANTS = {"m1": (68, 158), "m3": (72, 174), "m4": (65, 153), "m6": (70, 172), "m7": (81, 170), "m8": (65, 140)}
HIGH_VARIANTS = {"f1": (118, 306), "f2": (135, 324), "f3": (158, 337), "f4": (117, 308), "f5": (135, 351)}
"""espeak-ng's voice variants and the median frequency in Hz of an English sentence at the lowest and the highest pitch,
measured with espeak-ng 1.52. Left out are those that are monotone (m5) or mostly echo (m2)."""

BORDER_HZ = 160.0
"""Between the two: the low ones have 87 to 110 Hz at their middle pitch, the high ones 180 to 216 Hz."""
LOW_HZ = (85.0, 140.0)
HIGH_HZ = (170.0, 250.0)
"""Where voices without a recording lie: speakers of low and high voice in conversation."""

LISTEN_S = 20.0
"""Seconds of a recording that are listened to."""
CHANNELS = 8
"""Channels that are looked at; the loudest one is listened to, since a sum may cancel out."""
METHOD = 1
"""To be counted up when the same recording gives another frequency than before: it names the cache's files."""


@dataclass(frozen=True)
class Character:
    """``variant`` as espeak-ng names it; ``rate`` in words a minute; ``range`` of its pitch, 50 the usual; ``f0_hz``
    the median fundamental frequency it is to have."""

    variant: str
    rate: int
    range: int
    f0_hz: float


def find_character(voice: Voice, cache: str) -> Character:
    """The character of a voice. ``cache``: a folder for what was measured, "" for none.

    Raises:
        EngineError: ``reference_unreadable``.
    """
    measured = [
        frequency
        for reference in voice.references
        if reference.kind == "audio" and (frequency := reference_f0(reference, cache)) is not None
    ]
    dice = Dice(json.dumps(voice.key).encode())
    if measured:
        f0_hz = statistics.median(measured)
    else:
        low, high = dice.choose((LOW_HZ, HIGH_HZ))
        f0_hz = low * (high / low) ** dice.fraction()
    variants = LOW_VARIANTS if f0_hz < BORDER_HZ else HIGH_VARIANTS
    out_of_reach = {name: max(lowest - f0_hz, f0_hz - highest, 0.0) for name, (lowest, highest) in variants.items()}
    nearest = min(out_of_reach.values())
    variant = dice.choose([name for name, distance in out_of_reach.items() if distance == nearest])
    return Character(variant, rate=160 + dice.below(31), range=42 + dice.below(19), f0_hz=f0_hz)


class Dice:
    """Draws that depend on ``content`` and on how many came before."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._draws = 0

    def below(self, limit: int) -> int:
        self._draws += 1
        digest = hashlib.sha256(b"%d:%s" % (self._draws, self._content)).digest()
        return int.from_bytes(digest[:8], "big") % limit

    def fraction(self) -> float:
        return self.below(1 << 20) / (1 << 20)

    def choose(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]


def reference_f0(reference: Reference, cache: str) -> float | None:
    """The median fundamental frequency of a recording in Hz, None when it has none; measured once, then cached by
    content.

    Raises:
        EngineError: ``reference_unreadable``.
    """
    digest = reference.sha256.lower()
    usable = cache and len(digest) == 64 and not digest.strip("0123456789abcdef")
    path = os.path.join(cache, f"f0-{METHOD}-{digest}.json") if usable else None
    if path is not None:
        try:
            with open(path, encoding="ascii") as file:
                cached = json.load(file)["f0_hz"]
            return None if cached is None else float(cached)
        except (OSError, ValueError, KeyError, TypeError):
            pass
    frequency = _measure(reference.path)
    if path is not None:
        _remember(path, frequency)
    return frequency


def _measure(path: str) -> float | None:
    try:
        with soundfile.SoundFile(path) as recording:
            rate = recording.samplerate
            blocks = []
            left = int(LISTEN_S * rate)
            # By the second: a file may claim more channels than fit into memory at once.
            while left > 0:
                block = recording.read(min(rate, left), dtype="float32", always_2d=True)
                if not len(block):
                    break
                blocks.append(block[:, :CHANNELS].copy())
                left -= len(block)
    except (OSError, soundfile.LibsndfileError) as error:
        raise EngineError("reference_unreadable", f"the reference {path} can't be read: {error}") from error
    if not blocks:
        return None
    samples = np.nan_to_num(np.concatenate(blocks), nan=0.0, posinf=0.0, neginf=0.0)
    loudest = int(np.square(samples.astype(np.float64)).sum(axis=0).argmax())
    return median_f0(np.ascontiguousarray(samples[:, loudest]), rate)


def _remember(path: str, frequency: float | None) -> None:
    """Whole or not at all, since other workers share the folder. What can't be kept is measured again."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".f0-", dir=os.path.dirname(path))
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump({"f0_hz": frequency}, file)
        os.replace(temporary, path)
    except OSError:
        pass

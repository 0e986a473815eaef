"""Voices for the draft engine: recordings of a known fundamental frequency."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from workers.protocol import Message

RATE = 16_000
Samples = NDArray[np.float32]


def hum(f0_hz: float, seconds: float = 3.0, rate: int = RATE, noise: float = 0.01) -> Samples:
    """A voice that hums: harmonics of ``f0_hz`` with a slow vibrato around it, a pause in the middle, some noise."""
    time = np.arange(int(seconds * rate)) / rate
    phase: NDArray[np.float64] = 2 * np.pi * np.cumsum(f0_hz * (1 + 0.03 * np.sin(2 * np.pi * 4 * time))) / rate
    harmonics = range(1, min(20, int(rate / 2 / (1.05 * f0_hz))))
    tone = 0.3 * np.sum([np.sin(number * phase) / number for number in harmonics], axis=0)
    tone *= np.abs(time - seconds / 2) > seconds / 12
    tone += noise * np.random.default_rng(5).standard_normal(len(time))
    return np.asarray(tone, np.float32)


def voice_of(*paths: Path, kind: str = "audio", text: str = "What is said.") -> Message:
    """The voice of recordings, as a ``speak`` holds it."""
    return {
        "id": "anna",
        "references": [
            {"path": str(path), "kind": kind, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "text": text}
            for path in paths
        ],
    }


MakeVoice = Callable[[float], Message]


@pytest.fixture
def make_voice(tmp_path: Path) -> MakeVoice:
    """The voice of someone who hums at so many Hz."""

    def make(f0_hz: float) -> Message:
        path = tmp_path / f"{f0_hz:g}.wav"
        soundfile.write(path, hum(f0_hz), RATE)
        return voice_of(path)

    return make

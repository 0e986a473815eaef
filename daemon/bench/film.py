"""The jobs that are measured: a film's lines, spoken by a few speakers in turn."""

from __future__ import annotations

import json
from pathlib import Path

SPEAKERS = 6
SEGMENTS = 46
SEGMENT_FRAMES = 64
FRAMES_A_SECOND = 44_100 / 2048
"""Of the codec: 2,048 samples of 44.1 kHz make a frame."""

REFERENCE_FRAMES = 215
REFERENCE_TEXT = "This is what the speaker says in the recording, more or less; it takes about ten seconds to say."
SEEDS_A_TAKE = 1_000_000
TEXT = "A line of middling length, as most lines of a film are."


def write_voices(inbox: Path) -> None:
    """Codec codes of SPEAKERS voices, about ten seconds each, where ``film`` names them. They are random: speed does
    not depend on what they say."""
    import numpy as np

    (inbox / "voices").mkdir(parents=True, exist_ok=True)
    for speaker in range(SPEAKERS):
        generator = np.random.default_rng(speaker)
        codes = generator.integers(0, 1024, (10, REFERENCE_FRAMES), dtype=np.int16)
        codes[0] = generator.integers(0, 4096, REFERENCE_FRAMES)
        np.save(inbox / "voices" / f"{speaker}.npy", codes)


def film(take: int, segments: int = SEGMENTS) -> bytes:
    """A job of so many segments, of SEGMENT_FRAMES frames where an engine counts them. No two takes have a segment in
    common, or the second would find it spoken already."""
    speakers = [
        {"id": str(speaker), "references": [{"codes": f"voices/{speaker}.npy", "text": REFERENCE_TEXT}]}
        for speaker in range(min(SPEAKERS, segments))
    ]
    lines = [
        {"index": index, "speaker": str(index % SPEAKERS), "text": TEXT, "seed": take * SEEDS_A_TAKE + index}
        for index in range(segments)
    ]
    defaults = {"max_new_tokens": SEGMENT_FRAMES}
    return json.dumps({"schema": 1, "defaults": defaults, "speakers": speakers, "segments": lines}).encode()

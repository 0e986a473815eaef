"""Corpora for the tests of speaker embeddings."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np

DIMENSIONS = 8


Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def make_corpus(folder: Path, sizes: Mapping[str, int], *, seed: int = 1) -> dict[str, Rows]:
    """DATASET/SPEAKER → so many utterances; their embeddings, a row each, in the order of their files' names."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, count in sizes.items():
        place = folder / name
        place.mkdir(parents=True)
        rows = rng.standard_normal((count, DIMENSIONS)).astype(np.float32)
        for number, row in enumerate(rows):
            value = {
                "embedding": row[None] if number % 2 else row.tolist(),
                "utterance_id": f"u{number}",
                "original_path": f"/corpus/{name}/{number}.wav",
                "dataset": "not this one",
                "speaker_id": "nor this",
            }
            (place / f"u{number:04}.pkl").write_bytes(pickle.dumps(value))
        made[name] = rows
    return made


REFERENCE = {
    "dataset1/speaker1": 5,
    "dataset1/speaker2": 3,
    "dataset1/speaker3": 1,
    "dataset2/speaker1": 4,
    "dataset2/speaker4": 6,
}
"""Two datasets with a speaker of the same name in both."""

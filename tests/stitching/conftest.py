"""A finished job as it lies in the outbox, its WAVs made here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray


@dataclass
class Finished:
    """``add`` segments, then ``write`` the manifest and the job."""

    folder: Path
    segments: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        start: float | None,
        samples: NDArray[np.float64] | None,
        *,
        rate: int = 8_000,
        speaker: str = "anna",
        end: float | None = None,
        status: str = "ok",
    ) -> Path:
        """The WAV of the segment: 16 bits. Without samples it was not spoken."""
        index = len(self.rows)
        file = self.folder / f"segment_{index:04d}.wav"
        row = {"index": index, "speaker": speaker, "text": "x", "status": status, "file": None, "sha256": None}
        if samples is not None:
            self.folder.mkdir(exist_ok=True)
            soundfile.write(str(file), np.rint(samples * 2**15).astype(np.int16), rate, subtype="PCM_16")
            row |= {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        if status == "failed":
            row["error"] = {"code": "no_speech", "message": "nothing but noise came of it"}
        times = {key: value for key, value in (("start", start), ("end", end)) if value is not None}
        self.segments.append({"index": index, "speaker": speaker, "text": "x", **times})
        self.rows.append(row)
        return file

    def write(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        speakers = [
            {"id": speaker, "references": [{"audio": "a.wav", "text": "a"}]}
            for speaker in dict.fromkeys(row["speaker"] for row in self.rows)
        ]
        job = {"schema": 1, "job_id": "film", "speakers": speakers, "segments": self.segments}
        (self.folder / "job.json").write_text(json.dumps(job), "utf-8")
        manifest = {"schema": 1, "job_id": "film", "status": "done", "segments": self.rows}
        (self.folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return self.folder


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path / "film")


def noise(frames: int, level: float = 0.4, seed: int = 0) -> NDArray[np.float64]:
    """Values that 16 bits hold exactly."""
    return np.rint(np.random.default_rng(seed).uniform(-level, level, frames) * 2**15) / 2**15

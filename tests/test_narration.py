"""The lines by which people follow a job, in the words that they know from the scheme before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from daemon.live_job import LiveJob
from daemon.narration import Narration
from tests.shell import make_live_job


def job_of(folder: Path, speakers: str) -> LiveJob:
    """A job whose segments these speakers say, in this order."""
    document: dict[str, Any] = {
        "speakers": [
            {"id": speaker, "references": [{"audio": "a.wav", "text": "r"}]} for speaker in dict.fromkeys(speakers)
        ],
        "segments": [{"index": index, "speaker": speaker, "text": "x"} for index, speaker in enumerate(speakers)],
    }
    return make_live_job(folder, document)


def told(narrate: Any) -> list[str]:
    """The lines that come of it; each says whose they are."""
    with structlog.testing.capture_logs() as entries:
        narrate()
    assert all(entry["job"] == "film" and entry["log_level"] == "info" for entry in entries)
    return [entry["event"] for entry in entries]


def test_a_job_from_its_assignment_to_its_end(tmp_path: Path) -> None:
    """Assignment with counts, speaker i of n, progress, completed, all done."""

    def narrate() -> None:
        story = Narration(job_of(tmp_path, "aabbc"), [(0, ["a", "c"], 3), (1, ["b"], 2)])
        for worker, speaker in ((0, "a"), (1, "b"), (0, "a"), (1, "b"), (0, "c")):
            story.began(worker, speaker)
            story.spoken(worker, speaker)
        story.ended()

    assert told(narrate) == [
        "[Main] Speakers: 3",
        "[Main] Speaker assignment:",
        "[Main] Worker 0: 2 speakers (IDs: [a, c]), 3 texts",
        "[Main] Worker 1: 1 speakers (IDs: [b]), 2 texts",
        "[Worker 0] Processing Speaker a (1/2)",
        "[Worker 0] Speaker a progress: 1/2",
        "[Worker 1] Processing Speaker b (1/1)",
        "[Worker 1] Speaker b progress: 1/2",
        "[Worker 0] ✅ Completed Speaker a: 2 segments",
        "[Worker 1] ✅ Completed Speaker b: 2 segments",
        "[Worker 0] Processing Speaker c (2/2)",
        "[Worker 0] ✅ Completed Speaker c: 1 segments",
        "[Worker 0] ✅ All done! Processed 3/3 segments",
        "[Worker 1] ✅ All done! Processed 2/2 segments",
    ]


@pytest.mark.parametrize("texts", [1, 2, 7, 100, 10_000])
def test_a_long_speaker_is_told_of_now_and_then(tmp_path: Path, texts: int) -> None:
    """A handful of lines, however many texts there are."""

    def narrate() -> None:
        story = Narration(job_of(tmp_path, "a" * texts), [(0, ["a"], texts)])
        for _ in range(texts):
            story.spoken(0, "a")

    lines = told(narrate)[3:]
    assert len(lines) <= 7
    assert lines[-1] == f"[Worker 0] ✅ Completed Speaker a: {texts} segments"


def test_a_thief_has_speakers_too(tmp_path: Path) -> None:
    """One who was dealt nothing, or not this speaker: counts that can be read, and nothing is raised."""

    def narrate() -> None:
        story = Narration(job_of(tmp_path, "aab"), [(0, ["a", "b"], 3)])
        story.began(1, "a")
        story.began(1, "b")
        story.spoken(1, "b")
        story.spoken(1, "b")
        story.ended()

    assert told(narrate)[3:] == [
        "[Worker 1] Processing Speaker a (1/1)",
        "[Worker 1] Processing Speaker b (2/2)",
        "[Worker 1] ✅ Completed Speaker b: 1 segments",
        "[Worker 1] ✅ Completed Speaker b: 2 segments",
        "[Worker 1] ✅ All done! Processed 2/2 segments",
    ]


def test_a_failed_segment_is_an_ended_one(tmp_path: Path) -> None:
    """The speaker is completed all the same; the counts say what was spoken of what was tried."""

    def narrate() -> None:
        story = Narration(job_of(tmp_path, "aab"), [(0, ["a", "b"], 3)])
        story.failed(0, "a")
        story.spoken(0, "a")
        story.failed(1, "b")
        story.ended()

    assert told(narrate)[3:] == [
        "[Worker 0] Speaker a progress: 1/2",
        "[Worker 0] ✅ Completed Speaker a: 1 segments",
        "[Worker 1] ✅ Completed Speaker b: 0 segments",
        "[Worker 0] ✅ All done! Processed 1/2 segments",
        "[Worker 1] ✅ All done! Processed 0/1 segments",
    ]

"""Files from a grammar of what people's subtitles are like; ``python -m tests.subtitles.grammar`` reads more."""

from __future__ import annotations

from pathlib import Path

from tests.subtitles.grammar import make, problem, read

FILES = 1500


def test_what_is_said_is_spoken_and_nothing_else(tmp_path: Path) -> None:
    """The texts come back exactly, or the broken line is named; no time, number or tag is spoken."""
    for seed in range(FILES):
        file = make(seed)
        assert problem(file, read(file, tmp_path)) is None, f"seed {seed}"

"""Subtitles to a job: ``dubd srt``.

``encoding`` makes text of the file's bytes, ``cues`` finds the cues in it, ``speech`` what is said in a cue and who
says it, ``cast`` the voices, ``speaker_table`` a CSV of who speaks when, ``job`` puts them together.

Whoever reads a film's subtitles by hand wants every mistake at once, with its line. So each of them takes a list of
``Mistake`` to add to, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """Why no job can be made: where ("line 12", "--voice anna=…"), and what is wrong and how to mend it."""

    where: str
    message: str


def lines_text(lines: list[int]) -> str:
    """ "line 12", "lines 12, 15 and 18", "lines 12, 15, 18 and 397 more"."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    shown, more = lines[:8], len(lines) - 8
    last = f"{more} more" if more > 0 else str(shown.pop())
    return f"lines {', '.join(str(line) for line in shown)} and {last}"

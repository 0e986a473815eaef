"""Subtitles to a job: ``dubd srt``.

``encoding`` makes text of the file's bytes, ``cues`` finds the cues in it (``times`` reads their lines of times,
``substation`` the files of Aegisub, ``rolling`` folds captions that roll up), ``speech`` what is said in a cue and who
says it (``markup`` takes marks away), ``cast`` the voices, ``speaker_table`` a CSV of who speaks when, ``job`` puts
them together.

What looks like a time, a number, a tag or a broken encoding is understood or reported, and never read aloud. Whoever
reads a film's subtitles by hand wants every mistake at once, with its line. So each of them takes a list of ``Mistake``
to add to, and goes on; what had to be assumed, and keeps nobody from making the job, is a ``Notice``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mistake:
    """Why no job can be made: where ("line 12", "--voice anna=…"), and what is wrong and how to mend it."""

    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """What was assumed or left out: where ("lines 3 and 4", a file's name), and what."""

    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Cue:
    """``start_ms`` and ``end_ms`` are milliseconds on the film's clock. ``line``: where its times stand, from 1.
    ``number``: as the file counts it, or its place in the file. ``lines``: its text with all marks, each with where
    it stands. ``actor``: who speaks, where the format has a place for that."""

    number: int
    line: int
    start_ms: int
    end_ms: int
    lines: tuple[tuple[int, str], ...]
    actor: str = ""


def lines_text(lines: list[int]) -> str:
    """ "line 12", "lines 12, 15 and 18", "lines 12, 15, 18 and 397 more"."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    shown, more = lines[:8], len(lines) - 8
    last = f"{more} more" if more > 0 else str(shown.pop())
    return f"lines {', '.join(str(line) for line in shown)} and {last}"

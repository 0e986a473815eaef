"""Captions that roll up, as live captions and automatic ones do: each cue shows the line before once more.

Read as they stand, every line would be spoken two or three times. A repetition may also be meant ("No." - "No."), so
lines are folded only where that is how the file goes: cue upon cue without a pause, each beginning with the end of the
one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from daemon.subtitles import Cue
from daemon.subtitles.markup import plain

TOUCHING_MS = 120
"""Cues that roll follow each other within this."""

MOMENT_MS = 150
"""A cue that is shown no longer than this only holds what was there while the next one comes."""

FEWEST = 2
"""Repetitions that make a file one that rolls, if they are a third of its cues that touch."""


def unrolled(cues: Sequence[Cue]) -> tuple[list[Cue], list[int]]:
    """The cues with every line once, and the numbers of the lines of the file that were repetitions."""
    words = [[plain(text) for _, text in cue.lines] for cue in cues]
    repeats = [0] * len(cues)
    touching = 0
    for at in range(1, len(cues)):
        if not -TOUCHING_MS <= cues[at].start_ms - cues[at - 1].end_ms <= TOUCHING_MS:
            continue
        touching += 1
        repeats[at] = _repeated(words[at - 1], words[at])
        whole = repeats[at] == len(words[at]) == len(words[at - 1])
        moment = any(cue.end_ms - cue.start_ms <= MOMENT_MS for cue in cues[at - 1 : at + 1])
        if whole and not moment:
            repeats[at] = 0
    rolling = sum(count > 0 for count in repeats)
    if rolling < FEWEST or rolling * 3 < touching:
        return list(cues), []
    kept: list[Cue] = []
    folded: list[int] = []
    for cue, count in zip(cues, repeats, strict=True):
        folded += [line for line, text in cue.lines[:count] if text.strip()]
        lines = cue.lines[count:]
        if count and not any(text.strip() for _, text in lines):
            continue
        kept.append(replace(cue, lines=lines))
    return kept, folded


def _repeated(before: Sequence[str], now: Sequence[str]) -> int:
    """How many of the first lines are the last ones of the cue before."""
    for count in range(min(len(before), len(now)), 0, -1):
        if list(before[-count:]) == list(now[:count]) and any(now[:count]):
            return count
    return 0

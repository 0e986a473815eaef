"""SubStation (ASS, SSA), whose lines name who speaks. Read by pysubs2.

Typesetters draw with it: one line of speech is written in several layers, a sign is moved picture by picture, each a
line of its own in the file. What is one line to the eye is one here, and what is placed on the picture and spoken by
nobody is a sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from daemon.core.reasons import quoted
from daemon.subtitles import Cue, Mistake, Notice, lines_text

_EVENT = re.compile(r"(?:Dialogue|Comment)\s*:")
_EVENT_TIMES = re.compile(r"[^:]+:[^,]*,\s*\d+:\d{1,2}:\d{1,2}[.,:]\d+\s*,\s*\d+:\d{1,2}:\d{1,2}[.,:]\d+\s*,")
_PLACED = re.compile(r"\\(?:pos|move|clip|iclip|org)\s*\(")
_SIGN_STYLE = re.compile(r"\bsigns?\b", re.IGNORECASE)
_OLD = re.compile(r"^\s*\[V4 Styles\]", re.IGNORECASE | re.MULTILINE)

PICTURE_MS = 60
"""Lines that are one picture after the other follow within this."""
ANIMATED_MS = 250
"""A line that is shown no longer than this is a step of a movement, if the same text follows."""


def read_substation(text: str, mistakes: list[Mistake], notices: list[Notice]) -> Iterator[Cue]:
    """Its cues, in the order of the file."""
    import pysubs2

    rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if _EVENT.match(line)]
    broken = [(number, line) for number, line in rows if not _EVENT_TIMES.match(line)]
    if broken:  # pysubs2 would say so of the first, without its line
        mistakes.extend(Mistake(f"line {number}", f"no start and end: {quoted(line)}") for number, line in broken)
        return
    try:
        # By name: without styles pysubs2 does not recognise it.
        events = list(pysubs2.SSAFile.from_string(text, format_="ssa" if _OLD.search(text) else "ass"))
    except (pysubs2.exceptions.Pysubs2Error, ValueError, LookupError) as error:
        mistakes.append(Mistake("line 1", f"SubStation that can't be read: {quoted(str(error))}"))
        return
    if len(rows) != len(events):
        message = f"only {len(events)} of its {len(rows)} lines of Dialogue or Comment can be read"
        mistakes.append(Mistake("line 1", message))
        return
    signs: list[int] = []
    cues: list[Cue] = []
    for ordinal, ((line, _), event) in enumerate(zip(rows, events, strict=True), 1):
        if not event.is_text:
            continue
        actor = event.name.strip()
        if not actor and (_PLACED.search(event.text) or _SIGN_STYLE.search(event.style)):
            if event.plaintext.strip():
                signs.append(line)
            continue
        spoken = tuple((line, part) for part in event.plaintext.split("\n") if part.strip())
        cues.append(Cue(ordinal, line, event.start, event.end, spoken, actor))
    if signs:
        what = (
            "signs, placed on the picture and spoken by nobody, are left out"
            if len(signs) > 1
            else ("a sign, placed on the picture and spoken by nobody, is left out")
        )
        notices.append(Notice(lines_text(signs), what))
    merged, again = _merged(cues)
    if again:
        notices.append(Notice(lines_text(again), "the same text in another layer, or in the next picture, is one line"))
    yield from merged


def _merged(cues: Sequence[Cue]) -> tuple[list[Cue], list[int]]:
    """Layers and pictures of one line as one cue, and the lines of the file that were more of the same."""
    kept: list[Cue] = []
    latest: dict[tuple[str, str], int] = {}
    again: list[int] = []
    for cue in sorted(cues, key=lambda cue: cue.start_ms):
        key = (cue.actor, "\n".join(text.strip() for _, text in cue.lines))
        at = latest.get(key)
        if at is not None:
            before = kept[at]
            layered = cue.start_ms < before.end_ms
            moved = cue.start_ms - before.end_ms <= PICTURE_MS and cue.end_ms - cue.start_ms <= ANIMATED_MS
            if layered or moved:
                kept[at] = replace(before, end_ms=max(before.end_ms, cue.end_ms))
                again.append(cue.line)
                continue
        latest[key] = len(kept)
        kept.append(cue)
    return sorted(kept, key=lambda cue: cue.line), sorted(again)

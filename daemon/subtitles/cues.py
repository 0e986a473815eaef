"""The cues of a subtitle file: SubRip, WebVTT, and SubStation (ASS, SSA), whose lines name who speaks.

SubStation is read by pysubs2. Its readers of the other two go by the times alone: they take a WebVTT comment or
identifier for speech of the cue before, a number that is said for the number of a cue, and 100 hours for none; and like
every library's they leave out what they can't read without a word. A line that is lost there is never spoken. So
these two are taken apart here, with the line of every cue, and whatever is no cue is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from daemon.core.reasons import quoted
from daemon.subtitles import Mistake

Format = Literal["SubRip", "WebVTT", "SubStation"]

LONGEST_LINE = 4096
MOST_LINES = 100
"""Of a cue. More is another kind of file, which is told and not looked into."""

_TIME = r"(?:(\d+)\s*:\s*)?(\d{1,2})\s*:\s*(\d{1,2})(?:\s*[,.:]\s*(\d+))?"
# Arrows as editors of texts "mend" them: one or two dashes, longer dashes, a real arrow.
_TIMING = re.compile(rf"\s*{_TIME}\s*(?:[-‐‑‒–—―]{{1,3}}\s*>|→)\s*{_TIME}(?=\s|\Z)")
_MEANT_AS_TIMING = re.compile(
    r"\d\s*:\s*\d[^-–—→]{0,40}(?:-+>|[–—]>|→)|(?:-+>|[–—]>|→)\s*\d+\s*:\s*\d|^\s*-->|-->\s*$",
)
_NUMBER = re.compile(r"\s*(\d{1,9})\s*\Z")
_VTT_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?:\s|\Z)")
_VTT_LANGUAGE = re.compile(r"Language:\s*([A-Za-z][A-Za-z0-9-]*)\s*\Z")
_SUBSTATION = re.compile(r"^\s*(?:\[Script Info\]|\[V4\+? Styles\]|\[Events\])", re.IGNORECASE | re.MULTILINE)
_EVENT = re.compile(r"(?:Dialogue|Comment)\s*:")
_EVENT_TIMES = re.compile(r"[^:]+:[^,]*,\s*\d+:\d{1,2}:\d{1,2}[.,:]\d+\s*,\s*\d+:\d{1,2}:\d{1,2}[.,:]\d+\s*,")


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


@dataclass(frozen=True, slots=True)
class CueFile:
    """``language``: the tag in the file's head, "" without one."""

    format: Format
    cues: tuple[Cue, ...]
    language: str = ""


def read_cues(text: str, mistakes: list[Mistake]) -> CueFile:
    """The cues in the order of the file; what can't be read is added to ``mistakes``. ``text``'s lines end with
    ``\\n``."""
    if not _SUBSTATION.search(text) and (long := _long_line(text)):
        mistakes.append(Mistake(f"line {long}", f"more than {LONGEST_LINE:,} characters: these are no subtitles"))
        return CueFile("SubRip", ())
    lines = text.split("\n")
    if lines[0].lstrip().startswith("WEBVTT"):
        language = next((match[1] for line in _head(lines) if (match := _VTT_LANGUAGE.match(line))), "")
        found = CueFile("WebVTT", tuple(_read_blocks(_without_vtt_blocks(lines), mistakes, vtt=True)), language)
    elif _SUBSTATION.search(text):
        found = CueFile("SubStation", tuple(_read_substation(text, mistakes)))
    else:
        found = CueFile("SubRip", tuple(_read_blocks(lines, mistakes, vtt=False)))
    if not found.cues and not mistakes:
        mistakes.append(Mistake("line 1", "there is no cue in it: SubRip, WebVTT and SubStation (ASS) are read"))
    return replace(found, cues=tuple(cue for cue in found.cues if _is_fit(cue, mistakes)))


def _long_line(text: str) -> int | None:
    """The number of the first line that is too long."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if len(line) > LONGEST_LINE), None)


def _is_fit(cue: Cue, mistakes: list[Mistake]) -> bool:
    """Whether it can be looked into; and what is wrong with its times is told."""
    where = f"line {cue.line}"
    if len(cue.lines) > MOST_LINES or any(len(line) > LONGEST_LINE for _, line in cue.lines):
        message = f"the cue has more than {MOST_LINES} lines, or one of more than {LONGEST_LINE:,} characters"
        mistakes.append(Mistake(where, message))
        return False
    if cue.end_ms < cue.start_ms:
        times = f"{clock(cue.start_ms)} to {clock(cue.end_ms)}"
        mistakes.append(Mistake(where, f"the cue ends before it starts: {times}"))
    return True


def clock(milliseconds: int) -> str:
    """ "01:02:03.450"."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def milliseconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> int:
    """The groups of a time, to the nearest millisecond; ``fraction`` is what follows the point: "5" is half a
    second."""
    whole = (int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)
    return whole * 1000 + round(int((fraction or "0")[:6].ljust(6, "0")) / 1000)


# --- SubRip and WebVTT -------------------------------------------------------------------------------------


def _head(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[1:]:
        if not line.strip() or _TIMING.match(line):
            return
        yield line


def _without_vtt_blocks(lines: Sequence[str]) -> list[str]:
    """The same lines, those of the head and of the blocks that are no cues emptied."""
    kept = list(lines)
    inside = True  # the head
    for number, line in enumerate(lines):
        if not line.strip() or _TIMING.match(line):
            inside = False
        elif not inside and _VTT_BLOCK.match(line) and not lines[number - 1].strip():
            # An identifier may be called NOTE, too: then its times follow at once.
            inside = number + 1 >= len(lines) or not _TIMING.match(lines[number + 1])
        if inside:
            kept[number] = ""
    return kept


def _read_blocks(lines: Sequence[str], mistakes: list[Mistake], *, vtt: bool) -> Iterator[Cue]:
    """Each cue: the lines from its times to the next times, without what names the next cue."""
    timings = [(place, match) for place, line in enumerate(lines) if (match := _TIMING.match(line))]
    for place, line in enumerate(lines):
        if _MEANT_AS_TIMING.search(line) and not _TIMING.match(line):
            mistakes.append(Mistake(f"line {place + 1}", f"these are no times of a cue: {quoted(line.strip())}"))
    names = [_name_place(lines, place, vtt=vtt) for place, _ in timings]
    first = names[0] if names and names[0] is not None else (timings[0][0] if timings else len(lines))
    _tell_stray(lines, 0, first if timings else 0, mistakes)
    for ordinal, (place, match) in enumerate(timings):
        end = len(lines)
        if ordinal + 1 < len(timings):
            following = names[ordinal + 1]
            end = timings[ordinal + 1][0] if following is None else following
        body = [(number + 1, lines[number]) for number in range(place + 1, end)]
        if vtt:
            blank = next((at for at, (_, line) in enumerate(body) if not line.strip()), len(body))
            _tell_stray(lines, place + 1 + blank, end, mistakes)
            body = body[:blank]
        name = names[ordinal]
        written = _NUMBER.match(lines[name]) if name is not None else None
        if written and not vtt:
            _tell_cues_without_times(body, int(written[1]), mistakes)
        yield Cue(
            number=int(written[1]) if written else ordinal + 1,
            line=place + 1,
            start_ms=milliseconds(match[1], match[2], match[3], match[4]),
            end_ms=milliseconds(match[5], match[6], match[7], match[8]),
            lines=tuple((number, line) for number, line in body if line.strip() and not _MEANT_AS_TIMING.search(line)),
        )


def _name_place(lines: Sequence[str], timing: int, *, vtt: bool) -> int | None:
    """Where the number (or the identifier, of WebVTT) of the cue with its times at ``timing`` stands; None without
    one."""
    above = timing - 1
    if above >= 0 and _NUMBER.match(lines[above]):
        return above
    starts_a_block = above == 0 or (above > 0 and not lines[above - 1].strip())
    if vtt:
        return above if starts_a_block and lines[above].strip() and "-->" not in lines[above] else None
    # A number with empty lines around it: files whose every line is followed by one. Said alone, it would have a cue
    # of its own.
    if above >= 1 and not lines[above].strip() and _NUMBER.match(lines[above - 1]):
        alone = above == 1 or not lines[above - 2].strip()
        return above - 1 if alone and not _TIMING.match(lines[above - 3] if above >= 3 else "") else None
    return None


def _tell_cues_without_times(body: Sequence[tuple[int, str]], number: int, mistakes: list[Mistake]) -> None:
    """In the text of cue ``number``: an empty line, the next number, and a text. Its times are lost, or it is said."""
    for (_, before), (place, line), (_, after) in zip(body, body[1:], body[2:], strict=False):
        meant = _MEANT_AS_TIMING.search(after)  # which is told already
        if not before.strip() and line.strip() == str(number + 1) and after.strip() and not meant:
            mistakes.append(Mistake(f"line {place}", f"cue {number + 1} has no times"))
            return


def _tell_stray(lines: Sequence[str], start: int, end: int, mistakes: list[Mistake]) -> None:
    """Text between ``start`` and ``end`` that no cue has."""
    stray = [place for place in range(start, end) if lines[place].strip()]
    if stray:
        text = quoted(lines[stray[0]].strip())
        message = f"{text} belongs to no cue, since an empty line ends one: take it out, or the empty line before it"
        mistakes.append(Mistake(f"line {stray[0] + 1}", message if start else f"{text} stands before the first cue"))


# --- SubStation --------------------------------------------------------------------------------------------


def _read_substation(text: str, mistakes: list[Mistake]) -> Iterator[Cue]:
    import pysubs2

    rows = [(number, line) for number, line in enumerate(text.split("\n"), 1) if _EVENT.match(line)]
    broken = [(number, line) for number, line in rows if not _EVENT_TIMES.match(line)]
    if broken:  # pysubs2 would say so of the first, without its line
        mistakes.extend(Mistake(f"line {number}", f"no start and end: {quoted(line)}") for number, line in broken)
        return
    try:
        events = list(pysubs2.SSAFile.from_string(text))
    except (pysubs2.exceptions.Pysubs2Error, ValueError, LookupError) as error:
        mistakes.append(Mistake("line 1", f"SubStation that can't be read: {quoted(str(error))}"))
        return
    if len(rows) != len(events):
        message = f"only {len(events)} of its {len(rows)} lines of Dialogue or Comment can be read"
        mistakes.append(Mistake("line 1", message))
        return
    places = [number for number, _ in rows]
    for ordinal, (line, event) in enumerate(zip(places, events, strict=True), 1):
        if event.is_text:
            spoken = tuple((line, part) for part in event.plaintext.split("\n") if part.strip())
            yield Cue(ordinal, line, event.start, event.end, spoken, event.name.strip())

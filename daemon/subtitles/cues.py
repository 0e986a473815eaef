"""The cues of a subtitle file: SubRip, WebVTT, and SubStation (ASS, SSA), whose lines name who speaks.

SubStation is read by pysubs2. Its readers of the other two go by the times alone: they take a WebVTT comment or
identifier for speech of the cue before, a number that is said for the number of a cue, and 100 hours for none; and like
every library's they leave out what they can't read without a word. A line that is lost there is never spoken. So
these two are taken apart here, with the line of every cue, and whatever is no cue is told.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from daemon.core.reasons import quoted
from daemon.subtitles import Cue, Mistake, Notice
from daemon.subtitles.substation import read_substation
from daemon.subtitles.times import Timing, doubt, dressed_number, plain_number, read_timing, without_invisible

Format = Literal["SubRip", "WebVTT", "SubStation"]

LONGEST_LINE = 4096
MOST_LINES = 100
"""Of a cue. More is another kind of file, which is told and not looked into."""

_VTT_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION|WEBVTT)(?:\s|\Z)")
_VTT_LANGUAGE = re.compile(r"Language:\s*([A-Za-z][A-Za-z0-9-]*)\s*\Z")
_SUBSTATION = re.compile(r"^\s*(?:\[Script Info\]|\[V4\+? Styles\]|\[Events\])", re.IGNORECASE | re.MULTILINE)
_HLS_MAP = re.compile(r"X-TIMESTAMP-MAP\s*=\s*(.*)")
_HLS_LOCAL = re.compile(r"LOCAL:(?:(\d+):)?(\d{1,2}):(\d{1,2})\.(\d+)")
_HLS_MPEGTS = re.compile(r"MPEGTS:(\d{1,12})")

DEFAULT_FPS = 25.0
"""Pictures a second, where the times count pictures and nobody says how many there are."""


@dataclass(frozen=True, slots=True)
class CueFile:
    """``language``: the tag in the file's head, "" without one."""

    format: Format
    cues: tuple[Cue, ...]
    language: str = ""


def read_cues(
    text: str, mistakes: list[Mistake], notices: list[Notice] | None = None, *, fps: float | None = None
) -> CueFile:
    """The cues in the order of the file; what can't be read is added to ``mistakes``, what was assumed or left out to
    ``notices``. ``text``'s lines end with ``\n``. ``fps``: pictures a second, for times that count them."""
    notices = [] if notices is None else notices
    text = without_invisible(text)
    substation = _SUBSTATION.search(text) is not None
    if not substation and (long := _long_line(text)):
        mistakes.append(Mistake(f"line {long}", f"more than {LONGEST_LINE:,} characters: these are no subtitles"))
        return CueFile("SubRip", ())
    lines = text.split("\n")
    if next((line for line in lines if line.strip()), "").lstrip().startswith("WEBVTT"):
        language = next((match[1] for line in _head(lines) if (match := _VTT_LANGUAGE.match(line))), "")
        cues = list(_read_blocks(_without_vtt_blocks(lines), mistakes, notices, fps, vtt=True))
        found = CueFile("WebVTT", tuple(_moved(cues, _hls_offsets(lines))), language)
    elif substation:
        found = CueFile("SubStation", tuple(read_substation(text, mistakes, notices)))
    else:
        found = CueFile("SubRip", tuple(_read_blocks(lines, mistakes, notices, fps, vtt=False)))
    if not found.cues and not mistakes and not notices:
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
        if not line.strip() or read_timing(line):
            return
        yield line


def _without_vtt_blocks(lines: Sequence[str]) -> list[str]:
    """The same lines, those of the heads (joined files have several) and of the blocks that are no cues emptied."""
    kept = list(lines)
    inside = True  # the head
    for number, line in enumerate(lines):
        starts_a_block = number > 0 and not lines[number - 1].strip()
        if not line.strip() or read_timing(line):
            inside = False
        elif not inside and starts_a_block and _VTT_BLOCK.match(line):
            # An identifier may be called NOTE, too: then its times follow at once.
            inside = number + 1 >= len(lines) or not read_timing(lines[number + 1])
        if inside or (number == 0 and not line.strip()):
            kept[number] = ""
            inside = True
    return kept


def _hls_offsets(lines: Sequence[str]) -> list[tuple[int, int]]:
    """From which line on (from 1) the times are later by how many milliseconds than those of the first segment: pieces
    of a stream each say where their clock begins (RFC 8216, 3.5), in ticks of 1/90,000 s."""
    offsets: list[tuple[int, int]] = []
    for number, line in enumerate(lines, 1):
        if said := _HLS_MAP.match(line):
            local, ticks = _HLS_LOCAL.search(said[1]), _HLS_MPEGTS.search(said[1])
            if local and ticks:
                offsets.append((number, int(ticks[1]) // 90 - milliseconds(*local.groups())))
    return [(number, offset - offsets[0][1]) for number, offset in offsets]


def _moved(cues: Sequence[Cue], offsets: Sequence[tuple[int, int]]) -> Iterator[Cue]:
    for cue in cues:
        by = next((offset for number, offset in reversed(offsets) if number < cue.line), 0)
        yield replace(cue, start_ms=cue.start_ms + by, end_ms=cue.end_ms + by) if by else cue


def _read_blocks(
    lines: Sequence[str], mistakes: list[Mistake], notices: list[Notice], fps: float | None, *, vtt: bool
) -> Iterator[Cue]:
    """Each cue: the lines from its times to the next times, without what names the next cue."""
    timings: list[tuple[int, Timing]] = []
    doubtful: set[int] = set()
    for place, line in enumerate(lines):
        if (timing := read_timing(line)) is not None:
            timings.append((place, timing))
        elif (why := doubt(line)) is not None:
            doubtful.add(place)
            mistakes.append(Mistake(f"line {place + 1}", f"{why}: {quoted(line.strip())}"))
    names = [_name_place(lines, place, vtt=vtt) for place, _ in timings]
    first = names[0] if names and names[0] is not None else (timings[0][0] if timings else len(lines))
    _tell_stray(lines, 0, first if timings else 0, mistakes)
    numbered = sum(name is not None for name in names) * 2 > len(names)
    rate = _frame_rate([timing for _, timing in timings], fps, notices)
    for ordinal, (place, timing) in enumerate(timings):
        end = len(lines)
        if ordinal + 1 < len(timings):
            following = names[ordinal + 1]
            end = timings[ordinal + 1][0] if following is None else following
        body = [(number + 1, lines[number]) for number in range(place + 1, end)]
        name = names[ordinal]
        written = None if name is None else plain_number(lines[name]) or dressed_number(lines[name])
        if vtt:
            # A line of one space is shown, as an empty line: automatic captions hold their place with it.
            blank = next((at for at, (_, line) in enumerate(body) if not line), len(body))
            _tell_stray(lines, place + 1 + blank, end, mistakes)
            body = body[:blank]
        elif numbered:
            named = ordinal + 1 == len(timings) or names[ordinal + 1] is not None
            _tell_lost_numbers(body, written or ordinal + 1, doubtful, named=named, told=mistakes)
        yield Cue(
            number=written or ordinal + 1,
            line=place + 1,
            start_ms=_moment(timing.start, rate, place, mistakes),
            end_ms=_moment(timing.end, rate, place, mistakes),
            lines=tuple((number, line) for number, line in body if line.strip() and number - 1 not in doubtful),
        )


def _frame_rate(timings: Sequence[Timing], fps: float | None, notices: list[Notice]) -> float | None:
    """Pictures a second, where the times count them; None where they don't."""
    if not timings or not all(timing.has_frames for timing in timings):
        return None
    rate = fps or DEFAULT_FPS
    if fps is None:
        notices.append(
            Notice("times", f"they count pictures (HH:MM:SS:FF), taken as {rate:g} a second: --fps says better")
        )
    return rate


def _moment(time: tuple[str | None, ...], rate: float | None, place: int, mistakes: list[Mistake]) -> int:
    hours, minutes, seconds, _, fraction = time
    if rate is None:
        return milliseconds(hours, minutes or "0", seconds or "0", fraction)
    picture = int(fraction or 0)
    if picture >= rate:
        mistakes.append(Mistake(f"line {place + 1}", f"picture {picture} of {rate:g} a second: say which --fps it has"))
    return milliseconds(hours, minutes or "0", seconds or "0", None) + round(picture * 1000 / rate)


def _name_place(lines: Sequence[str], timing: int, *, vtt: bool) -> int | None:
    """Where the number (or the identifier, of WebVTT) of the cue with its times at ``timing`` stands; None without
    one."""
    above = timing - 1
    if above >= 0 and plain_number(lines[above]) is not None:
        return above
    starts_a_block = above == 0 or (above > 0 and not lines[above - 1].strip())
    if vtt:
        return above if starts_a_block and lines[above].strip() and "-->" not in lines[above] else None
    if starts_a_block and dressed_number(lines[above]) is not None:
        return above
    # A number with empty lines around it: files whose every line is followed by one. Said alone, it would have a cue
    # of its own.
    if above >= 1 and not lines[above].strip() and plain_number(lines[above - 1]) is not None:
        alone = above == 1 or not lines[above - 2].strip()
        return above - 1 if alone and not read_timing(lines[above - 3] if above >= 3 else "") else None
    return None


def _tell_lost_numbers(
    body: Sequence[tuple[int, str]], number: int, doubtful: Collection[int], *, named: bool, told: list[Mistake]
) -> None:
    """A number alone behind an empty line in the text of cue ``number``: its times are lost, or it is said; unless the
    next line is one of those that are told already (``doubtful``, from 0). And what stands in the place of the next
    cue's number, where that has none (not ``named``)."""
    begun = False
    for at, (place, line) in enumerate(body):
        alone = at > 0 and not body[at - 1][1].strip()
        if begun and alone and dressed_number(line) is not None:
            lost = dressed_number(line)
            if place in doubtful:
                message = ""
            elif lost == number + 1 and any(text.strip() for _, text in body[at + 1 :]):
                message = f"cue {lost} has no times"
            else:
                message = f"{quoted(line.strip())} stands alone, like the number of a cue: take it out, "
                message += "or the empty line before it if it is said"
            if message:
                told.append(Mistake(f"line {place}", message))
            return
        if begun and alone and not named and at == len(body) - 1 and line.strip():
            message = (
                f"{quoted(line.strip())} stands where the number of a cue does: write the number, or an empty line"
            )
            told.append(Mistake(f"line {place}", f"{message} behind it if it is said"))
        begun = begun or bool(line.strip())


def _tell_stray(lines: Sequence[str], start: int, end: int, mistakes: list[Mistake]) -> None:
    """Text between ``start`` and ``end`` that no cue has."""
    stray = [place for place in range(start, end) if lines[place].strip()]
    if stray:
        text = quoted(lines[stray[0]].strip())
        message = f"{text} belongs to no cue, since an empty line ends one: take it out, or the empty line before it"
        mistakes.append(Mistake(f"line {stray[0] + 1}", message if start else f"{text} stands before the first cue"))

"""Subtitles and voices to a job: every line of speech becomes a segment of its speaker, in its cue's time.

Who speaks a line is said by the table of speakers, else by its tag. A line without either goes on with a sentence of
the line before, and is its speaker's; or it is the default speaker's.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from daemon.core.job import JobRejected, Limits, Reason
from daemon.core.job_parser import parse_job
from daemon.core.reasons import quoted
from daemon.subtitles import Cue, Mistake, Notice, lines_text
from daemon.subtitles.cast import Cast, Voice, fold, read_cast
from daemon.subtitles.cues import CueFile, clock, read_cues
from daemon.subtitles.encoding import Decoded, NotText, broken_character, decode
from daemon.subtitles.rolling import unrolled
from daemon.subtitles.speaker_table import SpeakerTable, read_speaker_table
from daemon.subtitles.speech import FORMS, Form, LeftOut, Rules, Said, join_lines, read_speech

SENTENCE_GAP_MS = 2000
"""A sentence that goes on in the next cue does so within this time."""

JOIN_GAP_MS = 1000
"""Cues of one sentence are joined over a silence of at most this."""

MADE_HERE = ("schema", "kind", "redo", "job_id", "language", "priority", "speakers", "segments")

_GOES_ON = re.compile(r"(?:\.\.\.|…|[,、，])\s*\Z|[-–—]\s*\Z")
_TAKES_UP = re.compile(r"\A(?:\.\.\.|…)")
_SEGMENT_PATH = re.compile(r"\$\.segments\[(\d+)\]")
_SPEAKER_PATH = re.compile(r"\$\.speakers\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for. ``folder``: where the job will lie; its references are named relative to it."""

    subtitles: Path
    folder: Path
    voices: Sequence[str] = ()
    voice_files: Sequence[Path] = ()
    aliases: Sequence[str] = ()
    speaker_table: Path | None = None
    forms: Sequence[Form] = FORMS
    no_speakers: Sequence[str] = ()
    default_speaker: str | None = None
    keep_speaker: bool = False
    join: bool = False
    encoding: str | None = None
    fps: float | None = None
    offset_ms: int = 0
    language: str | None = None
    job_id: str | None = None
    priority: int | None = None
    settings: Sequence[str] = ()


@dataclass(slots=True)
class Line:
    """One line of the film: a segment to be. ``origin``: how its speaker was found."""

    said: Said
    voice: Voice
    start_ms: int
    end_ms: int
    text: str
    origin: str


@dataclass(slots=True)
class Composed:
    """The job, what there is to say about it, and why it is none if there are mistakes."""

    mistakes: list[Mistake] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    decoded: Decoded | None = None
    file: CueFile | None = None
    cast: Cast = field(default_factory=Cast)
    lines: list[Line] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def voices(self) -> list[Voice]:
        """Those that speak, in order of first appearance."""
        return list({id(line.voice): line.voice for line in self.lines}.values())

    def overlaps(self) -> Iterator[tuple[Line, int]]:
        """Lines that begin before an earlier one ends, and by how many milliseconds."""
        latest = 0
        for line in self.lines:
            if line.start_ms < latest and line.end_ms > line.start_ms:
                yield line, min(latest, line.end_ms) - line.start_ms
            latest = max(latest, line.end_ms)


def compose(wishes: Wishes, limits: Limits) -> Composed:
    """Make the job. Recordings are not looked into."""
    made = Composed()
    made.cast = read_cast(
        wishes.voices, wishes.voice_files, wishes.aliases, made.mistakes, made.notices, language=wishes.language
    )
    made.decoded = _read(wishes.subtitles, wishes, limits, made.mistakes, encoding=wishes.encoding)
    if made.decoded is None:
        return made
    made.notices += [Notice(f"line {line}", what) for line, what in made.decoded.repaired]
    made.file = read_cues(made.decoded.text, made.mistakes, made.notices, fps=wishes.fps)
    made.file = replace(made.file, cues=tuple(_looked_through(made.file.cues, wishes, made)))
    table = _read_table(wishes, made.file, limits, made.mistakes)
    spoken = _read_speech(made, wishes)
    _Casting(made, wishes, table).cast(spoken)
    if wishes.join:
        made.lines = _joined(made.lines, limits.text_characters)
    made.lines.sort(key=lambda line: line.start_ms)
    for voice in made.cast.voices.values():
        if made.lines and voice.asked and voice not in made.voices:
            made.mistakes.append(Mistake(voice.where, f"no line is spoken by {quoted(voice.name)}"))
    made.document = _document(made, wishes)
    made.mistakes.extend(_parsers_mistakes(made, wishes, limits))
    return made


FILM_STARTS_AT_MS = 3_600_000
"""Where the clock of many masters stands when the film begins: 01:00:00:00."""
FILM_STARTS_WITHIN_MS = 1_800_000


def _looked_through(cues: Sequence[Cue], wishes: Wishes, made: Composed) -> Iterator[Cue]:
    """The cues on the film's clock, every line once; what is odd about them is reported."""
    kept, folded = unrolled(cues)
    if folded:
        message = "the captions roll up: what the cue before shows already is spoken once"
        made.notices.append(Notice(lines_text(folded), message))
    instant = [cue.line for cue in kept if cue.start_ms == cue.end_ms]
    if instant:
        made.notices.append(
            Notice(lines_text(instant), "it is shown for no time at all, so it is spoken without an end")
        )
    first = min((cue.start_ms for cue in kept), default=0)
    if not wishes.offset_ms and FILM_STARTS_AT_MS <= first < FILM_STARTS_AT_MS + FILM_STARTS_WITHIN_MS:
        message = f"nothing is said before {clock(first)}: if the film starts at 01:00:00, give --offset -1:00:00"
        made.notices.append(Notice("times", message))
    for cue in kept:
        for line, text in cue.lines:
            if (why := broken_character(text)) is not None:
                made.mistakes.append(Mistake(f"line {line}", f"{why}: {quoted(text.strip())}"))
        if cue.start_ms + wishes.offset_ms < 0:
            message = f"the cue starts at {clock(cue.start_ms)}, before the film does with this --offset"
            made.mistakes.append(Mistake(f"line {cue.line}", message))
            continue
        yield replace(cue, start_ms=cue.start_ms + wishes.offset_ms, end_ms=cue.end_ms + wishes.offset_ms)


def _read(
    file: Path, wishes: Wishes, limits: Limits, mistakes: list[Mistake], *, encoding: str | None = None
) -> Decoded | None:
    """The file's text, or None with a mistake told."""
    try:
        with file.open("rb") as stream:
            data = stream.read(limits.job_bytes + 1)
        if len(data) > limits.job_bytes:
            raise NotText(f"it has more than {limits.job_bytes:,} bytes, the limit for a job")
        return decode(data, encoding=encoding, language=wishes.language)
    except (OSError, ValueError) as error:
        mistakes.append(Mistake(str(file), f"it can't be read: {getattr(error, 'strerror', None) or error}"))
    except NotText as error:
        mistakes.append(Mistake(str(file), str(error)))
    return None


def _read_table(wishes: Wishes, file: CueFile, limits: Limits, mistakes: list[Mistake]) -> SpeakerTable:
    if wishes.speaker_table is None or (read := _read(wishes.speaker_table, wishes, limits, mistakes)) is None:
        return SpeakerTable()
    return read_speaker_table(read.text, wishes.speaker_table.name, file.cues, mistakes)


def _read_speech(made: Composed, wishes: Wishes) -> list[tuple[int, list[Said]]]:
    """What is said in each cue, by the cue's place in the file."""
    assert made.file is not None
    excluded = {fold(name) for name in wishes.no_speakers}
    rules = Rules(
        forms=wishes.forms,
        has_voice=lambda name: made.cast.find(name) is not None,
        no_speaker=lambda name: fold(name) in excluded,
    )
    certain = [said for cue in made.file.cues for said in read_speech(cue, rules)[0]]
    evident = {said.form for said in certain if said.form and said.name and made.cast.find(said.name)}
    rules = replace(rules, evident=evident)
    spoken = []
    for place, cue in enumerate(made.file.cues):
        said, left_out = read_speech(cue, rules)
        spoken.append((place, said))
        made.left_out.extend(left_out)
    return spoken


# --- who speaks --------------------------------------------------------------------------------------------


class _Casting:
    """Gives every line its voice, in the order of the file."""

    def __init__(self, made: Composed, wishes: Wishes, table: SpeakerTable) -> None:
        self._made = made
        self._keep = wishes.keep_speaker
        self._table = table
        self._default = self._default_voice(wishes)
        self._unknown: dict[str, tuple[Said, list[int]]] = {}
        self._nobody: list[int] = []

    def _default_voice(self, wishes: Wishes) -> Voice | None:
        cast = self._made.cast
        if wishes.default_speaker is None:
            return next(iter(cast.voices.values())) if len(cast.voices) == 1 else None
        voice = cast.find(wishes.default_speaker)
        if voice is None:
            message = f"there is no voice {quoted(wishes.default_speaker)}{cast.near(wishes.default_speaker)}"
            self._made.mistakes.append(Mistake("--default-speaker", message))
        return voice

    def cast(self, spoken: Sequence[tuple[int, list[Said]]]) -> None:
        before: Line | None = None
        for place, parts in spoken:
            for (start_ms, end_ms), (number, said) in zip(_shares(parts), enumerate(parts, 1), strict=True):
                found = self._voice(place, number, said, before)
                if found is None:
                    before = None
                    continue
                voice, origin = found
                before = Line(said, voice, start_ms, end_ms, said.text, origin)
                self._made.lines.append(before)
        self._tell(spoken)

    def _voice(self, place: int, number: int, said: Said, before: Line | None) -> tuple[Voice, str] | None:
        assigned = self._table.find(place, number)
        name = assigned.name if assigned else said.name
        if name is not None:
            voice = self._made.cast.find(name)
            if voice is None and assigned:
                message = f"there is no voice {quoted(name)}{self._made.cast.near(name)}"
                self._made.mistakes.append(Mistake(assigned.where, message))
            elif voice is None:
                self._unknown.setdefault(fold(name), (said, []))[1].append(said.line)
            return None if voice is None else (voice, "table" if assigned else "tag")
        if before is not None and not said.turn:
            if self._keep:
                return before.voice, "kept"
            if goes_on(before.text, said.text, said.cue.start_ms - before.end_ms):
                return before.voice, "sentence"
        if self._default is None:
            self._nobody.append(said.line)
            return None
        return self._default, "default"

    def _tell(self, spoken: Sequence[tuple[int, list[Said]]]) -> None:
        mistakes = self._made.mistakes
        for said, lines in self._unknown.values():
            name = said.name or ""
            message = f"{quoted(name)} has no voice{self._made.cast.near(name) or '.'}"
            if said.form != "voice":
                message += f" If it is no speaker: --not-a-speaker {quoted(name)}"
            mistakes.append(Mistake(lines_text(lines), message))
        if self._nobody:
            message = "nothing says who speaks: add --default-speaker NAME, or a table of speakers (--speakers)"
            mistakes.append(Mistake(lines_text(self._nobody), message))
        counts = {place: len(parts) for place, parts in spoken}
        for place, part, assigned in self._table.parts():
            if not 1 <= part <= counts[place]:
                heard = f"{counts[place]} speak" + ("s" if counts[place] == 1 else "")
                mistakes.append(Mistake(assigned.where, f"there is no speech {part} in that cue: {heard} in it"))


def _shares(parts: Sequence[Said]) -> list[tuple[int, int]]:
    """The times of those who speak in one cue, in milliseconds: one after the other, by the length of what they
    say."""
    weights = [sum(character.isalnum() for character in said.text) for said in parts]
    total, passed = sum(weights), 0
    times = []
    for said, weight in zip(parts, weights, strict=True):
        length = max(0, said.cue.end_ms - said.cue.start_ms)
        start = said.cue.start_ms + length * passed // total
        passed += weight
        times.append((start, said.cue.start_ms + length * passed // total))
    return times


def goes_on(before: str, text: str, gap_ms: int) -> bool:
    """Whether ``text`` is the rest of the sentence ``before``, which ended ``gap_ms`` earlier. Only marks and small
    letters count as signs of it: many subtitles have no full stops."""
    if gap_ms > SENTENCE_GAP_MS:
        return False
    return bool(_GOES_ON.search(before) or _TAKES_UP.search(text)) or (text[:1].islower() and before[-1:] not in ".?!")


def _joined(lines: Sequence[Line], most_characters: int) -> list[Line]:
    """Lines of one voice that are one sentence, as one."""
    joined: list[Line] = []
    for line in lines:
        if joined:
            last = joined[-1]
            gap = line.start_ms - last.end_ms
            text = join_lines([last.text, _TAKES_UP.sub("", line.text).lstrip()])
            if (
                line.voice is last.voice
                and 0 <= gap <= JOIN_GAP_MS
                and goes_on(last.text, line.text, gap)
                and len(text) <= most_characters
            ):
                joined[-1] = replace(last, end_ms=line.end_ms, text=text)
                continue
        joined.append(line)
    return joined


# --- the document ------------------------------------------------------------------------------------------


def _document(made: Composed, wishes: Wishes) -> dict[str, Any]:
    assert made.file is not None
    document: dict[str, Any] = {"schema": 1, "job_id": _job_id(wishes)}
    language = wishes.language or made.file.language
    if language:
        document["language"] = language
    if wishes.priority is not None:
        document["priority"] = wishes.priority
    for setting in wishes.settings:
        _set(document, setting, made.mistakes)
    document["speakers"] = [
        {
            "id": voice.name,
            "references": [
                {reference.key: reference_path(reference.path, wishes.folder), "text": reference.text}
                for reference in voice.references
            ],
        }
        for voice in made.voices
    ]
    document["segments"] = [
        {
            "index": index,
            "speaker": line.voice.name,
            "text": line.text,
            "start": line.start_ms / 1000,
            **({"end": line.end_ms / 1000} if line.end_ms > line.start_ms else {}),
        }
        for index, line in enumerate(made.lines)
    ]
    return document


def _job_id(wishes: Wishes) -> str:
    return wishes.job_id or unicodedata.normalize("NFC", wishes.subtitles.stem)


def reference_path(path: Path, folder: Path) -> str:
    """A reference as the job in ``folder`` names it: relative if it lies below, so that both may move together."""
    full, base = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(full, base) if Path(full).is_relative_to(base) else full


def _set(document: dict[str, Any], setting: str, mistakes: list[Mistake]) -> None:
    """``output.sample_rate=48000`` into the document; the value is JSON, or else a text."""
    where = f"--job-set {setting}"
    key, equals, written = setting.partition("=")
    *tables, name = key.strip().split(".")
    if not equals or not name or not all(tables):
        mistakes.append(Mistake(where, "is no KEY=VALUE such as output.sample_rate=48000"))
        return
    if (tables or [name])[0] in MADE_HERE:
        mistakes.append(Mistake(where, f"{quoted((tables or [name])[0])} can't be set here: it has its own option"))
        return
    try:
        value = json.loads(written)
    except ValueError:
        value = written
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            mistakes.append(Mistake(where, f"{quoted(table)} is set to a value already"))
            return
        document = inner
    document[name] = value


def _parsers_mistakes(made: Composed, wishes: Wishes, limits: Limits) -> Iterator[Mistake]:
    """What the daemon would refuse, told by the lines of the subtitles."""
    if not made.lines:
        if not made.mistakes:
            yield Mistake(str(wishes.subtitles), "no line in it is speech")
        return
    try:
        parse_job(json.dumps(made.document, ensure_ascii=False).encode(), stem="job", limits=limits)
    except JobRejected as rejection:
        for reason in rejection.reasons:
            if reason.code == "no_references" and made.mistakes:
                continue  # what is wrong with them is told already
            yield Mistake(_where(reason, made), reason.message)


def _where(reason: Reason, made: Composed) -> str:
    if match := _SEGMENT_PATH.match(reason.path):
        return f"line {made.lines[int(match[1])].said.line}"
    if match := _SPEAKER_PATH.match(reason.path):
        return made.voices[int(match[1])].where
    options = {"$.job_id": "--job-id", "$.language": "--language", "$.priority": "--priority"}
    return options.get(reason.path, reason.path)

"""``dubd srt``: subtitles and voices to a job, which may be submitted at once."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation, describe_os_error
from daemon.commands.showing import plain, plural
from daemon.subtitles import Mistake, Notice, lines_text

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.subtitles.job import Composed, Wishes
    from daemon.subtitles.speech import Form

Told = TypeVar("Told", Mistake, Notice)

TO_STANDARD_OUTPUT = Path("-")

LONGEST_SHOWN = 40
"""Characters of a text that is only there to be recognised."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command's options, as ``dubd srt --help`` explains them."""

    subtitles: Path
    output: Path | None
    submit: bool
    wait: bool
    speaker_tags: tuple[str, ...]
    voices: tuple[str, ...]
    voice_files: tuple[Path, ...]
    aliases: tuple[str, ...]
    speaker_table: Path | None
    no_speakers: tuple[str, ...]
    default_speaker: str | None
    keep_speaker: bool
    join: bool
    encoding: str | None
    fps: float | None
    offset: str | None
    language: str | None
    job_id: str | None
    priority: int | None
    settings: tuple[str, ...]


def execute(invocation: Invocation, asked: Asked) -> int:
    from daemon.subtitles.job import compose

    settings = invocation.settings()
    printed = asked.output == TO_STANDARD_OUTPUT
    handed_over = asked.submit or asked.wait
    if printed and handed_over:
        raise CommandFailed("-o - prints the job; it can't be submitted, too", ExitCode.REJECTED)
    output = asked.output or asked.subtitles.with_suffix(".json")
    made = compose(_wishes(asked, Path() if printed else output.parent), settings.limits)
    mistakes = [*made.mistakes, *_reference_mistakes(made, settings)]
    if mistakes:
        lines = [f"{plain(asked.subtitles)} can't be made a job:"]
        lines += [f"  {plain(mistake.where)}: {plain(mistake.message)}" for mistake in _in_order(mistakes)]
        lines += [f"  {plain(notice.where)}: {plain(notice.message)}" for notice in _in_order(made.notices)]
        raise CommandFailed("\n".join(lines), ExitCode.REJECTED)
    data = json.dumps(made.document, ensure_ascii=False, indent=1).encode() + b"\n"
    if printed:
        sys.stdout.buffer.write(data)
    else:
        _write(output, data, replace=asked.output is not None)
    print("\n".join(_summary(asked.subtitles, made)), file=sys.stderr, flush=True)
    if handed_over:
        from daemon.commands import submit

        return submit.execute(invocation, [output], wait=asked.wait)
    if not printed:
        print(output, flush=True)
    return ExitCode.OK


def _wishes(asked: Asked, folder: Path) -> Wishes:
    from daemon.subtitles.job import Wishes

    return Wishes(
        subtitles=asked.subtitles,
        folder=folder,
        voices=asked.voices,
        voice_files=asked.voice_files,
        aliases=asked.aliases,
        speaker_table=asked.speaker_table,
        forms=_forms(asked.speaker_tags),
        no_speakers=asked.no_speakers,
        default_speaker=asked.default_speaker,
        keep_speaker=asked.keep_speaker,
        join=asked.join,
        encoding=asked.encoding,
        fps=asked.fps,
        offset_ms=_offset(asked.offset),
        language=asked.language,
        job_id=asked.job_id,
        priority=asked.priority,
        settings=asked.settings,
    )


def _offset(given: str | None) -> int:
    """Milliseconds."""
    import re

    match = re.fullmatch(r"([+-]?)(?:(?:(\d{1,3}):)?(\d{1,4}):)?(\d{1,6}(?:[.,]\d{1,6})?)", (given or "0").strip())
    if match is None:
        message = f"--offset is seconds or H:MM:SS, such as -1:00:00 or 12.5, not {plain(given or '')}"
        raise CommandFailed(message, ExitCode.REJECTED)
    sign, hours, minutes, seconds = match.groups()
    total = int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds.replace(",", "."))
    return round(total * 1000) * (-1 if sign == "-" else 1)


def _forms(given: Sequence[str]) -> tuple[Form, ...]:
    from daemon.subtitles.speech import FORMS

    if not given:
        return FORMS
    if unknown := [form for form in given if form not in (*FORMS, "none")]:
        message = f"--speaker-tag is one of {', '.join(FORMS)} and none, not {plain(unknown[0])}"
        raise CommandFailed(message, ExitCode.REJECTED)
    return tuple(form for form in FORMS if form in given)


def _reference_mistakes(made: Composed, settings: Settings) -> Iterator[Mistake]:
    """What is wrong with the recordings: those of the voices that speak, and those that the command names."""
    from daemon.commands.reference_copies import check_reference

    speaking = {id(voice) for voice in made.voices}
    for voice in made.cast.voices.values():
        if not voice.asked and id(voice) not in speaking:
            continue
        for reference in voice.references:
            try:
                check_reference(
                    Path(os.path.realpath(reference.path)), reference.key, settings, name=str(reference.path)
                )
            except OSError as error:
                yield Mistake(reference.where, describe_os_error(error))
            except ValueError as error:
                yield Mistake(reference.where, str(error).replace(": it is looked for relative to the inbox", ""))


def _in_order(mistakes: Sequence[Told]) -> list[Told]:
    """Those of the subtitles by line, then the others as they were found."""

    def line(mistake: Told) -> int:
        kind, _, rest = mistake.where.partition(" ")
        number = rest.partition(",")[0].partition(" ")[0]
        return int(number) if kind in ("line", "lines") and number.isdecimal() else sys.maxsize

    return sorted(dict.fromkeys(mistakes), key=line)


def _write(output: Path, data: bytes, *, replace: bool) -> None:
    from daemon import files

    try:
        if replace:
            files.write_atomically(output, data)
            return
        try:
            files.write_new(output, data)
        except FileExistsError:
            if output.read_bytes() != data:
                message = f"{plain(output)} is there already, and is another: replace it with -o {plain(output)}"
                raise CommandFailed(message, ExitCode.REJECTED) from None
    except OSError as error:
        raise CommandFailed(f"the job can't be written: {plain(describe_os_error(error))}") from error


# --- what there is to say ----------------------------------------------------------------------------------


def _summary(file: Path, made: Composed) -> Iterator[str]:
    assert made.decoded is not None
    assert made.file is not None
    guessed = " (guessed; --encoding says better)" if made.decoded.guessed else ""
    yield f"{plain(file)}: {made.file.format}, {made.decoded.encoding}{guessed}"
    if made.decoded.guessed and (telling := _first_foreign(made)):
        yield f"  such as {telling}"
    for notice in _in_order(made.notices):
        yield f"  {plain(notice.where)}: {plain(notice.message)}"
    yield f"  {plural(len(made.file.cues), 'cue')}, {plural(len(made.lines), 'line')} to speak: {_by_speaker(made)}"
    yield from _origins(made)
    if made.left_out:
        lines = sorted({left.line for left in made.left_out})
        examples = list(dict.fromkeys(_short(left.text) for left in made.left_out))[:3]
        yield f"  left out as no speech: {plural(len(made.left_out), 'text')}, such as {', '.join(examples)}"
        yield f"    in {lines_text(lines)}"
    overlaps = list(made.overlaps())
    if overlaps:
        longest = max(by for _, by in overlaps)
        told = lines_text([line.said.line for line, _ in overlaps])
        yield f"  {plural(len(overlaps), 'cue')} before the end of another (by up to {longest / 1000:.2f} s): {told}"
    speaking = {id(voice) for voice in made.voices}
    silent = [plain(voice.name) for voice in made.cast.voices.values() if id(voice) not in speaking]
    if silent:
        yield f"  no lines, so not in the job: {_names(silent)}"


def _by_speaker(made: Composed) -> str:
    counts = Counter(line.voice.name for line in made.lines)
    return _names([f"{plain(name)} {amount:,}" for name, amount in counts.most_common()])


def _names(names: Sequence[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join([*names[:most], *([f"and {more} more"] if more > 0 else [])])


def _origins(made: Composed) -> Iterator[str]:
    words = {
        "default": "without a tag, spoken by the default speaker",
        "kept": "without a tag, spoken by who spoke before",
        "sentence": "without a tag, the rest of a sentence of who spoke before",
    }
    for origin, meaning in words.items():
        lines = [line.said.line for line in made.lines if line.origin == origin]
        if lines and len(made.cast.voices) > 1:
            yield f"  {plural(len(lines), 'line')} {meaning}: {lines_text(lines)}"


def _first_foreign(made: Composed) -> str:
    line = next((line for line in made.lines if not line.text.isascii()), None)
    return f'line {line.said.line}: "{_short(line.text)}"' if line else ""


def _short(text: str) -> str:
    text = plain(text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"

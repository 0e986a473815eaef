"""The voices of a film: from ``--voice`` options, and from files of voices.

An option is ``NAME=FILE``, ``NAME=FILE:TEXT`` or ``NAME=FILE:@TEXT_FILE``; without a text it is looked for beside the
recording, as anna.txt beside anna.wav. Given again with the same name it adds a reference. A file of voices is TOML or
JSON, a table a voice; or a job, whose speakers are the voices.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.core.reasons import nearest, quoted
from daemon.subtitles import Mistake, Notice
from daemon.subtitles.encoding import NotText, broken_character, decode

CODES_SUFFIX = ".npy"
MOST_TEXT_BYTES = 1 << 20
LONGEST_SAMPLE = 40
"""Characters of a text that is only there to be recognised."""

_WINDOWS_PATH = re.compile(r'"(?:[A-Za-z]:|\\)\\[^\\"]')
_ENDS_A_FILE_NAME = re.compile(r"\.[A-Za-z0-9]{2,5}(?=:)")


@dataclass(frozen=True, slots=True)
class VoiceReference:
    """A recording, or codes, with what is said in it. ``where``: who asked for it, as mistakes say it."""

    key: str
    path: Path
    text: str
    where: str


@dataclass(slots=True)
class Voice:
    """``asked``: named in the command, where a voice that nobody speaks with is a slip."""

    name: str
    where: str
    asked: bool
    references: list[VoiceReference] = field(default_factory=list)


class Cast:
    """The voices by name; case and spaces don't count, and a voice may go by several names. ``notices``: what had to be
    assumed. ``language``: of their texts, a hint for what they are encoded in."""

    def __init__(self, notices: list[Notice] | None = None, language: str | None = None) -> None:
        self.notices = [] if notices is None else notices
        self.language = language
        self.voices: dict[str, Voice] = {}
        self._aliases: dict[str, str] = {}

    def find(self, name: str) -> Voice | None:
        key = fold(name)
        return self.voices.get(self._aliases.get(key, key))

    def near(self, name: str) -> str:
        """ "; did you mean 'anna'?", or nothing."""
        known = [voice.name for voice in self.voices.values()]
        found = nearest(name, known)
        return f"; did you mean {quoted(found)}?" if found else ""

    def add(self, name: str, where: str, *, asked: bool) -> Voice:
        """The voice of that name; a new one, unless it is there already."""
        return self.voices.setdefault(fold(name), Voice(name, where, asked))

    def add_alias(self, name: str, voice: str, where: str, mistakes: list[Mistake]) -> None:
        if not fold(name):
            mistakes.append(Mistake(where, "the name is empty"))
        elif fold(name) in self.voices:
            mistakes.append(Mistake(where, f"{quoted(name)} has a voice of its own"))
        elif self._aliases.setdefault(fold(name), fold(voice)) != fold(voice):
            mistakes.append(Mistake(where, f"{quoted(name)} goes by two voices"))


def fold(name: str) -> str:
    """Equal for names that people take for one."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def read_cast(
    options: Sequence[str],
    voice_files: Sequence[Path],
    aliases: Sequence[str],
    mistakes: list[Mistake],
    notices: list[Notice] | None = None,
    *,
    language: str | None = None,
) -> Cast:
    """All voices. A name that a file gives and an option too has the option's voice."""
    cast = Cast(notices, language)
    for option in options:
        _read_option(option, cast, mistakes)
    asked = set(cast.voices)
    for file in voice_files:
        _read_file(file, cast, asked, mistakes)
    for alias in aliases:
        where = f"--alias {alias}"
        name, equals, voice = alias.partition("=")
        if not equals:
            mistakes.append(Mistake(where, "is no NAME=VOICE"))
        elif cast.find(voice) is None:
            mistakes.append(Mistake(where, f"there is no voice {quoted(voice.strip())}{cast.near(voice)}"))
        else:
            cast.add_alias(name, voice, where, mistakes)
    if not cast.voices and not mistakes:
        mistakes.append(Mistake("--voice", "there is no voice: give each as --voice NAME=FILE:'what is said in it'"))
    return cast


# --- options -----------------------------------------------------------------------------------------------


def _read_option(option: str, cast: Cast, mistakes: list[Mistake]) -> None:
    where = f"--voice {option}"
    name, equals, rest = option.partition("=")
    name = _unquoted(name)
    if not equals or not name or not rest.strip():
        mistakes.append(Mistake(where, "is no NAME=FILE:TEXT, such as anna=anna.wav:'what she says in it'"))
        return
    file, text = _split(rest)
    where = f"--voice {name}={file}"
    voice = cast.add(name, where, asked=True)
    _add_reference(cast, voice, Path(file), text, where, Path(), mistakes)


def _split(rest: str) -> tuple[str, str | None]:
    """FILE:TEXT; both may hold colons, so the longest beginning that is a file counts, else the first that ends like
    one."""
    if Path(rest).is_file():
        return rest, None
    colons = [place for place, character in enumerate(rest) if character == ":"]
    for place in reversed(colons):
        # Names of files are short; a long text would make an error of the look.
        if place < 4096 and _is_file(rest[:place]):
            return rest[:place], _unquoted(rest[place + 1 :])
    if match := _ENDS_A_FILE_NAME.search(rest):
        return rest[: match.end()], _unquoted(rest[match.end() + 1 :])
    file, colon, text = rest.partition(":")
    return file, _unquoted(text) if colon else None


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _unquoted(text: str) -> str:
    """Without the quotes around it that no shell has taken away."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _add_reference(
    cast: Cast,
    voice: Voice,
    file: Path,
    text: str | None,
    where: str,
    folder: Path,
    mistakes: list[Mistake],
    key: str | None = None,
) -> None:
    """``folder``: what ``file`` and @FILE are relative to."""
    path = folder / file
    if text is not None and text.startswith("@"):
        text = _read_text(cast, folder / text[1:], where, mistakes)
    elif text is None:
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            advice = f"add :'the text' to it, or write it into {beside}"
            mistakes.append(Mistake(where, f"it does not say what is spoken in {path}; {advice}"))
            return
        text = _read_text(cast, beside, where, mistakes)
    if text is None:
        return
    if not text.strip():
        mistakes.append(Mistake(where, f"the text is empty: write what is said in {path}"))
        return
    key = key or ("codes" if path.suffix.lower() == CODES_SUFFIX else "audio")
    voice.references.append(VoiceReference(key, path, " ".join(text.split()), where))


def _read_text(cast: Cast, file: Path, where: str, mistakes: list[Mistake]) -> str | None:
    try:
        with file.open("rb") as stream:
            decoded = _decoded(cast, file, stream.read(MOST_TEXT_BYTES))
    except (OSError, ValueError, NotText) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        mistakes.append(Mistake(where, f"its text can't be read from {file}: {why}"))
        return None
    if (why := broken_character(decoded)) is not None:
        mistakes.append(Mistake(str(file), why))
        return None
    return decoded


def _decoded(cast: Cast, file: Path, data: bytes) -> str:
    """Its text; what had to be guessed for it is reported."""
    decoded = decode(data, language=cast.language)
    if decoded.guessed:
        sample = " ".join(decoded.text.split())
        sample = sample if len(sample) <= LONGEST_SAMPLE else f"{sample[:LONGEST_SAMPLE]}…"
        cast.notices.append(Notice(str(file), f"taken for {decoded.encoding}: {sample!r}"))
    cast.notices += [Notice(f"{file} line {line}", what) for line, what in decoded.repaired]
    return decoded.text


# --- files -------------------------------------------------------------------------------------------------


def _read_file(file: Path, cast: Cast, asked: set[str], mistakes: list[Mistake]) -> None:
    where = f"--voices {file}"
    try:
        document = _load(file, cast)
    except OSError as error:
        mistakes.append(Mistake(where, f"it can't be read: {error.strerror}"))
        return
    except (ValueError, RecursionError, NotText) as error:
        mistakes.append(Mistake(where, str(error)))
        return
    speakers = document.get("speakers")
    if isinstance(speakers, list):  # a job
        named = [
            (str(speaker.get("id", "")), {"references": speaker.get("references")})
            for speaker in speakers
            if isinstance(speaker, dict)
        ]
    else:
        named = list(document.items())
    for name, given in named:
        place = f"{file}: {name}"
        if not name.strip():
            mistakes.append(Mistake(where, "a voice has no name"))
        elif not isinstance(given, dict):
            mistakes.append(Mistake(place, "a voice is a table with audio or codes, and text"))
        elif fold(name) not in asked:
            _read_voice(name, given, place, file.parent, cast, mistakes)


def _load(file: Path, cast: Cast) -> Mapping[str, Any]:
    """Raises OSError, and ValueError: it is neither TOML nor JSON, or no table."""
    import tomli

    text = _decoded(cast, file, file.read_bytes())
    try:
        document = json.loads(text) if file.suffix.lower() == ".json" else tomli.loads(text)
    except ValueError as error:
        if _WINDOWS_PATH.search(text):
            message = "a path of Windows needs \\\\ for each \\, or / in its place"
            raise ValueError(f"{error}; {message}") from error
        raise
    if not isinstance(document, dict):
        raise ValueError("it is no table of voices")
    return document


def _read_voice(
    name: str, given: Mapping[str, Any], where: str, folder: Path, cast: Cast, mistakes: list[Mistake]
) -> None:
    references = given.get(
        "references", [{key: given[key] for key in ("audio", "codes", "text", "text_file") if key in given}]
    )
    known = {"references", "also"} if "references" in given else {"audio", "codes", "text", "text_file", "also"}
    if unknown := sorted(set(given) - known):
        mistakes.append(
            Mistake(where, f"{', '.join(map(quoted, unknown))} can't stand here; what can: {', '.join(sorted(known))}")
        )
    voice = cast.add(name, where, asked=False)
    if not isinstance(references, list) or not references:
        mistakes.append(Mistake(where, "references is a list of tables with audio or codes, and text"))
        return
    for reference in references:
        _read_reference(cast, reference, voice, where, folder, mistakes)
    also = given.get("also", [])
    if not isinstance(also, list) or not all(isinstance(other, str) for other in also):
        mistakes.append(Mistake(where, "also is a list of the other names that the voice goes by"))
        return
    for other in also:
        cast.add_alias(other, name, where, mistakes)


def _read_reference(cast: Cast, given: object, voice: Voice, where: str, folder: Path, mistakes: list[Mistake]) -> None:
    fields = given if isinstance(given, dict) else {}
    texts = {key: value for key, value in fields.items() if isinstance(value, str)}
    files = [key for key in ("audio", "codes") if key in texts]
    if len(texts) != len(fields) or len(files) != 1 or not set(fields) <= {*files, "text", "text_file"}:
        mistakes.append(Mistake(where, "a reference has audio or codes, and text or text_file, each a text"))
        return
    text = f"@{texts['text_file']}" if "text_file" in texts else texts.get("text")
    _add_reference(cast, voice, Path(texts[files[0]]), text, where, folder, mistakes, key=files[0])

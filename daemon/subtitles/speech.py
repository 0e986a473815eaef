"""What is said in a cue, and who is named as saying it.

Subtitles are written for eyes. Marks of type and place go; what describes a sound, and what is sung, is kept aside with
its line; what is left is speech, cut where the speaker changes: at a dash, at a tag, at a WebVTT voice.

Names stand before speech in three forms: ``ANNA:``, ``[Anna]``, ``<v Anna>``. None of the first two is certain: "Note:
it is cold" and "[laughs] Stop it" have the same shape. A name that has a voice is taken for a tag in any case. One that
has none is taken for a tag if it is written like a name (then its lines can't be spoken, which is told) and, in
brackets or in a script without capitals, if the file names others in that very form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

from daemon.subtitles import Cue
from daemon.subtitles.markup import VOICE_MARK, plain, unescaped

Form = Literal["colon", "bracket", "voice"]
FORMS: tuple[Form, ...] = ("colon", "bracket", "voice")

_DASHES = "-‐‑‒–—―"
_TURN = re.compile(rf"[{_DASHES}](?![{_DASHES}])(?:\s+|(?=[^\s\d]))")
_LONG_DASH = re.compile(rf"[{_DASHES}]{{2,}}\s*")
_CHEVRONS = re.compile(r"(?:\A|(?<=\s))>{2,3}\s*")
"""Of captions for the deaf: somebody else speaks, or, with three, the story is another one."""
_SENTENCE_END = re.compile(r"(?<=[.?!…\"”’»)\]♪])\s+")
_BRACKET = re.compile(r"\[([^\[\]]*)\]|【([^【】]*)】|［([^［］]*)］")
_PAREN = re.compile(r"\(([^()]*)\)|（([^（）]*)）")
_COLON = re.compile(
    r"(?P<name>[^:：\[\]()（）【】]{1,40}?)\s*(?:[\[(（【][^\])）】]{0,40}[\])）】]\s*)?(?P<colon>[:：])(?P<rest>.*)",
    re.DOTALL,
)
_NOTES = "♩♪♫♬🎵🎶¶"
_SUNG = re.compile(rf"[{_NOTES}]+[^{_NOTES}]*(?:[{_NOTES}]+|\Z)|\A\s*#\s[^#]*#\s*\Z")
_OPEN = re.compile(r"[\[【［][^\[\]【】［］]*\Z|\A[^\[\]【】［］]*[\]】］]")
"""A bracket that is closed or opened in another cue."""
_OPEN_PAREN = re.compile(r"[(（]([^()（）]*)\Z")
_STARRED = re.compile(r"\A\*[^*]+\*|\*[^*]+\*\Z")

_SMALL_WORDS = frozenset(
    ("de", "da", "del", "der", "di", "do", "du", "la", "le", "of", "the", "van", "von", "and", "y")
)
_MOST_WORDS = 4
_MOST_CHARACTERS_WITHOUT_CASE = 8


@dataclass(frozen=True, slots=True)
class Rules:
    """``forms``: in which names may stand. ``has_voice``: whether a name has one. ``no_speaker``: whether the user says
    that it is none. ``evident``: the forms in which the file does name speakers."""

    forms: Collection[Form]
    has_voice: Callable[[str], bool]
    no_speaker: Callable[[str], bool] = lambda name: False
    evident: Collection[Form] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What one speaker says in a cue. ``turn``: a dash says that somebody else speaks than before."""

    cue: Cue
    line: int
    text: str
    name: str | None = None
    form: Form | None = None
    turn: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is no speech: a sound, a song, a direction."""

    line: int
    text: str


@dataclass(slots=True)
class _Part:
    line: int
    name: str | None = None
    form: Form | None = None
    turn: bool = False
    lines: list[str] = field(default_factory=list)


def read_speech(cue: Cue, rules: Rules) -> tuple[list[Said], list[LeftOut]]:
    """What is said in the cue, in its order, and what is left out."""
    left_out: list[LeftOut] = []
    said = []
    for part in _parts(cue, rules, left_out):
        text = _without_sounds(join_lines(part.lines), part.line, left_out)
        if any(character.isalnum() for character in text):
            said.append(Said(cue, part.line, text, part.name, part.form, part.turn))
        elif text:
            left_out.append(LeftOut(part.line, text))
    return said, left_out


def join_lines(lines: list[str]) -> str:
    """The lines as one; Chinese and Japanese have no space between words."""
    joined = ""
    for line in lines:
        near = joined[-1:] + line[:1]
        joined += line if len(near) == 2 and all(_spaceless(character) for character in near) else f" {line}"
    return " ".join(joined.split())


def looks_like_name(name: str) -> bool:
    """Written like a name: a few words with capitals, "Man 2" and "Dr. van Dyk" among them."""
    words = name.split()
    if not 1 <= len(words) <= _MOST_WORDS or not any(character.isalpha() for character in name):
        return False
    if re.search(r"[,;?!…\"“”]", name) or "..." in name:
        return False
    if without_case(name):
        return len(name) <= _MOST_CHARACTERS_WITHOUT_CASE
    return all(
        word[0].isupper() or word[0] in "#&" or word[0].isdigit() or (at and word.casefold() in _SMALL_WORDS)
        for at, word in enumerate(words)
    )


def without_case(name: str) -> bool:
    """In a script that has no capitals."""
    return name.upper() == name.lower()


# --- parts -------------------------------------------------------------------------------------------------


def _parts(cue: Cue, rules: Rules, left_out: list[LeftOut]) -> list[_Part]:
    parts = [_Part(cue.line)]
    if cue.actor and "voice" in rules.forms:
        parts[0].name, parts[0].form = cue.actor, "voice"
    lines = list(_whole_lines(cue))
    turns = sum(1 for _, line in lines if _TURN.match(plain(VOICE_MARK.sub("", line)).lstrip()))
    for place, (number, raw) in enumerate(lines):
        for voice, fragment in _voices(raw):
            if voice and "voice" in rules.forms:
                parts.append(_Part(number, voice, "voice"))
            for text, chevrons in _turns(plain(fragment)):
                if chevrons:
                    _begin(parts, number, turn=True)
                if match := _TURN.match(text):
                    text = text[match.end() :]
                    if turns > 1 or place:
                        _begin(parts, number, turn=True)
                elif match := _LONG_DASH.match(text):
                    text = text[match.end() :]
                for piece in _tagged_pieces(text, rules):
                    _add(parts, piece, rules, number, left_out, following=place + 1 < len(lines))
    return [part for part in parts if part.lines]


def _add(parts: list[_Part], text: str, rules: Rules, number: int, left_out: list[LeftOut], *, following: bool) -> None:
    name, form, text = _tag(text, rules, number, left_out, following=following)
    if name is not None:
        _begin(parts, number, turn=parts[-1].turn and not parts[-1].lines)
        parts[-1].name, parts[-1].form = name, form
    if text:
        if not parts[-1].lines:
            parts[-1].line = number
        parts[-1].lines.append(text)


def _turns(text: str) -> Iterator[tuple[str, bool]]:
    """The text cut at its chevrons; whether one stands before each piece."""
    start, chevrons = 0, False
    for match in _CHEVRONS.finditer(text):
        if text[start : match.start()].strip():
            yield text[start : match.start()].strip(), chevrons
        start, chevrons = match.end(), True
    yield text[start:], chevrons


def _tagged_pieces(text: str, rules: Rules) -> Iterator[str]:
    """The text cut where, behind the end of a sentence, a tag begins the next speaker's: a name that has a voice, or
    one in capitals."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        name, _, _ = _colon_tag(text[match.end() :], rules)
        if name is not None and (rules.has_voice(name) or name.isupper()):
            yield text[start : match.start()]
            start = match.end()
    yield text[start:]


def _begin(parts: list[_Part], line: int, *, turn: bool) -> None:
    """A new part, unless nothing is said in the last one yet."""
    if parts[-1].lines:
        parts.append(_Part(line))
    parts[-1].turn = turn


def _whole_lines(cue: Cue) -> Iterator[tuple[int, str]]:
    """The lines of the cue; those of a bracket that is closed in a later one, as one."""
    held: tuple[int, str] | None = None
    lines = [(number, unescaped(line)) for number, line in cue.lines]
    for place, (number, line) in enumerate(lines):
        if held is not None:
            number, line = held[0], f"{held[1]} {line.strip()}"
        tail = "".join(text for _, text in lines[place + 1 :])
        if any(line.count(left) > line.count(right) and right in tail for left, right in _pairs(line)):
            held = number, line
        else:
            held = None
            yield number, line
    if held is not None:
        yield held


def _pairs(line: str) -> tuple[tuple[str, str], ...]:
    """Brackets; and parentheses at the start, where they hold no aside."""
    parens = ("(", ")"), ("（", "）")
    return (
        ("[", "]"),
        ("【", "】"),
        ("［", "］"),
        *(parens if line.lstrip(f" {_DASHES}").startswith(("(", "（")) else ()),
    )


def _voices(line: str) -> Iterator[tuple[str, str]]:
    """The line cut at its WebVTT voices: who begins to speak ("" where nobody does), and the text up to the next."""
    voice, start = "", 0
    for match in VOICE_MARK.finditer(line):
        if match.start() > start or voice:
            yield voice, line[start : match.start()]
        voice, start = plain(match[1] or ""), match.end()
    yield voice, line[start:]


def _tag(
    text: str, rules: Rules, line: int, left_out: list[LeftOut], *, following: bool
) -> tuple[str | None, Form | None, str]:
    """The name before the speech, its form, and the speech. Directions before it are left out. ``following``: another
    line of the cue comes after this one."""
    while text:
        if match := _BRACKET.match(text):
            inner, rest = _inner(match), text[match.end() :].lstrip()
            if "bracket" in rules.forms and _names(
                inner, rules, sure=False, form="bracket", spoken=bool(rest) or following
            ):
                return inner, "bracket", rest.lstrip(":： ")
        elif match := _PAREN.match(text):
            inner, rest = _inner(match), text[match.end() :].lstrip()
            if "bracket" in rules.forms and rules.has_voice(inner):
                return inner, "bracket", rest.lstrip(":： ")
        else:
            return _colon_tag(text, rules)
        left_out.append(LeftOut(line, match[0]))
        text = rest
    return None, None, ""


def _colon_tag(text: str, rules: Rules) -> tuple[str | None, Form | None, str]:
    match = _COLON.match(text) if "colon" in rules.forms else None
    if match is None:
        return None, None, text
    name, rest = match["name"].strip(), match["rest"]
    apart = match["colon"] == "：" or not rest or rest[0].isspace()
    shouted = name.isupper() and rest[:1].isalpha()
    sure = not without_case(name)
    if (apart or shouted or rules.has_voice(name)) and _names(name, rules, sure=sure, form="colon", spoken=True):
        return name, "colon", rest.strip()
    return None, None, text


def _names(name: str, rules: Rules, *, sure: bool, form: Form, spoken: bool) -> bool:
    """Whether it names a speaker. ``sure``: in this form a name needs no other evidence than its looks."""
    if rules.no_speaker(name):
        return False
    if rules.has_voice(name):
        return True
    return spoken and looks_like_name(name) and (sure or form in rules.evident)


def _inner(match: re.Match[str]) -> str:
    return next((group for group in match.groups() if group is not None), "").strip()


# --- sounds ------------------------------------------------------------------------------------------------


def _without_sounds(text: str, line: int, left_out: list[LeftOut]) -> str:
    """The text without what is in brackets or between musical notes; parentheses stay within a sentence, where people
    write asides, unless they shout."""

    before = len(left_out)

    def take(match: re.Match[str]) -> str:
        left_out.append(LeftOut(line, match[0].strip()))
        return " "

    def take_shouted(match: re.Match[str]) -> str:
        return take(match) if _inner(match).isupper() else match[0]

    text = _PAREN.sub(take_shouted, _BRACKET.sub(take, _SUNG.sub(take, text)))
    text = _STARRED.sub(take, _OPEN_PAREN.sub(take_shouted, _OPEN.sub(take, text)).strip())
    text = " ".join(text.replace("*", "").split())
    return re.sub(r"\s+([,.])", r"\1", text) if len(left_out) > before else text


def _spaceless(character: str) -> bool:
    """Of the scripts that put no space between words: Chinese and Japanese, with their punctuation."""
    return "\u3000" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or "\uff00" <= character <= "\uffef"

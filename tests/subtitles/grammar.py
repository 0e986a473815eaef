"""Subtitle files from a grammar of cues and of the variants that people's files have, each from a seed.

    python -m tests.subtitles.grammar [--files 20000] [--seed N]

A file says what is spoken in it, or which line is broken. What must hold: the texts come back exactly, or a mistake
names the broken line; and no time, number or tag is ever among the texts.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.core.job import Limits
from daemon.subtitles.job import Composed, Wishes, compose

SENTENCES = {
    "en": "the harbour was empty when we came back at night nobody knew her name or why he had gone so far",
    "de": "das Mädchen fragt wo die Tür ist und warum wir so spät über die grüne Brücke kommen",
    "zh": "她去 哪儿 了 我 不知道 今天 早上 我们 一起 走",
    "ru": "где же она теперь никто не знает куда ушла сегодня утром",
}
WORDS = {language: sentence.split() for language, sentence in SENTENCES.items()}
ODD_WORDS = ("7", "42", "11:30", "3:2", "1,5", "e-mail", "C#", "50%", "A&E", "x<5")
ENDS = (".", "?", "!", "...")

LEGACY = {"en": "cp1252", "de": "cp1252", "zh": "gb18030", "ru": "cp1251"}
ARROWS = ("-->", "->", "--->", "–>", "→", "--&gt;", "--＞", "-- >", "=>")
WEAK_ARROWS = (" - ", " to ", "  ", " – ", ",")
INVISIBLE = "\u200e\u200f\u200b\ufeff\u202a\u2060"
FULL_WIDTH = {ord("0") + digit: ord("０") + digit for digit in range(10)} | {ord(":"): "：", ord(","): "，"}
ARABIC = {ord("0") + digit: ord("٠") + digit for digit in range(10)} | {ord(","): "٫"}

TOLD = re.compile(r"-->|&[a-z#]+;|</?[A-Za-z]|\{\\|\d\d:\d\d[:,.]\d\d|\\[Nn]\b|[\u200e\u200f\u200b\ufeff]")
"""What no text may hold."""


@dataclass(frozen=True)
class File:
    """``texts``: what is spoken in it; ``broken``: the line, from 1, that must be named instead."""

    data: bytes
    texts: list[str]
    broken: int | None
    language: str


def make(seed: int) -> File:
    """The file of this seed."""
    chance = random.Random(seed)
    language = chance.choice(list(WORDS))
    texts = [_sentence(chance, language) for _ in range(chance.randint(1, 8))]
    # Repetitions are what rolling captions are known by; those have files of their own.
    texts = list(dict.fromkeys(texts))
    kind = chance.choice(("srt", "srt", "srt", "vtt", "ass", "rolling" if len(texts) > 2 else "srt"))
    lines, timings = _KINDS[kind](chance, texts)
    broken = None
    if kind in ("srt", "vtt") and chance.random() < 0.3:
        broken = chance.choice(timings)
        lines[broken] = _damaged(chance, lines[broken])
        broken += 1
    return File(_encoded(chance, lines, language), texts, broken, language)


def _sentence(chance: random.Random, language: str) -> str:
    words = chance.choices(WORDS[language], k=chance.randint(2, 7))
    if language != "zh" and chance.random() < 0.3:
        words.insert(chance.randint(1, len(words) - 1), chance.choice(ODD_WORDS))
    joined = ("" if language == "zh" else " ").join(words)
    return joined[0].upper() + joined[1:] + ("。" if language == "zh" else chance.choice(ENDS))


def _clock(milliseconds: int, sign: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{sign}{rest:03d}"


def _spans(chance: random.Random, count: int) -> Iterator[tuple[int, int]]:
    at = chance.choice((0, 1000, 7_200_000))
    for _ in range(count):
        start = at + chance.randint(300, 4000)
        at = start + chance.randint(300, 4000)
        yield start, at


def _dressed(chance: random.Random, text: str, *, vtt: bool = False) -> str:
    """The text with marks that are not spoken."""
    breaks = ["<br>", "<br/>", "\\N", "\\n", "|", "\n"]
    if " " in text and chance.random() < 0.3:
        words = text.split(" ")
        at = chance.randrange(1, len(words))
        text = f"{' '.join(words[:at])}{chance.choice(breaks)}{' '.join(words[at:])}"
    if chance.random() < 0.3:
        text = text.replace("&", "&amp;").replace("x<5", "x&lt;5")
    if vtt and chance.random() < 0.3:
        text = text.replace(" ", "<00:00:01.500><c> </c>", 1)
    for mark in chance.sample(_MARKS, chance.randint(0, 2)):
        text = mark(text)
    if chance.random() < 0.2:
        text = chance.choice(INVISIBLE) + text + chance.choice(INVISIBLE)
    return text


_MARKS: tuple[Callable[[str], str], ...] = (
    lambda text: f"<i>{text}</i>",
    lambda text: f"<b>{text}",
    lambda text: f'<font color="#ffffff" face="Arial">{text}</font>',
    lambda text: f"&lt;i&gt;{text}&lt;/i&gt;",
    lambda text: f"&amp;lt;u&amp;gt;{text}&amp;lt;/u&amp;gt;",
    lambda text: f"{{\\an8}}{text}",
    lambda text: f"{{an8}}{text}",
    lambda text: f"{{\\fad(200,200)}}{{\\an8 {text}",
    lambda text: f"< i >{text}< / i >",
    lambda text: f"**{text}**",
    lambda text: f"{text}</i",
)


def _timing(chance: random.Random, start: int, end: int, *, sign: str, vtt: bool = False) -> str:
    one, two = _clock(start, sign), _clock(end, sign)
    roll = chance.random()
    if vtt:
        return f"{one} --> {two}{chance.choice(('', ' align:start position:0%', ' line:-1'))}"
    if roll < 0.4:
        line = f"{one} --> {two}"
    elif roll < 0.7:
        line = f"{one}{chance.choice(('', ' '))}{chance.choice(ARROWS)} {two}"
    elif roll < 0.8 and sign == ",":
        line = f"{one}{chance.choice(WEAK_ARROWS)}{two}"
    elif roll < 0.9:
        line = f"{one.translate(chance.choice((FULL_WIDTH, ARABIC)))} --> {two}"
    else:
        line = f"{one} --> {two}{chance.choice((':', '.', ' ', ' X1:40 X2:600 Y1:20 Y2:50'))}"
    if chance.random() < 0.2:
        line = chance.choice(INVISIBLE) + line + chance.choice(INVISIBLE)
    return line


def _number(chance: random.Random, number: int) -> str:
    forms = (
        str(number),
        f"#{number}",
        f"{number}.",
        str(number).translate(FULL_WIDTH),
        f"\ufeff{number}",
        f"({number})",
    )
    return forms[0] if chance.random() < 0.7 else chance.choice(forms)


def _srt(chance: random.Random, texts: list[str]) -> tuple[list[str], list[int]]:
    lines: list[str] = []
    timings = []
    numbered = chance.random() < 0.7
    spread = chance.random() < 0.15
    sign = chance.choice((",", ",", ".", ";"))
    for number, (text, (start, end)) in enumerate(zip(texts, _spans(chance, len(texts)), strict=True), 1):
        lines += [str(number) if spread else _number(chance, number)] if numbered else []
        lines += [""] if spread else []
        timings.append(len(lines))
        lines.append(_timing(chance, start, end, sign=sign))
        lines += [""] if spread else []
        lines += [*_dressed(chance, text).split("\n"), *[""] * chance.choice((1, 1, 1, 2))]
    return lines, timings


def _vtt(chance: random.Random, texts: list[str]) -> tuple[list[str], list[int]]:
    lines = ["WEBVTT" + chance.choice(("", " - made by hand")), *chance.choice(([], ["Kind: captions"])), ""]
    timings = []
    for number, (text, (start, end)) in enumerate(zip(texts, _spans(chance, len(texts)), strict=True), 1):
        extra = chance.choice(([], [], ["NOTE a --> b", "of two lines", ""], ["STYLE", "::cue { color: red }", ""],
                               ["WEBVTT", "X-TIMESTAMP-MAP=LOCAL:00:00:00.000,MPEGTS:900000", ""]))  # fmt: skip
        lines += extra if number > 1 else []
        lines += chance.choice(([], [str(number)], [f"cue {number}"]))
        timings.append(len(lines))
        lines.append(_timing(chance, start, end, sign=".", vtt=True))
        lines += [*chance.choice(([], [" "])), *_dressed(chance, text, vtt=True).split("\n"), ""]
    return lines, timings


def _ass(chance: random.Random, texts: list[str]) -> tuple[list[str], list[int]]:
    lines = ["[Script Info]", "ScriptType: v4.00+", ""]
    lines += chance.choice(([], ["[V4+ Styles]", "Format: Name, Fontname", "Style: Default,Arial", ""]))
    lines += ["[Events]", "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"]
    for text, (start, end) in zip(texts, _spans(chance, len(texts)), strict=True):
        times = ",".join(f"{at // 3_600_000}:{at // 60_000 % 60:02d}:{at // 1000 % 60:02d}.{at % 1000 // 10:02d}"
                         for at in (start, end))  # fmt: skip
        shown = text.replace(" ", chance.choice((" ", "\\N", " {\\k20}")), 1)
        for layer in range(chance.choice((1, 1, 2, 3))):
            lines.append(f"Dialogue: {layer},{times},Default,,0,0,0,,{{\\blur{layer}}}{shown}")
        if chance.random() < 0.3:
            lines.append(f"Dialogue: 0,{times},Default,,0,0,0,,{{\\pos(1,{start})}}HARBOUR OFFICE")
        if chance.random() < 0.2:
            lines.append(f"Comment: 0,{times},Default,,0,0,0,,not shown")
    return lines, []


def _rolling(chance: random.Random, texts: list[str]) -> tuple[list[str], list[int]]:
    lines: list[str] = []
    timings: list[int] = []
    at, number = 1000, 1
    moment = chance.random() < 0.5
    before: str | None = None
    for text in texts:
        end = at + chance.randint(500, 4000)
        for shown, until in (([*([before] if before else []), text], end), ([text], end + 10)):
            if until == end + 10 and not moment:
                continue
            timings.append(len(lines) + 1)
            lines += [str(number), f"{_clock(at, ',')} --> {_clock(until, ',')}", *shown, ""]
            at, number = until, number + 1
        before = text
    return lines, timings


_KINDS = {"srt": _srt, "vtt": _vtt, "ass": _ass, "rolling": _rolling}


def _damaged(chance: random.Random, line: str) -> str:
    """Times that are none any more, and still look like some."""
    ways: tuple[Callable[[str], str], ...] = (
        lambda text: "00:00:01,000 --> 00:00:0x,000",
        lambda text: f"0O:00:01,000 --> {text[-12:]}",
        lambda text: "00:00:01,000 -->",
        lambda text: "00:00:01,000 --> 00:00:02,000 and what is said",
        lambda text: "00:00:01,000,000 --> 00:00:02,000",
        lambda text: "00:00:01,000",
        lambda text: "00:00:01,000 / then 00:00:02,000",
    )
    return chance.choice(ways)(line)


def _encoded(chance: random.Random, lines: list[str], language: str) -> bytes:
    text = chance.choice(("\n", "\n", "\r\n", "\r")).join(lines) + chance.choice(("", "\n"))
    encoding = chance.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", LEGACY[language]))
    if encoding == LEGACY[language]:
        # What an old encoding can't hold was never in such a file.
        visible = "".join(character for character in text if character not in INVISIBLE)
        try:
            return visible.encode(encoding)
        except UnicodeEncodeError:
            encoding = "utf-8"
    return text.encode(encoding)


def read(file: File, folder: Path) -> Composed:
    """What dubd makes of it."""
    path = folder / "film.srt"
    path.write_bytes(file.data)
    return compose(Wishes(path, folder, voices=("anna=a.wav:One.",), language=file.language), Limits())


def problem(file: File, made: Composed) -> str | None:
    """Which promise does not hold."""
    texts = [line.text for line in made.lines]
    if any(TOLD.search(text) for text in texts):
        return f"spoken: {[text for text in texts if TOLD.search(text)]}"
    if file.broken is not None:
        named = {mistake.where for mistake in made.mistakes}
        return None if f"line {file.broken}" in named else f"line {file.broken} is not named, only {named}"
    if made.mistakes:
        return f"refused: {made.mistakes[0]}"
    return None if texts == file.texts else f"spoken: {texts}, not {file.texts}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.files):
            file = make(seed)
            if why := problem(file, read(file, Path(folder))):
                failed += 1
                if failed <= 20:
                    print(f"seed {seed}: {why[:300]}")
    print(f"{arguments.files - failed:,} of {arguments.files:,} files as they should be")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

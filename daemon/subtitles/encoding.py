"""Subtitle bytes to text, in whatever encoding they were saved, and what had to be assumed for it.

A mark at the start decides, then UTF-8, which other encodings' texts hardly ever happen to be, also where a few bytes
of it are broken. What is left is guessed by charset-normalizer among the encodings that subtitle programs write, those
of the text's language first: a page of Windows for Central Europe makes readable nonsense of French, and no statistics
on three accents tell them apart.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Marks at the start of a file; that of UTF-32, little-endian, begins with that of UTF-16."""

NAMES = {
    "utf_8": "UTF-8", "utf_8_sig": "UTF-8", "utf_16": "UTF-16", "utf_16_le": "UTF-16", "utf_16_be": "UTF-16",
    "utf_32": "UTF-32", "cp1250": "Windows-1250 (Central Europe)", "cp1251": "Windows-1251 (Cyrillic)",
    "cp1252": "Windows-1252 (Western Europe)", "cp1253": "Windows-1253 (Greek)", "cp1254": "Windows-1254 (Turkish)",
    "cp1255": "Windows-1255 (Hebrew)", "cp1256": "Windows-1256 (Arabic)", "cp1257": "Windows-1257 (Baltic)",
    "cp1258": "Windows-1258 (Vietnamese)", "cp874": "Windows-874 (Thai)", "koi8_r": "KOI8-R",
    "gb18030": "GB 18030 (GBK)", "big5": "Big5", "big5hkscs": "Big5-HKSCS", "cp932": "Shift-JIS", "euc_jp": "EUC-JP",
    "iso2022_jp": "ISO-2022-JP", "cp949": "Windows-949 (Korean)",
}  # fmt: skip
"""What people call them, by Python's names."""

LIKELY = (
    "cp1252", "cp1250", "cp1251", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1253", "cp1254", "cp1255", "cp1256",
    "cp1257", "cp874", "koi8_r",
)  # fmt: skip
"""In this order where the statistics can't tell them apart."""

BY_LANGUAGE = {
    "ja": ("cp932", "euc_jp"), "zh": ("gb18030", "big5"), "ko": ("cp949",), "ru": ("cp1251", "koi8_r"),
    "uk": ("cp1251",), "bg": ("cp1251",), "sr": ("cp1250", "cp1251"), "mk": ("cp1251",), "be": ("cp1251",),
    "el": ("cp1253",), "tr": ("cp1254",), "he": ("cp1255",), "ar": ("cp1256",), "fa": ("cp1256",), "ur": ("cp1256",),
    "th": ("cp874",), "vi": ("cp1258",), "lt": ("cp1257",), "lv": ("cp1257",), "et": ("cp1257",), "pl": ("cp1250",),
    "cs": ("cp1250",), "sk": ("cp1250",), "hu": ("cp1250",), "sl": ("cp1250",), "hr": ("cp1250",), "ro": ("cp1250",),
}  # fmt: skip
"""Encodings that texts of a language are saved in; Western Europe's languages need no entry, theirs comes first."""

SCRIPTS = {
    "ja": ("CJK", "HIRAGANA", "KATAKANA"), "zh": ("CJK",), "ko": ("HANGUL",), "el": ("GREEK",), "he": ("HEBREW",),
    "ar": ("ARABIC",), "fa": ("ARABIC",), "ur": ("ARABIC",), "th": ("THAI",),
    **dict.fromkeys(("ru", "uk", "bg", "mk", "be"), ("CYRILLIC",)),
}  # fmt: skip
"""How the names of a language's letters begin in Unicode, where they tell it from others."""

KINDS = (
    (b"PK\x03\x04", "a ZIP archive or a document of an office program (.docx)"), (b"\x1f\x8b", "packed by gzip"),
    (b"7z\xbc\xaf", "a 7-Zip archive"), (b"Rar!", "a RAR archive"), (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ", "packed by xz"), (b"%PDF", "a PDF document"), (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program (.doc)"), (b"\x1aE\xdf\xa3", "a Matroska or WebM film"),
    (b"RIFF", "a recording or a film (RIFF)"), (b"fLaC", "a FLAC recording"), (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"), (b"\x89PNG", "a picture (PNG)"), (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"SQLite format 3", "a database"), (b"<!doctype html", "a web page"), (b"<html", "a web page"),
    (b"<?xml", "an XML document, whose subtitles (TTML) are not read: convert it to SRT"),
)  # fmt: skip
"""How files begin that are no subtitles, and what they are."""

BROKEN_SHARE = 0.25
"""The most bytes that may be broken in a text that is UTF-8 all the same, as a share of its letters beyond ASCII."""

MOST_BROKEN = 100
"""And in number."""

INDISTINCT = 0.05
"""Measures of disorder (charset-normalizer's ``chaos``, from 0) that say nothing about which of two is right."""


_RUNS = re.compile(rb"[\x80-\xff]+")


class NotText(Exception):
    """The bytes can't be read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """``encoding`` as people call it; ``guessed``: neither given, nor marked, nor certain from the bytes. ``repaired``:
    the lines (from 1) where something was broken, and what was made of it."""

    text: str
    encoding: str
    guessed: bool = False
    repaired: tuple[tuple[int, str], ...] = ()


def decode(data: bytes, *, encoding: str | None = None, language: str | None = None) -> Decoded:
    """The text, without its mark, lines ended by ``\\n`` alone. ``language``: a tag such as "fr", a hint.

    Raises:
        NotText: it can't be read in ``encoding``, or in any that is known.
    """
    if (kind := kind_of(data)) is not None:
        raise NotText(f"it is no text but {kind}")
    for mark, name in MARKS:
        if data.startswith(mark) and encoding is None:
            return Decoded(_decode(data, name), NAMES[codecs.lookup(name).name.replace("-", "_")])
    if encoding is not None:
        return Decoded(_decode(data, encoding), _name(encoding))
    if (wide := _unmarked_utf_16(data)) is not None:
        return Decoded(_decode(data, wide), "UTF-16", guessed=True)
    if b"\x1b$" in data and data.isascii():
        return Decoded(_decode(data, "iso2022_jp"), NAMES["iso2022_jp"], guessed=True)
    try:
        return _decoded_once_more(_lines(data.decode("utf-8")))
    except UnicodeDecodeError:
        pass
    if (mostly := _mostly_utf_8(data, language)) is not None:
        return mostly
    guess = _guess(data, language)
    return Decoded(_decode(data, guess), _name(guess), guessed=True)


def kind_of(data: bytes) -> str | None:
    """What the bytes are, where they are known to be no plain text."""
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for sign, kind in KINDS:
        if data.startswith(sign) or (sign.startswith(b"<") and head.startswith(sign)):
            return kind
    if data[4:8] == b"ftyp":
        return "a film or a recording (MP4, M4A)"
    return None


def _mostly_utf_8(data: bytes, language: str | None) -> Decoded | None:
    """UTF-8 of which a few bytes are broken, those taken for what they are in the language's old encoding."""
    primary = (language or "").partition("-")[0].casefold()
    page = next((name for name in BY_LANGUAGE.get(primary, ()) if name.startswith("cp125")), "cp1252")
    pieces: list[str] = []
    repaired: list[tuple[int, str]] = []
    position = broken = 0
    while True:
        try:
            pieces.append(data[position:].decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            start, end = position + error.start, position + error.end
        if len(repaired) == MOST_BROKEN:
            return None
        made = data[start:end].decode(page, "replace")
        line = len(re.findall(rb"\r*\n|\r", data[:start])) + 1
        repaired.append((line, f"the byte 0x{data[start:end].hex()} is not UTF-8; it was taken for {made!r}"))
        pieces += [data[position:start].decode("utf-8"), made]
        broken += end - start
        position = end
    text = "".join(pieces)
    if broken > BROKEN_SHARE * (sum(not character.isascii() for character in text) - broken):
        return None
    return Decoded(_lines(text), "UTF-8", guessed=True, repaired=tuple(repaired))


def _decoded_once_more(text: str) -> Decoded:
    """Text that was UTF-8, was read as Windows-1252 and was saved so ("MÃ¤dchen"), as it was before. Lines of which
    only some are like that are left to be reported."""
    foreign = [line for line in text.split("\n") if not line.isascii()]
    if not foreign or any(_once_more(line) is None for line in foreign):
        return Decoded(text, "UTF-8")
    repaired = "\n".join(line if line.isascii() else _once_more(line) or line for line in text.split("\n"))
    return Decoded(repaired, "UTF-8, saved twice", guessed=True)


def _once_more(line: str) -> str | None:
    """What the line was before its UTF-8 was taken for Windows-1252; None where it can't have been."""
    try:
        return b"".join(_byte_of(character) for character in line).decode("utf-8")
    except UnicodeError:
        return None


def _byte_of(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # the five bytes that Windows-1252 has no character for


def broken_character(line: str) -> str | None:
    """Why a line of text was damaged by an encoding on its way here, for people; None where it was not."""
    if "\ufffd" in line:
        return "a character was lost before (it is U+FFFD now): write it anew"
    if not line.isascii() and _once_more(line) is not None:
        return f"letters were damaged by saving it in a wrong encoding; it may have been {_once_more(line)!r}"
    return None


def _decode(data: bytes, encoding: str) -> str:
    try:
        return _lines(data.decode(encoding).removeprefix("\ufeff"))
    except LookupError as error:
        raise NotText(f"there is no encoding {encoding!r}; such as: utf-8, cp1252, gb18030, shift_jis") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"byte {data[error.start]:#04x} in line {line}"
        raise NotText(f"it is not {_name(encoding)}: {found}; say which --encoding it has") from error
    except (UnicodeError, ValueError) as error:
        raise NotText(f"it can't be read as {encoding}: {error}") from error


def _lines(text: str) -> str:
    """Ends of lines as Windows, old Macs and twice converted files have them; a NUL is nobody's text."""
    return re.sub("\r*\n|\r", "\n", text).replace("\0", "")


def _name(encoding: str) -> str:
    try:
        canonical = codecs.lookup(encoding).name.replace("-", "_")
    except LookupError:
        return encoding
    return NAMES.get(canonical, canonical)


def _unmarked_utf_16(data: bytes) -> str | None:
    """An arrow between times is there in every subtitle file, and in no other encoding has it NULs between."""
    for name in ("utf-16-le", "utf-16-be"):
        for sign in ("-->", "Dialogue:"):
            if (place := data.find(sign.encode(name))) >= 0 and place % 2 == 0:
                return name
    return None


def _guess(data: bytes, language: str | None) -> str:
    """Python's name of the likeliest encoding.

    Raises:
        NotText: none is.
    """
    import charset_normalizer

    primary = (language or "").partition("-")[0].casefold()
    preferred = BY_LANGUAGE.get(primary, ("cp1252",) if primary else ())
    # What is the same in all of them tells nothing.
    telling = b"\n".join(line for line in re.split(rb"[\r\n]+", data) if not line.isascii())
    for name in preferred:
        if _is_of(primary, telling, name):
            return name
    order = dict.fromkeys((*preferred, *LIKELY))
    matches = charset_normalizer.from_bytes(telling, cp_isolation=list(order), threshold=0.5)
    if not matches:
        raise NotText("its encoding can't be told; say which with --encoding, such as cp1252, gb18030 or shift_jis")
    least = min(match.chaos for match in matches)
    # Encodings that give the very same text are one match.
    fit = {name for match in matches if match.chaos <= least + INDISTINCT for name in match.could_be_from_charset}
    return next(name for name in order if name in fit)


def _is_of(language: str, data: bytes, encoding: str) -> bool:
    """Whether all of the data's letters beyond ASCII are of the language's own script, read so. A few bytes are too
    little for statistics; with the language they are enough."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    letters = [character for character in text if character.isalpha() and not character.isascii()]
    scripts = SCRIPTS.get(language, ("LATIN",))
    if not letters or not all(unicodedata.name(letter, "").startswith(scripts) for letter in letters):
        return False
    # Anything can be read as letters of Western Europe; but there they stand alone, between plain ones.
    return scripts != ("LATIN",) or max(map(len, _RUNS.findall(data))) == 1

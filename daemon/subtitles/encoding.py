"""Subtitle bytes to text, in whatever encoding they were saved, and what had to be assumed for it.

A mark at the start decides, then UTF-8, which other encodings' texts hardly ever happen to be; what is left is guessed
by charset-normalizer among the encodings that subtitle programs write, those of the text's language first: a page of
Windows for Central Europe makes readable nonsense of French, and no statistics on three accents tell them apart.
"""

from __future__ import annotations

import codecs
import re
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

INDISTINCT = 0.05
"""Measures of disorder (charset-normalizer's ``chaos``, from 0) that say nothing about which of two is right."""


class NotText(Exception):
    """The bytes can't be read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """``encoding`` as people call it; ``guessed``: neither given, nor marked, nor certain from the bytes."""

    text: str
    encoding: str
    guessed: bool = False


def decode(data: bytes, *, encoding: str | None = None, language: str | None = None) -> Decoded:
    """The text, without its mark, lines ended by ``\\n`` alone. ``language``: a tag such as "fr", a hint.

    Raises:
        NotText: it can't be read in ``encoding``, or in any that is known.
    """
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
        return Decoded(_lines(data.decode("utf-8")), "UTF-8")
    except UnicodeDecodeError:
        guess = _guess(data, language)
    return Decoded(_decode(data, guess), _name(guess), guessed=True)


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
    preferred = BY_LANGUAGE.get(primary, ())
    # What is the same in all of them tells nothing.
    telling = b"\n".join(line for line in re.split(rb"[\r\n]+", data) if not line.isascii())
    order = dict.fromkeys((*preferred, *LIKELY))
    matches = charset_normalizer.from_bytes(telling, cp_isolation=list(order), threshold=0.5)
    if not matches:
        raise NotText("its encoding can't be told; say which with --encoding, such as cp1252, gb18030 or shift_jis")
    least = min(match.chaos for match in matches)
    # Encodings that give the very same text are one match.
    fit = {name for match in matches if match.chaos <= least + INDISTINCT for name in match.could_be_from_charset}
    return next(name for name in order if name in fit)

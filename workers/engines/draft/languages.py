"""From a language tag to one of espeak-ng's voices."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from workers.engine import EngineError

ListedVoice = tuple[str, str, Sequence[tuple[int, str]]]
"""Name, identifier, and (priority, tag) for each language it speaks; a lower priority suits better."""

SAME_LANGUAGE = {
    # ISO 639-2, which subtitle files and media containers use.
    "ara": "ar", "ben": "bn", "bul": "bg", "cat": "ca", "ces": "cs", "cze": "cs", "chi": "zh", "zho": "zh",
    "dan": "da", "deu": "de", "ger": "de", "ell": "el", "gre": "el", "eng": "en", "est": "et", "fas": "fa",
    "per": "fa", "fin": "fi", "fra": "fr", "fre": "fr", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu",
    "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "lav": "lv", "lit": "lt", "msa": "ms", "may": "ms",
    "nld": "nl", "dut": "nl", "nor": "nb", "pol": "pl", "por": "pt", "ron": "ro", "rum": "ro", "rus": "ru",
    "slk": "sk", "slo": "sk", "slv": "sl", "spa": "es", "srp": "sr", "swe": "sv", "tam": "ta", "tel": "te",
    "tha": "th", "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi",
    # Codes that ISO 639-1 has given up, and varieties that share a voice.
    "in": "id", "iw": "he", "mo": "ro", "nn": "nb", "sh": "sr",
}  # fmt: skip

LATIN_AMERICA = frozenset({
    "ar", "bo", "br", "bz", "cl", "co", "cr", "cu", "do", "ec", "gt",
    "hn", "mx", "ni", "pa", "pe", "pr", "py", "sv", "us", "uy", "ve",
})  # fmt: skip
"""Regions whose Spanish has es-419 for a parent, in Unicode's CLDR (supplemental data, parentLocales)."""

CANTONESE_REGIONS = frozenset({"hk", "mo"})


def find_voice(tag: str, voices: Sequence[ListedVoice]) -> str:
    """The identifier of the voice for a BCP 47 tag such as ``en``, ``pt-BR`` or ``zh-Hant-TW``.

    When there is no voice for the whole tag, subtags are given up from the right, as RFC 4647 (3.4, Lookup) does.

    Raises:
        EngineError: ``unsupported_language``; the message names the nearest ones.
    """
    by_tag: dict[str, tuple[int, str]] = {}
    for _, identifier, languages in voices:
        for priority, language in languages:
            known = by_tag.get(language.lower())
            if known is None or priority < known[0]:
                by_tag[language.lower()] = (priority, identifier)
    candidates = _candidates(tag)
    for candidate in candidates:
        if candidate in by_tag:
            return by_tag[candidate][1]
    # Some languages are there in one narrow variety only.
    varieties = [found for known, found in by_tag.items() if known.startswith(candidates[-1] + "-")]
    if candidates[-1] and varieties:
        return min(varieties)[1]
    near = _nearest(tag, by_tag, voices)
    raise EngineError(
        "unsupported_language",
        f"espeak-ng has no voice for the language {tag!r}; the nearest of the {len(by_tag)} tags it has: {near}",
    )


def _candidates(tag: str) -> list[str]:
    language, *rest = tag.strip().lower().replace("_", "-").split("-")
    language = SAME_LANGUAGE.get(language, language)
    if language == "zh" and CANTONESE_REGIONS.intersection(rest):
        return ["yue"]
    candidates = []
    while rest:
        candidates.append("-".join([language, *rest]))
        if language == "es" and rest[-1] in LATIN_AMERICA:
            candidates.append("es-419")
        rest.pop()
        # A singleton such as x introduces what follows it and means nothing alone.
        while rest and len(rest[-1]) == 1:
            rest.pop()
    return [*candidates, language]


def _nearest(tag: str, by_tag: dict[str, tuple[int, str]], voices: Sequence[ListedVoice]) -> str:
    wanted = _candidates(tag)[-1]
    near = difflib.get_close_matches(wanted, by_tag, n=3, cutoff=0.3)
    # Someone may have written a language by its name.
    names = {name.lower(): languages[0][1] for name, _, languages in voices if languages}
    named = [language for name, language in names.items() if len(wanted) > 3 and name.startswith(wanted[:5])]
    return ", ".join(dict.fromkeys([*named[:3], *near][:3])) or "en"

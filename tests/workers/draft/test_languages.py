"""Language tags and the voices they lead to."""

from __future__ import annotations

import pytest

from workers.engine import EngineError
from workers.engines.draft.languages import find_voice

VOICES = [
    ("English (Great Britain)", "gmw/en", [(2, "en-gb"), (2, "en")]),
    ("English (America)", "gmw/en-US", [(2, "en-us"), (3, "en")]),
    ("Chinese (Mandarin, latin as English)", "sit/cmn", [(5, "cmn"), (5, "zh-cmn"), (5, "zh")]),
    ("Chinese (Cantonese)", "sit/yue", [(5, "yue"), (5, "zh-yue"), (8, "zh")]),
    ("German", "gmw/de", [(5, "de")]),
    ("French (Belgium)", "roa/fr-BE", [(5, "fr-be"), (8, "fr")]),
    ("French (France)", "roa/fr", [(5, "fr-fr"), (5, "fr")]),
    ("Indonesian", "poz/id", [(5, "id")]),
    ("Japanese", "jpx/ja", [(5, "ja")]),
    ("Korean", "ko", [(5, "ko")]),
    ("Spanish (Spain)", "roa/es", [(5, "es")]),
    ("Spanish (Latin America)", "roa/es-419", [(5, "es-419"), (6, "es-mx")]),
    ("Cherokee ", "iro/chr", [(5, "chr-US-Qaaa-x-west")]),
]


@pytest.mark.parametrize(
    ("tag", "voice"),
    [
        ("en", "gmw/en"),
        ("en-US", "gmw/en-US"),
        ("en_us", "gmw/en-US"),
        ("EN-gb", "gmw/en"),
        ("en-AU", "gmw/en"),
        ("en-US-x-private", "gmw/en-US"),
        ("zh", "sit/cmn"),
        ("zh-CN", "sit/cmn"),
        ("zh-Hant-TW", "sit/cmn"),
        ("zh-HK", "sit/yue"),
        ("yue", "sit/yue"),
        ("ja-JP", "jpx/ja"),
        ("ko", "ko"),
        ("id", "poz/id"),
        ("in", "poz/id"),
        ("de-AT", "gmw/de"),
        ("fr", "roa/fr"),
        ("fr-CA", "roa/fr"),
        ("fr-BE", "roa/fr-BE"),
        ("es", "roa/es"),
        ("es-ES", "roa/es"),
        ("es-AR", "roa/es-419"),
        ("jpn", "jpx/ja"),
        ("ger", "gmw/de"),
        ("chr", "iro/chr"),
    ],
)
def test_a_tag_finds_its_voice(tag: str, voice: str) -> None:
    """The whole tag where there is a voice for it, else the language; old and three-letter codes as well."""
    assert find_voice(tag, VOICES) == voice


@pytest.mark.parametrize(("tag", "near"), [("german", "de"), ("Japanese", "ja"), ("kr", "ko"), ("", "en"), ("-", "en")])
def test_an_unknown_language_is_named_with_its_nearest(tag: str, near: str) -> None:
    """It fails for good, and says what was perhaps meant."""
    with pytest.raises(EngineError) as caught:
        find_voice(tag, VOICES)
    assert (caught.value.code, caught.value.retryable) == ("unsupported_language", False)
    assert repr(tag) in str(caught.value)
    assert near in str(caught.value).rpartition(": ")[2].split(", ")

"""The content key and the seed: equal for equal recordings, different for anything that shapes the audio."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.identity import EngineContent, Occurrences, ReferenceContent, derive_seed, segment_key
from daemon.core.job import Output, Parameters

SHA = "ab" * 32
CONTENT: dict[str, Any] = {
    "text": "Hello.",
    "language": "en",
    "references": (ReferenceContent("audio", SHA, "what she says"),),
    "parameters": Parameters(seed=7),
    "engine": EngineContent("fish", "0.1.0", "0123abcd", "bf16"),
    "output": Output(),
}


def test_the_key_is_what_the_module_says() -> None:
    """Another program can compute it: written out by hand, the same digest. It must never change for KEY_VERSION 1."""
    document = (
        '{"dubd":1,"engine":{"model":"0123abcd","name":"fish","options":{},"precision":"bf16","version":"0.1.0"},'
        '"language":"en","output":{"sample_rate":null,"subtype":"PCM_16"},'
        '"parameters":{"max_new_tokens":1024,"repetition_penalty":1.2,"seed":7,"temperature":0.7,"top_p":0.7},'
        f'"references":[["audio","{SHA}","what she says"]],"task":"speak","text":"Hello."}}'
    )
    assert segment_key(**CONTENT) == hashlib.sha256(document.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Hello!"},
        {"text": "hello."},
        {"language": "de"},
        {"task": "encode"},
        {"references": ()},
        {"references": (ReferenceContent("codes", SHA, "what she says"),)},
        {"references": (ReferenceContent("audio", "cd" * 32, "what she says"),)},
        {"references": (ReferenceContent("audio", SHA, "what he says"),)},
        {"references": CONTENT["references"] * 2},
        {"parameters": Parameters(seed=8)},
        {"parameters": Parameters(seed=None)},
        {"parameters": Parameters(seed=7, temperature=0.70001)},
        {"parameters": Parameters(seed=7, top_p=0.8)},
        {"parameters": Parameters(seed=7, repetition_penalty=1.1)},
        {"parameters": Parameters(seed=7, max_new_tokens=1023)},
        {"engine": replace(CONTENT["engine"], name="draft")},
        {"engine": replace(CONTENT["engine"], version="0.1.1")},
        {"engine": replace(CONTENT["engine"], model="0123abce")},
        {"engine": replace(CONTENT["engine"], precision="fp32")},
        {"engine": replace(CONTENT["engine"], options={"checks": False})},
        {"output": Output(sample_rate=48_000)},
        {"output": Output(subtype="PCM_24")},
    ],
)
def test_all_that_shapes_the_audio_is_in_the_key(change: dict[str, Any]) -> None:
    assert segment_key(**{**CONTENT, **change}) != segment_key(**CONTENT)


def test_the_order_of_references_is_in_the_key() -> None:
    """They make up the prompt in that order."""
    one, two = ReferenceContent("audio", SHA, "1"), ReferenceContent("codes", SHA, "2")
    keys = {segment_key(**{**CONTENT, "references": order}) for order in ((one, two), (two, one))}
    assert len(keys) == 2


def test_a_number_written_without_a_point_is_the_same() -> None:
    whole = segment_key(**{**CONTENT, "parameters": Parameters(seed=7, temperature=1)})
    assert whole == segment_key(**{**CONTENT, "parameters": Parameters(seed=7, temperature=1.0)})


def test_what_is_no_number_has_no_key() -> None:
    with pytest.raises(ValueError):
        segment_key(**{**CONTENT, "parameters": Parameters(temperature=float("nan"))})


@given(
    first=st.tuples(st.text(), st.text(), st.text()),
    second=st.tuples(st.text(), st.text(), st.text()),
)
def test_no_text_can_pose_as_another(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    """Quotes, commas and line ends in a text never move the border between it and the next."""

    def key(texts: tuple[str, str, str]) -> str:
        references = (ReferenceContent("audio", SHA, texts[2]),)
        return segment_key(**{**CONTENT, "text": texts[0], "language": texts[1], "references": references})

    assert (key(first) == key(second)) == (first == second)


def test_a_text_that_is_no_unicode_still_has_a_key() -> None:
    """Half a surrogate pair can't come from a job, and must not stop a daemon if it does come."""
    assert len(segment_key(**{**CONTENT, "text": "\ud800"})) == 64


def test_the_seed_follows_from_key_and_occurrence() -> None:
    """Frozen: a job that is taken again must get the seeds it had."""
    key = segment_key(**{**CONTENT, "parameters": Parameters()})
    digest = hashlib.sha256(f"dubd seed {key} 3".encode()).digest()
    assert derive_seed(key, 3) == int.from_bytes(digest[:4], "big") % 2**31
    assert derive_seed("00" * 32, 0) == 1791262007


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 10_000))
def test_seeds_are_in_range(key: str, occurrence: int) -> None:
    assert 0 <= derive_seed(key, occurrence) < 2**31


def test_lines_that_are_said_twice_differ() -> None:
    key = segment_key(**CONTENT)
    assert len({derive_seed(key, occurrence) for occurrence in range(1000)}) == 1000


def test_occurrences_count_each_key_from_zero() -> None:
    occurrences = Occurrences()
    assert [occurrences.next(key) for key in "abaab"] == [0, 0, 1, 2, 1]


def test_options_are_of_any_json_type() -> None:
    engine = replace(CONTENT["engine"], options=json.loads('{"a": [1, null, {"b": true}]}'))
    assert segment_key(**{**CONTENT, "engine": engine}) != segment_key(**CONTENT)

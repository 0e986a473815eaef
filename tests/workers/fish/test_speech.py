"""Pieces and attempts of a segment, and the prompts of speakers: no torch is needed for the bookkeeping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from workers.engine import Segment, Voice
from workers.engines.fish.speech import Attempt, Speech, pieces_of

SEGMENT = Segment(1, "speak", "Hello.", "en", Voice("anna", ()), 7, 0.7, 0.7, 1.2, 99, "x.wav", None, "PCM_16")


def attempt(seed: int, *flaws: str, truncated: bool = False) -> Attempt:
    return Attempt(seed, np.zeros(8, np.float32), truncated, flaws)


def test_short_texts_stay_whole_and_long_ones_are_cut_at_sentences() -> None:
    """Nothing is lost, whatever the script; a piece can be said in about half a minute."""
    assert pieces_of("Hello there.", "en") == ["Hello there."]
    english = "The night was long, and nobody knew what would come of it. " * 25
    chinese = "夜很长，谁也不知道会发生什么事情。" * 40
    for text, language, end in ((english, "en", "."), (chinese, "zh", "。")):
        pieces = pieces_of(text, language)
        assert len(pieces) > 2
        assert "".join("".join(pieces).split()) == "".join(text.split())
        assert all(piece.rstrip().endswith(end) for piece in pieces)
    endless = pieces_of("a" * 2000, "en")
    assert "".join(endless) == "a" * 2000


def test_a_speech_is_over_when_its_last_piece_is() -> None:
    """In whatever order they end, the pieces are joined in theirs; one truncated piece truncates the whole."""
    speech = Speech(SEGMENT, ["One.", "Two.", "Three."])
    speech.begin(7)
    speech.keys = {10: 0, 11: 1, 12: 2}
    codes = [np.full((10, 1), value) for value in range(3)]
    assert not speech.take(12, codes[2], truncated=False)
    assert not speech.take(10, codes[0], truncated=True)
    assert speech.take(11, codes[1], truncated=False)
    assert [int(one[0, 0]) for one in speech.joined] == [0, 1, 2]
    assert speech.truncated
    speech.begin(8)
    assert not speech.truncated
    assert speech.seeds == [7, 8]


def test_the_best_attempt_is_kept() -> None:
    """A good one ends the trying; else the fewest faults win, the earliest of equals; what can't be written loses."""
    speech = Speech(SEGMENT, ["Hello."])
    speech.begin(1)
    assert speech.judge(attempt(1, "non_finite"), retries=3)
    speech.begin(2)
    assert speech.judge(attempt(2, "too_short", "clipped"), retries=3)
    speech.begin(3)
    assert speech.judge(attempt(3, "too_short"), retries=3)
    speech.begin(4)
    assert not speech.judge(attempt(4, truncated=True), retries=3)
    assert speech.best is not None
    assert speech.best.seed == 3
    good = replace(speech, best=None, seeds=[1])
    assert not good.judge(attempt(1), retries=3)

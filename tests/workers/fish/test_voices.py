"""The prompts' memory: what rows read and what is kept for later stay within the budget together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from workers.engine import Reference, Voice  # noqa: E402
from workers.engines.fish.rows import Prompt  # noqa: E402
from workers.engines.fish.voices import Voices  # noqa: E402


class Sizes:
    """References whose names are the sizes of their prompts."""

    def codes_of(self, references: list[Reference]) -> list[Any]:
        return [np.zeros((10, int(reference.path)), np.int64) for reference in references]

    def prefix(self, references: list[tuple[str, Any]]) -> Any:
        return np.zeros((11, sum(codes.shape[1] for _, codes in references)), np.int64)


def test_prompts_that_rows_read_stay_and_those_used_longest_ago_go() -> None:
    """What is about to be computed counts as if it were; nothing that rows read is given up, even over the budget."""
    sizes: Any = Sizes()
    voices = Voices(sizes, sizes, 100, 1000)
    made = voices.prompts([Voice(str(size), (Reference(str(size), "codes", str(size), ""),)) for size in (40, 30, 20)])
    prompts = [prompt for prompt in made if isinstance(prompt, Prompt)]
    held: Any = object()

    def keep() -> None:
        for prompt in prompts:
            prompt.kept = held

    def left() -> list[bool]:
        return [prompt.kept is held for prompt in prompts]

    keep()
    voices.make_room([])
    assert left() == [True, True, True]
    voices.make_room([prompts[0], Prompt(np.zeros((11, 20), np.int64))])
    assert left() == [True, False, True]
    voices.make_room([prompts[0], Prompt(np.zeros((11, 90), np.int64))])
    assert left() == [True, False, False]
    keep()
    voices.make_room([prompts[0], prompts[0], prompts[2]])
    assert left() == [True, True, True]

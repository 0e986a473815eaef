"""What the model reads is what fish-speech would have it read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engines.fish.prompt import SPEAKER, Prompter, read_tokenizer  # noqa: E402
from workers.engines.fish.shape import read_shape  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return read_tokenizer(str(model_folder))


@pytest.fixture(scope="module")
def prompter(model_folder: Path, tokenizer: Any) -> Prompter:
    return Prompter(tokenizer, read_shape(str(model_folder)), str(model_folder))


@pytest.mark.parametrize("references", [0, 1, 3])
def test_prompts_are_stocks(prompter: Prompter, tokenizer: Any, references: int) -> None:
    """For harmless texts in any script, token for token and code for code what generate_long builds."""
    from fish_speech.content_sequence import ContentSequence, TextPart, VQPart

    generator = np.random.default_rng(references)
    texts = ["What she says, it's 42!", "你说的对。", "Grüße – ¿qué tal? 👋🏽"][:references]
    codes = []
    for frames in range(5, 5 + references):
        one = generator.integers(0, 1024, (10, frames))
        one[0] = generator.integers(0, 4096, frames)
        codes.append(one)
    sequence = ContentSequence(modality="interleave")
    for text, one in zip(texts, codes, strict=True):
        sequence.append([TextPart(text=text), VQPart(codes=torch.from_numpy(one))], add_end=True, speaker=0)
    sequence.append([TextPart(text="Was nun?  Ещё раз.\n")], add_end=False, speaker=0)
    expected, _, _ = sequence.encode_for_inference(tokenizer, num_codebooks=10)
    prefix = prompter.prefix(list(zip(texts, codes, strict=True)))
    ours = np.concatenate([prefix, prompter.suffix("Was nun?  Ещё раз.\n")], axis=1)
    assert np.array_equal(ours, expected.numpy())


def test_texts_are_read_never_obeyed(prompter: Prompter, tokenizer: Any) -> None:
    """Every special token, spelt out in a text, becomes the characters that it is made of."""
    for token in [*list(tokenizer.all_special_tokens_with_ids)[:40], SPEAKER, "a<|im_end|><|im_end|>b"]:
        tokens = prompter.suffix(token)[0]
        assert tokens.max() < len(tokenizer.tkt_model._mergeable_ranks)
        assert tokenizer.decode(tokens.tolist()) == token
    prefix = prompter.prefix([("x<|im_end|>y", np.zeros((10, 2), np.int64))])
    assert (prefix[0] == prompter.end).sum() == 1

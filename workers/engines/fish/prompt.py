"""What the model reads: the tokens of a voice's references, and of the text to be said.

A prompt is an integer array of shape (1 + codebooks, tokens): row 0 the token, the other rows the frame's codes where
the token is a semantic one, else 0. It is token for token what fish-speech's ``generate_long`` builds with
``ContentSequence(modality="interleave")``, with one difference: texts of a job are encoded as plain text, so that
``<|im_end|>`` in a line is spoken, not obeyed. It falls into a *prefix*, the same for all that a speaker says, and a
*suffix*, the text of one segment.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.engine import EngineError
from workers.engines.fish.shape import ModelShape

Codes = NDArray[np.int64]

START = "<|interleave|>"
END = "<|im_end|>"
SPEAKER = "<|speaker:0|>"
"""Before each turn. Not a special token of the released models, which spell it out; of one that has it, it is one."""

SEMANTIC_TOKENS = 4096
"""Semantic codes, and tokens for them, of every model that this engine speaks with."""


class Prompter:
    """Texts and codes to prompts, with the checkpoint's own tokenizer."""

    def __init__(self, tokenizer: Any, shape: ModelShape, folder: str) -> None:
        """``tokenizer``: fish-speech's ``FishTokenizer``; ``folder``: where it comes from, for messages.

        Raises:
            EngineError: "bad_checkpoint": the tokenizer is not one of a model of that shape.
        """
        special: dict[str, int] = tokenizer.all_special_tokens_with_ids
        semantic: dict[int, int] = tokenizer.semantic_id_to_token_id
        begin = semantic.get(0, 0)
        if [semantic.get(code) for code in range(SEMANTIC_TOKENS)] != list(range(begin, begin + SEMANTIC_TOKENS)):
            raise EngineError(
                "bad_checkpoint",
                f"the tokenizer in {folder} has {len(semantic)} semantic tokens where {SEMANTIC_TOKENS} in a row are "
                "needed; special_tokens.json is missing or of another model",
            )
        if START not in special or END not in special:
            raise EngineError(
                "bad_checkpoint", f"special_tokens.json in {folder} has no {START} or no {END}: it is of another model"
            )
        last = max(special.values())
        if last >= shape.vocabulary:
            raise EngineError(
                "bad_checkpoint",
                f"the tokenizer in {folder} counts {last + 1} tokens and config.json {shape.vocabulary}: they are "
                "of different models",
            )
        self.semantic_begin = begin
        self.semantic_tokens = SEMANTIC_TOKENS
        self.end = special[END]
        self._tokenizer = tokenizer
        self._codebooks = shape.codebooks
        self._start = tokenizer.encode(START)
        self._speaker = tokenizer.encode(SPEAKER)

    def prefix(self, references: Sequence[tuple[str, Codes]]) -> Codes:
        """The turns of the references and the beginning of the speaker's next one, shape (1 + codebooks, tokens).

        ``references``: the text said in each, and its codes, shape (codebooks, frames).
        """
        parts = [self._plain(self._start)]
        for text, codes in references:
            frames = np.concatenate([codes[:1] + self.semantic_begin, codes])
            parts += [
                self._plain(self._speaker),
                self._text(text),
                frames.astype(np.int64),
                self._plain([self.end]),
            ]
        parts.append(self._plain(self._speaker))
        return np.concatenate(parts, axis=1)

    def suffix(self, text: str) -> Codes:
        """The text to be said, shape (1 + codebooks, tokens)."""
        return self._text(text)

    def _text(self, text: str) -> Codes:
        return self._plain(self._tokenizer.encode(text, allowed_special=False))

    def _plain(self, tokens: Sequence[int]) -> Codes:
        values = np.zeros((1 + self._codebooks, len(tokens)), dtype=np.int64)
        values[0] = tokens
        return values


def read_tokenizer(folder: str) -> Any:
    """fish-speech's ``FishTokenizer`` of the checkpoint. It numbers the special tokens right after the file's mergeable
    ones, in the order of special_tokens.json, whatever numbers stand there.

    Raises:
        EngineError: "bad_checkpoint": the files are not what a tokenizer is read from.
    """
    from fish_speech.tokenizer import FishTokenizer

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves the file for the garbage collector to close
            return FishTokenizer.from_pretrained(folder)
    except Exception as error:  # base64, JSON, int(), tiktoken's own: whatever a broken file brings
        raise EngineError(
            "bad_checkpoint",
            f"no tokenizer can be read from {os.path.join(folder, 'tokenizer.tiktoken')} and special_tokens.json: "
            f"{type(error).__name__}: {error}; copy the checkpoint again",
        ) from error

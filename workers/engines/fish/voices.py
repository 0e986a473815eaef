"""The speakers' prompts: encoded once, read by the model once, kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from workers.engine import EngineError, Reference, Voice
from workers.engines.fish.prompt import Codes, Prompter
from workers.engines.fish.rows import Prompt

KEPT_TOKENS_OF_TEXTS = 1 << 18
"""Prompts without keys and values are small; this many tokens of them are kept."""


class References(Protocol):
    """Turns references into codes (see references.ReferenceCache)."""

    def codes_of(self, references: list[Reference]) -> list[Codes]: ...


class Voices:
    """Prompts by what makes a voice (Voice.key), the one used longest ago given up first.

    Args:
        tokens: how many tokens' keys and values may be held, those that rows read included.
        longest: how many tokens a prompt may have.
    """

    def __init__(self, references: References, prompter: Prompter, tokens: int, longest: int) -> None:
        self._references = references
        self._prompter = prompter
        self._tokens = tokens
        self._longest = longest
        self._prompts: OrderedDict[tuple[tuple[str, str, str], ...], Prompt] = OrderedDict()

    def prompts(self, voices: Sequence[Voice]) -> list[Prompt | EngineError]:
        """The prompt of each voice, or why it has none. References that were never seen are encoded together."""
        new = list({voice.key: voice for voice in voices if voice.key not in self._prompts}.values())
        failed = self._add(new) if new else {}
        for voice in voices:
            if voice.key in self._prompts:
                self._prompts.move_to_end(voice.key)
        return [failed[voice.key] if voice.key in failed else self._prompts[voice.key] for voice in voices]

    def _add(self, voices: list[Voice]) -> dict[tuple[tuple[str, str, str], ...], EngineError]:
        failed: dict[tuple[tuple[str, str, str], ...], EngineError] = {}
        try:
            found = self._references.codes_of([reference for voice in voices for reference in voice.references])
        except EngineError as error:
            if len(voices) == 1:
                return {voices[0].key: error}
            for voice in voices:
                failed.update(self._add([voice]))
            return failed
        for voice in voices:
            codes, found = found[: len(voice.references)], found[len(voice.references) :]
            texts = [reference.text for reference in voice.references]
            tokens = self._prompter.prefix(list(zip(texts, codes, strict=True)))
            if tokens.shape[1] >= self._longest:
                failed[voice.key] = self.too_long(int(tokens.shape[1]))
            else:
                self._prompts[voice.key] = Prompt(tokens)
        return failed

    def too_long(self, tokens: int) -> EngineError:
        """The error for a prompt of so many tokens."""
        return EngineError(
            "prompt_too_long",
            f"the speaker's references and the text take {tokens} of the model's positions and may take "
            f"{self._longest}: use shorter or fewer references (a second of recording takes 22)",
        )

    def make_room(self, needed: Iterable[Prompt]) -> None:
        """Forget what there is no room for beside the prompts that rows read, or are about to."""
        reading = {id(prompt): prompt.positions for prompt in needed}
        kept = [prompt for prompt in self._prompts.values() if prompt.kept is not None and id(prompt) not in reading]
        held = sum(reading.values()) + sum(prompt.positions for prompt in kept)
        for prompt in kept:
            if held <= self._tokens:
                break
            prompt.kept = None
            held -= prompt.positions
        total = sum(prompt.positions for prompt in self._prompts.values())
        while total > KEPT_TOKENS_OF_TEXTS and len(self._prompts) > 1:
            total -= self._prompts.popitem(last=False)[1].positions

    def forget(self) -> None:
        """Give back all keys and values."""
        for prompt in self._prompts.values():
            prompt.kept = None

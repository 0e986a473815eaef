"""Lets the codec's classes be imported where torchaudio is not installed.

fish-speech's codec is built on descript-audiotools, which imports torchaudio at its top for loudness and effects
that the codec never calls. torchaudio is published for each torch version apart and not for every machine, so where
the real one can't be imported an empty module takes its name while the codec's classes are imported, and gives
it back afterwards: other libraries ask whether torchaudio is there, and must get the true answer.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "torchaudio"


class _Absent(ModuleType):
    """Has a name and nothing else; whoever uses it is told what is missing."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"torchaudio.{name} is needed, but torchaudio is not installed; install it beside torch")


@contextmanager
def torchaudio_importable() -> Iterator[bool]:
    """While it lasts ``import torchaudio`` works: the real one if it can be imported (True), else the empty stand-in
    (False)."""
    try:
        # A torchaudio that was built for another torch fails with OSError, when its library is loaded.
        importlib.import_module(_NAME)
    except (ImportError, OSError):
        stand_in = _Absent(_NAME)
        stand_in.__spec__ = ModuleSpec(_NAME, None)
        sys.modules[_NAME] = stand_in
        try:
            yield False
        finally:
            del sys.modules[_NAME]
    else:
        yield True

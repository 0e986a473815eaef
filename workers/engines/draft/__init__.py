"""The draft engine: espeak-ng, with each voice's pitch taken from its reference."""

from workers.engines.draft.engine import DraftEngine

__all__ = ["DraftEngine"]

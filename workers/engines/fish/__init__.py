"""fish-speech, many segments at once. Importing this package is cheap; ``FishEngine`` brings torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.engines.fish.engine import FishEngine

__all__ = ["FishEngine"]


def __getattr__(name: str) -> Any:
    if name == "FishEngine":
        from workers.engines.fish.engine import FishEngine

        return FishEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

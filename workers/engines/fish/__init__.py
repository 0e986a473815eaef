"""fish-speech, many segments at once. Importing this package is cheap; ``FishEngine`` brings torch."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workers.engine import Settings

if TYPE_CHECKING:
    from workers.engines.fish.engine import FishEngine

__all__ = ["FishEngine", "read_ahead"]


def __getattr__(name: str) -> Any:
    if name == "FishEngine":
        from workers.engines.fish.engine import FishEngine

        return FishEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def read_ahead(settings: Settings) -> None:
    """Have the kernel read the checkpoint into its page cache, beside what the process does next: importing torch takes
    seconds, in which the disk would stand idle. What is wrong with the files is for loading to say."""
    threading.Thread(target=_read_ahead, args=(settings.checkpoint,), name="read-ahead", daemon=True).start()


def _read_ahead(folder: str) -> None:
    for name in ("codec.pth", "model.pth"):
        with suppress(OSError):
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

"""status.html: status.json for people who have nothing but a browser and the folder.

The page reads itself again, every REFRESH_S, in a hidden frame, and shows what it finds there; so it needs no server,
keeps its place, and can say that nothing new has come. It is written less often than status.json, since it is larger
and nobody reads faster.
"""

from __future__ import annotations

import os
from typing import Any

from daemon.config import Settings
from daemon.core.plan import BYTES_PER_GB
from daemon.report import page
from daemon.report.advice import advice

WRITE_S = 5.0
"""At most so often, in seconds; and so often as long as the daemon lives, which is how the page knows that it does."""

REFRESH_S = 5.0

POLICY = "frame-src 'self' file:"
"""The page itself, in a newer version."""


def build(status: dict[str, Any], settings: Settings) -> bytes:
    """The page. ``status`` is what status.json says at the same time."""
    return page.build("status", f"dubd \N{MIDDLE DOT} {status['state']}", document(status, settings), policy=POLICY)


def document(status: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What the page shows: status.json, and what a browser can't find out by itself."""
    failures = [{**failure, "advice": advice(failure["code"])} for failure in status["failures"]]
    return {
        **status,
        "failures": failures,
        "write_s": WRITE_S,
        "refresh_s": REFRESH_S,
        "memory_budget_bytes": round(settings.pool.model_memory_gb * BYTES_PER_GB),
        "outbox": os.path.relpath(settings.paths.outbox, settings.paths.status.parent),
    }

"""A third-party engine for tests: each segment takes a fixed time, one at a time unless told otherwise.

Named ``waiting:Waiting`` with this folder in ``worker.path``. Options: ``wait_s`` (0.05), ``seconds`` of silence in
each WAV (0.1), ``load_s``, how long loading takes (0). ``engine.slots`` beyond the default of 1 wait side by side.
"""

from __future__ import annotations

import time

from workers.engine import Settings
from workers.engines.silence import SilenceEngine


class Waiting(SilenceEngine):
    """Silence that takes its time; the standard library alone."""

    name = "waiting"
    version = "1"

    def __init__(self, settings: Settings) -> None:
        options = {"wait_s": 0.05, **settings.options}
        self._load_s = float(str(options.pop("load_s", 0.0)))
        super().__init__(Settings(device=settings.device, slots=settings.slots or 1, options=options))

    def load(self) -> None:
        time.sleep(self._load_s)
        super().load()
        self.model = "waiting"

    def activity(self) -> str:
        return f"waiting for {len(self._running)} segments"

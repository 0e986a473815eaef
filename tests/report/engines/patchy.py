"""The draft engine with a weakness, for pictures of pages: it fails each line that holds the word of the option
``stumbles``."""

from __future__ import annotations

from workers.engine import Failed, Segment, Settings, Spoken
from workers.engines.draft import DraftEngine


class PatchyEngine(DraftEngine):
    name = "patchy"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._stumbles = str(settings.options.get("stumbles", "\0"))
        self._fallen: list[int] = []

    def submit(self, segment: Segment) -> None:
        if self._stumbles in segment.text:
            self._fallen.append(segment.ticket)
        else:
            super().submit(segment)

    def step(self) -> list[Spoken | Failed]:
        fallen, self._fallen = self._fallen, []
        message = "three tries ended in silence"
        return [*(Failed(ticket, "nothing_spoken", message, False) for ticket in fallen), *super().step()]

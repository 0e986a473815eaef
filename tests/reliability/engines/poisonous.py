"""A test engine that some texts are poison to: ``poisonous:Poisonous`` speaks as Listening does, but a text with
``{kill-worker}`` in it kills the worker, one with ``{kill-daemon}`` the daemon, whose process id stands in the file of
option ``lock``.
"""

from __future__ import annotations

import os
import signal

from listening import Listening  # type: ignore[import-not-found]  # beside this file, on worker.path

from workers.engine import Failed, Segment, Settings, Spoken


class Poisonous(Listening):  # type: ignore[misc]  # its module is found on worker.path alone
    """See the module's text."""

    name = "poisonous"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = str(settings.options["lock"])

    def _speak(self, segment: Segment) -> Spoken | Failed:
        if "{kill-daemon}" in segment.text:
            with open(self._lock, encoding="ascii") as file:
                os.kill(int(file.read()), signal.SIGKILL)
            signal.pause()
        if "{kill-worker}" in segment.text:
            os.kill(os.getpid(), signal.SIGKILL)
        outcome: Spoken | Failed = super()._speak(segment)
        return outcome

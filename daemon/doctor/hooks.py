"""The commands of ``[hooks]``: whether they can be started. They are not run."""

from __future__ import annotations

import os
import shutil

from daemon.config import Settings
from daemon.doctor.finding import Finding


def check(settings: Settings) -> list[Finding]:
    if not settings.hooks.on_done:
        return []
    program = settings.hooks.on_done[0]
    found = shutil.which(program)
    if found is not None:
        return [Finding.ok("hooks.on_done", f"{found} can be run")]
    if os.path.isdir(program):
        problem, mend = "is a folder", "Name the program in it."
    elif os.path.exists(program):
        problem, mend = (
            "may not be run by this user",
            f"chmod +x {program}, and look who may read the folders above it.",
        )
    else:
        problem, mend = (
            "is not there",
            "Give the program's path in hooks.on_done, or a name that is on the daemon's PATH.",
        )
    return [Finding.warn("hooks.on_done", f"{program} {problem}: nobody will hear of ended jobs", mend)]

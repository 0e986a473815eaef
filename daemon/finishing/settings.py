"""What is asked of the steps; without their libraries, which the daemon itself never loads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """As ``daemon.core.job.Output`` has them; ``slot_s``: seconds the film leaves, None where it says nothing."""

    fit: str | None = None
    max_speed: float = 1.25
    slot_s: float | None = None
    loudness_lufs: float | None = None
    trim_silence: bool = False

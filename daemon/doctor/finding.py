"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``check`` names what was looked at. "fail": the daemon could not work; "warn": it works, but probably not as
    wished. ``mend`` says what to do, for all but "ok"."""

    check: str
    level: Level
    message: str
    mend: str = ""

    @classmethod
    def ok(cls, check: str, message: str) -> Finding:
        return cls(check, "ok", message)

    @classmethod
    def warn(cls, check: str, message: str, mend: str) -> Finding:
        return cls(check, "warn", message, mend)

    @classmethod
    def fail(cls, check: str, message: str, mend: str) -> Finding:
        return cls(check, "fail", message, mend)

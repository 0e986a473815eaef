"""What is done to a WAV between the engine and the outbox, where a job's ``output`` asks for it.

    the engine's samples, at the rate that was asked for, as 32-bit floats
    -> trim_silence   what is silent before and after is cut down to 50 ms
    -> fit            what is longer than its slot then is sped up, its pitch kept
    -> loudness_lufs  one gain for the whole, as far as the peaks allow
    -> subtype        rounded once, at the end

The order follows from what each step needs of the others. Silence is not worth speeding up, so it goes first. A
time-stretcher changes the loudness a little and the peaks more, so they are measured after it. The rate is the engine's
business and comes before all of them: a later change of rate would move the length off the slot by a part of a sample,
and raise peaks that were measured already.

``steps`` and ``loudness`` are the arithmetic. It needs native libraries, and any of them may crash or hang on some
input, so it runs in processes of its own (``process``), each of which has one WAV at a time: whoever dies has one
segment on its hands, and only that one is tried again. ``finisher`` is their keeper in the daemon, between "a worker
has delivered" and "stored and journalled": what is checked, hashed, kept and reused is the finished WAV.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version as version_of

STEPS_VERSION = 1
"""Raised when the same WAV and settings would give another result."""

LIBRARIES = ("libsonic", "pyloudnorm")


@cache
def version() -> str:
    """What the result depends on besides the WAV and the settings; part of the content key."""
    return " ".join([f"steps {STEPS_VERSION}", *(f"{name} {version_of(name)}" for name in LIBRARIES)])

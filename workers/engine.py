"""The contract between the serve loop and an engine.

An engine turns segments into WAV files. The serve loop calls ``load()`` once, then ``submit()`` whenever a
segment comes and a slot is free, and ``step()`` over and over while anything is submitted: each step advances the
whole batch by one unit, so that segments join and leave at any time. Everything is called from one thread.

    load() -> submit(segment) ... step() -> [Outcome, ...] ... step() -> ... close()
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Reference:
    """A file of the daemon's own snapshot: a recording (``kind`` "audio") or codec codes ("codes", .npy of integers,
    shape (10, frames)). ``sha256`` of the file's bytes; ``text`` is what is said in it."""

    path: str
    kind: str
    sha256: str
    text: str


@dataclass(frozen=True)
class Voice:
    """A speaker: equal references are an equal voice, whatever job they came with."""

    id: str
    references: tuple[Reference, ...]

    @property
    def key(self) -> tuple[tuple[str, str, str], ...]:
        """What makes the voice: the content of its references and their texts, not their paths."""
        return tuple((reference.kind, reference.sha256, reference.text) for reference in self.references)


@dataclass(frozen=True)
class Segment:
    """One ticket. ``task`` "speak": say ``text`` into a WAV at ``path``; "encode": write the first reference's codes to
    a .npy at ``path``. ``sample_rate`` in Hz, None for the engine's own; ``subtype`` as libsndfile names it."""

    ticket: int
    task: str
    text: str
    language: str
    voice: Voice
    seed: int
    temperature: float
    top_p: float
    repetition_penalty: float
    max_new_tokens: int
    path: str
    sample_rate: int | None
    subtype: str


@dataclass(frozen=True)
class Spoken:
    """The file at the segment's path is complete. ``frames`` are samples per channel of the WAV (codec frames for
    task "encode"); ``seed`` is the one it was spoken with in the end; ``seeds`` are all that were tried, and ``flaws``
    say what was wrong with a WAV kept for want of a better one."""

    ticket: int
    frames: int
    sample_rate: int
    seed: int
    generate_s: float
    truncated: bool = False
    seeds: tuple[int, ...] = ()
    flaws: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The segment could not be spoken. ``retryable``: another try may succeed. ``slots``: how many the engine has
    left, when it ran out of memory and gave some up."""

    ticket: int
    code: str
    message: str
    retryable: bool
    slots: int | None = None


Outcome = Spoken | Failed


DISK_FULL = "disk_full"
"""The code that the daemon answers by waiting for space; the segment is not charged."""


def write_failed(ticket: int, path: str, error: OSError) -> Failed:
    """What an engine answers when it could not write a segment's file."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = DISK_FULL if full else "write_failed"
    return Failed(ticket, code, f"{path} can't be written: {error.strerror or error}", retryable=True)


class EngineError(Exception):
    """Something the engine can name: ``code`` is stable, the message says how to mend it."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


def non_finite(what: str) -> EngineError:
    """The error where ``what`` computes NaN or infinities: speech made of them is noise, or silence, or anyone's."""
    return EngineError(
        "non_finite",
        f"{what} came to numbers that are NaN or infinite; try engine.precision fp32 (fp16 overflows first), and if "
        "that does not help the checkpoint is damaged: copy it again",
        retryable=True,
    )


@dataclass(frozen=True)
class Settings:
    """What the daemon's hello says. ``device``: "cpu" or "cuda:N". ``threads``: CPU threads this worker may use.
    ``memory_bytes``: its share of the GPU, 0 for no limit. ``cache``: a folder for encoded references, kept between
    runs. ``slots`` 0: the engine's own choice. ``precision``: auto, bf16, fp16 or fp32."""

    checkpoint: str = ""
    device: str = "cpu"
    threads: int = 1
    memory_bytes: int = 0
    cache: str = ""
    precision: str = "auto"
    slots: int = 0
    reproducible: bool = False
    retries: int = 2
    options: dict[str, object] = field(default_factory=dict)


class Engine(Protocol):
    """See the module's text. The attributes are read after ``load()``."""

    name: str
    version: str
    """The engine's and its libraries' versions: part of what shapes the audio."""
    model: str
    """The checkpoint by content (a short hash), or the voice data's name: part of what shapes the audio."""
    sample_rate: int
    slots: int
    device: str
    ignored: tuple[str, ...]
    """Names of job parameters that this engine does not use."""

    def load(self) -> None:
        """Make ready. Raises EngineError when it can't; called once, before anything else."""

    def submit(self, segment: Segment) -> None:
        """Take the segment into a free slot. A problem with the segment is reported by the next step()."""

    def step(self) -> list[Spoken | Failed]:
        """Advance everything submitted by one unit; what has ended since. May block briefly while nothing can
        be done but wait; raises nothing for a segment's sake."""

    def cancel(self, ticket: int) -> bool:
        """Drop a submitted segment; False when it is not (or no longer) there. No outcome follows a True."""

    def activity(self) -> str:
        """One line for people: what it is doing now."""

    def close(self) -> None:
        """Give back what it holds."""

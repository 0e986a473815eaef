"""A job as the daemon holds it: checked, with every default filled in, whatever form it came in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["speak", "encode"]
ResultsForm = Literal["generate", "encode"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording of a speaker, or its codec codes: exactly one of ``audio`` and ``codes`` is a path, as the
    job wrote it (relative to the inbox or absolute); ``text`` is what is said in it, ``where`` the JSON path that names
    it, for messages."""

    text: str
    audio: str | None = None
    codes: str | None = None
    where: str = field(default="", compare=False)

    @property
    def path(self) -> str:
        path = self.audio if self.audio is not None else self.codes
        assert path is not None
        return path


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice. ``numeric``: the job wrote its id as a number, and LocalClip's results.json gives it back as one."""

    id: str
    references: tuple[Reference, ...]
    numeric: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Parameters:
    """How the engine samples. ``seed`` None: derived from the content (see identity)."""

    seed: int | None = None
    temperature: float = 0.7
    top_p: float = 0.7
    repetition_penalty: float = 1.2
    max_new_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Output:
    """The form of the WAVs. ``sample_rate`` None: the engine's own, in Hz. ``subtype`` as libsndfile names it.

    The others say how they are finished (see daemon.finishing), all off by default: ``fit`` "speed": one that is longer
    than its slot is sped up, at most ``max_speed`` times; ``loudness_lufs``: its loudness after ITU-R BS.1770;
    ``trim_silence``: the silence before and after is cut down to 50 ms."""

    sample_rate: int | None = None
    subtype: str = "PCM_16"
    fit: Literal["speed"] | None = None
    max_speed: float = 1.25
    loudness_lufs: float | None = None
    trim_silence: bool = False

    @property
    def finishes(self) -> bool:
        """Something is done to what the engine has made."""
        return self.fit is not None or self.loudness_lufs is not None or self.trim_silence


@dataclass(frozen=True, slots=True)
class Segment:
    """One line. ``speaker`` is an id of ``Job.speakers``; ``start`` and ``end`` are seconds on the film's clock.
    ``output_file`` is a LocalClip path for the result, ``index`` is unique in the job."""

    index: int
    speaker: str
    text: str
    start: float | None = None
    end: float | None = None
    seed: int | None = None
    output_file: str | None = None

    @property
    def slot_s(self) -> float | None:
        """Seconds the film leaves for the line."""
        if self.start is None or self.end is None:
            return None
        return self.end - self.start

    @property
    def sayable(self) -> bool:
        """False for an empty or punctuation-only text, which is skipped."""
        return any(character.isalnum() for character in self.text)


@dataclass(frozen=True, slots=True)
class Redo:
    """Which segments of an ended job are spoken once more: their indexes, ascending. ``seed`` None: with the seed of
    their last take; "new": with one that none of their takes had; or that very one for all."""

    segments: tuple[int, ...]
    seed: int | Literal["new"] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked. ``segments`` are in ascending order of index. ``task`` "encode": each segment
    stands for a speaker whose reference is to be turned into codes (LocalClip's encode config), its ``index`` the
    speaker's position, its ``text`` the reference's, its ``output_file`` the .npy that was asked for. ``results``
    says in which LocalClip form results.json is written. ``ignored`` names, as JSON paths with the reason, what the
    job says and dubd does not obey."""

    job_id: str
    speakers: tuple[Speaker, ...]
    segments: tuple[Segment, ...]
    language: str = "en"
    priority: int = 0
    parameters: Parameters = field(default_factory=Parameters)
    output: Output = field(default_factory=Output)
    task: Task = "speak"
    results: ResultsForm | None = None
    ignored: tuple[str, ...] = ()
    redo: Redo | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingsJob(Job):
    """A job of the kind "speaker_embeddings": one embedding for each speaker below ``utterances_dir``, and no segments.
    ``utterances_dir`` is as the job wrote it, relative to the inbox or absolute; None: as the configuration says."""

    utterances_dir: str = ""
    min_utterances: int | None = None
    chunk_size: int | None = None
    skip_existing: bool | None = None
    format: Literal["pkl", "npz"] | None = None
    exclude_filename_prefix: tuple[str, ...] | None = None
    exclude_filename_pattern: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job can't be accepted: where (a JSON path such as ``$.segments[3].text``, ``$`` for the whole
    document), a stable code, and a sentence that says what is wrong and how to mend it."""

    path: str
    code: str
    message: str


class JobRejected(Exception):
    """The job can't be accepted; ``reasons`` has every one. ``incomplete`` is set when the document does not parse
    as JSON at all, so that the file may still be on its way."""

    def __init__(self, reasons: list[Reason], *, incomplete: bool = False) -> None:
        super().__init__("; ".join(f"{reason.path}: {reason.message}" for reason in reasons))
        self.reasons = reasons
        self.incomplete = incomplete


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on a job, each a key of ``[limits]`` in config.toml."""

    job_bytes: int = 16 * 1024 * 1024
    json_depth: int = 32
    segments: int = 10_000
    text_characters: int = 2_000
    references_per_speaker: int = 4
    reference_seconds_min: float = 1.0
    reference_seconds_max: float = 90.0
    reference_bytes: int = 256 * 1024 * 1024
    job_reference_bytes: int = 4 * 1024 * 1024 * 1024

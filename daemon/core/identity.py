"""What makes two segments the same recording: the content key, and the seed derived from it.

The key is the SHA-256, in lower-case hexadecimal, of one JSON document in UTF-8 (escaped to ASCII), members sorted,
no spaces, numbers as Python's ``json`` writes them (floats as the shortest text that reads back equal)::

    {"dubd": 1, "task": …, "text": …, "language": …,
     "references": [[kind, sha256, text], …],                       in the speaker's order
     "parameters": {seed, temperature, top_p, repetition_penalty, max_new_tokens},
     "engine": {name, version, model, precision, options},
     "output": {sample_rate, subtype}}

and, where the output is finished (see daemon.finishing), ``"finishing": {version, fit, max_speed, slot_s,
loudness_lufs, trim_silence}``: ``version`` is that of the finishing, max_speed and slot_s (to the microsecond) are null
unless it fits.

JSON quotes its texts, so no two different contents have the same document. Nothing that leaves the audio alone is in
it: neither index, job, speaker's id, times and file names, nor worker, device and slots.

A segment without a seed gets one from its content: the key is taken with ``"seed": null``, and the seed is
``derive_seed(that key, occurrence)``, the occurrence counting, from 0, the lines of the job with that same key in
ascending order of index. So a line said twice is said in two ways, and a job taken again says both as before. The key
under which the recording is kept is then taken with that seed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from daemon.core.job import Output, Parameters, Task

KEY_VERSION = 1


@dataclass(frozen=True, slots=True)
class ReferenceContent:
    """A reference by what it holds: ``sha256`` (hex) of the file's bytes, ``text`` what is said in it."""

    kind: Literal["audio", "codes"]
    sha256: str
    text: str


@dataclass(frozen=True, slots=True)
class EngineContent:
    """The engine by all that shapes its audio: ``version`` of it and its libraries, ``model`` the checkpoint by
    content, ``precision`` the one it computes in, ``options`` further settings that shape the audio (JSON's types)."""

    name: str
    version: str
    model: str
    precision: str
    options: Mapping[str, object] = field(default_factory=dict)


def segment_key(
    *,
    text: str,
    language: str,
    references: Sequence[ReferenceContent],
    parameters: Parameters,
    engine: EngineContent,
    output: Output,
    task: Task = "speak",
    slot_s: float | None = None,
    finishing_version: str = "",
) -> str:
    """The content key, 64 hexadecimal digits; ``parameters.seed`` is the segment's own, None while it has none.
    ``slot_s`` and ``finishing_version`` count only where they shape the audio.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: an option of the engine is of no type of JSON's.
    """
    content: dict[str, object] = {
        "dubd": KEY_VERSION,
        "task": task,
        "text": text,
        "language": language,
        "references": [[reference.kind, reference.sha256, reference.text] for reference in references],
        "parameters": {
            "seed": parameters.seed,
            "temperature": float(parameters.temperature),
            "top_p": float(parameters.top_p),
            "repetition_penalty": float(parameters.repetition_penalty),
            "max_new_tokens": parameters.max_new_tokens,
        },
        "engine": {
            "name": engine.name,
            "version": engine.version,
            "model": engine.model,
            "precision": engine.precision,
            "options": dict(engine.options),
        },
        "output": {"sample_rate": output.sample_rate, "subtype": output.subtype},
    }
    if output.finishes and task == "speak":
        fits = output.fit is not None
        content["finishing"] = {
            "version": finishing_version,
            "fit": output.fit,
            "max_speed": float(output.max_speed) if fits else None,
            "slot_s": None if slot_s is None or not fits else round(slot_s, 6),
            "loudness_lufs": output.loudness_lufs,
            "trim_silence": output.trim_silence,
        }
    document = json.dumps(content, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode("ascii")).hexdigest()


def derive_seed(key: str, occurrence: int) -> int:
    """A seed from 0 to 2**31 - 1: the first four bytes, big-endian and without the top bit, of the SHA-256 of
    ``dubd seed KEY OCCURRENCE`` in ASCII, the occurrence in decimal."""
    digest = hashlib.sha256(f"dubd seed {key} {occurrence}".encode("ascii")).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def next_seed(seed: int) -> int:
    """Another seed from 0 to 2**31 - 1, always the same one after ``seed``: made as in ``derive_seed`` of ``dubd seed
    after SEED``."""
    digest = hashlib.sha256(f"dubd seed after {seed}".encode("ascii")).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


class Occurrences:
    """Counts the lines of one job that have the same key; asked once a line, in ascending order of index."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def next(self, key: str) -> int:
        """0 for the first line with this key, 1 for the second …"""
        occurrence = self._seen[key]
        self._seen[key] += 1
        return occurrence

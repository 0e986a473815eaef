"""Reads a job of the kind "speaker_embeddings": one embedding for each speaker in a folder of utterances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.core.fields import Fields, spellings
from daemon.core.job import EmbeddingsJob
from daemon.core.job_settings import check_schema, read_job_id, read_path, read_priority
from daemon.core.reasons import Reasons, quoted

KIND = "speaker_embeddings"

FORMATS = ("pkl", "npz")
MOST_NAMES = 1000
_LONGEST_NAME = 255

_JOB = spellings(
    {
        "schema": (),
        "kind": (),
        "job_id": (),
        "priority": (),
        "utterances_dir": (),
        "min_utterances": (),
        "chunk_size": (),
        "skip_existing": (),
        "format": (),
        "exclude_filename_prefix": (),
        "exclude_filename_pattern": (),
    }
)

_ELSEWHERE = {
    "speakers_dir": "the results of a job go to its folder in the outbox, speakers/: leave it out",
    "num_processes": "it is for all such jobs together, and stands under [embeddings] in config.toml: leave it out",
}


def read_embeddings_job(tree: Mapping[str, Any], *, stem: str, reasons: Reasons) -> EmbeddingsJob:
    """The job in a document of this kind, from a file called ``stem``.json.

    Raises:
        JobRejected: with every reason.
    """
    job = Fields(tree, "$", _JOB, reasons)
    check_schema(job, reasons)
    for name in [name for name in job.unknown if name in _ELSEWHERE]:
        job.unknown.remove(name)
        job.refuse(name, "unknown_field", _ELSEWHERE[name])
    job.refuse_unknown("a job of speaker embeddings")
    read = EmbeddingsJob(
        job_id=read_job_id(job, stem),
        speakers=(),
        segments=(),
        priority=read_priority(job),
        utterances_dir=read_path(job, "utterances_dir", required=True) or "",
        min_utterances=job.integer("min_utterances", 1, 1_000_000_000),
        chunk_size=job.integer("chunk_size", 1, 1000),
        skip_existing=job.flag("skip_existing"),
        format=_read_format(job),  # type: ignore[arg-type]  # one of FORMATS
        exclude_filename_prefix=_read_names(job, "exclude_filename_prefix"),
        exclude_filename_pattern=_read_names(job, "exclude_filename_pattern"),
    )
    reasons.raise_if_any()
    return read


def _read_format(job: Fields) -> str | None:
    value = job.text("format", _LONGEST_NAME)
    if value is not None and value not in FORMATS:
        job.refuse("format", "bad_format", f"{quoted(value)} is no format of results; it can be 'pkl' or 'npz'")
        return None
    return value


def _read_names(job: Fields, name: str) -> tuple[str, ...] | None:
    """A list of short texts; one text alone is a list of it."""
    value = job.raw(name)
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    whole = isinstance(names, list) and len(names) <= MOST_NAMES
    if not whole or not all(isinstance(one, str) and 0 < len(one) <= _LONGEST_NAME for one in names):
        job.wrong_type(name, f"a list of up to {MOST_NAMES} short texts, none of them empty", value)
        return None
    return tuple(names)

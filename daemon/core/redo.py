"""Redoing segments of an ended job: the words "3,7-9", the member ``redo`` of a job, the document of the kind "redo".

A job with ``"redo": {"segments": "3,7-9", "seed": "new"}`` is the same job taken again: those segments are spoken once
more, and every other one whose speaker and text are as they were keeps what came of it before. Whoever has not got the
job at hand drops ``{"kind": "redo", "job_id": …, "segments": …, "seed": …}``, and the daemon makes the first of the
second and of what was asked, which lies in the job's folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from daemon.core.fields import Fields, spellings
from daemon.core.job import Job, JobRejected, Limits, Redo
from daemon.core.job_id import job_id_problem
from daemon.core.job_settings import LARGEST_INDEX, LARGEST_SEED
from daemon.core.json_document import read_json
from daemon.core.reasons import Reasons, quoted

KIND = "redo"
SCHEMA = 1

_REDO = spellings({"segments": (), "seed": ()})
_REQUEST = spellings({"schema": (), "kind": (), "job_id": (), "segments": (), "seed": ()})
_PART = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?\Z")
_LONGEST_ID = 4096


@dataclass(frozen=True, slots=True)
class RedoRequest:
    """A document of the kind "redo": which segments of which job."""

    job_id: str
    redo: Redo


def parse_indexes(text: str, most: int) -> tuple[int, ...]:
    """ "3,7-9" → (3, 7, 8, 9), ascending, each once.

    Raises:
        ValueError: it is no such text, or names more than ``most``.
    """
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"{quoted(text)} is no list of segments such as '3,7-9'")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or last > LARGEST_INDEX:
            raise ValueError(f"{quoted(part)} is no range of segments: the first comes before the last, as in '7-9'")
        if last - first >= most or len(found) > most:
            raise ValueError(f"{quoted(text)} names more than {most} segments, which no job has")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def indexes_text(indexes: Iterable[int]) -> str:
    """(3, 7, 8, 9) → "3,7-9"."""
    ranges: list[list[int]] = []
    for index in sorted(set(indexes)):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def read_redo(tree: Mapping[str, Any], limits: Limits, reasons: Reasons) -> Redo | None:
    """The member ``redo`` of a job; what is wrong with it is noted."""
    job = Fields({"redo": tree.get("redo")}, "$", {"redo": "redo"}, reasons)
    if not job.given("redo"):
        return None
    return _read_fields(job.inner("redo", _REDO, "redo"), limits)


def with_redo(job: Job, redo: Redo | None, reasons: Reasons) -> Job:
    """The job, redone in part.

    Raises:
        JobRejected: a segment that is to be redone is none of its segments.
    """
    if redo is None:
        return job
    known = {segment.index for segment in job.segments}
    if unknown := [index for index in redo.segments if index not in known]:
        message = f"the job has no segment {indexes_text(unknown[:1000])}: its segments are {indexes_text(known)[:200]}"
        reasons.add("$.redo.segments", "unknown_segment", message)
    reasons.raise_if_any()
    return replace(job, redo=redo)


def read_request(document: bytes, *, stem: str, limits: Limits) -> RedoRequest | None:
    """The request in a file called ``stem``.json; None when it is of another kind, or no JSON at all.

    Raises:
        JobRejected: it is a request, with every reason why it can't be followed.
    """
    reasons = Reasons()
    try:
        tree = read_json(document, limits=limits, reasons=reasons)
    except JobRejected:
        return None  # the reader of jobs says it better
    if not isinstance(tree, dict) or tree.get("kind") != KIND:
        return None
    fields = Fields(tree, "$", _REQUEST, reasons)
    schema = fields.integer("schema", -(2**63), LARGEST_SEED)
    if schema is not None and schema != SCHEMA:
        fields.refuse("schema", "schema_unsupported", f"this daemon reads schema {SCHEMA}, not {schema}")
    fields.refuse_unknown("a request to redo")
    job_id = fields.text("job_id", _LONGEST_ID)
    if job_id is None and not fields.given("job_id"):
        job_id = stem.removesuffix(f".{KIND}")
    if job_id is not None and (problem := job_id_problem(job_id)):
        fields.refuse("job_id", "bad_job_id", f"the job_id {quoted(job_id)} {problem}")
    redo = _read_fields(fields, limits)
    reasons.raise_if_any()
    assert job_id is not None
    assert redo is not None
    return RedoRequest(job_id, redo)


def compose(asked: bytes, request: RedoRequest) -> bytes:
    """The job that was ``asked`` before, with the request in it.

    Raises:
        ValueError: what was asked is no JSON object.
    """
    tree = json.loads(asked)
    if not isinstance(tree, dict):
        raise ValueError("it holds no job")
    redo: dict[str, object] = {"segments": indexes_text(request.redo.segments)}
    if request.redo.seed is not None:
        redo["seed"] = request.redo.seed
    tree = {**tree, "job_id": request.job_id, "redo": redo}
    return json.dumps(tree, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")


def _read_fields(fields: Fields, limits: Limits) -> Redo | None:
    segments = _read_segments(fields, limits)
    seed = _read_seed(fields)
    return None if segments is None else Redo(segments, seed)


def _read_segments(fields: Fields, limits: Limits) -> tuple[int, ...] | None:
    value = fields.raw("segments", required=True)
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return parse_indexes(value, limits.segments)
        except ValueError as error:
            fields.refuse("segments", "bad_segments", str(error))
            return None
    if not isinstance(value, list) or not value or any(type(index) is not int for index in value):
        fields.wrong_type("segments", "a text such as '3,7-9', or a list of whole numbers", value)
        return None
    return tuple(sorted(set(value)))


def _read_seed(fields: Fields) -> int | Literal["new"] | None:
    value = fields.raw("seed")
    if value is None or value == "new":
        return value  # type: ignore[no-any-return]  # None or "new"
    if type(value) is int and 0 <= value <= LARGEST_SEED:
        return value
    fields.wrong_type("seed", "'new' or a whole number from 0", value)
    return None

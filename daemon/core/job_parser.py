"""Bytes to a ``Job``, or every reason why not.

The document is read in two steps: ``json_document`` makes a tree of it or says why it is none, and the readers here
(``localclip`` for the configs of that editor) go through the tree and note each fault with its JSON path. What has one
meaning is taken, as "3" where a number is asked for; nothing else is repaired: a job means what it says, or it is
rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from daemon.core import embeddings_job, localclip
from daemon.core.fields import Fields, describe, objects, spellings
from daemon.core.job import Job, Limits, Reference, Segment, Speaker
from daemon.core.job_id import fold_job_id, job_id_problem
from daemon.core.job_settings import (
    LARGEST_INDEX,
    LARGEST_SEED,
    LATEST_S,
    SETTINGS,
    check_count,
    check_schema,
    read_path,
    read_reference_text,
    read_settings,
    read_speaker_id,
)
from daemon.core.json_document import BadNumber, read_json
from daemon.core.reasons import Reasons, nearest, quoted
from daemon.core.redo import read_redo, with_redo

__all__ = ["fold_job_id", "job_id_problem", "parse_job"]

_JOB = spellings({"schema": (), "kind": (), "redo": (), **SETTINGS, "speakers": (), "segments": ()})
_SPEAKER = spellings({"id": ("speaker_id",), "references": ()})
_REFERENCE = spellings({"audio": (), "codes": (), "text": ()})
_SEGMENT = spellings(
    {
        "index": ("segment_index",),
        "speaker": ("speaker_id",),
        "text": ("target_text",),
        "start": ("start_time",),
        "end": ("end_time",),
        "seed": (),
    }
)


def parse_job(document: bytes, *, stem: str, limits: Limits) -> Job:
    """The job in a file called ``stem``.json: dubd's own form, or one of LocalClip's configs. A job of the kind
    "speaker_embeddings" comes as an ``EmbeddingsJob``.

    Raises:
        JobRejected: with every reason; ``incomplete`` when the document does not parse as JSON at all.
    """
    reasons = Reasons()
    tree = read_json(document, limits=limits, reasons=reasons)
    if not isinstance(tree, dict):
        if not isinstance(tree, BadNumber):  # which has its own reason already
            reasons.add("$", "wrong_type", f"a job must be an object, not {describe(tree)}")
        raise reasons.rejection()
    if tree.get("kind") == embeddings_job.KIND:
        return embeddings_job.read_embeddings_job(tree, stem=stem, reasons=reasons)
    redo = read_redo(tree, limits, reasons)
    read = localclip.read_config if localclip.is_config(tree) else _read_job
    return with_redo(read(tree, stem=stem, limits=limits, reasons=reasons), redo, reasons)


def _read_job(tree: Mapping[str, Any], *, stem: str, limits: Limits, reasons: Reasons) -> Job:
    job = Fields(tree, "$", _JOB, reasons)
    _check_form(job, reasons)
    job.refuse_unknown("a job")
    settings = read_settings(job, stem=stem)
    speakers = _read_speakers(job, limits, reasons)
    segments = _read_segments(job, speakers, limits, reasons)
    reasons.raise_if_any()
    return Job(
        job_id=settings.job_id,
        speakers=tuple(speaker for speaker in speakers.values() if speaker is not None),
        segments=tuple(sorted(segments, key=lambda segment: segment.index)),
        language=settings.language,
        priority=settings.priority,
        parameters=settings.parameters,
        output=settings.output,
    )


def _check_form(job: Fields, reasons: Reasons) -> None:
    """Stop at a job of another schema or kind: its other fields can't be judged by this one's rules."""
    check_schema(job, reasons)
    kind = job.raw("kind")
    if kind is not None and kind != "dub":
        known = "'dub' or 'speaker_embeddings'"
        if not isinstance(kind, str):
            job.wrong_type("kind", known, kind)
        else:
            near = nearest(kind, ("dub", "speaker_embeddings"))
            hint = f"; did you mean {quoted(near)}?" if near else ""
            job.refuse("kind", "bad_kind", f"kind is {quoted(kind)}; it must be {known}{hint}")
        raise reasons.rejection()


def _read_speakers(job: Fields, limits: Limits, reasons: Reasons) -> dict[str, Speaker | None]:
    """The speakers by id, in the order of the job; None for one whose references were refused."""
    speakers: dict[str, Speaker | None] = {}
    for fields in objects(job.items("speakers") or [], job.path_of("speakers"), _SPEAKER, reasons):
        fields.refuse_unknown("a speaker")
        references = _read_references(fields, limits, reasons)
        speaker_id = read_speaker_id(fields, "id")
        if speaker_id is None:
            continue
        if speaker_id in speakers:
            fields.refuse("id", "duplicate_speaker", f"the speaker {quoted(speaker_id)} is given already")
        elif references is None:
            speakers[speaker_id] = None
        else:
            speakers[speaker_id] = Speaker(speaker_id, references, numeric=isinstance(fields.raw("id"), int))
    return speakers


def _read_references(speaker: Fields, limits: Limits, reasons: Reasons) -> tuple[Reference, ...] | None:
    items = speaker.items("references")
    if items is None:
        return None
    if not 1 <= len(items) <= limits.references_per_speaker:
        message = f"a speaker has 1 to {limits.references_per_speaker} references, not {len(items)}"
        speaker.refuse("references", "too_many_references" if items else "no_references", message)
    references = []
    for fields in objects(items, speaker.path_of("references"), _REFERENCE, reasons):
        fields.refuse_unknown("a reference")
        text = read_reference_text(fields, "text", limits)
        audio, codes = read_path(fields, "audio"), read_path(fields, "codes")
        if fields.given("audio") and fields.given("codes"):
            fields.refuse("codes", "audio_and_codes", "a reference is a recording (audio) or its codes, not both")
        elif not fields.given("audio") and not fields.given("codes"):
            fields.refuse("audio", "missing_field", "a reference needs the path of a recording (audio) or of its codes")
        elif text is not None and (audio is None) != (codes is None):
            where = fields.path_of("codes" if audio is None else "audio")
            references.append(Reference(text=text, audio=audio, codes=codes, where=where))
    return tuple(references) if len(references) == len(items) else None


def _read_segments(job: Fields, speakers: Mapping[str, object], limits: Limits, reasons: Reasons) -> list[Segment]:
    items = job.items("segments")
    if items is None:
        return []
    check_count(job, "segments", items, limits)
    segments = []
    positions: dict[int, str] = {}
    refuse_speaker = _speaker_check(speakers, reasons)
    for fields in objects(items, job.path_of("segments"), _SEGMENT, reasons):
        fields.refuse_unknown("a segment")
        index = fields.integer("index", 0, LARGEST_INDEX, required=True)
        if index is not None and (first := positions.setdefault(index, fields.path)) != fields.path:
            fields.refuse("index", "duplicate_index", f"the index {index} is given already, in {first}")
        speaker = read_speaker_id(fields, "speaker")
        if speaker is not None and speaker not in speakers and job.given("speakers"):
            refuse_speaker(fields, speaker)
        text = fields.text("text", limits.text_characters, required=True)
        start, end = _read_times(fields)
        seed = fields.integer("seed", 0, LARGEST_SEED)
        if index is not None and speaker is not None and text is not None:
            segments.append(Segment(index=index, speaker=speaker, text=text, start=start, end=end, seed=seed))
    return segments


def _speaker_check(speakers: Mapping[str, object], reasons: Reasons) -> Callable[[Fields, str], None]:
    """Notes an unknown speaker; the nearest known one is looked for once for each name."""
    hints: dict[str, str] = {}

    def refuse(fields: Fields, speaker: str) -> None:
        if speaker not in hints and not reasons.full:  # looking for a near name is dear
            near = nearest(speaker, speakers)
            hints[speaker] = f"; did you mean {quoted(near)}?" if near else ": add it to speakers"
        fields.refuse(
            "speaker", "unknown_speaker", f"the speaker {quoted(speaker)} is not given{hints.get(speaker, '')}"
        )

    return refuse


def _read_times(segment: Fields) -> tuple[float | None, float | None]:
    start, end = segment.moment("start", LATEST_S), segment.moment("end", LATEST_S)
    if start is not None and end is not None and end < start:
        segment.refuse("end", "end_before_start", f"the segment ends at {end} s, before it starts at {start} s")
    return start, end

"""The fields that say the same in every form of job: its name, language, priority, parameters and output."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any

from daemon.core.fields import Fields, spellings
from daemon.core.job import Limits, Output, Parameters
from daemon.core.job_id import job_id_problem
from daemon.core.reasons import Reasons, nearest, quoted

SCHEMA = 1
LARGEST_SEED = 2**63 - 1
LARGEST_INDEX = 2**31 - 1
LATEST_S = 360_000.0
"""The longest film, and where its last line may end: 100 hours."""

SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "ALAW")
"""What a WAV may hold, as libsndfile names it: the encodings with one value a sample. Its block codecs (ADPCM, GSM)
pad a recording to whole blocks, so that its length would no longer be the segment's."""

_SUBTYPE_OF_BITS = {"16": "PCM_16", "24": "PCM_24"}
"""What bits mean by themselves; 32 of them may be whole numbers or floats."""

FITS = ("speed",)
FASTEST = 2.0
"""Beyond twice as fast nobody follows a dialogue."""

QUIETEST_LUFS, LOUDEST_LUFS = -60.0, -5.0
"""Below is next to nothing; above no speech comes without being cut off. Broadcasts ask for -24 to -23, streams for -16
to -14."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "job_id": (),
    "language": (),
    "priority": (),
    "defaults": (),
    "output": (),
}
"""These fields and their aliases, for ``spellings()``."""

_PARAMETERS = spellings({field.name: () for field in fields_of(Parameters)})
_OUTPUT = spellings({field.name: () for field in fields_of(Output)})

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{1,8})*\Z")
_LONGEST_LANGUAGE = 35  # what RFC 5646, section 4.4.1, asks every reader of a tag to hold
_LONGEST_PATH = 4096
_LONGEST_ID = 200
_UNFIT_FOR_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class JobSettings:
    job_id: str
    language: str
    priority: int
    parameters: Parameters
    output: Output


def read_settings(job: Fields, *, stem: str) -> JobSettings:
    """The settings of a job whose file is called ``stem``.json; whatever is wrong is noted and replaced by the
    default."""
    language = job.text("language", _LONGEST_LANGUAGE)
    if language is not None:
        # A locale of POSIX names its language as a tag does.
        language = language.strip().partition(".")[0].replace("_", "-")
        if _LANGUAGE.match(language):
            language = _as_tags_are_written(language)
        else:
            job.refuse("language", "bad_language", f"{quoted(language)} is no language tag such as 'en' or 'pt-BR'")
    priority = read_priority(job)
    return JobSettings(
        job_id=read_job_id(job, stem),
        language="en" if language is None else language,
        priority=priority,
        parameters=_read_parameters(job.inner("defaults", _PARAMETERS, "defaults")),
        output=_read_output(job.inner("output", _OUTPUT, "output")),
    )


def _as_tags_are_written(tag: str) -> str:
    """The language in small letters, a region in capitals, a script with one (RFC 5646, section 2.1.1)."""
    first, *rest = tag.split("-")
    cases = {2: str.upper, 4: str.title}
    return "-".join([first.lower(), *(cases.get(len(part), str.lower)(part) for part in rest)])


def check_schema(job: Fields, reasons: Reasons) -> None:
    """Stop at a job of another schema: its other fields can't be judged by this one's rules.

    Raises:
        JobRejected: it is one.
    """
    schema = job.integer("schema", -(2**63), LARGEST_SEED)
    if schema is not None and schema != SCHEMA:
        job.refuse("schema", "schema_unsupported", f"this daemon reads schema {SCHEMA}, not {schema}")
        raise reasons.rejection()


def read_job_id(job: Fields, stem: str) -> str:
    if job.given("job_id"):
        job_id = job.text("job_id", _LONGEST_PATH)
        if job_id is not None and (problem := job_id_problem(job_id)):
            job.refuse("job_id", "bad_job_id", f"the job_id {quoted(job_id)} {problem}")
        return job_id or ""
    # A file's name is not written by the job's author alone: some file systems store it decomposed.
    job_id = unicodedata.normalize("NFC", stem)
    if problem := job_id_problem(job_id):
        message = f"the file's name {quoted(stem)} {problem}, so it can't name the job: set job_id, or rename the file"
        job.refuse("job_id", "bad_job_id", message)
    return job_id


def read_priority(job: Fields) -> int:
    return job.integer("priority", -100, 100) or 0


def _read_parameters(given: Fields) -> Parameters:
    """The bounds of temperature, top_p and repetition_penalty are those that fish-speech's own generation accepts."""
    values = {
        "seed": given.integer("seed", 0, LARGEST_SEED),
        "temperature": given.number("temperature", lambda value: 0 < value < 2, "above 0 and below 2"),
        "top_p": given.number("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "repetition_penalty": given.number("repetition_penalty", lambda value: 0 < value < 2, "above 0 and below 2"),
        "max_new_tokens": given.integer("max_new_tokens", 1, 1_000_000),
    }
    return Parameters(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


def _read_output(given: Fields) -> Output:
    sample_rate = given.integer("sample_rate", 8_000, 192_000)
    subtype = _SUBTYPE_OF_BITS.get(str(given.raw("subtype"))) or given.text("subtype", _LONGEST_ID)
    if subtype is not None and subtype.upper() in SUBTYPES:
        subtype = subtype.upper()
    elif subtype is not None:
        near = nearest(subtype, SUBTYPES)
        hint = f"did you mean {near}?" if near else f"it can be one of {', '.join(SUBTYPES)}"
        given.refuse("subtype", "bad_subtype", f"{quoted(subtype)} is not what a WAV can hold; {hint}")
    fit = given.text("fit", _LONGEST_ID)
    if fit is not None and fit not in FITS:
        given.refuse(
            "fit", "bad_fit", f"fit is {quoted(fit)}; it can be 'speed', or null to leave every length as it is"
        )
    values = {
        "sample_rate": sample_rate,
        "subtype": subtype,
        "fit": fit,
        "max_speed": given.number(
            "max_speed", lambda value: 1 < value <= FASTEST, f"above 1 and at most {FASTEST:g}, such as 1.25"
        ),
        "loudness_lufs": given.number(
            "loudness_lufs",
            lambda value: QUIETEST_LUFS <= value <= LOUDEST_LUFS,
            f"from {QUIETEST_LUFS:g} to {LOUDEST_LUFS:g}, such as -23",
        ),
        "trim_silence": given.flag("trim_silence"),
    }
    return Output(**{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]


def read_speaker_id(fields: Fields, name: str) -> str | None:
    """A speaker's id: a short text, or a whole number, which is the same speaker as its digits."""
    value = fields.raw(name, required=True)
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        fields.wrong_type(name, "a text or a whole number", value)
    elif not value.strip():
        fields.refuse(name, "bad_speaker_id", "the speaker's id is empty")
    elif len(value) > _LONGEST_ID:
        message = f"the speaker's id has {len(value)} characters; the limit is {_LONGEST_ID}"
        fields.refuse(name, "bad_speaker_id", message)
    elif _UNFIT_FOR_A_LINE.search(value):
        fields.refuse(name, "bad_speaker_id", f"the speaker's id {quoted(value)} holds a control character")
    else:
        return value
    return None


def read_path(fields: Fields, name: str, *, required: bool = False) -> str | None:
    """A path as the job wrote it; whether it may be opened is seen when it is opened."""
    path = fields.text(name, _LONGEST_PATH, required=required)
    if path is not None and not path.strip():
        fields.refuse(name, "empty_path", "the path is empty")
        return None
    return path


def read_reference_text(fields: Fields, name: str, limits: Limits) -> str | None:
    """What is said in a reference; the engine can't do without it."""
    text = fields.text(name, limits.text_characters, required=True)
    if text is not None and not text.strip():
        fields.refuse(name, "empty_reference_text", "the reference's text is empty: write what is said in it")
        return None
    return text


def check_count(job: Fields, name: str, items: list[Any], limits: Limits) -> None:
    """A job's list of work is neither empty nor longer than the limit."""
    if not items:
        job.refuse(name, "nothing_to_do", f"{name} is empty: a job has at least one")
    elif len(items) > limits.segments:
        message = f"{name} has {len(items)} entries; the limit is {limits.segments}: split the job"
        job.refuse(name, "too_many_segments", message)

"""A job file's bytes become a job, or every reason why they can't."""

from __future__ import annotations

import json
import re
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.job import (
    EmbeddingsJob,
    Job,
    JobRejected,
    Limits,
    Output,
    Parameters,
    Reason,
    Reference,
    Segment,
    Speaker,
)
from daemon.core.job_parser import fold_job_id, job_id_problem, parse_job
from daemon.core.reasons import MOST_REASONS

JOBS = Path(__file__).parents[1] / "data" / "jobs"
SPEAKERS = [{"id": "a", "references": [{"audio": "a.wav", "text": "a"}]}]
SEGMENT = {"index": 0, "speaker": "a", "text": "x"}


def document(segments: list[Any] | None = None, speakers: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"speakers": speakers or SPEAKERS, "segments": [SEGMENT] if segments is None else segments, **more}


def parse(job: object, *, stem: str = "film", limits: Limits | None = None) -> Job:
    data = job if isinstance(job, bytes) else json.dumps(job).encode()
    return parse_job(data, stem=stem, limits=limits or Limits())


def refusal(job: object, *, stem: str = "film", limits: Limits | None = None) -> JobRejected:
    with pytest.raises(JobRejected) as caught:
        parse(job, stem=stem, limits=limits)
    assert all(reason.path.startswith("$") and reason.message for reason in caught.value.reasons)
    return caught.value


def codes(rejected: JobRejected) -> list[tuple[str, str]]:
    return [(reason.path, reason.code) for reason in rejected.reasons]


# --- good jobs ---------------------------------------------------------------------------------------------


def test_a_full_job() -> None:
    """Every field arrives; segments are in the order of their index."""
    assert parse((JOBS / "good/full.json").read_bytes()) == Job(
        job_id="film_en",
        speakers=(
            Speaker("anna", (Reference(text="what she says in it", audio="refs/anna.wav"),)),
            Speaker("bo", (Reference(text="…", codes="voices/bo.npy"),)),
        ),
        segments=(
            Segment(0, "anna", "Hello.", start=1.2, end=3.4, seed=7),
            Segment(1, "bo", "Hello, Anna."),
        ),
        language="en",
        priority=5,
        parameters=Parameters(),
        output=Output(),
    )


def test_a_minimal_job() -> None:
    """What is not given is the default, the job's id the file's stem; an empty text is no fault."""
    job = parse((JOBS / "good/minimal.json").read_bytes(), stem="episode 1")
    assert job.job_id == "episode 1"
    assert (job.language, job.priority, job.parameters, job.output) == ("en", 0, Parameters(), Output())
    assert (job.task, job.results, job.ignored) == ("speak", None, ())
    assert job.segments == (Segment(0, "0", ""),)


def test_a_job_of_speaker_embeddings() -> None:
    """Another kind, without segments; what it does not say, the configuration does."""
    job = parse((JOBS / "good/speaker_embeddings.json").read_bytes(), stem="voices")
    said = {"utterances_dir": "corpora/u", "min_utterances": 1, "chunk_size": 10, "skip_existing": True}
    assert job == EmbeddingsJob("voices", (), (), **said)  # type: ignore[arg-type]
    bare = parse(b'{"kind": "speaker_embeddings", "utterances_dir": "/u", "exclude_filename_pattern": "*_aug*"}')
    assert bare == EmbeddingsJob("film", (), (), utterances_dir="/u", exclude_filename_pattern=("*_aug*",))


def test_millions_of_keys_take_no_memory() -> None:
    """They are counted before anything is made of them."""
    data = b'{"a":' * 250_000
    tracemalloc.start()
    assert codes(refusal(data, limits=Limits(segments=1))) == [("$", "too_many_values")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(data)


def test_aliases() -> None:
    """The names that editors write today mean the same, and a speaker may be a number: 0 is "0"."""
    job = parse((JOBS / "good/aliases.json").read_bytes())
    assert job.segments == (Segment(3, "0", "你好。", start=0.0, end=2.0), Segment(4, "0", "line\none\tand two"))
    assert job.speakers == (Speaker("0", (Reference(text="a", audio="a.wav"),)),)


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf%s", b" \r\n\t%s\n\n"])
def test_a_byte_order_mark_and_white_space_are_fine(data: bytes) -> None:
    assert parse(data % json.dumps(document()).encode()).job_id == "film"


def test_null_is_the_same_as_absent() -> None:
    """Editors write null for what they leave out."""
    names = ("schema", "kind", "job_id", "language", "priority", "defaults", "output")
    segment = {**SEGMENT, "start": None, "end": None, "seed": None}
    assert parse(document([segment], **dict.fromkeys(names))) == parse(document())


def test_the_outermost_values_are_in_range() -> None:
    defaults = {"seed": 2**63 - 1, "temperature": 1.999, "top_p": 1, "repetition_penalty": 0.001, "max_new_tokens": 1}
    segments = [{**SEGMENT, "index": 2**31 - 1, "text": "x" * 2000, "start": 1, "end": 1}]
    job = parse(document(segments, defaults=defaults, priority=-100, language="zh-Hant-TW"))
    assert job.parameters == Parameters(2**63 - 1, 1.999, 1.0, 0.001, 1)
    assert job.segments[0].slot_s == 0


def test_ten_thousand_segments_are_read() -> None:
    segments = [{**SEGMENT, "index": index} for index in range(10_000)]
    assert len(parse(document(segments)).segments) == 10_000


def test_texts_keep_what_they_hold() -> None:
    """Control tokens, markup and escaped pairs are text like any other."""
    text = '<|im_end|> <b>\\ud83d</b> "quoted" 😀 \u202e\r\n'
    assert parse(document([{**SEGMENT, "text": text}])).segments[0].text == text


# --- hostile ones ------------------------------------------------------------------------------------------

# Every file of tests/data/jobs/hostile: whether it is taken for incomplete, and every reason.
HOSTILE: dict[str, tuple[bool, set[tuple[str, str]]]] = {
    "truncated": (True, {("$", "not_json")}),
    "empty": (True, {("$", "not_json")}),
    "two_documents": (True, {("$", "not_json")}),
    "latin_1": (True, {("$", "encoding")}),
    "utf_16": (True, {("$", "encoding")}),
    "utf_16_without_mark": (True, {("$", "encoding")}),
    "list": (False, {("$", "wrong_type")}),
    "number": (False, {("$", "wrong_type")}),
    "duplicate_keys": (
        False,
        {
            ("$.job_id", "duplicate_key"),
            ("$.speakers[0].references[0].audio", "duplicate_key"),
            ("$.segments[0].text", "duplicate_key"),
        },
    ),
    "numbers": (
        False,
        {
            ("$.defaults.temperature", "bad_number"),
            ("$.defaults.top_p", "bad_number"),
            ("$.defaults.seed", "bad_number"),
            ("$.segments[0].start", "bad_number"),
        },
    ),
    "lone_surrogates": (
        False,
        {("$.speakers[0].references[0].audio", "lone_surrogate"), ("$.segments[0].text", "lone_surrogate")},
    ),
    "wrong_types": (
        False,
        {
            ("$.job_id", "wrong_type"),
            ("$.language", "wrong_type"),
            ("$.priority", "wrong_type"),
            ("$.defaults", "wrong_type"),
            ("$.output", "wrong_type"),
            ("$.speakers[0].id", "wrong_type"),
            ("$.speakers[0].references[0].audio", "wrong_type"),
            ("$.speakers[0].references[0].text", "wrong_type"),
            ("$.speakers[1]", "wrong_type"),
            ("$.speakers[2].references", "wrong_type"),
            ("$.segments[0].index", "wrong_type"),
            ("$.segments[0].speaker", "wrong_type"),
            ("$.segments[0].text", "wrong_type"),
            ("$.segments[0].start", "wrong_type"),
            ("$.segments[0].end", "wrong_type"),
            ("$.segments[0].seed", "wrong_type"),
            ("$.segments[1].index", "wrong_type"),
            ("$.segments[1].speaker", "wrong_type"),
            ("$.segments[1].text", "wrong_type"),
            ("$.segments[2]", "wrong_type"),
        },
    ),
    "unknown_fields": (
        False,
        {
            ("$.langauge", "unknown_field"),
            ("$.defaults.temprature", "unknown_field"),
            ("$.output.samplerate", "unknown_field"),
            ("$.speakers[0].name", "unknown_field"),
            ("$.speakers[0].references[0].sha256", "unknown_field"),
            ("$.segments[0].Text", "unknown_field"),
            ("$.segments[0]['two words\\n']", "unknown_field"),
        },
    ),
    "out_of_range": (
        False,
        {
            ("$.job_id", "bad_job_id"),
            ("$.language", "bad_language"),
            ("$.priority", "out_of_range"),
            ("$.defaults.seed", "out_of_range"),
            ("$.defaults.temperature", "out_of_range"),
            ("$.defaults.top_p", "out_of_range"),
            ("$.defaults.repetition_penalty", "out_of_range"),
            ("$.defaults.max_new_tokens", "out_of_range"),
            ("$.output.sample_rate", "out_of_range"),
            ("$.output.subtype", "bad_subtype"),
            ("$.segments[0].index", "out_of_range"),
            ("$.segments[0].seed", "out_of_range"),
            ("$.segments[1].start", "out_of_range"),
            ("$.segments[2].end", "end_before_start"),
        },
    ),
    "speakers": (
        False,
        {
            ("$.speakers[0].references[0].text", "empty_reference_text"),
            ("$.speakers[1].id", "duplicate_speaker"),
            ("$.speakers[2].references", "no_references"),
            ("$.speakers[3].id", "duplicate_speaker"),
            ("$.speakers[3].references[0].audio", "missing_field"),
            ("$.speakers[3].references[1].codes", "audio_and_codes"),
            ("$.speakers[3].references[2].audio", "empty_path"),
            ("$.speakers[4].id", "bad_speaker_id"),
            ("$.speakers[4].references", "too_many_references"),
            ("$.speakers[5].id", "missing_field"),
            ("$.speakers[5].references", "missing_field"),
            ("$.segments[0].speaker", "unknown_speaker"),
        },
    ),
    "segments": (
        False,
        {
            ("$.segments[0].segment_index", "alias_conflict"),
            ("$.segments[1].index", "duplicate_index"),
            ("$.segments[1].text", "control_character"),
            ("$.segments[2].segment_index", "duplicate_index"),
            ("$.segments[2].target_text", "alias_conflict"),
        },
    ),
    "nothing_to_do": (False, {("$.segments", "nothing_to_do")}),
    "schema_2": (False, {("$.schema", "schema_unsupported")}),
    "speaker_embeddings": (
        False,
        {
            ("$.job_id", "bad_job_id"),
            ("$.utterances_dir", "empty_path"),
            ("$.min_utterances", "out_of_range"),
            ("$.chunk_size", "wrong_type"),
            ("$.skip_existing", "wrong_type"),
            ("$.num_processes", "unknown_field"),
            ("$.segments", "unknown_field"),
            ("$.exclude_filename_prefix", "wrong_type"),
        },
    ),
    "kind": (False, {("$.kind", "bad_kind")}),
    "localclip_mode": (False, {("$.mode", "bad_mode")}),
    "localclip_generate": (
        False,
        {
            ("$.tasks[0].reference_text", "wrong_type"),
            ("$.tasks[1].segment_index", "duplicate_index"),
            ("$.tasks[1].npy_file", "missing_field"),
            ("$.tasks[2]", "wrong_type"),
        },
    ),
    "localclip_encode": (
        False,
        {("$.speakers[1].speaker_id", "duplicate_speaker"), ("$.speakers[1].reference_audio", "missing_field")},
    ),
}


def test_every_hostile_file_is_judged() -> None:
    assert {path.stem for path in (JOBS / "hostile").iterdir()} == HOSTILE.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_rejected_with_every_reason(name: str) -> None:
    """All faults at once, each once, with its JSON path; nothing else."""
    incomplete, expected = HOSTILE[name]
    rejected = refusal((JOBS / "hostile" / f"{name}.json").read_bytes())
    assert sorted(codes(rejected)) == sorted(expected)
    assert rejected.incomplete == incomplete


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b'["\\"[[[",' * 33, "too_deep"),
        (b"[" + b"[]," * 1_000_000 + b"[]]", "too_many_values"),
        (b" " * (16 * 1024 * 1024 + 1), "too_large"),
        (json.dumps(document(title="x" * 17 * 1024 * 1024)).encode(), "too_large"),
    ],
)
def test_a_bomb_is_refused_before_it_is_built(data: bytes, code: str) -> None:
    assert codes(refusal(data)) == [("$", code)]


def test_nesting_within_the_limit_is_no_bomb() -> None:
    """Brackets inside texts do not nest, and 32 levels are allowed (though no job has a use for them)."""
    assert parse(document([{**SEGMENT, "text": '[[{"\\' * 100}])).segments
    deep = json.loads("[" * 31 + "]" * 31)
    assert codes(refusal(document(extra=deep))) == [("$.extra", "unknown_field")]
    assert codes(refusal(document(extra=[deep]))) == [("$", "too_deep")]


@pytest.mark.parametrize(
    "data",
    [
        b'"' * 1_000_000,
        b'"' + b"\\" * 1_000_000,
        b'"' + b'\\"' * 500_000,
        b"1" * 1_000_000,
        b"0." + b"1" * 1_000_000,
        b'{"' + b"a" * 1_000_000 + b'":[' + b"1e999," * 100_000 + b"1]}",
        b'{"a":"' + b"\\ud800" * 100_000 + b'"}',
        b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
        b"{" + b'"a":1,' * 100_000 + b'"a":1}',
        b'{"segments":[' + b"{}," * 100_000 + b"{}]}",
        json.dumps(
            document(
                [{**SEGMENT, "speaker": f"speakr {number}"} for number in range(10_000)],
                [{**SPEAKERS[0], "id": f"speaker {number}"} for number in range(10_000)],
            )
        ).encode(),
    ],
    ids=range(11),
)
def test_no_document_takes_for_ever(data: bytes) -> None:
    """Time grows with the size, not with its square: none of these comes near to the time limit of a test."""
    assert refusal(data)


def test_the_list_of_reasons_ends() -> None:
    """The first 200, and how many more."""
    rejected = refusal(document([{**SEGMENT, "index": "x"} for _ in range(1000)]))
    assert len(rejected.reasons) == MOST_REASONS + 1
    assert rejected.reasons[-1] == Reason("$", "more_reasons", "and 800 more reasons that are not listed here")


def test_too_many_segments() -> None:
    segments = [{**SEGMENT, "index": index} for index in range(10_001)]
    assert codes(refusal(document(segments))) == [("$.segments", "too_many_segments")]


def test_the_limits_are_settings() -> None:
    limits = Limits(job_bytes=1000, json_depth=5, segments=1, text_characters=3, references_per_speaker=1)
    reference = {"audio": "a", "text": "abcd"}
    job = document(
        [{**SEGMENT, "text": "abcd"}, {**SEGMENT, "index": 1}], [{"id": "a", "references": [reference, reference]}]
    )
    assert sorted(codes(refusal(job, limits=limits))) == [
        ("$.segments", "too_many_segments"),
        ("$.segments[0].text", "too_long"),
        ("$.speakers[0].references", "too_many_references"),
        ("$.speakers[0].references[0].text", "too_long"),
        ("$.speakers[0].references[1].text", "too_long"),
    ]


def test_any_half_of_a_job_may_still_be_coming() -> None:
    """Cut anywhere, even inside a character, or followed by the zeros of a copy under way, a job is incomplete."""
    whole = json.dumps(document([{**SEGMENT, "text": "größer 😀"}]), ensure_ascii=False).encode()
    for length in range(len(whole)):
        assert refusal(whole[:length]).incomplete
        assert refusal(whole[:length] + bytes(len(whole) - length)).incomplete


def test_speakers_that_are_missing_are_said_once() -> None:
    """Not once more for each segment."""
    assert codes(refusal({"segments": [SEGMENT]})) == [("$.speakers", "missing_field")]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (document(langage="en"), "did you mean 'language'"),
        (document([{**SEGMENT, "speaker_ID": 1}]), "did you mean 'speaker_id'"),
        (document([{**SEGMENT, "speaker": "A"}]), "did you mean 'a'"),
        (document([{**SEGMENT, "speaker": "someone"}]), "add it to speakers"),
        (document(output={"subtype": "PCM16"}), "did you mean PCM_16"),
        (document(kind="dubbing"), "did you mean 'dub'"),
        (b'{"schema": 1, "job', "cut off"),
        (b"", "empty or cut off"),
        (b"{'a': 1}", "line 1, column 2"),
    ],
)
def test_reasons_say_how_to_mend_it(job: object, words: str) -> None:
    assert words in str(refusal(job))


@pytest.mark.parametrize("evil", ["a\nlevel=error", "\x1b[2J", "x" * 10_000, "\u202eabc", "a\u2028b"])
def test_reasons_are_one_short_line_whatever_the_job_says(evil: str) -> None:
    """What a job says never becomes a line of its own in a log, nor a command to a terminal."""
    bad = document(
        [{**SEGMENT, "speaker": evil, evil: 1}], kind="dub", language=evil, job_id=evil, output={"subtype": evil}
    )
    for reason in refusal(bad).reasons:
        assert len(reason.path) < 200
        assert len(reason.message) < 300
        assert (reason.path + reason.message).replace("…", "").isprintable()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "schema",
                        "kind",
                        "mode",
                        "job_id",
                        "language",
                        "defaults",
                        "output",
                        "seed",
                        "speakers",
                        "id",
                        "references",
                        "audio",
                        "codes",
                        "text",
                        "segments",
                        "index",
                        "speaker",
                        "speaker_id",
                        "start",
                        "end",
                        "tasks",
                        "npy_file",
                        "segment_index",
                        "generate",
                    ]
                ),
                inner,
                max_size=6,
            )
        ),
        max_leaves=30,
    )
)
def test_anything_is_a_job_or_is_rejected(tree: object) -> None:
    """No document gets any other answer."""
    try:
        reasons: list[Reason] | None = None if parse(json.dumps(tree).encode()).segments else []
    except JobRejected as rejected:
        reasons = rejected.reasons
    assert reasons != []


@given(st.binary(max_size=60))
def test_any_bytes_are_a_job_or_are_rejected(data: bytes) -> None:
    assert refusal(data).reasons


# --- the job's id ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job_id", ["film", "a", "Épisode 1 (été)", "第一集", "x.y", "connect", "com", "com10", "a" * 120]
)
def test_good_ids(job_id: str) -> None:
    assert job_id_problem(job_id) is None
    assert parse(document(), stem=job_id).job_id == job_id
    assert parse(document(job_id=job_id), stem="..").job_id == job_id


@pytest.mark.parametrize(
    "job_id",
    [
        "", ".", "..", ".hidden", "dot.", " x", "x ", "a/b", "/etc/passwd", "../x", "a\\b", "C:", "a*", "a?", 'a"',
        "<a", "a>", "a|b", "nul\0", "a\nb", "tab\t", "\x7f", "\u202e", "a\u00a0b", "\u200b", "a" * 121, "é" * 61,
        "e\u0301", "con", "CON", "nul.txt", "Aux.tar.gz", "com1", "LPT9.x", "com¹", "prn .x", "conin$", "\ud800",
    ],
)  # fmt: skip
def test_bad_ids(job_id: str) -> None:
    """Nothing that leaves the outbox, hides in it, or can't lie on a share that Windows sees."""
    assert job_id_problem(job_id)
    paths = {reason.path for reason in refusal(document(job_id=job_id)).reasons}
    assert paths == {"$.job_id"}


def test_a_stem_that_can_name_no_job() -> None:
    rejected = refusal(document(), stem="con")
    assert codes(rejected) == [("$.job_id", "bad_job_id")]
    assert "set job_id" in str(rejected)


def test_a_stem_that_the_file_system_took_apart() -> None:
    """macOS's shares hand out decomposed names; the author of the job did not write them."""
    assert parse(document(), stem=unicodedata.normalize("NFD", "Épisode")).job_id == "Épisode"


@pytest.mark.parametrize(
    ("one", "other"), [("Film", "fILM"), ("Straße", "STRASSE"), ("É", "é"), ("Σίσυφος", "ΣΊΣΥΦΟΣ"), ("ﬁlm", "FILM")]
)
def test_ids_that_a_file_system_may_take_for_one(one: str, other: str) -> None:
    assert fold_job_id(one) == fold_job_id(other)


def test_ids_that_differ() -> None:
    assert fold_job_id("film 1") != fold_job_id("film 2")


@given(st.text(min_size=1, max_size=130))
def test_an_id_that_passes_stays_in_the_outbox(job_id: str) -> None:
    if job_id_problem(job_id) is None:
        assert Path("/outbox", job_id).parent == Path("/outbox")
        assert not re.search(r'[\x00-\x1f/\\:*?"<>|]', job_id)
        assert unicodedata.is_normalized("NFC", job_id)
        assert len(job_id.encode()) <= 120


PLAIN = {
    ("$.segments[0].index", "0"): ("index", 0),
    ("$.segments[0].index", 7.0): ("index", 7),
    ("$.segments[0].start", "1.2"): ("start", 1.2),
    ("$.segments[0].start", "00:00:01,200"): ("start", 1.2),
    ("$.segments[0].start", "1:01:01.5"): ("start", 3661.5),
    ("$.segments[0].start", "02:05"): ("start", 125.0),
}


@pytest.mark.parametrize(("place", "found"), PLAIN.items())
def test_what_has_one_meaning_is_taken(place: tuple[str, object], found: tuple[str, object]) -> None:
    """Numbers as spreadsheets and other languages write them, times as a clock shows them."""
    name = place[0].rpartition(".")[2]
    job = parse(document([{**SEGMENT, name: place[1]}]))
    assert getattr(job.segments[0], found[0]) == found[1]


@pytest.mark.parametrize(
    ("written", "tag"),
    [("zh_CN", "zh-CN"), ("en-us", "en-US"), ("EN", "en"), ("zh-hant-tw", "zh-Hant-TW"), ("de_DE.UTF-8", "de-DE")],
)
def test_a_language_as_systems_write_it(written: str, tag: str) -> None:
    """Locales and tags in any case are the same language."""
    assert parse(document(language=written)).language == tag


def test_an_output_as_people_write_it() -> None:
    """A rate as a text or with a point; bits, and names in small letters."""
    for rate in ("48000", 48000.0):
        for subtype in ("24", 24, "pcm_24"):
            output = parse(document(output={"sample_rate": rate, "subtype": subtype})).output
            assert (output.sample_rate, output.subtype) == (48000, "PCM_24")


def test_times_end_with_the_longest_film() -> None:
    """A start beyond a hundred hours is a slip, and would be a track of any length."""
    for start in (1e300, 360_001, "999:00:00"):
        rejected = refusal(document([{**SEGMENT, "start": start}]))
        assert codes(rejected) == [("$.segments[0].start", "out_of_range")]


def test_a_path_of_windows_with_its_backslashes_unescaped() -> None:
    r"""It is said what to write: as JSON that can't be read (\c), or as one that holds a control character (\b)."""
    for path in (r"C:\clips\anna.wav", r"C:\bo.wav"):
        written = json.dumps(document()).replace('"a.wav"', f'"{path}"')
        (reason,) = refusal(written.encode()).reasons
        assert r"C:\\clips\\anna.wav" in reason.message

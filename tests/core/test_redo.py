"""Which segments are redone: the words for them, the member of a job, the request, and the seed of another take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.identity import next_seed
from daemon.core.job import JobRejected, Limits, Redo
from daemon.core.job_parser import parse_job
from daemon.core.redo import RedoRequest, compose, indexes_text, parse_indexes, read_request

JOB = {
    "speakers": [{"id": "anna", "references": [{"audio": "anna.wav", "text": "hm"}]}],
    "segments": [{"index": index, "speaker": "anna", "text": f"line {index}"} for index in (0, 1, 2, 5)],
}
GENERATE = {
    "mode": "generate",
    "tasks": [
        {"segment_index": 4, "speaker_id": 0, "target_text": "hi", "npy_file": "a.npy", "reference_text": "hm"},
    ],
}


def parse(**more: Any) -> Any:
    return parse_job(json.dumps({**JOB, **more}).encode(), stem="film", limits=Limits())


def reasons(**more: Any) -> dict[str, str]:
    with pytest.raises(JobRejected) as rejected:
        parse(**more)
    return {reason.path: reason.code for reason in rejected.value.reasons}


@given(st.sets(st.integers(0, 500), min_size=1))
def test_indexes_as_words(indexes: set[int]) -> None:
    """What is written for a set of indexes is read as that set."""
    assert set(parse_indexes(indexes_text(indexes), 1000)) == indexes


def test_ranges_are_as_short_as_can_be() -> None:
    """Neighbours are one range."""
    assert indexes_text([9, 3, 7, 8]) == "3,7-9"
    assert parse_indexes("3, 7-9,8", 10) == (3, 7, 8, 9)


@pytest.mark.parametrize("text", ["", "a", "3,", "-3", "9-7", "1-2-3", "3 7x", "0-99999999999", "0-2000", "²"])
def test_what_names_no_segments(text: str) -> None:
    """Neither nonsense, nor more than a job can have."""
    with pytest.raises(ValueError):
        parse_indexes(text, 100)


@pytest.mark.parametrize("segments", ["1-2", [2, 1, 2]])
def test_a_job_that_is_redone_in_part(segments: object) -> None:
    """In dubd's own form, with the segments in words or as a list."""
    assert parse(redo={"segments": segments, "seed": "new"}).redo == Redo((1, 2), "new")
    assert parse(redo={"segments": segments, "seed": 7}).redo == Redo((1, 2), 7)
    assert parse(redo={"segments": segments}).redo == Redo((1, 2), None)
    assert parse().redo is None


def test_a_localclip_config_that_is_redone_in_part() -> None:
    """The member is the same there, and is not ignored."""
    job = parse_job(json.dumps({**GENERATE, "redo": {"segments": [4]}}).encode(), stem="film", limits=Limits())
    assert job.redo == Redo((4,))
    assert job.ignored == ()


def test_every_fault_of_a_redo_is_named() -> None:
    """With its path, beside the faults of the job."""
    assert reasons(redo={"segments": "x", "seed": "old", "sed": 1}, language=3) == {
        "$.redo.segments": "bad_segments",
        "$.redo.seed": "wrong_type",
        "$.redo.sed": "unknown_field",
        "$.language": "wrong_type",
    }
    assert reasons(redo={}) == {"$.redo.segments": "missing_field"}
    assert reasons(redo=[1]) == {"$.redo": "wrong_type", "$.redo.segments": "missing_field"}
    assert reasons(redo={"segments": [True]}) == {"$.redo.segments": "wrong_type"}


def test_a_segment_that_the_job_has_not_got() -> None:
    """Is named."""
    with pytest.raises(JobRejected, match="no segment 3-4"):
        parse(redo={"segments": "2-5"})


def test_a_request_becomes_the_job_with_the_redo_in_it() -> None:
    """Whatever redo that job had before; the job_id is the request's."""
    document = json.dumps({"kind": "redo", "segments": "5", "seed": "new"}).encode()
    request = read_request(document, stem="film.redo", limits=Limits())
    assert request == RedoRequest("film", Redo((5,), "new"))
    asked = json.dumps({**JOB, "redo": {"segments": "0"}}).encode()
    job = parse_job(compose(asked, request), stem="whatever", limits=Limits())
    assert (job.job_id, job.redo) == ("film", Redo((5,), "new"))
    assert len(job.segments) == 4


@pytest.mark.parametrize("document", [b"{", b"[]", b"3", json.dumps(JOB).encode(), b'{"kind": "dub"}'])
def test_what_is_no_request(document: bytes) -> None:
    """Is left to the reader of jobs, which says what is wrong with it."""
    assert read_request(document, stem="film", limits=Limits()) is None


def test_every_fault_of_a_request_is_named() -> None:
    """With its path."""
    document = json.dumps({"kind": "redo", "schema": 2, "job_id": "a/b", "segments": [], "colour": 1}).encode()
    with pytest.raises(JobRejected) as rejected:
        read_request(document, stem="film", limits=Limits())
    assert {reason.path for reason in rejected.value.reasons} == {"$.schema", "$.job_id", "$.segments", "$.colour"}


def test_seeds_of_further_takes_differ() -> None:
    """And are always the same, so that a redo that a crash interrupts goes on with the seed it had."""
    seeds = [5]
    for _ in range(1000):
        seeds.append(next_seed(seeds[-1]))
    assert len(set(seeds)) == len(seeds)
    assert seeds[1] == next_seed(5)
    assert all(0 <= seed < 2**31 for seed in seeds)

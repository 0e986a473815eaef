"""LocalClip's configs come out as the jobs that they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.core.job import Job, JobRejected, Limits, Reference, Segment, Speaker
from daemon.core.job_parser import parse_job

JOBS = Path(__file__).parents[1] / "data" / "jobs"


def parse(config: dict[str, Any], stem: str = "clip") -> Job:
    return parse_job(json.dumps(config).encode(), stem=stem, limits=Limits())


def reasons(config: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(JobRejected) as caught:
        parse(config)
    assert not caught.value.incomplete
    return [(reason.path, reason.code) for reason in caught.value.reasons]


def task(
    index: int, speaker: object = 0, npy: str = "v/0.npy", reference: str = "ref", **more: object
) -> dict[str, Any]:
    return {
        "segment_index": index,
        "speaker_id": speaker,
        "target_text": f"line {index}",
        "npy_file": npy,
        "reference_text": reference,
        **more,
    }


def test_generate() -> None:
    """A voice is the triple (speaker_id, npy_file, reference_text): a speaker whose reference changes is two voices."""
    job = parse_job((JOBS / "good/localclip_generate.json").read_bytes(), stem="film", limits=Limits())
    assert job.job_id == "film"
    assert (job.task, job.results) == ("speak", "generate")
    assert job.speakers == (
        Speaker("0", (Reference(text="参考", codes="v/0.npy"),)),
        Speaker("1", (Reference(text="参考", codes="v/1.npy"),)),
        Speaker("0#2", (Reference(text="另一个", codes="v/0.npy"),)),
    )
    assert job.segments == (
        Segment(3, "1", "二", output_file="/out/segment_3.wav"),
        Segment(4, "0", "三"),
        Segment(5, "0#2", "四"),
        Segment(12, "0", "一", output_file="/out/segment_12.wav"),
    )


def test_keys_that_are_not_used_are_named() -> None:
    """Each once, with its path and why; those of many tasks counted."""
    job = parse_job((JOBS / "good/localclip_generate.json").read_bytes(), stem="film", limits=Limits())
    assert [line.split(":")[0] for line in job.ignored] == [
        "$.fish_speech_dir",
        "$.checkpoint_dir",
        "$.output_dir",
        "$.batch_size",
        "$.tasks[*].speaker_name",
    ]
    assert job.ignored[-1].endswith("(2 times)")


def test_encode() -> None:
    """Each speaker is a piece of work of its own; results.json will give its id back as it was written."""
    job = parse_job((JOBS / "good/localclip_encode.json").read_bytes(), stem="cast", limits=Limits())
    assert (job.job_id, job.task, job.results) == ("cast", "encode", "encode")
    assert [(speaker.id, speaker.numeric) for speaker in job.speakers] == [("0", True), ("narrator", False)]
    assert [speaker.references[0].audio for speaker in job.speakers] == ["refs/0.wav", "refs/n.wav"]
    assert [(s.index, s.speaker, s.output_file) for s in job.segments] == [
        (0, "0", "/out/0.npy"),
        (1, "narrator", "/out/n.npy"),
    ]


def test_a_made_up_voice_id_never_meets_a_real_one() -> None:
    job = parse(
        {"mode": "generate", "tasks": [task(0), task(1, "0#2"), task(2, npy="v/1.npy"), task(3, npy="v/2.npy")]}
    )
    assert [speaker.id for speaker in job.speakers] == ["0", "0#2", "0#3", "0#4"]
    late = parse({"mode": "generate", "tasks": [task(0), task(1, npy="v/1.npy"), task(2, "0#2")]})
    assert [speaker.id for speaker in late.speakers] == ["0", "0#2", "0#2#2"]
    assert [segment.speaker for segment in late.segments] == ["0", "0#2", "0#2#2"]


def test_dubds_own_settings_may_be_added() -> None:
    job = parse(
        {"mode": "generate", "job_id": "x", "language": "zh", "output": {"subtype": "FLOAT"}, "tasks": [task(0)]}
    )
    assert (job.job_id, job.language, job.output.subtype) == ("x", "zh", "FLOAT")
    assert job.ignored == ()


def test_every_reason_is_given() -> None:
    tasks = [task(0, reference=" "), task(0, True), task(-1, npy=""), {"segment_index": 5}, 7]
    assert sorted(reasons({"mode": "generate", "tasks": tasks})) == [
        ("$.tasks[1].segment_index", "duplicate_index"),
        ("$.tasks[1].speaker_id", "wrong_type"),
        ("$.tasks[2].npy_file", "empty_path"),
        ("$.tasks[2].segment_index", "out_of_range"),
        ("$.tasks[3].npy_file", "missing_field"),
        ("$.tasks[3].reference_text", "missing_field"),
        ("$.tasks[3].speaker_id", "missing_field"),
        ("$.tasks[3].target_text", "missing_field"),
        ("$.tasks[4]", "wrong_type"),
    ]


def without_codes(**more: str) -> dict[str, Any]:
    """A task of a config for another engine of LocalClip's."""
    made: dict[str, Any] = {**task(0), **more}
    del made["npy_file"]
    return made


def test_what_that_editor_writes_is_taken_as_it_takes_it() -> None:
    """Its default of an empty text, texts that are longer than ours, numbers as texts, no tasks; and it is said."""
    long = {**task(1), "target_text": "a long one. " * 208, "segment_index": "1"}
    job = parse({"mode": "generate", "tasks": [task(0, reference=""), long]})
    assert job.speakers[0].references[0].text == ""
    assert (job.segments[1].index, len(job.segments[1].text)) == (1, 2496)
    assert [line.partition(":")[0] for line in job.ignored] == [
        "$.tasks[0].reference_text",
        "$.tasks[1].target_text",
    ]
    assert parse({"mode": "generate", "tasks": []}).segments == ()
    assert parse({"mode": "encode", "speakers": []}).segments == ()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"mode": "generat", "tasks": []}, ("$.mode", "bad_mode")),
        ({"mode": None, "tasks": []}, ("$.mode", "bad_mode")),
        ({"mode": ["generate"], "tasks": []}, ("$.mode", "bad_mode")),
        ({"mode": "generate"}, ("$.tasks", "missing_field")),
        ({"mode": "generate", "tasks": {}}, ("$.tasks", "wrong_type")),
        ({"tasks": [task(0)]}, ("$.mode", "bad_mode")),
        ({"mode": "generate", "tasks": [without_codes(reference_audio="a.wav")]}, ("$.mode", "other_engine")),
        ({"mode": "clone", "model_dir": "m", "tasks": [without_codes()]}, ("$.mode", "other_engine")),
        ({"model_dir": "m", "tasks": [without_codes(speaker_name="x")]}, ("$.mode", "other_engine")),
        ({"mode": "generate", "tasks": [task(i) for i in range(10_001)]}, ("$.tasks", "too_many_segments")),
    ],
)
def test_a_config_that_asks_for_nothing_sensible(config: dict[str, Any], reason: tuple[str, str]) -> None:
    assert reason in reasons(config)


def test_a_flood_of_unused_keys_stays_short() -> None:
    job = parse({"mode": "generate", "tasks": [task(0)], **{f"key_{number}": 1 for number in range(10_000)}})
    assert len(job.ignored) == 201
    assert "9800 more" in job.ignored[-1]


def test_a_job_of_dubds_own_with_a_mode_is_no_config() -> None:
    """It names segments, so its mode is a slip, and said to be one."""
    assert ("$.mode", "unknown_field") in reasons({"mode": "generate", "segments": [], "speakers": []})

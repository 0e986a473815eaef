"""What was spoken before is not spoken again, and what is not the same is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, make_job, wait_for

Change = Callable[[dict[str, Any]], object]

TEXTS = [f"Line {number} of the film." for number in range(6)]


def cached(manifest: dict[str, Any]) -> list[bool]:
    return [segment["cached"] for segment in manifest["segments"]]


def again(dubd: DaemonUnderTest, name: str, job: dict[str, Any], number: int) -> dict[str, Any]:
    """Drop a job of a known id; the manifest of this time, once the ones before have been moved aside."""
    before = dubd.manifest_now(name)
    dubd.drop(name, job)
    wait_for((dubd.outbox / name / f"manifest.{number}.json").exists, "the moving of the earlier manifest")
    assert json.loads((dubd.outbox / name / f"manifest.{number}.json").read_bytes()) == before
    manifest = dubd.manifest(name)
    dubd.check_manifest(manifest)
    return manifest


def test_the_same_job_again(dubd: DaemonUnderTest) -> None:
    """Everything is cached, with the same files and seeds; each earlier manifest is kept under a number."""
    first = dubd.run("film", make_job(TEXTS, speakers=2))
    for number in (1, 2):
        manifest = again(dubd, "film", make_job(TEXTS, speakers=2), number)
        assert (manifest["status"], manifest["counts"]["ok"], manifest["counts"]["cached"]) == ("done", 6, 6)
        for name in ("sha256", "seed", "file", "duration_s", "sample_rate", "text"):
            assert [s[name] for s in manifest["segments"]] == [s[name] for s in first["segments"]]
    assert set(dubd.told_texts().values()) == {1}


def test_known_lines_are_known_in_another_job(dubd: DaemonUnderTest) -> None:
    """Reuse is by content, not by job: also after the daemon was started anew."""
    dubd.run("film", make_job(TEXTS))
    assert dubd.stop() == 0
    dubd.start()
    manifest = dubd.run("sequel", make_job([*TEXTS, "A new line."]))
    dubd.check_manifest(manifest)
    assert cached(manifest) == [True] * 6 + [False]


def test_an_inserted_line_shifts_the_others(dubd: DaemonUnderTest) -> None:
    """Files move to their new index; one line alone is spoken. And back again."""
    first = dubd.run("film", make_job(TEXTS))
    manifest = again(dubd, "film", make_job([TEXTS[0], "Inserted.", *TEXTS[1:]]), 1)
    assert cached(manifest) == [True, False, True, True, True, True, True]
    sums = [segment["sha256"] for segment in manifest["segments"]]
    assert sums[:1] + sums[2:] == [segment["sha256"] for segment in first["segments"]]
    back = again(dubd, "film", make_job(TEXTS[::-1]), 2)
    assert cached(back) == [True] * 6
    assert [s["sha256"] for s in back["segments"]] == [s["sha256"] for s in first["segments"]][::-1]
    assert max(dubd.told_texts().values()) == 1


def test_a_wav_that_was_changed_is_spoken_again(dubd: DaemonUnderTest) -> None:
    """Only a file that is what the journal said is reused: not one that was edited, cut, replaced by a link or lost."""
    first = dubd.run("film", make_job(TEXTS))
    folder = dubd.outbox / "film"
    wav = folder / "segment_0001.wav"
    wav.write_bytes(wav.read_bytes()[:-2] + b"\1\1")
    (folder / "segment_0002.wav").write_bytes((folder / "segment_0002.wav").read_bytes()[:100])
    (folder / "segment_0003.wav").unlink()
    (folder / "segment_0004.wav").rename(dubd.folder / "elsewhere.wav")
    (folder / "segment_0004.wav").symlink_to(dubd.folder / "elsewhere.wav")
    manifest = again(dubd, "film", make_job(TEXTS), 1)
    assert cached(manifest) == [True, False, False, False, False, True]
    assert [s["sha256"] for s in manifest["segments"]] == [s["sha256"] for s in first["segments"]]
    assert not (folder / "segment_0004.wav").is_symlink()


def change_text(job: dict[str, Any]) -> None:
    job["segments"][0]["text"] += " "


def change_reference_text(job: dict[str, Any]) -> None:
    job["speakers"][0]["references"][0]["text"] += " Yes."


def change_reference(job: dict[str, Any]) -> None:
    job["speakers"][0]["references"][0]["audio"] = "bo.flac"


def change_seed(job: dict[str, Any]) -> None:
    job["segments"][0]["seed"] = 7


CHANGES: dict[str, Change] = {
    "text": change_text,
    "reference_text": change_reference_text,
    "reference": change_reference,
    "seed": change_seed,
    "language": lambda job: job.update(language="de"),
    "temperature": lambda job: job.update(defaults={"temperature": 0.9}),
    "top_p": lambda job: job.update(defaults={"top_p": 0.9}),
    "repetition_penalty": lambda job: job.update(defaults={"repetition_penalty": 1.1}),
    "max_new_tokens": lambda job: job.update(defaults={"max_new_tokens": 100}),
    "sample_rate": lambda job: job.update(output={"sample_rate": 8000}),
    "subtype": lambda job: job.update(output={"subtype": "PCM_24"}),
}


def test_all_that_shapes_the_audio_counts(dubd: DaemonUnderTest) -> None:
    """A line is another one with any of these changed; index, times and names of speaker and job don't matter."""
    text = ["The very same line."]
    dubd.run("film", make_job(text))
    for name, change in CHANGES.items():
        job = make_job(text)
        change(job)
        assert cached(dubd.run(f"changed_{name}", job)) == [False], name
    job = make_job(text, priority=5)
    job["segments"][0].update(index=77, start=1.0, end=2.0, speaker="renamed")
    job["speakers"][0]["id"] = "renamed"
    assert cached(dubd.run("unchanged", job)) == [True]


def test_another_version_of_the_engine_counts(dubd: DaemonUnderTest) -> None:
    dubd.run("film", make_job(TEXTS))
    options = dubd.settings["engine.options"]
    dubd.reload(engine__options={**options, "version": "2"})
    wait_for(lambda: all(row["loads"] == 2 and row["state"] == "ready" for row in dubd.workers()), "the new workers")
    manifest = dubd.run("remake", make_job(TEXTS))
    assert (manifest["engine"]["version"], cached(manifest)) == ("2", [False] * 6)


def test_equal_lines_of_a_job_are_each_spoken(dubd: DaemonUnderTest) -> None:
    """With a seed of their own, so that nobody says a thing twice the same way; and each is known again."""
    manifest = dubd.run("echo", make_job(["Echo!"] * 3))
    assert len({segment["seed"] for segment in manifest["segments"]}) == 3
    assert dubd.told_texts() == {"Echo!": 3}
    assert cached(again(dubd, "echo", make_job(["Echo!"] * 4), 1)) == [True, True, True, False]


def test_a_lost_index_costs_only_time(make: Make) -> None:
    """The index of what is known may be deleted, or be garbage."""
    dubd = make().start()
    dubd.run("film", make_job(TEXTS))
    dubd.stop()
    for path in dubd.state.glob("reuse.sqlite3*"):
        path.unlink()
    (dubd.state / "reuse.sqlite3").write_bytes(b"no database" * 1000)
    dubd.start()
    assert cached(again(dubd, "film", make_job(TEXTS), 1)) == [False] * 6
    assert cached(again(dubd, "film", make_job(TEXTS), 2)) == [True] * 6


@pytest.mark.parametrize("kill", [False, True])
def test_a_failed_line_is_spoken_the_next_time(make: Make, kill: bool) -> None:
    """Taking the job again speaks what failed and reuses the rest, also when the daemon dies in between."""
    dubd = make(engine__name="faulty:Faulty", engine__options={}, pool__tries=1).start()
    job = make_job(["Fine.", "Refused {refuse}", "Fine too."])
    assert dubd.run("film", job)["status"] == "partial"
    if kill:
        dubd.kill()
        dubd.start()
    job["segments"][1]["text"] = "Now it is fine."
    manifest = again(dubd, "film", job, 1)
    assert (manifest["status"], cached(manifest)) == ("done", [True, False, True])

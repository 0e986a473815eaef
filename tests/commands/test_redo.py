"""``dubd redo`` and the same through a file, with a daemon at work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.commands.conftest import Place, wait_until

TEXTS = ["one", "two", "three", "refuse four", "five"]


def speak(place: Place, tmp_path: Path, name: str, **more: Any) -> dict[str, Any]:
    done = place.dubd("submit", str(place.write_job(tmp_path, name, TEXTS, **more)), "--wait")
    assert done.returncode == 1, done.stderr  # one line is refused
    return manifest(place, name)


def manifest(place: Place, name: str, number: str = "") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place.var / "outbox" / name / f"manifest{number}.json").read_bytes())
    return content


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_only_those_segments_are_spoken_again(live: Place, tmp_path: Path) -> None:
    """With a new seed each, which is recorded; all others keep file, seed and failure. The manifest tells the earlier
    take, whose WAV is put aside."""
    first = speak(live, tmp_path, "again")
    folder = live.var / "outbox" / "again"
    done = live.dubd("redo", "again", "--segments", "0,2", "--seed", "new", "--wait")
    assert done.returncode == 1, done.stderr
    assert "4/5 segments spoken, 2 of them from before, 1 failed" in done.stdout
    second = manifest(live, "again")
    assert manifest(live, "again", ".1") == first
    for before, after in zip(first["segments"], second["segments"], strict=True):
        if after["index"] in (0, 2):
            (take,) = after["history"]
            assert (take["status"], take["seed"], take["sha256"]) == ("ok", before["seed"], before["sha256"])
            assert take["manifest"] == "manifest.1.json"
            assert take["file"] == f"takes/segment_000{after['index']}.1.wav"
            assert sha256(folder / take["file"]) == before["sha256"]
            assert after["seed"] != before["seed"]
            assert not after["cached"]
        else:
            kept = ("status", "file", "seed", "sha256", "duration_s", "error")
            assert [before[key] for key in kept] == [after[key] for key in kept]
            assert "history" not in after
        if after["file"]:
            assert sha256(folder / after["file"]) == after["sha256"]


def test_what_failed_can_be_redone_by_that_word(live: Place, tmp_path: Path) -> None:
    """And its history says how it failed; a take further back is not forgotten."""
    speak(live, tmp_path, "failed_ones")
    for takes in (1, 2):
        done = live.dubd("redo", "failed_ones", "--segments", "failed", "--wait")
        assert done.returncode == 1, done.stderr
        fourth = manifest(live, "failed_ones")["segments"][3]
        assert [take["error"]["code"] for take in fourth["history"]] == ["refused"] * takes
        assert [take["file"] for take in fourth["history"]] == [None] * takes


def test_the_same_seed_and_a_given_one(live: Place, tmp_path: Path) -> None:
    """Without --seed a line gets the seed of its last take; with a number that very one."""
    first = speak(live, tmp_path, "seeds")
    assert live.dubd("redo", "seeds", "--segments", "1", "--seed", "1234", "--wait").returncode == 1
    assert manifest(live, "seeds")["segments"][1]["seed"] == 1234
    assert live.dubd("redo", "seeds", "--segments", "1-2", "--wait").returncode == 1
    last = manifest(live, "seeds")["segments"]
    assert last[1]["seed"] == 1234
    assert [take["seed"] for take in last[1]["history"]] == [first["segments"][1]["seed"], 1234]
    assert last[2]["seed"] == first["segments"][2]["seed"]
    assert not last[2]["cached"]


def test_a_kept_file_that_has_gone_is_spoken_again(live: Place, tmp_path: Path) -> None:
    """With the seed it had; nothing else can be done for it."""
    first = speak(live, tmp_path, "gone")
    (live.var / "outbox" / "gone" / "segment_0004.wav").unlink()
    assert live.dubd("redo", "gone", "--segments", "0", "--wait").returncode == 1
    last = manifest(live, "gone")["segments"][4]
    assert (last["status"], last["cached"], last["seed"]) == ("ok", False, first["segments"][4]["seed"])
    assert last["history"][0]["file"] is None


def test_through_a_file(live: Place, tmp_path: Path) -> None:
    """A request in the inbox, without the job; and one for a job that there is not, which is rejected."""
    speak(live, tmp_path, "by_file")
    request = {"schema": 1, "kind": "redo", "job_id": "by_file", "segments": [1], "seed": "new"}
    (live.var / "inbox" / "anything.json").write_text(json.dumps(request))
    (live.var / "inbox" / "no_such_film.redo.json").write_text(json.dumps({"kind": "redo", "segments": "1"}))
    folder = live.var / "outbox" / "by_file"
    wait_until(lambda: (folder / "manifest.1.json").exists() and (folder / "manifest.json").exists(), "the redo")
    again = [segment["index"] for segment in manifest(live, "by_file")["segments"] if "history" in segment]
    assert again == [1]
    error = live.var / "rejected" / "no_such_film.redo.error.json"
    wait_until(error.exists, "the rejection")
    (reason,) = json.loads(error.read_bytes())["reasons"]
    assert (reason["path"], reason["code"]) == ("$.job_id", "no_such_job")


def test_what_can_not_be_redone_is_said_at_once(live: Place, tmp_path: Path) -> None:
    """A job that there is not, segments that it has not got, words that mean none, a seed that is none, recordings that
    have gone."""
    speak(live, tmp_path, "wrong")
    for arguments, said in (
        (("wrung", "--segments", "1"), "Did you mean wrong?"),
        (("wrong", "--segments", "1,77"), "no segment 77"),
        (("wrong", "--segments", "all"), "no list of segments such as '3,7-9'"),
        (("wrong", "--segments", "1", "--seed", "other"), "--seed is 'new' or a whole number"),
    ):
        done = live.dubd("redo", *arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr
    for copy in (live.var / "inbox" / ".references").iterdir():
        copy.rename(tmp_path / copy.name)
    try:
        done = live.dubd("redo", "wrong", "--segments", "1")
        assert done.returncode == 2
        assert "these are gone:" in done.stderr
    finally:
        for copy in tmp_path.glob("*.flac"):
            if copy.name != "anna.flac":
                copy.rename(live.var / "inbox" / ".references" / copy.name)


def test_a_redo_is_of_what_was_submitted_last(live: Place, tmp_path: Path) -> None:
    """A redo and a corrected film that wait behind each other, and another redo behind both: the last text stays."""
    speak(live, tmp_path, "corrected")
    inbox, folder = live.var / "inbox", live.var / "outbox" / "corrected"
    corrected = {**json.loads((folder / "job.json").read_bytes()), "job_id": "corrected"}
    for segment in corrected["segments"]:
        segment["text"] = "new " + segment["text"]

    def drop(name: str, document: dict[str, Any]) -> None:
        (tmp_path / name).write_text(json.dumps(document))
        (tmp_path / name).rename(inbox / name)
        wait_until(lambda: not (inbox / name).exists(), "the claim")

    request = {"kind": "redo", "job_id": "corrected", "seed": "new"}
    drop("first.json", {**request, "segments": "1"})
    drop("second.json", corrected)
    drop("third.json", {**request, "segments": "0"})
    wait_until(lambda: (folder / "manifest.3.json").exists() and (folder / "manifest.json").exists(), "all three")
    last = manifest(live, "corrected")
    assert [segment["text"] for segment in last["segments"]] == ["new " + text for text in TEXTS]
    assert last["earlier"] == 3
    (take,) = last["segments"][0]["history"]
    assert take["manifest"] == "manifest.3.json"
    assert sha256(folder / take["file"]) == take["sha256"]


def test_a_redo_of_what_can_not_be_read_is_rejected(live: Place, tmp_path: Path) -> None:
    """With its reason, and nothing is taken away; the daemon goes on."""
    speak(live, tmp_path, "damaged")
    folder = live.var / "outbox" / "damaged"
    good = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(good.replace(b'"overrun_s": null', b'"overrun_s": NaN', 1))
    before = sorted(path.name for path in folder.iterdir())
    done = live.dubd("redo", "damaged", "--segments", "0", "--seed", "new", "--wait")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "overrun_s" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == before
    (folder / "manifest.json").write_bytes(good)
    assert live.dubd("redo", "damaged", "--segments", "0", "--seed", "new", "--wait").returncode == 1

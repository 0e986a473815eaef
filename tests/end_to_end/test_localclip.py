"""LocalClip's two configs, dropped as they stand, and the results that it reads."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.conftest import DaemonUnderTest, recording, shared_daemon, wait_for


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that jobs may name, beside the inbox."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def dubd(tmp_path_factory: pytest.TempPathFactory, allowed: Path) -> Iterator[DaemonUnderTest]:
    drive = tmp_path_factory.mktemp("D")
    yield from shared_daemon(
        tmp_path_factory,
        paths__allowed_roots=[str(allowed)],
        paths__output_roots=[str(allowed), str(drive)],
        paths__mapped={"C:\\clips": str(allowed / "clips"), "D:\\out": str(drive)},
    )


@pytest.fixture(autouse=True)
def _voices(dubd: DaemonUnderTest) -> None:
    for number in range(2):
        file = io.BytesIO()
        np.save(file, np.full((10, 40 + number), number))
        dubd.put(f"voice_{number}.npy", file.getvalue())
        dubd.put(f"speaker_{number}.flac", recording(("ines", "bo")[number]))


def generate(outputs: dict[int, object], **more: Any) -> dict[str, Any]:
    return {
        "mode": "generate",
        "fish_speech_dir": "/opt/fish-speech",
        "checkpoint_dir": "/opt/checkpoints",
        "output_dir": "/tmp/out",
        "tasks": [
            {
                "segment_index": index,
                "speaker_id": number % 2,
                "target_text": f"This is said by speaker {number % 2} for {index}.",
                "npy_file": f"voice_{number % 2}.npy",
                "reference_text": "What is said in the reference.",
                "output_file": output,
            }
            for number, (index, output) in enumerate(outputs.items())
        ],
        **more,
    }


def results(dubd: DaemonUnderTest, job_id: str) -> Any:
    return json.loads((dubd.outbox / job_id / "results.json").read_bytes())


def test_generate(dubd: DaemonUnderTest, allowed: Path) -> None:
    """WAVs where they were asked for, and in the outbox; results.json maps each index to the file; settings that dubd
    has of its own are named as ignored."""
    outputs: dict[int, object] = {
        12: str(allowed / "deep" / "er" / "segment_12.wav"),
        3: str(allowed / "segment_3.wav"),
    }
    manifest = dubd.run("generate", generate(outputs))
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert results(dubd, "generate") == {str(index): path for index, path in outputs.items()}
    for segment in manifest["segments"]:
        assert (
            Path(str(outputs[segment["index"]])).read_bytes()
            == (dubd.outbox / "generate" / segment["file"]).read_bytes()
        )
    ignored = " ".join(manifest["ignored"])
    for key in ("$.fish_speech_dir", "$.checkpoint_dir", "$.output_dir"):
        assert key in ignored


def test_an_output_file_outside_stays_in_the_outbox(dubd: DaemonUnderTest, allowed: Path, tmp_path: Path) -> None:
    """Wherever it points, by whatever trick: the WAV stays in the outbox, the path is listed in ignored, nothing is
    written, and the job is done."""
    (allowed / "way_out").symlink_to(tmp_path)
    (allowed / "folder").mkdir()
    (allowed / "loop").symlink_to(allowed / "loop")
    (allowed / "file").write_text("a file")
    outside = [
        "/etc/evil.wav", "../evil.wav", f"{allowed}/../evil.wav", f"{allowed}/way_out/evil.wav",
        f"{allowed}/way_out/deep/evil.wav", f"{allowed}/folder", f"{allowed}/loop/evil.wav", f"{allowed}/file/evil.wav",
        f"{allowed}/{'x' * 300}.wav", f"{allowed}/{'x' * 300}/evil.wav", f"{allowed}/..", "/", "\x00.wav", "  ",
        f"/proc/{dubd.pid}/cwd/evil.wav",
    ]  # fmt: skip
    outputs: dict[int, object] = dict(enumerate(path for path in outside if path.strip() and "\0" not in path))
    manifest = dubd.run("outside", generate(outputs))
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    for index, path in outputs.items():
        assert results(dubd, "outside")[str(index)] == str(dubd.outbox / "outside" / f"segment_{index:04d}.wav")
        assert any(repr(path) in line for line in manifest["ignored"]), path
    assert list(tmp_path.iterdir()) == [] and list((allowed / "folder").iterdir()) == []
    assert not list(allowed.parent.glob("evil*")) and (allowed / "file").read_text() == "a file"


def test_an_output_file_follows_no_link_and_replaces_none(dubd: DaemonUnderTest, allowed: Path, tmp_path: Path) -> None:
    """What is there already and is no result of this job stays."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (allowed / "link.wav").symlink_to(precious)
    (allowed / "theirs.wav").write_text("theirs")
    manifest = dubd.run("link", generate({0: str(allowed / "link.wav"), 1: str(allowed / "theirs.wav")}))
    assert (manifest["status"], len([line for line in manifest["ignored"] if "stays as it is" in line])) == ("done", 2)
    assert (precious.read_text(), (allowed / "theirs.wav").read_text()) == ("mine", "theirs")
    assert (allowed / "link.wav").is_symlink()
    redone = dubd.run("again", generate({0: str(allowed / "again.wav")}))
    assert redone["status"] == "done"
    first = (allowed / "again.wav").read_bytes()
    config = generate({0: str(allowed / "again.wav")})
    config["tasks"][0]["target_text"] = "Another text for the same job."
    before = (dubd.outbox / "again" / "manifest.json").read_bytes()
    dubd.drop("again", config)
    wait_for(
        lambda: (dubd.manifest_now("again") or {}) and (dubd.outbox / "again" / "manifest.json").read_bytes() != before,
        "it",
    )
    assert (allowed / "again.wav").read_bytes() != first
    assert results(dubd, "again") == {"0": str(allowed / "again.wav")}


def test_no_output_file_and_one_in_the_inbox(dubd: DaemonUnderTest) -> None:
    """The result is the file in the outbox: nothing is written into the inbox, whatever a job says."""
    job = generate({0: None, 1: "out/relative.wav"})
    del job["tasks"][0]["output_file"]
    dubd.run("relative", job)
    assert results(dubd, "relative") == {
        "0": str(dubd.outbox / "relative" / "segment_0000.wav"),
        "1": str(dubd.outbox / "relative" / "segment_0001.wav"),
    }
    assert not (dubd.inbox / "out").exists()


def test_a_voice_is_its_id_its_codes_and_its_text(dubd: DaemonUnderTest) -> None:
    """Tasks of one speaker_id with other codes or another text are other voices, each spoken as itself."""
    job = generate(dict.fromkeys(range(3)))
    for task, file, text in zip(job["tasks"], (0, 1, 0), ("a", "a", "b"), strict=True):
        task.update(speaker_id=0, npy_file=f"voice_{file}.npy", reference_text=text, target_text="The same.")
    manifest = dubd.run("voices", job)
    assert [segment["speaker"] for segment in manifest["segments"]] == ["0", "0#2", "0#3"]
    assert len({segment["seed"] for segment in manifest["segments"]}) == 3


def test_failed_and_skipped_tasks_are_not_among_the_results(dubd: DaemonUnderTest) -> None:
    job = generate({0: None, 1: None})
    job["tasks"][1]["target_text"] = "…"
    manifest = dubd.run("skips", job)
    assert manifest["counts"]["skipped"] == 1
    assert list(results(dubd, "skips")) == ["0"]


def test_encode(dubd: DaemonUnderTest, allowed: Path) -> None:
    """Codes of each speaker's recording, where they were asked for; the ids come back in the form they had."""
    speakers = [
        {
            "speaker_id": speaker_id,
            "reference_audio": f"speaker_{number}.flac",
            "reference_text": "What is said.",
            "output_npy": str(allowed / f"{speaker_id}.npy"),
        }
        for number, speaker_id in enumerate((7, "anna"))
    ]
    del speakers[1]["output_npy"]
    manifest = dubd.run("encode", {"mode": "encode", "speakers": speakers, "device": "cuda"})
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 2)
    assert [segment["file"] for segment in manifest["segments"]] == ["segment_0000.npy", "segment_0001.npy"]
    found = results(dubd, "encode")
    assert found == [
        {"speaker_id": 7, "npy_file": str(allowed / "7.npy")},
        {"speaker_id": "anna", "npy_file": str(dubd.outbox / "encode" / "segment_0001.npy")},
    ]
    for entry in found:
        codes = np.load(entry["npy_file"])
        assert codes.shape[0] == 10 and codes.dtype.kind == "i"


def test_encoded_codes_speak(dubd: DaemonUnderTest) -> None:
    """The road of the editor: encode first, then generate with what came out, which lies in the outbox."""
    speaker = {"speaker_id": 0, "reference_audio": "speaker_0.flac", "reference_text": "x", "output_npy": "made.npy"}
    dubd.run("step_1", {"mode": "encode", "speakers": [speaker]})
    (entry,) = results(dubd, "step_1")
    assert entry["npy_file"] == str(dubd.outbox / "step_1" / "segment_0000.npy") and os.path.exists(entry["npy_file"])
    job = generate({0: None})
    job["tasks"][0]["npy_file"] = entry["npy_file"]
    assert dubd.run("step_2", job)["status"] == "done"


def test_the_editors_paths_of_windows(dubd: DaemonUnderTest, allowed: Path) -> None:
    """Configs as the editor on Windows writes them: its folders are mapped, and results.json calls the files by the
    names that it knows. A path below no mapped folder is told of by its place in the config."""
    clips = allowed / "clips"
    clips.mkdir()
    (clips / "Anna.flac").write_bytes(recording("ines"))
    speaker = {
        "speaker_id": 0,
        "reference_audio": "C:\\clips\\Anna.flac",
        "reference_text": "x",
        "output_npy": "c:/Clips/made/0.npy",
    }
    dubd.run("windows_encode", {"mode": "encode", "speakers": [speaker]})
    codes = "C:\\clips\\made\\0.npy"
    assert results(dubd, "windows_encode") == [{"speaker_id": 0, "npy_file": codes}]
    assert (clips / "made" / "0.npy").exists()

    job = generate({12: "D:\\out\\deep\\segment_12.wav", 13: "E:\\elsewhere.wav"})
    for task in job["tasks"]:
        task["npy_file"] = codes
    manifest = dubd.run("windows", job)
    assert results(dubd, "windows") == {
        "12": "D:\\out\\deep\\segment_12.wav",
        "13": str(dubd.outbox / "windows" / "segment_0013.wav"),
    }
    assert any("elsewhere" in line for line in manifest["ignored"])

    job["tasks"][1]["npy_file"] = "E:\\voices\\0.npy"
    dubd.drop("windows_unmapped", job)
    assert dubd.rejection("windows_unmapped") == [("$.tasks[1].npy_file", "missing")]


def test_a_recording_that_is_none(dubd: DaemonUnderTest) -> None:
    """The reason names the recording."""
    speaker = {"speaker_id": 0, "reference_audio": "voice_0.npy", "reference_text": "x"}
    dubd.drop("no_recording", {"mode": "encode", "speakers": [speaker]}, recorded=False)
    assert [code for _, code in dubd.rejection("no_recording")] == ["unreadable"]


def test_what_that_editor_leaves_empty(dubd: DaemonUnderTest) -> None:
    """An empty text of a reference is used, and said; no tasks are a job that is done; the answer is one line."""
    config = generate({0: None, 1: None})
    config["tasks"][0]["reference_text"] = ""
    config["tasks"][1]["target_text"] = "A long one. " * 208
    manifest = dubd.run("empty_text", config)
    assert manifest["status"] == "done"
    assert any("reference_text" in line for line in manifest["ignored"])
    assert any("2496 characters" in line for line in manifest["ignored"]), manifest["ignored"]
    lines = (dubd.outbox / "empty_text" / "results.json").read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["0", "1"]]
    manifest = dubd.run("nothing", {"mode": "generate", "tasks": []})
    assert (manifest["status"], manifest["counts"]["total"], results(dubd, "nothing")) == ("done", 0, {})

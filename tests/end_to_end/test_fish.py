"""The fish engine end to end, on a small checkpoint of random weights, on the CPU."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.end_to_end.conftest import ROOT, DaemonUnderTest, Make, make_job, read_json, wait_for

pytestmark = pytest.mark.timeout(300)  # each worker imports torch, which takes its time on a busy machine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the script that the README names. Not to be changed: copy it first."""
    pytest.importorskip("torch")
    pytest.importorskip("fish_speech")
    folder = tmp_path_factory.mktemp("fish") / "checkpoint"
    subprocess.run(
        [sys.executable, "-m", "workers.engines.fish.make_checkpoint", str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return folder


def fish(make: Make, checkpoint: Path, name: str = "dubd", **more: Any) -> DaemonUnderTest:
    settings = {
        "engine__name": "fish",
        "engine__options": {},
        "engine__checkpoint": str(checkpoint),
        "engine__precision": "fp32",
        "engine__reproducible": True,
        "engine__slots": 4,
        "engine__retries": 0,
        "pool__workers": 1,
        **more,
    }
    return make(name, **settings)


def cast(count: int) -> dict[str, Any]:
    """Lines of three speakers, two known by recordings and one by codes."""
    job = make_job([f"Line number {number} of the play." for number in range(count)], speakers=3)
    job["speakers"][1]["references"][0]["audio"] = "bo.flac"
    job["speakers"][2]["references"] = [{"codes": "codes.npy", "text": "What the codes say."}]
    return job | {"defaults": {"max_new_tokens": 40}}


def codes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).integers(0, 1024, (10, 30)))
    return file.getvalue()


def test_one_and_three_workers_speak_the_same(make: Make, checkpoint: Path) -> None:
    """Bit for bit, whoever speaks beside whom: the sums in the manifests are equal."""
    sums = []
    for workers in (1, 3):
        dubd = fish(make, checkpoint, f"with_{workers}", pool__workers=workers).start()
        dubd.put("codes.npy", codes())
        manifest = dubd.run("play", cast(12))
        dubd.check_manifest(manifest)
        assert manifest["status"] == "done"
        assert len({segment["worker"] for segment in manifest["segments"]}) == workers
        info = soundfile.info(dubd.outbox / "play" / manifest["segments"][0]["file"])
        assert (info.samplerate, info.subtype) == (44_100, "PCM_16")
        sums.append([segment["sha256"] for segment in manifest["segments"]])
        assert dubd.stop() == 0
    assert sums[0] == sums[1]
    assert len(set(sums[0])) == 12


def test_encode_and_generate(make: Make, checkpoint: Path) -> None:
    """LocalClip's two configs in a row: a recording to codes, and lines spoken with them."""
    dubd = fish(make, checkpoint).start()
    dubd.drop("recordings", cast(1) | {"speakers": cast(1)["speakers"][:1]})
    dubd.manifest("recordings")
    speaker = {
        "speaker_id": 0,
        "reference_audio": "anna.flac",
        "reference_text": "What she says.",
        "output_npy": "a.npy",
    }
    dubd.run("encode", {"mode": "encode", "speakers": [speaker]})
    assert read_json(dubd.outbox / "encode" / "results.json") == [
        {"speaker_id": 0, "npy_file": str(dubd.outbox / "encode" / "segment_0000.npy")}
    ]
    made = np.load(dubd.outbox / "encode" / "segment_0000.npy")
    assert made.shape[0] == 10 and made[0].max() < 4096 and made[1:].max() < 1024
    task = {
        "segment_index": 3,
        "speaker_id": 0,
        "target_text": "Said again.",
        "npy_file": str(dubd.outbox / "encode" / "segment_0000.npy"),
        "reference_text": "x",
    }
    manifest = dubd.run("generate", {"mode": "generate", "tasks": [task], "defaults": {"max_new_tokens": 40}})
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    log = dubd.log.read_text("utf-8")
    assert all(said in log for said in ("Loading Text2Semantic model...", "Loading DAC model...", "Models loaded!"))


HALF = {
    "empty": [],
    "half_copied": ["config.json", "model.pth", "tokenizer.tiktoken"],
    "cut_off": ["config.json", "tokenizer.tiktoken", "special_tokens.json", "codec.pth", "codec.yaml"],
    "other_config": ["model.pth", "tokenizer.tiktoken", "special_tokens.json", "codec.pth", "codec.yaml"],
    "no_checkpoint": [],
}


def test_checkpoints_that_are_none(make: Make, checkpoint: Path, tmp_path: Path) -> None:
    """Empty, half-copied, cut off, of another model, missing: the daemon stays up and names the folder; the job waits,
    and is spoken when the checkpoint is there."""
    dubd = fish(make, tmp_path / "empty", pool__breaker_crashes=1)
    (tmp_path / "empty").mkdir()
    dubd.start(ready=False)
    dubd.put("codes.npy", codes())
    dubd.drop("patient", cast(3))
    for name, files in HALF.items():
        folder = tmp_path / name
        if name != "no_checkpoint":
            folder.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(checkpoint / file, folder / file)
        if name == "cut_off":
            whole = (checkpoint / "model.pth").read_bytes()
            (folder / "model.pth").write_bytes(whole[: len(whole) // 2])
        if name == "other_config":
            config = json.loads((checkpoint / "config.json").read_bytes())
            (folder / "config.json").write_text(json.dumps({**config, "dim": 2 * config["dim"]}))
        dubd.reload(engine__checkpoint=str(folder))
        wait_for(lambda told=str(folder): told in str(dubd.job_row("patient")["note"]), f"the note on {name}")  # type: ignore[misc]
        wait_for(lambda told=str(folder): told in str(dubd.status()["warnings"]), f"the warning of {name}")  # type: ignore[misc]
    dubd.reload(engine__checkpoint=str(checkpoint))
    manifest = dubd.manifest("patient")
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 3)

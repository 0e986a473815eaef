"""Files of weights that were damaged, wrapped or put in place of others on their way here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engine import EngineError, Settings  # noqa: E402
from workers.engines.fish import FishEngine, weight_file  # noqa: E402

FILES = ("model.pth", "codec.pth")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to be changed."""
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def model_of(folder: Path, cache: str = "") -> str:
    engine = FishEngine(Settings(checkpoint=str(folder), precision="fp32", slots=1, cache=cache))
    engine.load()
    engine.close()
    return engine.model


def refusal(folder: Path, cache: str = "") -> str:
    with pytest.raises(EngineError) as caught:
        model_of(folder, cache)
    assert caught.value.code == "bad_checkpoint"
    return str(caught.value)


def rewritten(path: Path, change: Any, **options: Any) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path, **options)


def with_hole(path: Path) -> bytes:
    """Zeros in the middle of a file, as an interrupted copy onto a filesystem with holes leaves them; what it was."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])
    return content


@pytest.mark.parametrize("name", FILES)
def test_a_hole_is_found_and_a_whole_file_remembered(folder: Path, tmp_path: Path, name: str) -> None:
    """The file and the record in it are named. Nothing is remembered of a damaged file; the repaired one is the model
    that it was, and is looked at once."""
    cache = str(tmp_path / "cache")
    before = model_of(folder)
    content = with_hole(folder / name)
    message = refusal(folder, cache)
    assert f"{folder / name} is damaged" in message
    assert "/data/" in message
    assert "copy the file again" in message
    assert refusal(folder, cache) == message
    (folder / name).write_bytes(content)
    assert model_of(folder, cache) == before
    kept = sorted(os.listdir(cache))
    assert len(kept) == 2
    assert all(one.startswith("whole-") for one in kept)
    assert model_of(folder, cache) == before
    assert sorted(os.listdir(cache)) == kept
    with_hole(folder / name)
    assert "is damaged" in refusal(folder, cache)


def test_what_has_no_checksums_is_named_by_its_whole_content(folder: Path) -> None:
    """torch can leave them out: then two models of the same sizes are told apart by their bytes."""
    names = []
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        for value in (1.0, 2.0):
            rewritten(
                folder / "model.pth", lambda state, value=value: {**state, "norm.weight": torch.full((64,), value)}
            )
            names.append(model_of(folder))
    finally:
        torch.serialization.set_crc32_options(usual)
    assert names[0] != names[1]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3471\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Log in", "web page"),
    ],
)
def test_what_lies_there_instead_is_called_so(folder: Path, name: str, content: bytes, said: str) -> None:
    """Pointers and pages come of downloads that did not happen."""
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert said in message
    assert str(folder / name) in message


def test_an_adapter_that_is_not_merged_is_refused(folder: Path) -> None:
    """The base voice would speak."""
    rewritten(folder / "model.pth", lambda state: {**state, "layers.0.attention.wqkv.lora_A": torch.ones(8, 64)})
    message = refusal(folder)
    assert "merge it first" in message
    assert "layers.0.attention.wqkv.lora_A" in message


def test_weights_that_nobody_reads_are_named(folder: Path) -> None:
    """As missing ones are; but for what stock computes, and saves now and then."""
    rewritten(folder / "model.pth", lambda state: {**state, "freqs_cis": torch.ones(3), "causal_mask": torch.ones(3)})
    model_of(folder)
    rewritten(folder / "model.pth", lambda state: {**state, "layers.0.attention.gate.weight": torch.ones(3)})
    assert "layers.0.attention.gate.weight" in refusal(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model."])
def test_what_training_puts_before_names_is_taken_off(folder: Path, prefix: str) -> None:
    """Of the model's; of the codec's but for ``model.``. Two sets of the same weights are one too many."""
    model = folder / "model.pth"
    rewritten(model, lambda state: {prefix + name: weight for name, weight in state.items()})
    if prefix != "model.":
        rewritten(folder / "codec.pth", lambda state: {prefix + name: weight for name, weight in state.items()})
    model_of(folder)
    rewritten(model, lambda state: {**state, "norm.weight": torch.ones(64)})
    assert "more than one set" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_torchs_old_form_is_read(folder: Path, name: str) -> None:
    """Which is no archive and can't be mapped."""
    rewritten(folder / name, lambda state: state, _use_new_zipfile_serialization=False)
    model_of(folder)


def test_a_file_that_is_gone_or_empty(tmp_path: Path) -> None:
    """Said in so many words."""
    (tmp_path / "codec.pth").touch()
    with pytest.raises(EngineError, match=r"codec\.pth is empty"):
        weight_file.read(str(tmp_path / "codec.pth"), ())
    with pytest.raises(EngineError, match=r"model\.pth is missing"):
        weight_file.read(str(tmp_path / "model.pth"), ())

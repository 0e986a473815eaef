"""Checkpoints of random weights, made once with fish-speech's own classes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and its tokenizer, without a codec."""
    pytest.importorskip("torch")
    pytest.importorskip("fish_speech")
    from workers.engines.fish.make_checkpoint import write_model, write_tokenizer

    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(str(folder), "tiny")
    write_model(str(folder), "tiny", 0)
    return folder


@pytest.fixture(scope="session")
def checkpoint(model_folder: Path) -> Path:
    """A whole small checkpoint, codec included. Not to be changed: copy it first."""
    from workers.engines.fish.make_codec import make_codec

    make_codec(str(model_folder), "tiny", 0)
    return model_folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are slower with more, and several at once wait for each other."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(1)

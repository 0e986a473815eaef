"""The doctor's look at the workers' environment and the checkpoint."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from daemon.commands.invocation import Invocation
from daemon.config import Settings
from daemon.doctor import engine
from daemon.doctor.engine import CHECKPOINT_FILES


def settings(*overrides: str) -> Settings:
    return Invocation(overrides=overrides).settings()


def script(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_own_interpreter_is_fine() -> None:
    """worker.python is empty then."""
    (finding,) = engine.check_interpreter("")
    assert finding.level == "ok"
    assert sys.executable in finding.message


@pytest.mark.parametrize(
    ("text", "told"),
    [("echo 3.9.2", "workers need 3.10"), ("echo hello", "does not answer like a Python"), ("exit 3", "status 3")],
)
def test_what_is_no_python_for_workers_fails(tmp_path: Path, text: str, told: str) -> None:
    """Too old, no Python at all, a program that fails."""
    (finding,) = engine.check_interpreter(script(tmp_path, text))
    assert finding.level == "fail"
    assert told in finding.message


def test_an_interpreter_that_is_missing_or_no_program_fails(tmp_path: Path) -> None:
    """The message tells the two apart."""
    (tmp_path / "text").touch()
    assert "is not there" in engine.check_interpreter(str(tmp_path / "nowhere"))[0].message
    assert "is no program" in engine.check_interpreter(str(tmp_path / "text"))[0].message


def test_a_worker_is_started_and_answers() -> None:
    """As the daemon would start it."""
    (finding,) = engine.check_worker(settings("engine.name=silence"), "silence", os.environ)
    assert finding.level == "ok", finding.message


def test_draft_needs_espeak_to_load() -> None:
    """The library and its data are loaded for real."""
    pytest.importorskip("espeakng_loader")
    (finding,) = engine.check_worker(settings("engine.name=draft"), "draft", os.environ)
    assert finding.level == "ok", finding.message
    assert "engine draft loaded" in finding.message


def test_an_engine_that_can_not_be_loaded_fails_with_its_reason() -> None:
    """The worker's own words."""
    (finding,) = engine.check_worker(settings("engine.name=nowhere:Engine"), "nowhere:Engine", os.environ)
    assert finding.level == "fail"
    assert "nowhere" in finding.message


def test_missing_packages_are_named_each(tmp_path: Path) -> None:
    """As the worker's interpreter sees them, which here has none: it starts isolated, with no site-packages."""
    python = script(tmp_path, f'exec {sys.executable} -I -S "$@"')
    found = list(engine.check_packages(settings(f"worker.python={python}"), os.environ, []))
    assert all(finding.level == "fail" for finding in found)
    told = " ".join(finding.message for finding in found)
    for package in ("numpy", "soundfile", "torch", "tiktoken", "fish_speech"):
        assert package in told


def test_a_folder_on_the_workers_path_must_be_there(tmp_path: Path) -> None:
    """FISH_SPEECH_DIR leads here too."""
    (finding,) = engine.check_import_path(settings(f'worker.path=["{tmp_path}/nowhere"]'))
    assert finding.level == "fail"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder in the form of a checkpoint; nothing in it is weights."""
    for name in CHECKPOINT_FILES:
        (tmp_path / name).write_text("x")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dual_ar"}))
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", "x" * 5000)
    return tmp_path


def test_a_whole_checkpoint_is_fine(checkpoint: Path) -> None:
    """As far as names and forms tell."""
    (finding,) = engine.check_checkpoint(str(checkpoint))
    assert finding.level == "ok", finding.message


def test_mistakes_with_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """Not set, not there, empty, files missing or empty, half-copied, git-lfs pointers, another model."""

    def told(folder: str) -> str:
        (finding,) = engine.check_checkpoint(folder)
        assert finding.level == "fail"
        assert finding.mend
        return finding.message

    assert "is not set" in told("")
    assert "is not a folder" in told("/nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is empty" in told(str(empty))

    model = checkpoint / "model.pth"
    whole = model.read_bytes()
    model.write_bytes(whole[:2000])
    assert "cut off" in told(str(checkpoint))
    model.write_bytes(b"")
    assert "is empty" in told(str(checkpoint))
    model.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git-lfs" in told(str(checkpoint))
    model.write_bytes(b"<!DOCTYPE html><html>")
    assert "web page" in told(str(checkpoint))
    model.write_bytes(whole.replace(b"x" * 5000, b"x" * 900 + bytes(4100)))
    assert "model.pth is damaged: archive/data.pkl" in told(str(checkpoint))
    model.write_bytes(whole)

    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    assert "'llama'" in told(str(checkpoint))
    (checkpoint / "config.json").write_text("{")
    assert "not JSON" in told(str(checkpoint))
    (checkpoint / "codec.pth").unlink()
    assert "lacks codec.pth" in told(str(checkpoint))

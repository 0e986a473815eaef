"""The commands as a person gives them: subprocesses, and a real daemon behind them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from daemon.commands.following import Awaited, Followed
from daemon.commands.invocation import Invocation
from daemon.commands.liveness import probe_lock
from daemon.commands.submit import Submission, drop
from daemon.config import Settings
from daemon.sample import sample_folder

ROOT = Path(__file__).resolve().parents[2]
ENGINES = Path(__file__).parent / "engines"
PATIENCE_S = 30.0
"""How long a test waits for what must come; a failure takes this long, a success never does."""

Command = subprocess.CompletedProcess[str]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {PATIENCE_S:g} s"
        time.sleep(0.02)


@dataclass(frozen=True)
class Place:
    """Folders of a daemon that may or may not run, and the options that lead commands there."""

    folder: Path
    options: tuple[str, ...]

    @property
    def var(self) -> Path:
        return self.folder / "var"

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    @property
    def settings(self) -> Settings:
        return Invocation(overrides=tuple(self.options[1::2])).settings()

    def start(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "daemon", *self.options, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def dubd(self, *arguments: str, cwd: Path | None = None) -> Command:
        process = self.start(*arguments, cwd=cwd)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def write_job(self, folder: Path, name: str, texts: Sequence[str], **more: Any) -> Path:
        """A job of one speaker beside its reference."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "anna.flac").write_bytes(sample_recording())
        job = {
            "speakers": [{"id": "anna", "references": [{"audio": "anna.flac", "text": "I have taken this ferry."}]}],
            "segments": [{"index": index, "speaker": "anna", "text": text} for index, text in enumerate(texts)],
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**job, **more}), encoding="utf-8")
        return path


def sample_recording(speaker: str = "ines") -> bytes:
    return sample_folder().joinpath(f"{speaker}.flac").read_bytes()


def make_place(folder: Path) -> Place:
    gate = json.dumps(str(folder / "gate"))
    settings = {
        "paths.root": folder / "var",
        "engine.name": "scripted:ScriptedEngine",
        "engine.options": f"{{gate = {gate}}}",
        "worker.path": json.dumps([str(ENGINES)]),
        "worker.threads": 1,
        "pool.workers": 1,
        "inbox.settle_seconds": 0.05,
        "inbox.scan_seconds": 0.2,
        "inbox.grace_seconds": 0.1,
        "service.progress_seconds": 0.1,
        "service.status_seconds": 0.1,
        "service.drain_seconds": 1,
    }
    return Place(folder, tuple(part for key, value in settings.items() for part in ("--set", f"{key}={value}")))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Folders without a daemon."""
    return make_place(tmp_path)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Folders with a daemon at work; the job ids of its tests must differ."""
    place = make_place(tmp_path_factory.mktemp("live"))
    place.gate.touch()
    log = place.folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run", *place.options],
            stdout=stream,
            stderr=stream,
            cwd=place.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        wait_until(lambda: process.poll() is not None or (place.var / "status.json").exists(), "the daemon's start")
        assert process.poll() is None, log.read_text()
        assert probe_lock(place.var / "state" / "lock") == "held"
        yield place
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    assert process.returncode == 0, log.read_text()


@pytest.fixture
def closed_gate(live: Place) -> Iterator[Path]:
    """Segments that say hold are held until the test opens the gate, at its end at the latest."""
    live.gate.unlink(missing_ok=True)
    yield live.gate
    live.gate.touch()


def dropped(submission: Submission, settings: Settings) -> Awaited:
    """What is waited for after a drop."""
    jobs: list[Followed] = []
    drop(submission, settings, jobs)
    return jobs[0].awaited

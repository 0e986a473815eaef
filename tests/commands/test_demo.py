"""``dubd demo``: the first thing that a newcomer runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.commands.conftest import ROOT


def test_the_demo_speaks_the_whole_sample(tmp_path: Path) -> None:
    """46 of 46 segments by 6 speakers, with nothing of the user's configuration in the way, and the WAVs are there to
    be heard."""
    (tmp_path / "config.toml").write_text('[engine]\nname = "fish"\n[paths]\ninbox = "/nowhere"\n')
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "FISH_SPEECH_PYTHON": "/nowhere/python"},
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "46/46 segments spoken" in done.stdout
    assert "6 speakers: ines 9, teo 7, mara 8, okafor 8, lin 7, bo 7" in done.stdout
    listed = re.findall(r"^  (segment_\d{4}\.wav) ", done.stdout, re.MULTILINE)
    assert len(listed) == 46
    (folder,) = tmp_path.glob("dubd-demo-*")
    for name in listed:
        assert soundfile.info(folder / "outbox" / "night_ferry" / name).duration > 0.3
    assert not (folder / "state" / "jobs").exists() or not os.listdir(folder / "state" / "jobs")


def test_a_demo_that_can_not_start_shows_the_log(tmp_path: Path) -> None:
    """Exit 1, and no daemon stays behind."""
    config = tmp_path / "mine.toml"
    config.write_text('[engine]\nname = "silence"\n')
    # The daemon checks its configuration again; here it disappears in between.
    code = (
        "import pathlib, sys; from daemon.commands import demo; real = demo.running_daemon\n"
        "def gone(*arguments):\n"
        "    pathlib.Path(sys.argv[-1]).unlink(); return real(*arguments)\n"
        "demo.running_daemon = gone\n"
        "from daemon.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 1
    assert "ended with status 2" in done.stderr
    assert "mine.toml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_whose_workers_can_not_start_gives_up(tmp_path: Path) -> None:
    """Exit 1 with the workers' own reason, instead of waiting for ever."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "daemon",
            "demo",
            "--set",
            "engine.name=nowhere:Engine",
            "--set",
            "pool.breaker_crashes=1",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 1
    assert "no worker can be started" in done.stderr
    assert "nowhere" in done.stderr


def test_the_sample_is_what_its_script_makes(tmp_path: Path) -> None:
    """Whoever doubts a recording can make it again; but for the breath that espeak-ng adds to some voices, which is
    another one each time."""
    pytest.importorskip("espeakng_loader")
    subprocess.run(
        [sys.executable, "-m", "daemon.sample.make_references", str(tmp_path)],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    for made in sorted(tmp_path.glob("*.flac")):
        shipped = ROOT / "daemon" / "sample" / made.name
        assert shipped.stat().st_size < 100_000
        assert soundfile.info(made).frames == soundfile.info(shipped).frames, made.name
    assert len(list(tmp_path.glob("*.flac"))) == 6

"""``dubd bench`` as a person gives it. What it measures is not looked at here: the machine may be busy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from daemon.cli import app
from tests.commands.conftest import PATIENCE_S, ROOT, wait_until

TINY_DAEMON = ("daemon", "--segments", "12,18", "--workers", "1,2", "--idle-seconds", "0.1", "--repeats", "1")


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """With the folder as its current one, and its temporary files in one of their own."""
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "daemon", "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), **environment},
    )


def bench(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, *arguments, **environment)
    out, err = process.communicate()
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def figures_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The list for machines, with what holds for every one."""
    assert done.returncode == 0, done.stderr
    figures: list[dict[str, Any]] = json.loads(done.stdout)
    assert figures
    for figure in figures:
        assert list(figure) == ["name", "value", "unit", "ratio_to_stock"]
        assert isinstance(figure["value"], int | float) and figure["value"] >= 0
        assert figure["ratio_to_stock"] is None or figure["ratio_to_stock"] > 0
    return figures


def left_over(folder: Path) -> list[str]:
    """What a bench has left of its own; torch keeps what it has compiled, as it always does."""
    return [path.name for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor_")]


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that were told of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


@pytest.mark.parametrize("measurement", ["decode", "codec", "load", "job", "daemon"])
def test_every_measurement_has_help_and_the_common_options(measurement: str) -> None:
    """--json and --repeats, and --config and --set as every command."""
    result = CliRunner().invoke(app, ["bench", measurement, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in ("--json", "--repeats", "--config", "--set"):
        assert option in result.output


@pytest.mark.timeout(120)
def test_the_daemon_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    """A list of {name, value, unit, ratio_to_stock} on standard output, one object about the machine on standard error;
    no process and no file stays."""
    done = bench(tmp_path, *TINY_DAEMON, "--json")
    figures = figures_of(done)
    names = [figure["name"] for figure in figures]
    for measured in (
        "start, until jobs are taken",
        "idle",
        "one segment, from settled to its WAV",
        "18 segments",
        "18 segments spoken before",
        "peak memory of the daemon",
        "18 segments, killed halfway: start, until its manifest",
        "18 segments, killed halfway: the other half, against the first and the start",
        "2 jobs of 10 segments",
        "event loop, 180 segments live",
        "dubd jobs, 36 results",
    ):
        assert measured in names
    assert [figure["name"] for figure in figures if figure["ratio_to_stock"] is not None] == [
        "12 segments of 0.1 s, 1 worker (ideal ratio 1)",
        "12 segments of 0.1 s, 2 workers (ideal ratio 2)",
    ]
    (head,) = done.stderr.splitlines()
    assert {"processor", "gpus", "system", "dubd", "folder"} <= set(json.loads(head))
    assert not left_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not processes_in(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end its daemon and its workers too, and take its files away."""
    process = start(tmp_path, "daemon", "--idle-seconds", "600")
    try:
        wait_until(lambda: list((tmp_path / "tmp").glob("dubd-bench-*/work/status.json")), "the daemon's start")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    wait_until(lambda: not processes_in(tmp_path), "the end of its processes")
    assert not left_over(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["daemon", "--segments", "many"],
        ["daemon", "--workers", "0"],
        ["job", "--workers", "1,,2"],
        ["decode", "--rows", "-1"],
    ],
)
def test_bad_numbers_are_told_at_once(tmp_path: Path, arguments: Sequence[str]) -> None:
    """With the option's name and what it wants; exit code 2."""
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert not left_over(tmp_path)


def test_a_worker_without_fish_speech_is_named(tmp_path: Path) -> None:
    """The interpreter that was asked, what it said, and where to look; nothing is left."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named torch >&2\nexit 1\n")
    python.chmod(0o755)
    done = bench(tmp_path, "codec", "--set", f"worker.python={python}", "--set", f"engine.checkpoint={tmp_path}")
    assert done.returncode == 1
    for part in (str(python), "No module named torch", "doctor"):
        assert part in done.stderr
    assert not left_over(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("fish_speech")
    from workers.engines.fish.make_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(str(folder), "tiny")
    return folder


@pytest.mark.timeout(300)
def test_the_decoder_is_measured_against_stock(tmp_path: Path, checkpoint: Path) -> None:
    """Each size of the batch, as often as fast as stock in the same run; from any folder, and with the package workers
    alone on the path of the process that measures."""
    arguments = ("--rows", "1,2", "--stock-frames", "2", "--repeats", "1", "--json")
    options = ("--set", f"engine.checkpoint={checkpoint}", "--set", "worker.threads=1")
    done = bench(tmp_path, "decode", *arguments, *options, CUDA_VISIBLE_DEVICES="")
    figures = figures_of(done)
    assert [figure["name"] for figure in figures if figure["ratio_to_stock"]] == [
        "decode stock",
        "decode 1 row",
        "decode 2 rows",
    ]
    head = json.loads(done.stderr.splitlines()[-1])
    assert head["fish checkpoint"] == str(checkpoint)
    assert {"fish device", "fish precision", "fish torch"} <= set(head)
    assert not left_over(tmp_path)


@pytest.mark.timeout(300)
def test_the_codec_is_shown_as_a_table(tmp_path: Path, checkpoint: Path) -> None:
    """For people: the machine, then a line for each figure."""
    options = ("--set", f"engine.checkpoint={checkpoint}", "--set", "worker.threads=1")
    done = bench(tmp_path, "codec", "--without-stock", "--repeats", "1", *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("processor ")
    assert "codec, 4 segments of 64 frames" in done.stdout
    assert "xRT" in done.stdout


@pytest.mark.timeout(300)
def test_the_memory_is_watched_over_many_segments(tmp_path: Path, checkpoint: Path) -> None:
    """At its half and its end, and then with full slots."""
    options = ("--set", f"engine.checkpoint={checkpoint}", "--set", "worker.threads=1", "--set", "engine.slots=2")
    done = bench(tmp_path, "memory", "--segments", "6", "--json", *options, CUDA_VISIBLE_DEVICES="")
    assert [figure["name"] for figure in figures_of(done)] == [
        "memory held after 3 segments",
        "memory held after 6 segments",
        "peak memory, 2 slots of 1,024 positions",
    ]

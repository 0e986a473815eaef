"""``dubd plan``: the promised table, for described machines."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from daemon.cli import app


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


@pytest.mark.parametrize(
    ("gpus", "model_memory_gb", "expected"),
    [
        ((24,), "8.0", [0, 0]),
        ((24,), "6.0", [0, 0, 0]),
        ((24,), "5.3", [0, 0, 0, 0]),
        ((16,), "8.0", [0]),
        ((16,), "7.0", [0, 0]),
        ((12,), "9.0", [0]),
        ((80,), "8.0", [0] * 9),
        ((80,), "6.5", [0] * 11),
        ((24, 24), "8.0", [0, 0, 1, 1]),
        ((24, 24), "6.0", [0, 0, 0, 1, 1, 1]),
        ((12, 12), "9.0", [0, 1]),
        ((16, 16), "8.0", [0, 1]),
    ],
)
def test_the_table(gpus: tuple[int, ...], model_memory_gb: str, expected: list[int]) -> None:
    """Every row: how many workers, numbered GPU by GPU."""
    described = [part for size in gpus for part in ("--gpu", f"NVIDIA GeForce RTX:{size}")]
    result = plan(*described, "--model-memory-gb", model_memory_gb, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["workers"] == [{"worker": number, "gpu": gpu} for number, gpu in enumerate(expected)]


@pytest.mark.parametrize(
    ("gpus", "memory", "assignment"),
    [
        (["A:24"], "8.0", [[0, 2, 4], [1, 3, 5]]),
        (["A:24"], "6.0", [[0, 3], [1, 4], [2, 5]]),
        (["A:24"], "5.3", [[0, 4], [1, 5], [2], [3]]),
        (["A:24", "B:24"], "8.0", [[0, 4], [1, 5], [2], [3]]),
        (["A:16"], "8.0", [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_six_speakers_are_assigned_in_turn(gpus: list[str], memory: str, assignment: list[list[int]]) -> None:
    """Round-robin in order of first appearance."""
    described = [part for gpu in gpus for part in ("--gpu", gpu)]
    result = plan(*described, "--model-memory-gb", memory, "--speakers", "6", "--json")
    assert json.loads(result.stdout)["assignment"] == assignment


def test_people_find_the_lines_they_know() -> None:
    """Each GPU's name and memory, what it can run, the workers in use, and who speaks whom."""
    result = plan("--gpu", "NVIDIA GeForce RTX 4090:24", "--gpu", "NVIDIA GeForce RTX 4090:24", "--speakers", "6")
    assert "[GPU 0] NVIDIA GeForce RTX 4090, Total Memory: 24.00 GB" in result.stdout
    assert "[GPU 1] Can run 2 workers (Available: 21.60 GB)" in result.stdout
    assert "[Main] Using 4 parallel workers across 2 GPU(s)" in result.stdout
    assert "Worker 0: [Speaker 0, Speaker 4] → GPU 0" in result.stdout
    assert "Worker 3: [Speaker 3] → GPU 1" in result.stdout


def test_the_default_is_multi_at_8_gb() -> None:
    """Whatever pool.mode says; --mode single gives one."""
    assert len(json.loads(plan("--gpu", "A:24", "--set", "pool.mode=single", "--json").stdout)["workers"]) == 2
    assert len(json.loads(plan("--gpu", "A:24", "--mode", "single", "--json").stdout)["workers"]) == 1


def test_a_gpu_too_small_gets_one_worker_and_a_warning() -> None:
    """The roomiest of them; the warning does not disturb the JSON."""
    result = plan("--gpu", "A:4", "--gpu", "B:6", "--json")
    assert json.loads(result.stdout)["workers"] == [{"worker": 0, "gpu": 1}]
    assert "out of memory" in result.stderr


def test_settings_for_this_machine_say_nothing_about_a_described_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """But --set does, being given for this very plan."""
    assert len(json.loads(plan("--gpu", "A:24", "--set", "pool.workers=5", "--json").stdout)["workers"]) == 5
    monkeypatch.setenv("FISH_MODEL_MEMORY_GB", "5.3")
    assert len(json.loads(plan("--gpu", "A:24", "--json").stdout)["workers"]) == 4


def test_this_machine_without_a_gpu_speaks_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpu is null then."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert json.loads(plan("--json").stdout)["workers"] == [{"worker": 0, "gpu": None}]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu", "RTX 4090"],
        ["--gpu", ":24"],
        ["--gpu", "A:-1"],
        ["--gpu", "A:nan"],
        ["--gpu", "A:24", "--model-memory-gb", "0"],
        ["--gpu", "A:24", "--model-memory-gb", "nan"],
        ["--mode", "many"],
        ["--speakers", "-1"],
    ],
)
def test_nonsense_exits_2(arguments: list[str]) -> None:
    """With a message that shows the right form."""
    result = plan(*arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert not result.stdout


def test_names_with_colons_and_units_are_understood() -> None:
    """The memory is what stands after the last colon."""
    result = plan("--gpu", "NVIDIA: the big one:80GB", "--json")
    assert len(json.loads(result.stdout)["workers"]) == 9

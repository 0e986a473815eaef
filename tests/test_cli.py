"""The command line as a whole: help, options before and after the command's name, mistakes, exit codes."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from daemon.cli import app

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "run",
    "demo",
    "submit",
    "srt",
    "stitch",
    "status",
    "cancel",
    "jobs",
    "plan",
    "encode",
    "embeddings",
    "doctor",
)


def dubd(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    )


def test_help_names_every_command() -> None:
    """And the exit codes, which scripts rely on."""
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_takes_config_and_set(command: str) -> None:
    """After its name; before it they belong to the whole."""
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--config" in result.output
    assert "--set" in result.output


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS), ("bench",), ("bench", "job")])
def test_help_is_whole_at_80_columns(command: tuple[str, ...]) -> None:
    """No name of an option and no line about a command is cut off."""
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for line in result.output.splitlines():
        assert len(line) <= 80, line
        assert "\N{HORIZONTAL ELLIPSIS}" not in line and not re.search(r"[a-z,]\.\.\.$", line), line


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """What takes long to import is imported by the command that needs it."""
    code = "import sys, daemon.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    loaded = set(done.stdout.split())
    heavy = {"anyio", "numpy", "soundfile", "pydantic", "watchfiles", "structlog", "rich.progress", "pynvml", "torch"}
    assert not loaded & heavy


def test_help_is_cheap(tmp_path: Path) -> None:
    """Less than 0.3 s of CPU, by the kernel's account of this very process: it does not depend on how busy the machine
    is, but takes the least of three for the caches' sake."""
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert dubd("--help", cwd=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.3


def test_version(tmp_path: Path) -> None:
    """``--version`` needs no command."""
    from daemon import __version__

    assert dubd("--version", cwd=tmp_path).stdout == f"dubd {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["no-such"], ["submit"], ["encode", "x.wav"], ["--no-such"], ["status", "extra"]]
)
def test_bad_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    """With the usage on standard error, and nothing on standard output."""
    done = dubd(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert not done.stdout


def test_every_mistake_of_the_configuration_is_told_and_exits_2(tmp_path: Path) -> None:
    """At once, from the file and from the options before and after the command's name alike."""
    config = tmp_path / "config.toml"
    config.write_text("[pool]\nworkes = 2\n")
    done = dubd(
        *("--set", "pool.mode=many", "plan", "--set", "inbox.settle_seconds=-1", "--config", str(config)), cwd=tmp_path
    )
    assert done.returncode == 2
    for told in ("pool.workes", "pool.workers", "pool.mode", "inbox.settle_seconds", "3 mistakes"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_options_count_before_and_after_the_command(tmp_path: Path) -> None:
    """Of two --set for one key the later wins, and the file named last is the one that is read."""
    small, large = tmp_path / "small.toml", tmp_path / "large.toml"
    small.write_text("[pool]\nmodel_memory_gb = 8.0\n")
    large.write_text("[pool]\nmodel_memory_gb = 20.0\n")
    arguments = ["--config", str(large), "plan", "--gpu", "A:24", "--config", str(small), "--json"]
    assert dubd(*arguments, cwd=tmp_path).stdout.count('"gpu": 0') == 2
    arguments = [
        "--set",
        "pool.model_memory_gb=12",
        "plan",
        "--gpu",
        "A:24",
        "--set",
        "pool.model_memory_gb=5.3",
        "--json",
    ]
    assert dubd(*arguments, cwd=tmp_path).stdout.count('"gpu": 0') == 4


def test_a_missing_config_file_is_told(tmp_path: Path) -> None:
    """A named file must be there."""
    done = dubd("status", "--config", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr


def test_a_reader_that_leaves_is_no_failure_of_ours(tmp_path: Path) -> None:
    """``dubd plan | head``: no traceback, and the exit code of a program that got SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "plan", "--gpu", "A:24"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
        )
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_second_daemon_on_the_same_state_is_told_so(tmp_path: Path) -> None:
    """``dubd run`` names who is there. Exit 2, as for every mistake that starting again would not mend."""
    import fcntl

    state = tmp_path / "var" / "state"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        done = dubd("run", "--set", "engine.name=silence", cwd=tmp_path)
    assert done.returncode == 2
    assert "4711" in done.stderr
    assert "Traceback" not in done.stderr

"""The doctor's look at the daemon's own Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import daemon
from daemon.doctor.machine import check_clock
from daemon.doctor.python import check_finishing, check_shadowing, check_sound_library

OURS = Path(daemon.__file__).resolve().parent


def test_another_package_called_daemon_is_found(tmp_path: Path) -> None:
    """As python-daemon's is, before ours on the path or after it; as a package or a module."""
    package, module = tmp_path / "package", tmp_path / "module"
    (package / "daemon").mkdir(parents=True)
    (package / "daemon" / "__init__.py").touch()
    module.mkdir()
    (module / "daemon.py").touch()
    for path in ([str(package), str(OURS.parent)], [str(OURS.parent), str(module)]):
        (finding,) = check_shadowing(path, OURS)
        assert finding.level == "warn"
        assert "python -m daemon" in finding.message


def test_finishing_is_loaded_where_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process, whose last words are told when it can't."""
    assert [finding.level for finding in check_finishing()] == ["ok"]
    monkeypatch.setattr("daemon.doctor.python.sys.executable", "/bin/false")
    (finding,) = check_finishing()
    assert (finding.level, "exit status 1" in finding.message) == ("warn", True)


def test_ours_alone_is_fine(tmp_path: Path) -> None:
    """Also when the path leads to it twice, or by a link."""
    (tmp_path / "link").symlink_to(OURS.parent)
    assert next(check_shadowing([str(OURS.parent), str(tmp_path / "link"), ""], OURS)).level == "ok"


def test_the_shadow_is_seen_by_the_command_itself(tmp_path: Path) -> None:
    """With the other one installed behind ours, as pip would put it."""
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "__init__.py").touch()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "daemon",
            "doctor",
            "--set",
            "engine.name=silence",
            "--set",
            f"paths.root={tmp_path}/var",
        ],
        capture_output=True,
        text=True,
        cwd=OURS.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert f"another module called daemon lies in {tmp_path}" in done.stdout


def test_the_sound_library_works() -> None:
    """In the environment of the tests it must."""
    assert [finding.level for finding in check_sound_library()] == ["ok"]


def test_a_clock_of_another_age_is_warned_of() -> None:
    """Times in manifests would mislead."""
    assert [finding.level for finding in check_clock(0.0)] == ["warn"]

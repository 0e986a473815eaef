"""A run of attacks that is interrupted leaves nothing behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.reliability.guard import MARK, marked, sweep
from tests.reliability.lives import until

ROOT = Path(__file__).resolve().parents[2]


def run_of(outer: int) -> str | None:
    """The name of the run that this process waits for, once there is one."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
            for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                if entry.startswith(f"{MARK}=".encode()):
                    return entry.split(b"=", 1)[1].decode()
    return None


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals) -> None:
    """Neither the processes that run the attacks, nor daemons, nor their workers, nor files; even when the process that
    would clear up is killed itself."""
    command = [sys.executable, "-m", "tests.reliability", "--short", "--only", "chaos"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    name = ""
    try:
        name = until(lambda: run_of(run.pid), "a run") or ""
        until(lambda: len(marked(name)) > 5, "daemons and workers", 60.0)
        run.send_signal(number)
        run.wait()
        until(lambda: not marked(name), "the end of all that was started")
        folders = [Path(tempfile.gettempdir(), name), Path("/dev/shm", name)]
        until(lambda: not any(folder.exists() for folder in folders), "the end of its files")
    finally:
        run.kill()
        run.wait()
        if name:
            sweep(name)

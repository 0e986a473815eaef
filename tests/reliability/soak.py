"""Mixed traffic for as long as is asked for, to see whether a daemon's memory stays flat.

    python -m tests.reliability.soak [--minutes 60]

Jobs of all sizes, redone, cancelled, broken and spoken before; workers that are killed now and then. Prints the memory
of the daemon over time and a verdict: the last quarter's median within GROWTH of the second quarter's. The first one is
left out: caches and indexes fill.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from tests.reliability import lives
from tests.reliability.lives import Life
from tests.reliability.scenes import Stage, dub

MIB = 1 << 20
GROWTH = 1.05
SLACK = 4 * MIB
"""What an interpreter's memory moves by on its own."""

JOBS_AT_ONCE = 6
KEPT = 40
"""Folders in the outbox: readers take the others away."""

SAMPLES = 240


def soak(folder: Path, seconds: float) -> bool:
    """Whether the memory was flat; tells as it goes."""
    stage = Stage(folder)
    settings = {"engine.name": "silence", "engine.slots": 8, "engine.options": {"wait_s": 0.01}, "pool.workers": 2}
    stage.make({**settings, "service.progress_seconds": 1.0, "service.status_seconds": 1.0})
    life = Life(stage.config, stage.log)
    samples: list[int] = []
    try:
        life.until(lambda: _status(stage).get("state") == "running", "the start")
        traffic = Traffic(stage)
        began = time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            traffic.go_on()
            if life.poll() is not None:
                print(f"the daemon ended with status {life.status}")
                return False
            if now >= len(samples) * seconds / SAMPLES:
                samples.append(resident(life.pid))
                if len(samples) % (SAMPLES // 12) == 1:
                    print(f"{now / 60:6.1f} min {samples[-1] / MIB:7.1f} MiB  {traffic.told()}", flush=True)
            time.sleep(0.02)
    finally:
        life.end()
    quarter = len(samples) // 4
    second, last = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    flat = last <= second * GROWTH + SLACK
    print(traffic.told())
    print(
        f"median of the second quarter {second / MIB:.1f} MiB, of the last {last / MIB:.1f} MiB, most "
        f"{max(samples) / MIB:.1f} MiB: {'flat' if flat else 'NOT FLAT'}"
    )
    return flat


class Traffic:
    """Keeps JOBS_AT_ONCE jobs going."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._dice = random.Random(1)
        self._going: list[str] = []
        self._ended: deque[str] = deque()
        self._number = self._jobs = self._lines = self._killed = 0

    def told(self) -> str:
        return f"{self._jobs:,} jobs, {self._lines:,} lines, {self._killed} workers killed"

    def go_on(self) -> None:
        for name in [name for name in self._going if self._over(name)]:
            self._going.remove(name)
            if (self._stage.outbox / name).exists():
                self._ended.append(name)
        while len(self._going) < JOBS_AT_ONCE:
            self._drop()
        while len(self._ended) > KEPT:
            shutil.rmtree(self._stage.outbox / self._ended.popleft(), ignore_errors=True)
        if self._dice.random() < 0.0005:
            self._kill_a_worker()

    def _drop(self) -> None:
        dice = self._dice
        self._number += 1
        self._jobs += 1
        name = f"job{self._number}"
        lines = [f"Line {dice.randrange(10**6)}." for _ in range(dice.choice((1, 1, 10, 10, 100, 500)))]
        document: dict[str, Any] = {**dub(*lines), "job_id": name}
        match dice.randrange(10):
            case 0:
                document["output"] = {"trim_silence": True}
            case 1:
                document["segments"][0]["speaker"] = "nobody"
            case 2 if self._ended:
                name = dice.choice(self._ended)
                self._ended.remove(name)
                document = {"kind": "redo", "job_id": name, "segments": "0", "seed": "new"}
            case 3:
                for segment in document["segments"]:
                    segment["text"] = "The same again."
        self._lines += len(document.get("segments", ()))
        part = self._stage.inbox / f".{name}.part"
        part.write_text(json.dumps(document), "utf-8")
        part.rename(self._stage.inbox / f"{name}.json")
        if dice.random() < 0.05:
            (self._stage.inbox / f"{name}.cancel").touch()
        self._going.append(name)

    def _over(self, name: str) -> bool:
        stage = self._stage
        if (stage.inbox / f"{name}.json").exists() or any(stage.inbox.glob(f".claimed/*/*/{name}.json")):
            return False
        for error in stage.rejected.glob(f"{name}*"):
            error.unlink(missing_ok=True)
        return True

    def _kill_a_worker(self) -> None:
        for row in _status(self._stage).get("workers", ()):
            if row["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(row["pid"], signal.SIGKILL)
                self._killed += 1
                return


def resident(pid: int) -> int:
    """Bytes that the process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _status(stage: Stage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((stage.root / "status.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    lives.preload()
    with tempfile.TemporaryDirectory(prefix="dubd-soak-") as name:
        return int(not soak(Path(name), minutes * 60))


if __name__ == "__main__":
    sys.exit(main())

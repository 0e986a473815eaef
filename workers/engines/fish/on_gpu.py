"""Everything that only a GPU can tell, in one go of some minutes, what counts most first.

    python -m workers.engines.fish.on_gpu --out FOLDER [--minutes 8]

Needs torch for CUDA, the packages of requirements/full.txt and no network: weights in the model's real shape are made
on the spot, since speed does not depend on what they say. Each measurement is a process of its own with a time limit;
FOLDER/figures.json is written anew after each, so that whatever ends the run leaves what was taken. FOLDER/log.txt
has what they said. docs/benchmarks.md says what the figures mean and where they are recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, TextIO

WORKER_GB = 8
"""A worker's share when several are on the GPU: the default of pool.model_memory_gb."""

TESTS = ("tests/workers/fish/test_kernels.py", "tests/workers/fish/test_gpu.py")


@dataclass(frozen=True)
class Measurement:
    """``arguments`` of Python; ``limit_s``: what it may take. ``processes`` of it run at the same time."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    processes: int = 1


def measurements(checkpoint: str, device: str) -> list[Measurement]:
    """All of them, in order."""

    def bench(name: str, what: str, *more: str, limit_s: float, processes: int = 1) -> Measurement:
        fixed = ("-m", "workers.engines.fish.bench", what, "--json", "--checkpoint", checkpoint, "--device", device)
        return Measurement(name, (*fixed, *more), limit_s, processes)

    alone = ("--without-stock", "--repeats", "5")

    def several(count: int) -> Measurement:
        """A job in equal parts on as many workers, each within its share of the memory."""
        name = f"job, {count} worker{'s' * (count > 1)} of {WORKER_GB} GB"
        more = (*alone, "--share", str(count), "--memory-gb", str(WORKER_GB))
        return bench(name, "job", *more, limit_s=90, processes=count)

    return [
        Measurement(
            "kernels and steps are right",
            ("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", *TESTS),
            150,
        ),
        bench("decode", "decode", "--stock-frames", "32", limit_s=150),
        bench("job", "job", *alone, limit_s=90),
        *(several(count) for count in (1, 2, 4)),
        bench("codec", "codec", limit_s=60),
        bench("load", "load", limit_s=90),
        bench("memory", "memory", limit_s=120),
        bench("decode in fp16", "decode", "--precision", "fp16", "--without-stock", limit_s=60),
        bench("job against stock", "job", "--stock-frames", "32", limit_s=150),
    ]


def run(measurement: Measurement, limit_s: float, log: TextIO) -> dict[str, Any]:
    """Its processes to their end, or the limit's; what they found."""
    log.write(f"\n--- {measurement.name}\n")
    log.flush()
    started = time.monotonic()
    command = [sys.executable, *measurement.arguments]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        for _ in range(measurement.processes)
    ]
    found: list[Any] = []
    failed = ""
    for process in processes:
        try:
            said, _ = process.communicate(timeout=max(1.0, limit_s - (time.monotonic() - started)))
        except subprocess.TimeoutExpired:
            failed = f"not over within {limit_s:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        log.write(said)
        if process.returncode and not failed:
            failed = f"status {process.returncode}"
        lines = said.strip().splitlines()
        if lines and lines[-1].startswith("{"):
            found.append(json.loads(lines[-1]))
    return {
        "name": measurement.name,
        "failed": failed,
        "seconds": round(time.monotonic() - started, 1),
        "processes": found,
    }


def summary(done: dict[str, Any]) -> str:
    """One measurement in a few lines for people; what several processes did at once is added up where it adds up."""
    lines = [f"{done['name']} ({done['seconds']:.0f} s){': ' + done['failed'] if done['failed'] else ''}"]
    processes = done["processes"]
    for place, figure in enumerate(processes[0]["results"] if processes else ()):
        values = [process["results"][place]["value"] for process in processes]
        total = sum(values) if figure["unit"] in ("xRT", "GB", "frames/s") else max(values)
        ratio = f"  {figure['ratio_to_stock']:.2f} x stock" if figure["ratio_to_stock"] else ""
        lines.append(f"  {figure['name']:60s} {total:12.3f} {figure['unit']}{ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.engines.fish.on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="where figures.json and log.txt go")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--checkpoint", help="measure this one; else one is made")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    os.makedirs(arguments.out, exist_ok=True)
    done: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        open(os.path.join(arguments.out, "log.txt"), "w", encoding="utf-8") as log,
    ):
        checkpoint = arguments.checkpoint or os.path.join(folder, "checkpoint")
        making = ("-m", "workers.engines.fish.make_checkpoint", checkpoint, "--shape", "real")
        first = [] if arguments.checkpoint else [Measurement("the checkpoint is made", making, 180)]
        for measurement in (*first, *measurements(checkpoint, arguments.device)):
            left = deadline - time.monotonic()
            if left < 5:
                print(f"no time is left for: {measurement.name}", flush=True)
                continue
            done.append(run(measurement, min(left, measurement.limit_s), log))
            print(summary(done[-1]), flush=True)
            with open(os.path.join(arguments.out, "figures.json"), "w", encoding="utf-8") as file:
                json.dump(done, file, indent=1)


if __name__ == "__main__":
    main()

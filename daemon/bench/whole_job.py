"""``dubd bench job``: a film from the inbox to its manifest, by real daemons with the fish engine, against the old way.

The old way is a process that loads the model for each job and speaks one segment at a time, as stock fish-speech
does. ``workers.engines.fish.bench`` times its load and two segments and extrapolates: the whole takes hours on a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.bench.figures import Figure
from daemon.bench.film import SEGMENT_FRAMES, film, write_voices
from daemon.bench.fish import Fish
from daemon.bench.own_daemon import OwnDaemon
from daemon.commands.invocation import Invocation

STOCK = "job, the stock way"
"""How the old way's figure begins."""


@dataclass
class WholeJob:
    """Measures in ``folder``, which is the caller's to remove."""

    folder: Path
    invocation: Invocation
    fish: Fish
    repeats: int
    workers: Sequence[int]
    without_stock: bool

    def measure(self) -> tuple[dict[str, str], list[Figure]]:
        """What it ran on, and every figure.

        Raises:
            CommandFailed: it could not be measured.
        """
        # In whole segments: what a prompt costs must not be multiplied along with the frames.
        head, alone = self.fish.measure(
            "job", repeats=self.repeats, without_stock=self.without_stock, stock_frames=SEGMENT_FRAMES
        )
        stock = next((figure.value for figure in alone if figure.name.startswith(STOCK)), None)
        figures = [Figure(f"engine alone: {one.name}", one.value, one.unit, one.ratio_to_stock) for one in alone]
        for workers in self.workers:
            figures += self.through_a_daemon(workers, stock)
        return head, figures

    def through_a_daemon(self, workers: int, stock_s: float | None) -> Iterator[Figure]:
        self.fish.tell(f"the job through a daemon with {workers} worker{'s' * (workers > 1)}")
        overrides = (
            "engine.name=fish",
            f"engine.checkpoint={self.fish.checkpoint}",
            "engine.options={mask_end = true, checks = false}",
            "engine.retries=0",
            f"pool.workers={workers}",
            "pool.replan_s=0",
            "worker.segment_timeout_s=86400",  # a slow machine is to be measured, not to be given up
            "pool.idle_release_min=0",
            "service.status_seconds=0.1",
        )
        with OwnDaemon(self.folder / f"workers{workers}", self.invocation, overrides) as daemon:
            write_voices(daemon.folder / "inbox")
            began = time.perf_counter()
            daemon.start()
            daemon.await_workers(workers)
            loaded_s = time.perf_counter() - began
            cold = daemon.run("cold", film(0))
            times = [daemon.run(f"take{take}", film(take)) for take in range(1, self.repeats + 1)]
        wall = statistics.median(one.wall_s for one in times)
        name = f"job, {workers} worker{'s' * (workers > 1)}"
        yield Figure(name, wall, "s", stock_s and stock_s / wall)
        yield Figure(name, statistics.median(one.audio_s / one.wall_s for one in times), "xRT")
        yield Figure(f"{name}, first WAV", statistics.median(one.first_wav_s for one in times), "s")
        whole = loaded_s + cold.wall_s
        yield Figure(f"{name}, from the start of the daemon", whole, "s", stock_s and stock_s / whole)

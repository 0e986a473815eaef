"""Speaker embeddings: against the bound that only reads, and against a plain pool of equal splits."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio

import workers.protocol
from daemon.bench.figures import Figure, Tell
from daemon.commands.invocation import CommandFailed
from daemon.core.dealing import Speaker
from daemon.embeddings.computation import Computation, Listener, Options, Places, Report
from daemon.embeddings.corpus import Corpus

EVEN = ("2000x20",)
SKEWED = ("4x5000", "1000x20")
"""Four speakers of 5,000 utterances, next to each other as names are."""

SMALL = ("200x20",)


class Embeddings:
    """``processes``: how many to compare with one."""

    def __init__(self, folder: Path, tell: Tell, repeats: int, processes: int) -> None:
        self._folder = folder
        self._tell = tell
        self._repeats = repeats
        self._processes = processes

    def measure(self) -> Iterator[Figure]:
        many = self._processes
        for name, sizes in (("even", EVEN), ("skewed", SKEWED)):
            corpus = self._make(name, sizes)
            speakers, utterances = _numbers(sizes)
            what = f"embeddings, {name} ({speakers:,} speakers, {utterances:,} utterances)"
            # One after the other, so that what else the machine does falls on all alike.
            times: list[tuple[float, ...]] = []
            for turn in range(self._repeats):
                self._tell(f"{what}, turn {turn + 1} of {self._repeats}")
                runs = (
                    partial(self._read, corpus),
                    partial(self._pool, corpus),
                    partial(self._compute, corpus, many),
                    partial(self._compute, corpus, 1),
                )
                times.append(tuple(_from_disk(corpus, run) for run in runs))
            bound, pool, ours, one = (statistics.median(column) for column in zip(*times, strict=True))
            yield Figure(f"{what}, {many} processes", utterances / ours, "utterances/s", pool / ours)
            yield Figure(f"{what}, 1 process", utterances / one, "utterances/s")
            yield Figure(f"{what}, the plain pool of {many}", utterances / pool, "utterances/s", 1.0)
            yield Figure(f"{what}, only read and unpickled by {many}", utterances / bound, "utterances/s")
            yield Figure(f"{what}, {many} processes over 1", one / ours, "×")
            yield Figure(f"{what}, share of the bound", 100 * bound / ours, "%")
        self._tell("memory")
        yield Figure("embeddings, memory at 200 speakers", self._memory(self._make("small", SMALL)), "MB")
        yield Figure("embeddings, memory at 2,000 speakers", self._memory(self._folder / "even"), "MB")

    def _make(self, name: str, sizes: tuple[str, ...]) -> Path:
        self._tell(f"making the {name} corpus")
        corpus = self._folder / name
        self._run("make", str(corpus), *sizes)
        os.sync()  # what is not on disk yet can't be taken out of memory
        return corpus

    def _run(self, *arguments: str) -> float:
        """Seconds that the script took, its start included, as for our own processes."""
        root = Path(workers.protocol.__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "workers.embeddings.bench", *arguments]
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise CommandFailed(f"the {arguments[0]} of the bench has failed:\n{done.stderr.strip()}")
        return time.perf_counter() - begun

    def _read(self, corpus: Path) -> float:
        return self._run("bound", str(corpus), str(self._processes))

    def _pool(self, corpus: Path) -> float:
        output = self._folder / "of_pool"
        seconds = self._run("pool", str(corpus), str(self._processes), str(output))
        shutil.rmtree(output)
        return seconds

    def _compute(self, corpus: Path, processes: int) -> float:
        output = self._folder / "ours"
        failed: list[Report] = []

        def places(speaker: Speaker) -> Places:
            return Places(f"{output}/{speaker.dataset}/{speaker.name}.pkl")

        def hear(report: Report) -> None:
            if report.status != "ok":
                failed.append(report)

        begun = time.perf_counter()
        opened = Corpus(corpus, allowed_roots=None)
        try:
            anyio.run(Computation(opened, Options(processes), places, Listener(hear)).run)
        finally:
            opened.close()
        seconds = time.perf_counter() - begun
        shutil.rmtree(output)
        if failed:
            raise CommandFailed(f"{len(failed)} speakers have failed: {failed[0].message}")
        return seconds

    def _memory(self, corpus: Path) -> float:
        """The most that the command itself held, in MB; its processes hold what one speaker needs."""
        output = self._folder / "for_memory"
        command = [sys.executable, "-m", "daemon", "embeddings", "--config", os.devnull]
        command += ["--utterances_dir", str(corpus), "--speakers_dir", str(output)]
        root = Path(workers.protocol.__file__).parent.parent
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise CommandFailed("dubd embeddings has failed")
        shutil.rmtree(output)
        return usage.ru_maxrss / 1024


def _from_disk(corpus: Path, run: Callable[[], float]) -> float:
    """Run it with the corpus's files out of the page cache: a corpus is larger than memory, or read for the first
    time."""
    for folder, _, names in os.walk(corpus):
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    return run()


def _numbers(sizes: tuple[str, ...]) -> tuple[int, int]:
    """Speakers and utterances of a corpus."""
    pairs = [tuple(map(int, size.split("x"))) for size in sizes]
    return sum(count for count, _ in pairs), sum(count * each for count, each in pairs)

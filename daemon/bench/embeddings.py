"""Speaker embeddings: against the bound that only reads, and against a plain pool of equal splits."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel

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


@dataclass
class Cost:
    """Of one run: seconds on the clock, and of all its processes on the processors."""

    seconds: float = 0.0
    cpu_s: float = 0.0


class Embeddings:
    """``processes``: how many to compare with one."""

    def __init__(self, folder: Path, tell: Tell, repeats: int, processes: int) -> None:
        self._folder = folder
        self._tell = tell
        self._repeats = repeats
        self._processes = processes
        self._outputs = 0

    def measure(self) -> Iterator[Figure]:
        many = self._processes
        anyio.run(anyio.lowlevel.checkpoint)  # imports the event loop, which is no part of a run
        for name, sizes in (("even", EVEN), ("skewed", SKEWED)):
            corpus = self._make(name, sizes)
            speakers, utterances = _numbers(sizes)
            what = f"embeddings, {name} ({speakers:,} speakers, {utterances:,} utterances)"
            runs: list[Callable[[], Cost]] = [
                partial(self._read, corpus),
                partial(self._pool, corpus),
                partial(self._compute, corpus, many),
                partial(self._compute, corpus, 1),
            ]
            costs: list[list[Cost]] = [[] for _ in runs]
            # In turns, so that what else the machine does falls on all alike, and each comes first at times.
            for turn in range(self._repeats):
                self._tell(f"{what}, turn {turn + 1} of {self._repeats}")
                for place in range(len(runs)):
                    which = (turn + place) % len(runs)
                    costs[which].append(_from_disk(corpus, runs[which]))
            bound, pool, ours, one = (statistics.median(cost.seconds for cost in column) for column in costs)
            least, usual, cpu, _ = (statistics.median(cost.cpu_s for cost in column) for column in costs)
            yield Figure(f"{what}, {many} processes", utterances / ours, "utterances/s", pool / ours)
            yield Figure(f"{what}, 1 process", utterances / one, "utterances/s")
            yield Figure(f"{what}, the plain pool of {many}", utterances / pool, "utterances/s", 1.0)
            yield Figure(f"{what}, only read and unpickled by {many}", utterances / bound, "utterances/s")
            yield Figure(f"{what}, {many} processes over 1", one / ours, "×")
            yield Figure(f"{what}, share of the bound", 100 * bound / ours, "%")
            yield Figure(f"{what}, processor, {many} processes", 1e6 * cpu / utterances, "µs/utterance", usual / cpu)
            yield Figure(f"{what}, processor, the plain pool of {many}", 1e6 * usual / utterances, "µs/utterance", 1.0)
            yield Figure(f"{what}, processor, only read and unpickled", 1e6 * least / utterances, "µs/utterance")
        self._tell("memory")
        yield Figure("embeddings, memory at 200 speakers", self._memory(self._make("small", SMALL)), "MB")
        yield Figure("embeddings, memory at 2,000 speakers", self._memory(self._folder / "even"), "MB")

    def _make(self, name: str, sizes: tuple[str, ...]) -> Path:
        self._tell(f"making the {name} corpus")
        corpus = self._folder / name
        self._run("make", str(corpus), *sizes)
        os.sync()  # what is not on disk yet can't be taken out of memory
        return corpus

    def _run(self, *arguments: str) -> Cost:
        """The script, its start included, as for our own processes."""
        root = Path(workers.protocol.__file__).parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "workers.embeddings.bench", *arguments]
        with _measured() as cost:
            done = subprocess.run(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        if done.returncode:
            raise CommandFailed(f"the {arguments[0]} of the bench has failed:\n{done.stderr.strip()}")
        return cost

    def _read(self, corpus: Path) -> Cost:
        return self._run("bound", str(corpus), str(self._processes))

    def _pool(self, corpus: Path) -> Cost:
        return self._run("pool", str(corpus), str(self._processes), str(self._output()))

    def _output(self) -> Path:
        """A folder that is not there yet. None is removed before all have been measured: on ext4, for a minute after
        files were removed, every new one beside them costs twenty times as much."""
        self._outputs += 1
        return self._folder / f"output_{self._outputs}"

    def _compute(self, corpus: Path, processes: int) -> Cost:
        output = self._output()
        failed: list[Report] = []

        def places(speaker: Speaker) -> Places:
            return Places(f"{output}/{speaker.dataset}/{speaker.name}.pkl")

        def hear(report: Report) -> None:
            if report.status != "ok":
                failed.append(report)

        with _measured() as cost:
            opened = Corpus(corpus, allowed_roots=None)
            try:
                anyio.run(Computation(opened, Options(processes), places, Listener(hear)).run)
            finally:
                opened.close()
        if failed:
            raise CommandFailed(f"{len(failed)} speakers have failed: {failed[0].message}")
        return cost

    def _memory(self, corpus: Path) -> float:
        """The most that the command itself held, in MB; its processes hold what one speaker needs."""
        output = self._output()
        command = [sys.executable, "-m", "daemon", "embeddings", "--config", os.devnull]
        command += ["--utterances_dir", str(corpus), "--speakers_dir", str(output)]
        root = Path(workers.protocol.__file__).parent.parent
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL) as child:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise CommandFailed("dubd embeddings has failed")
        return usage.ru_maxrss / 1024


@contextmanager
def _measured() -> Iterator[Cost]:
    cost = Cost()
    begun, cpu = time.perf_counter(), _cpu_s()
    yield cost
    cost.seconds, cost.cpu_s = time.perf_counter() - begun, _cpu_s() - cpu


def _cpu_s() -> float:
    """Of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _from_disk(corpus: Path, run: Callable[[], Cost]) -> Cost:
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

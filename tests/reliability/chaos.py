"""Chaos: jobs flow through real daemons while these and their workers are killed, stopped and starved.

A *night* is one daemon's folders, over all lives of the daemon: jobs are dropped, some of them twice, and at random
instants of a seed something strikes. When it has struck often enough everything must come to its end, and what came is
compared with a quiet night of the same jobs: every segment the same, byte for byte. A witness in the daemon's disk
writes down each WAV that it stores, and at each death of the daemon the journals are read: what they call finished is
never stored again.

    python -m tests.reliability --only chaos [--set pool.backend=...]
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon import files
from daemon.intake import WHATEVER_SIZE
from daemon.journal import read_journal
from daemon.live_job import LiveJob
from tests.reliability.guard import die_with_parent, kill_marked
from tests.reliability.lives import Life, NotSurvived, hurry, preload, until
from tests.reliability.scarcity import Scarcity
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row

LANES = 2
PATIENCE_S = 180.0
MEAN_PAUSE_S = 0.08
"""Between two strikes."""

MOST_OUTSTANDING = 3
"""Jobs that are dropped and not over."""

LONGEST_STOP_S = 1.5
HALF_WRITTEN = re.compile(r"\.[0-9a-f]+-[0-9a-f]{12}\.part")
"""What the last daemon was writing when it was killed; the next one to start removes it."""

MEMORY_LEFT = 4 << 20
"""Bytes of address space that a starved process may still take, at most."""

NIGHT: dict[str, Any] = {
    "pool.workers": 2,
    # What kills at random kills the same segment alone too: here no segment is to blame, however often it is hit.
    "pool.tries": 100,
    "pool.breaker_crashes": 1000,
    "engine.retries": 0,
    "worker.beat_seconds": 0.2,
    "worker.beat_timeout_s": 1.0,
    "worker.load_timeout_s": 10.0,
    "worker.segment_timeout_s": 10.0,
    "service.status_seconds": 0.1,
    "service.progress_seconds": 0.2,
    "inbox.watch": True,
}

ENGINES: dict[str, dict[str, Any]] = {
    "listening": {"engine.name": "listening:Listening", "engine.options": {"wait_s": 0.02}},
    "draft": {"engine.name": "draft", "engine.options": {}},
}

STORED = re.compile(r"/jobs/([0-9]{20}-[0-9a-f]{8})/segments/([0-9]+)\.\w+\Z")


class Witness(files.Disk):
    """Writes down every finished WAV that comes under its lasting name in state/, once it has."""

    def __init__(self, report: Path) -> None:
        self._report = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        if stored := STORED.search(str(target)):
            os.write(self._report, f"{stored[1]} {stored[2]}\n".encode("ascii"))


@dataclass(frozen=True, slots=True)
class Plot:
    """What is to be of a night. ``settings`` of the daemon, beside those of NIGHT and ENGINES."""

    seed: int
    engine: str
    daemon_kills: int
    worker_kills: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def all_settings(self) -> dict[str, Any]:
        return {**NIGHT, **ENGINES[self.engine], **dict(self.settings)}


@dataclass(slots=True)
class Outcome:
    """``struck``: how often by what. ``problem``: what did not hold, None if all did."""

    plot: Plot
    struck: Counter[str]
    segments: int = 0
    lives: int = 0
    problem: str | None = None


def lines_of(seed: int, job: int) -> list[str]:
    """The texts of a job of a night; no two jobs have one in common."""
    dice = random.Random(f"{seed}/{job}")
    words = ("rain", "north", "window", "seven", "slowly", "lamp", "answer", "river", "never", "clock")
    lines = [
        f"Line {number} of job {job}: {' '.join(dice.choices(words, k=4))}." for number in range(dice.randint(4, 20))
    ]
    lines[dice.randrange(len(lines))] = ""
    return lines


class Night:
    """See the module's text."""

    def __init__(self, folder: Path, plot: Plot) -> None:
        self._plot = plot
        self._dice = random.Random(plot.seed)
        self._stage = Stage(folder)
        self._stored = folder / "stored"
        self._life: Life
        self._scarcity = Scarcity(f"dubd-{os.getpid()}-{plot.seed}")
        self._drops: Counter[str] = Counter()
        self._jobs = 0
        self._to_release: list[tuple[float, Callable[[], None]]] = []
        self._finished: list[tuple[int, set[tuple[str, int]]]] = []
        """At each death of the daemon: lines of the witness so far, and what the journals called finished."""
        self.struck: Counter[str] = Counter()
        self.lives = 0
        self.segments = 0

    # --- the night ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises NotSurvived: a promise was broken."""
        self._stage.make(self._plot.all_settings)
        self._start()
        kills, killed_at = 0, time.monotonic()
        try:
            while not self._struck_enough():
                killed = self.struck["daemon killed"] + self.struck["worker killed"]
                if killed > kills:
                    kills, killed_at = killed, time.monotonic()
                elif time.monotonic() - killed_at > PATIENCE_S:
                    raise NotSurvived(f"nobody to kill for {PATIENCE_S:g} s: the daemon hangs: {self._stage.root}")
                self._keep_jobs_flowing()
                time.sleep(min(1.0, self._dice.expovariate(1 / MEAN_PAUSE_S)))
                self._release(time.monotonic())
                self._strike()
            self._release(float("inf"))
            self._let_end()
            self._life.kill()
        finally:
            self._life.end()
            if kills := self._scarcity.kills:
                self.struck["worker out of memory"] = kills
            self._scarcity.remove()
        self._check()

    def run_quietly(self, drops: Mapping[str, int]) -> None:
        """The same jobs with nothing that goes wrong."""
        self._stage.make(self._plot.all_settings)
        self._start()
        try:
            for name in drops:
                self._drop(name)
            self._let_end()
        finally:
            self._life.end()

    def _start(self) -> None:
        def prepare() -> None:
            hurry()
            files.disk = Witness(self._stored)
            os.environ["TMPDIR"] = tempfile.tempdir = str(self._stage.folder / "tmp")
            os.environ["HOME"] = str(self._stage.folder / "home")

        for name in ("tmp", "home"):
            (self._stage.folder / name).mkdir(exist_ok=True)
        self._life = Life(self._stage.config, self._stage.log, prepare)
        self.lives += 1

    def _struck_enough(self) -> bool:
        plot = self._plot
        return self.struck["daemon killed"] >= plot.daemon_kills and self.struck["worker killed"] >= plot.worker_kills

    def _keep_jobs_flowing(self) -> None:
        over = [name for name in self._drops if self._is_over(name)]
        if len(self._drops) - len(over) >= MOST_OUTSTANDING:
            return
        if over and self._dice.random() < 0.1:
            self._drop(self._dice.choice(over))
            return
        self._drop(f"job_{self._jobs}")
        self._jobs += 1

    def _drop(self, name: str) -> None:
        texts = lines_of(self._plot.seed, int(name.removeprefix("job_")))
        self._drops[name] += 1
        self.segments += len(texts)
        part = self._stage.inbox / f".{name}.part"
        part.write_text(json.dumps(dub(*texts)), "utf-8")
        until(lambda: not (self._stage.inbox / f"{name}.json").exists(), "the taking of an earlier job", PATIENCE_S)
        part.rename(self._stage.inbox / f"{name}.json")

    def _is_over(self, name: str) -> bool:
        return len(list((self._stage.outbox / name).glob("manifest*.json"))) == self._drops[name]

    def _let_end(self) -> None:
        def all_over() -> bool:
            if self._life.poll() is not None:
                self._daemon_died()
            return all(map(self._is_over, self._drops)) and self._stage.clear_of_work()

        try:
            until(all_over, "the end of all jobs", PATIENCE_S)
        except NotSurvived as error:
            left = [name for name in self._drops if not self._is_over(name)]
            raise NotSurvived(f"{error}; left are {left}: {self._stage.root}") from error

    # --- what strikes ---------------------------------------------------------------------------------------

    def _strike(self) -> None:
        if self._life.poll() is not None:
            self._daemon_died()
            return
        plot, struck = self._plot, self.struck
        missing_daemons = plot.daemon_kills - struck["daemon killed"]
        missing_workers = plot.worker_kills - struck["worker killed"]
        odds = {
            self._kill_daemon: max(missing_daemons, 0),
            self._kill_worker: max(missing_workers, 0),
            self._stop_worker: 0.1 * plot.worker_kills,
            self._starve_worker: 0.05 * plot.worker_kills,
            self._exhaust_worker: 0.05 * plot.worker_kills if self._scarcity.available else 0,
            self._stop_daemon: 0.1 * plot.daemon_kills,
            self._starve_daemon: 0.1 * plot.daemon_kills,
        }
        self._dice.choices(list(odds), list(odds.values()))[0]()

    def _kill_daemon(self) -> None:
        os.kill(self._life.pid, signal.SIGKILL)
        # A worker that was stopped before it had tied its life to the daemon's must move to see that this one is gone.
        self._release(float("inf"))
        self._life.kill()
        self.struck["daemon killed"] += 1
        self._take_stock()
        self._start()

    def _daemon_died(self) -> None:
        """By itself, which only one that was starved may do; the service manager would start it again."""
        status = self._life.poll()
        if not self.struck["daemon starved"]:
            raise NotSurvived(f"the daemon ended with {status}")
        self.struck["daemon gave up, starved"] += 1
        self._release(float("inf"))
        until(lambda: not self._life.group_lives(), "the end of what the dead daemon had started")
        self._life.end()
        self._take_stock()
        self._start()

    def _kill_worker(self) -> None:
        worker = self._some_worker()
        if worker is not None and kill_marked(worker, signal.SIGKILL):
            self.struck["worker killed"] += 1

    def _stop_worker(self) -> None:
        worker = self._some_worker()
        if worker is not None and kill_marked(worker, signal.SIGSTOP):
            self.struck["worker stopped"] += 1
            self._later(lambda: kill_marked(worker, signal.SIGCONT))

    def _stop_daemon(self) -> None:
        life = self._life
        os.kill(life.pid, signal.SIGSTOP)
        self.struck["daemon stopped"] += 1
        time.sleep(self._dice.uniform(0.0, LONGEST_STOP_S))
        os.kill(life.pid, signal.SIGCONT)

    def _starve_worker(self) -> None:
        worker = self._some_worker()
        if worker is not None and self._starve(worker):
            self.struck["worker starved"] += 1

    def _starve_daemon(self) -> None:
        if self._starve(self._life.pid):
            self.struck["daemon starved"] += 1

    def _starve(self, pid: int) -> bool:
        """For a while it gets hardly any more memory: its allocations fail."""
        with contextlib.suppress(OSError):
            holds = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[0]) * resource.getpagesize()
            _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (holds + self._dice.randrange(MEMORY_LEFT), hard))

            def feed() -> None:
                with contextlib.suppress(OSError):
                    resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))

            self._later(feed)
            return True
        return False

    def _exhaust_worker(self) -> None:
        """The kernel kills it for want of memory, where we may limit that."""
        worker = self._some_worker()
        if worker is not None:
            self._scarcity.put(worker)

    def _later(self, release: Callable[[], Any]) -> None:
        self._to_release.append((time.monotonic() + self._dice.uniform(0.0, LONGEST_STOP_S), release))

    def _release(self, now: float) -> None:
        for at, release in list(self._to_release):
            if at <= now:
                self._to_release.remove((at, release))
                release()

    def _some_worker(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            status = json.loads((self._stage.root / "status.json").read_bytes())
            pids = [row["pid"] for row in status["workers"] if row["pid"] is not None]
            if pids and status["pid"] == self._life.pid:
                return int(self._dice.choice(pids))
        return None

    # --- what must be true ----------------------------------------------------------------------------------

    def _take_stock(self) -> None:
        """Nothing runs now: what is finished, and how many WAVs have been stored for it."""
        stored = self._stored.read_bytes().count(b"\n") if self._stored.exists() else 0
        finished = {
            (folder.name, record["p"])
            for folder in self._stage.jobs.glob("[0-9]*")
            for record in read_journal(folder / "journal.jsonl")
            if record["t"] == "ok"
        }
        self._finished.append((stored, finished))

    def _check(self) -> None:
        stored = [line.split() for line in self._stored.read_text("ascii").splitlines()]
        lives = [0, *(count for count, _ in self._finished), len(stored)]
        for start, end in itertools.pairwise(lives):
            twice = [name for name, count in Counter(map(tuple, stored[start:end])).items() if count > 1]
            if twice:
                raise NotSurvived(f"stored twice in one life: {twice}")
        if damaged := [path.name for path in self._stage.root.glob("state/damaged/*")]:
            raise NotSurvived(f"put aside as damaged: {damaged}")
        for count, finished in self._finished:
            if again := finished & {(token, int(position)) for token, position in stored[count:]}:
                raise NotSurvived(f"stored again although it was finished: {again}")
        if unwanted := [path.name for path in self._stage.rejected.iterdir()]:
            raise NotSurvived(f"rejected: {unwanted}")
        for name, count in self._drops.items():
            if not self._is_over(name):
                raise NotSurvived(f"{name} was dropped {count} times; its manifests are other than that many")
        if escaped := [*(self._stage.folder / "tmp").iterdir(), *(self._stage.folder / "home").iterdir()]:
            raise NotSurvived(f"outside of the folders: {escaped}")
        known = {"inbox", "outbox", "rejected", "state", "status.json", "status.html"}
        there = {path.name for path in self._stage.root.iterdir()}
        if strange := {name for name in there - known if not HALF_WRITTEN.fullmatch(name)}:
            raise NotSurvived(f"among the folders: {strange}")

    def compare_with(self, quiet: Night) -> None:
        """Raises NotSurvived: the results are other than those of the quiet night."""
        for name in self._drops:
            loud, calm = self._results(name), quiet._results(name)
            if loud != calm:
                raise NotSurvived(f"{name} is other than in the quiet night: {first_difference(loud, calm)}")

    def log_end(self) -> str:
        log = self._stage.log
        return "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]) if log.exists() else ""

    @property
    def drops(self) -> Counter[str]:
        return self._drops

    def _results(self, name: str) -> dict[str, Any]:
        """The manifest without what depends on the course of things, with the files' contents."""
        folder = self._stage.outbox / name
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        # Which earlier manifest was moved aside depends on how many of the drops came together.
        manifest.pop("earlier", None)
        del manifest["timings"], manifest["counts"]["cached"]
        for segment in manifest["segments"]:
            for key in ("attempts", "worker", "device", "generate_s", "cached"):
                del segment[key]
            if segment["file"] is not None:
                segment["content"] = hashlib.sha256((folder / segment["file"]).read_bytes()).hexdigest()
                if segment["content"] != segment["sha256"]:
                    raise NotSurvived(f"{name}/{segment['file']} is not what the manifest says")
        return manifest


def first_difference(one: Any, other: Any, path: str = "$") -> str:
    """Where two trees of JSON differ first."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if one[key] != other[key])
        return first_difference(one[key], other[key], f"{path}.{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        place = next(place for place in range(len(one)) if one[place] != other[place])
        return first_difference(one[place], other[place], f"{path}[{place}]")
    return f"{path} is {str(one)[:300]}, not {str(other)[:300]}"


def run_night(folder: Path, plot: Plot) -> Outcome:
    """A night, its quiet twin, and the comparison."""
    loud, quiet = Night(folder / "loud", plot), Night(folder / "quiet", plot)
    outcome = Outcome(plot, loud.struck)
    try:
        loud.run()
        quiet.run_quietly(loud.drops)
        loud.compare_with(quiet)
    except NotSurvived as error:
        outcome.problem = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a check stumbles over is a finding
        outcome.problem = f"{type(error).__name__}: {error}"
    outcome.segments, outcome.lives = loud.segments, loud.lives
    if outcome.problem is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.problem += "\n" + loud.log_end()
    return outcome


# --- poison -------------------------------------------------------------------------------------------------

NEIGHBOURS = 50
TRIES = 3
MOST_LIVES = 14
"""Of a daemon that one or two segments kill: once beside others, three times alone, each; and some."""

POISON: dict[str, Any] = {
    **NIGHT,
    "engine.name": "poisonous:Poisonous",
    "engine.slots": 4,
    "pool.tries": TRIES,
    "service.status_seconds": 5.0,
}


class Poisoned:
    """A job of fifty innocent lines and one or two that kill what speaks them."""

    def __init__(self, folder: Path, seed: int, settings: Mapping[str, Any]) -> None:
        dice = random.Random(seed)
        self._stage = Stage(folder)
        lock = self._stage.root / "state" / "lock"
        self._settings = {**POISON, "engine.options": {"lock": str(lock), "wait_s": 0.005}, **settings}
        # Of three that each kill the daemon an innocent one may go along; see what is not promised.
        kinds = [("{kill-worker}",), ("{kill-daemon}",), ("{kill-daemon}", "{kill-worker}"), ("{kill-daemon}",) * 2]
        self._texts = [f"An innocent line, number {number}." for number in range(NEIGHBOURS)]
        for number, kind in enumerate(kinds[seed % len(kinds)]):
            self._texts.insert(dice.randrange(len(self._texts) + 1), f"Poison {number} {kind}")
        self.daemon_deaths = 0
        self.worker_deaths = sum(TRIES + 1 for text in self._texts if "{kill-worker}" in text)

    def run(self) -> None:
        """Raises NotSurvived: a promise was broken."""
        stage = self._stage
        stage.make(self._settings)
        (stage.inbox / "scene.json").write_text(json.dumps(dub(*self._texts)), "utf-8")
        for _ in range(MOST_LIVES):
            life = Life(stage.config, stage.log, hurry)
            try:
                until(lambda: life.poll() is not None or stage.manifest() is not None, "the end of the job", PATIENCE_S)  # noqa: B023
                if life.poll() is None:
                    break
                until(lambda: not life.group_lives(), "the end of what the dead daemon had started")  # noqa: B023
            finally:
                life.end()
            self.daemon_deaths += 1
            self._check_charges()
        else:
            raise NotSurvived(f"the daemon was killed {MOST_LIVES} times")
        manifest = stage.manifest()
        assert manifest is not None
        for segment in manifest["segments"]:
            code = None if segment["error"] is None else segment["error"]["code"]
            poison = segment["text"].startswith("Poison")
            if (segment["status"], code) != (("failed", "worker_died") if poison else ("ok", None)):
                raise NotSurvived(f"{segment['text']} is {segment['status']}, {code}")
            if poison and segment["attempts"] < TRIES:
                raise NotSurvived(f"{segment['text']} was given up after {segment['attempts']} attempts")

    def _check_charges(self) -> None:
        """Only what was out alone when the daemon died is charged, and an innocent line once by each of those who kill
        it."""
        killers = sum("{kill-daemon}" in text for text in self._texts)
        for folder in self._stage.jobs.glob("[0-9]*"):
            for live in LiveJob.open(folder, WHATEVER_SIZE).segments:
                if live.status == "waiting" and "Poison" not in live.segment.text and live.tries > killers:
                    raise NotSurvived(f"{live.segment.text} is charged {live.tries} tries")


# --- all of it ----------------------------------------------------------------------------------------------


def _become_lane() -> None:
    die_with_parent()
    preload()


def _run_night(base: Path, plot: Plot) -> Outcome:
    return run_night(base / f"night-{plot.engine}-{plot.seed}", plot)


def _run_poisoned(base: Path, seed: int, settings: Mapping[str, Any]) -> tuple[int, int, int, str | None]:
    poisoned = Poisoned(base / f"poisoned-{seed}", seed, settings)
    problem = None
    try:
        poisoned.run()
    except Exception as error:  # noqa: BLE001 - whatever a check stumbles over is a finding
        problem = f"{type(error).__name__}: {error}"
    return seed, poisoned.daemon_deaths, poisoned.worker_deaths, problem


def plots(share: float, settings: Mapping[str, Any]) -> list[Plot]:
    """Nights whose kills add up to 310 of the daemon and 1,010 of workers, or a share of that."""
    nights = max(1, round(10 * share))
    small = max(1, round(2 * share))
    given = tuple(settings.items())

    def part(whole: int, among: int) -> int:
        return max(1, round(whole * share / among))

    return [
        *(Plot(seed, "listening", part(250, nights), part(850, nights), given) for seed in range(nights)),
        *(Plot(seed, "draft", part(60, small), part(160, small), given) for seed in range(100, 100 + small)),
    ]


def attacks(share: float = 1.0, settings: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """All of it, or a part of each. ``settings``: of the daemon, by TABLE.KEY, beside ours."""
    settings = settings or {}
    base = Path(tempfile.mkdtemp(prefix="dubd-chaos-"))
    context = multiprocessing.get_context("spawn")
    struck: Counter[str] = Counter()
    try:
        with ProcessPoolExecutor(LANES, context, initializer=_become_lane) as lanes:
            nights = [lanes.submit(_run_night, base, plot) for plot in plots(share, settings)]
            poisoned = [lanes.submit(_run_poisoned, base, seed, settings) for seed in range(max(2, round(16 * share)))]
            for engine in ENGINES:
                outcomes = [night.result() for night in nights]
                outcomes = [outcome for outcome in outcomes if outcome.plot.engine == engine]
                for outcome in outcomes:
                    struck += outcome.struck
                    if outcome.problem is not None:
                        print(f"chaos: {outcome.plot}: {outcome.problem}", file=sys.stderr, flush=True)
                survived = sum(outcome.problem is None for outcome in outcomes)
                note = (
                    f"{sum(outcome.segments for outcome in outcomes):,} segments as in the quiet nights, "
                    f"{sum(outcome.lives for outcome in outcomes):,} lives of the daemon"
                )
                yield Row(f"chaos: nights with the {engine} engine", len(outcomes), survived, note)
            spoiled = bool([night for night in nights if night.result().problem is not None])
            for name in sorted(struck):
                # A strike survives when its night does.
                yield Row(f"chaos: {name}", struck[name], 0 if spoiled else struck[name])
            results = [run.result() for run in poisoned]
            for seed, *_, problem in results:
                if problem is not None:
                    print(f"poison, seed {seed}: {problem}", file=sys.stderr, flush=True)
            daemons, workers = sum(result[1] for result in results), sum(result[2] for result in results)
            note = f"killed the daemon {daemons} times, workers {workers} times; {NEIGHBOURS} neighbours each"
            yield Row("chaos: jobs with poison in them", len(results), sum(r[3] is None for r in results), note)
    finally:
        shutil.rmtree(base, ignore_errors=True)

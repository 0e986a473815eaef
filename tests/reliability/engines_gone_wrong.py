"""Engines that misbehave: each of their segments ends, with a reason that is true, and their neighbours are spoken.

Which habits come together in a job, and in what order, is drawn by a seed. Afterwards nothing that an engine has
started is left running, and the log has stayed small.

python -m tests.reliability --only engines
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.reliability.engines.astray import HABITS
from tests.reliability.lives import Life, NotSurvived, hurry, preload
from tests.reliability.scenes import Stage, drop, dub
from tests.reliability.table import Row

PATIENCE_S = 120.0
TOGETHER = 5
MOST_LOG_BYTES = 1 << 20
LIES = ("stopped as it was told", "could not be loaded")

LOADS = ("raise", "raise-huge", "sys-exit", "exit-0", "exit-3", "crash", "fork-exit", "recurse", "close-all")
"""Habits of which an engine dies while it loads."""


def _settings(**more: Any) -> dict[str, Any]:
    return {
        "engine.name": "astray:Astray",
        "engine.options": {},
        "engine.retries": 0,
        "pool.tries": 2,
        "pool.breaker_crashes": 1000,
        "worker.segment_timeout_s": 2.0,
        "worker.beat_seconds": 0.2,
        "worker.beat_timeout_s": 3.0,
        **more,
    }


def attack_with_habits(seed: int, habits: list[str], folder: Path) -> list[str]:
    """One job of lines that make the engine misbehave among honest ones; what was wrong, by habit."""
    stage = Stage(folder / f"habits-{seed}")
    stage.make(_settings(**{"pool.workers": 1 + seed % 2}))
    lines = [text for habit in habits for text in (f"Said with {{{habit}}}.", f"An honest line after {habit}.")]
    drop(stage, dub(*lines))
    life = Life(stage.config, stage.log, hurry)
    try:
        life.until(
            lambda: life.poll() is not None or (stage.manifest() and stage.clear_of_work()), "the job", PATIENCE_S
        )
        if life.poll() is not None:
            raise NotSurvived(f"the daemon ended with {life.poll()}: {stage.log.read_text()[-1500:]}")
        life.kill()  # alone: what the engines have started must end by itself
        problems = []
        manifest = stage.manifest()
        assert manifest is not None
        for habit, bad, honest in zip(habits, manifest["segments"][::2], manifest["segments"][1::2], strict=True):
            if honest["status"] != "ok":
                problems.append(f"{habit}: the line after it: {honest['error']}")
            message = (bad["error"] or {}).get("message", "")
            if bad["status"] == "failed" and (not message or any(lie in message for lie in LIES)):
                problems.append(f"{habit}: it failed with {bad['error']}")
            elif bad["status"] not in ("ok", "failed"):
                problems.append(f"{habit}: it is {bad['status']}")
        if (size := stage.log.stat().st_size) > MOST_LOG_BYTES:
            problems.append(f"{habits}: the log has {size:,} bytes")
        return problems
    except NotSurvived as error:
        return [f"{habits}: {error}"]
    finally:
        life.end()
        stage.clear()


def attack_loading(habit: str, folder: Path) -> str | None:
    """An engine that dies while it loads: the daemon says so, truly, and stops when told."""
    stage = Stage(folder / f"load-{habit}")
    stage.make(_settings(**{"engine.options": {"load": habit}}))
    stage.log.touch()
    life = Life(stage.config, stage.log, hurry)
    try:
        life.until(lambda: life.poll() is not None or stage.log.read_text().count("worker has ended") > 1, "two ends")
        if life.poll() is not None:
            raise NotSurvived(f"the daemon ended with {life.poll()}")
        said = [line for line in stage.log.read_text().splitlines() if "worker has ended" in line]
        if any(lie in line for line in said for lie in LIES[:1]):
            raise NotSurvived(said[0])
        life.kill()
        return None
    except NotSurvived as error:
        return f"loading with {habit}: {error}"
    finally:
        life.end()
        stage.clear()


def attacks(share: float = 1.0) -> Iterator[Row]:
    """A hundred habits, some together, and those to load with; or a part of them."""
    folder = Path(tempfile.mkdtemp(prefix="dubd-engines-"))
    preload()
    dice = random.Random(1)
    drawn = dice.sample(HABITS, len(HABITS))
    drawn += [dice.choice(HABITS) for _ in range(100 - len(drawn))]
    drawn = drawn[: max(TOGETHER, round(len(drawn) * share))]
    loads = LOADS[: max(1, round(len(LOADS) * share))]
    try:
        problems = []
        for seed, first in enumerate(range(0, len(drawn), TOGETHER)):
            problems += attack_with_habits(seed, drawn[first : first + TOGETHER], folder)
        loading = [problem for habit in loads if (problem := attack_loading(habit, folder))]
        for problem in (*problems, *loading):
            print(f"engines: {problem}", file=sys.stderr, flush=True)
        kinds = len(set(drawn))
        yield Row("engines: lines that make theirs misbehave", len(drawn), max(0, len(drawn) - len(problems)),
                  f"{kinds} ways; as many honest lines beside them")  # fmt: skip
        yield Row("engines: those that die while they load", len(loads), len(loads) - len(loading))
    finally:
        shutil.rmtree(folder, ignore_errors=True)

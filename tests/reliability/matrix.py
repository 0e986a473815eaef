"""The crash matrix: every fault at every change that a daemon makes to its disk over one small job.

For each scene a quiet run tells which points there are (see faulty_disk). Then each fault strikes at each point, in a
real daemon over real files and a real worker; what is left is looked at, a daemon without faults is started over it,
and what must be true is checked: one holder of the job, one state a segment, files that are what the manifest says,
nothing spoken again that was finished. At the points that only turn up after a fault (a second try, a clearing away) a
second one strikes.

    python -m tests.reliability.matrix [--scene NAME] [--sample N] [--fault KIND 'POINT']
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from daemon import files
from tests.reliability.faulty_disk import KILLED, KINDS, Fault, FaultyDisk, Kind, applies
from tests.reliability.guard import die_with_parent, memory_folder
from tests.reliability.lives import Life, NotSurvived, hurry, preload
from tests.reliability.power import Ledger, cut
from tests.reliability.scenes import SCENES, Scene, Stage
from tests.reliability.table import Row

LANES = 2
QUIET_RUNS = 3
"""Of each scene: which points there are differs a little between runs."""

PAIRS = 100
"""Faults after a fault that are tried, out of all that there are, chosen by a seed."""

MOST_OF_ONE = 12
"""Changes of one name (the n-th status.json, say) that are struck; later ones are no different."""


@dataclass(frozen=True)
class Case:
    """``run``: which of the quiet runs it is."""

    scene: str
    fault: Fault | None
    run: int = 0


@dataclass(frozen=True)
class Outcome:
    """``points`` that were met, in order; ``struck``: the fault's was; ``problem``: what did not hold, None if all
    did."""

    case: Case
    points: tuple[str, ...]
    struck: bool
    problem: str | None


class Lane:
    """Runs one case after another on a stage of its own, in a process without threads."""

    def __init__(self, base: Path, far: Path, number: int) -> None:
        self._base = base / f"lane-{number}"
        self._far = far / f"lane-{number}"
        self._ready: set[str] = set()
        preload()

    def run(self, case: Case) -> Outcome:
        scene = next(scene for scene in SCENES if scene.name == case.scene)
        template = self._base / f"template-{scene.name}"
        elsewhere = self._far / "elsewhere" if scene.elsewhere else None
        stage = Stage(self._base / f"stage-{scene.name}", elsewhere)
        if scene.name not in self._ready:
            scene.prepare(stage)
            stage.keep_as(template)
            self._ready.add(scene.name)
        stage.restore(template)
        report = stage.folder / "report"
        problem = None
        try:
            self._live_through(scene, stage, case.fault, report)
        except NotSurvived as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a check stumbles over is a finding
            problem = f"{type(error).__name__}: {error}"
        lines = report.read_text("utf-8").splitlines() if report.exists() else []
        faults = 0 if case.fault is None else 1 if case.fault.then is None else 2
        struck = 0 < faults <= sum(line.startswith("! ") for line in lines)
        if problem is not None:
            log = stage.log.read_text("utf-8", "replace") if stage.log.exists() else ""
            problem += "\n" + "\n".join(log.splitlines()[-12:])
        return Outcome(case, tuple(line.removeprefix("! ") for line in lines), struck, problem)

    def _live_through(self, scene: Scene, stage: Stage, fault: Fault | None, report: Path) -> None:
        store = stage.folder / "store"

        def prepare() -> None:
            hurry()
            ledger = Ledger(store, stage.roots.values())
            files.disk = FaultyDisk(stage.roots, report, fault, ledger)

        told_earlier, finished_earlier = stage.texts_told(), stage.finished_texts()
        life = Life(stage.config, stage.log, prepare)
        try:
            life.until(lambda: life.poll() is not None or scene.is_over(stage), "the end of the job or of the daemon")
            ended = life.poll()
            if ended is None:
                life.until(lambda: not stage.leftovers(), "the end of temporary files")
        finally:
            life.end()
        if ended is not None and ended != KILLED:
            self._check_gave_up_early(stage, fault, ended)
        killed = ended == KILLED
        if fault is not None and killed and fault.kind in ("power", "half_power"):
            for root in stage.roots.values():
                cut(root, store, keep_names=fault.kind == "half_power")
        told_before, finished = stage.texts_told(), stage.finished_texts()
        if again := set(told_before[len(told_earlier) :]) & finished_earlier:
            raise NotSurvived(f"spoken again although an earlier life had finished it: {sorted(again)}")
        check_held(stage)
        read = stage.read_manifest() if killed and fault is not None and fault.kind in ("kill", "torn") else None
        if ended is not None:
            second = Life(stage.config, stage.log, hurry)
            try:
                second.until(lambda: second.poll() is not None or scene.is_over(stage), "the end of the job")
                if second.poll() is not None:
                    raise NotSurvived(f"the daemon ended with {second.poll()} in its second life")
                second.until(lambda: not stage.leftovers(), "the end of temporary files")
            finally:
                second.end()
        scene.check(stage)
        if read is not None and not stage.is_read(read):
            raise NotSurvived("the manifest that was read, and marked so, is another one now, or the mark is gone")
        told = stage.texts_told()
        if again := set(told[len(told_before) :]) & finished:
            raise NotSurvived(f"spoken again although it was finished: {sorted(again)}")
        here = Counter(told[len(told_earlier) :])
        if ended is None and (twice := [text for text, count in here.items() if count > 1]):
            raise NotSurvived(f"spoken twice in one life: {twice}")
        if ended is None and not scene.rejected:
            for root in stage.roots.values():
                cut(root, store, keep_names=False)
            try:
                stage.check_manifest(scene.lines)
            except NotSurvived as error:
                raise NotSurvived(f"after the manifest a power cut takes what it tells of: {error}") from error

    @staticmethod
    def _check_gave_up_early(stage: Stage, fault: Fault | None, status: int) -> None:
        """A daemon may refuse to start on a disk that fails, with a clear word; it may not fall later."""
        log = stage.log.read_text("utf-8", "replace")
        if fault is None or fault.kind not in ("EIO", "ENOSPC") or '"event": "ready"' in log or "Traceback" in log:
            raise NotSurvived(f"the daemon ended with {status}")


def check_held(stage: Stage) -> None:
    """Somebody holds the job at every moment, and never two who would each do it.

    Raises:
        NotSurvived: it is not so.
    """
    places = stage.places()
    if not places:
        raise NotSurvived("nobody holds the job after the crash")
    if "inbox" in places and len(places) > 1:
        raise NotSurvived(f"the job would be done twice: {places}")


# --- all of it ----------------------------------------------------------------------------------------------

_lane: Lane | None = None


def _become_lane(base: Path, far: Path) -> None:
    global _lane
    die_with_parent()
    _lane = Lane(base, far, os.getpid())


def _run(case: Case) -> Outcome:
    assert _lane is not None
    return _lane.run(case)


def folders() -> tuple[Path, Path]:
    """Two temporary folders on two file systems if there are two; the first one in memory if that can be."""
    far = Path(tempfile.mkdtemp(prefix="dubd-matrix-"))
    near = Path(tempfile.mkdtemp(prefix="dubd-matrix-", dir=memory_folder()))
    return near, far


def run_matrix(
    scenes: Sequence[Scene] = SCENES,
    *,
    kinds: Sequence[Kind] = KINDS,
    sample: int | None = None,
    seed: int = 0,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> Iterator[Outcome]:
    """Every fault at every point; only ``sample`` of them, chosen by ``seed``, if given."""
    near, far = folders()
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(LANES, context, initializer=_become_lane, initargs=(near, far)) as lanes:
            waiting = [Case(scene.name, None, run) for scene in scenes for run in range(1 if sample else QUIET_RUNS)]
            quiet: dict[str, dict[str, None]] = {scene.name: {} for scene in scenes}
            for outcome in lanes.map(_run, waiting):
                tell(outcome)
                yield outcome
                quiet[outcome.case.scene].update(dict.fromkeys(filter(_worth_it, outcome.points)))
            single = [
                Case(scene, Fault(kind, point))
                for scene, points in quiet.items()
                for point in points
                for kind in kinds
                if applies(kind, point)
            ]
            if sample is not None:
                single = random.Random(seed).sample(single, min(sample, len(single)))
            pairs: list[Case] = []
            for outcome in lanes.map(_run, single):
                tell(outcome)
                yield outcome
                pairs += _pairs(outcome, quiet[outcome.case.scene])
            if sample is None:
                for outcome in lanes.map(_run, random.Random(seed).sample(pairs, min(PAIRS, len(pairs)))):
                    tell(outcome)
                    yield outcome
    finally:
        shutil.rmtree(near, ignore_errors=True)
        shutil.rmtree(far, ignore_errors=True)


def _worth_it(point: str) -> bool:
    return int(point.rpartition("#")[2]) <= MOST_OF_ONE


def _pairs(outcome: Outcome, quiet: Mapping[str, None]) -> Iterator[Case]:
    """What may strike where the daemon only comes after a first fault that it lived through."""
    first = outcome.case.fault
    if first is None or first.kind not in ("EIO", "ENOSPC"):
        return
    for point in dict.fromkeys(outcome.points):
        if point not in quiet and _worth_it(point):
            for kind in ("kill", "EIO"):
                if applies(kind, point):
                    yield Case(outcome.case.scene, Fault(first.kind, first.point, Fault(kind, point)))


def rows(outcomes: Iterator[Outcome]) -> list[Row]:
    """A row a fault, over all scenes."""
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.problem is not None:
            print(describe(outcome), file=sys.stderr, flush=True)
        fault = outcome.case.fault
        kind = "none" if fault is None else fault.kind if fault.then is None else "pair"
        if outcome.struck or outcome.case.fault is None:
            by_kind.setdefault(kind, []).append(outcome)
    return [
        Row(f"crash matrix: {WORDS[kind]}", len(group), sum(outcome.problem is None for outcome in group))
        for kind, group in by_kind.items()
    ]


WORDS = {
    "none": "quiet runs",
    "kill": "killed before the change",
    "torn": "killed in the middle of a change",
    "EIO": "EIO",
    "ENOSPC": "ENOSPC",
    "power": "power cut, all unsynced lost",
    "half_power": "power cut, names kept, contents lost",
    "pair": "a second fault where the first one led",
}


def describe(outcome: Outcome) -> str:
    case = outcome.case
    what = "no fault" if case.fault is None else f"{case.fault.kind} at {case.fault.point!r}"
    if case.fault is not None and case.fault.then is not None:
        what += f", then {case.fault.then.kind} at {case.fault.then.point!r}"
    verdict = "survived" if outcome.problem is None else f"NOT SURVIVED: {outcome.problem}"
    return f"{case.scene}: {what}: {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--scene", choices=[scene.name for scene in SCENES], action="append")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--fault", nargs=2, metavar=("KIND", "POINT"))
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    scenes = [scene for scene in SCENES if arguments.scene is None or scene.name in arguments.scene]
    if arguments.fault is not None:
        near, far = folders()
        lane = Lane(near, far, 0)
        outcome = lane.run(Case(scenes[0].name, Fault(*arguments.fault)))
        print("\n".join(outcome.points), describe(outcome), f"struck: {outcome.struck}", sep="\n")
        if outcome.problem is None:
            shutil.rmtree(near)
            shutil.rmtree(far)
        else:
            print(f"what is left lies in {near} and {far}")
        return outcome.problem is not None
    done = rows(
        run_matrix(
            scenes,
            kinds=arguments.kind or KINDS,
            sample=arguments.sample,
            seed=arguments.seed,
            tell=lambda outcome: print(describe(outcome)) if arguments.verbose else None,
        )
    )
    for row in done:
        print(row)
    return any(row.tries != row.survived for row in done)


if __name__ == "__main__":
    sys.exit(main())

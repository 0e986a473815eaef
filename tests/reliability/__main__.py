"""``make reliability``: every attack on the promises of docs/reliability.md, as a table of fault, tries and survived.

    python -m tests.reliability [--short] [--only NAME]... [--set TABLE.KEY=VALUE]...

Exits with 1 when anything was lost. What is an attack: a function that yields rows, in ATTACKS below. Each has a short
version, which CI runs. ``--set`` gives the daemons of the chaos a setting beside its own, so that it can be pointed at
another pool, say.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from tests.reliability import (
    chaos,
    cluster,
    drops,
    engines_gone_wrong,
    flood,
    hostile,
    matrix,
    owners,
    redo,
    restart,
    traced,
    upkeep,
    utterances,
    wire,
)
from tests.reliability.guard import begin_inside, run_attacks_in_process, run_guarded, strays
from tests.reliability.scenes import SCENES
from tests.reliability.table import Row, as_text
from tests.sim.batch import run_histories
from tests.sim.scale import FLAT, run_scale

Settings = dict[str, Any]

OF_OTHER_SCENES = 140
"""Faults of the crash matrix, a tenth of them; ``python -m tests.reliability.matrix`` goes through all."""


def simulator(short: bool, _settings: Settings) -> Iterator[Row]:
    """Random histories of the pure core."""
    summary = run_histories(range(100 if short else 5_000))
    note = (
        f"{summary.lives:,} lives of the daemon, {summary.segments:,} segments, {summary.recycles:,} recycled workers"
    )
    yield Row("simulator: random histories", summary.histories, summary.histories - len(summary.failed), note)


def scale(short: bool, _settings: Settings) -> Iterator[Row]:
    """A run past this machine."""
    report = run_scale(20, 20_000) if short else run_scale(1_000, 1_000_000)
    print(report, flush=True)
    note = f"{report.mean_us:.0f} us an event, steepness {report.steepness:.2f}"
    # A short run is too short for its steepness to say anything.
    sound = report.problem is None and (short or report.steepness < FLAT)
    yield Row(f"simulator: {report.workers:,} GPUs, {report.segments:,} segments", 1, int(sound), note)


def crash_matrix(short: bool, _settings: Settings) -> Iterator[Row]:
    """Every fault at every change on disk over a first job, and a part of them over the others."""
    if short:
        outcomes = matrix.run_matrix(sample=20)
    else:
        outcomes = chain(matrix.run_matrix(SCENES[:1]), matrix.run_matrix(SCENES[1:], sample=OF_OTHER_SCENES))
    yield from matrix.rows(outcomes)


def strace(short: bool, _settings: Settings) -> Iterator[Row]:
    """Faults of the kernel's own."""
    yield from traced.attacks(4 if short else 50)


def the_wire(short: bool, _settings: Settings) -> Iterator[Row]:
    """Broken frames, noise and lies."""
    yield from wire.attacks(0.03 if short else 1.0)


def the_chaos(short: bool, settings: Settings) -> Iterator[Row]:
    """Jobs that flow while workers and daemons are killed, stopped and starved."""
    yield from chaos.attacks(0.02 if short else 1.0, settings)


def the_cluster(short: bool, _settings: Settings) -> Iterator[Row]:
    """The same with the workers on a Ray cluster, whose nodes come and go."""
    yield from cluster.attacks(0.02 if short else 0.05)


def the_inbox(short: bool, _settings: Settings) -> Iterator[Row]:
    """Floods, blind watchers, several daemons, a share that goes and comes back."""
    yield from flood.attacks(0.01 if short else 1.0)


def the_drops(short: bool, _settings: Settings) -> Iterator[Row]:
    """Cancels, broken files and files of others, at the wrong moment and in the wrong number."""
    yield from drops.attacks(0.02 if short else 1.0)


def hostile_input(short: bool, _settings: Settings) -> Iterator[Row]:
    """Fuzzed documents and recordings, swaps, injections, a siege."""
    yield from hostile.attacks(0.02 if short else 1.0)


def hostile_utterances(short: bool, _settings: Settings) -> Iterator[Row]:
    """Bombs and broken files beside a speaker's own."""
    yield from utterances.attacks(0.02 if short else 1.0)


def bad_engines(short: bool, _settings: Settings) -> Iterator[Row]:
    """Engines that misbehave in every way that a seed gives."""
    yield from engines_gone_wrong.attacks(0.04 if short else 1.0)


def what_lasts(short: bool, _settings: Settings) -> Iterator[Row]:
    """Clearing away, replacing workers, disks that fill, the folders of earlier versions."""
    yield from upkeep.attacks(0.05 if short else 1.0)


def a_restart(short: bool, _settings: Settings) -> Iterator[Row]:
    """A daemon killed in the middle of a long job, on disks slower than its engine."""
    yield from restart.attacks(0.1 if short else 1.0)


def redoing(short: bool, _settings: Settings) -> Iterator[Row]:
    """Redoing lines, in folders that others change, and again and again."""
    yield from redo.attacks(0.02 if short else 1.0)


def the_owners(short: bool, _settings: Settings) -> Iterator[Row]:
    """One job_id again and again before two daemons that are killed and stopped."""
    yield from owners.attacks(0.015 if short else 1.0)


Attack = Callable[[bool, Settings], Iterator[Row]]

ATTACKS: dict[str, Attack] = {
    "simulator": simulator,
    "scale": scale,
    "matrix": crash_matrix,
    "strace": strace,
    "wire": the_wire,
    "chaos": the_chaos,
    "cluster": the_cluster,
    "inbox": the_inbox,
    "drops": the_drops,
    "hostile": hostile_input,
    "utterances": hostile_utterances,
    "engines": bad_engines,
    "upkeep": what_lasts,
    "restart": a_restart,
    "redo": redoing,
    "owners": the_owners,
}

SIDE_BY_SIDE: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("simulator",),),
    (("matrix",),),
    (
        ("chaos", "hostile", "upkeep"),
        ("inbox", "drops", "wire", "utterances", "engines", "owners"),
        ("redo", "restart", "cluster", "strace", "scale"),
    ),
)
"""Which run at the same time, in lines: those that keep both cores busy run alone, and those that wait much beside each
other. ``scale`` comes last in its line, since what it leaves in memory would count as that of the daemons which are
forked after it."""


def setting(text: str) -> tuple[str, Any]:
    """TABLE.KEY=VALUE; the value as TOML, or else as text."""
    key, equals, value = text.partition("=")
    if not equals or key.count(".") != 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not TABLE.KEY=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def run_line(names: Sequence[str], short: bool, settings: Settings) -> Iterator[Row]:
    """These attacks, one after the other; and what they have left running."""
    for name in names:
        since = time.monotonic()
        for row in ATTACKS[name](short, settings):
            print(row, flush=True)
            yield row
        print(f"    {name}: {time.monotonic() - since:.0f} s", flush=True)


def run_all(names: Sequence[str], short: bool, settings: Settings) -> list[Row]:
    """These attacks, some of them side by side; their rows, and one for what is left of them."""
    rows: list[Row] = []
    for group in SIDE_BY_SIDE:
        lines = [[name for name in line if name in names] for line in group]
        lines = [line for line in lines if line]
        found: dict[int, list[Row]] = {}

        def run(number: int, line: list[str], found: dict[int, list[Row]] = found) -> None:
            arguments = [argument for name in line for argument in ("--only", name)]
            options = [*(["--short"] if short else []), *(f"--set={key}={value!r}" for key, value in settings.items())]
            found[number] = run_attacks_in_process([*arguments, *options])

        if len(lines) == 1:
            rows += run_line(lines[0], short, settings)
        else:
            threads = [threading.Thread(target=run, args=(number, line)) for number, line in enumerate(lines)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for number in sorted(found):
                rows += found[number]
    left = strays()
    for stray in left:
        print(f"left running: {stray}", file=sys.stderr)
    return [*rows, Row("nothing is left running, after all attacks", 1, int(not left))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--short", action="store_true", help="a small part of each, as CI runs it")
    parser.add_argument("--only", action="append", choices=list(ATTACKS), help="these attacks alone")
    parser.add_argument("--set", action="append", type=setting, default=[], metavar="TABLE.KEY=VALUE",
                        help="a setting of the daemons in the chaos")  # fmt: skip
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        return run_guarded(sys.argv[1:])
    begin_inside()
    names = arguments.only or list(ATTACKS)
    settings = dict(arguments.set)
    if arguments.rows is not None:
        with open(arguments.rows, "w", encoding="utf-8") as told:
            for row in run_line(names, arguments.short, settings):
                print(row.as_json(), file=told, flush=True)
        return 0
    started = time.monotonic()
    rows = run_all(names, arguments.short, settings)
    lost = sum(row.lost for row in rows)
    print(f"\n{as_text(rows)}\n\n{lost} lost, {time.monotonic() - started:.0f} s")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())

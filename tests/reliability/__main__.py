"""``make reliability``: every attack on the promises of docs/reliability.md, as a table of fault, tries and survived.

    python -m tests.reliability [--short] [--only NAME]... [--list]

Exits with 1 when anything was lost. What is an attack: a function that yields rows, in ATTACKS below. Each has a short
version, which CI runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator

from tests.reliability import matrix, traced, wire
from tests.reliability.table import Row, as_text
from tests.sim.batch import run_histories
from tests.sim.scale import FLAT, run_scale


def simulator(short: bool) -> Iterator[Row]:
    """Random histories of the pure core, and one past this machine."""
    summary = run_histories(range(200 if short else 5_000))
    note = (
        f"{summary.lives:,} lives of the daemon, {summary.segments:,} segments, {summary.recycles:,} recycled workers"
    )
    yield Row("simulator: random histories", summary.histories, summary.histories - len(summary.failed), note)
    report = run_scale(20, 20_000) if short else run_scale(1_000, 1_000_000)
    print(report, flush=True)
    note = f"{report.mean_us:.0f} us an event, steepness {report.steepness:.2f}"
    # A short run is too short for its steepness to say anything.
    sound = report.problem is None and (short or report.steepness < FLAT)
    yield Row(f"simulator: {report.workers:,} GPUs, {report.segments:,} segments", 1, int(sound), note)


def crash_matrix(short: bool) -> Iterator[Row]:
    """Every fault at every change on disk."""
    yield from matrix.rows(matrix.run_matrix(sample=40 if short else None))


def strace(short: bool) -> Iterator[Row]:
    """Faults of the kernel's own."""
    yield from traced.attacks(4 if short else 50)


def the_wire(short: bool) -> Iterator[Row]:
    """Broken frames, noise and lies."""
    yield from wire.attacks(0.03 if short else 1.0)


Attack = Callable[[bool], Iterator[Row]]

ATTACKS: dict[str, Attack] = {
    "simulator": simulator,
    "matrix": crash_matrix,
    "strace": strace,
    "wire": the_wire,
    # chaos: workers and daemons killed, stopped and starved while jobs flow
    # inbox: floods, blind watchers, several daemons, a share that goes and comes back
    # hostile: fuzzed job files and references, swaps, injections
    # upkeep: retention, disk guard, worker recycling, frozen files
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--short", action="store_true", help="a small part of each, as CI runs it")
    parser.add_argument("--only", action="append", choices=list(ATTACKS), help="these attacks alone")
    arguments = parser.parse_args()
    started = time.monotonic()
    rows: list[Row] = []
    for name in arguments.only or ATTACKS:
        since = time.monotonic()
        for row in ATTACKS[name](arguments.short):
            rows.append(row)
            print(row, flush=True)
        print(f"    {name}: {time.monotonic() - since:.0f} s", flush=True)
    lost = sum(row.lost for row in rows)
    print(f"\n{as_text(rows)}\n\n{lost} lost, {time.monotonic() - started:.0f} s")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())

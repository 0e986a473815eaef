"""``python -m tests.sim``: random histories, one history again, or the large one."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.batch import run_histories, tell_history
from tests.sim.scale import run_scale


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Histories of the daemon's core.")
    parser.add_argument("--seed", type=int, help="this history alone, with its story")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--scale", action="store_true", help="1,000 GPUs, a million segments")
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    arguments = parser.parse_args()
    if arguments.scale:
        print(run_scale(arguments.workers, arguments.segments))
        return 0
    if arguments.seed is not None:
        return tell_history(arguments.seed)
    started = time.monotonic()
    summary = run_histories(range(arguments.first, arguments.first + arguments.histories))
    print(f"{summary} in {time.monotonic() - started:.1f} s")
    return bool(summary.failed)


if __name__ == "__main__":
    sys.exit(main())

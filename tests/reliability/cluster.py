"""The chaos of chaos.py with the pool on a Ray cluster, one of whose two nodes is lost and comes back all the while."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.comparison import comparable
from tests.cluster.raylets import Raylets
from tests.end_to_end.conftest import DaemonUnderTest, make_job
from tests.reliability import chaos
from tests.reliability.table import Row

SETTINGS = {
    "pool.backend": "ray",
    # An actor is a process that has to import Ray before it starts a worker, here beside many others.
    "worker.load_timeout_s": 90.0,
    "worker.beat_timeout_s": 5.0,
}

LONGEST_PAUSE_S = 15.0


@contextmanager
def coming_and_going(raylets: Raylets, name: str) -> Iterator[list[str]]:
    """The node is lost and comes back, at random times, until the block ends; what has happened so far."""
    over = threading.Event()
    happened: list[str] = []
    dice = random.Random(1)

    def run() -> None:
        while not over.wait(dice.uniform(LONGEST_PAUSE_S / 3, LONGEST_PAUSE_S)):
            raylets.remove(name)
            happened.append("lost")
            over.wait(dice.uniform(0, LONGEST_PAUSE_S / 2))
            raylets.add(name, 1, "24")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield happened
    finally:
        over.set()
        thread.join()


LONG = 2_000


def long_job(folder: Path, address: str) -> Row:
    """A job of 2,000 segments is the same as on this machine, whatever node spoke it."""
    there = {"pool__backend": "ray", "cluster__address": address, "cluster__folder": folder / "node"}
    texts = [f"line {number}" for number in range(LONG)]
    found = []
    for name, settings in (("local", {}), ("ray", there)):
        (folder / name).mkdir()
        daemon = DaemonUnderTest(folder / name, engine__name="silence", engine__options={}, worker__path=[], **settings)
        try:
            manifest = daemon.start(ready=False).run("film", make_job(texts, speakers=8))
            daemon.check_manifest(manifest)
            found.append(comparable(manifest))
        finally:
            daemon.end_test()
    return Row(f"cluster: {LONG:,} segments as on this machine", 1, int(found[0] == found[1]))


def attacks(share: float = 1.0) -> Iterator[Row]:
    """A part of the nights of chaos.py, since a life of the daemon takes seconds here to have its workers."""
    with Raylets() as raylets, tempfile.TemporaryDirectory(prefix="dubd-node-") as folder:
        for name in ("n0", "n1"):
            raylets.add(name, 1, "24")
        yield long_job(Path(folder), raylets.address)
        settings = {**SETTINGS, "cluster.address": raylets.address, "cluster.folder": str(Path(folder) / "node")}
        with coming_and_going(raylets, "n1") as happened:
            for row in chaos.attacks(share, settings):
                yield Row(row.fault.replace("chaos:", "cluster:"), row.tries, row.survived, row.note)
        yield Row("cluster: a node is lost, and comes back", len(happened), len(happened))

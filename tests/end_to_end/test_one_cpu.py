"""The daemon's own threads on one processor, and what it starts on any."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import daemon
from tests.end_to_end.conftest import Make, wait_for

SCRIPT = """
import os, subprocess, sys, threading
from daemon import one_cpu

def child():
    code = "import os; print(len(os.sched_getaffinity(0)))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]

def here():
    return len(os.sched_getaffinity(0))

everything = here()
assert len(one_cpu.processors()) == everything
with one_cpu.anywhere():
    assert here() == everything
one_cpu.stay()
assert (here(), in_thread(here), child(), len(one_cpu.processors())) == (1, 1, 1, everything)
with one_cpu.anywhere():
    with one_cpu.anywhere():
        assert (here(), child()) == (everything, everything)
    assert here() == everything
assert here() == 1

def away():
    with one_cpu.anywhere():
        return here()

assert (in_thread(away), here()) == (everything, 1)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
def test_threads_stay_and_processes_go() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


def test_where_there_is_one_processor() -> None:
    """Nothing is to be done."""
    script = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}])" + SCRIPT
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
@pytest.mark.parametrize("one_cpu", [True, False])
def test_a_daemon_and_its_workers(make: Make, one_cpu: bool) -> None:
    dubd = make(service__one_cpu=one_cpu).start()
    wait_for(lambda: all(worker["state"] == "ready" for worker in dubd.workers()), "the workers")
    status = dubd.status()
    everything = os.sched_getaffinity(0)
    # The first thread's, which is the event loop's.
    assert len(os.sched_getaffinity(status["pid"])) == (1 if one_cpu else len(everything))
    assert all(os.sched_getaffinity(worker["pid"]) == everything for worker in status["workers"])


def test_who_counts_processors_counts_those_of_the_daemon() -> None:
    """A thread's own affinity says one; the processes of these parts are not the daemon's threads."""
    folder = Path(daemon.__file__).parent
    apart = {"one_cpu.py", "bench", "commands", "cluster/node.py"}
    counting = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search("sched_getaffinity|cpu_count", path.read_text("utf-8"))
    }
    assert not {name for name in counting if name not in apart and name.split("/")[0] not in apart}

"""The daemon does not wait for ever for a thread that has died for want of memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from daemon import threads
threads.LOOK_S = 0.05

class NoMemory(threading.Thread):
    def _bootstrap(self):
        raise MemoryError

def exhausted():
    raise MemoryError

class Task:
    def run(self):
        raise MemoryError

def slow():
    time.sleep(0.5)

def mistaken():
    raise LookupError("nothing of that name")

threads.watch_threads(lambda why: print(f"{why}: it ends", flush=True))
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("NoMemory().start()", "could not begin"),
        ("threading.Thread(target=lambda: NoMemory().start()).start()\ntime.sleep(30)", "could not begin"),
        ("threading.Thread(target=exhausted).start()\ntime.sleep(30)", "has died"),
        (
            "executor = ThreadPoolExecutor(1)\nexecutor.submit(slow)\nexecutor._work_queue.put(Task())\ntime.sleep(30)",
            "has died",
        ),
    ],
    ids=["the one that starts it waits", "another waits", "later", "an executor's"],
)
def test_a_thread_that_has_no_memory_ends_the_daemon(script: str, why: str) -> None:
    done = run(script)
    assert done.returncode == 1
    assert f"a thread {why} for want of memory: it ends" in done.stdout + done.stderr


def test_no_other_thread_ends_it() -> None:
    done = run(
        """
for target in (slow, mistaken, slow):
    threading.Thread(target=target).start()
never_begun = threading.Thread(target=slow)
time.sleep(1)
sys.exit(7)
"""
    )
    assert done.returncode == 7
    assert "nothing of that name" in done.stderr

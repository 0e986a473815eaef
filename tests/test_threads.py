"""The daemon does not wait for ever for a thread that has died for want of memory."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.threads import shortage

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


def test_a_shortage_is_told_from_a_mistake() -> None:
    """Of threads, processes or memory, alone or among other errors; nothing else is taken for one."""
    threads: list[BaseException] = [
        RuntimeError("can't start new thread"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        BaseExceptionGroup("", [ValueError(), ExceptionGroup("", [RuntimeError("can't start new thread")])]),
    ]
    for error in threads:
        words = shortage(error)
        assert words is not None and "ulimit -u" in words and "TasksMax" in words
    for short in (MemoryError(), ImportError("x.so: failed to map segment from shared object")):
        assert "memory" in str(shortage(short))
    for other in (RuntimeError("else"), ImportError("no module"), OSError(errno.ENOENT, "x"), KeyboardInterrupt()):
        assert shortage(other) is None


def test_a_start_without_room_for_a_thread_says_so(tmp_path: Path) -> None:
    """One message with what to do, no traceback, and an exit code that is none of success."""
    code = (
        "import _thread, sys, threading\n"
        'def start(*_a, **_k): raise RuntimeError("can\'t start new thread")\n'
        "import daemon.cli, numpy\n"
        "threading._start_new_thread = start\n"
        "sys.argv = ['dubd', 'run', '--set', f'paths.root={sys.argv[1]}']\n"
        "daemon.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "ulimit -u" in done.stderr

"""Keeps the daemon's own threads on one processor; the processes that it starts go where they like.

Python's threads take turns: only one of them runs at a time, and every system call of one hands the turn to another.
Across processors each such change wakes a sleeping one, which is dear, above all on a virtual machine; on one processor
it is a change of context. In a flood of jobs of one line, on a virtual machine with two processors, each job took 39 ms
of processor time on both and 24 ms on one (docs/benchmarks.md).

Affinity is a thread's, and inherited by the threads and processes that it starts (sched_setaffinity(2)).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_allowed: set[int] | None = None
"""Where the daemon may run at all; None while its threads are where the kernel puts them."""

_one: set[int] = set()
_away = threading.local()


def stay() -> None:
    """From here on this thread, and those that it will start, run on one of the processors that it may use."""
    global _allowed, _one
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        return
    one = {random.choice(sorted(allowed))}  # daemons beside each other should not meet on the same one
    with suppress(OSError):  # a sandbox that forbids it
        os.sched_setaffinity(0, one)
        _allowed, _one = allowed, one


def processors() -> set[int]:
    """Those that the daemon and what it starts may use, wherever its threads are at the moment."""
    return os.sched_getaffinity(0) if _allowed is None else _allowed


@contextmanager
def anywhere() -> Iterator[None]:
    """This thread, and the processes that it starts meanwhile, run on any processor that the daemon may use: for what
    computes without the interpreter. May be nested, and in the event loop's thread overlap with others of its tasks."""
    if _allowed is None:
        yield
        return
    _away.depth = getattr(_away, "depth", 0) + 1
    _set(_allowed)
    try:
        yield
    finally:
        _away.depth -= 1
        if not _away.depth:
            _set(_one)


def _set(processors: set[int]) -> None:
    with suppress(OSError):  # some of them may have been taken from us meanwhile
        os.sched_setaffinity(0, processors)

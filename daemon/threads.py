"""Ends a process when one of its threads has died for want of memory: what waits for that thread would wait for ever.

``Thread.start`` returns when the new thread says that it runs. Without memory for its first step it dies before that,
nobody hears of it, and who has started it stands still, which may be the event loop (python/cpython#140746). What is
on disk is whole at every moment, so the daemon ends and its service manager starts it again; a command says how to go
on.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

LOOK_S = 5.0
LOOKS = 3
"""A thread that is about to begin in so many looks, one after the other, never will. Looks and not only seconds: the
process may have been stopped in between."""

FAILED = 1


def watch_threads(tell: Callable[[str], None]) -> None:
    """Watch over this process's threads from here on, in one of its own. ``tell`` is given the reason for which the
    process is about to end."""
    watch = _Watch(tell)
    threading.excepthook = watch.hear
    logging.getLogger("concurrent.futures").addHandler(_Executors(watch))
    threading.Thread(target=watch.look, name="threads", daemon=True).start()


def shortage(error: BaseException) -> str | None:
    """What the machine, or a limit of this process, has too little of, and what helps, where that is what ``error``
    comes of; of a group of errors, any in it."""
    if isinstance(error, BaseExceptionGroup):
        return next((words for inner in error.exceptions if (words := shortage(inner))), None)
    if isinstance(error, MemoryError):
        return (
            "there is not enough memory: raise the limit (ulimit -v; MemoryMax= or LimitAS= of the service), "
            "or free some (free -h)"
        )
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if no_thread or (isinstance(error, BlockingIOError) and error.errno == errno.EAGAIN):
        return (
            "no more threads or processes can be started: raise the limit of this user (ulimit -u; TasksMax= or "
            "LimitNPROC= of the service) or of memory (ulimit -v), or end others of its processes (ps -u)"
        )
    unmapped = ("failed to map segment", "cannot allocate memory")
    if isinstance(error, ImportError) and any(words in str(error).lower() for words in unmapped):
        return shortage(MemoryError())
    return None


class _Watch:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def look(self) -> None:
        looks: dict[threading.Thread, int] = {}
        while True:
            time.sleep(LOOK_S)
            with suppress(MemoryError):
                # Listed from before they begin until they have ended, and alive only in between.
                looks = {thread: looks.get(thread, 0) + 1 for thread in threading.enumerate() if not thread.is_alive()}
                if max(looks.values(), default=0) >= LOOKS:
                    self.end("a thread could not begin for want of memory")

    def hear(self, failed: threading.ExceptHookArgs) -> None:
        if issubclass(failed.exc_type, MemoryError):
            self.end("a thread has died for want of memory")
        threading.__excepthook__(failed)

    def end(self, why: str) -> NoReturn:
        with suppress(Exception):
            self._tell(why)
        os._exit(FAILED)


class _Executors(logging.Handler):
    """An executor's thread that dies with a task in hand tells only its log."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] and issubclass(record.exc_info[0], MemoryError):
            self._watch.end("a thread has died for want of memory")

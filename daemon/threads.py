"""Ends the daemon when one of its threads has died for want of memory: what waits for that thread would wait for ever.

``Thread.start`` returns when the new thread says that it runs. Without memory for its first step it dies before that,
nobody hears of it, and who has started it stands still, which may be the event loop (python/cpython#140746). What is
on disk is whole at every moment, so the daemon ends and its service manager starts it again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import NoReturn

import structlog

LOOK_S = 5.0
LOOKS = 3
"""A thread that is about to begin in so many looks, one after the other, never will. Looks and not only seconds: the
daemon may have been stopped in between."""

FAILED = 1


def watch_threads() -> None:
    """Watch over this process's threads from here on, in one of its own."""
    threading.excepthook = _hear
    logging.getLogger("concurrent.futures").addHandler(_Executors())
    threading.Thread(target=_look, name="threads", daemon=True).start()


def _look() -> None:
    looks: dict[threading.Thread, int] = {}
    while True:
        time.sleep(LOOK_S)
        with suppress(MemoryError):
            # Listed from before they begin until they have ended, and alive only in between.
            looks = {thread: looks.get(thread, 0) + 1 for thread in threading.enumerate() if not thread.is_alive()}
            if max(looks.values(), default=0) >= LOOKS:
                _end("a thread could not begin for want of memory")


def _hear(failed: threading.ExceptHookArgs) -> None:
    if issubclass(failed.exc_type, MemoryError):
        _end("a thread has died for want of memory")
    threading.__excepthook__(failed)


class _Executors(logging.Handler):
    """An executor's thread that dies with a task in hand tells only its log."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] and issubclass(record.exc_info[0], MemoryError):
            _end("a thread has died for want of memory")


def _end(why: str) -> NoReturn:
    with suppress(Exception):
        structlog.get_logger("dubd").error(f"{why}: the daemon ends; started again, it goes on with its jobs")
    os._exit(FAILED)

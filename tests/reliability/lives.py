"""Lives of a daemon: the real ``dubd run``, forked from a process that has its modules loaded, so that a life costs
what the daemon does and not what Python does."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tests.reliability.guard import die_with_parent

PATIENCE_S = 30.0
"""How long something that must come about may take; a success never does."""

POLL_S = 0.004

LATE_IMPORTS = ("anyio._backends._asyncio", "pydantic.type_adapter", "pynvml")
"""What a daemon imports only as it starts: a sixth of the processor time of a short life."""

T = TypeVar("T")


MARK = "DUBD_TESTED_LIFE"
"""In the environment of all that a daemon under attack starts: the daemon's process id."""


class NotSurvived(Exception):
    """A promise was broken; the message says which."""


def preload() -> None:
    """Import what a daemon imports. Call it before the first life, in a process without threads."""
    for name in (*LATE_IMPORTS, "daemon.cli", "daemon.commands.run", "daemon.service"):
        importlib.import_module(name)

    gc.collect()
    gc.freeze()


def hurry() -> None:
    """Shorten the pauses after a failure, in this life only: they are for people, and nothing depends on them."""
    from daemon import job_run, jobs, reception, recorder

    recorder.RETRY_S = job_run.FIRST_RETRY_S = 0.02
    for module in (jobs, reception):
        vars(module)["SPACE_CHECK_S"] = 0.02


def toml(settings: Mapping[str, Any]) -> str:
    """Settings by TABLE.KEY as a config.toml."""

    def value(given: Any) -> str:
        if isinstance(given, Mapping):
            return "{" + ", ".join(f"{key} = {value(item)}" for key, item in given.items()) + "}"
        return json.dumps(str(given) if isinstance(given, Path) else given)

    return "".join(f"{key} = {value(given)}\n" for key, given in settings.items())


class Life:
    """One life of a daemon with this configuration. ``prepare`` is called in its process before anything else."""

    def __init__(self, config: Path, log: Path, prepare: Callable[[], None] = lambda: None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.log = log
        self.status: int | None = None
        self._waited_for = False
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                status = _live(config, log, prepare)
            finally:
                os._exit(status)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it lives."""
        if self.status is None:
            self.status = ended(self.pid)
        return self.status

    def wait(self) -> int:
        """The exit status."""
        self.until(lambda: self.poll() is not None, "the daemon's end")
        assert self.status is not None
        return self.status

    def until(self, look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
        return until(look, what, patience_s)

    def kill(self) -> None:
        """SIGKILL, to the daemon alone; what it has started must end by itself.

        Raises:
            NotSurvived: it does not.
        """
        os.kill(self.pid, signal.SIGKILL)
        self.until(lambda: self.poll() is not None, "the daemon's death")
        self.until(lambda: not _group_lives(self.pid), "the end of what the dead daemon had started")
        self.end()

    def group_lives(self) -> bool:
        """Whether anything of it, or of what it has started, still runs."""
        return _group_lives(self.pid)

    def end(self) -> None:
        """SIGKILL, to what is left of its workers too. Waited for last: until then its number is nobody else's."""
        if self._waited_for:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            for member in _members(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            if self.poll() is not None and not _group_lives(self.pid):
                break
            time.sleep(POLL_S)
        os.waitpid(self.pid, 0)
        self._waited_for = True


def ended(pid: int) -> int | None:
    """The exit status of a child of ours, negative for a signal; None while it lives. The child is not waited for, so
    that no other process is given its number."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _group_lives(group: int) -> bool:
    """Whether any process of the daemon's group, or any that it has started, is more than a zombie waiting for init."""
    return bool(_members(group))


def _members(group: int) -> list[int]:
    """The daemon's group, and what it has started, in whatever groups of their own."""
    found = []
    mark = f"{MARK}={group}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if fields[0] in "ZX":
                    continue
                environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if int(fields[2]) == group or mark in environment:
                    found.append(int(entry))
    return found


def until(look: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """What ``look`` gives, once that is true.

    Raises:
        NotSurvived: it did not come about.
    """
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise NotSurvived(f"{what} did not come about within {patience_s:g} s")
        time.sleep(POLL_S)
    return found


def _live(config: Path, log: Path, prepare: Callable[[], None]) -> int:
    """In the forked process: be the daemon."""
    die_with_parent()
    os.setsid()
    os.environ[MARK] = str(os.getpid())
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    os.chdir(config.parent)
    prepare()
    sys.argv = ["dubd", "run", "--config", str(config)]
    from daemon.cli import main

    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - the forking process's own handlers must not see it
        import traceback

        traceback.print_exc()
        return 98
    return 0

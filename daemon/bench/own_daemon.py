"""A daemon of the bench's own in a temporary folder: started, watched from outside, stopped or killed."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daemon
from daemon.commands.demo import RUN_DAEMON
from daemon.commands.invocation import CommandFailed, Invocation
from daemon.commands.reading import Document, count, number, read_document, rows, table, word
from daemon.commands.showing import plain

START_SECONDS = 120.0
STOP_SECONDS = 20.0
LOG_LINES = 15
POLL_S = 0.002
"""How often the folders are looked at while a job runs: the figures' grain."""

COMMAND = (sys.executable, "-c", RUN_DAEMON, str(Path(daemon.__file__).resolve().parent.parent))
"""``dubd``, from any folder."""

SETTLE_S = 0.05
"""inbox.settle_seconds of these daemons, so that jobs dropped whole are soon taken. It is part of every time from the
drop of a job."""


@dataclass(frozen=True, slots=True)
class JobTimes:
    """Of a job, from its drop: seconds to its first WAV in the outbox and to its manifest."""

    first_wav_s: float
    wall_s: float
    audio_s: float
    cached: int


class OwnDaemon:
    """A daemon whose folders all lie in ``folder``. ``invocation`` is how its user calls it; ``overrides`` come last
    and win. A context manager: nothing of it runs after the block."""

    def __init__(self, folder: Path, invocation: Invocation, overrides: Sequence[str]) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"
        self._status = folder / "status.json"
        self._log = folder / "daemon.log"
        self._process: subprocess.Popen[bytes] | None = None
        places = ("inbox", "outbox", "rejected", "state")
        self.invocation = Invocation(
            invocation.config_file,
            (
                *invocation.overrides,
                f"inbox.settle_seconds={SETTLE_S}",
                "service.drain_seconds=0",
                "pool.per_gpu={}",
                *overrides,
                f"paths.root={folder}",
                *(f"paths.{name}={folder / name}" for name in places),
                f"paths.status={self._status}",
                "paths.allowed_roots=[]",
            ),
        )
        self.invocation.settings()  # a mistake is told here, not in a log
        (folder / "inbox").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> OwnDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # --- its life -------------------------------------------------------------------------------------------

    def start(self, *more: str) -> float:
        """Start it; the seconds until it says that it takes jobs. ``more`` are overrides for this life.

        Raises:
            CommandFailed: it does not start.
        """
        name = f"dubd-bench-{secrets.token_hex(8)}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("WATCHDOG_")}
        environment["NOTIFY_SOCKET"] = f"@{name}"
        overrides = [part for override in more for part in ("--set", override)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{name}")
            manager.settimeout(0.1)
            started = time.perf_counter()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*COMMAND, "run", *self.invocation.arguments, *overrides],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the bench, which then stops its daemon
                )
            while time.perf_counter() - started < START_SECONDS:
                with suppress(TimeoutError):
                    if b"READY=1" in manager.recv(4096).splitlines():
                        return time.perf_counter() - started
                self._require_life()
        raise CommandFailed(f"the bench's daemon took no jobs within {START_SECONDS:g} s.{self._end_of_log()}")

    def await_workers(self, workers: int) -> None:
        """Until so many are ready.

        Raises:
            CommandFailed: one can't be started.
        """
        self._wait(lambda: sum(word(one, "state") == "ready" for one in self._workers()) == workers)

    def stop(self) -> None:
        """Let it end in order, and insist after a while."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    # --- jobs -----------------------------------------------------------------------------------------------

    def drop(self, job_id: str, content: bytes) -> None:
        """Put the job into the inbox, whole at once."""
        part = self.folder / "inbox" / f"{job_id}.json.part"
        part.write_bytes(content)
        part.rename(part.with_suffix(""))

    def run(self, job_id: str, content: bytes) -> JobTimes:
        """Drop a job and wait for its manifest.

        Raises:
            CommandFailed: the job is not accepted, or one of its segments is not spoken.
        """
        started = time.perf_counter()
        self.drop(job_id, content)
        folder = self.outbox / job_id
        self._wait(lambda: _has_wav(folder) or self._over(job_id))
        first_wav_s = time.perf_counter() - started
        manifest = self.finish(job_id)
        wall_s = time.perf_counter() - started
        counts, timings = table(manifest, "counts"), table(manifest, "timings")
        return JobTimes(first_wav_s, wall_s, number(timings, "audio_s") or 0.0, count(counts, "cached"))

    def finish(self, job_id: str) -> Document:
        """Wait for the job's manifest, which says that every segment is spoken.

        Raises:
            CommandFailed: the job is not accepted, or one of its segments is not spoken.
        """
        self._wait(lambda: self._over(job_id))
        manifest = read_document(self.outbox / job_id / "manifest.json")
        counts = table(manifest, "counts")
        if manifest is None or count(counts, "ok") != count(counts, "total"):
            reasons = [table(one, "error") for one in rows(manifest, "segments") if table(one, "error")]
            why = f"{word(reasons[0], 'code')}: {word(reasons[0], 'message')}" if reasons else "no reason given"
            raise CommandFailed(
                f"the bench's job was not spoken: {count(counts, 'failed')} of {count(counts, 'total')} segments "
                f"failed ({plain(why)})"
            )
        return manifest

    def await_half(self, job_id: str) -> None:
        """Until half of the job's segments are spoken."""
        progress = self.outbox / job_id / "progress.json"

        def half() -> bool:
            counts = table(read_document(progress), "counts")
            return 0 < count(counts, "total") <= 2 * count(counts, "ok")

        self._wait(half)

    def await_running(self, jobs: int) -> None:
        """Until so many jobs have been given to the workers.

        Raises:
            CommandFailed: the daemon has ended, or its workers can't be started.
        """

        def running() -> bool:
            return sum(word(job, "state") == "running" for job in rows(read_document(self._status), "jobs")) == jobs

        self._wait(running)

    def command(self, *words: str) -> float:
        """The seconds that ``dubd`` takes with these words.

        Raises:
            CommandFailed: it fails.
        """
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, *words, *self.invocation.arguments], capture_output=True, check=False)
        if done.returncode:
            raise CommandFailed(f"dubd {' '.join(words)} failed: {plain(done.stderr.decode(errors='replace'))}")
        return time.perf_counter() - started

    # --- what it costs --------------------------------------------------------------------------------------

    def cpu_seconds(self) -> float:
        """User and system time of the daemon and its workers so far."""
        pids = [self.pid, *(int(number(one, "pid") or 0) for one in self._workers())]
        return sum(_cpu_seconds(str(pid)) for pid in pids if pid)

    def loop_seconds(self) -> float:
        """Processor time of the daemon's event loop so far: that of its first thread."""
        return _cpu_seconds(f"{self.pid}/task/{self.pid}")

    def peak_bytes(self) -> float:
        """The most memory that the daemon's own process has had resident."""
        with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

    # --- watching -------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds.

        Raises:
            CommandFailed: the daemon has ended, or its workers can't be started.
        """
        looked = time.monotonic()
        while not condition():
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                self._require_life()
                self._require_workers()
            time.sleep(POLL_S)

    def _require_life(self) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            raise CommandFailed(f"the bench's daemon ended with status {self._process.returncode}.{self._end_of_log()}")

    def _require_workers(self) -> None:
        workers = self._workers()
        if workers and all(word(one, "state") == "broken" for one in workers):
            raise CommandFailed(
                f"no worker can be started: {plain(word(workers[0], 'error'))}{self._end_of_log()}\nSee 'dubd doctor'."
            )

    def _workers(self) -> list[dict[str, Any]]:
        return rows(read_document(self._status), "workers")

    def _over(self, job_id: str) -> bool:
        if (self.outbox / job_id / "manifest.json").exists():
            return True
        reasons = self.folder / "rejected" / f"{job_id}.json.error.json"
        reasons = reasons if reasons.exists() else self.folder / "rejected" / f"{job_id}.error.json"
        if reasons.exists():
            raise CommandFailed(f"the bench's job was rejected: {plain(reasons.read_text(encoding='utf-8'))}")
        return False

    def _end_of_log(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\nThe end of its log:\n" + "\n".join(f"  {plain(line)}" for line in lines)


def _has_wav(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(".wav") for entry in entries)
    except FileNotFoundError:
        return False


def _cpu_seconds(task: str) -> float:
    """utime and stime of a process or thread, the 14th and 15th field of proc(5)'s stat; the second may hold spaces and
    ends with ")"."""
    try:
        fields = Path(f"/proc/{task}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

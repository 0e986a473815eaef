"""One run over a corpus: lists it, starts the processes as there is work for them, deals, and hears what became of it.

Everything happens in one event loop; only the listing is done in a thread, a batch at a time and no further ahead than
the dealer reaches. What a process says is believed only as far as it fits what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.abc
import anyio.to_thread

from daemon import files
from daemon.core.dealing import Dealer, Dealt, Speaker
from daemon.embeddings.corpus import Corpus
from daemon.flood import Bounded
from daemon.worker_process import WorkerCommand, WorkerProcess, worker_command
from workers.protocol import PROTOCOL_VERSION, Message

Status = Literal["ok", "skipped", "too_few", "failed"]

LISTED_AT_ONCE = 256
LISTED_FIRST = 16
"""Few: the processes start meanwhile, which takes as long as listing thousands."""
ASKED_AT_ONCE = 10
"""Speakers in a frame, whose paths may be as long as paths can be."""
BEAT_SECONDS = 1.0
START_S = 60.0
"""How long a process may take to start at least: its imports may come from a slow disk, or a busy machine."""
STACKS_S = 0.3
"""How long a process that hangs has to say where."""
DEAD_STARTS = 3
"""Processes that end before they are ready, one after the other, until the run is given up."""
SPACE_CHECK_S = 2.0
OLD_S = 3600.0
"""After so long nobody is writing a half-written file any more."""


class ComputationFailed(Exception):
    """No process could be started, or the corpus can't be listed any more."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a corpus is computed. ``exclude_prefixes`` and ``exclude_patterns`` (of the shell) leave out files by their
    names; ``timeout_s``: a process that has not read one more file for so long hangs, unless it waits for the
    disk that the results go to."""

    processes: int
    chunk_size: int = 10
    min_utterances: int = 1
    form: Literal["pkl", "npz"] = "pkl"
    exclude_prefixes: tuple[str, ...] = ()
    exclude_patterns: tuple[str, ...] = ()
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a speaker. ``process``: who said so. ``existing``: which of its places had a whole result, for
    ``skipped``. ``found`` files, of which ``utterances`` are in the mean of ``dim`` numbers and ``failed`` are not."""

    speaker: Speaker
    status: Status
    process: int
    found: int = 0
    utterances: int = 0
    failed: int = 0
    dim: int = 0
    sha256: str = ""
    existing: int = 0
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """An utterance that could not be used."""

    speaker: Speaker
    file: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Places:
    """The path where a speaker's result goes, and those where a whole one may lie already."""

    output: str
    existing: tuple[str, ...] = ()


@dataclass(slots=True)
class Listener:
    """Who hears of the run; called in the event loop. ``note`` gets lines for the log, with their level."""

    report: Callable[[Report], None]
    problem: Callable[[Problem], None] = lambda problem: None
    note: Callable[[str, str], None] = lambda level, line: None


@dataclass(slots=True)
class _Process:
    transport: WorkerProcess
    started_at: float
    ready: bool = False
    reason: str | None = None
    lines: list[str] = field(default_factory=list)


class EmbeddingsCommand(WorkerCommand):
    """A worker without an engine, in the daemon's own environment: all that it needs is numpy."""

    @property
    def arguments(self) -> list[str]:
        return [*WorkerCommand.arguments.fget(self), "--embeddings"]  # type: ignore[attr-defined]


def process_command() -> EmbeddingsCommand:
    base = worker_command("", (), os.environ, gpu=False, threads=1)
    return EmbeddingsCommand(base.python, base.path, base.environment)


class Computation:
    """``places`` says where a speaker's result goes, ``wanted`` (in a thread) whether it is to be computed at all.
    ``share``: how many processes may work now, when others want some too; ``changed`` has it asked again."""

    def __init__(
        self,
        corpus: Corpus,
        options: Options,
        places: Callable[[Speaker], Places],
        listener: Listener,
        *,
        wanted: Callable[[Speaker], bool] = lambda speaker: True,
        share: Callable[[], int] | None = None,
    ) -> None:
        self._corpus = corpus
        self._options = options
        self._places = places
        self._wanted = wanted
        self._listener = listener
        self._share = share or (lambda: options.processes)
        self._dealer = Dealer(processes=options.processes, chunk_size=options.chunk_size)
        self._processes: dict[int, _Process] = {}
        self._command = process_command()
        self._wake = anyio.Event()
        self._room = anyio.Event()
        self._dead_starts = 0
        self._draining = False
        self._paused = False
        self._failure: str | None = None
        self._folders: set[str] = set()
        self.total: int | None = None
        """Speakers in the corpus, once they have been counted."""

    # --- life -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until every speaker has been reported, or what is at the processes when ``drain`` was called.

        Raises:
            ComputationFailed: see there.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._list)
                tasks.start_soon(self._count)
                tasks.start_soon(self._watch)
                while not self._over:
                    self._deal(tasks)
                    await self._wake.wait()
                    self._wake = anyio.Event()
                # Nothing is out any more: to end them at once loses nothing.
                tasks.cancel_scope.cancel()
        finally:
            # Stopped from outside: they are dead by now, and were writing.
            for number, process in self._processes.items():
                self._remove_leftovers(number, process)
        await anyio.to_thread.run_sync(_sync, self._folders)
        if self._failure is not None:
            raise ComputationFailed(self._failure)

    @property
    def _over(self) -> bool:
        if self._failure is not None or self._dealer.finished:
            return True
        return self._draining and not self._dealer.in_hand

    def _fail(self, message: str) -> None:
        self._failure = message
        self._wake.set()

    def drain(self) -> None:
        """Deal no more; the run ends with what is out."""
        self._draining = True
        self._wake.set()

    def changed(self) -> None:
        """Something that ``share`` depends on is different now."""
        self._wake.set()

    @property
    def in_hand(self) -> int:
        return self._dealer.in_hand

    # --- the corpus -----------------------------------------------------------------------------------------

    async def _list(self) -> None:
        wanted = filter(self._wanted, self._corpus.speakers())
        count = LISTED_FIRST
        while True:
            while self._dealer.room < LISTED_AT_ONCE:
                self._room = anyio.Event()
                await self._room.wait()
            try:
                batch = await anyio.to_thread.run_sync(_next, wanted, count, abandon_on_cancel=True)
            except OSError as error:
                self._fail(f"the folder of utterances can't be listed: {error.strerror or error}")
                return
            for speaker in batch:
                self._dealer.add(speaker)
            if len(batch) < count:
                break
            count = LISTED_AT_ONCE
            self._wake.set()
        self._dealer.complete()
        self._wake.set()

    async def _count(self) -> None:
        """For people only: how much there is."""
        self.total = await anyio.to_thread.run_sync(_count, self._corpus.speakers(weigh=False), abandon_on_cancel=True)

    # --- processes ------------------------------------------------------------------------------------------

    def _deal(self, tasks: anyio.abc.TaskGroup) -> None:
        if self._draining or self._paused:
            return
        for number in range(min(self._options.processes, self._share())):
            process = self._processes.get(number)
            if process is None:
                starting = sum(not other.ready for other in self._processes.values())
                if starting >= self._dealer.waiting:
                    break
                process = self._processes[number] = _Process(WorkerProcess(self._command), anyio.current_time())
                tasks.start_soon(self._keep, number, process)
            while process.ready and (chunk := self._dealer.deal(number, anyio.current_time())):
                speakers = [self._asked(dealt) for dealt in chunk]
                for begin in range(0, len(speakers), ASKED_AT_ONCE):
                    message = {"type": "speakers", "speakers": speakers[begin : begin + ASKED_AT_ONCE]}
                    process.transport.send(message)
        if self._dealer.room >= LISTED_AT_ONCE:
            self._room.set()

    def _asked(self, dealt: Dealt) -> dict[str, Any]:
        places = self._places(dealt.speaker)
        self._folders.add(os.path.dirname(places.output))
        return {
            "ticket": dealt.ticket,
            "dataset": dealt.speaker.dataset,
            "speaker": dealt.speaker.name,
            "output": places.output,
            "existing": list(places.existing),
        }

    async def _keep(self, number: int, process: _Process) -> None:
        process.transport.send(
            {
                "type": "hello",
                "protocol": PROTOCOL_VERSION,
                "utterances": self._corpus.message(),
                "format": self._options.form,
                "min_utterances": self._options.min_utterances,
                "exclude_prefixes": list(self._options.exclude_prefixes),
                "exclude_patterns": list(self._options.exclude_patterns),
                "beat_seconds": BEAT_SECONDS,
            }
        )
        with Bounded(lambda line: self._hear_line(number, process, line)) as lines:
            reason = await process.transport.run(lambda message: self._hear(number, process, message), lines)
        self._lose(number, process, process.reason or reason)

    def _lose(self, number: int, process: _Process, reason: str) -> None:
        del self._processes[number]
        self._remove_leftovers(number, process)
        given_up = self._dealer.lost(number)
        if not process.ready:
            self._dead_starts += 1
            if self._dead_starts >= DEAD_STARTS:
                last = f": {process.lines[-1]}" if process.lines else ""
                self._fail(f"no process for embeddings can be started: {reason}{last}")
        self._listener.note("warning", f"process {number} is gone: {reason}")
        for dealt in given_up:
            message = f"the process that computed it, and nothing else, is gone again: {reason}"
            self._listener.report(Report(dealt.speaker, "failed", number, code="process_lost", message=message))
        self._wake.set()

    def _remove_leftovers(self, number: int, process: _Process) -> None:
        """What it was writing when it died."""
        outputs = (self._places(dealt.speaker).output for dealt in self._dealer.holding(number))
        for folder in {os.path.dirname(output) for output in outputs}:
            for path in Path(folder).glob(f".{process.transport.pid or 0:x}-*.part"):
                files.discard(path)

    def _hear_line(self, number: int, process: _Process, line: str) -> None:
        process.lines = [*process.lines[-20:], line]
        self._listener.note("info", f"process {number}: {line}")

    def _hear(self, number: int, process: _Process, message: Message) -> None:
        try:
            self._understand(number, process, message)
        except (LookupError, TypeError, ValueError) as error:
            process.reason = f"said what makes no sense: {error!r}"
            process.transport.kill()

    def _understand(self, number: int, process: _Process, message: Message) -> None:
        kind = message["type"]
        if kind == "results":
            now = anyio.current_time()
            for result in message["results"]:
                self._take(number, result, now)
        elif kind == "problem":
            held = self._dealer.holder(number, message["ticket"])
            if held is not None:
                problem = Problem(held.speaker, str(message["file"]), str(message["code"]), str(message["message"]))
                self._listener.problem(problem)
            return
        elif kind == "beat":
            self._dealer.moved(number, int(message["progress"]), anyio.current_time())
            return
        elif kind == "ready":
            process.ready = True
            self._dead_starts = 0
        elif kind == "failed":
            process.reason = str(message["message"])
        self._wake.set()

    def _take(self, number: int, result: dict[str, Any], now: float) -> None:
        if result["status"] == "disk_full":
            if not self._paused:
                self._listener.note("error", f"waiting for disk space: {result['message']}")
            self._dealer.give_back(number, result["ticket"], now)
            self._paused = True
            return
        dealt = self._dealer.ended(number, result["ticket"], now)
        if dealt is None:
            return
        values: dict[str, Any] = {name: kind(result[name]) for name, kind in _RESULT_FIELDS.items() if name in result}
        self._listener.report(Report(dealt.speaker, result["status"], number, **values))

    async def _watch(self) -> None:
        """Ends processes that hang; looks for room on a full disk."""
        pause = min(1.0, self._options.timeout_s / 4)
        while True:
            await anyio.sleep(SPACE_CHECK_S if self._paused else pause)
            if self._paused:
                self._paused = False
                self._wake.set()
            now = anyio.current_time()
            overdue = self._dealer.overdue(now, self._options.timeout_s)
            for number, process in list(self._processes.items()):
                starting = not process.ready and now - process.started_at > max(self._options.timeout_s, START_S)
                if process.reason is not None or not (starting or number in overdue):
                    continue
                process.reason = (
                    "it did not start in time" if starting else f"it did not come on for {self._options.timeout_s:g} s"
                )
                process.transport.tell_stacks()
                await anyio.sleep(STACKS_S)
                process.transport.kill()


_RESULT_FIELDS: dict[str, type] = {
    "found": int, "utterances": int, "failed": int, "dim": int, "sha256": str, "existing": int, "code": str,
    "message": str,
}  # fmt: skip


def _next(speakers: Iterator[Speaker], count: int) -> list[Speaker]:
    return list(islice(speakers, count))


def _sync(folders: set[str]) -> None:
    """Make the names of the results last, and those of their folders."""
    for folder in folders | {os.path.dirname(folder) for folder in folders}:
        with suppress(OSError):
            files.fsync_folder(Path(folder))
            # Of runs that were killed, themselves and not only their processes. Another may be writing right now.
            files.remove_temporary_files(Path(folder), older_than_s=OLD_S)


def _count(speakers: Iterator[Speaker]) -> int | None:
    try:
        return sum(1 for _ in speakers)
    except OSError:
        return None

"""The loop of one embeddings process, between its pipe and the speakers it is told of.

The main thread reads, sums, writes, and gives names; another syncs what it has written, many files at a time, since a
sync is a wait and not work. It does nothing but that: every call of the kernel beside a busy main thread costs a change
of threads, and naming a result takes several. The reader ends the process with its daemon; the beat thread says how far
the main one is, so that a process that hangs in a file is told from one that works on a large speaker. The contract is
in the package's text.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from workers.embeddings.new_files import Disk, NewFile, give_name
from workers.embeddings.result import FORMATS, MOST_BYTES, NoResult, check_result, encode, make_result
from workers.embeddings.speaker import SpeakerFailed, mean_of
from workers.embeddings.utterance import BadUtterance, Files, is_utterance, read_file
from workers.protocol import (
    EXIT_NOT_LOADED,
    EXIT_PROTOCOL_BROKEN,
    EXIT_STOPPED,
    PROTOCOL_VERSION,
    FrameDecoder,
    FrameWriter,
    Message,
    ProtocolError,
)

SYNCED: Message = {}
"""Stands among the messages when there are results to name."""

EXIT_THREAD_DIED = 1

READ_BYTES = 1 << 16
MOST_UNFINISHED = 96
"""Results written and not synced, which are open files: a disk that does not keep up holds up the main thread."""

SYNCED_AT_ONCE = 32
SYNCED_EVERY_S = 0.1
"""Results are synced when so many are there, when the first of them has waited so long, or when there are no others."""

SLOW_DISK_S = 30.0
"""To wait longer for the disk that results go to is told of."""

ASKED_AHEAD = 96
"""Files that the disk is asked for before they are read, about: some speakers' worth, so that it always has something
to do; they are open meanwhile."""

RESULTS_AT_ONCE = SYNCED_AT_ONCE
RESULTS_EVERY_S = 0.1

MEMORY_BYTES = 4 << 30
"""Address space of the process. An honest corpus needs a tenth of it; a file that asks for more fails alone."""

MESSAGE_CHARACTERS = 500


class Corpus:
    """The folder of utterances and how it is read, as the hello says.

    Raises:
        OSError: it can't be opened.
        ChangedFolder: another folder has that path now.
    """

    def __init__(self, hello: Message) -> None:
        place = hello["utterances"]
        self.follow_links: bool = place["follow_links"]
        self.form: str = hello["format"]
        self.min_utterances: int = hello["min_utterances"]
        self._prefixes: list[str] = hello["exclude_prefixes"]
        self._patterns: list[str] = hello["exclude_patterns"]
        self._root = os.open(place["path"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(self._root)
        if (status.st_dev, status.st_ino) != (place["device"], place["inode"]):
            raise ChangedFolder(f"{place['path']!a} is another folder than it was when it was checked")

    def open_speaker(self, dataset: str, speaker: str) -> int:
        """Raises OSError: it is gone, no folder, or reached through a link that is not to be followed."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if self.follow_links else os.O_NOFOLLOW)
        above = os.open(dataset, flags, dir_fd=self._root)
        try:
            return os.open(speaker, flags, dir_fd=above)
        finally:
            os.close(above)

    def utterances(self, folder: int) -> list[str]:
        """The names of a speaker's utterances, in order."""
        return sorted(name for name in os.listdir(folder) if is_utterance(name, self._prefixes, self._patterns))


class ChangedFolder(Exception):
    pass


class Reports:
    """Results on their way to the daemon, a few in a frame."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._results: list[dict[str, Any]] = []
        self._told_at = time.monotonic()
        self._expected = 0

    @property
    def expected(self) -> int:
        """Speakers that have come and are not answered for."""
        return self._expected

    def expect(self, count: int) -> None:
        """Speakers have come. When every one is answered for, there is nothing to wait for with telling."""
        with self._lock:
            self._expected += count

    def add(self, result: dict[str, Any]) -> None:
        with self._lock:
            self._results.append(result)
            self._expected -= 1
            due = len(self._results) >= RESULTS_AT_ONCE or not self._expected
        if due or time.monotonic() - self._told_at > RESULTS_EVERY_S:
            self.tell()

    def tell(self) -> None:
        with self._lock:
            results, self._results = self._results, []
        if not results:
            return
        self._told_at = time.monotonic()
        self._writer.send({"type": "results", "results": results})


def serve(incoming: int, outgoing: int) -> int:
    """Speak the contract on two descriptors until the stream ends; the exit status."""
    threading.excepthook = _end_with_thread
    writer = FrameWriter(outgoing)
    reports = Reports(writer)
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(incoming, messages, reports), name="reader", daemon=True).start()
    hello = messages.get()
    try:
        if hello.get("protocol") != PROTOCOL_VERSION:
            raise ProtocolError(f"the daemon speaks version {hello.get('protocol')!r}, this process {PROTOCOL_VERSION}")
        if hello["format"] not in FORMATS:
            raise ProtocolError(f"no results of format {hello['format']!r} are known")
        corpus = Corpus(hello)
    except (ProtocolError, ChangedFolder, OSError) as error:
        code = "protocol_mismatch" if isinstance(error, ProtocolError) else "no_utterances_dir"
        writer.send({"type": "failed", "code": code, "message": str(error)[:MESSAGE_CHARACTERS]})
        return EXIT_NOT_LOADED
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    desk = Desk(corpus, writer, reports, wake=lambda: messages.put(SYNCED))
    threading.Thread(target=desk.beat, args=(hello["beat_seconds"],), name="beat", daemon=True).start()
    writer.send(
        {
            "type": "ready",
            "protocol": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "numpy": np.__version__,
        }
    )
    # Some speakers ahead: the disk fetches the files of the next ones while those of this one are read.
    ahead: deque[Work] = deque()
    while True:
        while not ahead or (sum(work.asked for work in ahead) < ASKED_AHEAD and not messages.empty()):
            message = messages.get()
            if message is SYNCED:
                desk.name_synced()
            else:
                ahead.append(desk.prepare(message))
        desk.take(ahead.popleft())


def _end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """Whoever waits for what that thread was to do would wait for ever; the daemon deals its speakers out again."""
    threading.__excepthook__(failed)
    sys.stderr.flush()
    os._exit(EXIT_THREAD_DIED)


def _read(incoming: int, messages: queue.SimpleQueue[dict[str, Any]], reports: Reports) -> None:
    """The reader thread: hands on the hello, and then one speaker after another."""
    decoder = FrameDecoder()
    try:
        while data := os.read(incoming, READ_BYTES):
            for message in decoder.feed(data):
                if message["type"] != "speakers":
                    messages.put(message)
                    continue
                reports.expect(len(message["speakers"]))
                for asked in message["speakers"]:
                    messages.put(asked)
    except ProtocolError as error:
        print(f"the daemon's frames can't be understood: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_PROTOCOL_BROKEN)
    except OSError:
        pass
    os._exit(EXIT_STOPPED)


class Work:
    """A speaker that is asked for, and what of it is open."""

    __slots__ = ("dataset", "error", "existing", "files", "folder", "output", "speaker", "ticket")

    def __init__(self, asked: dict[str, Any]) -> None:
        self.ticket: int = asked["ticket"]
        self.dataset: str = asked["dataset"]
        self.speaker: str = asked["speaker"]
        self.output: str = asked["output"]
        self.existing: list[str] = asked["existing"]
        self.folder: int | None = None
        self.files: Files | None = None
        self.error: Exception | None = None

    @property
    def asked(self) -> int:
        """Files that the disk is asked for."""
        return 0 if self.files is None else self.files.asked

    def close(self) -> None:
        if self.files is not None:
            self.files.close()
        if self.folder is not None:
            os.close(self.folder)


class Desk:
    """Answers for one speaker after another. ``wake`` is called, by another thread, when there are results to name: the
    main thread may be waiting for something that is long in coming."""

    def __init__(self, corpus: Corpus, writer: FrameWriter, reports: Reports, wake: Callable[[], None]) -> None:
        self._corpus = corpus
        self._writer = writer
        self._reports = reports
        self._unfinished = Unfinished(reports, wake)
        self._writing = DiskWait()
        threading.Thread(target=self._unfinished.sync, name="syncer", daemon=True).start()
        self._folders: set[str] = set()
        self._progress = 0

    def beat(self, seconds: float) -> None:
        """The beat thread. To wait for the disk is no hanging, however long it takes: another process would not get its
        results there sooner. It is told once for each such wait."""
        page = os.sysconf("SC_PAGE_SIZE")
        beats_of_waiting = 0
        while True:
            time.sleep(seconds)
            with open("/proc/self/statm", "rb") as file:
                resident = int(file.read().split()[1]) * page
            waits = [wait for wait in (self._writing, self._unfinished.syncing) if wait.since is not None]
            beats_of_waiting += bool(waits)
            if any(wait.is_news() for wait in waits):
                print(f"the disk has not kept results for {SLOW_DISK_S:g} s; waiting", file=sys.stderr, flush=True)
            self._reports.tell()
            progress = self._progress + beats_of_waiting
            self._writer.send({"type": "beat", "progress": progress, "memory_bytes": resident})

    def prepare(self, asked: dict[str, Any]) -> Work:
        """Open a speaker's first files, unless its result may be there already; what is wrong is for ``take``."""
        work = Work(asked)
        if not any(map(os.path.lexists, work.existing)):
            try:
                self._open(work)
            except (OSError, MemoryError) as error:
                work.error = error
        return work

    def take(self, work: Work) -> None:
        """Raises nothing for a speaker's sake; what is wrong with one is its result."""
        self._advance()
        try:
            for position, path in enumerate(work.existing):
                if (known := self._known(path, work.dataset, work.speaker)) is not None:
                    self._reports.add({"ticket": work.ticket, "status": "skipped", "existing": position, **known})
                    return
            if work.error is not None:
                raise work.error
            if work.files is None:
                self._open(work)
            self._compute(work)
        except SpeakerFailed as failure:
            self._answer_failed(work.ticket, failure.code, str(failure), failure.failed)
        except OSError as error:
            words = f"its folder can't be read: {error.strerror or error}"
            self._answer_failed(work.ticket, "unreadable", words, 0)
        except MemoryError:
            self._answer_failed(work.ticket, "too_large", "it needs more memory than a process may use", 0)
        finally:
            work.close()

    def _open(self, work: Work) -> None:
        work.folder = self._corpus.open_speaker(work.dataset, work.speaker)
        names = self._corpus.utterances(work.folder)
        work.files = Files(names, work.folder, follow_links=self._corpus.follow_links)
        if len(names) >= self._corpus.min_utterances:
            work.files.ask()

    def _advance(self) -> None:
        self._progress += 1
        if self._unfinished.synced:
            self.name_synced()

    def name_synced(self) -> None:
        """Give the results that are synced their names, and report them."""
        while self._unfinished.synced:
            some = self._unfinished.take_synced()
            with self._writing:
                errors = [error or give_name(file) for file, _, error in some]
            for (file, result, _), error in zip(some, errors, strict=True):
                if error is not None:
                    self._answer_unwritten(file.path, result, error)
                else:
                    self._reports.add(result)

    def _answer_failed(self, ticket: int, code: str, message: str, failed: int) -> None:
        message = message[:MESSAGE_CHARACTERS]
        self._reports.add({"ticket": ticket, "status": "failed", "code": code, "message": message, "failed": failed})

    def _known(self, path: str, dataset: str, speaker: str) -> dict[str, Any] | None:
        """What a result that is there already says of itself; None where there is no whole one."""
        try:
            data = read_file(path, None, follow_links=self._corpus.follow_links, most=MOST_BYTES)
            result = check_result(data, self._corpus.form, dataset, speaker)
        except (BadUtterance, NoResult):
            return None
        return {
            "utterances": result["num_utterances"],
            "failed": result["failed_utterances"],
            "dim": result["embedding_dim"],
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def _compute(self, work: Work) -> None:
        files = work.files
        assert files is not None
        found = len(files.names)
        if found < max(self._corpus.min_utterances, 1):
            self._reports.add({"ticket": work.ticket, "status": "too_few", "found": found})
            return
        mean = mean_of(
            files, on_problem=lambda name, bad: self._tell_problem(work.ticket, name, bad), on_read=self._advance
        )
        data = encode(make_result(mean, work.dataset, work.speaker), self._corpus.form)
        result = {
            "ticket": work.ticket,
            "status": "ok",
            "found": found,
            "utterances": len(mean.utterance_ids),
            "failed": mean.failed,
            "dim": int(mean.embedding.size),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        while self._unfinished.full:
            self._unfinished.wait()
            self.name_synced()
        try:
            with self._writing:
                file = self._write(work.output, data)
            self._unfinished.put(file, result)
        except OSError as error:
            self._answer_unwritten(work.output, result, error)

    def _write(self, output: str, data: bytes) -> NewFile:
        folder = os.path.dirname(output)
        try:
            if folder not in self._folders:
                os.makedirs(folder, exist_ok=True)
                self._folders.add(folder)
            return NewFile(output, data)
        except OSError:
            self._folders.discard(folder)
            raise

    def _answer_unwritten(self, output: str, result: dict[str, Any], error: OSError) -> None:
        words = f"{output!a} can't be written: {error.strerror or error}"[:MESSAGE_CHARACTERS]
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._reports.add(
            {"ticket": result["ticket"], "status": "disk_full", "message": words}
            if full
            else {**result, "status": "failed", "code": "write_failed", "message": words}
        )

    def _tell_problem(self, ticket: int, name: str, bad: BadUtterance) -> None:
        message = str(bad)[:MESSAGE_CHARACTERS]
        self._writer.send({"type": "problem", "ticket": ticket, "file": name, "code": bad.code, "message": message})


class DiskWait:
    """One thread's waiting for the disk that results go to, as the beat thread sees it. ``since``: on the clock of
    time.monotonic, while it waits."""

    def __init__(self) -> None:
        self.since: float | None = None
        self._told: float | None = None

    def __enter__(self) -> None:
        self.since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.since = None

    def is_news(self) -> bool:
        """Whether it takes long, and this is the first time that it is asked during this wait."""
        since = self.since
        if since is None or since == self._told or time.monotonic() - since < SLOW_DISK_S:
            return False
        self._told = since
        return True


class Unfinished:
    """Results between being written and having their names: the main thread puts them in, the syncer syncs many at a
    time when it is worth it, and the main thread takes them out again."""

    def __init__(self, reports: Reports, wake: Callable[[], None]) -> None:
        self._reports = reports
        self._wake = wake
        self._changed = threading.Condition()
        self._written: list[tuple[NewFile, dict[str, Any]]] = []
        self._count = 0
        self.synced: deque[list[tuple[NewFile, dict[str, Any], OSError | None]]] = deque()
        """What went wrong with each stands beside it."""
        self.syncing = DiskWait()

    @property
    def full(self) -> bool:
        """Whether so many are open that the main thread has to wait for the disk."""
        return self._count >= MOST_UNFINISHED

    def put(self, file: NewFile, result: dict[str, Any]) -> None:
        with self._changed:
            self._count += 1
            self._written.append((file, result))
            # The syncer is not woken for each: it would take the interpreter from us.
            if len(self._written) == 1 or self._due:
                self._changed.notify_all()

    def wait(self) -> None:
        """Until some are synced."""
        with self._changed:
            self._changed.wait_for(lambda: self.synced)

    def take_synced(self) -> list[tuple[NewFile, dict[str, Any], OSError | None]]:
        some = self.synced.popleft()
        with self._changed:
            self._count -= len(some)
        return some

    @property
    def _due(self) -> bool:
        """There are enough of them, or no others can come: all else that is expected is synced, or being so."""
        others = self._count - len(self._written)
        return len(self._written) >= min(SYNCED_AT_ONCE, self._reports.expected - others)

    def sync(self) -> None:
        """The syncer thread."""
        disk = Disk()
        while True:
            with self._changed:
                while not self._written:
                    self._changed.wait()
                self._changed.wait_for(lambda: self._due, SYNCED_EVERY_S)
                written, self._written = self._written, []
            with self.syncing:
                errors = disk.sync([file for file, _ in written])
            with self._changed:
                self.synced.append([(*one, error) for one, error in zip(written, errors, strict=True)])
                self._changed.notify_all()
            self._wake()

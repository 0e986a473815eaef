"""Follows submitted jobs to their end: a live view on a terminal, plain lines in a pipe, a summary at the end.

All that is known of a job comes from files: it lies in the inbox, then the outbox has its progress.json, then its
manifest.json; or rejected/ has its reasons. The one difficulty is to know which manifest is ours: the same JOB_ID may
have run before, may be running now, and may run again after. A manifest is ours when it was not there before we
dropped the job, the job.json beside it is what we dropped, and its ``received_at`` is not before the drop; where the
daemon's clock is behind ours, the last counts as met when the daemon no longer lists the job.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.commands.invocation import CommandFailed, ExitCode, complain
from daemon.commands.liveness import Pulse, no_daemon_message
from daemon.commands.reading import Document, count, identity, number, read_document, rows, table, word
from daemon.commands.showing import console, duration, plain, plural

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from daemon.config import Settings
    from daemon.core.job import Job

POLL_SECONDS = 0.25

WIDEST = 100
"""Columns of a terminal that the bars use at most."""

MOST_FAILURES = 10
"""Failed segments that the summary of a job names."""

PATIENCE_SECONDS = 30.0
"""How long a daemon may be gone (a restart) before following gives up."""

CLOCK_TOLERANCE_SECONDS = 0.05
"""Between the clock that dates the dropped file, which moves in ticks of some milliseconds, and the daemon's. Not more:
a job of the same id may have been taken just before."""

Identity = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Awaited:
    """A dropped job, and what was there before it: ``earlier`` are the manifests and rejections of others."""

    job_id: str
    total: int
    folder: Path
    rejected: Path
    file: Path
    dropped_at: float
    document: Document
    earlier: frozenset[Identity]

    def dropped_as(self, file: Path, dropped_at: float, document: Document) -> Awaited:
        """The same, with what is known after the drop: the name in the inbox, the file's own time, what was asked."""
        return replace(self, file=file, dropped_at=dropped_at, document=document)

    def is_asked(self, job: Document) -> bool:
        """Whether this job.json is what was dropped; of a request to redo, the part that it gives."""
        if self.document.keys() == {"job_id", "redo"}:
            return all(job.get(name) == value for name, value in self.document.items())
        return job == self.document


def awaited(settings: Settings, job: Job) -> Awaited:
    """To be made before the job is dropped."""
    folder = settings.paths.outbox / job.job_id
    seen = [identity(path) for path in (*_manifests(folder), *_rejections(settings.paths.rejected))]
    return Awaited(
        job_id=job.job_id,
        total=len(job.segments),
        folder=folder,
        rejected=settings.paths.rejected,
        file=settings.paths.inbox,
        dropped_at=0.0,
        document={},
        earlier=frozenset(mark for mark in seen if mark is not None),
    )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _manifests(folder: Path) -> list[Path]:
    """manifest.json and the manifest.N.json of earlier runs, oldest first, manifest.json last."""
    parts = [(name, name.split(".")) for name in _names(folder)]
    older = [(int(part[1]), name) for name, part in parts if _is_older(part) and part[1].isdecimal()]
    return [*(folder / name for _, name in sorted(older)), folder / "manifest.json"]


def _is_older(part: list[str]) -> bool:
    return len(part) == 3 and part[0] == "manifest" and part[2] == "json"


def _rejections(rejected: Path) -> list[Path]:
    return [rejected / name for name in _names(rejected) if name.endswith(".error.json")]


# --- one job -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Followed:
    """What is known of one job now. ``manifest`` or ``reasons`` are set when it is over."""

    awaited: Awaited
    state: str = "submitted"
    progress: Document = field(default_factory=dict)
    manifest: Document | None = None
    rejection: Document | None = None
    _doubted: tuple[Identity, float] | None = None

    @property
    def over(self) -> bool:
        return self.manifest is not None or self.rejection is not None

    @property
    def total(self) -> int:
        return count(table(self.progress, "counts"), "total") or self.awaited.total

    @property
    def ended(self) -> int:
        counts = table(self.manifest or self.progress, "counts")
        return sum(count(counts, key) for key in ("ok", "failed", "skipped", "cancelled"))

    @property
    def failed(self) -> int:
        return count(table(self.manifest or self.progress, "counts"), "failed")

    def look(self, status: Document | None) -> None:
        """Read how far it is. ``status`` is the daemon's status.json of now."""
        if self.over:
            return
        self.rejection = self._own_rejection()
        if self.rejection is not None:
            self.state = "rejected"
            return
        if self.awaited.file.exists():
            self.state = "waiting to be taken"
            return
        self.manifest = self._own_manifest(status)
        if self.manifest is not None:
            self.state = word(self.manifest, "status")
            return
        progress = read_document(self.awaited.folder / "progress.json")
        if progress is not None and word(progress, "status") in ("queued", "running", "publishing"):
            self.progress = progress
            self.state = word(progress, "status")
        elif self.state in ("submitted", "waiting to be taken"):
            self.state = "taken"

    def _own_rejection(self) -> Document | None:
        for path in _rejections(self.awaited.rejected):
            if identity(path) not in self.awaited.earlier and path.name.startswith(self.awaited.file.stem):
                document = read_document(path)
                if word(document, "name") in ("", self.awaited.file.name):
                    return document
        return None

    def _own_manifest(self, status: Document | None) -> Document | None:
        # In this order: the daemon moves an old manifest.json away before it writes a new job.json.
        asked = read_document(self.awaited.folder / "job.json")
        early: tuple[Identity, Document] | None = None
        for path in _manifests(self.awaited.folder):
            mark = identity(path)
            if mark is None or mark in self.awaited.earlier:
                continue
            if path.name == "manifest.json" and asked is not None and not self.awaited.is_asked(asked):
                continue
            document = read_document(path)
            if document is None:
                continue
            received_at = number(table(document, "timings"), "received_at")
            if received_at is None or received_at >= self.awaited.dropped_at - CLOCK_TOLERANCE_SECONDS:
                return document
            early = mark, document
        if early is None or any(word(job, "job_id") == self.awaited.job_id for job in rows(status, "jobs")):
            self._doubted = None
            return None
        # Received before it was dropped: another's, with ours between its claim and the daemon's list; or the daemon's
        # clock is behind. Once the daemon has not listed the job in three more of its status.json, it is ours.
        mark, document = early
        seq = number(status, "seq") or 0.0
        if self._doubted is None or self._doubted[0] != mark:
            self._doubted = mark, seq
        return document if seq >= self._doubted[1] + 3 else None


# --- all of them -------------------------------------------------------------------------------------------


@contextmanager
def told_when_interrupted(dropped: Sequence[Followed], total: int) -> Iterator[None]:
    """Ctrl-C in here stops none of the jobs that were ``dropped`` so far, out of ``total``: that is said."""
    try:
        yield
    except KeyboardInterrupt:
        names = ", ".join(plain(job.awaited.job_id) for job in dropped if not job.over)
        goes_on = f"the daemon goes on with {names}; 'dubd cancel JOB_ID' stops a job" if names else ""
        missing = total - len(dropped)
        rest = f"{plural(missing, 'job')} not submitted" if missing else ""
        complain(f"interrupted: {', and '.join(filter(None, (goes_on, rest))) or 'all is over'}.")
        raise


def follow(settings: Settings, jobs: Sequence[Followed]) -> int:
    """Show the jobs until all are over, then say what came of them; the exit code.

    Raises:
        CommandFailed: the daemon has gone and does not come back.
    """
    terminal = console()
    watch(settings, jobs, terminal)
    for job in jobs:
        for line in summary(job):
            terminal.print(line)
    if any(job.rejection is not None for job in jobs):
        return ExitCode.REJECTED
    return ExitCode.OK if all(word(job.manifest, "status") == "done" for job in jobs) else ExitCode.FAILED


def watch(
    settings: Settings,
    jobs: Sequence[Followed],
    terminal: Console,
    *,
    check: Callable[[Document], None] = lambda status: None,
) -> None:
    """Until all jobs are over. ``check`` sees every status.json, and may raise.

    Raises:
        CommandFailed: the daemon has gone and does not come back.
    """
    show = _LiveView(terminal) if terminal.is_terminal else _PlainView(terminal)
    pulse = Pulse(settings)
    with show:
        while True:
            status = read_document(settings.paths.status)
            for job in jobs:
                job.look(status)
            silent_s = pulse.silent_s()
            show.update(jobs, [*warnings(status), *_silence(silent_s)])
            if all(job.over for job in jobs):
                return
            check(status or {})
            if silent_s > PATIENCE_SECONDS:
                purpose = "What was submitted is kept, and goes on when it starts again."
                reason = f"it has gone for {silent_s:.0f} seconds"
                raise CommandFailed(no_daemon_message(settings, reason, purpose), ExitCode.NO_DAEMON)
            time.sleep(POLL_SECONDS)


def warnings(status: Document | None) -> list[str]:
    """What the daemon itself says is wrong: why a job may not move."""
    value = (status or {}).get("warnings")
    return [plain(warning) for warning in value if isinstance(warning, str)] if isinstance(value, list) else []


def _silence(silent_s: float) -> list[str]:
    return ["the daemon does not answer"] if silent_s > 1 else []


class _PlainView:
    """A line when a job's state changes, and at every tenth of it what each worker is doing."""

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        self._told: dict[str, tuple[str, int]] = {}
        self._warned: set[str] = set()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, jobs: Sequence[Followed], troubles: Sequence[str]) -> None:
        for job in jobs:
            tenth = 10 * job.ended // max(job.total, 1)
            if self._told.get(job.awaited.job_id) != (job.state, tenth):
                self._told[job.awaited.job_id] = job.state, tenth
                self._terminal.print(_line(job))
                if job.state == "running":
                    for line in _worker_lines(job):
                        self._terminal.print(f"  {line}")
        for trouble in troubles:
            if trouble not in self._warned:
                self._terminal.print(f"! {trouble}")
        self._warned = set(troubles)


class _LiveView:
    """Bars and workers, refreshed in place."""

    def __init__(self, terminal: Console) -> None:
        from rich.live import Live

        self._live = Live(console=terminal, auto_refresh=False, transient=True)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, jobs: Sequence[Followed], troubles: Sequence[str]) -> None:
        from rich.console import Group
        from rich.text import Text

        shown = [part for job in jobs for part in _bars(job, self._live.console.width)]
        shown += [Text(f"! {trouble}", style="yellow") for trouble in troubles]
        self._live.update(Group(*shown), refresh=True)


def _line(job: Followed) -> str:
    share = f" {job.ended}/{job.total}" if job.progress or job.manifest else ""
    eta = number(job.progress, "eta_s")
    left = f", {duration(eta)} left" if eta and job.state == "running" else ""
    failed = f", {job.failed} failed" if job.failed and not job.over else ""
    note = word(job.progress, "note")
    return f"{plain(job.awaited.job_id)}: {plain(job.state)}{share}{failed}{left}" + (
        f" ({plain(note)})" if note else ""
    )


def _worker_lines(job: Followed) -> list[str]:
    """What each worker that is on the job does: whom it speaks, how much it has spoken, what it says itself."""
    lines = []
    for worker in rows(job.progress, "workers"):
        speaker, activity = word(worker, "speaker"), word(worker, "activity")
        parts = [f"{count(worker, 'spoken')} spoken"]
        parts += [f"speaker {plain(speaker)}"] if speaker else []
        parts += [plain(activity)] if activity not in ("", "ready", "busy", "idle") else []
        lines.append(f"worker {plain(worker.get('worker'))} on {_device(worker)}: {', '.join(parts)}")
    return lines


def _device(worker: Document) -> str:
    gpu = worker.get("gpu")
    return "the CPU" if gpu is None else f"GPU {plain(gpu)}"


def _bars(job: Followed, width: int) -> list[RenderableType]:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.width = min(width, WIDEST)
    # The name gives way; how far it is does not.
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for _ in range(5):
        grid.add_column(no_wrap=True)
    eta = number(job.progress, "eta_s")
    grid.add_row(
        Text(plain(job.awaited.job_id), style="bold"),
        ProgressBar(total=max(job.total, 1), completed=job.ended, width=24),
        Text(f"{job.ended}/{job.total}"),
        Text(plain(job.state), style="cyan"),
        Text(f"{job.failed} failed" if job.failed else "", style="red"),
        Text(f"{duration(eta)} left" if eta and job.state == "running" else ""),
    )
    note = word(job.progress, "note")
    lines = [] if job.over else [*_worker_lines(job), *([plain(note)] if note else [])]
    return [grid, *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in lines)]


# --- what came of it ---------------------------------------------------------------------------------------


def summary(job: Followed) -> list[str]:
    """The end of a job, for people."""
    name = plain(job.awaited.job_id)
    if job.rejection is not None:
        reasons = rows(job.rejection, "reasons")
        return [
            f"{name}: rejected for {plural(len(reasons), 'reason')}",
            *(f"  {plain(word(reason, 'path'))}: {plain(word(reason, 'message'))}" for reason in reasons),
            f"  The file is in {plain(job.awaited.rejected)}.",
        ]
    counts, timings = table(job.manifest, "counts"), table(job.manifest, "timings")
    embeddings = word(job.manifest, "kind") == "speaker_embeddings"
    in_words = _speakers_in_words(counts) if embeddings else _counts_in_words(counts)
    lines = [f"{name}: {plain(word(job.manifest, 'status'))}, {in_words}"]
    if error := table(job.manifest, "error"):
        lines.append(f"  {plain(word(error, 'code'))}: {plain(word(error, 'message'))}")
    for speaker in rows(job.manifest, "speakers"):
        if word(speaker, "status") == "failed":
            error = table(speaker, "error")
            who = f"{plain(word(speaker, 'dataset'))}/{plain(word(speaker, 'speaker'))}"
            lines.append(f"  speaker {who} failed: {plain(word(error, 'code'))}: {plain(word(error, 'message'))}")
    audio_s, wall_s, xrt = (number(timings, key) for key in ("audio_s", "wall_s", "xrt"))
    if audio_s is not None:
        # What was spoken before took no time now.
        pace = f", {xrt:.1f} xRT" if xrt is not None and not count(counts, "cached") else ""
        lines.append(f"  {duration(audio_s)} of audio in {duration(wall_s)}{pace}")
    segments = rows(job.manifest, "segments")
    for segment in [segment for segment in segments if table(segment, "missed")][:MOST_FAILURES]:
        missed = table(segment, "missed")
        error = table(missed, "error")
        why = f": {plain(word(error, 'code'))}: {plain(word(error, 'message'))}" if error else ""
        lines.append(
            f"  segment {plain(segment.get('index'))} stays as it was; redoing it: {plain(word(missed, 'status'))}{why}"
        )
    failed = [segment for segment in segments if word(segment, "status") == "failed"]
    for segment in failed[:MOST_FAILURES]:
        error = table(segment, "error")
        who = f"segment {plain(segment.get('index'))} ({plain(word(segment, 'speaker'))})"
        lines.append(f"  {who} failed: {plain(word(error, 'code'))}: {plain(word(error, 'message'))}")
    if len(failed) > MOST_FAILURES:
        lines.append(f"  and {len(failed) - MOST_FAILURES} more; report.html shows them all")
    if failed:
        lines.append(f"  To try them again: dubd redo {shlex.quote(name)} --segments failed --seed new")
    lines.append(f"  {plain(job.awaited.folder)}")
    return lines


def _speakers_in_words(counts: Document) -> str:
    parts = [f"{count(counts, 'ok')}/{count(counts, 'total')} speakers computed"]
    parts += [f"{amount} {key}" for key in ("failed", "skipped", "cancelled") if (amount := count(counts, key))]
    return ", ".join(parts)


def _counts_in_words(counts: Document) -> str:
    parts = [f"{count(counts, 'ok')}/{count(counts, 'total')} segments spoken"]
    if cached := count(counts, "cached"):
        parts.append(f"{cached} of them from before")
    parts += [f"{amount} {key}" for key in ("failed", "skipped", "cancelled") if (amount := count(counts, key))]
    return ", ".join(parts)

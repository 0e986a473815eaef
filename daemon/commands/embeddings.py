"""``dubd embeddings``: one embedding for each speaker, from one for each utterance. Needs no daemon."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation, complain, describe_os_error
from daemon.commands.showing import console, duration, plain, plural

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.config import Settings
    from daemon.embeddings.computation import Computation, Options, Problem, Report

NAMED = 50
"""Failed speakers that are named at the end; the log names all."""

SHOW_CURSOR = "\x1b[?25h"

GOES_ON = "What is finished stays; the same command goes on from there."

TENTHS = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """The options as they were given; None: as the configuration says."""

    utterances_dir: Path | None = None
    speakers_dir: Path | None = None
    num_processes: int | None = None
    chunk_size: int | None = None
    min_utterances: int | None = None
    skip_existing: bool | None = None
    format: str | None = None
    exclude_filename_prefix: tuple[str, ...] = ()
    exclude_filename_pattern: tuple[str, ...] = ()


def execute(invocation: Invocation, asked: Asked) -> int:
    import anyio

    from daemon.threads import watch_threads

    settings = invocation.settings(extra=_overrides(asked))
    utterances_dir = _folder(asked.utterances_dir, settings.embeddings.utterances_dir, "utterances_dir")
    speakers_dir = _folder(asked.speakers_dir, settings.embeddings.speakers_dir, "speakers_dir")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _interrupt)
    watch_threads(_tell_the_end)
    try:
        return anyio.run(_compute, settings, utterances_dir, speakers_dir)
    except KeyboardInterrupt:
        complain(f"stopped. {GOES_ON}")
        raise


def _tell_the_end(why: str) -> None:
    if sys.stdout.isatty():
        sys.stdout.write(SHOW_CURSOR)  # the bar has hidden it, and is not asked any more
        sys.stdout.flush()
    complain(f"{why}. {GOES_ON}")


def _interrupt(number: int, frame: object) -> None:
    """To be told to end is the same as Ctrl-C: what is half done is cleared away, and the log is whole."""
    signal.raise_signal(signal.SIGINT)


def _overrides(asked: Asked) -> list[str]:
    """What was given, as settings: then it is checked like them."""
    import json

    given: dict[str, Any] = {
        name: getattr(asked, name)
        for name in ("num_processes", "chunk_size", "min_utterances", "skip_existing", "format")
        if getattr(asked, name) is not None
    }
    for name in ("exclude_filename_prefix", "exclude_filename_pattern"):
        if getattr(asked, name):
            given[name] = list(getattr(asked, name))
    # A JSON list or string, escaped to ASCII, means the same in TOML.
    return [f"embeddings.{name}={json.dumps(value)}" for name, value in given.items()]


def _folder(given: Path | None, configured: str, name: str) -> Path:
    if given is not None:
        return Path(os.path.abspath(given.expanduser()))
    if not configured:
        message = f"say which folder: --{name} FOLDER, or {name} under [embeddings] in config.toml"
        raise CommandFailed(message, ExitCode.REJECTED)
    return Path(configured)


async def _compute(settings: Settings, utterances_dir: Path, speakers_dir: Path) -> int:
    from daemon import files
    from daemon.embeddings.computation import Computation, ComputationFailed, Listener, Places
    from daemon.embeddings.corpus import Corpus, CorpusRefused
    from daemon.embeddings.options import options_of

    try:
        corpus = Corpus(utterances_dir, allowed_roots=None, apart_from=speakers_dir)
    except CorpusRefused as refused:
        raise CommandFailed(str(refused)) from refused
    try:
        files.make_folder(speakers_dir)
        log = RunLog(speakers_dir)
    except OSError as error:
        raise CommandFailed(describe_os_error(error), ExitCode.REJECTED) from error

    options = options_of(settings.embeddings)
    skip = settings.embeddings.skip_existing

    def places(speaker: Any) -> Places:
        file = f"{speakers_dir}/{speaker.dataset}/{speaker.name}.{options.form}"
        return Places(file, (file,) if skip else ())

    tally = Tally()
    with log:
        log.write("INFO", f"{utterances_dir} to {speakers_dir}: {options}, skip_existing={skip}")

        def report(one: Report) -> None:
            tally.add(one)
            log.report(one)

        told = False

        def note(level: str, line: str) -> None:
            nonlocal told
            log.note(level, line)
            if level == "error" and not told:  # nothing goes on: whoever looks at the bar must know why
                complain(plain(line))
                told = True

        computation = Computation(corpus, options, places, Listener(report, log.problem, note))
        with _view(console(), tally) as view:
            try:
                await view.follow(computation)
            except ComputationFailed as failure:
                log.write("ERROR", str(failure))
                raise CommandFailed(f"{failure}. The log: {plain(log.path)}") from failure
            finally:
                corpus.close()
        lines = _summary(tally, options, speakers_dir, log.path)
        for line in lines:
            log.write("INFO", line)
        for dataset, why in sorted(corpus.unreadable.items()):
            words = f"the dataset {plain(dataset)} can't be read, and none of its speakers is in the results: {why}"
            complain(words)
            log.write("ERROR", words)
    if not tally.qualified:
        log.remove_if_idle(tally)
        raise CommandFailed(_nothing(tally, utterances_dir, options))
    terminal = console()
    for line in lines:
        terminal.print(line)
    return ExitCode.OK


def _nothing(tally: Tally, utterances_dir: Path, options: Options) -> str:
    where = plain(utterances_dir)
    if not tally.found:
        return (
            f"{where} holds no utterance: they are looked for as DATASET/SPEAKER/NAME.pkl, .npy or .npz, at exactly "
            "that depth. Give the folder above the datasets, or look at the --exclude options."
        )
    return (
        f"none of the {plural(tally.counts['too_few'], 'speaker')} in {where} has "
        f"{plural(options.min_utterances, 'utterance')}: lower --min_utterances"
    )


# --- what has come of it so far ----------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts, and no more than NAMED names: a corpus may have any number of speakers."""

    started_at: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    by_process: dict[int, Counter[str]] = field(default_factory=dict)
    found: int = 0
    utterances: int = 0
    bad_utterances: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.counts[report.status] += 1
        self.by_process.setdefault(report.process, Counter())[report.status] += 1
        self.found += report.found
        if report.status == "ok":
            self.utterances += report.utterances
            self.bad_utterances += report.failed
        if report.status == "failed" and len(self.failed) < NAMED:
            self.failed.append(f"{name_of(report)}: {plain(report.message)}")

    @property
    def ended(self) -> int:
        return self.counts.total()

    @property
    def qualified(self) -> int:
        """Speakers with enough utterances, as far as anybody knows."""
        return self.counts["ok"] + self.counts["skipped"] + self.counts["failed"]

    def processes(self) -> str:
        """P0: ✅15 ⏭️3 ❌0  P1: …"""
        return "  ".join(
            f"P{process}: ✅{counts['ok']} ⏭️{counts['skipped']} ❌{counts['failed']}"
            for process, counts in sorted(self.by_process.items())
        )


def name_of(report: Report | Problem) -> str:
    return plain(f"{report.speaker.dataset}/{report.speaker.name}")


def _summary(tally: Tally, options: Options, speakers_dir: Path, log: Path) -> list[str]:
    counts = tally.counts
    seconds = time.monotonic() - tally.started_at
    parts = [f"{counts['ok']:,} done", f"{counts['skipped']:,} skipped", f"{counts['failed']:,} failed"]
    lines = [f"{plural(tally.qualified, 'speaker')}: {', '.join(parts)}"]
    if counts["too_few"]:
        left_out = plural(counts["too_few"], "speaker")
        lines.append(f"  {left_out} left out, with fewer than {plural(options.min_utterances, 'utterance')}")
    if tally.bad_utterances:
        lines.append(f"  {plural(tally.bad_utterances, 'utterance')} could not be used; the log names them")
    lines += [f"  failed: {line}" for line in tally.failed]
    if counts["failed"] > len(tally.failed):
        lines.append(f"  and {counts['failed'] - len(tally.failed):,} more, which the log names")
    pace = f", {tally.utterances / seconds:,.0f} utterances a second" if seconds > 0 and tally.utterances else ""
    processes = f"{options.processes} process" + ("" if options.processes == 1 else "es")
    lines.append(f"  {duration(seconds)} with {processes}{pace}")
    lines.append(f"  Results: {plain(speakers_dir)}   Log: {plain(log)}")
    return lines


# --- the log of the run ------------------------------------------------------------------------------------


class RunLog:
    """A line for every speaker and for every utterance that could not be used, beside the results. Once it is there it
    never fails: on a full disk it says later how many lines are missing.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, folder: Path) -> None:
        stem = f"embeddings_{datetime.now().astimezone():%Y%m%d_%H%M%S}"
        number = 1
        while True:
            self.path = folder / (f"{stem}.log" if number == 1 else f"{stem}_{number}.log")
            try:
                self._file: IO[bytes] = self.path.open("xb", buffering=0)
                break
            except FileExistsError:
                number += 1
        self._missing = 0
        self._torn = False

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, level: str, line: str) -> None:
        text = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {level:7} {plain(line)}\n"
        if self._missing:
            missing = f"WARNING {plural(self._missing, 'line')} could not be written here"
            text = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {missing}\n{text}"
        data = (b"\n" if self._torn else b"") + text.encode("utf-8", "backslashreplace")
        try:
            written = self._file.write(data) or 0
        except OSError:
            written = 0
        if written == len(data):
            self._missing, self._torn = 0, False
        else:
            self._missing += 1
            self._torn = self._torn or written > 0

    def note(self, level: str, line: str) -> None:
        self.write(level.upper(), line)

    def report(self, report: Report) -> None:
        level, words = describe(report)
        self.write(level, f"{name_of(report)}: {words}")

    def problem(self, problem: Problem) -> None:
        self.write("WARNING", f"{name_of(problem)}: {plain(problem.file)}: {problem.code}: {problem.message}")

    def remove_if_idle(self, tally: Tally) -> None:
        """A run that found nothing at all leaves no log behind."""
        if not tally.ended:
            self.path.unlink(missing_ok=True)


def describe(report: Report) -> tuple[str, str]:
    """A report for a log: its level, and what it says."""
    if report.status == "ok":
        bad = f", {plural(report.failed, 'utterance')} could not be used" if report.failed else ""
        return "INFO", f"done, {plural(report.utterances, 'utterance')}, {report.dim} dimensions{bad}"
    if report.status == "skipped":
        return "INFO", "skipped, its result is there"
    if report.status == "too_few":
        return "INFO", f"left out, {plural(report.found, 'utterance')}"
    return "ERROR", f"failed: {report.code}: {report.message}"


# --- how it goes -------------------------------------------------------------------------------------------


def _view(terminal: Console, tally: Tally) -> PlainView:
    return LiveView(terminal, tally) if terminal.is_terminal else PlainView(terminal, tally)


class PlainView:
    """A line at every tenth of the whole."""

    def __init__(self, terminal: Console, tally: Tally) -> None:
        self._terminal = terminal
        self._tally = tally
        self._tenth = 0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def follow(self, computation: Computation) -> None:
        """Run it, and show how it goes.

        Raises:
            ComputationFailed: see there.
        """
        import anyio

        from daemon.embeddings.computation import ComputationFailed

        failure = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, computation)
            try:
                await computation.run()
            except ComputationFailed as error:  # raised here, it would come out in a group
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _watch(self, computation: Computation) -> None:
        import anyio

        while True:
            await anyio.sleep(0.25)
            self.show(computation.total)

    def show(self, total: int | None) -> None:
        tenth = TENTHS * self._tally.ended // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self._terminal.print(f"{self._tally.ended:,}/{total:,} speakers  {self._tally.processes()}")
            sys.stdout.flush()


class LiveView(PlainView):
    """One bar for the whole, and under it what each process has done."""

    def __init__(self, terminal: Console, tally: Tally) -> None:
        super().__init__(terminal, tally)
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("speakers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=terminal
        )
        self._bar = self._progress.add_task("speakers", total=None)
        self._group = Group
        self._live = Live(self._progress, console=terminal, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, total: int | None) -> None:
        from rich.text import Text

        self._progress.update(self._bar, completed=self._tally.ended, total=total)
        self._live.update(self._group(self._progress, Text(self._tally.processes())), refresh=True)

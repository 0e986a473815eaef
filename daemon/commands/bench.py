"""``dubd bench``: measures the engine, whole jobs and the daemon; see docs/benchmarks.md for what each figure means."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from daemon.bench.figures import Figure, Tell, digits, show, telling
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.showing import plain

MOST_WORKERS = 64

FishMeasurement = Literal["decode", "codec", "load", "memory"]


def engine(
    invocation: Invocation,
    what: FishMeasurement,
    *,
    made: Path | None,
    repeats: int,
    without_stock: bool,
    as_json: bool,
    rows: str = "",
    stock_frames: int | None = None,
    segments: int | None = None,
) -> int:
    """The fish engine alone, in the workers' own environment."""
    from daemon.bench.fish import fish

    settings = invocation.settings()
    rows_of_batch = numbers(rows, "--rows") if rows else []
    with _workplace(as_json) as (head, _, tell), fish(settings, made, tell) as measured:
        of_fish, figures = measured.measure(
            what,
            repeats=repeats,
            without_stock=without_stock,
            rows_of_batch=rows_of_batch,
            stock_frames=stock_frames,
            segments=segments,
        )
    show({**head, **of_fish}, figures, as_json=as_json)
    return ExitCode.OK


def job(
    invocation: Invocation, *, made: Path | None, repeats: int, workers: str, without_stock: bool, as_json: bool
) -> int:
    """A film's job through real daemons with the fish engine, against the old way."""
    from daemon.bench.fish import fish
    from daemon.bench.whole_job import WholeJob

    settings = invocation.settings()
    counts = numbers(workers, "--workers", most=MOST_WORKERS)
    with _workplace(as_json) as (head, folder, tell), fish(settings, made, tell) as measured:
        of_fish, figures = WholeJob(folder, invocation, measured, repeats, counts, without_stock).measure()
    show({**head, **of_fish}, figures, as_json=as_json)
    return ExitCode.OK


def overhead(
    invocation: Invocation, *, repeats: int, segments: str, workers: str, idle_seconds: float, as_json: bool
) -> int:
    """The daemon with an engine that costs nothing. Of the user's configuration only what is named counts."""
    from daemon.bench.overhead import Overhead

    sizes = numbers(segments, "--segments", most=1_000_000)
    counts = numbers(workers, "--workers", most=MOST_WORKERS)
    with _workplace(as_json) as (head, folder, tell):
        if invocation.config_file is None:
            defaults = folder / "config.toml"
            defaults.touch()
            for name in [name for name in os.environ if name.startswith("FISH_")]:
                del os.environ[name]
            invocation = replace(invocation, config_file=defaults)
        figures: list[Figure] = []
        for figure in Overhead(folder, invocation, tell, repeats, sizes, counts, idle_seconds).measure():
            figures.append(figure)
            tell(f"{figure.name}: {digits(figure.value)} {figure.unit}")
    show(head, figures, as_json=as_json)
    return ExitCode.OK


def embeddings(*, repeats: int, processes: int, as_json: bool) -> int:
    """Speaker embeddings on made corpora."""
    from daemon.bench.embeddings import Embeddings

    with _workplace(as_json) as (head, folder, tell):
        figures: list[Figure] = []
        for figure in Embeddings(folder, tell, repeats, processes).measure():
            figures.append(figure)
            tell(f"{figure.name}: {digits(figure.value)} {figure.unit}")
    show(head, figures, as_json=as_json)
    return ExitCode.OK


def numbers(text: str, option: str, *, most: int = 100_000) -> list[int]:
    """ "1,8,32" as numbers.

    Raises:
        CommandFailed: one is none, or out of bounds.
    """
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= number <= most for number in found):
        message = f"{option} {plain(text)}: give whole numbers from 1 to {most:,} with commas between, such as 1,2"
        raise CommandFailed(message, ExitCode.REJECTED)
    return found


@contextmanager
def _workplace(as_json: bool) -> Iterator[tuple[dict[str, str], Path, Tell]]:
    """What the machine is, a temporary folder ($TMPDIR says where), and how to tell what goes on. Whoever ends the
    bench, by Ctrl-C or SIGTERM, ends what it has started and removes what it has written."""
    from daemon.bench.machine import head

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with (
        tempfile.TemporaryDirectory(prefix="dubd-bench-", ignore_cleanup_errors=True) as folder,
        telling(quiet=as_json) as tell,
    ):
        yield head(Path(folder)), Path(folder), tell


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt

"""``dubd status``: the daemon at a glance, from its status.json."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from daemon.commands import liveness
from daemon.commands.invocation import ExitCode, Invocation, complain
from daemon.commands.reading import LARGEST_DOCUMENT, Document, count, number, read_document, rows, table, word
from daemon.commands.showing import console, duration, moment, plain, plural, size
from daemon.files import read_regular
from daemon.report.advice import advice

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from daemon.config import Settings

POLL_SECONDS = 0.5
MOST_RECENT = 10
MOST_FAILURES = 3

WIDEST = 110
"""Columns of a terminal that tables use at most: beyond that the eye loses the line."""

STYLES = {"ready": "green", "busy": "bold green", "running": "bold green", "done": "green", "starting": "yellow"} | {
    "restarting": "yellow",
    "partial": "yellow",
    "draining": "yellow",
    "cancelled": "yellow",
    "broken": "bold red",
    "failed": "bold red",
}


def execute(invocation: Invocation, *, watch: bool, as_json: bool) -> int:
    settings = invocation.settings()
    sight = liveness.require(settings)
    if watch:
        return watch_status(settings, as_json=as_json)
    if sight.status is None:
        complain(f"the daemon lives but has not written {settings.paths.status} yet; try again in a moment")
        return ExitCode.FAILED
    if as_json:
        sys.stdout.write(read_regular(settings.paths.status, LARGEST_DOCUMENT).decode())
    else:
        terminal = console()
        terminal.print(view(sight.status, width=terminal.width if terminal.is_terminal else None))
    return ExitCode.OK


def watch_status(settings: Settings, *, as_json: bool) -> int:
    """Show every new status.json until the daemon has gone."""
    terminal = console()
    if terminal.is_terminal and not as_json:
        return _watch_in_place(settings, terminal)
    pulse, seen = liveness.Pulse(settings), None
    while pulse.silent_s() == 0:
        status = read_document(settings.paths.status)
        if status is not None and status.get("seq") != seen:
            seen = status.get("seq")
            if as_json:
                print(json.dumps(status, ensure_ascii=False), flush=True)
            else:
                terminal.print(view(status))
                sys.stdout.flush()
        time.sleep(POLL_SECONDS)
    return _gone()


def _watch_in_place(settings: Settings, terminal: Console) -> int:
    from rich.live import Live

    pulse = liveness.Pulse(settings)
    with Live(console=terminal, auto_refresh=False) as live:
        while pulse.silent_s() == 0:
            status = read_document(settings.paths.status) or {}
            live.update(view(status, width=terminal.width), refresh=True)
            time.sleep(POLL_SECONDS)
    return _gone()


def _gone() -> int:
    complain("the daemon has stopped")
    return ExitCode.NO_DAEMON


def view(status: Document, *, width: int | None = None) -> RenderableType:
    """status.json for people, on a terminal of ``width`` columns, or in a pipe, where lines may be as long as they
    are."""
    from rich.console import Group

    parts: list[RenderableType] = [*(_text(line) for line in _headline(status))]
    if workers := rows(status, "workers"):
        parts += ["", _workers(workers, width)]
    if jobs := rows(status, "jobs"):
        parts += ["", _jobs(jobs, width)]
        parts += [_text(f"{word(job, 'job_id')}: {note}", "dim") for job in jobs if (note := word(job, "note"))]
    if recent := rows(status, "recent"):
        parts += ["", _recent(recent[:MOST_RECENT], width)]
    if failures := rows(status, "failures"):
        parts += ["", *_failures(failures)]
    warnings = [warning for warning in status.get("warnings") or [] if isinstance(warning, str)]
    errors = [f"worker {worker.get('worker')}: {error}" for worker in workers if (error := word(worker, "error"))]
    if warnings or errors:
        parts += ["", *(_text(f"! {line}", "yellow") for line in dict.fromkeys((*errors, *warnings)))]
    return Group(*parts)


def _text(value: object, style: str = "") -> Text:
    from rich.text import Text

    return Text(plain(value), style=style)


def _state(state: str) -> Text:
    return _text(state, STYLES.get(state, ""))


def _headline(status: Document) -> list[str]:
    engine, inbox, throughput = table(status, "engine"), table(status, "inbox"), table(status, "throughput")
    cluster = table(status, "cluster")
    started_at, updated_at = number(status, "started_at"), number(status, "updated_at")
    up = None if started_at is None or updated_at is None else updated_at - started_at
    model = word(engine, "model")
    waiting = plural(count(inbox, "waiting"), "file") + " waiting in the inbox"
    if inbox.get("reachable") is False:
        waiting = "the inbox can't be reached"
    elif table(status, "disk").get("taking_jobs") is False:
        waiting += ", none is taken for want of disk space"
    pace = number(throughput, "segments_per_minute")
    speed = f", {pace:.0f} segments a minute, {number(throughput, 'audio_s_per_s') or 0.0:.1f} xRT" if pace else ""
    return [
        f"dubd {word(status, 'version')} {word(status, 'state')}, pid {status.get('pid')}, up {duration(up)}",
        f"engine {word(engine, 'name')}" + (f" ({model})" if model else ""),
        waiting + speed,
        *([f"cluster {word(cluster, 'address')}: {plural(len(rows(cluster, 'nodes')), 'node')}"] if cluster else []),
    ]


def new_table(*columns: str, width: int | None) -> Table:
    """A table; "<" before a column's name: to the left, "*": it takes what room is left, and is cut where there is
    little. A terminal's whole width is for the latter, up to WIDEST."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    if width is not None:
        made.width = min(width, WIDEST)
    for column in columns:
        flexible = column.startswith("*")
        made.add_column(
            column.strip("<*"),
            justify="left" if column[0] in "<*" else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if flexible and width is not None else None,
        )
    return made


def _workers(workers: list[Document], width: int | None) -> Table:
    restarted = any(count(worker, "restarts") for worker in workers)
    columns = [
        "worker",
        "<device",
        "<state",
        *(["restarts"] if restarted else []),
        "memory",
        "in flight",
        "spoken",
        "*doing",
    ]
    made = new_table(*columns, width=width)
    for worker in workers:
        gpu = worker.get("gpu")
        speaker, activity = word(worker, "speaker"), word(worker, "activity")
        doing = f"{speaker}: {activity}" if speaker and count(worker, "in_flight") else activity
        made.add_row(
            _text(worker.get("worker")),
            _text(" of ".join(filter(None, ("CPU" if gpu is None else f"GPU {gpu}", word(worker, "node"))))),
            _state(word(worker, "state")),
            *([_text(count(worker, "restarts"))] if restarted else []),
            _text(size(count(worker, "memory_bytes")) if count(worker, "memory_bytes") else "-"),
            _text(f"{count(worker, 'in_flight')}/{count(worker, 'slots')}"),
            _text(count(worker, "spoken")),
            _text("" if doing == word(worker, "state") else doing),
        )
    return made


def ended(counts: Document) -> int:
    """How many segments of a job have ended."""
    return sum(count(counts, key) for key in ("ok", "failed", "skipped", "cancelled"))


def _jobs(jobs: list[Document], width: int | None) -> Table:
    from rich.progress_bar import ProgressBar

    made = new_table("*job", "<state", "<progress", "segments", "failed", "left", width=width)
    for job in jobs:
        counts = table(job, "counts")
        total, over = count(counts, "total"), ended(counts)
        made.add_row(
            _text(word(job, "job_id")),
            _state(word(job, "state")),
            ProgressBar(total=max(total, 1), completed=over, width=16),
            _text(f"{over}/{total}"),
            _text(count(counts, "failed")),
            _text(duration(number(job, "eta_s"))),
        )
    return made


def _recent(recent: list[Document], width: int | None) -> Table:
    made = new_table("<ended", "*job", "<came out", "spoken", "failed", width=width)
    for job in recent:
        counts: dict[str, Any] = table(job, "counts")
        made.add_row(
            _text(moment(number(job, "ended_at"))),
            _text(word(job, "job_id")),
            _state(word(job, "status")),
            _text(f"{count(counts, 'ok')}/{count(counts, 'total')}"),
            _text(count(counts, "failed")),
        )
    return made


def _failures(failures: list[Document]) -> list[Text]:
    """The last ones, those of one job that failed alike together, and what to do about them."""
    from daemon.core.redo import indexes_text

    alike: dict[tuple[str, str, str], list[int]] = {}
    for failure in failures:
        key = word(failure, "job_id"), word(failure, "code"), word(failure, "message")
        alike.setdefault(key, []).append(count(failure, "index"))
    lines = []
    for (job_id, code, message), indexes in list(alike.items())[:MOST_FAILURES]:
        segments = f"segment{'s' if len(indexes) > 1 else ''} {indexes_text(indexes)}"
        lines.append(_text(f"{job_id}: {segments} failed: {code}: {message}", "red"))
        lines.append(_text(f"  {advice(code)}"))
    return lines

"""``dubd jobs``: a list of all jobs. Works without a daemon too, on what lies in the folders."""

from __future__ import annotations

import json

from daemon.commands import liveness
from daemon.commands.invocation import ExitCode, Invocation, complain
from daemon.commands.listing import Listed, list_jobs
from daemon.commands.reading import count
from daemon.commands.showing import console, duration, moment, plain

MOST_IN_A_TABLE = 500
"""Jobs; more are listed without colours."""


def execute(invocation: Invocation, *, as_json: bool) -> int:
    settings = invocation.settings()
    sight = liveness.look(settings)
    jobs = list_jobs(settings, sight.status if sight.live else None)
    if as_json:
        # A job on a line: made piece by piece, json's indented form took most of the time of a long list.
        lines = ",\n  ".join(json.dumps(job.as_document()) for job in jobs)
        print(f'{{\n "live": {json.dumps(sight.live)},\n "jobs": [\n  {lines}\n ]\n}}')
        return ExitCode.OK
    if not sight.live:
        complain(f"no daemon is running ({sight.reason}); this is what lies in its folders")
    if jobs:
        show(jobs)
    else:
        print("No jobs.")
    return ExitCode.OK


def mark_as_read(invocation: Invocation, job_ids: list[str]) -> int:
    """Say so beside each manifest; all that can be marked are, whatever is wrong with others."""
    from daemon.core.job_id import job_id_problem
    from daemon.results import mark_as_read as mark

    outbox = invocation.settings().paths.outbox
    code = ExitCode.OK
    for job_id in dict.fromkeys(job_ids):
        try:
            if job_id_problem(job_id) is not None:
                raise FileNotFoundError
            mark(outbox / job_id)
        except (FileNotFoundError, NotADirectoryError):
            complain(f"there is no job {plain(job_id)!r} that has ended; 'dubd jobs' lists all")
            code = ExitCode.REJECTED
        else:
            print(f"{plain(job_id)}: read")
    return code


def show(jobs: list[Listed]) -> None:
    from rich.text import Text

    from daemon.commands.status import STYLES, new_table

    terminal = console()
    narrow = terminal.is_terminal
    # Where a job lies follows from its name; a path that is cut or folded could not be used anyway.
    where = () if narrow else ("<where",)
    columns = ("*job", "<state", "segments", "failed", "<when", *where)
    if len(jobs) > MOST_IN_A_TABLE:
        _show_plainly(columns, jobs, terminal.width if narrow else None)
        return
    made = new_table(*columns, width=terminal.width if narrow else None)
    for job in jobs:
        name, state, *rest = _cells(job, where=not narrow)
        made.add_row(Text(name), Text(state, style=STYLES.get(job.state, "")), *(Text(cell) for cell in rest))
    terminal.print(made)


def _cells(job: Listed, *, where: bool) -> list[str]:
    from daemon.commands.status import ended

    left = f"{duration(job.eta_s)} left" if job.eta_s is not None else ""
    spoken = count(job.counts, "ok") if job.over else ended(job.counts)
    return [
        plain(job.job_id),
        plain(job.state),
        f"{spoken}/{count(job.counts, 'total')}" if job.counts else "-",
        str(count(job.counts, "failed")) if job.counts else "-",
        left or moment(job.ended_at or job.received_at),
        *([plain(job.place)] if where else []),
    ]


def _show_plainly(columns: tuple[str, ...], jobs: list[Listed], width: int | None) -> None:
    """The same table, made at once: rich weighs every cell, a millisecond a line. Names give way on a terminal."""
    from rich.cells import cell_len, set_cell_size

    lines = [[name.strip("<*") for name in columns], *(_cells(job, where=width is None) for job in jobs)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * len(widths)))
    left = [name[0] in "<*" for name in columns]

    def fitted(cell: str, size: int, to_the_left: bool) -> str:
        return set_cell_size(cell, size) if to_the_left else cell.rjust(size)

    shown = ["  ".join(map(fitted, line, widths, left)).rstrip() for line in lines]
    shown.insert(1, "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * (sum(widths) + 2 * len(widths) - 2))
    print("\n".join(shown))

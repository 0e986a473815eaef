"""``dubd jobs``: a list of all jobs. Works without a daemon too, on what lies in the folders."""

from __future__ import annotations

import json

from daemon.commands import liveness
from daemon.commands.invocation import ExitCode, Invocation, complain
from daemon.commands.listing import Listed, list_jobs
from daemon.commands.reading import count
from daemon.commands.showing import console, duration, moment, plain


def execute(invocation: Invocation, *, as_json: bool) -> int:
    settings = invocation.settings()
    sight = liveness.look(settings)
    jobs = list_jobs(settings, sight.status if sight.live else None)
    if as_json:
        print(json.dumps({"live": sight.live, "jobs": [job.as_document() for job in jobs]}, indent=1))
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

    from daemon.commands.status import STYLES, ended, new_table

    terminal = console()
    narrow = terminal.is_terminal
    # Where a job lies follows from its name; a path that is cut or folded could not be used anyway.
    where = () if narrow else ("<where",)
    columns = ("*job", "<state", "segments", "failed", "<when", *where)
    made = new_table(*columns, width=terminal.width if narrow else None)
    for job in jobs:
        left = f"{duration(job.eta_s)} left" if job.eta_s is not None else ""
        spoken = count(job.counts, "ok") if job.over else ended(job.counts)
        made.add_row(
            Text(plain(job.job_id)),
            Text(plain(job.state), style=STYLES.get(job.state, "")),
            Text(f"{spoken}/{count(job.counts, 'total')}" if job.counts else "-"),
            Text(str(count(job.counts, "failed")) if job.counts else "-"),
            Text(left or moment(job.ended_at or job.received_at)),
            *(() if narrow else (Text(plain(job.place)),)),
        )
    terminal.print(made)

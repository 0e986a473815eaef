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


def show(jobs: list[Listed]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from daemon.commands.status import STYLES, ended

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for name, right in (("job", False), ("state", False), ("segments", True), ("failed", True), ("when", False)):
        made.add_column(name, justify="right" if right else "left", no_wrap=True)
    made.add_column("where", overflow="fold")
    for job in jobs:
        left = f"{duration(job.eta_s)} left" if job.eta_s is not None else ""
        spoken = count(job.counts, "ok") if job.over else ended(job.counts)
        made.add_row(
            Text(plain(job.job_id)),
            Text(plain(job.state), style=STYLES.get(job.state, "")),
            Text(f"{spoken}/{count(job.counts, 'total')}" if job.counts else "-"),
            Text(str(count(job.counts, "failed")) if job.counts else "-"),
            Text(left or moment(job.ended_at or job.received_at)),
            Text(plain(job.place)),
        )
    console().print(made)

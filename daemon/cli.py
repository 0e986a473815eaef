"""The commands' names, arguments and help: ``dubd …``, the same as ``python -m daemon …``.

Only what the help needs is imported here, so that a command starts at once; what a command does is in
``daemon/commands/``, a module each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daemon.commands.invocation import Invocation, carry_out

app = typer.Typer(
    name="dubd",
    help="A daemon that clones voices in bulk: a job file in, its WAVs and a manifest out.",
    epilog="Exit codes: 0 done, 1 something failed, 2 rejected or bad usage, 3 no live daemon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration (else $DUBD_CONFIG, ./config.toml, /etc/dubd/config.toml).",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Set one key, over file and environment; repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from daemon import __version__

        typer.echo(f"dubd {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    config: ConfigOption = None,
    overrides: SetOption = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Invocation(config, tuple(overrides or ()))


def _invocation(context: typer.Context, config: Path | None, overrides: list[str] | None) -> Invocation:
    """The options before the command's name and after it together; of two --config, the latter."""
    before: Invocation = context.obj
    return Invocation(config or before.config_file, (*before.overrides, *(overrides or ())))


@app.command()
def run(context: typer.Context, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Run the daemon in the foreground."""
    from daemon.commands import run as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation))


@app.command()
def demo(context: typer.Context, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Speak the sample job (6 speakers, 46 segments) with a daemon in a temporary folder."""
    from daemon.commands import demo as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation))


@app.command()
def submit(
    context: typer.Context,
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB...", help="Job files; references relative to each.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, with a progress bar.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Check jobs and drop them into the inbox, with their references.

    Exit codes: 0 all ok, 1 some segment failed, 2 rejected or bad usage, 3 no live daemon.
    """
    from daemon.commands import submit as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, jobs, wait=wait))


@app.command()
def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and refresh in place.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Show the daemon: its workers and its jobs."""
    from daemon.commands import status as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, watch=watch, as_json=as_json))


@app.command()
def cancel(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="As 'dubd jobs' lists it.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Stop a job; what it has spoken stays in the outbox."""
    from daemon.commands import cancel as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, job_id))


@app.command()
def jobs(
    context: typer.Context,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """List the jobs: waiting, running, finished, rejected."""
    from daemon.commands import jobs as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, as_json=as_json))


@app.command()
def plan(
    context: typer.Context,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", metavar="NAME:GB", help="A GPU to plan for in place of this machine's; repeatable."),
    ] = None,
    model_memory_gb: Annotated[
        float | None, typer.Option("--model-memory-gb", metavar="GB", help="GPU memory of one worker.")
    ] = None,
    speakers: Annotated[
        int | None, typer.Option("--speakers", metavar="N", min=0, help="Also assign N speakers to the workers.")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="MODE", help="multi, single or auto, as pool.mode.")] = "multi",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Show which workers would run on which GPU, for this machine or a described one. Loads no model."""
    from daemon.commands import plan as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.execute(
            invocation,
            described=gpu or [],
            model_memory_gb=model_memory_gb,
            speakers=speakers,
            mode=mode,
            as_json=as_json,
        )
    )


@app.command()
def encode(
    context: typer.Context,
    reference: Annotated[Path, typer.Argument(metavar="REF", help="A recording of the speaker.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="X.npy", help="Where the codes go.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Turn a reference recording into codec codes."""
    from daemon.commands import encode as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, reference, output))


@app.command()
def doctor(
    context: typer.Context,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Check all that the daemon needs, and say how to mend what is wrong. Exit code 1 when it could not work."""
    from daemon.commands import doctor as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, as_json=as_json))


def main() -> None:
    app(prog_name="dubd")

"""The commands' names, arguments and help: ``dubd …``, the same as ``python -m daemon …``.

Only what the help needs is imported here, so that a command starts at once; what a command does is in
``daemon/commands/``, a module each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import typer.core

from daemon.commands.invocation import Invocation, carry_out

app = typer.Typer(
    name="dubd",
    help="A daemon that clones voices in bulk: a job file in, its WAVs and a manifest out.",
    epilog="Exit codes: 0 done, 1 something failed, 2 rejected or bad usage, 3 no live daemon.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # tables of options cut their names off at 80 columns
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


@app.command(short_help="Speak the sample job with a daemon of its own.")
def demo(context: typer.Context, config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Speak the sample job (6 speakers, 46 segments) with a daemon in a temporary folder."""
    from daemon.commands import demo as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation))


@app.command(short_help="Check jobs and drop them into the inbox.")
def submit(
    context: typer.Context,
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB", help="Job files; references relative to each.")],
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


@app.command(short_help="Make a job of subtitles and voices.")
def srt(
    context: typer.Context,
    subtitles: Annotated[Path, typer.Argument(metavar="FILM.srt", help="SubRip, WebVTT or SubStation (ASS).")],
    voice: Annotated[
        list[str] | None,
        typer.Option(
            "--voice",
            metavar="NAME=FILE:TEXT",
            help="A speaker's recording, or codes (.npy), and what is said in it. :@FILE reads the text from a file; "
            "without a text it is looked for in a .txt beside the recording. Repeatable, for one name, too.",
        ),
    ] = None,
    voices: Annotated[
        list[Path] | None,
        typer.Option("--voices", metavar="FILE", help="Voices from a TOML or JSON file, or from a job; repeatable."),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option("--alias", metavar="NAME=VOICE", help="Lines of NAME are spoken by VOICE; repeatable."),
    ] = None,
    default_speaker: Annotated[
        str | None, typer.Option("--default-speaker", metavar="NAME", help="Speaks the lines without a tag.")
    ] = None,
    keep_speaker: Annotated[
        bool, typer.Option("--keep-speaker", help="A line without a tag is spoken by who spoke before.")
    ] = False,
    speakers: Annotated[
        Path | None,
        typer.Option("--speakers", metavar="CSV", help="Who speaks: rows of a cue's number or a time, and a name."),
    ] = None,
    speaker_tag: Annotated[
        list[str] | None,
        typer.Option(
            "--speaker-tag",
            metavar="FORM",
            help="How lines name their speaker: colon (ANNA:), bracket ([Anna]), voice (<v Anna>, ASS), or none; "
            "repeatable. All three unless given.",
        ),
    ] = None,
    not_a_speaker: Annotated[
        list[str] | None,
        typer.Option("--not-a-speaker", metavar="TEXT", help="Looks like a tag (Note:) and is none; repeatable."),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="A sentence that goes on in the next cue is spoken as one line.")
    ] = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", metavar="NAME", help="Of the subtitles; found out unless given.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", metavar="N", min=1, max=1000, help="Pictures a second, for times as 01:00:02:12."),
    ] = None,
    offset: Annotated[
        str | None,
        typer.Option("--offset", metavar="TIME", help="Added to all times, such as -1:00:00 or 2.5."),
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", metavar="TAG", help="Of the lines, such as fr or pt-BR.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--job-id", metavar="JOB_ID", help="The subtitles' name unless given.")
    ] = None,
    priority: Annotated[int | None, typer.Option("--priority", metavar="N", help="Of the job: -100 to 100.")] = None,
    job_set: Annotated[
        list[str] | None,
        typer.Option(
            "--job-set",
            metavar="KEY=VALUE",
            help="Set a field of the job, such as output.sample_rate=48000 or defaults.seed=7; repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="JOB.json", help="FILM.json beside the subtitles unless given; - prints."
        ),
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit the job, too.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Submit it and wait for the end.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Make a job of subtitles and voices, and print where it is.

    Exit codes: 0 done, 2 mistakes (all are told, with their lines); with --submit and --wait as 'dubd submit'.
    """
    from daemon.commands import srt as command

    invocation = _invocation(context, config, overrides)
    asked = command.Asked(
        subtitles=subtitles,
        output=output,
        submit=submit,
        wait=wait,
        speaker_tags=tuple(speaker_tag or ()),
        voices=tuple(voice or ()),
        voice_files=tuple(voices or ()),
        aliases=tuple(alias or ()),
        speaker_table=speakers,
        no_speakers=tuple(not_a_speaker or ()),
        default_speaker=default_speaker,
        keep_speaker=keep_speaker,
        join=join,
        encoding=encoding,
        fps=fps,
        offset=offset,
        language=language,
        job_id=job_id,
        priority=priority,
        settings=tuple(job_set or ()),
    )
    carry_out(lambda: command.execute(invocation, asked))


@app.command(short_help="Lay a finished job on the film's clock.")
def stitch(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB_ID", help="Or a job's folder, or its manifest.json.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="TRACK.wav", help="The track; with --per-speaker a folder.")
    ],
    per_speaker: Annotated[bool, typer.Option("--per-speaker", help="A track for each speaker.")] = False,
    stereo: Annotated[bool, typer.Option("--stereo", help="Two channels, the same in both.")] = False,
    sample_rate: Annotated[
        int | None,
        typer.Option("--sample-rate", metavar="HZ", min=8_000, max=192_000, help="The segments' own unless given."),
    ] = None,
    subtype: Annotated[str, typer.Option("--subtype", metavar="TYPE", help="PCM_16, PCM_24 or FLOAT.")] = "PCM_16",
    length: Annotated[
        str | None,
        typer.Option(
            "--length",
            metavar="TIME",
            help="Seconds, H:MM:SS.mmm, or a recording that is as long; to the last segment's end unless given.",
        ),
    ] = None,
    gain: Annotated[float, typer.Option("--gain", metavar="DB", min=-60, max=60, help="On all segments.")] = 0.0,
    gap: Annotated[
        float | None,
        typer.Option(
            "--gap",
            metavar="SECONDS",
            min=0,
            max=3600,
            help="Segments without a time follow the one before after so long.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Lay only files that are what the manifest says (yes).")
    ] = True,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Lay the segments of a finished job on the film's clock, and tell what overlaps or is missing.

    Exit codes: 0 all laid, 1 some are missing (the track is written), 2 bad usage, or nothing to lay.
    """
    from daemon.commands import stitch as command

    invocation = _invocation(context, config, overrides)
    asked = command.Asked(
        job=job,
        output=output,
        per_speaker=per_speaker,
        channels=2 if stereo else 1,
        sample_rate=sample_rate,
        subtype=subtype,
        length=length,
        gain_db=gain,
        gap_s=gap,
        verify=verify,
        as_json=as_json,
    )
    carry_out(lambda: command.execute(invocation, asked))


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


@app.command(short_help="Speak some segments of an ended job once more.")
def redo(
    context: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="As 'dubd jobs' lists it.")],
    segments: Annotated[
        str, typer.Option("--segments", metavar="LIST", help="Which, by their index, such as 3,7-9; or: failed.")
    ],
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="SEED", help="new, or a number; the seed they had unless given.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, with a progress bar.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Speak some segments of an ended job once more; all others stay what they are.

    Exit codes: 0 all ok, 1 some segment failed, 2 rejected or bad usage, 3 no live daemon.
    """
    from daemon.commands import redo as command

    invocation = _invocation(context, config, overrides)
    carry_out(lambda: command.execute(invocation, job_id, segments=segments, seed=seed, wait=wait))


@app.command()
def jobs(
    context: typer.Context,
    read: Annotated[
        list[str] | None,
        typer.Option(
            "--read",
            metavar="JOB_ID",
            help="Say that its results have been read: [retention] may remove them; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """List the jobs: waiting, running, finished, rejected."""
    from daemon.commands import jobs as command

    invocation = _invocation(context, config, overrides)
    if read:
        carry_out(lambda: command.mark_as_read(invocation, read))
    carry_out(lambda: command.execute(invocation, as_json=as_json))


@app.command(short_help="Show which workers would run on which GPU.")
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


@app.command(short_help="Check all that the daemon needs; say how to mend it.")
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


class _SeveralValues(typer.core.TyperCommand):
    """A command whose options may each be followed by several values: ``--exclude_filename_prefix a b`` is the same as
    giving the option twice. It takes no arguments, so nothing else can be meant."""

    def parse_args(self, context: typer.Context, arguments: list[str]) -> list[str]:  # type: ignore[override]
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current: str | None = None
        for argument in arguments:
            if argument.startswith("-"):
                current = argument if argument in several else None
            elif current is not None and spread[-1] != current:
                spread.append(current)
            spread.append(argument)
        return super().parse_args(context, spread)


@app.command(cls=_SeveralValues, short_help="Compute one embedding for each speaker.")
def embeddings(
    context: typer.Context,
    utterances_dir: Annotated[
        Path | None,
        typer.Option("--utterances_dir", "--utterances-dir", metavar="DIR", help="Holds DATASET/SPEAKER/NAME.pkl."),
    ] = None,
    speakers_dir: Annotated[
        Path | None,
        typer.Option("--speakers_dir", "--speakers-dir", metavar="DIR", help="Gets DATASET/SPEAKER.pkl."),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option("--num_processes", "--num-processes", metavar="N", help="As many as cores unless given."),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option("--chunk_size", "--chunk-size", metavar="N", help="Speakers dealt at a time (10).")
    ] = None,
    min_utterances: Annotated[
        int | None,
        typer.Option("--min_utterances", "--min-utterances", metavar="N", help="Speakers with fewer are left out (1)."),
    ] = None,
    skip_existing: Annotated[
        bool | None,
        typer.Option(
            "--skip_existing/--no-skip_existing",
            "--skip-existing/--no-skip-existing",
            help="Leave speakers alone that have a whole result (yes).",
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="pkl|npz", help="npz is the same without pickle.")
    ] = None,
    exclude_filename_prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude_filename_prefix", "--exclude-filename-prefix", metavar="P...", help="Leave out such files."
        ),
    ] = None,
    exclude_filename_pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude_filename_pattern", "--exclude-filename-pattern", metavar="GLOB...", help="Leave out such files."
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Compute one embedding for each speaker from those of its utterances. Needs no daemon.

    Exit codes: 0 done, also when speakers failed; 1 nothing to do; 2 bad usage.
    """
    from daemon.commands import embeddings as command

    invocation = _invocation(context, config, overrides)
    asked = command.Asked(
        utterances_dir=utterances_dir,
        speakers_dir=speakers_dir,
        num_processes=num_processes,
        chunk_size=chunk_size,
        min_utterances=min_utterances,
        skip_existing=skip_existing,
        format=form,
        exclude_filename_prefix=tuple(exclude_filename_prefix or ()),
        exclude_filename_pattern=tuple(exclude_filename_pattern or ()),
    )
    carry_out(lambda: command.execute(invocation, asked))


# --- dubd bench ----------------------------------------------------------------------------------------------

bench = typer.Typer(
    help="Measure the engine against the stock way, whole jobs, and the daemon itself.",
    epilog="docs/benchmarks.md says what each figure means. TMPDIR says where the bench works.",
    no_args_is_help=True,
)
app.add_typer(bench, name="bench", short_help="Measure the engine, whole jobs, and the daemon itself.")

BenchJsonOption = Annotated[
    bool, typer.Option("--json", help="A list of {name, value, unit, ratio_to_stock}; the hardware on standard error.")
]
RepeatsOption = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="Figures are medians of so many.")]
MadeOption = Annotated[
    Path | None,
    typer.Option(
        "--made",
        metavar="FOLDER",
        help="Random weights in the real shape, made in FOLDER (4 GB) and kept there to be used again; without a "
        "configured checkpoint they are made in a temporary folder. Speed does not depend on what weights say.",
    ),
]
WithoutStockOption = Annotated[bool, typer.Option("--without-stock", help="Leave the stock way out; it is slow.")]


@bench.command("decode")
def bench_decode(
    context: typer.Context,
    rows: Annotated[str, typer.Option("--rows", metavar="N,N", help="Sizes of the batch.")] = "1,8,32,64",
    stock_frames: Annotated[
        int | None,
        typer.Option("--stock-frames", metavar="N", min=1, help="Frames that stock speaks (64; on a CPU 16)."),
    ] = None,
    made: MadeOption = None,
    without_stock: WithoutStockOption = False,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """The fish decoder alone, in frames a second, against stock."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.engine(
            invocation,
            "decode",
            made=made,
            repeats=repeats,
            without_stock=without_stock,
            as_json=as_json,
            rows=rows,
            stock_frames=stock_frames,
        )
    )


@bench.command("codec", short_help="The fish codec alone, against stock.")
def bench_codec(
    context: typer.Context,
    made: MadeOption = None,
    without_stock: WithoutStockOption = False,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """The fish codec alone, in seconds of audio a second, against stock."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.engine(
            invocation, "codec", made=made, repeats=repeats, without_stock=without_stock, as_json=as_json
        )
    )


@bench.command("load", short_help="Loading the fish engine, against stock.")
def bench_load(
    context: typer.Context,
    made: MadeOption = None,
    without_stock: WithoutStockOption = False,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Loading the fish engine, against stock and against reading its files once."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.engine(
            invocation, "load", made=made, repeats=repeats, without_stock=without_stock, as_json=as_json
        )
    )


@bench.command("memory", short_help="Memory of the fish engine: peak and growth.")
def bench_memory(
    context: typer.Context,
    segments: Annotated[
        int, typer.Option("--segments", metavar="N", min=0, help="Segments to watch the memory over; 0: none.")
    ] = 2000,
    made: MadeOption = None,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """What the fish engine holds at most with 32 rows of 1,024 positions, and how it grows over many segments."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.engine(
            invocation, "memory", made=made, repeats=1, without_stock=True, as_json=as_json, segments=segments
        )
    )


@bench.command("job", short_help="A whole job from inbox to manifest, against stock.")
def bench_job(
    context: typer.Context,
    workers: Annotated[str, typer.Option("--workers", metavar="N,N", help="Sizes of the pool.")] = "1,2",
    made: MadeOption = None,
    without_stock: WithoutStockOption = False,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """A film's job (6 speakers, 46 segments) from inbox to manifest with the fish engine, against the stock way."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.job(
            invocation, made=made, repeats=repeats, workers=workers, without_stock=without_stock, as_json=as_json
        )
    )


@bench.command("daemon")
def bench_daemon(
    context: typer.Context,
    segments: Annotated[str, typer.Option("--segments", metavar="N,N", help="Sizes of the jobs.")] = "2000,10000",
    workers: Annotated[
        str, typer.Option("--workers", metavar="N,N", help="Sizes of the pool, for the speed-up.")
    ] = "1,2,4,6",
    idle_seconds: Annotated[float, typer.Option("--idle-seconds", metavar="S", min=0.1, help="How long to idle.")] = 10,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """The daemon itself, with an engine that costs nothing. Only a configuration that is named counts."""
    from daemon.commands import bench as command

    invocation = _invocation(context, config, overrides)
    carry_out(
        lambda: command.overhead(
            invocation,
            repeats=repeats,
            segments=segments,
            workers=workers,
            idle_seconds=idle_seconds,
            as_json=as_json,
        )
    )


@bench.command("embeddings", short_help="Speaker embeddings, against a plain Pool.")
def bench_embeddings(
    context: typer.Context,
    processes: Annotated[int, typer.Option("--processes", metavar="N", min=2, max=64, help="To compare with one.")] = 2,
    repeats: RepeatsOption = 3,
    as_json: BenchJsonOption = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Speaker embeddings on made corpora, against reading alone and against a plain multiprocessing.Pool."""
    from daemon.commands import bench as command

    _invocation(context, config, overrides)
    carry_out(lambda: command.embeddings(repeats=repeats, processes=processes, as_json=as_json))


def main() -> None:
    app(prog_name="dubd")

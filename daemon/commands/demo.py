"""``dubd demo``: a real daemon in a temporary folder speaks the sample job, and says where to listen.

Nothing of the user's configuration is used unless it is named: a demo must not fail, or write anywhere else, because of
a config.toml that happens to lie in the current folder. The demo's own config.toml stays in its folder, so that the
other commands can be tried on it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file
from pathlib import Path

import daemon
from daemon.commands import liveness
from daemon.commands.following import Followed, summary, watch
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.reading import Document, count, number, read_document, rows, table, word
from daemon.commands.showing import console, duration, plain, plural
from daemon.config import Settings

START_SECONDS = 60.0
STOP_SECONDS = 40.0

LOG_LINES = 25
"""Of the daemon's log, the last so many lines are shown when it fails."""

PLAYERS = {"ffplay": "ffplay -autoexit -nodisp {}", "aplay": "aplay {}", "paplay": "paplay {}", "play": "play {}"}
"""Programs that play a WAV, and how each is asked to."""

# The daemon ends with its demo, however that ends (PR_SET_PDEATHSIG is 1), and is ours whatever the current folder is.
RUN_DAEMON = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
sys.path.insert(0, sys.argv.pop(1))
from daemon.cli import main
main()
"""


def execute(invocation: Invocation) -> int:
    folder = Path(tempfile.mkdtemp(prefix="dubd-demo-"))
    invocation = prepare(invocation, folder)
    settings = invocation.settings()
    terminal = console()
    terminal.print(f"A daemon starts in {folder}, with the {settings.engine.name} engine.")
    with running_daemon(invocation, settings, folder):
        job = submit_sample(settings, folder)
        watch(settings, [job], terminal, check=lambda status: check_workers(status, folder))
    for line in listing(job, settings):
        terminal.print(line)
    counts = table(job.manifest, "counts")
    spoken = count(counts, "ok") == count(counts, "total") > 0
    return ExitCode.OK if spoken else ExitCode.FAILED


def prepare(invocation: Invocation, folder: Path) -> Invocation:
    """The same invocation, with every path in the demo's folder. A user's --config or --set changes the rest."""
    config = invocation.config_file
    if config is None:
        workers = min(6, max(2, len(os.sched_getaffinity(0)) // 2))
        config = folder / "config.toml"
        config.write_text(
            "# Of a demo of dubd. Try on it: dubd status --config this-file\n"
            f"[pool]\nworkers = {workers}\n\n"
            '[engine]\nname = "draft"\n\n'
            "[inbox]\nsettle_seconds = 0.3\n\n"
            "[service]\nprogress_seconds = 0.1\nstatus_seconds = 0.2\n\n"
            "[worker]\nbeat_seconds = 0.1\n\n"
            '[log]\nformat = "console"\n',
            encoding="utf-8",
        )
        # What is set for real work (another environment's workers, a mode for its GPUs) is not meant for the demo.
        for name in [name for name in os.environ if name.startswith("FISH_")]:
            del os.environ[name]
    places = ("inbox", "outbox", "rejected", "state")
    paths = [f"paths.{name}={folder / name}" for name in places]
    forced = (f"paths.root={folder}", *paths, f"paths.status={folder / 'status.json'}", "paths.allowed_roots=[]")
    return replace(invocation, config_file=Path(config).resolve(), overrides=(*invocation.overrides, *forced))


@contextmanager
def running_daemon(invocation: Invocation, settings: Settings, folder: Path) -> Iterator[None]:
    """A daemon of our own, live inside the block, stopped after it.

    Raises:
        CommandFailed: it does not start; shows the end of its log.
    """
    package = str(Path(daemon.__file__).resolve().parent.parent)
    log = folder / "daemon.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_DAEMON, package, "run", *invocation.arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            # Ctrl-C is for the demo, which then stops its daemon.
            start_new_session=True,
        )
    try:
        _await_start(process, settings, log)
        yield
    finally:
        _stop(process)


def _await_start(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    lock = settings.paths.state / "lock"
    while process.poll() is None and time.monotonic() < deadline:
        if liveness.probe_lock(lock) == "held" and word(read_document(settings.paths.status), "state") == "running":
            return
        time.sleep(0.05)
    why = "did not start in time" if process.poll() is None else f"ended with status {process.returncode}"
    raise CommandFailed(f"the demo's daemon {why}. The end of {log}:\n{_tail(log)}\n'dubd doctor' may know more.")


def check_workers(status: Document, folder: Path) -> None:
    """A daemon goes on trying to start its workers, for the cause may be mended; a demo gives up.

    Raises:
        CommandFailed: no worker can be started.
    """
    workers = rows(status, "workers")
    if workers and all(word(worker, "state") == "broken" for worker in workers):
        why = word(workers[0], "error")
        log = folder / "daemon.log"
        raise CommandFailed(
            f"no worker can be started: {plain(why)}\nThe end of {log}:\n{_tail(log)}\nSee 'dubd doctor'."
        )


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"  {plain(line)}" for line in lines)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to drain, and insist after a while."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def submit_sample(settings: Settings, folder: Path) -> Followed:
    """Drop the sample job, as ``dubd submit`` would."""
    from daemon.commands.submit import drop, prepare
    from daemon.sample import JOB_FILE_NAME, sample_folder

    copy = folder / "sample"
    with as_file(sample_folder()) as source:
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    submission, mistakes = prepare(copy / JOB_FILE_NAME, settings)
    if submission is None or mistakes:
        reasons = "; ".join(f"{mistake.where}: {mistake.message}" for mistake in mistakes)
        raise CommandFailed(f"the sample job does not fit these settings: {reasons}")
    dropped: list[Followed] = []
    drop(submission, settings, dropped)
    return dropped[0]


def listing(job: Followed, settings: Settings) -> list[str]:
    """Every WAV, then who spoke, how much, and how to listen."""
    if job.manifest is None:
        return summary(job)
    folder = job.awaited.folder
    segments = rows(job.manifest, "segments")
    names = list(dict.fromkeys(word(segment, "speaker") for segment in segments))
    width = max(map(len, names), default=0)
    lines = [_wav(segment, width) for segment in segments]
    by_speaker = [f"{plain(name)} {sum(word(one, 'speaker') == name for one in segments)}" for name in names]
    counts = table(job.manifest, "counts")
    head, *rest = summary(job)
    first = next((word(one, "file") for one in segments if word(one, "file")), "")
    return [
        *lines,
        "",
        head,
        *rest[:-1],
        f"  {plural(len(names), 'speaker')}: {', '.join(by_speaker)}",
        f"  by {_workers(settings)}",
        "",
        f"{count(counts, 'ok')}/{count(counts, 'total')} segments spoken. Listen to them in {folder}",
        *_how_to_play(folder / first if first else None),
        f"The folder is kept; remove it with: rm -r {settings.paths.root}",
    ]


def _wav(segment: Document, width: int) -> str:
    speaker, text = plain(word(segment, "speaker")), plain(word(segment, "text"))
    if word(segment, "status") != "ok":
        return f"  {'-':<18} {speaker:<{width}} {word(segment, 'status'):>7}  {text}"
    seconds = number(segment, "duration_s")
    return f"  {plain(word(segment, 'file')):<18} {speaker:<{width}} {duration(seconds):>7}  {text}"


def _workers(settings: Settings) -> str:
    workers = rows(read_document(settings.paths.status), "workers")
    shares = [f"worker {worker.get('worker')}: {count(worker, 'spoken')}" for worker in workers]
    return f"{plural(len(workers), 'worker')} ({', '.join(shares)} segments)" if workers else "its workers"


def _how_to_play(wav: Path | None) -> Sequence[str]:
    if wav is None:
        return []
    command = next((form for program, form in PLAYERS.items() if shutil.which(program)), None)
    if command is None:
        return ["Any audio player opens them; on a machine without one, copy the folder to yours."]
    return [f"Play one with: {command.format(wav)}"]

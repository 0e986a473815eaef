"""Measurements of the fish engine, made in the workers' own environment.

``workers.engines.fish.bench`` measures; it runs in the worker's interpreter, from a folder that holds nothing but a
link to the package ``workers``: like a worker, it sees that package of ours alone, and so do the processes it starts.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workers.protocol
from daemon.bench.figures import Figure, Tell
from daemon.commands.encode import roomy_device
from daemon.commands.invocation import CommandFailed
from daemon.commands.reading import number, rows, word
from daemon.commands.showing import plain
from daemon.worker_process import worker_command

if TYPE_CHECKING:
    from daemon.config import Settings

MADE_BYTES = 4_000_000_000
"""What a made checkpoint takes on disk, with some room: 1.7 GB the model, 1.9 GB the codec."""

STOCK_FRAMES_ON_CPU = 16
"""How many frames stock speaks at a time when the decoder is measured on a CPU, where one takes it seconds."""

LAST_LINES = 12

# Ends with the bench, however that ends: PR_SET_PDEATHSIG is 1, SIGKILL 9.
RUN_MODULE = """
import ctypes, runpy, sys
ctypes.CDLL(None).prctl(1, 9)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Fish:
    """How to measure fish: the settings of its workers, a checkpoint, the device with the most room."""

    settings: Settings
    checkpoint: Path
    made: bool
    device: str
    tell: Tell

    def measure(
        self,
        what: str,
        *,
        repeats: int,
        without_stock: bool,
        rows_of_batch: Sequence[int] = (),
        stock_frames: int | None = None,
        segments: int | None = None,
    ) -> tuple[dict[str, str], list[Figure]]:
        """Measure "decode", "codec", "job", "load" or "memory": what it ran on, and the figures.

        Raises:
            CommandFailed: it could not be measured; says why.
        """
        settings = self.settings
        arguments = [what, "--json", "--checkpoint", str(self.checkpoint), "--device", self.device]
        arguments += ["--precision", settings.engine.precision, "--slots", str(settings.engine.slots)]
        arguments += ["--threads", str(_threads(settings)), "--repeats", str(repeats)]
        if without_stock:
            arguments.append("--without-stock")
        if rows_of_batch:
            arguments += ["--rows", *map(str, rows_of_batch)]
        if stock_frames is None and what == "decode" and self.device == "cpu":
            stock_frames = STOCK_FRAMES_ON_CPU
        if stock_frames is not None:
            arguments += ["--stock-frames", str(stock_frames)]
        if segments is not None:
            arguments += ["--segments", str(segments)]
        self.tell(f"fish, {what}: {'' if without_stock else 'ours and the stock way '}on {self.device}")
        said = run_module(settings, "workers.engines.fish.bench", arguments, device=self.device)
        document = _last_document(said)
        figures = [
            Figure(word(one, "name"), number(one, "value") or 0.0, word(one, "unit"), number(one, "ratio_to_stock"))
            for one in rows(document, "results")
        ]
        head = {f"fish {key}": str(value) for key, value in document.items() if key != "results"}
        head["fish checkpoint"] = "made: random weights in the real shape" if self.made else str(self.checkpoint)
        return head, figures


@contextmanager
def fish(settings: Settings, made: Path | None, tell: Tell) -> Iterator[Fish]:
    """With the configured checkpoint, or one of random weights: in the folder ``made``, where it stays and is used
    again, or, when there is neither, in a temporary one.

    Raises:
        CommandFailed: there is no room for it, or it can't be made.
    """
    device = roomy_device(settings)
    configured = settings.engine.checkpoint
    if made is None and configured:
        yield Fish(settings, Path(configured).expanduser().absolute(), False, device, tell)
        return
    if made is not None:
        made = made.expanduser().absolute()
        if not (made / "codec.pth").exists():
            make_checkpoint(settings, made, tell)
        yield Fish(settings, made, True, device, tell)
        return
    with tempfile.TemporaryDirectory(prefix="dubd-bench-", ignore_cleanup_errors=True) as folder:
        make_checkpoint(settings, Path(folder) / "checkpoint", tell)
        yield Fish(settings, Path(folder) / "checkpoint", True, device, tell)


def make_checkpoint(settings: Settings, folder: Path, tell: Tell) -> None:
    """Random weights in the model's real shape; the folder is there when it is whole."""
    if folder.exists() and any(folder.iterdir()):
        raise CommandFailed(f"{plain(folder)} is not empty and holds no checkpoint; give another folder with --made")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < MADE_BYTES:
        raise CommandFailed(
            f"a made checkpoint takes {MADE_BYTES / 1e9:.0f} GB, and {plain(folder.parent)} has {free / 1e9:.1f} GB "
            "free; give a folder elsewhere with --made FOLDER, or a real checkpoint with engine.checkpoint"
        )
    tell(f"making a checkpoint of random weights, {MADE_BYTES / 1e9:.0f} GB, in {folder}")
    with tempfile.TemporaryDirectory(prefix=".dubd-bench-", dir=folder.parent, ignore_cleanup_errors=True) as name:
        whole = Path(name) / "checkpoint"
        run_module(settings, "workers.engines.fish.make_checkpoint", [str(whole), "--shape", "real"], device="cpu")
        if folder.exists():
            folder.rmdir()
        whole.rename(folder)


def run_module(settings: Settings, module: str, arguments: Sequence[str], *, device: str) -> str:
    """Run a module of ``workers`` as a program in the worker's environment; what it wrote on its standard output.

    Raises:
        CommandFailed: it can't be started, or failed; with the end of what it said.
    """
    command = worker_command(
        settings.worker.python,
        [str(folder) for folder in settings.worker.path],
        os.environ,
        gpu=device != "cpu",
        threads=_threads(settings),
    )
    environment = dict(command.environment)
    path = [*command.path, *filter(None, [environment.get("PYTHONPATH", "")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    environment.pop("PYTHONSAFEPATH", None)
    with tempfile.TemporaryDirectory(prefix="dubd-bench-", ignore_cleanup_errors=True) as folder:
        alone = Path(folder) / "alone"
        alone.mkdir()
        (alone / "workers").symlink_to(Path(workers.protocol.__file__).resolve().parent, target_is_directory=True)
        said, complaints = Path(folder) / "said", Path(folder) / "complaints"
        # What it leaves lying goes with the folder; what torch has compiled is worth keeping where it always is.
        compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compiled))
        environment["TMPDIR"] = folder
        with said.open("wb") as out, complaints.open("wb") as err:
            try:
                process = subprocess.Popen(
                    [command.python, "-c", RUN_MODULE, module, *arguments],
                    cwd=alone,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            except OSError as error:
                why = error.strerror or error
                raise CommandFailed(f"worker.python {plain(command.python)} could not be started: {why}") from error
            try:
                status = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started goes with it
                process.wait()
                raise
        if status:
            lines = complaints.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            story = "\n".join(f"  {plain(line)}" for line in lines)
            raise CommandFailed(
                f"{module} failed in {plain(command.python)} with status {status}:\n{story}\n"
                "'dubd doctor' checks the worker's environment and the checkpoint."
            )
        return said.read_text(encoding="utf-8", errors="replace")


def _threads(settings: Settings) -> int:
    return settings.worker.threads or len(os.sched_getaffinity(0))


def _last_document(said: str) -> dict[str, Any]:
    """The JSON object on the last line; libraries may have printed before it."""
    with suppress(ValueError, IndexError):
        document = json.loads(said.strip().splitlines()[-1])
        if isinstance(document, dict):
            return document
    raise CommandFailed("the measurement of fish gave no result that can be read; are daemon and workers one version?")

"""``dubd encode``: a reference recording to codec codes, by a worker of its own; needs no daemon."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.commands.invocation import CommandFailed, ExitCode, Invocation
from daemon.commands.showing import console, duration, plain

if TYPE_CHECKING:
    from daemon.config import Settings

BYTES_PER_GB = 1024**3

FRAMES_PER_SECOND = 44_100 / 2048
"""Of the codec: 2,048 samples of 44.1 kHz make a frame."""


def execute(invocation: Invocation, reference: Path, output: Path) -> int:
    settings = invocation.settings()
    check(settings, reference, output)
    folder = Path(tempfile.mkdtemp(prefix=".dubd-", dir=output.parent))
    try:
        codes = folder / "codes.npy"
        terminal = console(error=True)
        with terminal.status("starting a worker") as spinner:
            told = ""

            def tell(activity: str) -> None:
                nonlocal told
                if activity and activity != told:
                    told = activity
                    spinner.update(plain(activity))
                    if not terminal.is_terminal:
                        terminal.print(plain(activity))

            frames, seconds = encode(settings, reference, codes, tell)
        finish(codes, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{plain(output)}: {frames} frames of codes ({frames / FRAMES_PER_SECOND:.1f} s of audio), "
        f"encoded in {duration(seconds)}"
    )
    return ExitCode.OK


def check(settings: Settings, reference: Path, output: Path) -> None:
    """What can be known before a worker is started.

    Raises:
        CommandFailed: the reference or the output is none, or the engine has no codec.
    """
    from daemon.commands.reference_copies import check_reference

    if settings.engine.name in ("draft", "silence"):
        mend = "add --set engine.name=fish --set engine.checkpoint=FOLDER"
        message = f"the {settings.engine.name} engine has no codec; {mend}"
        raise CommandFailed(message, ExitCode.REJECTED)
    if not reference.exists():
        raise CommandFailed(f"there is no file {plain(reference)}", ExitCode.REJECTED)
    try:
        check_reference(Path(os.path.realpath(reference)), "audio", settings, name=str(reference))
    except ValueError as error:
        raise CommandFailed(plain(error), ExitCode.REJECTED) from error
    if output.is_dir():
        raise CommandFailed(f"{plain(output)} is a folder; name the file that the codes go to", ExitCode.REJECTED)
    if not output.parent.is_dir():
        raise CommandFailed(f"there is no folder {plain(output.parent)}; make it first", ExitCode.REJECTED)


def encode(settings: Settings, reference: Path, codes: Path, tell: Callable[[str], None]) -> tuple[int, float]:
    """Let a worker write the codes; how many frames they have, and the seconds that took (loading not counted).

    Raises:
        CommandFailed: the worker could not.
    """
    import anyio

    from daemon.commands.asking import WorkerSilent, ask
    from daemon.commands.reference_copies import content_name

    source = Path(os.path.realpath(reference))
    sha256 = content_name(source).partition(".")[0]
    reference_message = {"path": str(source), "kind": "audio", "sha256": sha256, "text": ""}
    request = {
        "type": "encode",
        "ticket": 1,
        "voice": {"id": "reference", "references": [reference_message]},
        "output": {"path": str(codes.resolve()), "sample_rate": None, "subtype": "PCM_16"},
    }
    cache = settings.paths.state / "cache"

    async def converse() -> tuple[int, float]:
        said = await ask(
            settings,
            engine=settings.engine.name,
            device=roomy_device(settings),
            memory_bytes=round(settings.pool.model_memory_gb * BYTES_PER_GB),
            cache=str(cache) if os.access(cache, os.W_OK) else "",
            request=request,
            load_timeout_s=settings.worker.load_timeout_s,
            answer_timeout_s=settings.worker.segment_timeout_s,
            on_activity=tell,
        )
        if said.failure is not None:
            message = f"{said.failure.get('code')}: {said.failure.get('message')}"
            raise CommandFailed(f"the worker could not encode {plain(reference)}: {plain(message)}")
        answer = said.answer or {}
        return int(answer.get("frames", 0)), float(answer.get("generate_s", 0.0))

    try:
        return anyio.run(converse)
    except WorkerSilent as error:
        raise CommandFailed(f"{error}\n'dubd doctor' checks the worker's environment and the checkpoint.") from error


def roomy_device(settings: Settings) -> str:
    """Where one more worker fits beside everything that runs now, a daemon's workers among it; else the CPU."""
    from daemon.commands.plan import machine_gpus
    from daemon.core.plan import plan_workers

    plan = plan_workers(machine_gpus(), mode="multi", model_memory_gb=settings.pool.model_memory_gb)
    fitting = [share for share in plan.per_gpu if share.fits]
    if not fitting:
        return "cpu"
    return f"cuda:{max(fitting, key=lambda share: share.available_bytes).gpu.index}"


def finish(codes: Path, output: Path) -> None:
    """Look at what the worker wrote, and give it its name.

    Raises:
        CommandFailed: these are no codes.
    """
    import numpy as np

    from daemon import files

    try:
        array = np.load(codes, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CommandFailed(f"the worker's codes can't be read: {plain(error)}") from error
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
        raise CommandFailed(f"the worker's codes are {array.dtype} of shape {array.shape}, not integers (10, frames)")
    files.fsync_file(codes)
    files.rename(codes, output)
    files.fsync_folder(output.parent)

"""The engine: the workers' interpreter and its packages, the checkpoint, the GPUs.

The worker's side may be another environment, so nothing of it is judged from here: a worker is started as the daemon
would start it, and for the fish engine, whose loading takes long, a few lines of Python in the same interpreter say
whether its packages can be imported and what its torch sees.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from daemon.config import Settings
from daemon.core.plan import BYTES_PER_GB, Gpu, plan_workers
from daemon.doctor.finding import Finding

CHECKPOINT_FILES = ("config.json", "model.pth", "tokenizer.tiktoken", "special_tokens.json", "codec.pth")
"""What the fish engine reads; a codec other than the packaged one brings a codec.yaml too."""

LOAD_SECONDS = 30.0
"""For an engine without a model: an interpreter's start on a slow disk, and no more."""

IMPORT_SECONDS = 120.0
"""For importing torch the first time after a restart, from a slow disk."""

PROBE = """
import importlib, json, sys
for folder in reversed(sys.argv[1:]):
    sys.path.insert(0, folder)
found = {"python": sys.version.split()[0], "missing": {}}
for name in ("numpy", "soundfile", "torch", "tiktoken", "fish_speech"):
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        found["missing"][name] = f"{type(error).__name__}: {error}"
    else:
        if name == "torch":
            found["torch"] = module.__version__
            found["cuda"] = module.cuda.is_available()
            found["gpus"] = module.cuda.device_count() if found["cuda"] else 0
            found["built_for"] = module.version.cuda
print(json.dumps(found))
"""


CHECKOUT = Path(__file__).resolve().parents[2]
"""Where the daemon's code is: in a checkout, the folder of the Makefile, which makes .venv."""


def check(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    gpus, findings = check_gpus(settings)
    python = check_interpreter(settings.worker.python)
    findings = [*python, *check_import_path(settings), *findings]
    if any(finding.level == "fail" for finding in python):
        return findings
    if settings.engine.name == "fish":
        findings += check_worker(settings, "silence", environ)
        findings += check_packages(settings, environ, gpus)
        findings += check_checkpoint(settings.engine.checkpoint)
    else:
        findings += check_worker(settings, settings.engine.name, environ)
    return findings


def check_interpreter(python: str) -> list[Finding]:
    """Whether worker.python is there, can be run, and is new enough."""
    name = "worker.python"
    interpreter = python or sys.executable
    found = shutil.which(interpreter)
    if found is None:
        there = Path(interpreter).exists()
        problem = "is no program that this user may run" if there else "is not there"
        mend = "Give the path of a Python, such as /opt/fish/bin/python, or leave it empty for the daemon's own."
        return [Finding.fail(name, f"{interpreter} {problem}", mend)]
    code = "import sys; print(*sys.version_info[:3], sep='.')"
    answer, error = _run([found, "-c", code], LOAD_SECONDS, os.environ)
    parts = (answer or "").strip().split(".")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        mend = "Give the interpreter itself, such as /opt/fish/bin/python."
        return [Finding.fail(name, f"{found} does not answer like a Python: {error or answer}", mend)]
    if (int(parts[0]), int(parts[1])) < (3, 10):
        mend = "Make the workers' environment with Python 3.10 or newer."
        return [Finding.fail(name, f"{found} is Python {answer}; workers need 3.10", mend)]
    own = " (the daemon's own)" if not python else ""
    return [Finding.ok(name, f"Python {'.'.join(parts)} at {found}{own}")]


def check_import_path(settings: Settings) -> Iterator[Finding]:
    for folder in settings.worker.path:
        if not folder.is_dir():
            mend = "Give the folder of the fish-speech sources (worker.path, $FISH_SPEECH_DIR), or take it out."
            yield Finding.fail("worker.path", f"{folder} is not a folder", mend)


def check_worker(settings: Settings, engine: str, environ: Mapping[str, str]) -> list[Finding]:
    """Start a worker and let it load an engine that takes no time; for draft that loads espeak-ng."""
    from daemon.commands.asking import WorkerSilent, ask

    name = "worker"
    own_engine = engine == settings.engine.name
    patience = LOAD_SECONDS if engine in ("draft", "silence") else settings.worker.load_timeout_s
    mend = "See what it says; 'pip install' what is missing into its environment, or set worker.python to another."

    async def start() -> Finding:
        said = await ask(
            settings,
            engine=engine,
            device="cpu",
            memory_bytes=0,
            cache="",
            request=None,
            load_timeout_s=min(patience, settings.worker.load_timeout_s),
            answer_timeout_s=0,
            environ=environ,
        )
        if said.failure is not None:
            return Finding.fail(name, f"{said.failure.get('code')}: {said.failure.get('message')}", mend)
        ready = said.ready or {}
        loaded = f", engine {engine} loaded in {ready.get('load_s', 0):.1f} s" if own_engine else ""
        return Finding.ok(name, f"starts and answers{loaded}")

    try:
        return [anyio.run(start)]
    except WorkerSilent as error:
        return [Finding.fail(name, str(error), mend)]


def check_packages(settings: Settings, environ: Mapping[str, str], gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """The fish engine's packages, as the worker's interpreter imports them, and whether its torch sees the GPUs."""
    from daemon.worker_process import worker_command

    name = "engine packages"
    folders = [str(folder) for folder in settings.worker.path]
    command = worker_command(settings.worker.python, folders, environ, gpu=True, threads=1)
    # As for a worker, the folder that one stands in is no part of the path.
    script = f"import sys; sys.path[:] = [entry for entry in sys.path if entry]\n{PROBE}"
    answer, error = _run([command.python, "-c", script, *folders], IMPORT_SECONDS, command.environment)
    found = _last_object(answer)
    if found is None:
        yield Finding.fail(name, f"the interpreter says: {error or answer}", "Mend its environment; see README.md.")
        return
    for module, problem in found["missing"].items():
        # pip can't resolve fish-speech's pins beside anything else's: its lock goes in without dependencies.
        lock = "--no-deps -r requirements/full.txt, from the checkout (after -r requirements/torch.txt)"
        mend = f"{command.python} -m pip install " + (lock if module != "torch" else "torch")
        if not settings.worker.python and Path(sys.prefix) == CHECKOUT / ".venv":
            mend = f"make full, in {CHECKOUT}"
        yield Finding.fail(name, f"{module} can't be imported: {problem}", mend)
    if "torch" not in found:
        return
    yield Finding.ok(
        name, f"torch {found['torch']}" + (f" for CUDA {found['built_for']}" if found["built_for"] else "")
    )
    if gpus and not found["cuda"]:
        why = (
            "this torch was built without CUDA"
            if not found["built_for"]
            else f"torch was built for CUDA {found['built_for']}, which this driver may be too old for"
        )
        mend = "Install a torch that fits the driver (nvidia-smi shows its newest CUDA) where the workers run."
        yield Finding.fail("GPU in torch", f"NVML sees {len(gpus)} GPU(s) and torch none: {why}", mend)
    elif gpus:
        yield Finding.ok("GPU in torch", f"sees {found['gpus']}")


def check_gpus(settings: Settings) -> tuple[list[Gpu], list[Finding]]:
    """The GPUs by NVML, and the plan that the daemon would make."""
    from daemon.gpus import read_gpus

    if settings.engine.name in ("draft", "silence"):
        return [], [Finding.ok("GPUs", f"none needed by the {settings.engine.name} engine")]
    report = read_gpus(set())
    gpus = list(report.gpus)
    pool = settings.pool
    plan = plan_workers(
        gpus,
        mode=pool.mode,
        model_memory_gb=pool.model_memory_gb,
        workers_override=pool.workers,
        per_gpu=pool.per_gpu,
    )
    described = [f"GPU {gpu.index} {gpu.name}, {gpu.total_bytes / BYTES_PER_GB:.0f} GB" for gpu in gpus]
    findings = [Finding.ok("GPUs", "; ".join([*described, f"{len(plan.workers)} worker(s)"]))]
    for warning in plan.warnings:
        if gpus:
            mend = "Free GPU memory (nvidia-smi), or lower pool.model_memory_gb."
            findings.append(Finding.warn("GPUs", warning, mend))
        else:
            mend = "If there is a GPU, install its driver: nvidia-smi must list it. Without one, speaking is slow."
            findings.append(Finding.warn("GPUs", "; ".join([warning, *report.problems]), mend))
    if gpus:
        findings += [Finding.warn("GPUs", problem, "See what nvidia-smi says.") for problem in report.problems]
    return gpus, findings


def check_checkpoint(checkpoint: str) -> list[Finding]:
    """The folder of the model, by its files' names, forms and checksums; nothing is loaded."""
    name = "engine.checkpoint"
    download = "Copy the whole checkpoint there, such as OpenAudio S1-mini; README.md says where it comes from."
    if not checkpoint:
        return [Finding.fail(name, "is not set, and the fish engine needs one", "Set it to the model's folder.")]
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [Finding.fail(name, f"{folder} is not a folder", download)]
    missing = [file for file in CHECKPOINT_FILES if not (folder / file).is_file()]
    if missing:
        kind = "is empty" if not any(folder.iterdir()) else f"lacks {', '.join(missing)}"
        return [Finding.fail(name, f"{folder} {kind}", download)]
    try:
        problems = [problem for file in CHECKPOINT_FILES if (problem := _broken(folder / file))]
        if problems:
            return [Finding.fail(name, problem, "Copy that file again.") for problem in problems]
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        return [Finding.fail(name, f"{error.filename}: {error.strerror}", "Let the daemon's user read it.")]
    except ValueError as error:
        return [Finding.fail(name, f"config.json is not JSON: {error}", "Copy that file again.")]
    model = config.get("model_type") if isinstance(config, dict) else None
    if model != "dual_ar":
        mend = "Use a checkpoint of fish-speech's dual_ar models."
        return [Finding.fail(name, f"{folder} holds a model of type {model!r}, not 'dual_ar'", mend)]
    size = sum((folder / file).stat().st_size for file in CHECKPOINT_FILES)
    return [Finding.ok(name, f"{folder}, {size / 1000**3:.1f} GB")]


def _broken(file: Path) -> str | None:
    """What is wrong with a file of the checkpoint, as far as its form tells."""
    if file.stat().st_size == 0:
        return f"{file} is empty"
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        return f"{file} is only a pointer of git-lfs (run 'git lfs pull')"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"{file} is a web page that was saved under this name"
    # torch.save writes zip archives, whose directory stands at the end: a half-copied one has none.
    if file.suffix == ".pth" and head.startswith(b"PK"):
        return _damage(file) if zipfile.is_zipfile(file) else f"{file} is cut off: only a part of it was copied"
    return None


def _damage(archive: Path) -> str | None:
    """The first record whose content is not what its checksum says; torch looks at none. Seconds for a gigabyte."""
    name = ""
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                name = entry.filename
                if entry.CRC or not entry.file_size:  # torch can leave checksums out
                    with opened.open(entry) as record:
                        while record.read(1 << 20):
                            pass
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - zlib's, EOFError, NotImplementedError: a spoilt header promises anything
        return f"{archive} is damaged: {name or 'its directory'} does not match its checksum ({error})"
    return None


def _run(arguments: Sequence[str], seconds: float, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """Standard output, None if the program failed; and what to say about that."""
    try:
        done = subprocess.run(
            arguments, capture_output=True, timeout=seconds, env=dict(environ), stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {seconds:g} seconds"
    except OSError as error:
        return None, str(error.strerror or error)
    errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode != 0:
        return None, errors[-1] if errors else f"it ended with status {done.returncode}"
    return done.stdout.decode("utf-8", "replace"), ""


def _last_object(answer: str | None) -> dict[str, Any] | None:
    """The JSON on the last line: libraries may have printed before it."""
    for line in reversed((answer or "").splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "missing" in found:
            return found
    return None

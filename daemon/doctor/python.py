"""The daemon's own Python: the right package ``daemon``, a text encoding that can name every file, a sound library."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import daemon
from daemon.doctor.finding import Finding
from daemon.finishing import LIBRARIES

FINISHING_S = 60.0
"""For importing scipy the first time after a restart, from a slow disk."""


def check() -> list[Finding]:
    return [
        Finding.ok("python", f"{sys.version.split()[0]} at {sys.executable}"),
        *check_shadowing(sys.path, Path(daemon.__file__).resolve().parent),
        *check_text_encoding(),
        *check_sound_library(),
        *check_finishing(),
    ]


def check_shadowing(path: Sequence[str], ours: Path) -> Iterator[Finding]:
    """Whether something else called ``daemon`` is importable: python-daemon's module has the very same name. Which
    one ``python -m daemon`` means then depends on the folder that one stands in."""
    name = "package daemon"
    others = list(_others_called_daemon(path, ours))
    try:
        version = metadata.version("python-daemon")
    except metadata.PackageNotFoundError:
        version = None
    if others or version is not None:
        what = f"python-daemon {version}" if version is not None else "another module called daemon"
        where = ", ".join(str(other) for other in others) or "this environment"
        yield Finding.warn(
            name,
            f"{what} lies in {where}, and ours in {ours}: 'python -m daemon' runs whichever comes first",
            "Give dubd an environment of its own, or uninstall the other; until then use the command 'dubd'.",
        )
        return
    yield Finding.ok(name, f"ours, {ours}, and no other of that name")
    command = shutil.which("dubd")
    if command is not None and Path(command).resolve().parent != Path(sys.executable).resolve().parent:
        beside = Path(sys.executable).parent / "dubd"
        if not beside.exists() or os.path.realpath(beside) != os.path.realpath(command):
            yield Finding.warn(
                name,
                f"the command 'dubd' is {command}, of another Python than this one, {sys.executable}",
                "Use one of the two; two versions may not understand each other's state.",
            )


def _others_called_daemon(path: Sequence[str], ours: Path) -> Iterator[Path]:
    for entry in dict.fromkeys(os.path.realpath(part or os.curdir) for part in path):
        for candidate in (Path(entry, "daemon", "__init__.py"), Path(entry, "daemon.py")):
            if candidate.is_file() and candidate.resolve().parent != ours:
                yield candidate


def check_text_encoding() -> Iterator[Finding]:
    encoding = sys.getfilesystemencoding()
    if encoding.replace("-", "").lower() == "utf8":
        yield Finding.ok("text encoding", encoding)
    else:
        yield Finding.fail(
            "text encoding",
            f"file names are encoded as {encoding}: job ids such as 電影 can't name a folder",
            "Set LC_ALL=C.UTF-8, or PYTHONUTF8=1.",
        )


def check_sound_library() -> Iterator[Finding]:
    """libsndfile is a shared library that comes with the module or from the system; both can be missing."""
    try:
        import numpy
        import soundfile

        recording = io.BytesIO()
        soundfile.write(recording, numpy.zeros(4410, dtype=numpy.float32), 44_100, format="FLAC")
        recording.seek(0)
        samples, rate = soundfile.read(recording)
        if len(samples) != 4410 or rate != 44_100:
            raise RuntimeError("a recording came back changed")
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a foreign library is the finding
        yield Finding.fail(
            "sound library",
            f"recordings can't be read or written: {error}",
            "Install soundfile again (pip install --force-reinstall soundfile), or libsndfile1 from the system.",
        )
    else:
        yield Finding.ok("sound library", str(soundfile.__libsndfile_version__))


def check_finishing() -> Iterator[Finding]:
    """Whether what fits lines into their slots and makes them equally loud can be loaded; in a process of its own, as
    it is used."""
    name = "finishing"
    root = Path(daemon.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import daemon.finishing.steps, daemon.finishing.loudness"
    try:
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=FINISHING_S)
        problem = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"not loaded within {FINISHING_S:g} s"
    else:
        if done.returncode == 0:
            yield Finding.ok(name, ", ".join(f"{library} {metadata.version(library)}" for library in LIBRARIES))
            return
    yield Finding.warn(
        name,
        f"its libraries can't be loaded: {problem}; jobs that ask for fit, loudness_lufs or trim_silence will fail",
        f"Install them again (pip install --force-reinstall {' '.join(LIBRARIES)}).",
    )

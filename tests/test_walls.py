"""The walls of docs/architecture.md, held by reading the imports of every module.

Imports are read from the syntax tree wherever they stand, in a function and under TYPE_CHECKING too: a wall with a door
in it is none.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PURE = {
    "__future__", "abc", "base64", "bisect", "codecs", "collections", "copy", "dataclasses", "decimal", "difflib",
    "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "random", "re",
    "string", "struct", "types", "typing", "unicodedata",
}  # fmt: skip
"""What daemon/core may import: nothing that reads a clock, a file, a process or the environment. ``random`` is for the
class Random alone, whose instances are handed in."""

IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}

THIRD_PARTY_OF_WORKERS = {
    "workers": {"numpy", "soundfile"},
    "workers.engines": {"numpy", "soundfile"},
    "workers.engines.draft": {"numpy", "soundfile", "espeakng_loader"},
    "workers.engines.fish": {
        "numpy", "soundfile", "torch", "fish_speech", "hydra", "omegaconf", "tiktoken", "loguru", "dac", "einops",
        "soxr", "triton", "yaml",
    },
}  # fmt: skip
"""What each package of the workers may import beside the standard library; the nearest package counts. Hydra and the
others of fish's list come with fish-speech, triton with torch where there is CUDA."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that is imported, in full, with its line; a name imported from a package counts as a module of
    it, since it may be one."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def top(module: str) -> str:
    return module.split(".", 1)[0]


def report(path: Path, found: list[tuple[str, int]], why: str) -> None:
    lines = "".join(f"\n  {path.relative_to(ROOT)}:{line} imports {module}" for module, line in found)
    assert not found, f"{why}{lines}"


@pytest.mark.parametrize("path", modules("daemon/core"), ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    """daemon/core imports itself and harmless parts of the standard library, and calls nothing that reaches out."""
    found = [
        (module, line)
        for module, line in imports(path)
        if top(module) not in PURE and not is_under(module, "daemon.core")
    ]
    report(path, found, "the core decides from values alone; whatever reaches outside belongs into the shell")
    calls = [
        (node.func.id, node.lineno)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert not calls, f"{path.relative_to(ROOT)} calls {calls}"


@pytest.mark.parametrize("path", modules("daemon"), ids=name_of)
def test_the_daemon_knows_only_the_protocol(path: Path) -> None:
    """daemon imports workers.protocol and nothing else of workers, nothing that only workers need, and no tests."""
    found = [
        (module, line)
        for module, line in imports(path)
        if (is_under(module, "workers") and not is_under(module, "workers.protocol"))
        or top(module) in ("torch", "fish_speech", "hydra", "tests")
    ]
    report(path, found, "the two sides may run in different Python environments, and share only the pipe's protocol")


@pytest.mark.parametrize("path", modules("daemon"), ids=name_of)
def test_native_libraries_of_finishing_stay_in_its_processes(path: Path) -> None:
    """Only the arithmetic of finishing imports them, which no module of the daemon imports that is not its process."""
    if name_of(path) in ("daemon.finishing.steps", "daemon.finishing.loudness"):
        return
    arithmetic = (
        () if name_of(path) == "daemon.finishing.process" else ("daemon.finishing.steps", "daemon.finishing.loudness")
    )
    found = [
        (module, line)
        for module, line in imports(path)
        if top(module) in ("libsonic", "pyloudnorm", "scipy") or any(is_under(module, name) for name in arithmetic)
    ]
    report(path, found, "a library that crashes must not end the daemon")


@pytest.mark.parametrize("path", modules("workers"), ids=name_of)
def test_workers_never_import_the_daemon(path: Path) -> None:
    """workers has no import of daemon or of tests."""
    found = [(module, line) for module, line in imports(path) if top(module) in ("daemon", "tests")]
    report(path, found, "a worker's environment has the package workers alone")


@pytest.mark.parametrize("path", modules("workers"), ids=name_of)
def test_workers_need_few_packages(path: Path) -> None:
    """A worker imports the standard library, and each engine its own few packages; only workers/engines/fish
    imports fish_speech or torch."""
    name = name_of(path)
    package = max((known for known in THIRD_PARTY_OF_WORKERS if is_under(name, known)), key=len)
    allowed = THIRD_PARTY_OF_WORKERS[package] | {"workers"}
    found = [
        (module, line)
        for module, line in imports(path)
        if top(module) not in allowed and top(module) not in sys.stdlib_module_names
    ]
    report(path, found, f"{package} may import {', '.join(sorted(allowed))} and the standard library")


def test_the_protocol_needs_the_standard_library_alone() -> None:
    """workers/protocol.py and workers/engine.py, the contracts, import nothing but the standard library."""
    for name in ("protocol", "engine"):
        path = ROOT / "workers" / f"{name}.py"
        found = [(module, line) for module, line in imports(path) if top(module) not in sys.stdlib_module_names]
        report(path, found, "both sides, whatever their environment, import the contracts")


@pytest.mark.parametrize("path", modules("workers"), ids=name_of)
def test_workers_are_python_3_10(path: Path) -> None:
    """workers parses with the grammar of Python 3.10, whatever Python the daemon runs on."""
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


NEWER_THAN_3_10 = {"tomllib", "typing.Self", "typing.assert_never", "typing.Never", "typing.override", "enum.StrEnum",
                   "datetime.UTC", "asyncio.TaskGroup", "asyncio.timeout", "contextlib.chdir",
                   "typing.LiteralString", "typing.Unpack", "typing.NotRequired", "typing.Required",
                   "itertools.batched", "warnings.deprecated", "typing.assert_type", "typing.reveal_type"}  # fmt: skip


@pytest.mark.parametrize("path", modules("workers"), ids=name_of)
def test_workers_use_no_later_library(path: Path) -> None:
    """workers imports nothing that the standard library got after Python 3.10, and uses none of its builtins."""
    report(path, [found for found in imports(path) if found[0] in NEWER_THAN_3_10], "Python 3.10 has not got it")
    later = [
        (node.id, node.lineno)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id in ("ExceptionGroup", "BaseExceptionGroup")
    ]
    assert not later, f"{path.relative_to(ROOT)} uses {later}"


def test_the_module_list_is_true() -> None:
    """Every module that docs/architecture.md names is there."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith(("| `daemon/", "| `workers/"))]
    missing = []
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        # In a row of several, those without a folder are in the first one's.
        beside = [name if "/" in name else str(Path(first).parent / name) for name in others]
        missing += [name for name in [first, *beside] if not (ROOT / name).exists()]
    assert rows
    assert not missing, f"docs/architecture.md names what is not there: {missing}"


OPENS_BY_ITSELF = {
    "daemon.files": "it is the function",
    "daemon.store": "checks what a worker has written, by its descriptor",
    "daemon.inbox": "tells a job file's own troubles apart",
    "daemon.references": "opens what a job names, step by step below its roots",
    "daemon.embeddings.corpus": "walks a corpus by open folders, with links where that is configured",
    "daemon.commands.reference_copies": "reads what the user names, links too",
    "daemon.cluster.node": "reads what its own worker has written",
    "daemon.bench.embeddings": "its own corpus",
    "daemon.cluster.bridge": "opens /dev/null",
}


@pytest.mark.parametrize("path", modules("daemon"), ids=name_of)
def test_one_function_opens_what_others_may_have_made(path: Path) -> None:
    """Nobody else calls os.open with flags to read: a name in the inbox or the outbox may be a pipe, a link or a device
    by now."""
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.open" and "O_RDONLY" in ast.unparse(node)
    ]
    assert not calls or name_of(path) in OPENS_BY_ITSELF, f"{path.relative_to(ROOT)}:{calls}: use files.open_regular"

"""The kernel's word for it: the daemon under strace, which fails its system calls from outside and lists what it does.

It checks the crash matrix, whose faults strike inside the daemon: that ``daemon.files.disk`` sees every change there
is, and that faults of the kernel's own are survived as well. strace counts calls by thread, so the n-th call of a kind
is the n-th of each thread.

    python -m tests.reliability.traced [--runs 50]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.reliability.faulty_disk import general
from tests.reliability.guard import die_with_parent
from tests.reliability.lives import Life, NotSurvived, ended, hurry, preload, until
from tests.reliability.matrix import check_held, folders
from tests.reliability.scenes import FRESH, REJECTED, Scene, Stage
from tests.reliability.table import Row

ROOT = Path(__file__).resolve().parents[2]

FAULTS = (
    ("fsync", "signal=KILL"),
    ("fdatasync", "signal=KILL"),
    ("rename", "signal=KILL"),
    ("mkdir", "signal=KILL"),
    ("unlink", "signal=KILL"),
    ("fsync", "error=EIO"),
    ("fdatasync", "error=EIO"),
    ("rename", "error=EIO"),
    ("mkdir", "error=ENOSPC"),
    ("fsync", "error=ENOSPC"),
    ("rename", "error=ENOSPC"),
    ("unlink", "error=EIO"),
)

CHANGES = (
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
)

NOT_OURS = re.compile(r"\.sqlite3|\.gone|/\.[^/]*\.new/|^fdatasync var/state$")
"""What SQLite does, and what is removed piece by piece where the order is nobody's business."""


def available() -> bool:
    """Whether strace is here, and may trace."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-qq", "-o", os.devnull, "-e", "trace=none", "true"], capture_output=True)
    return tried.returncode == 0


def _spawn(stage: Stage, options: Sequence[str], command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A daemon under strace, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with stage.log.open("ab") as log:
        return subprocess.Popen(
            ["strace", "-f", "--seccomp-bpf", "-qq", *options, sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=stage.folder,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group; it has not been waited for, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_traced(scene: Scene, stage: Stage, call: str, fault: str, number: int) -> None:
    """A life in which the kernel fails the ``number``-th ``call`` of each thread, and a quiet one after it.

    Raises:
        NotSurvived: a promise was broken.
    """
    scene.prepare(stage)
    options = ["-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
    process = _spawn(stage, options, ["-m", "daemon", "run", "--config", str(stage.config)])
    try:
        until(lambda: ended(process.pid) is not None or scene.is_over(stage), "the end of the job or of the daemon")
        status = ended(process.pid)
    finally:
        _end(process)
    log = stage.log.read_text("utf-8", "replace")
    if status is not None and status != -signal.SIGKILL and ('"event": "ready"' in log or "Traceback" in log):
        raise NotSurvived(f"the daemon ended with {status}")
    told, finished = stage.texts_told(), stage.finished_texts()
    check_held(stage)
    if status is not None:
        life = Life(stage.config, stage.log, hurry)
        try:
            life.until(lambda: life.poll() is not None or scene.is_over(stage), "the end of the job")
            if life.poll() is not None:
                raise NotSurvived(f"the daemon ended with {life.poll()} in its second life")
        finally:
            life.end()
    scene.check(stage)
    if again := set(stage.texts_told()[len(told) :]) & finished:
        raise NotSurvived(f"spoken again although it was finished: {sorted(again)}")


def compare_lists(stage: Stage) -> None:
    """What strace saw of a quiet life's changes is what the shim saw.

    Raises:
        NotSurvived: one of them saw more.
    """
    FRESH.prepare(stage)
    report, trace = stage.folder / "report", stage.folder / "trace"
    roots = [f"{name}={folder}" for name, folder in stage.roots.items()]
    options = ["-y", "-s", "4096", "-o", str(trace), "-e", f"trace={','.join(CHANGES)}"]
    command = ["-m", "tests.reliability.shimmed", str(report), *roots, "--", str(stage.config)]
    process = _spawn(stage, options, command)
    try:
        until(lambda: ended(process.pid) is not None or FRESH.is_over(stage), "the end of the job")
        if ended(process.pid) is not None:
            raise NotSurvived(f"the daemon ended with {ended(process.pid)}")
        # A clean end, so that both lists are whole.
        os.killpg(process.pid, signal.SIGTERM)
        until(lambda: ended(process.pid) is not None, "the daemon's end")
    finally:
        _end(process)
    # What is done in a folder that is open is told to the kernel by /proc/self/fd, which strace can't name.
    seen = _changes_in(trace.read_text("utf-8", "replace"), stage)
    by_kernel = Counter(name for name in seen if "/.daemons/owned/" not in name)
    by_shim = Counter(
        name
        for name in (line.rpartition(" #")[0] for line in report.read_text("utf-8").splitlines())
        if name.split(" ", 1)[0] not in ("create", "write", "remove_all")
        and not NOT_OURS.search(name)
        and "/.daemons/owned/" not in name
    )
    # A removal of what is not there is a call too, and tells strace nothing of a path that is open.
    unseen, invented = by_kernel - by_shim, by_shim - by_kernel
    if unseen or invented:
        raise NotSurvived(f"the kernel saw {dict(unseen)} beside the shim, the shim {dict(invented)} beside the kernel")


def _changes_in(trace: str, stage: Stage) -> Iterator[str]:
    """The changes to the stage's folders, by the names that points have."""
    for line in _whole_lines(trace):
        found = re.match(r"\d+\s+(\w+)\((.*)\)\s+= ", line)
        if found is None:
            continue
        call, arguments = found.groups()
        paths = re.findall(r'<([^<>]*)>|"([^"]*)"', arguments)
        path = next((one or other for one, other in reversed(paths)), "")
        if call == "unlinkat" and not path.startswith("/"):
            path = f"{paths[0][0]}/{path}"
        call = {
            "renameat2": "rename_new",
            "renameat": "rename",
            "linkat": "link",
            "unlinkat": "unlink",
            "mkdirat": "mkdir",
        }.get(call, call)
        if any(path.startswith(f"{root}/") or path == str(root) for root in stage.roots.values()):
            name = f"{call} {general(Path(path), stage.roots)}"
            if not NOT_OURS.search(name):
                yield name


def _whole_lines(trace: str) -> Iterator[str]:
    """The calls, each on a line: strace cuts one in two where another thread's comes between."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        thread, _, rest = line.partition(" ")
        if line.endswith(" <unfinished ...>"):
            begun[thread] = line.removesuffix(" <unfinished ...>")
        elif resumed := re.match(r"\s*<\.\.\. \w+ resumed>(.*)", rest):
            yield begun.pop(thread, thread) + resumed[1]
        else:
            yield line


def attacks(runs: int = 50) -> Iterator[Row]:
    """The lists compared, then so many runs with a fault of the kernel's; nothing where there is no strace."""
    if not available():
        print("strace is not here or may not trace: what it would check is left out", file=sys.stderr)
        return
    near, far = folders()
    preload()
    try:
        stage = Stage(near / "traced")
        problem = ""
        try:
            compare_lists(stage)
        except NotSurvived as error:
            problem = str(error)
            print(f"traced: {error}", file=sys.stderr)
        yield Row("strace: every change passes the shim", 1, int(not problem))
        survived = 0
        for run in range(runs):
            call, fault = FAULTS[run % len(FAULTS)]
            number = 1 + run // len(FAULTS)
            scene = REJECTED if run % 7 == 6 else FRESH
            try:
                run_traced(scene, stage, call, fault, number)
                survived += 1
            except NotSurvived as error:
                log = "\n".join(stage.log.read_text("utf-8", "replace").splitlines()[-8:])
                print(f"traced: {scene.name}, {call}:{fault}:when={number}: {error}\n{log}", file=sys.stderr)
        yield Row("strace: system calls that the kernel fails", runs, survived)
    finally:
        shutil.rmtree(near, ignore_errors=True)
        shutil.rmtree(far, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--runs", type=int, default=50)
    lost = 0
    for row in attacks(parser.parse_args().runs):
        print(row, flush=True)
        lost += row.lost
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())

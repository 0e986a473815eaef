"""``python -m tests.service [BASE]``: the checks, to a table; BASE is the commit that is upgraded from."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.service.checks import Service, Table
from tests.service.machine import ROOT, MachineError, booted, prototype, wheels

BASE = "5c50f58"
LOCK = "requirements/light.txt"


def commit_of(base: str) -> str | None:
    """The whole name of a commit, if this clone has it."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


def copy_checkout(to: Path) -> None:
    """The checkout as it is, uncommitted changes too."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def copy_commit(commit: str, to: Path) -> None:
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(to, filter="data")


def lock_of(commit: str) -> str:
    shown = subprocess.run(["git", "show", f"{commit}:{LOCK}"], cwd=ROOT, capture_output=True, text=True, check=True)
    return shown.stdout


def run(base: str) -> Table:
    before, table = commit_of(base), Table()
    root = prototype()
    locks = [(ROOT / LOCK).read_text("utf-8"), *([lock_of(before)] if before else [])]
    with booted(sorted({wheels(lock, root) for lock in locks})) as machine:
        copy_checkout(machine.root / "src")
        if before:
            copy_commit(before, machine.root / "src-before")
        service = Service(machine)
        table.check("a bare machine boots", service.boots)
        table.check("make install", service.installs)
        table.check("installed pages, their links", service.pages)
        table.check("doctor: no warning", service.doctor)
        table.check("start: ready, with a status line", service.starts)
        table.check("systemd-analyze security", service.exposure)
        table.check("systemd-analyze verify", service.verify)
        table.check("job by cp, of the group", service.copied)
        table.check("job by submit, umask 022", lambda: service.submitted("022"))
        table.check("job by submit, umask 077", lambda: service.submitted("077"))
        table.check("job of mode 0600 of another user", service.private)
        table.check("job by somebody outside of the group", service.stranger)
        table.check("kill -9", service.crash)
        table.check("systemctl kill --signal=KILL", service.all_killed)
        table.check("systemctl kill", service.all_terminated)
        table.check("watchdog", service.watchdog)
        table.check("reload", service.reload)
        table.check("stop: drained", service.stop)
        table.check("stop: a drain over TimeoutStopSec", service.long_drain)
        table.check("make install over a running service", service.installed_again)
        table.check("log", service.clean_log)
        table.check("make uninstall", service.uninstalls)
        if before:
            table.check(f"make install of {before[:7]}", service.installs_old)
            table.check(f"upgrade from {before[:7]} with a job at work", service.upgrades)
            table.check("log after the upgrade", service.clean_log)
        else:
            table.add("upgrade", "skipped", f"this clone does not have the commit {base}")
    return table


def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0:
        print("A machine of its own takes root: sudo make service-test")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    began = time.monotonic()
    try:
        table = run(arguments[0] if arguments else BASE)
    except MachineError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the container is gone")
        return 130
    print(f"\n{table}\n\n{len(table.rows)} checks, {table.failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

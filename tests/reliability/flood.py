"""The inbox under load: floods, watchers that see nothing, several daemons, a share that goes and comes back.

python -m tests.reliability --only inbox
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.reliability.guard import die_with_parent, memory_folder
from tests.reliability.lives import Life, NotSurvived, hurry, preload, until
from tests.reliability.scenes import Stage
from tests.reliability.table import Row, rows_of
from tests.reliability.watching import LONGEST_SILENCE_S, MIB, MOST_MEMORY, Watch, memory_peak

PATIENCE_S = 900.0
DAEMONS = 8
AWAY = 6
"""How often the share goes away."""

CLONE_NEWNS = 0x00020000
ALREADY_RUNS = 1

QUICK: dict[str, Any] = {
    "engine.name": "silence",
    "engine.options": {"seconds": 0.01},
    "engine.slots": 8,
    "service.status_seconds": 0.5,
}

ONE_LINE = json.dumps(
    {
        "speakers": [{"id": "bo", "references": [{"codes": "bo.npy", "text": "What Bo says."}]}],
        "segments": [{"index": 0, "speaker": "bo", "text": "A line of its own."}],
    }
).encode()


class Inbox:
    """A stage with many small jobs. ``state``: a folder on another file system."""

    def __init__(self, folder: Path, settings: dict[str, Any], state: Path | None = None) -> None:
        self.stage = Stage(folder)
        self.state = state or self.stage.root / "state"
        self.stage.jobs = self.state / "jobs"
        self.stage.make({**QUICK, **settings, "paths.state": self.state})
        self.dropped = 0

    def start(self) -> Life:
        """A daemon that runs, by its own word."""
        life = Life(self.stage.config, self.stage.log, hurry)
        status = self.stage.root / "status.json"

        def up() -> bool:
            if life.poll() is not None:
                raise NotSurvived(f"the daemon ended with {life.poll()}")
            found = json.loads(status.read_bytes()) if status.exists() else {}
            return (found.get("pid"), found.get("state")) == (life.pid, "running")

        try:
            life.until(up, "the daemon's start")
        except BaseException:
            life.end()
            raise
        return life

    def drop(self, count: int) -> None:
        for number in range(self.dropped, self.dropped + count):
            (self.stage.inbox / f"job_{number}.json").write_bytes(ONE_LINE)
        self.dropped += count

    def over(self) -> int:
        """How many jobs have their manifest."""
        try:
            with os.scandir(self.stage.outbox) as folders:
                return sum(os.path.exists(f"{folder.path}/manifest.json") for folder in folders)
        except FileNotFoundError:
            return 0

    def wait(self, life: Life) -> None:
        """Until all jobs are over and their traces gone.

        Raises:
            NotSurvived: the daemon ended, or they are not.
        """

        def all_over() -> bool:
            if life.poll() is not None:
                raise NotSurvived(f"the daemon ended with {life.poll()}")
            if rejected := list(self.stage.rejected.glob("*.error.json")):
                raise NotSurvived(f"rejected: {rejected[0].read_text('utf-8')}")
            time.sleep(0.2)
            # The folders last: to count them takes a processor's time of its own.
            return self.stage.clear_of_work() and self.over() == self.dropped

        try:
            life.until(all_over, "the end of all jobs", PATIENCE_S)
        except NotSurvived as error:
            raise NotSurvived(f"{error}; {self.over()} of {self.dropped} are over") from error

    def check(self) -> None:
        """Every job was done, once.

        Raises:
            NotSurvived: it was not.
        """
        for number in range(self.dropped):
            folder = self.stage.outbox / f"job_{number}"
            manifest = json.loads((folder / "manifest.json").read_bytes())
            if manifest["status"] != "done" or list(folder.glob("manifest.*.json")):
                raise NotSurvived(f"job_{number} is {manifest['status']}, {sorted(os.listdir(folder))}")
        if left := list(self.stage.inbox.glob("*.json")):
            raise NotSurvived(f"left in the inbox: {left[:3]}")
        if rejected := list(self.stage.rejected.iterdir()):
            raise NotSurvived(f"rejected: {rejected[:3]}")


def flood(base: Path, far: Path, count: int) -> Row:
    """So many jobs at once, while the daemon stands still and its watcher's queue overflows; inbox and outbox in
    memory, the state elsewhere."""
    inbox = Inbox(base / "flood", {"inbox.watch": True, "service.one_cpu": True}, state=far / "flood-state")
    life = inbox.start()
    watch = Watch(inbox.stage.root / "status.json")
    try:
        os.kill(life.pid, signal.SIGSTOP)
        inbox.drop(count)
        os.kill(life.pid, signal.SIGCONT)
        watch.begin_anew()
        started = time.monotonic()
        inbox.wait(life)
        elapsed, peak = time.monotonic() - started, memory_peak(life.pid)
    finally:
        silence = watch.end()
        life.end()
    inbox.check()
    if silence > LONGEST_SILENCE_S or peak > MOST_MEMORY:
        raise NotSurvived(f"the status stood still for {silence:.1f} s, the daemon took {peak / MIB:.0f} MiB")
    note = f"{count / elapsed:.0f} jobs/s; silent for {silence:.1f} s at most, {peak / MIB:.0f} MiB at most"
    return Row(f"inbox: {count:,} jobs at once, the watcher's queue overflown", count, count, note)


def blind(base: Path, count: int) -> Row:
    """No events at all: listing the folder is enough."""
    inbox = Inbox(base / "blind", {"inbox.watch": False, "inbox.scan_seconds": 0.5})
    life = inbox.start()
    try:
        for _ in range(4):
            inbox.drop(count // 4)
            inbox.wait(life)
    finally:
        life.end()
    inbox.check()
    return Row("inbox: jobs dropped without events", inbox.dropped, inbox.dropped)


def together(base: Path, count: int) -> Row:
    """Eight daemons on one inbox and one outbox: each job is claimed once."""
    first = Inbox(base / "together", {"service.status_seconds": 5.0})
    stage = first.stage
    lives: list[Life] = []
    logs = []
    try:
        for number in range(DAEMONS):
            folder = base / f"together-{number}"
            folder.mkdir()
            config, log = folder / "config.toml", folder / "log"
            own = {"paths.state": folder / "state", "paths.status": folder / "status.json"}
            text = stage.config.read_text("utf-8")
            kept = [line for line in text.splitlines() if line.split(" = ")[0] not in own]
            config.write_text("\n".join([*kept, *(f'{key} = "{value}"' for key, value in own.items())]), "utf-8")
            lives.append(Life(config, log, hurry))
            logs.append(log)
        first.drop(count)

        def all_over() -> bool:
            for life in lives:
                if life.poll() is not None:
                    raise NotSurvived(f"a daemon ended with {life.poll()}: {life.log.read_text()[-500:]}")
            time.sleep(0.1)
            return first.over() == count and not list(stage.inbox.glob(".claimed/*/*"))

        until(all_over, "the end of all jobs", PATIENCE_S)
    finally:
        for life in lives:
            life.end()
    first.check()
    entries = [json.loads(line) for log in logs for line in log.read_text("utf-8").splitlines()]
    taken = Counter(entry["name"] for entry in entries if entry["event"].startswith("[Main] Total tasks"))
    if len(taken) != count or set(taken.values()) != {1}:
        raise NotSurvived(f"{len(taken)} jobs were taken, some more than once: {taken.most_common(3)}")
    shares = [sum("Total tasks" in line for line in log.read_text("utf-8").splitlines()) for log in logs]
    return Row(f"inbox: jobs before {DAEMONS} daemons, each claimed once", count, count, f"shares {sorted(shares)}")


def refused(base: Path, tries: int) -> Row:
    """A second daemon on the same state folder ends, and names the first one."""
    inbox = Inbox(base / "refused", {})
    life = inbox.start()
    survived = 0
    try:
        for number in range(tries):
            log = base / f"refused-{number}.log"
            second = Life(inbox.stage.config, log, hurry)
            try:
                status = second.wait()
            finally:
                second.end()
            if status in (1, 2) and f"(pid {life.pid})" in log.read_text("utf-8"):
                survived += 1
            else:
                print(f"inbox: a second daemon ended with {status}: {log.read_text('utf-8')[-300:]}", file=sys.stderr)
        inbox.drop(5)
        inbox.wait(life)
    finally:
        life.end()
    inbox.check()
    return Row("inbox: a second daemon on the same state", tries, survived)


# --- a share that goes away ---------------------------------------------------------------------------------


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def _may_mount() -> bool:
    """Whether this process may have mounts of its own: root, or nobody."""
    child = os.fork()
    if child == 0:
        os._exit(ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and os.geteuid() == 0


def in_own_mounts(act: Callable[[], None]) -> None:
    """Do it in a process whose mounts are its own and end with it.

    Raises:
        NotSurvived: as ``act`` did.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent()
            if ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
                raise NotSurvived("unshare failed")
            _mount("--make-rprivate", "/")
            act()
        except BaseException as error:  # noqa: BLE001 - told by whoever waits for us
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as told:
        problem = told.read()
    os.waitpid(child, 0)
    if problem:
        raise NotSurvived(problem)


def unmounted(base: Path, count: int, seed: int = 0) -> Row:
    """Inbox and outbox lie on a share that is unmounted and comes back, again and again, while jobs flow: all of them
    are done, on the share, and nothing is left in the empty folders that were seen meanwhile."""
    folder = base / "unmounted"

    def act() -> None:
        dice = random.Random(seed)
        share, near = folder / "share", folder / "near"
        share.mkdir(parents=True)
        _mount("-t", "tmpfs", "tmpfs", share)
        inbox = Inbox(near, {"inbox.scan_seconds": 0.1, "pool.workers": 1, "engine.options": {"seconds": 0.01}})
        stage = inbox.stage
        stage.outbox.mkdir()
        for place in (stage.inbox, stage.outbox):
            shutil.copytree(place, share / place.name)
            shutil.rmtree(place)
            place.mkdir()

        def come() -> None:
            for place in (stage.inbox, stage.outbox):
                _mount("--bind", share / place.name, place)

        def go() -> None:
            for place in (stage.inbox, stage.outbox):
                subprocess.run(["umount", "--lazy", str(place)], check=True)

        come()
        life = inbox.start()
        try:
            for _ in range(AWAY):
                inbox.drop(count // AWAY)
                time.sleep(dice.uniform(0.0, 0.4))
                go()
                time.sleep(dice.uniform(0.1, 1.0))
                for place in (stage.inbox, stage.outbox):
                    # Not pathlib's: it stumbles over folders that go while it looks, as those of claims do.
                    if strange := [found for found, _, names in os.walk(place) if "manifest.json" in names]:
                        raise NotSurvived(f"written where the share is not: {strange[:5]}")
                come()
            inbox.wait(life)
        finally:
            life.end()
        inbox.check()

    in_own_mounts(act)
    return Row("inbox: times that the share was unmounted and came back", AWAY, AWAY, f"{count // AWAY * AWAY} jobs")


def attacks(share: float = 1.0) -> Iterator[Row]:
    """All of it, or a part of each."""
    far = Path(tempfile.mkdtemp(prefix="dubd-inbox-"))
    near = Path(tempfile.mkdtemp(prefix="dubd-inbox-", dir=memory_folder()))
    preload()

    def part(whole: int, least: int = 1) -> int:
        return max(least, round(whole * share))

    runs: list[tuple[str, int, Callable[[], Row]]] = [
        ("a flood", part(20_000), lambda: flood(near, far, part(20_000))),
        ("no events", part(400, 8), lambda: blind(far, part(400, 8))),
        (f"{DAEMONS} daemons", part(400, 40), lambda: together(near, part(400, 40))),
        ("a second daemon", part(20, 2), lambda: refused(near, part(20, 2))),
    ]
    if _may_mount():
        runs.append(("a share that goes", AWAY, lambda: unmounted(far, part(600, 60))))
    else:
        print("only root may mount: a share that goes away is left out", file=sys.stderr)
    try:
        yield from rows_of("inbox", runs)
    finally:
        shutil.rmtree(near, ignore_errors=True)
        shutil.rmtree(far, ignore_errors=True)

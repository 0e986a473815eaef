"""What is dropped at the wrong moment, in the wrong number, or with the wrong mode: cancels by the thousand and too
late, broken files before good ones, files of the future, files of other users.

python -m tests.reliability --only drops
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.other_user import NOBODY, as_nobody, possible
from tests.reliability.flood import ONE_LINE, PATIENCE_S, Inbox
from tests.reliability.lives import Life, NotSurvived, hurry, preload, until
from tests.reliability.table import Row, rows_of
from tests.reliability.watching import Watch

ROOT = Path(__file__).resolve().parents[2]

LONGEST_STILL_S = 2.0
"""``seq`` of status.json, where the heartbeat is every half second."""

LONGEST_WAIT_S = 5.0
"""A good job behind broken ones, on a machine that does nothing else."""

HELD = {"seconds": 0.01, "wait_s": 3000.0}
"""Options of an engine that never ends a line."""

BROKEN = (b'{"segments": [', b'{"segments": 3}', b"", ONE_LINE.replace(b"bo.npy", b"not_there.npy"))


def beat_often() -> None:
    """As ``hurry``; and the status is written twice a second, so that it stands still only where the loop does."""
    from daemon import status

    hurry()
    status.HEARTBEAT_S = 0.5


def begin(inbox: Inbox) -> Life:
    life = Life(inbox.stage.config, inbox.stage.log, beat_often)
    status = inbox.stage.root / "status.json"

    def up() -> bool:
        if life.poll() is not None:
            raise NotSurvived(f"the daemon ended with {life.poll()}: {inbox.stage.log.read_text('utf-8')[-500:]}")
        found = json.loads(status.read_bytes()) if status.exists() else {}
        ready = any(row["state"] in ("ready", "busy") for row in found.get("workers", ()))
        return (found.get("pid"), found.get("state"), ready) == (life.pid, "running", True)

    try:
        life.until(up, "the daemon's start")
    except BaseException:
        life.end()
        raise
    return life


def errors(inbox: Inbox) -> int:
    try:
        return sum(name.endswith(".error.json") for name in os.listdir(inbox.stage.rejected))
    except FileNotFoundError:
        return 0


def cancels(base: Path, count: int, *, full: bool) -> Row:
    """So many jobs, most of which wait in the inbox, and a cancel for each."""
    inbox = Inbox(base / "cancels", {"engine.options": HELD})
    life = begin(inbox)
    watch = Watch(inbox.stage.root / "status.json")
    try:
        inbox.drop(count)
        life.until(lambda: len(list((inbox.state / "jobs").iterdir())) >= min(count, 100), "jobs at work", PATIENCE_S)
        watch.begin_anew()
        started = time.monotonic()
        for number in range(count):
            (inbox.stage.inbox / f"job_{number}.cancel").touch()
        life.until(lambda: not list(inbox.stage.inbox.glob("*.cancel")), "the end of the cancels", PATIENCE_S)
        inbox.wait(life)
        elapsed = time.monotonic() - started
    finally:
        still = watch.end()
        life.end()
    for number in range(count):
        status = json.loads((inbox.stage.outbox / f"job_{number}" / "manifest.json").read_bytes())["status"]
        if status != "cancelled":
            raise NotSurvived(f"job_{number} is {status}")
    held = still <= LONGEST_STILL_S or not full
    note = f"status still for {still:.1f} s at most, {elapsed:.0f} s in all"
    return Row("drops: cancels at once, most of jobs that wait", count, count if held else 0, note)


def behind(base: Path, count: int, *, full: bool) -> Row:
    """A good job is dropped once the first of so many broken files has been rejected; each of them has its reasons."""
    inbox = Inbox(base / "behind", {})
    life = begin(inbox)
    watch = Watch(inbox.stage.root / "status.json")
    try:
        os.kill(life.pid, signal.SIGSTOP)
        for number in range(count):
            (inbox.stage.inbox / f"broken_{number}.json").write_bytes(BROKEN[number % len(BROKEN)])
        os.kill(life.pid, signal.SIGCONT)
        watch.begin_anew()
        since = time.monotonic()
        life.until(lambda: errors(inbox) > 0, "the first rejection")
        started = time.monotonic()
        (inbox.stage.inbox / ".good").write_bytes(ONE_LINE)
        (inbox.stage.inbox / ".good").rename(inbox.stage.inbox / "good.json")
        life.until((inbox.stage.outbox / "good" / "manifest.json").exists, "the good job", PATIENCE_S)
        waited, before = time.monotonic() - started, errors(inbox)
        life.until(lambda: errors(inbox) == count, "all rejections", PATIENCE_S)
        elapsed = time.monotonic() - since
        life.until(inbox.stage.clear_of_work, "the end of the claims")
    finally:
        still = watch.end()
        life.end()
    if len(os.listdir(inbox.stage.rejected)) != 2 * count:
        raise NotSurvived(f"{len(os.listdir(inbox.stage.rejected))} files among the rejected ones, of {2 * count}")
    held = (waited <= LONGEST_WAIT_S and still <= LONGEST_STILL_S) or not full
    note = f"waited {waited:.1f} s, with {before:,} of them rejected; all of them {elapsed:.0f} s; still {still:.1f} s"
    return Row("drops: broken files before a good job", count, count if held else 0, note)


class Late:
    """Jobs that never end by themselves, cancels, marks and deaths in an order by ``seed``; what must hold of each."""

    NAMES = ("film", "Film2", "straße")

    def __init__(self, base: Path, seed: int) -> None:
        self._dice = random.Random(seed)
        settings = {"engine.options": HELD, "inbox.settle_seconds": 0.05, "inbox.grace_seconds": 0.3}
        self._inbox = Inbox(base / f"late-{seed}", settings)
        self._epoch = 0
        """Moves with each mark: what was dropped in an earlier one has been seen before what comes in a later one."""
        self._jobs: list[tuple[str, int]] = []
        """Job id and epoch, by number."""
        self._cancels: list[tuple[str, int]] = []
        self._life = begin(self._inbox)

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self._dice.choices((self._job, self._cancel, self._mark, self._die), (5, 3, 3, 1))[0]()
            self._mark()
            self._check()
        finally:
            self._life.end()

    def _put(self, name: str, content: bytes) -> None:
        (self._inbox.stage.inbox / ".put").write_bytes(content)
        (self._inbox.stage.inbox / ".put").rename(self._inbox.stage.inbox / name)

    def _job(self) -> None:
        job_id, number = self._dice.choice(self.NAMES), len(self._jobs)
        self._jobs.append((job_id, self._epoch))
        document = json.loads(ONE_LINE)
        document["segments"][0]["text"] = f"Version {number}"
        self._put(f"{number}.json", json.dumps({**document, "job_id": job_id}).encode())

    def _cancel(self) -> None:
        job_id = self._dice.choice(self.NAMES)
        self._cancels.append((job_id, self._epoch))
        self._put(f"{job_id}.cancel", b"")

    def _mark(self) -> None:
        self._put(f"mark_{self._epoch}.json", b'{"segments": 3}')
        error = self._inbox.stage.rejected / f"mark_{self._epoch}.error.json"
        self._life.until(error.exists, "the rejection of a mark")
        self._epoch += 1

    def _die(self) -> None:
        self._life.kill()
        self._life = begin(self._inbox)

    def _check(self) -> None:
        stage = self._inbox.stage

        def quiet() -> bool:
            names = [name for name in os.listdir(stage.inbox) if name.endswith((".json", ".cancel"))]
            return not names

        self._life.until(quiet, "an empty inbox", 60.0)
        must_end = {
            number
            for number, (job_id, epoch) in enumerate(self._jobs)
            if any(job_id == other and epoch < when for other, when in self._cancels)
        }
        must_live = {
            number
            for number, (job_id, epoch) in enumerate(self._jobs)
            if not any(job_id == other and epoch <= when for other, when in self._cancels)
        }
        self._life.until(lambda: must_end <= self._over(), f"the end of {sorted(must_end - self._over())}", 60.0)
        if lost := must_live & self._over():
            raise NotSurvived(f"cancelled by a cancel that came before them: {sorted(lost)}")

        def all_known() -> bool:
            """Accepted, or over: between a claim and its acceptance a job is neither for a moment."""
            held = {number(path) for path in stage.jobs.glob("[!.]*/job.json")}
            return set(range(len(self._jobs))) <= held | self._over()

        self._life.until(all_known, "a sight of every job")

    def _over(self) -> set[int]:
        return {number(path) for path in self._inbox.stage.outbox.glob("*/manifest*.json")}


def number(path: Path) -> int:
    """Of a job, from its document or its manifest."""
    try:
        return int(json.loads(path.read_bytes())["segments"][0]["text"].split()[1])
    except FileNotFoundError:  # renamed or removed at this moment
        return -1


def late(base: Path, histories: int, steps: int, seed: int = 0) -> Row:
    survived = 0
    for history in range(histories):
        try:
            Late(base, seed + history).run(steps)
            survived += 1
        except Exception as error:  # noqa: BLE001 - whatever a check stumbles over is a finding
            print(f"drops: late cancels, seed {seed + history}: {type(error).__name__}: {error}", file=sys.stderr)
    return Row("drops: histories of jobs, cancels and deaths", histories, survived, f"{steps} steps each")


def future(base: Path, count: int) -> Row:
    """Broken files whose time is far ahead, or behind: each is claimed once, and rejected."""
    inbox = Inbox(base / "future", {"inbox.settle_seconds": 0.05, "inbox.grace_seconds": 0.2})
    life = begin(inbox)
    try:
        for at in range(count):
            part = inbox.stage.inbox / ".part"
            part.write_bytes(BROKEN[at % len(BROKEN)])
            stamp = time.time() + (10.0**at if at % 2 else 3600.0 * at) % 4e9
            os.utime(part, (stamp, stamp))
            part.rename(inbox.stage.inbox / f"future_{at}.json")
        life.until(lambda: errors(inbox) == count, "all rejections")
    finally:
        life.end()
    if "changed while it was taken" in inbox.stage.log.read_text("utf-8"):
        raise NotSurvived("a file that nobody wrote to was put back")
    return Row("drops: broken files of the future", count, count)


def others(base: Path, count: int, mode: int, *, full: bool) -> Row:
    """Files of another user in the inbox of a daemon without rights: each is told of once, and none of them is in the
    way of a job that the daemon may take."""
    inbox = Inbox(base / f"others-{mode:o}", {"inbox.grace_seconds": 0.2})
    stage = inbox.stage
    for folder in (stage.inbox, *stage.inbox.parents):
        if folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    for folder in (stage.folder, stage.root):
        os.chown(folder, NOBODY, NOBODY)
    stage.inbox.chmod(mode)
    for at in range(count):
        path = stage.inbox / f"secret_{at}.json"
        path.write_bytes(ONE_LINE)
        path.chmod(0o600)
    command = [sys.executable, "-m", "daemon", "run", "--config", str(stage.config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(stage.folder)}
    with stage.log.open("ab") as log:
        process = subprocess.Popen(as_nobody(command), stdout=log, stderr=log, env=environment, cwd=stage.folder)
    try:
        until(lambda: errors(inbox) > 0, "the first word of them", 60.0)
        started = time.monotonic()
        (stage.inbox / ".good").write_bytes(ONE_LINE)
        os.chown(stage.inbox / ".good", NOBODY, NOBODY)
        (stage.inbox / ".good").rename(stage.inbox / "good.json")
        until((stage.outbox / "good" / "manifest.json").exists, "the good job", PATIENCE_S)
        waited = time.monotonic() - started
        until(lambda: errors(inbox) == count, "a word of all of them", PATIENCE_S)
        sticky = bool(mode & 0o1000)
        until(lambda: len(list(stage.inbox.glob("*.json"))) == count * sticky, "an inbox without the others")
        until(lambda: not list(stage.inbox.glob(".claimed/*/*")), "the end of the claims")
        if process.poll() is not None:
            raise NotSurvived(f"the daemon ended with {process.poll()}")
    finally:
        process.kill()
        process.wait()
    if len(os.listdir(stage.rejected)) != (1 if sticky else 2) * count:
        raise NotSurvived(f"among the rejected ones: {len(os.listdir(stage.rejected))}")
    held = waited <= LONGEST_WAIT_S or not full
    where = "with" if sticky else "without"
    row = f"drops: unreadable files of others, {where} a sticky bit"
    return Row(row, count, count if held else 0, f"a good job waited {waited:.1f} s")


def attacks(share: float = 1.0) -> Iterator[Row]:
    """All of it, or a part of each. How long things take decides in the whole attack alone."""
    base = Path(tempfile.mkdtemp(prefix="dubd-drops-"))
    full = share >= 1.0
    preload()

    def part(whole: int, least: int = 1) -> int:
        return max(least, round(whole * share))

    runs: list[tuple[str, int, Callable[[], Row]]] = [
        ("cancels", part(5_000), lambda: cancels(base, part(5_000), full=full)),
        ("broken files", part(5_000), lambda: behind(base, part(5_000), full=full)),
        ("late cancels", part(40), lambda: late(base, part(40), 12 if not full else 40)),
        ("the future", part(200, 4), lambda: future(base, part(200, 4))),
    ]
    if possible():
        modes = (0o777, 0o1777) if full else (0o1777,)
        runs += [("others", part(1_000), partial(others, base, part(1_000), mode, full=full)) for mode in modes]
    else:
        print("only root may be another user: files of others are left out", file=sys.stderr)
    try:
        yield from rows_of("drops", runs)
    finally:
        shutil.rmtree(base, ignore_errors=True)

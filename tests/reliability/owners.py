"""Two daemons, each with a state of its own, that share an inbox and an outbox and get films of the same few job_ids.

A history is that of one job_id: films with different texts are dropped one after the other, while either daemon is
killed, stopped, continued and started again, in an order that a seed gives. A daemon that is stopped for long is taken
over from. When both are quiet, every film has ended in exactly one manifest, the last manifest's files are what it
says, and nothing half made is left.

    python -m tests.reliability --only owners
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import files, ownership
from tests.reliability.lives import Life, NotSurvived, hurry, preload, until
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row
from tests.shell import names_below

TAKEOVER_S = 0.6
SETTINGS: dict[str, Any] = {"service.progress_seconds": 0.1, "service.status_seconds": 1.0}
LINES = 4
STEPS = 5
AT_ONCE = 5
PATIENCE_S = 120.0


def attacks(share: float) -> Iterator[Row]:
    preload()
    with tempfile.TemporaryDirectory(prefix="dubd-owners-") as folder:
        yield histories(Path(folder), max(3, round(200 * share)))


class Napping(files.Disk):
    """A disk that now and then takes its time before a change, so that a stop falls between any two."""

    def create(self, path: Path, flags: int, mode: int) -> int:
        _nap()
        return super().create(path, flags, mode)

    def rename(self, source: Path, target: Path) -> None:
        _nap()
        super().rename(source, target)

    def rename_new(self, source: Path, target: Path) -> None:
        _nap()
        super().rename_new(source, target)

    def link(self, source: Path, target: Path) -> None:
        _nap()
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        _nap()
        super().unlink(path)

    def unlink_in(self, folder: int, name: str) -> None:
        _nap()
        super().unlink_in(folder, name)


def _nap() -> None:
    time.sleep(random.choice((0.0, 0.0, 0.01, 0.03)))


def quick() -> None:
    """In the daemon's own process: what takes minutes takes less than a second. Nobody may set these."""
    hurry()
    files.disk = Napping()
    ownership.BEAT_S, ownership.TAKEOVER_S, ownership.LOOK_S = 0.05, TAKEOVER_S, 0.02


class Daemon:
    """One of the two, through its lives."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.folder = stage.folder / f"daemon-{number}"
        self.folder.mkdir()
        self.jobs = self.folder / "state" / "jobs"
        self.config, self.log = self.folder / "config.toml", self.folder / "log"
        own = {"paths.state": self.folder / "state", "paths.status": self.folder / "status.json"}
        lines = [f'{key} = "{value}"\n' for key, value in own.items()]
        self.config.write_text(stage.config.read_text("utf-8") + "".join(lines), "utf-8")
        self.kills = self.stops = 0
        self._stopped = False
        self.life = self._start()

    def _start(self) -> Life:
        return Life(self.config, self.log, quick)

    def check(self) -> None:
        """Raises NotSurvived: it has ended by itself."""
        if self.life.poll() is not None:
            raise NotSurvived(f"a daemon ended with {self.life.poll()}: {self.log.read_text('utf-8')[-500:]}")

    def kill(self) -> None:
        """Whether it runs or is stopped; another one begins at once."""
        self.check()
        self.life.kill()
        self.kills += 1
        self._stopped = False
        self.life = self._start()

    def stop(self) -> None:
        os.kill(self.life.pid, signal.SIGSTOP)
        self.stops += 1
        self._stopped = True

    def go_on(self) -> None:
        if self._stopped:
            os.kill(self.life.pid, signal.SIGCONT)
            self._stopped = False


def histories(folder: Path, count: int) -> Row:
    """``survived``: histories after which all was as it must be."""
    stage = Stage(folder / "stage")
    stage.make({**SETTINGS, "engine.options": {"wait_s": 0.02}})
    daemons: list[Daemon] = []
    sound, overtaken = 0, 0
    try:
        daemons += [Daemon(stage, number) for number in range(2)]
        for first in range(0, count, AT_ONCE):
            films = [Films(stage, seed) for seed in range(first, min(first + AT_ONCE, count))]
            dice = random.Random(f"disturb {first}")
            for _ in range(STEPS):
                for film in films:
                    film.act()
                _disturb(daemons, dice)
            for daemon in daemons:
                daemon.go_on()
            try:
                _quiet(stage, daemons)
            except NotSurvived as error:
                raise NotSurvived(f"seeds {first} to {films[-1].seed}: {error}") from error
            for film in films:
                if problem := film.problem():
                    print(f"not survived: history {film.seed}: {problem}", flush=True)
                else:
                    sound += 1
        told = "".join(daemon.log.read_text("utf-8", "replace") for daemon in daemons)
        overtaken = told.count("another daemon works on this job_id")
    except NotSurvived as error:
        print(f"not survived: {error}", flush=True)
    finally:
        for daemon in daemons:
            daemon.life.end()
    kills, stops = (sum(vars(daemon)[what] for daemon in daemons) for what in ("kills", "stops"))
    note = f"{kills} kills, {stops} stops of a daemon; {overtaken} films overtaken"
    return Row("owners: histories of a job_id before two daemons", count, sound, note)


def _disturb(daemons: list[Daemon], dice: random.Random) -> None:
    time.sleep(dice.choice((0.0, 0.05, 0.2)))
    one = dice.choice(daemons)
    match dice.choice(("kill", "stop", "stop", "stop and kill", "go on")):
        case "kill":
            one.kill()
        case "stop":
            one.stop()
            time.sleep(dice.choice((0.1, TAKEOVER_S, 2 * TAKEOVER_S)))
            if dice.random() < 0.7:
                one.go_on()
        case "stop and kill":
            one.stop()
            time.sleep(dice.choice((0.1, 2 * TAKEOVER_S)))
            one.kill()
        case _:
            for daemon in daemons:
                daemon.go_on()


def _quiet(stage: Stage, daemons: list[Daemon]) -> None:
    """Until no job file lies in the inbox or in a claim, and no daemon has a job.

    Raises:
        NotSurvived: a daemon ended by itself, or a job does not.
    """

    def at_work() -> list[str]:
        for daemon in daemons:
            daemon.check()
        # The jobs before the claims: what leaves the inbox for a claim comes into a state after that.
        held = [path.name for daemon in daemons for path in daemon.jobs.glob("*") if not path.name.endswith(".part")]
        dropped = [name for name in names_below(stage.inbox) if name.endswith(".json")]
        return dropped + held

    try:
        until(lambda: not at_work(), "the end of all films", PATIENCE_S)
    except NotSurvived as error:
        raise NotSurvived(f"{error}; left: {at_work()[:10]}") from error


class Films:
    """One job_id, and what must be true of it."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.seed, self.name = stage, seed, f"film{seed}"
        self._dice = random.Random(f"films {seed}")
        self._dropped = 0
        self._drop()

    def _drop(self) -> None:
        self._dropped += 1
        document = dub(*(f"Version {self._dropped} of line {line} of {self.name}." for line in range(LINES)))
        name = f"{self.name}.{self._dropped:03d}.json"
        part = self.stage.inbox / f".{name}.part"
        part.write_text(json.dumps({**document, "job_id": self.name}), "utf-8")
        part.rename(self.stage.inbox / name)

    def act(self) -> None:
        for _ in range(self._dice.choice((0, 1, 1, 2))):
            self._drop()

    def problem(self) -> str | None:
        """What is not as it must be, when nothing is at work."""
        folder = self.stage.outbox / self.name
        if rejected := list(self.stage.rejected.glob(f"{self.name}.*")):
            return f"rejected: {sorted(path.name for path in rejected)}"
        if hidden := [name for name in os.listdir(folder) if name.startswith(".")]:
            return f"left half made: {hidden}"
        if not (folder / "manifest.json").exists():
            return f"no manifest.json among {sorted(os.listdir(folder))}"
        last = json.loads((folder / "manifest.json").read_bytes())
        for row in last["segments"]:
            path = folder / str(row["file"])
            if row["status"] == "ok" and not (path.is_file() and _sha256(path) == row["sha256"]):
                return f"{path.name} is not what manifest.json says, {row['sha256']} of {row['text']!r}"
        found: Counter[str] = Counter()
        for path in folder.glob("manifest*.json"):
            texts = [row["text"] for row in json.loads(path.read_bytes())["segments"]]
            version = texts[0].split(" ")[1]
            if texts != [f"Version {version} of line {line} of {self.name}." for line in range(LINES)]:
                return f"{path.name} mixes films: {texts}"
            found[version] += 1
        if found != Counter(map(str, range(1, self._dropped + 1))):
            return f"of {self._dropped} films, these have so many manifests: {dict(found)}"
        return self._owned()

    def _owned(self) -> str | None:
        """The folder is free: it has no owners, or the last one has given it free."""
        owners = self.stage.outbox / ownership.DAEMONS / ownership.OWNED / self.name
        numbers = [int(name) for name in names_below(owners) if name.isdigit()] if owners.is_dir() else []
        if numbers and (owner := (owners / str(max(numbers))).read_text("ascii")):
            return f"it is still owned, by {owner}"
        return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

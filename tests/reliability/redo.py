"""Redoing lines, in outboxes that others change, and again and again.

*Hostile folders*: ended jobs whose folders somebody has filled with what does not belong there are redone, cancelled,
listed and laid, by a daemon that dies in between. Each redo ends with a manifest or with reasons, no WAV is lost, and
nothing outside is touched.

*Histories*: films are submitted, submitted with another text, redone, cancelled, tidied and killed, in an order that a
seed gives. What was spoken stays until another film takes its place, the history of each line tells the truth, the
last text is that of the last film, and the numbers of the manifests grow.

    python -m tests.reliability --only redo
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.commands.listing import list_jobs
from daemon.commands.reading import read_document
from daemon.config import load_settings
from daemon.stitching.placing import NotLaid, overlaps, place, read_result
from tests.reliability.lives import Life, NotSurvived, preload
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row
from tests.reliability.upkeep import drop, manifest, start
from tests.shell import names_below

SETTINGS: dict[str, Any] = {
    "engine.name": "seeded:Seeded", "engine.retries": 0, "service.status_seconds": 0.1, "service.progress_seconds": 0.2,
}  # fmt: skip
AT_ONCE = 20


def attacks(share: float) -> Iterator[Row]:
    preload()
    with tempfile.TemporaryDirectory(prefix="dubd-redo-") as folder:
        yield hostile_folders(Path(folder) / "hostile", max(20, round(500 * share)))
        yield histories(Path(folder) / "histories", max(12, round(1000 * share)))


def contents(folder: Path) -> set[str]:
    """The sha256 of every file below, no link followed."""
    found = set()
    for place_, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place_, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24:
                found.add(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return found


def request(stage: Stage, number: int, job_id: str, segments: list[int]) -> str:
    """Drop a request to redo; the stem of its file."""
    name = f"redo-{job_id}-{number}"
    document = {"kind": "redo", "segments": segments, "seed": "new"}
    part = stage.inbox / f".{name}.part"
    part.write_text(json.dumps({**document, "job_id": job_id}), "utf-8")
    part.rename(stage.inbox / f"{name}.json")
    return name


def dropped(stage: Stage) -> set[str]:
    """The names of job files that lie in the inbox or are claimed."""
    return {name for name in names_below(stage.inbox) if name.endswith((".json", ".cancel"))}


def quiet(stage: Stage, life: Life) -> None:
    """Everything that was dropped is over."""
    life.until(lambda: not dropped(stage) and not list(stage.jobs.glob("[0-9]*")), "the end of all jobs", 120)


# --- folders that others have changed -------------------------------------------------------------------------


def odd(folder: Path, name: str, dice: random.Random, outside: Path) -> str:
    """Put something there that is no file of the daemon's; what it is."""
    path = folder / name
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = dice.choice(("pipe", "folder", "loop", "zero", "outside", "sparse", "nan", "empty"))
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "mine").write_text("kept")
        case "loop":
            path.symlink_to(name)
        case "zero":
            path.symlink_to("/dev/zero")
        case "outside":
            path.symlink_to(outside)
        case "sparse":
            path.touch()
            os.truncate(path, 200 << 30)
        case "nan":
            path.write_text('{"schema": 1, "segments": [{"index": 0, "overrun_s": NaN}]}')
        case _:
            path.touch()
    return f"{name}: {kind}"


NAMES = (
    "manifest.5.json", "manifest.007.json", "manifest.9.json", "takes", "segment_0000.wav", "segment_0001.wav",
    "progress.json", "report.html", "job.json", "manifest.json", "manifest.read",
)  # fmt: skip


def hostile_folders(folder: Path, count: int) -> Row:
    """``survived``: folders whose redo came to its end with nothing lost."""
    dice = random.Random(2)
    stage = Stage(folder)
    stage.make(SETTINGS)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    sound, lives = 0, 0
    for first in range(0, count, AT_ONCE):
        life = start(stage)
        lives += 1
        try:
            names = [f"film{number}" for number in range(first, min(first + AT_ONCE, count))]
            for name in names:
                drop(stage, name, dub(f"First of {name}.", f"Second of {name}."))
            quiet(stage, life)
            done, told, asked = {}, {}, {}
            for name in names:
                place_ = stage.outbox / name
                told[name] = [odd(place_, what, dice, outside) for what in dice.sample(NAMES, dice.randint(1, 4))]
                done[name] = wavs_left(place_)
                asked[name] = request(stage, 0, name, dice.choice(([0], [1], [0, 1])))
            if dice.random() < 0.5:
                life.kill()
                life = start(stage)
                lives += 1
            quiet(stage, life)
            settings = load_settings(config_file=stage.config, environ={}, overrides=[], cwd=folder)
            list_jobs(settings, None)
            for name in names:
                lay(stage.outbox / name)
                ended = (stage.outbox / name / "manifest.json").is_file() or list(
                    stage.rejected.glob(f"{asked[name]}*.error.json")
                )
                kept = done[name] <= contents(stage.outbox / name)
                if not (ended and kept and os.listdir(outside) == ["precious"]):
                    print(f"not survived: {name}, {told[name]}: ended {bool(ended)}, kept {kept}", flush=True)
                else:
                    sound += 1
        finally:
            life.end()
    return Row("redo: folders that others have filled", count, sound, f"{lives} lives of the daemon")


def wavs_left(folder: Path) -> set[str]:
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("segment_*.wav")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24
    }


def lay(folder: Path) -> None:
    """What ``dubd stitch`` does before it writes."""
    try:
        result = read_result(read_document(folder / "manifest.json"), folder, verify=True)
        overlaps(place(result.segments, 8_000, 0.1), 100)
    except NotLaid:
        pass


# --- histories ------------------------------------------------------------------------------------------------


def histories(folder: Path, count: int) -> Row:
    """``survived``: histories after which all was as it must be."""
    stage = Stage(folder)
    stage.make(SETTINGS)
    sound, kills = 0, 0
    life = start(stage)
    try:
        for first in range(0, count, AT_ONCE):
            films = [Film(stage, seed) for seed in range(first, min(first + AT_ONCE, count))]
            dice = random.Random(first)
            for _ in range(4):
                for film in films:
                    film.act()
                if dice.random() < 0.5:
                    life.kill()
                    life = start(stage)
                    kills += 1
                quiet(stage, life)
                for film in films:
                    film.look()
            for film in films:
                if film.problem is None:
                    sound += 1
                else:
                    print(f"not survived: history {film.seed}: {film.problem}; {film.acts}", flush=True)
            for film in films:
                shutil.rmtree(stage.outbox / film.name, ignore_errors=True)
    except NotSurvived as error:
        print(f"not survived: histories: {error}", flush=True)
    finally:
        life.end()
    return Row("redo: histories", count, sound, f"{kills} kills of the daemon")


class Film:
    """One job_id, and what must be true of it."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.seed, self.name = stage, seed, f"film{seed}"
        self.problem: str | None = None
        self.acts: list[str] = []
        self._dice = random.Random(f"film {seed}")
        self._version, self._number, self._highest = 0, 0, 0
        self._spoken: set[str] = set()
        """What was published since the last film."""
        self._changed = False
        self._submit()

    @property
    def folder(self) -> Path:
        return self.stage.outbox / self.name

    def _drop(self, document: dict[str, Any]) -> None:
        self._number += 1
        name = f"{self.name}.{self._number:03d}"
        part = self.stage.inbox / f".{name}.part"
        part.write_text(json.dumps({**document, "job_id": self.name}), "utf-8")
        part.rename(self.stage.inbox / f"{name}.json")
        # In this order, and not as four admissions at a time happen to end.
        path = self.stage.inbox / f"{name}.json"
        deadline = 2000
        while deadline and path.exists():
            deadline -= 1
            os.sched_yield()

    def _submit(self) -> None:
        self._version += 1
        self._changed = True
        self._drop(dub(*(f"Version {self._version} of line {n} of {self.name}." for n in range(3))))

    def act(self) -> None:
        for _ in range(self._dice.randint(1, 3)):
            act = self._dice.choice(("redo", "redo", "redo", "submit", "cancel", "tidy"))
            self.acts.append(act)
            match act:
                case "redo":
                    segments = self._dice.sample(range(3), self._dice.randint(1, 2))
                    self._drop({"kind": "redo", "segments": segments, "seed": "new"})
                case "submit" if not self._changed:
                    # One at a time: which of two is the last is the inbox's business, and no redo's.
                    self._submit()
                case "cancel":
                    (self.stage.inbox / f"{self.name}.cancel").touch()
                case _:
                    for path in sorted(self.folder.glob("manifest.*.json"))[: self._dice.randint(0, 2)]:
                        self._highest = max(self._highest, int(path.name.split(".")[1]))
                        path.unlink(missing_ok=True)
        self.acts.append(";")

    def look(self) -> None:
        """When nothing is at work."""
        found = manifest(self.stage, self.name)
        if found is None:
            self._fail("there is no manifest")
            return
        there = contents(self.folder)
        spoken = {row["sha256"] for row in found["segments"] if row["status"] == "ok"}
        if not self._changed and self._spoken - there:
            self._fail("a WAV that was published is gone")
        self._spoken = spoken if self._changed else self._spoken | spoken
        self._changed = False
        if spoken - there:
            self._fail("the manifest tells of a WAV that is not there")
        numbers = [int(path.name.split(".")[1]) for path in self.folder.glob("manifest.*.json")]
        if found.get("earlier", 0) < max([*numbers, 0]):
            self._fail(f"the numbers do not grow: {found.get('earlier')} after {numbers}")
        for row in found["segments"]:
            if row["text"] != f"Version {self._version} of line {row['index']} of {self.name}.":
                self._fail(f"the text of line {row['index']} is not the last one: {row['text']}")
            for take in row.get("history", ()):
                path = None if take.get("file") is None else self.folder / take["file"]
                if path is not None and hashlib.sha256(path.read_bytes()).hexdigest() != take["sha256"]:
                    self._fail(f"the history of line {row['index']} tells of another WAV than is there")

    def _fail(self, problem: str) -> None:
        self.problem = self.problem or f"{problem} (after {len(self.acts)} acts)"

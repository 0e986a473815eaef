"""Attacks on what the daemon does to last.

It must clear away nothing that somebody needs, lose nothing when it replaces its workers, stop before a disk is full,
and read what earlier versions have left, however often it is killed meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import results
from daemon.ended_jobs import EndedJobs
from tests.frozen.make import FROZEN
from tests.reliability import lives
from tests.reliability.lives import Life, NotSurvived
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row

MB = 1_000_000


def attacks(share: float) -> Iterator[Row]:
    """All of them, at this share of their whole length."""
    lives.preload()
    with tempfile.TemporaryDirectory(prefix="dubd-upkeep-") as name:
        folder = Path(name)
        yield retention(folder / "retention", max(3, round(60 * share)))
        yield recycling(folder / "recycling", max(40, round(1000 * share)))
        yield from guard(folder / "guard", max(12, round(100 * share)))
        for version in sorted(path.name for path in FROZEN.iterdir()):
            yield frozen(folder / version, version, max(3, round(40 * share)))


def hurry() -> None:
    """As ``lives.hurry``, for the rounds of upkeep too."""
    from daemon import retention, room
    from daemon.core import supervision

    lives.hurry()
    retention.EVERY_S, retention.PAUSE_S = 0.05, 0.01
    room.CHECK_S = 0.05
    supervision.GROWN_S = supervision.GROWN_AGE_S = 0.0
    supervision.SETTLED_SEGMENTS = 2


def start(stage: Stage) -> Life:
    return Life(stage.config, stage.log, hurry)


def drop(stage: Stage, job_id: str, document: dict[str, Any]) -> None:
    part = stage.inbox / f".{job_id}.part"
    part.write_text(json.dumps({**document, "job_id": job_id}), "utf-8")
    part.rename(stage.inbox / f"{job_id}.json")


def manifest(stage: Stage, job_id: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((stage.outbox / job_id / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


# --- retention ------------------------------------------------------------------------------------------------


def retention(folder: Path, kills: int) -> Row:
    """Results are read, redone, replaced and mixed with others' files while the daemon clears them away, and is killed
    at random. ``survived``: kills after which nothing that must stay was missing."""
    dice = random.Random(1)
    stage = Stage(folder)
    stage.make({"retention.outbox_days": 1e-9, "service.status_seconds": 0.1})
    stage.outbox.mkdir(parents=True)
    precious = folder / "precious"
    precious.mkdir()
    (precious / "manifest.json").write_text("precious")
    foreign = {name: _make_foreign(stage.outbox, name, precious) for name in ("folder", "link", "inner", "lookalike")}
    stays: set[str] = set()
    sound, number = 0, 0
    for _ in range(kills):
        life = start(stage)
        try:
            for _ in range(3):
                number += 1
                drop(stage, f"job{number}", dub(f"Line {number}.", "Another."))
            wanted = [f"job{n}" for n in range(number - 2, number + 1)]
            for job_id in wanted:
                life.until(lambda job_id=job_id: manifest(stage, job_id), job_id)  # type: ignore[misc]
            for job_id in wanted:
                stays |= _treat(stage.outbox / job_id, dice)
            time.sleep(dice.uniform(0, 0.15))
        finally:
            life.end()
        sound += _nothing_missing(stage, stays, foreign, precious)
    life = start(stage)
    try:
        may_go = {f"job{n}" for n in range(1, number + 1)} - stays
        for job_id in may_go:
            # A daemon that died just after a manifest writes it once more, and the mark of the first one is gone.
            with contextlib.suppress(FileNotFoundError):
                results.mark_as_read(stage.outbox / job_id)
        life.until(lambda: not {path.name for path in stage.outbox.iterdir()} & may_go, "the end of what was read")
        life.until(lambda: not list(stage.outbox.glob(".*.gone")), "the end of what was left half removed")
    finally:
        life.end()
    sound += _nothing_missing(stage, stays, foreign, precious)
    note = f"{len(may_go)} folders gone, {len(stays)} stay"
    return Row("upkeep: killed while it clears results away", kills + 1, sound, note)


def _make_foreign(outbox: Path, kind: str, precious: Path) -> bytes:
    """Something in the outbox that the daemon has not made; its names, to compare them later."""
    place = outbox / f"foreign-{kind}"
    if kind == "link":
        place.symlink_to(precious, target_is_directory=True)
    else:
        place.mkdir()
        (place / "manifest.json").write_text('{"schema": 1, "job_id": "foreign-lookalike", "status": "done"}')
        (place / results.READ_MARK).touch()
        (place / "segment_0000.wav").write_text("somebody's")
        if kind == "inner":
            (place / "takes").symlink_to(precious, target_is_directory=True)
    return _names(place)


def _names(place: Path) -> bytes:
    return repr(sorted(os.listdir(place))).encode()


def _treat(folder: Path, dice: random.Random) -> set[str]:
    """Do something to an ended job's folder that people do; its name, if it must stay."""
    match dice.choice(("read", "read", "mark", "unread", "mixed", "other", "wrong", "linked")):
        case "read":
            results.mark_as_read(folder)
            return set()
        case "mark":
            (folder / results.READ_MARK).touch()
            return set()
        case "mixed":
            (folder / "mix.wav").write_text("an editor's")
            results.mark_as_read(folder)
        case "other":
            (folder / "manifest.json").write_text("{}")
            results.mark_as_read(folder)
        case "wrong":
            # Whole at once: an empty mark means that it was read.
            (folder.parent / f".{folder.name}.mark").write_text("0" * 64)
            (folder.parent / f".{folder.name}.mark").rename(folder / results.READ_MARK)
        case "linked":
            (folder / results.READ_MARK).symlink_to("manifest.json")
    return {folder.name}


def _nothing_missing(stage: Stage, stays: set[str], foreign: dict[str, bytes], precious: Path) -> bool:
    kept = all((stage.outbox / name / "segment_0000.wav").exists() for name in stays)
    others = all(_names(stage.outbox / f"foreign-{name}") == names for name, names in foreign.items())
    # What is still to be seen is whole: a folder goes under its name at once.
    listed = EndedJobs(stage.root / "state" / "ended.sqlite3")
    seen = [ended.folder for ended in listed.in_outbox(stage.outbox) if ended.folder.is_dir()]
    listed.close()
    whole = all((folder / "manifest.json").exists() and (folder / "segment_0001.wav").exists() for folder in seen)
    safe = (precious / "manifest.json").read_text() == "precious"
    if not (kept and others and whole and safe):
        print(f"not survived: kept {kept}, others {others}, whole {whole}, safe {safe}, in {stage.outbox}", flush=True)
    return kept and others and whole and safe


# --- workers --------------------------------------------------------------------------------------------------


def recycling(folder: Path, lines: int) -> Row:
    """A job spoken by workers that leak, and are replaced all the while. ``survived``: lines that were spoken, and
    once."""
    stage = Stage(folder)
    stage.make(
        {
            "engine.name": "leaking:Leaking",
            "engine.options": {"told": str(stage.told), "wait_s": 0.01},
            "pool.workers": 2,
            "pool.recycle_growth_gb": 0.03,
            "worker.beat_seconds": 0.05,
            "service.status_seconds": 0.1,
        }
    )
    drop(stage, "film", dub(*(f"Line {number}." for number in range(lines))))
    life = start(stage)
    try:
        found = life.until(lambda: manifest(stage, "film"), "the job", 60 + lines / 5)
        assert found is not None
        log = stage.log.read_text()
    finally:
        life.end()
    told = Counter(stage.texts_told())
    sound = sum(s["status"] == "ok" and told[s["text"]] == 1 for s in found["segments"])
    recycled = log.count("its memory has grown")
    if not recycled:
        raise NotSurvived("no worker was replaced")
    return Row("upkeep: lines while workers are replaced", lines, sound, f"{recycled} processes replaced")


# --- disks ----------------------------------------------------------------------------------------------------


def guard(folder: Path, jobs: int) -> Iterator[Row]:
    """More jobs than a small disk holds, with somebody who takes results away when nothing goes on. ``survived``: jobs
    that were done; the disk never came below half of its floor."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        print("    no file system can be mounted here: the disk guard is not attacked", flush=True)
        return
    try:
        stage = Stage(folder, disk / "far")
        stage.make({"disk.outbox_free_gb": 0.012, "service.status_seconds": 0.1})
        life = start(stage)
        try:
            life.until(lambda: _status(stage).get("state") == "running", "the daemon's start")
            yield _fill(stage, life, jobs)
        finally:
            life.end()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _fill(stage: Stage, life: Life, jobs: int) -> Row:
    for number in range(jobs):
        # By their texts' length: about 1.2 MB by the estimate, of which the engine writes next to nothing.
        drop(stage, f"job{number}", dub(f"Job {number}. " + "x" * 150))
    least, pauses, quiet, done = 1 << 60, 0, 0, set[str]()
    ballast = stage.outbox / ".ballast"
    deadline = time.monotonic() + lives.PATIENCE_S + jobs
    while len(done) < jobs:
        if time.monotonic() > deadline:
            raise NotSurvived(f"{len(done)} of {jobs} jobs within {lives.PATIENCE_S + jobs:g} s")
        life.until(lambda: life.poll() is None, "the daemon's life", 0.1)
        free = shutil.disk_usage(stage.outbox).free
        least = min(least, free)
        status = _status(stage)
        if status.get("disk", {}).get("taking_jobs") is False:
            pauses += ballast.exists()
            ballast.unlink(missing_ok=True)
            quiet = 20
        elif free > 13 * MB and not quiet:
            # Somebody else fills the disk, to just below the floor.
            with ballast.open("ab") as file:
                file.write(b"\0" * (free - 11 * MB))
        quiet = max(0, quiet - 1)
        done = {f"job{number}" for number in range(jobs) if manifest(stage, f"job{number}")}
        time.sleep(0.02)
    if least < 6 * MB:
        raise NotSurvived(f"only {least / MB:.1f} MB were free at some time")
    if not pauses:
        raise NotSurvived("the daemon never paused")
    return Row(
        "upkeep: jobs on a disk that others fill",
        jobs,
        len(done),
        f"{pauses} pauses, never less than {least / MB:.0f} MB free",
    )


def _status(stage: Stage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((stage.root / "status.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


# --- frozen folders -------------------------------------------------------------------------------------------


def frozen(folder: Path, version: str, kills: int) -> Row:
    """The folders that an earlier version has left, taken up by a daemon that is killed again and again. ``survived``:
    1 for each kill after which no finished segment had changed, and for the end with all jobs done."""
    dice = random.Random(2)
    stage = Stage(folder)
    stage.folder.mkdir(parents=True)
    shutil.copytree(FROZEN / version, stage.root)
    settings: dict[str, Any] = {"paths.root": stage.root, "engine.name": "draft", "pool.workers": 1, "engine.slots": 2}
    # As in the chaos: what kills at random kills the same segment alone too, which is not to blame.
    settings["pool.tries"] = 100
    stage.config.write_text(lives.toml({**settings, "inbox.settle_seconds": 0.1, "log.format": "json"}), "utf-8")
    finished = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (*stage.outbox.glob("film/*.wav"), *stage.jobs.glob("*/segments/*.wav"))
    }
    sound = 0
    for _ in range(kills):
        life = start(stage)
        time.sleep(dice.uniform(0, 1.0))
        life.end()
        there = (*stage.outbox.glob("film/*.wav"), *stage.jobs.glob("*/segments/*.wav"))
        sound += finished <= {hashlib.sha256(path.read_bytes()).hexdigest() for path in there}
    life = start(stage)
    try:
        life.until(lambda: manifest(stage, "film") and manifest(stage, "queued") and stage.clear_of_work(), "the jobs")
    finally:
        life.end()
    film, queued = manifest(stage, "film"), manifest(stage, "queued")
    assert film is not None
    assert queued is not None
    sound += film["status"] == queued["status"] == "done" and {s["sha256"] for s in film["segments"]} >= finished
    return Row(f"upkeep: killed over the folders of version {version}", kills + 1, sound)

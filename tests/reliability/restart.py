"""An engine that is faster than the disk, and a daemon that is killed in the middle of a long job.

What was delivered and not stored is spoken again like any other line; alone is spoken what was at a worker, no more.
So the other half takes about as long as the first, whatever the disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import files
from daemon.core.job import Limits
from daemon.live_job import LiveJob
from tests.reliability import lives
from tests.reliability.faulty_disk import SlowDisk
from tests.reliability.lives import Life
from tests.reliability.scenes import Stage, dub
from tests.reliability.table import Row

LOOKAHEAD = 2
PATIENCE_S = 600.0


def attacks(share: float) -> Iterator[Row]:
    """Of at least half their length alone says the time something."""
    lives.preload()
    with tempfile.TemporaryDirectory(prefix="dubd-restart-") as name:
        for number, (lines, slots, sync_s) in enumerate(((4_800, 64, 0.0), (1_600, 16, 0.2))):
            sync_s = sync_s if share >= 0.5 else sync_s / 10
            yield restart(Path(name) / str(number), round(lines * share), slots, sync_s, timed=share >= 0.5)


def restart(folder: Path, lines: int, slots: int, sync_s: float, *, timed: bool) -> Row:
    """``survived``: 1 for the suspects, 1 for the manifest, and if it is ``timed`` 1 for the time."""
    stage = Stage(folder)
    settings = {"engine.name": "silence", "engine.slots": slots, "engine.options": {}, "pool.lookahead": LOOKAHEAD}
    stage.make({**settings, "service.progress_seconds": 0.1, "service.status_seconds": 0.1})

    def slow() -> None:
        files.disk = SlowDisk(sync_s)

    life = Life(stage.config, stage.log, slow)
    try:
        life.until(lambda: _read(stage.root / "status.json").get("state") == "running", "the first start")
        began = time.monotonic()
        part = stage.inbox / ".scene.part"
        part.write_text(json.dumps(dub(*(f"Line {number}." for number in range(lines)))), "utf-8")
        part.rename(stage.inbox / "scene.json")

        def half() -> bool:
            return bool(_read(stage.outbox / "scene" / "progress.json").get("counts", {}).get("ok", 0) * 2 >= lines)

        life.until(half, "half of the job", PATIENCE_S)
        first_s = time.monotonic() - began
        life.kill()
    finally:
        life.end()
    suspects = _suspects(stage)
    pid, began = life.pid, time.monotonic()
    life = Life(stage.config, stage.log, slow)
    try:

        def running() -> bool:
            status = _read(stage.root / "status.json")
            return status.get("pid") != pid and status.get("state") == "running"

        life.until(running, "the second start")
        start_s = time.monotonic() - began
        manifest = life.until(stage.manifest, "the manifest", PATIENCE_S)
        assert manifest is not None
        second_s = time.monotonic() - began
    finally:
        life.end()
    done = manifest["status"] == "done" and manifest["counts"]["ok"] == lines
    # Those at the worker, and the one whose file the daemon was looking at.
    sound = [suspects <= slots + LOOKAHEAD + 1, done, *([second_s <= 2 * first_s + start_s] if timed else [])]
    note = f"{suspects} suspects, {slots} slots; {first_s:.1f} s and {second_s:.1f} s, {start_s:.1f} s of it the start"
    return Row(f"restart: killed halfway, {sync_s:g} s a sync", len(sound), sum(sound), note)


def _suspects(stage: Stage) -> int:
    """How many the next life will suspect, without a change to what it finds."""
    (folder,) = (path for path in stage.jobs.iterdir() if not path.name.startswith("."))
    copy = LiveJob.open(shutil.copytree(folder, stage.folder / "copy" / folder.name), Limits())
    copy.suspect_what_was_out()
    copy.close()
    return sum(spec.suspect for spec in copy.waiting())


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    return found

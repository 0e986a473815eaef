"""Hand a job to dubd and wait for what comes of it. Python's standard library is all this needs; lift what you like.

    python drop_job.py JOB.json ROOT [--play]

ROOT has inbox/, outbox/ and rejected/, as paths.root of the daemon. References are looked for beside the job file and
copied into the inbox; the job that is dropped names the copies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def drop(job: dict[str, Any], folder: Path, inbox: Path) -> None:
    """Put the job into the inbox, whole or not at all. ``folder``: what its references are relative to."""
    references = inbox / f"{job['job_id']}.references"
    references.mkdir(exist_ok=True)
    for number, speaker in enumerate(job["speakers"]):
        for place, reference in enumerate(speaker["references"]):
            key = "audio" if "audio" in reference else "codes"
            source = folder / reference[key]
            copy = references / f"{number}_{place}{source.suffix}"
            shutil.copyfile(source, copy)
            reference[key] = f"{references.name}/{copy.name}"
    # The daemon takes no file that ends with .part. The rename is what makes it see the job, all of it at once.
    part = inbox / f"{job['job_id']}.json.part"
    part.write_text(json.dumps(job, ensure_ascii=False), "utf-8")
    part.rename(inbox / f"{job['job_id']}.json")


def ends(job_id: str, root: Path) -> dict[Path, int]:
    """The files that say that a job of this id is over, each with what tells it from a later one of the same name."""
    found = [root / "outbox" / job_id / "manifest.json", *(root / "rejected").glob(f"{job_id}.*error.json")]
    return {file: file.stat().st_ino for file in found if file.exists()}


def wait(job_id: str, root: Path, before: dict[Path, int]) -> Path:
    """The manifest of the job, or the reasons of its rejection. ``before``: what was there when it was dropped."""
    while True:
        for file, inode in ends(job_id, root).items():
            if before.get(file) != inode:
                return file
        time.sleep(0.5)


def main() -> int:
    options = argparse.ArgumentParser(description="Hand a job to dubd and wait for what comes of it.")
    options.add_argument("job", type=Path)
    options.add_argument("root", type=Path)
    options.add_argument("--play", action="store_true", help="with ffplay, one line after the other")
    given = options.parse_args()

    job = json.loads(given.job.read_text("utf-8"))
    job_id = job.setdefault("job_id", given.job.stem)
    before = ends(job_id, given.root)
    drop(job, given.job.parent, given.root / "inbox")
    end = wait(job_id, given.root, before)
    if end.name != "manifest.json":
        print(end.read_text("utf-8"), file=sys.stderr)
        return 2

    # The manifest was renamed into place when all that it names was there: nothing in it can still be on its way.
    manifest = json.loads(end.read_text("utf-8"))
    for segment in manifest["segments"]:
        said = f"{segment['index']:4}  {segment['speaker']}"
        if segment["status"] == "ok":
            wav = end.parent / segment["file"]
            print(f"{said}  {segment['duration_s']:.2f} s  {wav}")
            if given.play:
                subprocess.run(["ffplay", "-nodisp", "-autoexit", "-loglevel", "error", str(wav)], check=True)
        else:
            reason = f": {segment['error']['message']}" if segment["error"] else ""
            print(f"{said}  {segment['status']}{reason}")
    return 0 if manifest["status"] == "done" else 1


if __name__ == "__main__":
    sys.exit(main())

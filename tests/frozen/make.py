"""Makes the frozen folders of the present version, by a real daemon with the draft engine:

    python -m tests.frozen.make

Run once a version, and never change what is there: tests/data/frozen/VERSION/. In it lie, as a crash leaves them:

- ``outbox/ended``: a job that is over, one line of it redone; ``outbox/clip``: a LocalClip job that is over
- ``film``: a job in the middle: claimed, some lines published, some finished and not published, one begun, the others
  waiting
- ``queued``: a job of a lower priority, of which nothing has begun
- ``rejected/bad.json`` with its reasons; a cancel; the recordings in the inbox
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import daemon as package
from tests.end_to_end.conftest import DaemonUnderTest, recording, wait_for

FROZEN = Path(__file__).resolve().parents[1] / "data" / "frozen"
NEUTRAL = "/srv/dubd"
"""Stands for the folder in which the set was made, wherever that was."""

OUTPUT = {"sample_rate": 8_000, "subtype": "PCM_U8"}


def dub(texts: list[str], **more: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "output": OUTPUT,
        "speakers": [{"id": "anna", "references": [{"audio": "refs/anna.flac", "text": "I have taken this ferry."}]}],
        "segments": [
            {"index": index, "speaker": "anna", "text": text, "start": 2.0 * index, "end": 2.0 * index + 1.5}
            for index, text in enumerate(texts)
        ],
        **more,
    }


def clip() -> dict[str, Any]:
    return {
        "mode": "generate",
        "fish_speech_dir": "/nowhere",
        "checkpoint_dir": "/nowhere",
        "output_dir": "/nowhere",
        "tasks": [
            {
                "segment_index": 12,
                "speaker_id": 0,
                "target_text": "Hm.",
                "npy_file": "refs/bo.npy",
                "reference_text": "What Bo says.",
                "output_file": "/nowhere/segment_12.wav",
            }
        ],
    }


def make(target: Path) -> None:
    """Raises FileExistsError: this version has been frozen."""
    with tempfile.TemporaryDirectory() as name:
        dubd = DaemonUnderTest(Path(name))
        dubd.configure(engine__name="draft", engine__options={}, engine__slots=1, pool__workers=1, pool__lookahead=1)
        try:
            _live(dubd)
        finally:
            if dubd.is_alive():
                dubd.kill()
        _freeze(dubd, target)


def _live(dubd: DaemonUnderTest) -> None:
    import numpy

    dubd.start()
    dubd.put("refs/anna.flac", recording())
    numpy.save(dubd.inbox / "refs" / "bo.npy", numpy.full((10, 40), 7, dtype=numpy.int64))
    dubd.run("ended", dub(["It is over.", "Nothing to add.", "..."], job_id="ended"))
    dubd.drop("again", {"kind": "redo", "job_id": "ended", "segments": "1", "seed": "new"}, recorded=False)
    wait_for((dubd.outbox / "ended" / "manifest.1.json").exists, "the redo")
    dubd.manifest("ended")
    dubd.drop("clip", clip(), recorded=False)
    dubd.manifest("clip")
    dubd.drop("bad", {"schema": 1, "segments": 3}, recorded=False)
    dubd.rejection("bad")
    dubd.check_nothing_left()
    texts = [f"This is line number {number} of a film that nobody has seen." for number in range(40)]
    dubd.drop("film", dub([*texts, "..."], defaults={"seed": 7}, priority=5), recorded=False)
    wait_for(lambda: len(list((dubd.outbox / "film").glob("*.wav"))) >= 3, "the first lines")
    dubd.drop("queued", dub(["I wait."]), recorded=False)
    wait_for((dubd.outbox / "queued" / "progress.json").exists, "the job that waits")
    # The share is away: what is finished now stays in state/.
    dubd.outbox.rename(dubd.root / "away")
    dubd.outbox.touch()
    wait_for(
        lambda: len(list((dubd.state / "jobs").glob("*/segments/[0-9]*.wav"))) >= 2, "lines that wait for the outbox"
    )
    dubd.kill()
    dubd.outbox.unlink()
    (dubd.root / "away").rename(dubd.outbox)
    (dubd.inbox / "nobody.cancel").touch()


def _freeze(dubd: DaemonUnderTest, target: Path) -> None:
    def left_out(folder: str, names: list[str]) -> list[str]:
        unneeded = [n for n in names if n.endswith((".html", ".part")) or ".sqlite3" in n or n in ("lock", "cache")]
        return [*unneeded, *(n for n in names if Path(folder).name == "segments" and n.startswith("."))]

    shutil.copytree(dubd.root, target, ignore=left_out)
    (target / "status.json").unlink()
    for path in target.rglob("*.json*"):
        text = path.read_text("utf-8")
        if str(dubd.folder) in text:
            path.write_text(text.replace(str(dubd.folder), NEUTRAL), "utf-8")
    # git keeps no empty folders.
    for folder in [path for path in target.rglob("*") if path.is_dir() and not any(path.iterdir())]:
        (folder / ".kept").touch()
    print(json.dumps(sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()), indent=1))


if __name__ == "__main__":
    make(FROZEN / package.__version__)
    sys.exit(0)

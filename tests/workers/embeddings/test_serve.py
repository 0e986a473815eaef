"""What one process does between reading a speaker and telling of its result."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from workers.embeddings import serve
from workers.embeddings.new_files import Disk, NewFile
from workers.protocol import FrameDecoder, FrameWriter

SPEAKERS = 20


@pytest.mark.parametrize("refused", [None, 5])
def test_a_slow_disk_holds_up_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int | None) -> None:
    """No more results are open than may be, and each is told of once, a refused one too."""
    most_open = 0

    def sync(disk: Disk, files: Sequence[NewFile]) -> list[OSError | None]:
        nonlocal most_open
        time.sleep(0.02)
        most_open = max(most_open, _open_results(tmp_path))
        return [fail(file) if file.path.endswith(f"/{refused}.pkl") else None for file in files]

    def fail(file: NewFile) -> OSError:
        file.drop()
        return OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Disk, "sync", sync)
    monkeypatch.setattr(serve, "MOST_UNFINISHED", 3)
    for number in range(SPEAKERS):
        (tmp_path / f"in/d/{number}").mkdir(parents=True)
        (tmp_path / f"in/d/{number}/u.pkl").write_bytes(pickle.dumps({"embedding": [float(number)]}))
    told = _compute(tmp_path)
    assert sorted(result["ticket"] for result in told) == list(range(SPEAKERS))
    assert [result["ticket"] for result in told if result["status"] != "ok"] == ([] if refused is None else [refused])
    assert len(os.listdir(tmp_path / "out/d")) == SPEAKERS - (refused is not None)
    assert most_open <= 3


def _open_results(folder: Path) -> int:
    """Files of the results that this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder / "out"))
        except OSError:  # the listing's own
            continue
    return count


def _compute(folder: Path) -> list[dict[str, Any]]:
    """The results of all speakers, by a desk of its own."""
    status = os.stat(folder / "in")
    place = {"path": str(folder / "in"), "device": status.st_dev, "inode": status.st_ino, "follow_links": False}
    corpus = serve.Corpus(
        {"utterances": place, "format": "pkl", "min_utterances": 1, "exclude_prefixes": [], "exclude_patterns": []}
    )
    incoming, outgoing = os.pipe()
    reports = serve.Reports(FrameWriter(outgoing))
    desk = serve.Desk(corpus, FrameWriter(outgoing), reports, wake=lambda: None)
    reports.expect(SPEAKERS)
    for number in range(SPEAKERS):
        asked = {"ticket": number, "dataset": "d", "speaker": str(number), "existing": []}
        desk.take(desk.prepare({**asked, "output": str(folder / f"out/d/{number}.pkl")}))
    decoder = FrameDecoder()
    told: list[dict[str, Any]] = []
    while len(told) < SPEAKERS:
        desk.name_synced()
        reports.tell()
        os.set_blocking(incoming, False)
        try:
            for message in decoder.feed(os.read(incoming, 1 << 16)):
                told += message["results"]
        except BlockingIOError:
            time.sleep(0.01)
    return told

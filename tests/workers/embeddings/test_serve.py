"""What one process does between reading a speaker and telling of its result."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from workers.embeddings import serve
from workers.embeddings.new_files import Disk, NewFile
from workers.protocol import PROTOCOL_VERSION, FrameDecoder, FrameWriter, encode_frame

ROOT = Path(__file__).resolve().parents[3]

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


def test_a_syncer_that_dies_ends_the_process(tmp_path: Path) -> None:
    """Nothing would be told of what it was given; and the beats must not go on as if it waited for the disk."""
    (tmp_path / "in/d/0").mkdir(parents=True)
    (tmp_path / "in/d/0/u.pkl").write_bytes(pickle.dumps({"embedding": [1.0]}))
    program = """
        from workers.embeddings import serve
        from workers.embeddings.new_files import Disk

        def sync(disk, files):
            raise MemoryError

        Disk.sync = sync
        serve.serve(0, 1)
    """
    asked = {"ticket": 0, "dataset": "d", "speaker": "0", "existing": [], "output": str(tmp_path / "out/0.pkl")}
    frames = encode_frame({**_hello(tmp_path), "protocol": PROTOCOL_VERSION, "beat_seconds": 0.1})
    frames += encode_frame({"type": "speakers", "speakers": [asked]})
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(frames)
        process.stdin.flush()  # and stays open: its end would end the process too
        assert process.wait(60) == serve.EXIT_THREAD_DIED
        assert b"MemoryError" in process.stderr.read()


def _hello(folder: Path) -> dict[str, Any]:
    status = os.stat(folder / "in")
    place = {"path": str(folder / "in"), "device": status.st_dev, "inode": status.st_ino, "follow_links": False}
    form = {"format": "pkl", "min_utterances": 1, "exclude_prefixes": [], "exclude_patterns": []}
    return {"type": "hello", "utterances": place, **form}


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
    corpus = serve.Corpus(_hello(folder))
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

"""Room on the disks: when it is too little, for what, and until when."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest

from daemon import room as module
from daemon.config import Settings
from daemon.core.footprint import result_bytes
from daemon.core.job import Limits
from daemon.core.job_parser import parse_job
from daemon.room import Room
from tests.shell import job_document, settings_in

GB = 1000**3


class Host:
    """A daemon whose disks have as many GB free as ``free`` says, by the place's name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
        self.settings: Settings = settings_in(folder, *overrides)
        self.free = {"state": 100.0, "outbox": 100.0, "inbox": 100.0}
        self.warnings: dict[str, str] = {}
        self.full: list[str] = []
        self.came = 0
        self.room = Room(self, self.on_room)
        self.hanging: set[str] = set()
        self.answer = threading.Event()
        monkeypatch.setattr(os, "statvfs", self.statvfs)

    def statvfs(self, path: Path) -> SimpleNamespace:
        name = path.name
        if name in self.hanging:
            self.answer.wait(20)
        if self.free[name] < 0:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_bavail=int(self.free[name] * GB) // 4096, f_frsize=4096)

    def on_room(self) -> None:
        self.came += 1

    def warn(self, what: str, warning: str | None) -> None:
        self.warnings.pop(what, None)
        if warning is not None:
            self.warnings[what] = warning

    def disk_full(self, reason: str) -> None:
        self.full.append(reason)

    def look(self, **free: float) -> str | None:
        self.free.update(free)
        anyio.run(self.room.look)
        return self.room.low


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch, "disk.state_free_gb=2", "disk.outbox_free_gb=4", "disk.inbox_free_gb=1")


@pytest.mark.parametrize(("name", "floor"), [("state", 2.0), ("outbox", 4.0), ("inbox", 1.0)])
def test_below_a_floor_no_more_jobs_are_taken(host: Host, name: str, floor: float) -> None:
    """Until there is a quarter more: a disk on the edge must not switch it on and off."""
    assert host.look(**{name: floor + 0.01}) is None
    low = host.look(**{name: floor - 0.01})
    assert low is not None and f"disk.{name}_free_gb" in low and str(host.settings.paths.root) in low
    assert host.warnings["room"] == low
    assert host.look(**{name: floor * 1.24}) is not None and host.came == 0
    assert host.look(**{name: floor * 1.26}) is None and host.came == 1
    assert host.warnings == {} and host.full == []


def test_below_half_of_it_no_work_is_given_out(host: Host) -> None:
    """What is left then is for what has begun; the inbox holds no work."""
    host.look(state=1.01, outbox=2.01, inbox=0.0)
    assert host.full == []
    host.look(outbox=1.99)
    assert len(host.full) == 1 and "outbox" in host.full[0]
    host.look(outbox=2.9)
    assert host.room.too_little_for_work(module.DISPATCH_RESUME) is not None
    host.look(outbox=3.1, state=1.6)
    assert host.room.too_little_for_work(module.DISPATCH_RESUME) is None


def test_a_job_that_would_take_more_than_is_left_waits(host: Host) -> None:
    """What is left is what is free, less the floor, less what the jobs at work will still write."""
    host.look(state=10.0, outbox=10.0)
    assert host.room.refusal(2.9 * GB, 3 * GB) is None
    refusal = host.room.refusal(3.1 * GB, 3 * GB)
    assert refusal is not None and "outbox" in refusal and "3.1 GB" in refusal
    assert host.room.refusal(1.0 * GB, 0.0) is None


def test_a_place_that_does_not_answer_stops_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that is away or hangs is unknown: neither low nor roomy; nobody waits for it, and it is asked once at a
    time."""
    host.look(outbox=0.1)
    assert host.look(outbox=-1) is not None
    assert host.room.document()["places"]["outbox"]["free_bytes"] is None
    assert host.look(outbox=50) is None
    host.hanging.add("outbox")
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    assert host.look() is None
    assert host.room.refusal(99 * GB, 0.0) is not None
    assert host.room.document()["places"]["state"]["free_bytes"] is not None
    host.answer.set()


def test_floors_of_nothing_are_never_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a disk may be filled to its last byte."""
    host = Host(tmp_path, monkeypatch, "disk.state_free_gb=0", "disk.outbox_free_gb=0", "disk.inbox_free_gb=0")
    assert host.look(state=0, outbox=0, inbox=0) is None
    assert host.room.refusal(99 * GB, 0.0) is None
    assert host.full == []


def test_what_a_job_takes() -> None:
    """By its texts, its rate and its samples: 120 letters are 10 seconds."""

    def size(text: str, **more: object) -> float:
        document = json.dumps(job_document([text] * 10, **more)).encode()
        return result_bytes(parse_job(document, stem="film", limits=Limits()))

    assert size("x" * 120) == pytest.approx(10 * (10.5 * 44_100 * 2 + 4096))
    assert size("語" * 40) == size("x" * 120)
    assert size("x" * 120, output={"sample_rate": 48_000, "subtype": "PCM_24"}) == pytest.approx(
        10 * (10.5 * 48_000 * 3 + 4096)
    )

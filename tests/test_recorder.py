"""Notes and deliveries reach the journal in the order they came, each once, whatever the disk says meanwhile."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from daemon import recorder as recorders
from daemon.journal import Record, read_journal
from daemon.live_job import LiveJob
from daemon.recorder import Recorder
from daemon.store import Delivery, Spoilt
from tests.shell import deliver, failing_at, job_document, make_live_job

pytestmark = pytest.mark.anyio


class Desk:
    """A recorder and what it has told."""

    def __init__(self) -> None:
        self.stored: list[Delivery] = []
        self.spoilt: list[Spoilt] = []
        self.troubles: list[str] = []
        self.recorder = Recorder(self.stored.append, self.spoilt.append, self.troubles.append)

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - the recorder tells by calls, and its threads not at all
                await anyio.sleep(0.001)

    async def idle(self) -> None:
        await self.until(lambda: self.recorder.idle)


@asynccontextmanager
async def running() -> AsyncIterator[Desk]:
    desk = Desk()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.recorder.run)
        yield desk
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "RETRY_S", 0.005)


@pytest.fixture
def job(tmp_path: Path) -> LiveJob:
    return make_live_job(tmp_path, job_document([f"line {number}" for number in range(40)]))


def journal_of(job: LiveJob) -> list[Record]:
    return read_journal(job.folder / "journal.jsonl")


async def test_the_order_of_events(job: LiveJob) -> None:
    """Whatever is durable and whatever is not; one who waits goes on when his record and all before it are written."""
    async with running() as desk:
        for number in range(1000):
            desk.recorder.note(job, {"t": "n", "n": number}, durable=number % 7 == 0)
        await desk.recorder.record(job, {"t": "n", "n": 1000})
        assert [record["n"] for record in journal_of(job)] == list(range(1001))
        assert not desk.recorder.idle or journal_of(job)[-1]["n"] == 1000
        await desk.idle()


async def test_what_was_noted_before_stands_before(job: LiveJob) -> None:
    """A segment's own story is in order: begun, then spoken."""
    async with running() as desk:
        for position in range(40):
            desk.recorder.note(job, {"t": "began", "p": position})
            desk.recorder.deliver(deliver(job, position))
        await desk.until(lambda: len(desk.stored) == 40)
    for position in range(40):
        assert [record["t"] for record in journal_of(job) if record["p"] == position] == ["began", "ok"]
    assert [delivery.position for delivery in desk.stored] == list(range(40))
    assert [segment.status for segment in job.segments] == ["ok"] * 40


async def test_good_and_bad_deliveries(job: LiveJob) -> None:
    """Each is told once, as what it is, and a bad one harms no neighbour."""
    async with running() as desk:
        for position in range(4):
            desk.recorder.deliver(deliver(job, position, content=b"noise" if position % 2 else None))
        await desk.until(lambda: len(desk.stored) + len(desk.spoilt) == 4)
        await desk.idle()
    assert [delivery.position for delivery in desk.stored] == [0, 2]
    assert [spoilt.delivery.position for spoilt in desk.spoilt] == [1, 3]


@pytest.mark.parametrize("number", range(1, 12))
async def test_a_disk_that_refuses_once(job: LiveJob, number: int) -> None:
    """Whichever change on disk fails: the daemon hears of it, and then all is recorded, each once and in order."""
    async with running() as desk:
        with failing_at(number, error=errno.ENOSPC) as fired:
            for position in range(2):
                desk.recorder.note(job, {"t": "began", "p": position})
                desk.recorder.deliver(deliver(job, position))
            desk.recorder.deliver(deliver(job, 2, content=b"noise"))
            await desk.recorder.record(job, {"t": "suspect", "p": 5})
            await desk.until(lambda: len(desk.stored) == 2 and len(desk.spoilt) == 1)
            await desk.idle()
        assert fired() or not desk.troubles
    records = [(record["t"], record["p"]) for record in journal_of(job)]
    assert sorted(records) == [("began", 0), ("began", 1), ("ok", 0), ("ok", 1), ("suspect", 5)]
    assert [segment.status for segment in job.segments[:3]] == ["ok", "ok", "waiting"]


async def test_a_disk_that_goes_on_refusing(job: LiveJob) -> None:
    """Nobody is told that anything is recorded before it is; then everybody is, in order."""
    done: list[int] = []
    async with running() as desk, anyio.create_task_group() as tasks:

        async def record(number: int) -> None:
            await desk.recorder.record(job, {"t": "n", "n": number})
            done.append(number)

        segments = job.folder / "journal.jsonl"
        segments.mkdir()  # a folder in the journal's place refuses as long as it is there
        for number in range(5):
            tasks.start_soon(record, number)
        desk.recorder.deliver(deliver(job, 0))
        await desk.until(lambda: len(desk.troubles) > 3)
        assert (done, desk.stored, desk.recorder.idle) == ([], [], False)
        segments.rmdir()
        await desk.until(lambda: len(done) == 5 and desk.stored)
        await desk.idle()
    assert done == list(range(5))
    assert [record["n"] for record in journal_of(job) if record["t"] == "n"] == list(range(5))


async def test_a_job_whose_folder_is_gone(tmp_path: Path, job: LiveJob) -> None:
    """The hand that removed it has stopped that job, and no other."""
    other = make_live_job(tmp_path)
    shutil.rmtree(job.folder)
    async with running() as desk:
        desk.recorder.note(job, {"t": "cancel"})
        await desk.recorder.record(job, {"t": "taken", "at": 1.0})
        desk.recorder.deliver(deliver(other, 0))
        await desk.until(lambda: desk.stored)
    assert desk.troubles == []


async def test_nothing_is_recorded_of_a_closed_job(job: LiveJob) -> None:
    """Its folder goes; a note that comes late makes no new one, and whoever waits goes on."""
    async with running() as desk:
        job.closed = True
        shutil.rmtree(job.folder)
        desk.recorder.note(job, {"t": "cancel"})
        await desk.recorder.record(job, {"t": "stop"})
        await desk.idle()
    assert not job.folder.exists() and desk.troubles == []

"""The keeper of the finishing processes, with real ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import soundfile

from daemon.finishing.finisher import FINISHING_FAILED, Finisher
from daemon.live_job import LiveJob
from daemon.store import Delivery, Spoilt
from tests.shell import RATE, deliver, job_document, make_live_job

pytestmark = pytest.mark.anyio


class Results:
    """What the finisher says of ``expected`` deliveries, by position. ``given`` hears of each that a process is given,
    before that process can have heard of it."""

    def __init__(self, expected: int, *, tries: int = 3, given: Callable[[int, int], None] = lambda *_: None) -> None:
        self.finished: dict[int, Delivery] = {}
        self.spoilt: dict[int, Spoilt] = {}
        self._expected = expected
        self._all = anyio.Event()
        self.finisher = _Watched(self._finish, self._spoil, pytest.fail, lambda: tries)
        self.finisher.given = given

    def _finish(self, delivery: Delivery) -> None:
        assert delivery.position not in self.finished
        self.finished[delivery.position] = delivery
        self._count()

    def _spoil(self, spoilt: Spoilt) -> None:
        assert spoilt.delivery.position not in self.spoilt
        self.spoilt[spoilt.delivery.position] = spoilt
        self._count()

    def _count(self) -> None:
        if len(self.finished) + len(self.spoilt) == self._expected:
            self._all.set()

    async def settle(self, deliveries: Sequence[Delivery]) -> None:
        """Until all is said."""
        for delivery in deliveries:
            self.finisher.finish(delivery)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.finisher.run)
            with anyio.fail_after(50):
                await self._all.wait()
            assert self.finisher.idle
            tasks.cancel_scope.cancel()


class _Watched(Finisher):
    given: Callable[[int, int], None]

    def _give(self, process: Any, item: Any, tasks: Any) -> None:
        super()._give(process, item, tasks)
        self.given(process.transport.pid, item.delivery.position)


def make_job(tmp_path: Path, count: int = 3) -> LiveJob:
    output = {"trim_silence": True, "subtype": "PCM_24"}
    return make_live_job(tmp_path, job_document([f"line {number}" for number in range(count)], output=output))


def tone(job: LiveJob, position: int, **more: Any) -> Delivery:
    delivery = deliver(job, position, frames=RATE, **more)
    soundfile.write(delivery.file, 0.1 * np.sin(np.arange(RATE) / 5), RATE, subtype="FLOAT")
    return delivery


async def test_a_process_that_dies_over_a_segment_is_replaced(tmp_path: Path) -> None:
    """The segment is finished by another one, the others know nothing of it; the worker's files are gone."""
    killed: list[int] = []

    def kill_once(pid: int, position: int) -> None:
        if position == 1 and not killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    job, results = make_job(tmp_path), Results(3, given=kill_once)
    deliveries = [tone(job, position) for position in range(3)]
    await results.settle(deliveries)
    assert killed and not results.spoilt
    assert sorted(results.finished) == [0, 1, 2]
    for before in deliveries:
        after = results.finished[before.position]
        assert after.finishing == {"spoken_s": 1.0, "trimmed_start_s": 0.0, "trimmed_end_s": 0.0}
        assert soundfile.info(after.file).subtype == "PCM_24"
        assert not before.file.exists()


async def test_a_segment_that_kills_every_process_is_given_back(tmp_path: Path) -> None:
    """After so many deaths, alone; SIGALRM, as when it hangs."""
    killed: list[int] = []

    def kill_always(pid: int, position: int) -> None:
        if position == 1:
            os.kill(pid, signal.SIGALRM)
            killed.append(pid)

    job, results = make_job(tmp_path), Results(3, tries=2, given=kill_always)
    await results.settle([tone(job, position) for position in range(3)])
    assert len(set(killed)) == 2
    assert sorted(results.finished) == [0, 2]
    assert {position: spoilt.code for position, spoilt in results.spoilt.items()} == {1: FINISHING_FAILED}
    assert "died over it 2 times" in results.spoilt[1].message


async def test_a_file_that_is_not_what_the_worker_said(tmp_path: Path) -> None:
    """Whatever lies there, it is the segment's worker that is told of it, and nothing hangs."""
    job, results = make_job(tmp_path, 6), Results(6)
    wrong = [tone(job, position) for position in range(6)]
    wrong[0].frames -= 1
    wrong[1].file.write_bytes(b"RIFF")
    wrong[2].file.unlink()
    wrong[3].file.unlink()
    os.mkfifo(wrong[3].file)
    wrong[4].file.unlink()
    wrong[4].file.symlink_to("/etc/passwd")
    soundfile.write(wrong[5].file, np.full(RATE, np.nan), RATE, subtype="FLOAT")
    await results.settle(wrong)
    codes = [results.spoilt[position].code for position in range(6)]
    assert codes == ["bad_audio", "bad_audio", "no_audio", "bad_audio", "no_audio", "bad_audio"]
    assert not list(job.segments_folder.iterdir())


async def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of each segment, with what was wrong, after a few tries."""
    monkeypatch.setattr("daemon.finishing.finisher.MODULE", "daemon.finishing.nowhere")
    job, results = make_job(tmp_path), Results(1)
    await results.settle([tone(job, 0)])
    assert results.spoilt[0].code == FINISHING_FAILED
    assert "No module named 'daemon.finishing.nowhere'" in results.spoilt[0].message

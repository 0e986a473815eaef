"""The pool between the real core and workers whose words are scripted: what is believed, and what is not.

The transport here carries messages as any transport does; what it says is up to the test. What happens on a real pipe
is told in test_worker_process, what the core makes of events in tests/core.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from daemon.core import events
from daemon.core.core import Core
from daemon.core.events import JobArrived, JobCancelled, SegmentEnded, SegmentSpec, WorkerSpec, WorkersPlanned
from daemon.core.supervision import PoolPolicy
from daemon.live_job import EngineIdentity
from daemon.pool import MOST_SLOTS, Pool, Ticket
from daemon.transport import OnLine, OnMessage, Transport
from tests.shell import settings_in
from workers.protocol import PROTOCOL_VERSION, Message

pytestmark = pytest.mark.anyio

POLICY = PoolPolicy(backoff_min_s=0.001, backoff_max_s=0.002)


class ScriptedTransport:
    """Carries what the test says to the pool, and keeps what the pool says."""

    def __init__(self, worker: int, gpu: int | None) -> None:
        self.worker, self.gpu = worker, gpu
        self.sent: list[Message] = []
        self.finished = self.killed = self.lost = False
        self.pid: int | None = None
        self._on_message: OnMessage | None = None
        self._ended = anyio.Event()
        self._reason = ""

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        self._on_message = on_message
        self.pid = 4_000_000 + self.worker
        if self.killed:
            return "killed before it began"
        on_line("a line of its stderr")
        await self._ended.wait()
        return self._reason

    def send(self, message: Message) -> None:
        if not self.finished:
            self.sent.append(message)

    def finish(self) -> None:
        self.finished = True

    def tell_stacks(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True
        self.end("killed")

    # --- the script -----------------------------------------------------------------------------------------

    def say(self, type: str, **fields: Any) -> None:  # noqa: A002 - as the message names it
        assert self._on_message is not None
        self._on_message({"type": type, **fields})

    def ready(self, slots: int = 2, **more: Any) -> None:
        fields = {"engine": "draft", "engine_version": "1", "model": "m", "slots": slots, "sample_rate": 8_000}
        self.say("ready", **{**fields, "device": "cpu", "load_s": 0.1, "ignored": ["top_p"], **more})

    def end(self, reason: str = "exited with status 1") -> None:
        self._reason = self._reason or reason
        self._ended.set()

    def asked(self, type: str = "speak") -> list[int]:  # noqa: A002 - as the message names it
        """Tickets of the messages of this type."""
        return [message["ticket"] for message in self.sent if message["type"] == type]


def is_transport(transport: ScriptedTransport) -> Transport:
    """For the type checker: it has all that the pool needs."""
    return transport


class Host:
    """Keeps what the pool tells the rest of the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[tuple[Any, ...]] = []
        self.ended: dict[int, SegmentEnded] = {}
        self.identity: EngineIdentity | None = None
        self.deliveries: list[Ticket] = []
        self.may_record = anyio.Event()
        self.may_record.set()
        self.disk_error: OSError | None = None

    def speak_message(self, ticket: int, job: str, position: int) -> tuple[Message, Path]:
        return {"type": "speak", "ticket": ticket, "position": position}, self.folder / f".{ticket}.wav"

    async def record_try(self, job: str, position: int, tries: int) -> None:
        await self.may_record.wait()
        if self.disk_error is not None:
            raise self.disk_error
        self.told.append(("try", position, tries))

    def began(self, job: str, position: int, worker: int) -> tuple[str, str]:
        self.told.append(("began", position))
        return job, f"speaker of {position}"

    def given_back(self, job: str, position: int) -> None:
        self.told.append(("back", position))

    def suspected(self, job: str, position: int) -> None:
        self.told.append(("suspect", position))

    def tried(self, job: str, position: int, tries: int) -> None:
        self.told.append(("tried", position, tries))

    def delivered(self, ticket: Ticket, message: Message, device: str) -> None:
        int(message["frames"])
        self.told.append(("delivered", ticket.position))
        self.deliveries.append(ticket)

    def segment_ended(self, ended: SegmentEnded) -> None:
        assert ended.position not in self.ended, "a segment ends once"
        self.ended[ended.position] = ended

    def job_ended(self, job: str) -> None:
        self.told.append(("job ended", job))

    def disk_full(self, reason: str) -> None:
        self.told.append(("disk full", reason))

    def worker_changed(self) -> None:
        pass

    def engine_known(self, identity: EngineIdentity) -> None:
        self.identity = identity


class Stage:
    """A pool, its host, its transports (in the order they were started)."""

    def __init__(self, folder: Path) -> None:
        self.core = Core(POLICY, random.Random(1))
        self.host = Host(folder)
        self.transports: list[ScriptedTransport] = []
        self.pool = Pool(self.core, self.host, self._make, lambda place, device: {"type": "hello"}, settings_in(folder))

    def _make(self, place: WorkerSpec) -> tuple[Transport, str]:
        self.transports.append(ScriptedTransport(place.worker, place.gpu))
        return is_transport(self.transports[-1]), "cpu"

    def apply(self, make: Callable[..., events.Event], *arguments: Any) -> None:
        self.pool.apply(make(anyio.current_time(), *arguments))

    def plan(self, *workers: int, restart: bool = False) -> None:
        self.apply(WorkersPlanned, tuple(WorkerSpec(worker, None) for worker in workers), restart)

    def job(self, segments: int, **more: Any) -> None:
        self.apply(JobArrived, "film", 0, tuple(SegmentSpec(n, "anna", **more) for n in range(segments)))

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(20):
            while not condition():
                await anyio.lowlevel.checkpoint()

    async def transport(self, number: int = 0) -> ScriptedTransport:
        """The one that was started as this, running."""
        await self.until(lambda: len(self.transports) > number and self.transports[number].pid is not None)
        return self.transports[number]

    async def ready(self, slots: int = 2, number: int = 0) -> ScriptedTransport:
        transport = await self.transport(number)
        transport.ready(slots)
        return transport

    def state(self, worker: int = 0) -> str:
        (state,) = [row["state"] for row in self.pool.worker_rows() if row["worker"] == worker]
        assert isinstance(state, str)
        return state

    def check_out(self, ticket: int, transport: ScriptedTransport) -> None:
        """The worker speaks the segment, and its file is found good."""
        transport.say("began", ticket=ticket)
        transport.say("spoken", ticket=ticket, frames=80)
        self.apply(events.SegmentStored, "film", self.host.deliveries[-1].position)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Running, with nothing planned."""
    stage = Stage(tmp_path)
    async with anyio.create_task_group() as tasks:
        await tasks.start(stage.pool.run)
        yield stage
        stage.core.check()
        tasks.cancel_scope.cancel()


# --- the usual ---------------------------------------------------------------------------------------------


async def test_the_road_of_a_segment(stage: Stage) -> None:
    """hello, ready, speak, began, spoken, stored, and each is told to whom it concerns."""
    stage.plan(0)
    stage.job(2)
    transport = await stage.transport()
    assert [message["type"] for message in transport.sent] == ["hello"]
    assert stage.pool.pids == {transport.pid}
    transport.ready(slots=2)
    assert stage.host.identity == stage.pool.identity == EngineIdentity("draft", "1", "m", "auto", ("top_p",))
    assert transport.asked() == [1, 2] and stage.pool.holding() == 2
    transport.say("beat", in_flight=1, memory_bytes=5, activity="speaking")
    stage.check_out(1, transport)
    stage.check_out(2, transport)
    assert {position: ended.outcome for position, ended in stage.host.ended.items()} == {0: "spoken", 1: "spoken"}
    assert stage.host.told[-1] == ("job ended", "film")
    assert (stage.pool.holding(), stage.pool.spoken) == (0, 2)
    (row,) = stage.pool.worker_rows()
    assert (row["state"], row["spoken"], row["memory_bytes"], row["loads"]) == ("ready", 2, 5, 1)


async def test_a_worker_is_stopped_by_the_word(stage: Stage) -> None:
    """And its input is closed behind it; when it stays, it is killed."""
    stage.pool.settings = settings_in(stage.host.folder, "worker.stop_grace_s=0.05")
    stage.plan(0)
    transport = await stage.ready()
    stage.plan()
    await stage.until(lambda: transport.finished)
    assert transport.sent[-1] == {"type": "stop"}
    await stage.until(lambda: transport.killed)
    await stage.until(lambda: not stage.pool.pids)
    assert stage.pool.worker_rows() == []


async def test_a_command_that_follows_at_once_finds_its_worker(stage: Stage) -> None:
    """A plan that is taken back before the worker's process has begun: the worker is told to stop, not forgotten."""
    stage.plan(0)
    stage.plan()
    await stage.until(lambda: stage.transports[0].finished or stage.transports[0].killed)
    assert {"type": "hello"} in stage.transports[0].sent


async def test_the_reason_of_an_end(stage: Stage) -> None:
    """What the worker itself said of it counts most; it is shown until a worker has spoken again."""
    stage.plan(0)
    transport = await stage.transport()
    transport.say("failed", ticket=None, code="no_model", message="the checkpoint is empty")
    transport.end("exited with status 3")
    await stage.until(lambda: len(stage.transports) > 1)
    (row,) = stage.pool.worker_rows()
    assert row["error"] == "no_model: the checkpoint is empty" and row["restarts"] == 1


async def test_another_protocol(stage: Stage) -> None:
    """A worker of another version is not worked with, and the reason says what to do."""
    stage.plan(0)
    transport = await stage.transport()
    transport.say("hello", protocol=PROTOCOL_VERSION + 1, pid=1, python="3.10")
    assert transport.killed
    await stage.until(lambda: len(stage.transports) > 1)
    (row,) = stage.pool.worker_rows()
    assert "wrong_protocol" in row["error"]


async def test_the_end_of_the_pool_kills_nobody_twice(stage: Stage) -> None:
    """Once the daemon ends nothing that a worker says is an event any more; it is asked to exit."""
    stage.plan(0)
    stage.job(1)
    transport = await stage.ready()
    stage.pool.stop_listening()
    transport.say("spoken", ticket=1, frames=80)
    transport.say("nonsense")
    stage.pool.ask_to_exit()
    assert transport.sent[-1] == {"type": "stop"} and transport.finished and not transport.killed
    assert stage.host.deliveries == []


async def test_draining_asks_for_what_has_not_begun(stage: Stage) -> None:
    """It costs no try, though nobody but the daemon wanted it."""
    stage.plan(0)
    stage.job(3)
    transport = await stage.ready(slots=1)
    transport.say("began", ticket=1)
    stage.apply(events.DispatchPaused)
    stage.pool.recall_unbegun()
    assert transport.asked("recall") == [2, 3]
    for ticket in (2, 3):
        transport.say("cancelled", ticket=ticket, began=False)
    assert stage.pool.holding() == 1
    assert ("back", 1) in stage.host.told and stage.host.ended == {}


# --- suspects ----------------------------------------------------------------------------------------------


async def test_a_try_is_recorded_before_its_frame(stage: Stage) -> None:
    """The frame waits for the record."""
    stage.host.may_record = anyio.Event()
    stage.plan(0)
    stage.job(1, suspect=True, tries=1)
    transport = await stage.ready()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    assert transport.asked() == []
    stage.host.may_record.set()
    await stage.until(lambda: transport.asked())
    assert stage.host.told == [("try", 0, 2)]


async def test_a_try_that_can_not_be_recorded(stage: Stage) -> None:
    """The segment is not sent, not charged, and the daemon hears of the disk."""
    stage.host.disk_error = OSError(28, "No space left on device")
    stage.plan(0)
    stage.job(1, suspect=True)
    transport = await stage.ready()
    await stage.until(lambda: stage.host.told)
    stage.apply(events.DispatchPaused)
    await stage.until(lambda: ("back", 0) in stage.host.told)
    stage.host.disk_error = None
    stage.apply(events.DispatchResumed)
    await stage.until(lambda: transport.asked())
    assert stage.host.told[-1] == ("try", 0, 1)


async def test_a_job_cancelled_while_its_try_is_recorded(stage: Stage) -> None:
    """The segment is not sent after all."""
    stage.host.may_record = anyio.Event()
    stage.plan(0)
    stage.job(1, suspect=True)
    transport = await stage.ready()
    stage.apply(JobCancelled, "film")
    stage.host.may_record.set()
    await stage.until(lambda: stage.host.ended)
    assert stage.host.ended[0].outcome == "cancelled"
    assert transport.asked() == [] and ("back", 0) in stage.host.told


async def test_a_worker_that_dies_while_a_try_is_recorded(stage: Stage) -> None:
    """The frame goes to nobody; the segment goes to the next worker."""
    stage.host.may_record = anyio.Event()
    stage.plan(0)
    stage.job(1, suspect=True)
    (await stage.ready()).end()
    await stage.until(lambda: len(stage.transports) > 1)
    stage.host.may_record.set()
    second = await stage.ready(number=1)
    await stage.until(lambda: second.asked())
    assert stage.transports[0].asked() == []


async def test_those_that_had_begun_are_suspects(stage: Stage) -> None:
    """A dead worker's unfinished files are removed, and its unbegun segments go on as if nothing had been."""
    stage.plan(0)
    stage.job(3)
    transport = await stage.ready(slots=1)
    half = stage.host.folder / ".1.wav"
    half.write_bytes(b"half")
    transport.say("began", ticket=1)
    transport.end()
    await stage.until(lambda: ("suspect", 0) in stage.host.told)
    assert not half.exists() and stage.pool.holding() == 0
    second = await stage.ready(slots=1, number=1)
    await stage.until(lambda: second.asked())
    assert ("suspect", 1) not in stage.host.told


async def test_what_a_lost_node_had_begun_is_given_back(stage: Stage) -> None:
    """It is no suspect, on disk neither; its half file is removed."""
    stage.plan(0)
    stage.job(3)
    transport = await stage.ready(slots=1)
    half = stage.host.folder / ".1.wav"
    half.write_bytes(b"half")
    transport.say("began", ticket=1)
    transport.lost = True
    transport.end("its node is lost")
    second = await stage.ready(slots=1, number=1)
    await stage.until(lambda: len(second.asked()) == 3)
    assert not half.exists()
    assert [told for told in stage.host.told if told[0] != "began"] == [("back", 0), ("back", 1), ("back", 2)]


# --- lies --------------------------------------------------------------------------------------------------


async def test_answers_for_what_was_not_given(stage: Stage) -> None:
    """Unknown tickets, another's, and every answer but the first are ignored; the work goes on."""
    stage.plan(0, 1)
    stage.job(8)
    first, second = await stage.ready(), await stage.ready(number=1)
    mine, others = first.asked()[0], second.asked()[0]
    before = stage.core.oddities
    for ticket in (others, 999, -1, 0, 2**70):
        first.say("began", ticket=ticket)
        first.say("spoken", ticket=ticket, frames=80)
        first.say("failed", ticket=ticket, code="x", message="y", retryable=True)
        first.say("cancelled", ticket=ticket, began=False)
    assert stage.core.oddities == before + 20 and stage.host.told == []
    stage.check_out(mine, first)
    for again in ("spoken", "encoded"):
        first.say(again, ticket=mine, frames=80)
    first.say("failed", ticket=mine, code="x", message="y", retryable=False)
    first.say("cancelled", ticket=mine, began=True)
    first.say("began", ticket=mine)
    first.ready()
    assert len(stage.host.deliveries) == 1 and not first.killed
    assert list(stage.host.ended) == [stage.host.deliveries[0].position]
    assert stage.host.told.count(("began", stage.host.deliveries[0].position)) == 1


@pytest.mark.parametrize(
    "message",
    [
        {"type": "nonsense"},
        {"type": ""},
        {"type": "began"},
        {"type": "began", "ticket": "1"},
        {"type": "began", "ticket": [1]},
        {"type": "began", "ticket": True},
        {"type": "spoken", "ticket": 1.0, "frames": 80},
        {"type": "spoken", "ticket": 1},
        {"type": "spoken", "ticket": 1, "frames": None},
        {"type": "failed", "ticket": 1},
        {"type": "failed", "ticket": 1, "code": 3, "message": "m"},
        {"type": "failed", "ticket": 1, "code": "c", "message": ["m"]},
        {"type": "failed", "ticket": 1, "code": "c", "message": "m", "slots": "many"},
        {"type": "failed", "ticket": 1, "code": "c", "message": "\ud800"},
        {"type": "failed", "ticket": None},
        {"type": "cancelled", "ticket": {}},
        {"type": "beat", "memory_bytes": "much"},
        {"type": "ready"},
        {"type": "ready", "engine": "e", "engine_version": "1", "model": "m", "slots": 0},
        {"type": "ready", "engine": "e", "engine_version": "1", "model": "m", "slots": MOST_SLOTS + 1},
        {"type": "ready", "engine": "e", "engine_version": "1", "model": "\udfff", "slots": 1},
        {"type": "ready", "engine": {}, "engine_version": "1", "model": "m", "slots": 1},
        {"type": "ready", "engine": "e", "engine_version": "1", "model": "m", "slots": 1, "ignored": 7},
        {"type": "hello"},
    ],
    ids=str,
)
async def test_a_message_that_makes_no_sense_ends_its_worker(stage: Stage, message: Message) -> None:
    """And nothing else: what it held is spoken by the next one, and what it says from then on is not heard."""
    stage.plan(0)
    stage.job(1)
    transport = await stage.ready()
    transport.say(**message)
    assert transport.killed
    transport.say("spoken", ticket=1, frames=80)
    assert stage.host.deliveries == []
    second = await stage.ready(number=1)
    await stage.until(lambda: second.asked())
    stage.check_out(second.asked()[0], second)
    assert stage.host.ended[0].outcome == "spoken"


async def test_long_words_are_cut(stage: Stage) -> None:
    """What a worker says at length is kept in part."""
    stage.plan(0)
    stage.job(1)
    transport = await stage.ready()
    transport.say("beat", activity="x" * 100_000, memory_bytes=0)
    transport.say("failed", ticket=1, code="c" * 100_000, message="m" * 100_000, retryable=False)
    ended = stage.host.ended[0]
    assert ended.message is not None and len(ended.message) <= 2000
    assert ended.code is not None and len(ended.code) <= 100
    assert len(stage.pool.worker_rows()[0]["activity"]) <= 200


async def test_a_folder_where_a_file_was_to_be(stage: Stage) -> None:
    """Whatever the worker has left under the name goes, and raises nothing."""
    stage.plan(0)
    stage.job(2)
    transport = await stage.ready()
    for ticket in (1, 2):
        (stage.host.folder / f".{ticket}.wav" / "below").mkdir(parents=True)
    transport.say("failed", ticket=1, code="c", message="m", retryable=False)
    transport.end()
    await stage.until(lambda: len(stage.transports) > 1)
    assert [name for name in os.listdir(stage.host.folder) if name.startswith(".")] == []


async def test_a_worker_that_gives_everything_back(stage: Stage) -> None:
    """Unasked: that costs tries, so it comes to an end."""
    stage.plan(0)
    stage.job(1)
    transport = await stage.ready()
    with anyio.fail_after(20):
        while not stage.host.ended:
            await stage.until(lambda: transport.asked()[-1:] != [] and stage.pool.holding())
            transport.say("cancelled", ticket=transport.asked()[-1], began=False)
    assert stage.host.ended[0].outcome == "failed"
    assert len(transport.asked()) == POLICY.tries


async def test_a_full_disk_at_the_worker(stage: Stage) -> None:
    """It is nobody's fault: the daemon hears of it, and the segment is given back without a charge."""
    stage.plan(0)
    stage.job(1)
    transport = await stage.ready()
    for _ in range(POLICY.tries + 2):
        transport.say("began", ticket=transport.asked()[-1])
        transport.say("failed", ticket=transport.asked()[-1], code="disk_full", message="full", retryable=True)
        await stage.until(lambda: stage.pool.holding())
    assert stage.host.ended == {} and ("disk full", "full") in stage.host.told


async def test_a_job_that_is_cancelled_is_recalled(stage: Stage) -> None:
    """What has not been answered is asked back; what comes all the same is as good as before."""
    stage.plan(0)
    stage.job(3)
    transport = await stage.ready(slots=3)
    transport.say("began", ticket=1)
    transport.say("began", ticket=2)
    stage.apply(JobCancelled, "film")
    assert sorted(transport.asked("cancel")) == [1, 2, 3]
    stage.host.told.clear()
    transport.say("cancelled", ticket=1, began=True)
    transport.say("spoken", ticket=2, frames=80)
    stage.apply(events.SegmentStored, "film", 1)
    transport.say("cancelled", ticket=3, began=False)
    outcomes = {position: ended.outcome for position, ended in stage.host.ended.items()}
    assert outcomes == {0: "cancelled", 1: "spoken", 2: "cancelled"}
    with contextlib.suppress(IndexError):
        assert stage.host.told[-1] == ("job ended", "film")

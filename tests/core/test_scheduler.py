"""Who speaks what: dealing, stealing, recalls, fairness, priority. The books are checked after every event."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.events import Dispatch, JobArrived, Recall, WorkersPlanned
from daemon.core.scheduler import LAG_SEGMENTS, LazyHeap
from daemon.core.supervision import PoolPolicy
from tests.core.driver import Desk, SimulatedPool, only, plan, specs

SAMPLE = [str(number % 6) for number in range(46)]
"""The sample job: 46 segments of 6 speakers."""


# --- the heap -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(-5, 5)))))
def test_the_lazy_heap_always_gives_the_least(changes: list[tuple[int, int | None]]) -> None:
    """Whatever is set, moved and discarded, the top is the least of what is in."""
    heap: LazyHeap[int] = LazyHeap()
    truth: dict[int, int] = {}
    for key, rank in changes * 20:
        if rank is None:
            heap.discard(key)
            truth.pop(key, None)
        else:
            heap.set(key, (rank,))
            truth[key] = rank
        top = heap.peek()
        assert (top is None) == (not truth)
        assert top is None or truth[top] == min(truth.values())
        others = [rank for key, rank in truth.items() if key != top]
        other = None if top is None else heap.peek_other(top)
        assert (other is None) == (not others)
        assert other is None or truth[other] == min(others)
        assert len(heap) == len(truth)


def test_the_lazy_heap_does_not_grow_with_changes() -> None:
    """Outdated entries never outnumber the others by much."""
    heap: LazyHeap[int] = LazyHeap()
    for change in range(10_000):
        heap.set(change % 3, (-change,))
    assert len(heap._heap) < 100


# --- dealing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "dealt"),
    [
        (1, [["0", "1", "2", "3", "4", "5"]]),
        (2, [["0", "2", "4"], ["1", "3", "5"]]),
        (4, [["0", "4"], ["1", "5"], ["2"], ["3"]]),
        (8, [["0"], ["1"], ["2"], ["3"], ["4"], ["5"]]),
    ],
)
def test_speakers_are_dealt_round_robin_in_order_of_first_appearance(workers: int, dealt: list[list[str]]) -> None:
    """The assignment that people of this scheme know, with the counts of texts."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(workers)))
    desk.arrive("a", SAMPLE)
    assignment = desk.core.assignment("a")
    assert [speakers for _, speakers, _ in assignment] == dealt
    assert [worker for worker, _, _ in assignment] == list(range(len(dealt)))
    assert sum(count for _, _, count in assignment) == 46
    assert assignment[0][2] == sum(SAMPLE.count(speaker) for speaker in dealt[0])


def test_a_speaker_stays_with_its_worker_and_speakers_come_one_after_the_other() -> None:
    """With the work evenly dealt nobody steals, and a voice is finished before the next begins."""
    pool = SimulatedPool(Desk())
    pool.tell(WorkersPlanned(0, plan(2)))
    pool.tell(JobArrived(0, "a", 0, specs("abcdef" * 4)))
    pool.run()
    for worker, expected in ((0, "aaaacccceeee"), (1, "bbbbddddffff")):
        spoken = "".join("abcdef"[d.position % 6] for d in pool.dispatches if d.worker == worker)
        assert spoken == expected


def test_work_that_came_before_any_worker_is_dealt_when_workers_are_planned() -> None:
    """A job may arrive before the plan."""
    pool = SimulatedPool(Desk())
    pool.tell(JobArrived(0, "a", 0, specs("abcd")))
    assert pool.desk.core.assignment("a") == []
    pool.tell(WorkersPlanned(0, plan(2)))
    pool.run()
    assert len(pool.ended) == 4
    assert {d.worker for d in pool.dispatches} == {0, 1}


def test_a_retired_workers_lanes_go_to_the_others() -> None:
    """Nothing waits for a worker that is not planned any more."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(2)
    desk.arrive("a", "abab" * 3)
    desk.tell(WorkersPlanned(0, plan(1)))
    assert {lane.worker for lane in desk.core._backlog.lanes()} == {0}


# --- keeping everyone at work -------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_a_worker_holds_its_slots_and_the_lookahead(slots: int, lookahead: int) -> None:
    """Credits: never more, and no less while work waits."""
    desk = Desk(PoolPolicy(lookahead=lookahead))
    desk.workers(2, slots)
    held = only(Dispatch, desk.arrive("a", "ab" * 50))
    assert len(held) == 2 * (slots + lookahead)
    assert len(only(Dispatch, desk.speak(held[0]))) == 1


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 6, 7, 46, 60])
@pytest.mark.parametrize("speakers", [1, 6, 46])
@pytest.mark.parametrize("lookahead", [0, 2, 5])
def test_the_job_takes_as_few_rounds_as_there_can_be(workers: int, speakers: int, lookahead: int) -> None:
    """With a fixed time a segment nobody idles while work waits, even in another worker's lookahead."""
    pool = SimulatedPool(Desk(PoolPolicy(lookahead=lookahead)))
    pool.tell(WorkersPlanned(0, plan(workers)))
    pool.tell(JobArrived(0, "a", 0, specs(str(number % speakers) for number in range(46))))
    pool.run()
    assert pool.desk.at == math.ceil(46 / workers)
    assert len(pool.ended) == 46


def test_a_worker_that_runs_dry_steals_a_whole_waiting_speaker_first() -> None:
    """A voice moves whole while one waits that was not begun; only then is a queue split."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(2)
    # a and c are dealt to worker 0, b to worker 1
    first = {d.worker: d for d in only(Dispatch, desk.arrive("j", "ab" + "a" * 8 + "c" * 4))}
    stolen = only(Dispatch, desk.speak(first[1]))
    assert [(d.worker, d.position) for d in stolen] == [(1, 10)]
    spoken = stolen
    for position in (11, 12, 13):
        spoken = only(Dispatch, desk.speak(spoken[0]))
        assert [(d.worker, d.position) for d in spoken] == [(1, position)]
    split = only(Dispatch, desk.speak(spoken[0]))
    assert [(d.worker, d.position) for d in split] == [(1, 6)]  # 2 to 9 waited: the tail half is 6 to 9


def test_an_idle_worker_recalls_what_has_not_begun_from_the_tail() -> None:
    """One recall for one idle slot; the segment goes to the idle worker when it is given back."""
    desk = Desk(PoolPolicy(lookahead=3))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "xxxx"))
    desk.begin(held[0])
    start = desk.tell(WorkersPlanned(0, plan(2)))[0]
    (recall,) = only(Recall, desk.ready(start))  # type: ignore[arg-type]
    assert (recall.worker, recall.ticket) == (0, held[3].ticket)
    moved = desk.release(recall)
    assert [(d.worker, d.position) for d in only(Dispatch, moved)] == [(1, 3)]
    assert not only(Recall, moved)


def test_a_recall_that_comes_too_late_is_made_up_for_by_another() -> None:
    """The worker spoke it all the same: the idle one asks for the next, if there is one."""
    desk = Desk(PoolPolicy(lookahead=3))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "xxxx"))
    desk.begin(held[0])
    (recall,) = only(Recall, desk.ready(desk.tell(WorkersPlanned(0, plan(2)))[0]))  # type: ignore[arg-type]
    desk.deliver(held[0])
    (again,) = only(Recall, desk.speak(held[3]))
    assert again.ticket == held[2].ticket != recall.ticket


# --- fairness -----------------------------------------------------------------------------------------------


def test_a_short_job_does_not_wait_for_the_end_of_a_long_one() -> None:
    """It starts level with the long one, so it has half the pool until it is done."""
    pool = SimulatedPool(Desk())
    pool.tell(WorkersPlanned(0, plan(4)))
    pool.tell(JobArrived(0, "long", 0, specs("abcdefgh" * 100)))
    pool.later(20.5, lambda: pool.tell(JobArrived(pool.desk.at, "short", 0, specs("xxxxxxxx"))))
    ends: dict[str, float] = {}
    while len(pool.jobs_ended) < 2:
        assert pool.step()
        for job in pool.jobs_ended:
            ends.setdefault(job, pool.desk.at)
    assert ends["short"] < 20.5 + 9
    assert ends["long"] == 202


@given(st.integers(0, 1 << 32))
def test_jobs_of_equal_priority_stay_within_the_bound(seed: int) -> None:
    """Jobs with work waiting are never further apart in cost than the bound that the module states."""
    choose = random.Random(seed)
    desk = Desk(PoolPolicy(lookahead=choose.randint(0, 2)))
    pool = SimulatedPool(desk, slots=choose.randint(1, 3), seconds=lambda dispatch: choose.uniform(0.5, 2))
    pool.tell(WorkersPlanned(0, plan(choose.randint(1, 6))))
    for number in range(choose.randint(2, 5)):
        count, speakers, cost = choose.randint(1, 60), choose.randint(1, 8), choose.uniform(1, 5)
        segments = specs((str(choose.randrange(speakers)) for _ in range(count)), cost)
        pool.later(choose.uniform(0, 10), lambda n=number, s=segments: pool.tell(JobArrived(desk.at, str(n), 0, s)))  # type: ignore[misc]
    while pool.step():
        active = [job for job in desk.core._jobs.values() if job.waiting]
        # A recalled segment is given back to its job's account, which may add one segment for each worker.
        if active and not any(isinstance(command, Recall) for command in desk.log):
            times = [job.virtual_time for job in active]
            bound = (LAG_SEGMENTS + 1) * max(job.costliest for job in desk.core._jobs.values())
            assert max(times) - min(times) <= bound + 1e-6


def test_a_higher_priority_goes_strictly_first() -> None:
    """Nothing of the lower one is dispatched while anything of the higher one waits."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(2)
    desk.arrive("low", "ab" * 20)
    desk.arrive("high", "xxxx", priority=5)
    order = []
    queue = only(Dispatch, desk.log)
    while queue:
        order.append(queue[0].job)
        queue = queue[1:] + only(Dispatch, desk.speak(queue[0]))
    assert order[:2] == ["low", "low"]
    assert order[2:6] == ["high"] * 4
    assert len(order) == 44

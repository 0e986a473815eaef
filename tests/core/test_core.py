"""The core as the shell sees it: what fails, what is cancelled, what may never happen. The books are checked after
every event of every test."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.core.events import (
    Dispatch,
    DispatchPaused,
    DispatchResumed,
    JobArrived,
    JobCancelled,
    JobEnded,
    KillWorker,
    Recall,
    SegmentBegan,
    SegmentDelivered,
    SegmentEnded,
    SegmentReleased,
    SegmentSpec,
    SegmentSpoilt,
    SegmentStored,
    StartWorker,
    StopWorker,
    Suspected,
    Tick,
    Tried,
    WorkerBeat,
    WorkerReady,
    WorkersPlanned,
)
from daemon.core.scheduler import ImpossibleTransition
from daemon.core.supervision import PoolPolicy
from tests.core.driver import Desk, Faults, SimulatedPool, only, plan, specs


def test_a_job_without_segments_ends_at_once() -> None:
    """There is nothing to wait for, not even for a worker."""
    assert Desk().arrive("empty", "") == [JobEnded("empty")]


def test_a_segment_ends_spoken_when_its_file_is_stored() -> None:
    """Delivered is not spoken: the file is checked first. Its slot is free before that."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(1)
    first = only(Dispatch, desk.arrive("a", "xx"))[0]
    desk.begin(first)
    second = only(Dispatch, desk.deliver(first))[0]
    assert second.position == 1
    assert desk.core.job_view("a").delivered == 1
    assert desk.store(first) == [SegmentEnded("a", 0, "spoken", 1, 0)]
    assert desk.speak(second)[-1] == JobEnded("a")
    assert desk.view(0).spoken == 2


def test_a_job_that_is_present_already_is_refused() -> None:
    """The shell queues a job of the same name; the core would mix them up."""
    desk = Desk()
    desk.arrive("a", "x")
    with pytest.raises(ValueError, match="present already"):
        desk.arrive("a", "x")


@pytest.mark.parametrize(
    "segments",
    [(SegmentSpec(0, "x"), SegmentSpec(0, "y")), (SegmentSpec(0, "x", 0.0),), (SegmentSpec(0, "x", math.nan),)],
)
def test_a_job_that_contradicts_itself_is_refused(segments: tuple[SegmentSpec, ...]) -> None:
    """A position twice, or a cost that would make the job free for ever, is the shell's mistake."""
    with pytest.raises(ValueError, match="job 'a'"):
        Desk().tell(JobArrived(0, "a", 0, segments))


# --- cancelling ---------------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_and_recalls_what_is_in_flight() -> None:
    """What waits ends at once; what a worker holds ends when it is given back."""
    desk = Desk(PoolPolicy(lookahead=1))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "xxxx"))
    desk.begin(held[0])
    commands = desk.tell(JobCancelled(0, "a"))
    assert [recall.ticket for recall in only(Recall, commands)] == [dispatch.ticket for dispatch in held]
    assert [(ended.position, ended.outcome) for ended in only(SegmentEnded, commands)] == [
        (2, "cancelled"),
        (3, "cancelled"),
    ]
    first, second = only(Recall, commands)
    assert only(SegmentEnded, desk.release(second))[0].outcome == "cancelled"
    assert desk.release(first, began=True)[-1] == JobEnded("a")


def test_work_done_before_the_recall_arrived_is_kept() -> None:
    """A segment of a cancelled job that is spoken all the same ends as spoken."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    desk.begin(held)
    desk.tell(JobCancelled(0, "a"))
    desk.deliver(held)
    assert desk.store(held) == [SegmentEnded("a", 0, "spoken", 1, 0), JobEnded("a")]


def test_a_recall_that_is_never_answered_ends_with_the_segments_deadline() -> None:
    """A worker that holds on to a cancelled segment is killed in time."""
    desk = Desk(PoolPolicy(segment_timeout_s=10, beat_timeout_s=100))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    desk.begin(held)
    desk.tell(JobCancelled(0, "a"))
    assert only(KillWorker, desk.tick())
    assert [ended.outcome for ended in only(SegmentEnded, desk.gone(0))] == ["cancelled"]


def test_cancelling_a_job_that_has_ended_or_twice_does_nothing() -> None:
    """The wish may come late."""
    desk = Desk()
    assert desk.tell(JobCancelled(0, "gone")) == []
    desk.workers(1)
    desk.arrive("a", "x")
    assert only(Recall, desk.tell(JobCancelled(0, "a")))
    assert desk.tell(JobCancelled(0, "a")) == []


# --- suspects -----------------------------------------------------------------------------------------------


def test_begun_segments_of_a_dead_worker_are_suspects_and_the_others_are_not() -> None:
    """Only what had begun may have killed it; what had not goes back to the front, uncharged."""
    desk = Desk(PoolPolicy(lookahead=1))
    desk.workers(1, slots=2)
    desk.speak(only(Dispatch, desk.arrive("before", "x"))[0])
    held = only(Dispatch, desk.arrive("a", "xxxx"))
    desk.begin(held[0])
    desk.begin(held[1])
    commands = desk.gone(0)
    assert only(Suspected, commands) == [Suspected("a", 0), Suspected("a", 1)]
    again = only(Dispatch, desk.ready(only(StartWorker, commands)[0], 2))
    assert [(dispatch.position, dispatch.alone, dispatch.tries) for dispatch in again] == [(0, True, 1)]
    second = only(Dispatch, desk.speak(again[0]))
    assert [(dispatch.position, dispatch.alone, dispatch.attempt) for dispatch in second] == [(1, True, 2)]
    rest = only(Dispatch, desk.speak(second[0]))
    assert [(dispatch.position, dispatch.alone, dispatch.tries) for dispatch in rest] == [(2, False, 0), (3, False, 0)]
    assert rest[0].attempt == 2


def test_exactly_one_worker_is_drained_for_a_suspect() -> None:
    """When everybody is busy the one that holds least gets nothing new, and the suspect when it is empty."""
    desk = Desk(PoolPolicy(lookahead=1))
    desk.workers(3)
    held = only(Dispatch, desk.arrive("a", "xyz" * 20))
    by_worker = {w: [d for d in held if d.worker == w] for w in range(3)}
    for worker in range(3):
        desk.begin(by_worker[worker][0])
    desk.deliver(by_worker[1][0])  # so that worker 1 holds one begun less
    assert only(Suspected, desk.gone(0)) == [Suspected("a", by_worker[0][0].position)]
    drained, quiet = (1, 2)
    after = only(Dispatch, desk.deliver(by_worker[quiet][0]))
    if not after:
        drained, quiet = quiet, drained
    alone: list[Dispatch] = []
    queue = [d for d in desk.log if isinstance(d, Dispatch) and d.worker == drained and d not in by_worker[drained][:1]]
    for dispatch in queue:
        alone += only(Dispatch, desk.speak(dispatch))
    assert [(d.worker, d.position, d.alone) for d in alone if d.alone] == [(drained, by_worker[0][0].position, True)]


def test_only_deaths_while_alone_count_and_the_last_one_fails_it() -> None:
    """Three tries mean three workers dead of this segment alone; the first death, in company, is free."""
    desk = Desk(PoolPolicy(breaker_crashes=100))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    desk.begin(held)
    desk.gone(0)
    for tries in (1, 2, 3):
        again = only(Dispatch, desk.ready(only(StartWorker, desk.tick())[0]))[0]
        assert (again.alone, again.tries, again.attempt) == (True, tries, tries + 1)
        desk.begin(again)
        commands = desk.gone(0, "signal 11")
    ended = only(SegmentEnded, commands)[0]
    assert (ended.outcome, ended.code, ended.attempts) == ("failed", "worker_died", 4)
    assert ended.message is not None
    assert "signal 11" in ended.message


def test_a_segment_that_kills_before_it_begins_does_not_do_so_for_ever() -> None:
    """After as many deaths beside it as there are tries it is spoken alone, and its deaths then count."""
    desk = Desk(PoolPolicy(breaker_crashes=100))
    desk.workers(1)
    desk.arrive("a", "xx")
    for _ in range(20):
        if only(JobEnded, desk.gone(0)):
            break
        desk.ready(only(StartWorker, desk.tick())[0])
    assert {ended.code for ended in only(SegmentEnded, desk.log)} == {"worker_died"}
    assert desk.core.oddities == 0


def test_a_suspect_of_an_earlier_life_is_spoken_alone_or_fails_at_once() -> None:
    """What the journal remembers is obeyed: tries and attempts are carried on."""
    desk = Desk()
    desk.workers(1)
    segments = (SegmentSpec(0, "x", 1, 5, 3, True), SegmentSpec(1, "x", 1, 2, 1, True), SegmentSpec(2, "x"))
    commands = desk.tell(JobArrived(0, "a", 0, segments))
    ended = only(SegmentEnded, commands)
    assert [(e.position, e.outcome, e.code, e.attempts) for e in ended] == [(0, "failed", "worker_died", 5)]
    assert [(d.position, d.alone, d.tries, d.attempt) for d in only(Dispatch, commands)] == [(1, True, 2, 3)]


def test_what_was_out_alone_when_the_daemon_died_is_spoken_with_no_other_suspect_out() -> None:
    """Several were charged for one death of the daemon; the next one has one culprit, so that neighbours are charged
    once at most. Those that were not charged go first, side by side."""
    desk = Desk()
    desk.workers(3)
    accused = [SegmentSpec(position, "x", 1, 2, 1, True) for position in (0, 1)]
    fresh_suspects = [SegmentSpec(position, "x", 1, 1, 0, True) for position in (2, 3)]
    first = only(Dispatch, desk.tell(JobArrived(0, "a", 0, (*accused, *fresh_suspects))))
    assert [(d.position, d.alone) for d in first] == [(2, True), (3, True)]
    assert only(Dispatch, desk.speak(first[0])) == []
    (second,) = only(Dispatch, desk.speak(first[1]))
    assert (second.position, second.tries) == (0, 2)
    (third,) = only(Dispatch, desk.speak(second))
    assert (third.position, third.tries) == (1, 2)


def test_a_suspect_gives_way_to_a_higher_priority() -> None:
    """A higher priority goes strictly first, suspects included."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(1)
    desk.arrive("high", "x" * 2, priority=1)
    desk.tell(JobArrived(0, "low", 0, (SegmentSpec(0, "y", suspect=True),)))
    first = desk.log[-1]
    assert isinstance(first, Dispatch)
    second = only(Dispatch, desk.speak(first))
    assert [(d.job, d.alone) for d in second] == [("high", False)]
    assert [(d.job, d.alone) for d in only(Dispatch, desk.speak(second[0]))] == [("low", True)]


# --- failures -----------------------------------------------------------------------------------------------


def test_a_failure_that_may_be_retried_is_tried_elsewhere_until_the_tries_are_used_up() -> None:
    """Each failure costs one try; the other worker is preferred."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(2)
    first = only(Dispatch, desk.arrive("a", "x"))[0]
    second = only(Dispatch, desk.fail(first, "flawed", retryable=True))[0]
    assert (first.worker, second.worker, second.alone) == (0, 1, False)
    third = only(Dispatch, desk.fail(second, "flawed", retryable=True))[0]
    ended = only(SegmentEnded, desk.fail(third, "flawed", retryable=True))[0]
    assert [(tried.position, tried.tries) for tried in only(Tried, desk.log)] == [(0, 1), (0, 2)]
    assert (ended.outcome, ended.code, ended.attempts) == ("failed", "flawed", 3)


def test_a_failure_that_may_not_be_retried_is_final() -> None:
    """The engine knows that another try can't succeed."""
    desk = Desk()
    desk.workers(2)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    assert desk.fail(held, "prompt_too_long", retryable=False) == [
        SegmentEnded("a", 0, "failed", 1, 0, "prompt_too_long", "why"),
        JobEnded("a"),
    ]


def test_a_spoilt_file_is_a_failure_that_may_be_retried() -> None:
    """The worker said spoken and the file was not: once more, three times at most."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    for _ in range(2):
        desk.begin(held)
        desk.deliver(held)
        held = only(Dispatch, desk.tell(SegmentSpoilt(0, "a", 0, "spoilt", "why")))[0]
    desk.deliver(held)
    ended = only(SegmentEnded, desk.tell(SegmentSpoilt(0, "a", 0, "spoilt", "why")))
    assert [(e.outcome, e.code, e.attempts) for e in ended] == [("failed", "spoilt", 3)]


def test_out_of_memory_tries_again_with_fewer_slots_uncharged() -> None:
    """As long as the worker has fewer slots than before, the segment costs nothing and the credits shrink."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(1, slots=4)
    held = only(Dispatch, desk.arrive("a", "x" * 6))
    assert len(held) == 4
    assert only(Dispatch, desk.fail(held[0], "out_of_memory", retryable=True, slots=2)) == []
    assert desk.view(0).slots == 2
    desk.speak(held[1])
    assert only(Dispatch, desk.log)[-1].ticket == held[3].ticket
    again = only(Dispatch, desk.speak(held[2]))
    assert [(d.position, d.tries, d.alone) for d in again] == [(0, 0, False)]


def test_out_of_memory_at_one_slot_asks_for_a_fresh_worker_and_then_fails_that_segment_only() -> None:
    """One slot and no memory: a fresh worker, the segment alone on it, then it fails and its neighbours don't."""
    desk = Desk(PoolPolicy(lookahead=1))
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "xxx"))
    desk.begin(held[0])
    commands = desk.fail(held[0], "out_of_memory", retryable=True, slots=1)
    (recall,) = only(Recall, commands)
    assert recall.ticket == held[1].ticket
    assert only(StopWorker, desk.release(recall))
    (start,) = only(StartWorker, desk.gone(0, "exit 0"))
    (alone,) = only(Dispatch, desk.ready(start))
    assert (alone.position, alone.alone) == (0, True)
    commands = desk.fail(alone, "out_of_memory", retryable=True, slots=1)
    assert [(e.position, e.code) for e in only(SegmentEnded, commands)] == [(0, "out_of_memory")]
    assert [d.position for d in only(Dispatch, commands)] == [1, 2]
    assert desk.view(0).restarts == 0


# --- lies ---------------------------------------------------------------------------------------------------


def test_answers_that_no_one_asked_for_are_ignored_and_counted() -> None:
    """Unknown tickets, second answers, other generations: no command follows, and the shell can tell of it."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "xxxxx"))[0]
    worker, generation, ticket = held.worker, held.generation, held.ticket
    desk.begin(held)
    desk.deliver(held)
    for event in (
        SegmentBegan(0, worker, generation, 99),
        SegmentDelivered(0, worker, generation, ticket),
        SegmentDelivered(0, worker, generation + 1, ticket + 1),
        SegmentReleased(0, 7, generation, ticket, False),
        SegmentStored(0, "a", 4),
        SegmentStored(0, "b", 0),
        WorkerReady(0, worker, generation, 9),
        WorkerBeat(0, worker, generation - 1),
    ):
        assert desk.tell(event) == []
    assert desk.core.oddities == 8
    assert "generation" in desk.core.last_oddity
    assert desk.view(0).slots == 1


def test_a_segment_that_never_fits_fails_whatever_slots_a_fresh_worker_has() -> None:
    """Alone on a fresh worker of many slots is the last chance; nothing goes round in circles."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(1, slots=2)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    (again,) = only(Dispatch, desk.fail(held, "out_of_memory", retryable=True, slots=1))
    assert only(StopWorker, desk.fail(again, "out_of_memory", retryable=True, slots=1))
    (start,) = only(StartWorker, desk.gone(0, "exit 0"))
    (alone,) = only(Dispatch, desk.ready(start, slots=2))
    commands = desk.fail(alone, "out_of_memory", retryable=True, slots=1)
    assert [(e.outcome, e.code) for e in only(SegmentEnded, commands)] == [("failed", "out_of_memory")]


def test_a_segment_given_back_unasked_costs_a_try() -> None:
    """Else a worker could hand the same segment back for ever."""
    desk = Desk()
    desk.workers(1)
    commands = desk.arrive("a", "x")
    for _ in range(3):
        held = only(Dispatch, commands)[0]
        commands = desk.tell(SegmentReleased(0, held.worker, held.generation, held.ticket, False))
    assert [e.code for e in only(SegmentEnded, commands)] == ["given_back"]


def test_a_segment_given_back_for_want_of_space_costs_nothing() -> None:
    """A full disk is neither the worker's fault nor the segment's, however often it happens."""
    desk = Desk()
    desk.workers(1)
    commands = desk.arrive("a", "x")
    for _ in range(10):
        held = only(Dispatch, commands)[0]
        commands = desk.tell(SegmentReleased(0, held.worker, held.generation, held.ticket, True, blameless=True))
    desk.deliver(only(Dispatch, commands)[0])
    assert only(SegmentEnded, desk.store(only(Dispatch, commands)[0]))[0].outcome == "spoken"


def test_an_impossible_transition_tells_its_story() -> None:
    """A mistake in the books names the events that led to it."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    next(iter(desk.core._credits.loads[0].tickets.values())).segment.state = "ended"
    with pytest.raises(ImpossibleTransition, match=r"can't begin; after WorkersPlanned.*JobArrived.*SegmentBegan"):
        desk.begin(held)


# --- pausing ------------------------------------------------------------------------------------------------


def test_nothing_is_dispatched_while_paused() -> None:
    """Neither lanes nor suspects nor recalls; what is in flight goes on."""
    desk = Desk()
    desk.workers(2)
    desk.tell(DispatchPaused(0))
    assert desk.arrive("a", "x" * 9) == []
    assert len(only(Dispatch, desk.tell(DispatchResumed(0)))) == 6


# --- histories ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_every_segment_ends_exactly_once(seed: int) -> None:
    """Whatever crashes, hangs, lies, runs out of memory, is cancelled or planned anew: every accepted segment ends
    once, poison fails alone after its tries, and no one else is charged for it."""
    choose = random.Random(seed)
    policy = PoolPolicy(
        lookahead=choose.randint(0, 3),
        segment_timeout_s=20,
        load_timeout_s=20,
        idle_release_s=choose.choice([0, 5]),
        breaker_open_s=50,
    )
    kinds = choose.choice([(0.0, 0.0), (0.05, 0.1), (0.2, 0.3)])
    faults = Faults(
        budget=choose.randint(0, 25),
        start=kinds[1],
        crash=kinds[0],
        hang=kinds[0] / 2,
        fail=kinds[0],
        memory=kinds[0],
        spoil=kinds[0],
        lie=0.1,
        poison=frozenset({("job 0", 1), ("job 1", 3)}) if choose.random() < 0.4 else frozenset(),
    )
    desk = Desk(policy, seed)
    pool = SimulatedPool(
        desk,
        slots=choose.randint(1, 4),
        seconds=lambda dispatch: choose.choice([0.5, 1.0, 3.0]),
        load_s=choose.choice([0.0, 2.0]),
        faults=faults,
        seed=seed,
    )
    pool.tell(WorkersPlanned(0, plan(choose.randint(1, 5))))
    accepted: dict[str, int] = {}

    def arrive(name: str, priority: int, count: int, speakers: int) -> None:
        accepted[name] = count
        segments = tuple(
            SegmentSpec(position, str(choose.randrange(speakers)), choose.uniform(1, 5), suspect=choose.random() < 0.02)
            for position in range(count)
        )
        pool.tell(JobArrived(desk.at, name, priority, segments))

    def cancel(name: str) -> None:
        pool.cancelled.add(name)
        pool.tell(JobCancelled(desk.at, name))

    for number in range(choose.randint(1, 6)):
        shape = (f"job {number}", choose.choice([0, 0, 0, 1]), choose.randint(0, 25), choose.randint(1, 6))
        pool.later(choose.uniform(0, 30), lambda shape=shape: arrive(*shape))  # type: ignore[misc]
        if choose.random() < 0.2:
            pool.later(choose.uniform(0, 40), lambda name=shape[0]: cancel(name))  # type: ignore[misc]
    for _ in range(choose.randint(0, 3)):
        replan = (plan(choose.randint(1, 5)), choose.random() < 0.3)
        pool.later(choose.uniform(0, 40), lambda replan=replan: pool.tell(WorkersPlanned(desk.at, *replan)))  # type: ignore[misc]
    if choose.random() < 0.3:
        pool.later(10, lambda: pool.tell(DispatchPaused(desk.at)))
        pool.later(15, lambda: pool.tell(DispatchResumed(desk.at)))
    pool.run(steps=100_000)

    assert sorted(pool.jobs_ended) == sorted(accepted)
    assert {key for key, _ in pool.ended.items()} == {(n, p) for n, count in accepted.items() for p in range(count)}
    attempts: dict[tuple[str, int], int] = {}
    for dispatch in pool.dispatches:
        key = (dispatch.job, dispatch.position)
        attempts[key] = attempts.get(key, 0) + 1
    for key, ended in pool.ended.items():
        assert ended.attempts == attempts.get(key, 0)
        if ended.outcome == "cancelled":
            assert key[0] in pool.cancelled
        if ended.code == "worker_died":
            assert pool.alone_deaths[key] == policy.tries or (kinds[0] and pool.alone_deaths[key] >= 1)
        if key in faults.poison and key[0] not in pool.cancelled:
            assert ended.outcome == "failed"
        if not kinds[0] and key not in faults.poison and key[0] not in pool.cancelled:
            assert ended.outcome == "spoken"


def test_a_poisonous_segment_fails_alone_and_charges_no_neighbour() -> None:
    """It kills every worker that begins it; its fifty neighbours are spoken."""
    faults = Faults(poison=frozenset({("a", 20)}))
    pool = SimulatedPool(Desk(), slots=4, faults=faults, load_s=1)
    pool.tell(WorkersPlanned(0, plan(2)))
    pool.tell(JobArrived(0, "a", 0, specs("xyz" * 17)))
    pool.run()
    failed = [ended for ended in pool.ended.values() if ended.outcome != "spoken"]
    assert [(ended.position, ended.code) for ended in failed] == [(20, "worker_died")]
    assert pool.alone_deaths == {("a", 20): 3}
    assert all(d.tries <= 1 for d in pool.dispatches if d.position != 20)


def test_a_daemon_that_stood_still_does_not_blame_its_workers() -> None:
    """A deadline that is looked at much too late is put off by as long: what was said meanwhile is still unread."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    desk.begin(held)
    desk.at = 1000
    assert desk.tell(Tick(1000)) == []
    assert only(SegmentEnded, desk.deliver(held) + desk.store(held))[0].outcome == "spoken"


def test_nothing_is_given_out_while_too_much_waits_to_be_stored() -> None:
    """The engine is faster than the disk: the worker's slots stay empty, until one is stored or found to be spoilt."""
    desk = Desk(PoolPolicy(unstored=3, lookahead=1))
    desk.workers(1, slots=2)
    held = only(Dispatch, desk.arrive("a", "x" * 9))
    assert len(held) == 3
    for number, dispatch in enumerate(held):
        desk.begin(dispatch)
        assert len(only(Dispatch, desk.deliver(dispatch))) == (number < 2)
    assert desk.core.held and desk.core.unstored == 3
    assert len(only(Dispatch, desk.store(held[0]))) == 1
    held += only(Dispatch, desk.log)[3:]
    desk.begin(held[3])
    assert only(Dispatch, desk.deliver(held[3])) == []
    assert len(only(Dispatch, desk.tell(SegmentSpoilt(desk.at, "a", held[1].position, "bad_audio", "why")))) == 1


def test_an_accused_one_is_alone_until_its_file_has_been_looked_at() -> None:
    """The daemon may die of that too, and then nobody else is to be charged for it."""
    desk = Desk()
    desk.workers(2)
    accused = SegmentSpec(0, "x", suspect=True, tries=1, attempts=1)
    held = only(Dispatch, desk.tell(JobArrived(0, "a", 0, (accused, SegmentSpec(1, "y", suspect=True)))))
    first = next(dispatch for dispatch in held if dispatch.position == 1)
    desk.speak(first)
    (second,) = [dispatch for dispatch in only(Dispatch, desk.log) if dispatch.position == 0]
    desk.begin(second)
    desk.deliver(second)
    late = only(Dispatch, desk.tell(JobArrived(0, "b", 0, (SegmentSpec(0, "z", suspect=True),))))
    assert late == []
    assert [dispatch.job for dispatch in only(Dispatch, desk.store(second))] == ["b"]

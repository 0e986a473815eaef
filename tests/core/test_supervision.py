"""The lives of workers: starts, deadlines, back-off, breaker, replanning, idle release."""

from __future__ import annotations

import pytest

from daemon.core.events import (
    Command,
    Dispatch,
    JobArrived,
    JobEnded,
    KillWorker,
    Recall,
    SegmentEnded,
    StartWorker,
    StopWorker,
    Suspected,
    Tick,
    WorkerBeat,
    WorkerGone,
    WorkerSpec,
    WorkersPlanned,
)
from daemon.core.supervision import GROWN_AGE_S, GROWN_S, JITTER, SETTLED_SEGMENTS, PoolPolicy
from tests.core.driver import Desk, SimulatedPool, only, plan, specs

WELL = 10.0
"""A deadline long enough to be out of the way, in seconds, where a test is about a shorter one."""


def start(desk: Desk, slots: int = 1) -> StartWorker:
    """Plan one worker, ready."""
    (command,) = only(StartWorker, desk.tell(WorkersPlanned(desk.at, plan(1))))
    desk.ready(command, slots)
    return command


# --- starting and deadlines ---------------------------------------------------------------------------------


def test_planned_workers_are_started_on_their_gpus() -> None:
    """One process each, first generation; a plan that says the same again starts nothing."""
    desk = Desk()
    workers = (WorkerSpec(0, 0), WorkerSpec(1, 0), WorkerSpec(2, None))
    assert desk.tell(WorkersPlanned(0, workers)) == [
        StartWorker(0, 1, 0),
        StartWorker(1, 1, 0),
        StartWorker(2, 1, None),
    ]
    assert desk.tell(WorkersPlanned(0, workers)) == []
    assert [view.state for view in desk.core.worker_views()] == ["starting"] * 3


def test_a_plan_with_a_number_twice_is_refused() -> None:
    """Two workers of one number can't be told apart."""
    with pytest.raises(ValueError, match="twice"):
        Desk().tell(WorkersPlanned(0, (WorkerSpec(0, 0), WorkerSpec(0, 1))))


def test_states_as_status_shows_them() -> None:
    """starting, ready, busy, ready again."""
    desk = Desk()
    (command,) = only(StartWorker, desk.tell(WorkersPlanned(0, plan(1))))
    states = [desk.view(0).state]
    desk.ready(command, 4)
    states.append(desk.view(0).state)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    states.append(desk.view(0).state)
    desk.speak(held)
    states.append(desk.view(0).state)
    assert states == ["starting", "ready", "busy", "ready"]
    assert (desk.view(0).loads, desk.view(0).slots, desk.view(0).spoken) == (1, 4, 1)


def test_a_worker_that_does_not_get_ready_is_killed() -> None:
    """The load deadline, even while it beats."""
    desk = Desk(PoolPolicy(load_timeout_s=5))
    desk.tell(WorkersPlanned(0, plan(1)))
    desk.at = 4
    desk.tell(WorkerBeat(4, 0, 1))
    (kill,) = only(KillWorker, desk.tick())
    assert desk.at == 5
    assert "not ready" in kill.reason
    assert desk.view(0).state == "restarting"


def test_a_worker_that_falls_silent_is_killed_and_given_nothing_more() -> None:
    """No beat in time: it is killed, and only its end is awaited."""
    desk = Desk(PoolPolicy(beat_timeout_s=3))
    start(desk)
    desk.at = 2
    desk.tell(WorkerBeat(2, 0, 1))
    (kill,) = only(KillWorker, desk.tick())
    assert desk.at == 5
    assert "no sign of life" in kill.reason
    assert desk.arrive("a", "x") == []
    assert desk.core.next_deadline() is None
    desk.gone(0, "signal 9")
    assert desk.view(0).error == kill.reason


def test_a_segment_that_is_not_finished_in_time_kills_its_worker() -> None:
    """From its beginning, whatever else goes well there."""
    desk = Desk(PoolPolicy(segment_timeout_s=5, beat_timeout_s=100))
    start(desk, slots=2)
    stuck, fine, *_ = only(Dispatch, desk.arrive("a", "xxxx"))
    desk.begin(stuck)
    desk.at = 4
    desk.speak(fine)
    (kill,) = only(KillWorker, desk.tick())
    assert desk.at == 5
    assert "segment 0 of 'a'" in kill.reason


def test_a_worker_that_begins_nothing_of_what_it_holds_is_killed() -> None:
    """A frame that got lost must not hold its segment for ever."""
    desk = Desk(PoolPolicy(segment_timeout_s=5, beat_timeout_s=100))
    start(desk)
    desk.arrive("a", "x")
    (kill,) = only(KillWorker, desk.tick())
    assert desk.at == 5
    assert "began none" in kill.reason


def test_a_segment_passed_over_while_others_are_spoken_kills_its_worker_in_the_end() -> None:
    """The worker is never idle, so the segment has a deadline of its own: its share of the queue's time."""
    desk = Desk(PoolPolicy(segment_timeout_s=5, beat_timeout_s=1000, lookahead=1))
    start(desk)
    lost, *queue = only(Dispatch, desk.arrive("a", "x" * 20))
    while not only(KillWorker, desk.log):
        desk.at += 1
        queue += only(Dispatch, desk.speak(queue.pop(0)))
    assert desk.at == 10
    assert f"segment {lost.position}" in only(KillWorker, desk.log)[0].reason


# --- crashes ------------------------------------------------------------------------------------------------


def test_restarts_back_off_doubling_to_the_most_with_jitter() -> None:
    """1, 2, 4 … 60 seconds, each a little more or less, never above the most."""
    desk = Desk(PoolPolicy(breaker_crashes=100))
    desk.tell(WorkersPlanned(0, plan(1)))
    waits = []
    for _ in range(9):
        desk.gone(0, "exit 1")
        assert desk.view(0).state == "restarting"
        before = desk.at
        assert only(StartWorker, desk.tick())
        waits.append(desk.at - before)
    for wait, base in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
        assert base * (1 - JITTER) <= wait <= min(60, base * (1 + JITTER))
    assert len(set(waits)) > 5
    assert (desk.view(0).restarts, desk.view(0).loads, desk.view(0).generation) == (9, 0, 10)


def test_a_crash_after_a_finished_segment_restarts_at_once() -> None:
    """The worker works: its death was the segment's, or bad luck. The next one without a segment counts."""
    desk = Desk()
    start(desk)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    desk.speak(held)
    (again,) = only(StartWorker, desk.gone(0))
    assert again.generation == 2
    desk.ready(again)
    assert only(StartWorker, desk.gone(0)) == []
    assert desk.view(0).state == "restarting"


def test_three_crashes_open_the_breaker_and_others_take_the_work() -> None:
    """A broken worker is left alone; what waited for it is dealt to the others, and new jobs too."""
    desk = Desk()
    desk.workers(2)
    desk.arrive("a", "ab" * 20)
    for crash in range(3):
        desk.gone(0, "exit 1")
        if crash < 2:
            (again,) = only(StartWorker, desk.tick())
            desk.ready(again)
    view = desk.view(0)
    assert (view.state, view.error, view.in_flight) == ("broken", "exit 1", 0)
    assert {lane.worker for lane in desk.core._backlog.lanes()} == {1}
    desk.arrive("b", "xyz")
    assert desk.core.assignment("b") == [(1, ["x", "y", "z"], 3)]


@pytest.mark.parametrize("neighbours", [0, 50])
def test_one_poison_segment_opens_no_breaker_of_the_only_worker(neighbours: int) -> None:
    """Its deaths count once, and its neighbours show in between that the worker is sound."""
    desk = Desk()
    desk.workers(1)
    waiting = only(Dispatch, desk.arrive("a", "x" * (1 + neighbours)))
    ended: list[SegmentEnded] = []
    while len(ended) < 1 + neighbours:
        if not waiting:
            assert desk.view(0).state != "broken"
            waiting = only(Dispatch, desk.ready(only(StartWorker, desk.tick())[0]))
        dispatch = waiting.pop(0)
        desk.begin(dispatch)
        if dispatch.position:
            commands = desk.deliver(dispatch) + desk.store(dispatch)
        else:
            commands, waiting = desk.gone(0), []
            for start in only(StartWorker, commands):
                waiting = only(Dispatch, desk.ready(start))
        ended += only(SegmentEnded, commands)
        waiting += only(Dispatch, commands)
    assert {end.position: end.attempts for end in ended if end.outcome == "failed"} == {0: 4}
    assert all(end.attempts == 1 for end in ended if end.position > 2), "a neighbour was held up by it"
    assert desk.at < 60


def break_worker(desk: Desk) -> float:
    """Open worker 0's breaker; when it half-opens."""
    for crash in range(3):
        desk.gone(0)
        if crash < 2:
            assert only(StartWorker, desk.tick())
    assert desk.view(0).state == "broken"
    return desk.at + 600


def test_the_breaker_half_opens_and_one_crash_opens_it_again() -> None:
    """After 600 s one start; it fails: 600 s more."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(1)))
    opens = break_worker(desk)
    for _ in range(2):
        assert len(only(StartWorker, desk.tick())) == 1
        assert desk.at == opens
        desk.gone(0)
        assert desk.view(0).state == "broken"
        opens = desk.at + 600


def test_a_finished_segment_closes_the_breaker() -> None:
    """Back-off and breaker are cleared: the next crashes count from one."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(1)))
    break_worker(desk)
    (again,) = only(StartWorker, desk.tick())
    desk.ready(again)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    desk.speak(held)
    assert only(StartWorker, desk.gone(0))
    for _ in range(2):
        desk.gone(0)
        assert desk.view(0).state == "restarting"
        desk.tick()
    assert desk.view(0).error is not None


def test_crashes_long_ago_do_not_open_the_breaker() -> None:
    """Three in 300 s do; three in more do not."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(1)))
    for _ in range(6):
        desk.gone(0)
        assert desk.view(0).state == "restarting"
        desk.tick()
        desk.at += 160
        desk.tell(WorkerBeat(desk.at, 0, desk.view(0).generation))


def test_a_job_waits_for_broken_workers_when_there_are_no_others() -> None:
    """Nothing is lost: it is spoken when the breaker half-opens."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(1)))
    break_worker(desk)
    assert desk.arrive("a", "x") == []
    (again,) = only(StartWorker, desk.tick())
    (held,) = only(Dispatch, desk.ready(again))
    assert desk.speak(held)[-1] == JobEnded("a")


# --- a lost place ---------------------------------------------------------------------------------------------


def lose(desk: Desk, worker: int) -> list[Command]:
    return desk.tell(WorkerGone(desk.at, worker, desk.view(worker).generation, "its node is lost", lost=True))


def test_the_loss_of_a_node_is_nobodys_fault() -> None:
    """What had begun there goes on elsewhere beside other work: no suspect, no crash, no breaker."""
    desk = Desk(PoolPolicy(tries=3))
    desk.workers(2, slots=3)
    held = only(Dispatch, desk.arrive("a", "xxxxyyyy"))
    for dispatch in held:
        desk.begin(dispatch)
    commands = lose(desk, 0) + desk.speak(held[-1])
    assert only(Suspected, commands) == []
    assert not any(dispatch.alone for dispatch in only(Dispatch, desk.log))
    assert desk.core.job_view("a").suspects == 0
    for _ in range(6):
        assert desk.view(0).state == "restarting"
        desk.at += 1.3
        desk.tell(Tick(desk.at))
        lose(desk, 0)
    assert desk.view(0).state == "restarting"


def test_a_node_that_comes_back_is_used_again() -> None:
    """Taken out of the plan it is forgotten at once; planned again it starts at once, somewhere else if so planned."""
    desk = Desk()
    desk.workers(2)
    assert desk.tell(WorkersPlanned(0, plan(1))) == [StopWorker(1, 1)]
    assert lose(desk, 1) == []
    assert [view.worker for view in desk.core.worker_views()] == [0]
    assert desk.tell(WorkersPlanned(0, (*plan(1), WorkerSpec(1, 0, "north")))) == [StartWorker(1, 2, 0, "north")]
    desk.tell(WorkersPlanned(0, (*plan(1), WorkerSpec(1, 0, "south"))))
    assert lose(desk, 1) == [StartWorker(1, 3, 0, "south")]


def test_a_segment_that_takes_its_node_along_becomes_a_suspect() -> None:
    """After as many losses as there are tries; then it is spoken alone, as if it had not begun."""
    desk = Desk(PoolPolicy(tries=3))
    desk.workers(1)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    for losses in (1, 2, 3):
        desk.begin(held)
        assert bool(only(Suspected, lose(desk, 0))) == (losses == 3)
        (again,) = only(StartWorker, desk.tick())
        (held,) = only(Dispatch, desk.ready(again))
        assert held.alone == (losses == 3)


# --- planning -----------------------------------------------------------------------------------------------


def test_a_retired_worker_finishes_what_it_holds_and_is_stopped() -> None:
    """It gets nothing new and leaves when it is empty; then it is no more."""
    desk = Desk(PoolPolicy(lookahead=0))
    desk.workers(2)
    held = {d.worker: d for d in only(Dispatch, desk.arrive("a", "abab"))}
    assert desk.tell(WorkersPlanned(0, plan(1))) == []
    assert only(StopWorker, desk.speak(held[1])) == [StopWorker(1, 1)]
    assert desk.tell(WorkerGone(0, 1, 1, "exit 0")) == []
    assert [view.worker for view in desk.core.worker_views()] == [0]


def test_a_worker_planned_again_before_it_left_stays() -> None:
    """The plan may change its mind; a number that returns later goes on counting its generations."""
    desk = Desk()
    desk.workers(1)
    held = only(Dispatch, desk.arrive("a", "x"))[0]
    desk.tell(WorkersPlanned(0, ()))
    desk.tell(WorkersPlanned(0, plan(1)))
    assert only(StopWorker, desk.speak(held)) == []
    desk.tell(WorkersPlanned(0, ()))
    desk.tell(WorkerGone(0, 0, 1, "exit 0"))
    assert desk.tell(WorkersPlanned(0, plan(1))) == [StartWorker(0, 2, 0)]


def test_a_worker_whose_gpu_changed_is_replaced() -> None:
    """Drained, stopped, started on the other GPU; that is no crash."""
    desk = Desk()
    desk.workers(1)
    assert desk.tell(WorkersPlanned(0, (WorkerSpec(0, 7),))) == [StopWorker(0, 1)]
    assert desk.gone(0, "exit 0") == [StartWorker(0, 2, 7)]
    assert (desk.view(0).restarts, desk.view(0).gpu) == (0, 7)


def test_a_new_configuration_replaces_every_worker_and_forgives_crashes() -> None:
    """Busy ones when they are empty; broken ones start at once."""
    desk = Desk()
    desk.tell(WorkersPlanned(0, plan(1)))
    break_worker(desk)
    fresh = only(StartWorker, desk.tell(WorkersPlanned(desk.at, plan(2))))
    desk.ready(fresh[0])
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    commands = desk.tell(WorkersPlanned(desk.at, plan(2), restart=True))
    assert [start.worker for start in only(StartWorker, commands)] == [0]
    assert only(StopWorker, desk.speak(held)) == [StopWorker(1, 1)]
    assert desk.gone(1, "exit 0") == [StartWorker(1, 2, 1)]


def test_a_rolling_replacement_loses_no_work() -> None:
    """Replaced again and again in the middle of a job: all spoken, no one suspected, no restart counted."""
    desk = Desk()
    pool = SimulatedPool(desk, slots=2, load_s=0.5)
    pool.tell(WorkersPlanned(0, plan(3)))
    pool.tell(WorkersPlanned(0, plan(3), restart=True))
    for number in range(1, 4):
        pool.later(number * 4, lambda: pool.tell(WorkersPlanned(desk.at, plan(3), restart=True)))
    pool.later(0, lambda: pool.tell(JobArrived(desk.at, "a", 0, specs("abcdef" * 10))))
    pool.run()
    assert {ended.outcome for ended in pool.ended.values()} == {"spoken"}
    assert len(pool.ended) == 60
    assert not any(dispatch.alone for dispatch in pool.dispatches)
    assert [view.restarts for view in desk.core.worker_views()] == [0, 0, 0]
    assert min(view.loads for view in desk.core.worker_views()) >= 4


# --- idle release -------------------------------------------------------------------------------------------


def test_an_idle_pool_is_released_and_woken_by_the_next_job() -> None:
    """The GPU is given back after the idle time, and taken again when there is work."""
    desk = Desk(PoolPolicy(idle_release_s=WELL, beat_timeout_s=100))
    desk.workers(1)
    (held,) = only(Dispatch, desk.arrive("a", "x"))
    desk.at = 5
    desk.speak(held)
    assert desk.tick() == [StopWorker(0, 1)]
    assert desk.at == 15
    assert desk.gone(0, "exit 0") == []
    assert desk.view(0).state == "released"
    assert desk.core.next_deadline() is None
    assert desk.arrive("empty", "") == [JobEnded("empty")]
    assert desk.arrive("b", "x") == [StartWorker(0, 2, 0)]
    assert desk.view(0).restarts == 0


def test_a_job_that_comes_while_the_pool_is_let_go_is_spoken() -> None:
    """The worker was told to stop: it is started again as soon as it is gone."""
    desk = Desk(PoolPolicy(idle_release_s=WELL, beat_timeout_s=100))
    desk.workers(1)
    assert only(StopWorker, desk.tick())
    assert desk.arrive("a", "x") == []
    (again,) = only(StartWorker, desk.gone(0, "exit 0"))
    (held,) = only(Dispatch, desk.ready(again))
    assert desk.speak(held)[-1] == JobEnded("a")


def test_a_pool_with_work_is_never_released() -> None:
    """Neither while a job waits for workers nor while one is being spoken."""
    desk = Desk(PoolPolicy(idle_release_s=WELL, beat_timeout_s=1000, segment_timeout_s=1000))
    desk.workers(1)
    desk.arrive("a", "x")
    assert desk.tell(Tick(500)) == []
    assert desk.view(0).state == "busy"


# --- old age ------------------------------------------------------------------------------------------------

GB = 1_000_000_000


def beat(desk: Desk, worker: int, resident_bytes: int = 0) -> list[Command]:
    return desk.tell(WorkerBeat(desk.at, worker, desk.view(worker).generation, resident_bytes))


def test_a_worker_is_replaced_after_so_many_segments() -> None:
    """It gets nothing new, gives back what it has not begun, finishes the rest; that is no crash and charges nobody."""
    desk = Desk(PoolPolicy(recycle_segments=2, lookahead=1, beat_timeout_s=1000))
    start(desk)
    one, two = only(Dispatch, desk.arrive("a", "x" * 5))
    (three,) = only(Dispatch, desk.speak(one))
    (four,) = only(Dispatch, desk.speak(two))
    desk.begin(three)
    (recall,) = beat(desk, 0)
    assert isinstance(recall, Recall)
    assert recall.ticket == four.ticket
    desk.release(recall)
    (stop,) = only(StopWorker, desk.deliver(three))
    assert stop.reason == "it has spoken 2 segments"
    assert only(Dispatch, desk.store(three)) == []
    (again,) = only(StartWorker, desk.gone(0, "exit 0"))
    held = only(Dispatch, desk.ready(again))
    assert [(dispatch.position, dispatch.alone, dispatch.tries) for dispatch in held] == [(3, False, 0), (4, False, 0)]
    assert (desk.view(0).restarts, desk.view(0).recycles, desk.view(0).loads) == (0, 1, 2)
    assert beat(desk, 0) == []


def test_of_several_workers_one_goes_at_a_time() -> None:
    """The next one goes when the one before it is warm again, or is not wanted any more."""
    desk = Desk(PoolPolicy(recycle_s=3600, beat_timeout_s=1e6))
    desk.workers(3)
    desk.at = 4000
    assert only(StopWorker, beat(desk, 1)) == [StopWorker(1, 1, "it has run for 1.1 hours")]
    assert beat(desk, 0) == beat(desk, 2) == []
    (again,) = only(StartWorker, desk.gone(1, "exit 0"))
    assert beat(desk, 0) == beat(desk, 2) == []
    desk.ready(again)
    assert len(only(StopWorker, beat(desk, 0))) == 1
    assert beat(desk, 2) == []
    desk.gone(0, "exit 0")
    desk.tell(WorkersPlanned(desk.at, plan(3)[1:]))
    assert len(only(StopWorker, beat(desk, 2))) == 1


def test_a_worker_whose_breaker_is_open_holds_up_no_other() -> None:
    """It may be away for ever."""
    desk = Desk(PoolPolicy(recycle_s=10, beat_timeout_s=1e6))
    desk.workers(2)
    break_worker(desk)
    desk.at += 20
    assert len(only(StopWorker, beat(desk, 1))) == 1


def test_memory_that_has_grown_and_stays_so_replaces_the_worker() -> None:
    """What it needs to settle is no growth, nor is a peak; a process is given its time."""
    desk = Desk(PoolPolicy(recycle_growth_bytes=2 * GB, beat_timeout_s=1e6, segment_timeout_s=1e6))
    start(desk)
    queue = only(Dispatch, desk.arrive("a", "x" * 40))
    for number in range(SETTLED_SEGMENTS):
        beat(desk, 0, (number + 1) * GB)
        queue += only(Dispatch, desk.speak(queue.pop(0)))
    desk.at = GROWN_AGE_S + 1
    for gigabytes, seconds in ((22, 100), (23, GROWN_S - 1), (21, 1), (23, GROWN_S - 1), (1, 1), (30, 1)):
        assert only(Recall, beat(desk, 0, gigabytes * GB)) == []
        desk.at += seconds
    desk.at += GROWN_S
    assert only(Recall, beat(desk, 0, 23 * GB))
    assert desk.core._supervisor.workers[0].recycling == "its memory has grown by 3.0 GB"


def test_a_young_worker_is_not_replaced_for_its_memory() -> None:
    """Were its growth honest, it would be loaded again and again."""
    desk = Desk(PoolPolicy(recycle_growth_bytes=GB, beat_timeout_s=1e6))
    start(desk)
    queue = only(Dispatch, desk.arrive("a", "x" * 30))
    beat(desk, 0, GB)
    for _ in range(SETTLED_SEGMENTS):
        queue += only(Dispatch, desk.speak(queue.pop(0)))
    for desk.at in (1, GROWN_AGE_S - 1):
        assert only(Recall, beat(desk, 0, 9 * GB)) == []
    desk.at = GROWN_AGE_S
    assert only(Recall, beat(desk, 0, 9 * GB))


def test_nobody_is_replaced_for_age_unless_asked() -> None:
    """The defaults of the core; the daemon's own watch the memory alone."""
    desk = Desk(PoolPolicy(beat_timeout_s=1e9))
    start(desk)
    desk.at = 1e8
    assert beat(desk, 0, 1000 * GB) == []
    desk.at += 100
    assert beat(desk, 0, 5000 * GB) == []

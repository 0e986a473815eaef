"""Who computes which speakers: large ones first, fair parts, and what a death costs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.dealing import REACH, Dealer, Dealt, Speaker


def dealer(*weights: int, processes: int = 2, chunk_size: int = 10) -> Dealer:
    """A dealer that knows speakers s0, s1, … of these weights, and that there are no more."""
    made = Dealer(processes=processes, chunk_size=chunk_size)
    for number, weight in enumerate(weights):
        made.add(Speaker("d", f"s{number}", weight))
    made.complete()
    return made


def names(chunk: list[Dealt]) -> list[str]:
    return [dealt.speaker.name for dealt in chunk]


def finish(made: Dealer, process: int, chunk: list[Dealt]) -> None:
    for dealt in chunk:
        assert made.ended(process, dealt.ticket, 0.0) == dealt


def test_the_largest_go_first() -> None:
    """Whatever order they became known in."""
    made = dealer(1, 50, 2, 40, 3, processes=1, chunk_size=1)
    order = []
    while not made.finished:
        chunk = made.deal(0, 0.0)
        order += names(chunk)
        finish(made, 0, chunk)
    assert order == ["s1", "s3", "s4", "s2", "s0"]


def test_a_chunk_has_no_more_than_chunk_size() -> None:
    """However light its speakers are."""
    assert len(dealer(*[1] * 1000).deal(0, 0.0)) == 10


def test_a_chunk_is_a_fair_part() -> None:
    """Four speakers are not one process's, though a chunk would hold them; one that outweighs all is a chunk alone."""
    made = dealer(5, 5, 5, 5)
    assert [len(made.deal(process, 0.0)) for process in (0, 1)] == [1, 1]
    made = dealer(1000, *[5] * 20)
    assert names(made.deal(0, 0.0)) == ["s0"]


def test_who_has_a_large_one_is_given_nothing_behind_it() -> None:
    """While others could have it; who has little is given more before it has finished."""
    made = dealer(1000, *[5] * 20)
    made.deal(0, 0.0)
    assert made.deal(0, 0.0) == []
    made = dealer(*[5] * 1000)
    assert made.deal(0, 0.0)
    assert made.deal(0, 0.0)


def test_no_more_are_within_reach_than_fit() -> None:
    """Memory does not grow with the corpus: a corpus is made known as far as there is room."""
    made = Dealer(processes=2, chunk_size=10)
    for number in range(REACH):
        assert made.room == REACH - number
        made.add(Speaker("d", str(number), 1))
    assert made.room == 0
    assert not made.finished
    chunk = made.deal(0, 0.0)
    assert made.room == len(chunk)


def test_what_a_dead_process_held_is_tried_alone() -> None:
    """One by one, with nothing else at the process; nobody is given up for one death."""
    made = dealer(*[1] * 40, processes=1, chunk_size=3)
    held = names(made.deal(0, 0.0))
    assert made.lost(0) == []
    for name in held:
        (suspect,) = made.deal(0, 0.0)
        assert (suspect.speaker.name, suspect.alone) == (name, True)
        assert made.deal(0, 0.0) == []
        finish(made, 0, [suspect])
    assert not made.deal(0, 0.0)[0].alone


def test_a_suspect_waits_for_a_process_that_holds_nothing() -> None:
    """And is given up only if that dies too."""
    made = dealer(*[5] * 100)
    made.deal(0, 0.0)
    kept = made.deal(1, 0.0)
    made.lost(0)
    assert made.deal(1, 0.0) == []
    finish(made, 1, kept)
    (suspect,) = made.deal(1, 0.0)
    assert made.lost(1) == [suspect]


def test_an_answer_counts_once_and_only_from_who_was_asked() -> None:
    """Tickets of others, or of before, are nothing."""
    made = dealer(1, 1)
    (dealt,) = made.deal(0, 0.0)
    assert made.ended(1, dealt.ticket, 0.0) is None
    assert made.ended(0, 99, 0.0) is None
    assert made.ended(0, dealt.ticket, 0.0) == dealt
    assert made.ended(0, dealt.ticket, 0.0) is None


def test_what_is_given_back_is_nobodys_fault() -> None:
    """It waits again, and is no suspect."""
    made = dealer(1)
    (dealt,) = made.deal(0, 0.0)
    made.give_back(0, dealt.ticket, 0.0)
    assert not made.finished
    (again,) = made.deal(0, 0.0)
    assert again.speaker == dealt.speaker
    assert not again.alone


def test_a_process_is_overdue_when_its_work_stands_still() -> None:
    """A beat alone is no progress, and a process without work is never late."""
    made = dealer(*[1] * 40)
    chunk = made.deal(0, 100.0)
    made.moved(0, 5, 104.0)
    made.moved(0, 5, 109.0)
    assert made.overdue(114.0, 10.0) == []
    assert made.overdue(114.1, 10.0) == [0]
    made.moved(0, 6, 114.2)
    assert made.overdue(120.0, 10.0) == []
    finish(made, 0, chunk)
    made.moved(1, 0, 0.0)
    assert made.overdue(1000.0, 10.0) == []


@given(
    weights=st.lists(st.integers(0, 5000), max_size=60),
    processes=st.integers(1, 5),
    chunk_size=st.integers(1, 12),
    killers=st.sets(st.integers(0, 59), max_size=4),
    random=st.randoms(use_true_random=False),
)
def test_every_speaker_ends_once(
    weights: list[int], processes: int, chunk_size: int, killers: set[int], random: object
) -> None:
    """Whatever the order of the answers, and whoever kills the process that touches it: the killers are given up, and
    nobody else."""
    made = dealer(*weights, processes=processes, chunk_size=chunk_size)
    deadly = {f"s{number}" for number in killers}
    done: Counter[str] = Counter()
    given_up: Counter[str] = Counter()
    queues: dict[int, list[Dealt]] = {process: [] for process in range(processes)}
    for _ in range(5000):
        if made.finished:
            break
        process = random.randrange(processes)  # type: ignore[attr-defined]
        queue = queues[process]
        queue += made.deal(process, 0.0)
        if not queue:
            continue
        if queue[0].speaker.name in deadly:
            given_up.update(names(made.lost(process)))
            queue.clear()
        else:
            dealt = queue.pop(0)
            assert made.ended(process, dealt.ticket, 0.0)
            done[dealt.speaker.name] += 1
    assert made.finished
    everyone = {f"s{number}" for number in range(len(weights))}
    assert done == Counter(everyone - deadly)
    assert given_up == Counter(everyone & deadly)


@pytest.mark.parametrize("count", [0, 1])
def test_an_end_without_work(count: int) -> None:
    """No speakers: finished as soon as that is known, not before."""
    made = Dealer(processes=2, chunk_size=10)
    assert not made.finished
    for _ in range(count):
        made.add(Speaker("d", "s", 0))
    made.complete()
    assert made.finished == (count == 0)

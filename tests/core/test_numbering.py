"""Workers keep their numbers while nodes come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.events import WorkerSpec
from daemon.core.numbering import Numbering


def plan(**nodes: int) -> list[WorkerSpec]:
    """So many workers on the GPU 0 of each node, numbered from 0."""
    places = [node for node, count in nodes.items() for _ in range(count)]
    return [WorkerSpec(number, 0, node) for number, node in enumerate(places)]


def numbers(workers: tuple[WorkerSpec, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for worker in workers:
        found.setdefault(worker.node, []).append(worker.worker)
    return found


def test_the_first_plan_keeps_its_numbers_and_the_others_follow() -> None:
    """One that has gone leaves a gap, newcomers come after it, and it has its own numbers when it is back."""
    numbering = Numbering()
    assert numbers(numbering.number(plan(a=2, b=2))) == {"a": [0, 1], "b": [2, 3]}
    assert numbers(numbering.number(plan(b=2))) == {"b": [2, 3]}
    assert numbers(numbering.number(plan(b=2, c=1))) == {"b": [2, 3], "c": [4]}
    assert numbers(numbering.number(plan(a=3, b=1, c=1))) == {"a": [0, 1, 5], "b": [2], "c": [4]}


@given(st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 4)), max_size=12))
def test_no_number_is_given_twice_or_taken_away(plans: list[dict[str, int]]) -> None:
    """Whatever comes and goes: who stays keeps its number, and no two have the same."""
    numbering = Numbering()
    before: dict[str, list[int]] = {}
    for nodes in plans:
        now = numbers(numbering.number(plan(**nodes)))
        given_out = [number for there in now.values() for number in there]
        assert len(set(given_out)) == len(given_out) == sum(nodes.values())
        for node in now.keys() & before.keys():
            assert all(a == b for a, b in zip(now[node], before[node], strict=False))
        before = {**before, **now}

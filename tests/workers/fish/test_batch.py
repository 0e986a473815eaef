"""Who sits where in the decoding batch: plain values, no torch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engines.fish.batch import Batch, Row, StepPlan

LENGTHS = (4, 8, 16, 32)


def test_rows_take_the_lowest_free_slot() -> None:
    """A row that leaves makes room for the next one, so that steps stay narrow."""
    batch = Batch(3, LENGTHS)
    assert [batch.join(Row(key, 0, 9)) for key in (7, 8, 9)] == [0, 1, 2]
    assert batch.free == 0
    assert batch.leave(8) == 1
    assert batch.join(Row(5, 0, 9)) == 1
    assert batch.keys == [7, 5, 9]
    assert 8 not in batch


def test_a_step_covers_every_row_and_no_more_than_it_must() -> None:
    """Rows up to the highest in use, the shortest length that covers the longest of them."""
    batch = Batch(4, LENGTHS)
    assert batch.plans() == []
    for key, position in ((1, 2), (2, 6), (3, 0)):
        batch.join(Row(key, position, 31))
    assert batch.plans() == [StepPlan(3, 8, (1, 2, 3))]
    (plan,) = batch.plans()
    batch.advance(plan)
    batch.advance(plan)
    assert batch.longest == 9
    assert batch.plans() == [StepPlan(3, 16, (1, 2, 3))]


def test_a_row_never_counts_beyond_its_last_position() -> None:
    """The device may have ended it already without the host knowing."""
    batch = Batch(1, LENGTHS)
    batch.join(Row(1, 30, 31))
    for _ in range(3):
        batch.advance(batch.plans()[0])
    assert batch.position(0) == 31
    assert batch.plans()[0].length == 32


def test_holes_are_closed_where_that_makes_steps_narrower() -> None:
    """The highest row moves down; with fixed row counts only if a smaller count then does."""
    batch, fixed = Batch(8, LENGTHS), Batch(8, LENGTHS, (1, 2, 4, 8))
    for one in (batch, fixed):
        for key in range(6):
            one.join(Row(key, 0, 9))
        one.leave(1)
    assert batch.moves() == [(5, 1)]
    assert batch.keys == [0, 5, 2, 3, 4]
    assert fixed.moves() == []
    assert fixed.plans()[0].rows == 8
    fixed.leave(0)
    assert fixed.moves() == [(5, 0), (4, 1)]
    assert fixed.plans()[0].rows == 4
    fixed.leave(5)
    assert fixed.moves() == []
    assert fixed.moves(close=True) == [(3, 0)]


def test_steady_rows_keep_their_slots_and_lengths() -> None:
    """A steady row's step depends on its own position alone: all slots are stepped, once for each length in use."""
    batch = Batch(4, LENGTHS, steady=True)
    for key, position in ((1, 2), (2, 6), (3, 3)):
        batch.join(Row(key, position, 31))
    batch.leave(2)
    batch.join(Row(4, 15, 31))
    assert batch.moves() == []
    assert batch.plans() == [StepPlan(4, 4, (1, 3)), StepPlan(4, 16, (4,))]


def test_more_positions_than_the_model_has_are_an_error() -> None:
    """No attention length covers them."""
    with pytest.raises(ValueError, match="33 positions"):
        Batch(1, LENGTHS).length_for(33)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.sampled_from([(), (1, 2, 4)]), st.booleans())
def test_slots_stay_whole_whatever_comes_and_goes(events: list[int], counts: tuple[int, ...], steady: bool) -> None:
    """Through any joining, leaving and moving every row keeps one slot of its own, and each step covers them all."""
    batch = Batch(4, LENGTHS, counts, steady=steady)
    inside: dict[int, int] = {}
    for number, event in enumerate(events):
        if event in inside:
            assert batch.leave(event) == inside.pop(event)
        elif batch.free:
            inside[event] = batch.join(Row(event, number % 20, 31))
        for source, target in batch.moves():
            (key,) = [key for key, slot in inside.items() if slot == source]
            assert target not in inside.values()
            inside[key] = target
        assert {key: batch.slot(key) for key in batch.keys} == inside
        assert len(set(inside.values())) == len(batch) == len(inside)
        plans = batch.plans()
        assert sorted(key for plan in plans for key in plan.keys) == sorted(inside)
        for plan in plans:
            assert all(inside[key] < plan.rows <= 4 for key in plan.keys)
            batch.advance(plan)

"""The simulator itself: it replays, it finds what is broken, and what the core promises holds past this machine."""

from __future__ import annotations

import pytest

from daemon.core.core import Core
from tests.sim.batch import run_history
from tests.sim.history import draw
from tests.sim.scale import run_scale


def test_a_seed_tells_the_same_history_again() -> None:
    """To the last line of its story: else a failing seed could not be looked into."""
    for seed in (3, 8, 18):
        (one, problem), (other, same_problem) = run_history(seed), run_history(seed)
        assert draw(seed) == draw(seed)
        assert problem == same_problem and list(one.story) == list(other.story)
        assert (one.lives, one.acts, one.events, one.at) == (other.lives, other.acts, other.events, other.at)


def test_a_core_that_charges_neighbours_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were suspects of one death spoken side by side, as they once were, some of these histories would fail."""
    spared = Core._eligible_suspect

    def careless(core: Core) -> object:
        core._accused_in_flight = 0
        segment = core._suspects.peek()
        return segment if segment is not None else spared(core)

    monkeypatch.setattr(Core, "_eligible_suspect", careless)
    assert any(run_history(seed)[1] is not None for seed in range(30))


def test_many_gpus_and_many_segments_in_one_run() -> None:
    """Every segment is spoken, every job ends; what an event costs is told by ``make reliability``."""
    report = run_scale(50, 5_000)
    assert report.problem is None
    assert report.events > 15_000

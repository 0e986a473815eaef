"""Who owns a job's folder, among several daemons on one outbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import ownership
from daemon.ownership import Hold, Neighbours, Owned, TakenOver


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def pair(outbox: Path) -> tuple[Neighbours, Neighbours, Clock]:
    clock = Clock()
    return Neighbours(outbox, "aaaa", clock), Neighbours(outbox, "bbbb", clock), clock


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    """The newcomer waits, and the folder is its own once the first is done; nothing is left of it then."""
    first, second, _ = pair(tmp_path)
    older, newer = Hold("film", "1", first), Hold("film", "2", second)
    older.take(began=False)
    older.check()
    with pytest.raises(Owned, match="aaaa"):
        newer.take(began=False)
    older.release()
    newer.take(began=False)
    with pytest.raises(TakenOver):
        older.check()
    newer.release()
    assert not list((tmp_path / ".daemons" / "owned").iterdir())


def test_only_a_silent_owner_is_taken_over(tmp_path: Path) -> None:
    """Its beat must not have changed for the whole time, looked at without a gap; whoever was taken over learns of it
    after a restart too, when the other one has ended."""
    first, second, clock = pair(tmp_path)
    older, newer = Hold("film", "1", first), Hold("film", "2", second)
    older.take(began=False)
    first.beat()

    def wait(seconds: float, step: float) -> None:
        end = clock.now + seconds
        while clock.now < end:
            with pytest.raises(Owned):
                newer.take(began=False)
            clock.now += step

    wait(ownership.TAKEOVER_S, 2.0)
    first.beat()
    wait(ownership.TAKEOVER_S, 2.0)
    clock.now += ownership.TAKEOVER_S  # stood still itself
    wait(ownership.TAKEOVER_S, 2.0)
    newer.take(began=False)
    newer.check()
    with pytest.raises(TakenOver):
        older.check()
    newer.release()
    with pytest.raises(TakenOver):
        Hold("film", "1", Neighbours(tmp_path, "aaaa", clock)).take(began=True)


def test_its_own_next_life_takes_back_at_once(tmp_path: Path) -> None:
    first, _, clock = pair(tmp_path)
    Hold("film", "1", first).take(began=False)
    again = Hold("film", "1", Neighbours(tmp_path, "aaaa", clock))
    again.take(began=True)
    again.check()

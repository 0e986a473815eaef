"""What a process says is bounded on its way into the log, and its last words are kept."""

from __future__ import annotations

from daemon.flood import BYTES, KEPT, LINES, Bounded


def test_a_flood_is_cut_counted_and_its_end_kept() -> None:
    """So much a second; the next second begins with what was left out; the block's end tells the rest."""
    now = [0.0]
    heard: list[str] = []
    with Bounded(heard.append, lambda: now[0]) as lines:
        for number in range(100_000):
            lines(f"line {number}")
        assert heard == [f"line {number}" for number in range(LINES)]
        now[0] = 1.5
        lines("later")
        assert len(heard) == LINES + 1 + KEPT + 1
        assert heard[LINES].startswith(f"[{100_000 - LINES - KEPT:,} lines left out")
        assert heard[-2:] == ["line 99999", "later"]
        for _ in range(100):
            lines("x" * BYTES)
        lines("the last word")
    assert heard[-1] == "the last word"
    assert sum(map(len, heard)) < 3 * BYTES


def test_quiet_processes_are_heard_whole() -> None:
    """Nothing is added, and nothing kept back."""
    heard: list[str] = []
    with Bounded(heard.append, lambda: 0.0) as lines:
        for number in range(LINES):
            lines(str(number))
        assert len(heard) == LINES
    assert heard == [str(number) for number in range(LINES)]

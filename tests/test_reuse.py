"""The index of what was spoken: remembered across starts, and never in anybody's way."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from daemon.reuse import Published, ReuseIndex


def published(number: int, **more: object) -> Published:
    values = {"key": f"key{number}", "path": Path(f"/out/{number}.wav"), "sha256": "s", "frames": 80,
              "sample_rate": 8_000, "seed": 2**63 - 1, "truncated": True}  # fmt: skip
    return Published(**{**values, **more})  # type: ignore[arg-type]


def test_what_was_published_is_found(tmp_path: Path) -> None:
    """After a restart too, with all that is known of it; the last place of a key counts."""
    path = tmp_path / "reuse.sqlite3"
    index = ReuseIndex(path)
    assert index.look_up(["key1"]) == {}
    index.record([published(1), published(2)], at=1.0)
    index.record([published(1, path=Path("/elsewhere"))], at=2.0)
    index.close()
    again = ReuseIndex(path)
    assert again.look_up(["key1", "key2", "key3"]) == {
        "key1": published(1, path=Path("/elsewhere")),
        "key2": published(2),
    }
    again.close()


def test_an_index_of_an_earlier_version_is_used_on(tmp_path: Path) -> None:
    """It did not know how a WAV was finished."""
    path = tmp_path / "reuse.sqlite3"
    with sqlite3.connect(path) as earlier:
        earlier.execute(
            "CREATE TABLE spoken (key TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL, "
            "frames INTEGER NOT NULL, sample_rate INTEGER NOT NULL, seed INTEGER NOT NULL, "
            "truncated INTEGER NOT NULL, recorded_at REAL NOT NULL) WITHOUT ROWID"
        )
        earlier.execute("INSERT INTO spoken VALUES ('key1', '/out/1.wav', 's', 80, 8000, 9223372036854775807, 1, 1.0)")
    earlier.close()
    index = ReuseIndex(path)
    finished = published(2, finishing={"spoken_s": 1.5, "speed": 1.1})
    index.record([finished], at=2.0)
    assert index.look_up(["key1", "key2"]) == {"key1": published(1), "key2": finished}
    index.close()
    with sqlite3.connect(path) as damaged:
        damaged.execute("UPDATE spoken SET finishing = '{' WHERE key = 'key2'")
    damaged.close()
    index = ReuseIndex(path)
    assert index.look_up(["key1", "key2"]) == {"key1": published(1)}
    index.close()


def test_many_keys_at_once(tmp_path: Path) -> None:
    """More than one statement of SQLite may hold."""
    index = ReuseIndex(tmp_path / "reuse.sqlite3")
    index.record([published(number) for number in range(40_000)], at=1.0)
    assert len(index.look_up(f"key{number}" for number in range(50_000))) == 40_000
    assert index.look_up([]) == {}
    index.close()


def test_an_index_that_cant_be_opened_now_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done without for as long as the daemon runs, and found again by the next one."""
    path = tmp_path / "reuse.sqlite3"
    index = ReuseIndex(path)
    index.record([published(1)], at=1.0)
    index.close()
    connect = sqlite3.connect

    def refuse(path: object, **more: Any) -> Any:
        return connect("/" if path != ":memory:" else ":memory:", **more)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    index = ReuseIndex(path)
    assert index.look_up(["key1"]) == {}
    index.record([published(2)], at=2.0)
    assert index.look_up(["key2"]) == {"key2": published(2)}
    index.close()
    monkeypatch.undo()
    index = ReuseIndex(path)
    assert index.look_up(["key1", "key2"]) == {"key1": published(1)}
    index.close()


@pytest.mark.parametrize(
    "content", [b"not a database, and long enough to be seen as none" * 100, b"SQLite format 3\0" * 9]
)
def test_a_damaged_index_is_put_aside(tmp_path: Path, content: bytes) -> None:
    """With what belongs to it; a new one takes its place."""
    path = tmp_path / "reuse.sqlite3"
    path.write_bytes(content)
    (tmp_path / "reuse.sqlite3-wal").write_bytes(b"of the damaged one")
    index = ReuseIndex(path)
    index.record([published(1)], at=1.0)
    assert index.look_up(["key1"]) == {"key1": published(1)}
    index.close()
    assert (tmp_path / "reuse.sqlite3.damaged").read_bytes() == content
    assert ReuseIndex(path).look_up(["key1"]) == {"key1": published(1)}


def test_no_place_for_an_index(tmp_path: Path) -> None:
    """Without one the daemon works all the same, and remembers for as long as it runs."""
    for path in (tmp_path / "missing" / "reuse.sqlite3", tmp_path / "file" / "reuse.sqlite3"):
        (tmp_path / "file").write_bytes(b"")
        index = ReuseIndex(path)
        index.record([published(1)], at=1.0)
        assert index.look_up(["key1"]) == {"key1": published(1)}
        index.close()


def test_after_a_failed_write_the_next_one_is_taken(tmp_path: Path) -> None:
    """Another process holds the file: nothing is raised, nothing is half written, and it goes on later."""
    path = tmp_path / "reuse.sqlite3"
    index = ReuseIndex(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    index.record([published(1)], at=1.0)
    assert index.look_up(["key1"]) == {}
    other.execute("ROLLBACK")
    other.close()
    index.record([published(2)], at=1.0)
    assert set(index.look_up(["key1", "key2"])) == {"key2"}
    index.close()


def test_a_closed_index_is_silent(tmp_path: Path) -> None:
    """A thread that comes late finds nothing and breaks nothing."""
    index = ReuseIndex(tmp_path / "reuse.sqlite3")
    index.close()
    index.record([published(1)], at=1.0)
    assert index.look_up(["key1"]) == {}


def test_from_many_threads(tmp_path: Path) -> None:
    """Writers and readers at once lose nothing."""
    index = ReuseIndex(tmp_path / "reuse.sqlite3")

    def work(start: int) -> None:
        for number in range(start, start + 50):
            index.record([published(number)], at=1.0)
            assert index.look_up([f"key{number}"])

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index.look_up(f"key{number}" for number in range(800))) == 400
    index.close()

"""Telling a live daemon from a dead one."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from daemon.commands.invocation import CommandFailed, ExitCode
from daemon.commands.liveness import Pulse, look, probe_lock, require
from tests.commands.conftest import Place, wait_until


def write_status(place: Place, **fields: object) -> None:
    path = place.var / "status.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"seq": 1, "state": "running", "host_id": "abc", **fields}))
    temporary.rename(path)


def test_a_held_lock_is_a_live_daemon(place: Place) -> None:
    """Whatever status.json says; and asking leaves the lock as it was."""
    state = place.var / "state"
    state.mkdir(parents=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert probe_lock(state / "lock") == "held"
        assert look(place.settings).live
    assert probe_lock(state / "lock") == "free"
    assert not look(place.settings).live


def test_a_killed_daemon_is_known_at_once(place: Place) -> None:
    """Its status.json is as fresh as a live one's, but it is of this very state folder, whose lock is free."""
    state = place.var / "state"
    state.mkdir(parents=True)
    (state / "lock").touch()
    (state / "host_id").write_text("abc\n")
    write_status(place)
    sight = look(place.settings, patience_s=3600)
    assert not sight.live
    assert sight.status is not None


def test_over_a_share_a_moving_seq_is_a_live_daemon(place: Place) -> None:
    """There is no state folder on this side."""
    write_status(place)
    done = threading.Event()

    def beat() -> None:
        seq = 1
        while not done.wait(0.05):
            seq += 1
            write_status(place, seq=seq)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        assert look(place.settings).live
    finally:
        done.set()
        beating.join()
    assert not look(place.settings, patience_s=0.2).live


def test_one_that_says_it_stopped_is_not_waited_for(place: Place) -> None:
    """Nor one whose status.json is old."""
    write_status(place, state="stopped")
    assert not look(place.settings, patience_s=3600).live


def test_the_message_says_how_to_start_one(place: Place) -> None:
    """And what was not done."""
    with pytest.raises(CommandFailed, match="dubd run") as failure:
        require(place.settings, purpose="Nothing was cancelled.")
    assert failure.value.exit_code == ExitCode.NO_DAEMON
    assert "Nothing was cancelled." in str(failure.value)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Nothing is told of files elsewhere."""
    (tmp_path / "elsewhere").touch()
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    assert probe_lock(tmp_path / "lock") == "unknown"


def test_a_pulse_notices_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of silence count from the last sign of life."""
    monkeypatch.setattr(Pulse, "GONE_SECONDS", 0.05)
    write_status(place)
    pulse = Pulse(place.settings)
    assert pulse.silent_s() == 0
    wait_until(lambda: pulse.silent_s() > 0, "silence")
    write_status(place, seq=2)
    assert pulse.silent_s() == 0


def test_a_pulse_needs_no_patience_where_the_lock_tells(place: Place) -> None:
    """The daemon of this very state folder has let go of its lock: it is gone, however fresh its status.json."""
    state = place.var / "state"
    state.mkdir(parents=True)
    (state / "host_id").write_text("abc\n")
    write_status(place)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pulse = Pulse(place.settings)
        assert pulse.silent_s() == 0
    assert pulse.silent_s() > 0

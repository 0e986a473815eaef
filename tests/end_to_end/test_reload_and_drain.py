"""What the signals do: SIGTERM drains, SIGHUP reads the configuration again; one daemon to a state folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PATIENCE_S, Make, is_alive, make_job, wait_for

RE_READ = "the configuration has been read again"


# --- SIGTERM -----------------------------------------------------------------------------------------------


def test_sigterm_lets_what_has_begun_end(make: Make) -> None:
    """Exit 0, the segments in flight kept, the rest given back uncharged; the next start speaks it, and nothing
    twice, with no suspect among it."""
    dubd = make().start()
    dubd.drop("film", make_job([f"Line {number} {{hold}}" for number in range(30)]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 8, "the segments in flight")
    pids = [row["pid"] for row in dubd.workers()]
    dubd.signal(signal.SIGTERM)
    wait_for(lambda: dubd.status()["state"] == "draining", "the draining")
    dubd.drop("late", make_job(["For the next life."]))
    dubd.open_gate()
    assert dubd.ended() == 0
    assert not any(is_alive(pid) for pid in pids)
    assert dubd.status()["state"] == "stopped"
    assert len(dubd.ok_in_journal()) == 8
    # The next life publishes what this one has not come to.
    kept = [*(dubd.outbox / "film").glob("*.wav"), *(dubd.state / "jobs").glob("*/segments/[!.]*.wav")]
    assert len(kept) == 8
    assert dubd.manifest_now("film") is None and (dubd.inbox / "late.json").exists()
    kinds = Counter(record["t"] for record in dubd.journals())
    assert kinds["stop"] == 1 and not kinds["try"] and not kinds["suspect"]
    dubd.start()
    manifest = dubd.manifest("film")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done" and {segment["attempts"] for segment in manifest["segments"]} == {1}
    assert set(dubd.told_texts().values()) == {1}
    assert dubd.manifest("late")["status"] == "done"


def test_what_does_not_end_in_time_is_given_up_uncharged(make: Make) -> None:
    """The drain has a deadline. A segment that outlasts it is no suspect: it was not the one who died."""
    dubd = make(service__drain_seconds=0.3, pool__tries=1).start()
    dubd.drop("film", make_job([f"Line {number} {{hold}}" for number in range(6)]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 6, "the segments in flight")
    for _ in range(3):
        assert dubd.stop() == 0
        dubd.start()
        wait_for(lambda: sum(row["in_flight"] for row in dubd.workers()) == 6, "the segments in flight again")
    dubd.open_gate()
    manifest = dubd.manifest("film")
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_more_signals_change_nothing(make: Make, number: signal.Signals) -> None:
    """An impatient service manager, or one that reloads what it stops: still exit 0, with what had begun."""
    dubd = make().start()
    dubd.drop("film", make_job(["Line {hold}"]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 1, "the segment in flight")
    dubd.signal(signal.SIGTERM)
    wait_for(lambda: dubd.status()["state"] == "draining", "the draining")
    dubd.signal(number)
    dubd.open_gate()
    status = None
    while status is None:
        dubd.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = dubd.process.wait(0.02) if dubd.process else 1
    assert status == 0
    assert dubd.manifest_now("film") is not None


def test_a_second_interrupt_means_now(make: Make) -> None:
    """Ctrl-C drains like SIGTERM; Ctrl-C again does not wait. Nothing is lost by it."""
    dubd = make(service__drain_seconds=600.0).start()
    dubd.drop("film", make_job(["Line {hold}"]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 1, "the segment in flight")
    dubd.signal(signal.SIGINT)
    wait_for(lambda: dubd.status()["state"] == "draining", "the draining")
    dubd.signal(signal.SIGINT)
    assert dubd.ended() == 0
    dubd.open_gate()
    dubd.start()
    assert dubd.manifest("film")["status"] == "done"


def test_a_stop_while_workers_load(make: Make) -> None:
    dubd = make(engine__name="waiting:Waiting", engine__options={"load_s": 600}).start(ready=False)
    dubd.drop("film", make_job(["Line."]))
    wait_for(lambda: dubd.job_row("film")["note"], "the job in the status")
    assert dubd.stop() == 0


# --- one daemon --------------------------------------------------------------------------------------------


def test_a_second_daemon_is_refused(make: Make) -> None:
    """It names the first one's process and leaves it alone."""
    dubd = make().start()
    second = dubd.spawn()
    assert second.wait(PATIENCE_S) not in (0, None)
    told = [line for line in dubd.log.read_text().splitlines() if not line.startswith("{")]
    assert any(str(dubd.pid) in line and str(dubd.state) in line for line in told)
    assert dubd.run("film", make_job(["Undisturbed."]))["status"] == "done"
    dubd.log.unlink()  # the refusal is no entry of the log


def test_a_wrong_configuration_does_not_start(make: Make) -> None:
    """Every mistake is named, and nothing is made."""
    dubd = make(pool__workers=-1, inbox__settle_seconds="long", engine__names="draft")
    process = dubd.spawn()
    assert process.wait(PATIENCE_S) == 2
    told = dubd.log.read_text()
    assert all(name in told for name in ("pool.workers", "inbox.settle_seconds", "engine.name"))
    assert not dubd.root.exists()
    dubd.log.unlink()


# --- SIGHUP ------------------------------------------------------------------------------------------------


def test_sighup_follows_the_configuration(make: Make) -> None:
    """More workers, then fewer, while a job is spoken; the ones that stay keep what they have loaded."""
    dubd = make(pool__workers=1).start()
    first = dubd.workers()[0]["pid"]
    dubd.drop("film", make_job([f"Line {number} {{hold}}" for number in range(30)]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 4, "the segments in flight")
    dubd.reload(pool__workers=3)
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 12, "the others' help")
    dubd.reload(pool__workers=1)
    dubd.open_gate()
    manifest = dubd.manifest("film")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done" and set(dubd.told_texts().values()) == {1}
    wait_for(lambda: len(dubd.workers()) == 1, "one worker")
    (row,) = dubd.workers()
    assert (row["pid"], row["loads"], row["restarts"]) == (first, 1, 0)


def test_a_bad_configuration_changes_nothing(make: Make) -> None:
    """Every mistake is told, the old one stays, and a good one is taken afterwards."""
    dubd = make().start()
    good = dubd.config.read_text()
    for bad in ("pool.workers = -3\nengine.nam = 'draft'\n", "not TOML at all [", ""):
        dubd.config.write_text(good + bad) if bad else dubd.config.unlink()
        done = len(dubd.lines("the new configuration is wrong; the old one stays"))
        dubd.signal(signal.SIGHUP)
        entry = wait_for(
            lambda done=done: dubd.lines("the new configuration is wrong; the old one stays")[done:],  # type: ignore[misc]
            "the refusal",
        )[0]
        assert entry["problems"]
        assert "config.toml" in " ".join(entry["problems"])
    assert dubd.run("film", make_job(["As before."]))["status"] == "done"
    assert not dubd.lines(RE_READ)
    dubd.reload(pool__workers=3)
    wait_for(lambda: len(dubd.workers()) == 3, "three workers")


def test_another_engine_by_sighup(make: Make) -> None:
    """The workers are replaced when they have finished what they hold; nothing in flight is lost, and later jobs say
    the new engine's name."""
    dubd = make().start()
    dubd.drop("film", make_job([f"Line {number} {{hold}}" for number in range(20)]))
    wait_for(lambda: dubd.progress("film")["counts"].get("running") == 8, "the segments in flight")
    dubd.reload(engine__name="silence", engine__options={})
    dubd.open_gate()
    manifest = dubd.manifest("film")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert 8 <= sum(dubd.told_texts().values()) < 20
    wait_for(lambda: all(row["engine"] == "silence" and row["loads"] == 2 for row in dubd.workers()), "new workers")
    after = dubd.run("sequel", make_job(["Line 0 {hold}", "Another."]))
    assert after["engine"]["name"] == "silence" and after["counts"]["cached"] == 0
    assert all(row["restarts"] == 0 for row in dubd.workers())


def test_a_job_right_after_the_change_is_of_the_new_engine(make: Make) -> None:
    """A job that comes while the new workers load is keyed with their engine, not with the one that is going."""
    dubd = make(pool__workers=1).start()
    dubd.run("before", make_job(["The line."]))
    dubd.reload(engine__name="waiting:Waiting", engine__options={"load_s": 1.0})
    manifest = dubd.run("after", make_job(["The line."]))
    assert (manifest["engine"]["name"], manifest["counts"]["cached"]) == ("waiting", 0)


def test_paths_do_not_change_while_it_runs(make: Make) -> None:
    dubd = make().start()
    dubd.configure(paths__inbox=str(dubd.folder / "elsewhere"), inbox__scan_seconds=0.1)
    dubd.signal(signal.SIGHUP)
    wait_for(lambda: dubd.lines(RE_READ), "the reading")
    assert any("paths" in line["event"] for line in dubd.lines())
    dubd.settings.pop("paths.inbox")
    assert dubd.run("film", make_job(["In the old place."]))["status"] == "done"


# --- the service manager -----------------------------------------------------------------------------------


def test_the_service_manager_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY once it works, WATCHDOG while it lives, STATUS, and STOPPING; workers are told none of it."""
    dubd = make(engine__name="silence", engine__options={})
    address = dubd.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        dubd.start()
        heard: list[str] = []

        def hear(word: str) -> bool:
            heard.extend(manager.recv(65536).decode().splitlines())
            return any(line.startswith(word) for line in heard)

        for word in ("READY=1", "WATCHDOG=1", "STATUS="):
            wait_for(lambda wanted=word: hear(wanted), word)  # type: ignore[misc]
        environment = [Path(f"/proc/{row['pid']}/environ").read_bytes() for row in dubd.workers()]
        assert not any(b"NOTIFY_SOCKET" in content or b"WATCHDOG" in content for content in environment)
        dubd.signal(signal.SIGTERM)
        wait_for(lambda: hear("STOPPING=1"), "STOPPING=1")
        assert dubd.ended() == 0


def test_the_children_are_the_workers_and_nothing_else(make: Make) -> None:
    dubd = make(pool__workers=3).start()
    dubd.run("film", make_job(["Line."]))
    children = {int(pid) for pid in Path(f"/proc/{dubd.pid}/task/{dubd.pid}/children").read_text().split()}
    assert children == {row["pid"] for row in dubd.workers()}
    assert os.getsid(dubd.pid) == os.getsid(0)

"""Outboxes that go and disks that fill up: nothing is lost, the status says why it waits, and it goes on by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, make_job, wait_for


def middle(dubd: DaemonUnderTest, name: str = "film") -> None:
    """A job with four lines spoken and published, and four that wait."""
    dubd.drop(name, make_job([f"Free {n}." for n in range(4)] + [f"Held {n} {{hold}}" for n in range(4)]))
    wait_for(lambda: len(list((dubd.outbox / name).glob("*.wav"))) == 4, "the first four")


def done(dubd: DaemonUnderTest, name: str = "film") -> None:
    manifest = dubd.manifest(name)
    dubd.check_manifest(manifest)
    assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 8)
    assert set(dubd.told_texts().values()) == {1}
    dubd.check_nothing_left()


def trouble(dubd: DaemonUnderTest, name: str = "film") -> str | None:
    note: str | None = dubd.job_row(name)["note"]
    return note


def test_an_outbox_that_is_away_for_a_while(make: Make, tmp_path: Path) -> None:
    """As a share does: the speaking goes on meanwhile, the job's note says what it waits for, and what was spoken is
    published when it is back."""
    dubd = make(paths__outbox=str(tmp_path / "share" / "outbox")).start()
    middle(dubd)
    (tmp_path / "share").rename(tmp_path / "away")
    dubd.open_gate()
    wait_for(lambda: len(dubd.ok_in_journal()) == 8, "the speaking of the rest")
    wait_for(lambda: trouble(dubd), "the note")
    (tmp_path / "away").rename(tmp_path / "share")
    done(dubd)


def test_an_outbox_that_was_away_at_the_start(make: Make, tmp_path: Path) -> None:
    """A daemon started while its share is missing takes up its jobs when that is there."""
    dubd = make(paths__outbox=str(tmp_path / "share" / "outbox")).start()
    middle(dubd)
    dubd.kill()
    (tmp_path / "share").rename(tmp_path / "away")
    (tmp_path / "share").write_text("not mounted")
    dubd.open_gate()
    dubd.start()
    wait_for(lambda: trouble(dubd), "the note")
    (tmp_path / "share").unlink()
    (tmp_path / "away").rename(tmp_path / "share")
    done(dubd)


def test_a_job_folder_that_somebody_removes(make: Make) -> None:
    """The rest of the job goes into a new one; what was in it is told as lost, and spoken when the job comes again."""
    dubd = make().start()
    middle(dubd)
    # At once, as by a file manager's bin: the daemon may be writing a report into it.
    (dubd.outbox / "film").rename(dubd.folder / "removed")
    dubd.open_gate()
    manifest = dubd.manifest("film")
    assert manifest["counts"]["ok"] == 4
    assert {s["error"]["code"] for s in manifest["segments"] if s["status"] == "failed"} == {"file_lost"}
    assert all((dubd.outbox / "film" / s["file"]).exists() for s in manifest["segments"] if s["file"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_job_folder_that_is_removed_before_its_manifest(make: Make) -> None:
    """What was in it is told as lost, however far the job had come; nothing names a file that is not there."""
    dubd = make().start()
    middle(dubd)
    # What is mounted can't be moved out of the way, as everything else could.
    blocked = dubd.outbox / "film" / "manifest.json"
    blocked.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(blocked)], check=True)
    try:
        dubd.open_gate()
        wait_for(lambda: "writing the manifest" in (trouble(dubd) or ""), "the note")
        (dubd.outbox / "film").rename(dubd.folder / "removed")
    finally:
        moved = dubd.folder / "removed" / "manifest.json"
        subprocess.run(["umount", str(moved if moved.exists() else blocked)], check=True)
    manifest = dubd.manifest("film")
    assert {s["error"]["code"] for s in manifest["segments"]} == {"file_lost"}
    assert [s["file"] for s in manifest["segments"]] == [None] * 8
    assert dubd.progress("film")["note"] is None


def test_a_folder_that_lies_where_a_file_is_to_go(make: Make) -> None:
    """It gets another name beside the file, and is not lost; the job ends, whenever it was put there."""
    dubd = make().start()
    middle(dubd)
    for name in ("segment_0004.wav", "manifest.json", "report.html", "progress.json"):
        with contextlib.suppress(FileNotFoundError):
            (dubd.outbox / "film" / name).unlink()
        (dubd.outbox / "film" / name).mkdir()
        (dubd.outbox / "film" / name / "mine").write_text("kept")
    dubd.open_gate()
    wait_for(lambda: (dubd.outbox / "film" / "manifest.json").is_file(), "the manifest")
    done(dubd)
    for name in ("segment_0004.wav", "manifest.json"):
        assert (dubd.outbox / "film" / f"{name}.odd.1" / "mine").read_text() == "kept"


NO_FLOORS = {"disk__state_free_gb": 0.0, "disk__outbox_free_gb": 0.0, "disk__inbox_free_gb": 0.0}
"""Let a disk be filled to its last byte."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
class TestFullDisks:
    """On small file systems of their own."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """Room for 80 MiB: enough for the daemon to go on when it is free."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True)
        if mounting.returncode:
            pytest.skip(f"a file system can't be mounted here: {mounting.stderr.decode()}")
        yield folder
        subprocess.run(["umount", "--lazy", folder], check=True)

    def fill(self, disk: Path) -> Path:
        """Leave no byte free."""
        ballast = disk / "ballast"
        with ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue
        assert shutil.disk_usage(disk).free == 0
        return ballast

    def test_a_full_state_disk(self, make: Make, disk: Path) -> None:
        """No segment is lost or charged; the status says so; it goes on when there is room."""
        dubd = make(paths__state=str(disk / "state"), **NO_FLOORS).start()
        middle(dubd)
        ballast = self.fill(disk)
        dubd.open_gate()
        wait_for(lambda: any("paused" in warning for warning in dubd.status()["warnings"]), "the warning")
        assert dubd.is_alive()
        dubd.put("waits.json", b"{}")
        ballast.unlink()
        done(dubd)
        assert {segment["status"] for segment in dubd.manifest("film")["segments"]} == {"ok"}
        assert dubd.rejection("waits")
        wait_for(lambda: not dubd.status()["warnings"], "the end of the warning")

    def test_a_full_outbox(self, make: Make, disk: Path) -> None:
        dubd = make(paths__outbox=str(disk / "outbox"), **NO_FLOORS).start()
        middle(dubd)
        ballast = self.fill(disk)
        dubd.open_gate()
        wait_for(lambda: len(dubd.ok_in_journal()) == 8, "the speaking of the rest")
        wait_for(lambda: trouble(dubd), "the note")
        ballast.unlink()
        done(dubd)

    def test_everything_on_one_full_disk(self, make: Make, disk: Path) -> None:
        """Inbox, outbox, rejected, state and status together; the daemon is even killed and started on it."""
        dubd = make(paths__root=str(disk / "var"), **NO_FLOORS)
        dubd.root = disk / "var"
        dubd.start()
        middle(dubd)
        ballast = self.fill(disk)
        dubd.open_gate()
        wait_for(lambda: dubd.lines("no more work is given out until the disk takes it"), "the pause")
        dubd.kill()
        process = dubd.process = dubd.spawn()
        wait_for(lambda: dubd.lines("ready")[1:] or process.poll() is not None, "the second start")
        assert process.poll() is None
        ballast.unlink()
        manifest = dubd.manifest("film")
        dubd.check_manifest(manifest)
        assert (manifest["status"], manifest["counts"]["ok"]) == ("done", 8)
        dubd.check_nothing_left()

    def test_another_file_system_for_each(self, make: Make, disk: Path, tmp_path: Path) -> None:
        """Where a rename can't reach, files are copied, and appear whole all the same."""
        dubd = make(
            paths__outbox=str(disk / "outbox"),
            paths__rejected=str(disk / "rejected"),
            paths__state=str(tmp_path / "s"),
            **NO_FLOORS,
        ).start()
        middle(dubd)
        dubd.put("bad.json", b"[]")
        assert dubd.rejection("bad") == [("$", "wrong_type")]
        assert wait_for((disk / "rejected" / "bad.json").exists, "the rejected file")
        dubd.open_gate()
        done(dubd)
        dubd.drop("again", make_job([f"Free {n}." for n in range(4)]))
        assert dubd.manifest("again")["counts"]["cached"] == 4

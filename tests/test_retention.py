"""What goes with time, and above all what stays."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from daemon import files, results
from daemon.config import Retention as Rules
from daemon.config import Settings
from daemon.ended_jobs import EndedJob, EndedJobs
from daemon.mounts import Mounts
from daemon.retention import DAY_S, Retention, prune, survey_outbox, tidy_state
from daemon.reuse import Published, ReuseIndex
from tests.shell import settings_in

HOST_ID = "0123456789abcdef"
ALL = {"outbox_days": 0.0, "outbox_gb": 0.0, "state_days": 0.0, "cache_gb": 0.0}
LONG_AGO = 1_000_000.0
FOREVER = float("inf")


class Place:
    """An outbox, and what a daemon knows of it."""

    def __init__(self, folder: Path) -> None:
        self.settings: Settings = settings_in(folder, "retention.outbox_days=30")
        self.outbox = self.settings.paths.outbox
        self.ended = EndedJobs(self.settings.paths.state / "ended.sqlite3")
        self.reuse = ReuseIndex(self.settings.paths.state / "reuse.sqlite3")
        self.mounts = Mounts(self.settings.paths.state)
        self.live: set[str] = set()
        self.warnings: dict[str, str] = {}

    def result(self, job_id: str, *, ended_at: float = LONG_AGO, read: bool = True, size: int = 1000) -> Path:
        """A job's folder as the daemon leaves it."""
        folder = self.outbox / job_id
        (folder / "takes").mkdir(parents=True)
        (folder / "speakers" / "set").mkdir(parents=True)
        for name in ("segment_0000.wav", "takes/segment_0000.1.wav", "speakers/set/anna.pkl"):
            (folder / name).write_bytes(b"\0" * (size // 3))
        for name in ("job.json", "progress.json", "report.html", "results.json", "manifest.1.json", ".DS_Store"):
            (folder / name).write_text("x")
        manifest = b'{"schema": 1}\n'
        (folder / "manifest.json").write_bytes(manifest)
        self.ended.record(EndedJob(folder, job_id, hashlib.sha256(manifest).hexdigest(), ended_at))
        if read:
            results.mark_as_read(folder)
        return folder

    @contextmanager
    def clearing(self, job_id: str) -> Iterator[bool]:
        yield job_id not in self.live

    def warn(self, what: str, warning: str | None) -> None:
        self.warnings.pop(what, None)
        if warning is not None:
            self.warnings[what] = warning

    def round(self, **rules: float) -> bool:
        """One round over the outbox."""
        retention = self.settings.retention.model_copy(update=rules)
        object.__setattr__(self.settings, "retention", retention)
        return anyio.run(Retention(self, HOST_ID)._tidy_outbox)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_old_results_that_were_read_go(place: Place) -> None:
    """All of the folder, and nothing else; the young ones stay."""
    old, young = place.result("old"), place.result("young", ended_at=time.time() - 29 * DAY_S)
    assert place.round() is False
    assert not old.exists() and young.exists()
    assert os.listdir(place.outbox) == ["young"]
    assert [ended.job_id for ended in place.ended.in_outbox(place.outbox)] == ["young"]


def test_nothing_goes_unless_asked(place: Place) -> None:
    """By default there is no age and no size at which a result goes."""
    folder = place.result("old")
    place.round(outbox_days=0.0)
    assert folder.exists() and not Rules.model_validate({}).outbox_days and not Rules.model_validate({}).outbox_gb


def test_an_unread_manifest_stays(place: Place) -> None:
    """However old, however much there is; so does one that is read only in a mark of an earlier manifest."""
    unread = place.result("unread", read=False)
    redone = place.result("redone")
    (redone / "manifest.json").write_bytes(b"{}\n")
    place.ended.record(EndedJob(redone, "redone", hashlib.sha256(b"{}\n").hexdigest(), LONG_AGO))
    strange = place.result("strange", read=False)
    (strange / results.READ_MARK).mkdir()
    linked = place.result("linked", read=False)
    (linked / results.READ_MARK).symlink_to(linked / "job.json")
    place.round(outbox_gb=1e-6)
    assert all(folder.exists() for folder in (unread, redone, strange, linked))
    assert "has not been read" in place.warnings["retention"]
    results.mark_as_read(redone)
    (unread / results.READ_MARK).touch()
    place.round(outbox_gb=0.0)
    assert not redone.exists() and not unread.exists()
    assert place.warnings == {}


def test_over_its_size_the_oldest_go_first(place: Place) -> None:
    """As many as are over; unread ones are passed over."""
    now = time.time()
    for number in range(5):
        place.result(f"job{number}", ended_at=now - 100 + number, read=number != 1, size=300_000)
    place.round(outbox_days=0.0, outbox_gb=0.001)
    assert sorted(os.listdir(place.outbox)) == ["job1", "job3", "job4"]
    assert place.warnings == {}
    place.round(outbox_gb=0.0001)
    assert sorted(os.listdir(place.outbox)) == ["job1"]
    assert "over retention.outbox_gb" in place.warnings["retention"]


def test_a_job_at_work_keeps_its_folder(place: Place) -> None:
    folder = place.result("redone")
    place.live.add("redone")
    place.round()
    assert folder.exists()


def test_what_is_not_ours_stays(place: Place, tmp_path: Path) -> None:
    """A folder that nobody told of; one whose manifest was changed; one with somebody's file in it, however deep; one
    that has become a link; whatever a link in it leads to."""
    foreign = place.outbox / "foreign"
    shutil.copytree(place.result("template"), foreign)
    changed = place.result("changed")
    (changed / "manifest.json").write_text("{}")
    mixed = [place.result(f"mixed{number}") for number in range(4)]
    (mixed[0] / "mix.wav").write_text("an editor's")
    (mixed[1] / "takes" / "notes.txt").write_text("an editor's")
    (mixed[2] / "segment_0001.wav").mkdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "segment_0000.wav").write_text("precious")
    (mixed[3] / "takes" / "segment_0000.1.wav").unlink()
    (mixed[3] / "takes" / "segment_0000.1.wav").symlink_to(precious / "segment_0000.wav")
    moved = place.result("moved")
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    place.round()
    assert sorted(os.listdir(place.outbox)) == ["changed", "foreign", "mixed0", "mixed1", "mixed2", "mixed3", "moved"]
    assert (precious / "segment_0000.wav").read_text() == "precious"
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    for folder in (*mixed, foreign):
        assert (folder / "manifest.json").exists() and (folder / "segment_0000.wav").exists()


@pytest.mark.parametrize("name", ["unlink_in", "rmdir_in", "rmdir", "rename_new"])
def test_a_failure_on_the_way_is_made_good_by_the_next_round(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The folder is either whole or gone under its name; what is left is hidden, and goes the next time."""
    folder = place.result("old")
    real, count = getattr(files.disk, name), 0

    def failing(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count == (3 if name == "unlink_in" else 1):
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(files.disk, name, failing)
    place.round()
    assert folder.exists() == (name == "rename_new")
    if folder.exists():
        assert (folder / "manifest.json").exists() and (folder / "takes" / "segment_0000.1.wav").exists()
    monkeypatch.undo()
    place.round()
    assert os.listdir(place.outbox) == []


def test_a_file_put_there_at_the_last_moment_is_found_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name, not under a hidden one."""
    folder = place.result("old")
    real = files.disk.rename_new

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        if target.name.endswith(".gone"):
            (target / "mix.wav").write_text("an editor's")

    monkeypatch.setattr(files.disk, "rename_new", rename)
    place.round()
    assert os.listdir(place.outbox) == ["old"]
    assert os.listdir(folder) == ["mix.wav"]


def test_a_share_that_is_away_is_forgotten_nothing_of(place: Place) -> None:
    """Neither its results nor its WAVs; where others are there, what is gone is."""
    place.result("one"), place.result("two", read=False)
    wavs = [Published(f"key{n}", place.outbox / job / "segment_0000.wav", "s", 1, 1, 1, False)
            for n, job in enumerate(("one", "two"))]  # fmt: skip
    place.reuse.record(wavs, at=0.0)
    place.outbox.rename(place.outbox.parent / "away")
    place.round()
    place.outbox.mkdir()
    place.round()
    assert len(place.ended.in_outbox(place.outbox)) == 2
    assert prune(place.reuse, "", FOREVER) == ""
    assert set(place.reuse.look_up(["key0", "key1"])) == {"key0", "key1"}
    place.outbox.rmdir()
    (place.outbox.parent / "away").rename(place.outbox)
    place.round()
    assert [ended.job_id for ended in place.ended.in_outbox(place.outbox)] == ["two"]
    prune(place.reuse, "", FOREVER)
    assert set(place.reuse.look_up(["key0", "key1"])) == {"key1"}


def test_wavs_that_readers_have_moved_away_are_forgotten(place: Place) -> None:
    """All of them, as soon as anything at all is in the outbox: the index does not grow for ever."""
    wavs = [Published(f"key{n}", place.outbox / f"gone{n}" / "segment_0000.wav", "s", 1, 1, 1, False) for n in range(9)]
    place.reuse.record(wavs, at=0.0)
    place.round()
    assert len(place.reuse.look_up([wav.key for wav in wavs])) == 9
    (place.outbox / "another").mkdir()
    place.round()
    assert not place.reuse.look_up([wav.key for wav in wavs])


def test_a_round_ends_in_time(place: Place) -> None:
    """However much there is to do: the next one goes on."""
    for number in range(3):
        place.result(f"job{number}")
    survey = survey_outbox(
        place.ended, place.outbox, Rules(**{**ALL, "outbox_days": 1.0, "outbox_gb": 1.0}), time.time(), 0.0
    )
    assert survey.more and not survey.due


def test_what_piles_up_in_state_goes(place: Place) -> None:
    """By age what was put aside; of the cache what was not used for longest; nothing that is not known."""
    state = place.settings.paths.state
    (state / "damaged" / "token" / "segments").mkdir(parents=True)
    (state / "over").mkdir()
    (state / "over" / "token").touch()
    (state / "reuse.sqlite3.damaged").touch()
    cache = state / "cache"
    (cache / "triton").mkdir(parents=True)
    for number in range(5):
        path = cache / f"{number:064x}.codec.1.npy"
        path.write_bytes(b"\0" * 1000)
        os.utime(path, (LONG_AGO, LONG_AGO + (7 * number) % 5))
    (cache / "other.npy").write_bytes(b"\0" * 10_000)
    (cache / ".half.npy").touch()
    os.utime(cache / ".half.npy", (LONG_AGO, LONG_AGO))
    rules = Rules(**{**ALL, "state_days": 1.0, "cache_gb": 3000e-9})
    tidy_state(state, rules, time.time())
    assert (state / "damaged" / "token").exists() and (state / "over" / "token").exists()
    assert sorted(os.listdir(cache)) == sorted(
        [f"{number:064x}.codec.1.npy" for number in (1, 2, 4)] + ["other.npy", "triton"]
    )
    tidy_state(state, rules, time.time() + 2 * DAY_S)
    assert os.listdir(state / "damaged") == [] and os.listdir(state / "over") == []
    assert sorted(os.listdir(state)) == sorted(
        ["cache", "damaged", "over", "jobs", "ended.sqlite3", "ended.sqlite3-wal", "ended.sqlite3-shm",
         "reuse.sqlite3", "reuse.sqlite3-wal", "reuse.sqlite3-shm"]
    )  # fmt: skip


def test_a_mark_must_be_of_the_manifest_that_is_there(place: Place) -> None:
    """Empty, it is for whatever manifest is there; with a sha256, for that one."""
    folder = place.result("job", read=False)
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    for content, read in (("", True), (f"{sha256}\n", True), (" \n", True), ("0" * 64, False), ("yes", False)):
        (folder / results.READ_MARK).write_text(content)
        assert results.has_been_read(folder) is read
    results.forget_mark(folder)
    assert not results.has_been_read(folder)

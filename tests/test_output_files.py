"""LocalClip's results.json, and the files that its configs ask for: written only where a job may have them written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.config import Settings
from daemon.core.job import Limits
from daemon.live_job import LiveJob
from daemon.outbox import published_name, take
from daemon.output_files import write_results
from tests.shell import make_live_job, settings_in
from tests.test_outbox import finish


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    folder = tmp_path / "placed"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(tmp_path: Path, placed: Path) -> Settings:
    """Jobs may have files written into ``placed``; the whole of tmp_path is a root too, and the daemon's folders in it
    are not."""
    return settings_in(tmp_path, f'paths.output_roots=["{placed}", "{tmp_path / "var"}"]')


def localclip(settings: Settings, tasks: list[dict[str, Any]]) -> tuple[LiveJob, Path]:
    """A generate job, all spoken and published."""
    filled = [
        {"segment_index": 0, "speaker_id": 0, "target_text": "a", "npy_file": "v.npy", "reference_text": "r"} | task
        for task in tasks
    ]
    job = make_live_job(settings.paths.state / "jobs", {"mode": "generate", "tasks": filled})
    folder = take(settings.paths.outbox, job)
    finish(job, folder)
    return job, folder


def results(settings: Settings, job: LiveJob, folder: Path) -> Any:
    write_results(folder, job, settings.paths)
    return json.loads((folder / "results.json").read_bytes())


def test_a_generate_job_has_a_map(settings: Settings, placed: Path) -> None:
    """Index to path; the file where it was asked for, and in the outbox too; failures are left out. Two voices of one
    numbered speaker are as good as one."""
    inside = placed / "deep" / "12.wav"
    job, folder = localclip(
        settings,
        [
            {"segment_index": 3},
            {"segment_index": 12, "output_file": str(inside), "npy_file": "other.npy"},
            {"segment_index": 13, "output_file": "../../placed/13.wav"},
            {"segment_index": 14},
        ],
    )
    job.segments[3].status = "failed"
    for _ in range(2):
        assert results(settings, job, folder) == {
            "3": str(folder / "segment_0003.wav"),
            "12": str(inside),
            "13": str(placed / "13.wav"),
        }
    assert inside.read_bytes() == (folder / "segment_0012.wav").read_bytes()
    assert job.ignored == []


def test_an_encode_job_has_a_list(settings: Settings, placed: Path) -> None:
    """Speakers under the ids that the job gave them, numbers as numbers."""
    speakers = [
        {
            "speaker_id": speaker,
            "reference_audio": "a.wav",
            "reference_text": "r",
            "output_npy": str(placed / f"{speaker}.npy"),
        }
        for speaker in (0, "narrator", "7")
    ]
    job = make_live_job(settings.paths.state / "jobs", {"mode": "encode", "speakers": speakers})
    folder = take(settings.paths.outbox, job)
    for live in job.segments:
        live.status = "ok"
    for position in range(3):
        (folder / published_name(job, position)).write_bytes(b"codes")
    assert results(settings, job, folder) == [
        {"speaker_id": 0, "npy_file": str(placed / "0.npy")},
        {"speaker_id": "narrator", "npy_file": str(placed / "narrator.npy")},
        {"speaker_id": "7", "npy_file": str(placed / "7.npy")},
    ]


@pytest.mark.parametrize(
    "asked",
    [
        "PLACED/../outside.wav", "/etc/outside.wav", "PLACED/deep/../../outside.wav", "PLACED/link/outside.wav",
        "PLACED/deep/..", f"PLACED/{'x' * 300}.wav", "PLACED/file.txt/a.wav", "PLACED/folder", "PLACED/loop/a.wav",
        "PLACED", "PLACED/.hidden.wav", "PLACED/.deep/a.wav", "PLACED/theirs.wav", "PLACED/their_link.wav", "a.wav",
        "VAR/inbox/x.cancel", "VAR/inbox/.claimed/HOST/t/x.json", "VAR/inbox/theirs.json", "VAR/inbox/refs/anna.wav",
        "VAR/outbox/other/segment_0000.wav", "VAR/outbox/film/job.json", "VAR/state/host_id", "VAR/rejected/x.json",
        "VAR/status.json", "VAR/status.html",
    ],
)  # fmt: skip
def test_what_may_not_be_placed_stays_in_the_outbox(
    settings: Settings, placed: Path, tmp_path: Path, asked: str
) -> None:
    """Outside of the roots by whatever way, in the daemon's own folders, under a hidden name, over what is somebody
    else's, or no name that can be written: it is told in ``ignored``, once, and the job goes to its end."""
    inbox, var = settings.paths.inbox, tmp_path / "var"
    (placed / "link").symlink_to(tmp_path)
    (placed / "loop").symlink_to("loop")
    (placed / "folder").mkdir()
    (placed / "their_link.wav").symlink_to(placed / "theirs.wav")
    (inbox / "refs").mkdir()
    theirs = (placed / "file.txt", placed / "theirs.wav", inbox / "theirs.json", inbox / "refs" / "anna.wav")
    for path in theirs:
        path.write_bytes(b"theirs")

    def picture() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if "jobs" not in path.parts and path.parent.name != "film"}

    wanted = asked.replace("PLACED", str(placed)).replace("VAR", str(var))
    before = picture()
    job, folder = localclip(settings, [{"output_file": wanted}])
    before |= {folder}
    for _ in range(2):
        assert results(settings, job, folder) == {"0": str(folder / "segment_0000.wav")}
    (line,) = job.ignored
    assert "segment 0" in line and line.count(wanted) == 1
    assert picture() - {placed / "deep"} == before
    assert all(path.read_bytes() == b"theirs" for path in theirs)


def test_allowed_roots_are_for_reading(tmp_path: Path) -> None:
    """A config that relied on them is told what to write instead."""
    settings = settings_in(tmp_path, f'paths.allowed_roots=["{tmp_path / "clips"}"]')
    (tmp_path / "clips").mkdir()
    job, folder = localclip(settings, [{"output_file": str(tmp_path / "clips" / "a.wav")}])
    results(settings, job, folder)
    (line,) = job.ignored
    assert "paths.allowed_roots are for reading" in line and "paths.output_roots" in line


def test_a_result_of_the_job_itself_is_replaced(settings: Settings, placed: Path) -> None:
    """Known by its hash, which stands in an earlier manifest of that job; a file that was edited since is not."""
    task = {"output_file": str(placed / "0.wav")}
    job, folder = localclip(settings, [task])
    results(settings, job, folder)
    sha256 = job.segments[0].sha256
    (folder / "manifest.1.json").write_text(json.dumps({"segments": [{"sha256": sha256}]}))
    published = folder / published_name(job, 0)
    published.write_bytes(b"a later take")
    assert results(settings, job, folder) == {"0": str(placed / "0.wav")}
    assert (placed / "0.wav").read_bytes() == b"a later take"
    assert job.ignored == []
    published.write_bytes(b"the next one")
    assert results(settings, job, folder) == {"0": str(published)}
    assert (placed / "0.wav").read_bytes() == b"a later take"


def test_jobs_that_are_no_localclip_config_have_no_results(settings: Settings) -> None:
    """An accepted job remembers its form through a restart."""
    assert make_live_job(settings.paths.state / "jobs").job.results is None
    generate, _ = localclip(settings, [{}])
    assert LiveJob.open(generate.folder, Limits()).job.results == "generate"

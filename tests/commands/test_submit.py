"""``dubd submit``, against a real daemon."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from daemon import files
from daemon.commands import following, submit
from daemon.commands.following import Followed
from daemon.commands.invocation import Invocation
from daemon.commands.reading import read_document
from daemon.commands.submit import prepare
from tests.commands.conftest import Place, dropped, sample_recording, wait_until


def test_a_finished_job_exits_0_and_says_what_came_of_it(live: Place, tmp_path: Path) -> None:
    """With --wait the command ends with the job: counts, pace, the folder of the WAVs; references are found beside the
    job file, wherever the command is given."""
    job = live.write_job(tmp_path / "work", "all_well", ["All well.", "All well again.", "…"])
    done = live.dubd("submit", "--wait", str(job))
    assert done.returncode == 0, done.stderr
    assert "all_well: done, 2/3 segments spoken, 1 skipped" in done.stdout
    assert "xRT" in done.stdout
    folder = live.var / "outbox" / "all_well"
    assert str(folder) in done.stdout
    assert (folder / "segment_0000.wav").is_file()


def test_a_failed_segment_exits_1_and_is_named_with_its_reason(live: Place, tmp_path: Path) -> None:
    """Every failed segment is told with its speaker, code and message."""
    job = live.write_job(tmp_path, "half_well", ["Never said before.", "refuse this"])
    done = live.dubd("submit", str(job), "--wait")
    assert done.returncode == 1
    assert "half_well: partial, 1/2 segments spoken, 1 failed" in done.stdout
    assert "segment 1 (anna) failed: refused: it was told to: refuse this" in done.stdout


def test_without_wait_it_returns_when_the_job_is_in_the_inbox(live: Place, tmp_path: Path) -> None:
    """The job ends all the same."""
    job = live.write_job(tmp_path, "left_alone", ["Hello."])
    done = live.dubd("submit", str(job))
    assert done.returncode == 0, done.stderr
    assert str(live.var / "outbox" / "left_alone") in done.stdout
    wait_until((live.var / "outbox" / "left_alone" / "manifest.json").exists, "the manifest")


def test_several_jobs_are_followed_together(live: Place, tmp_path: Path) -> None:
    """The exit code is that of the worst."""
    first = live.write_job(tmp_path / "a", "one_of_two", ["Hello."])
    second = live.write_job(tmp_path / "b", "two_of_two", ["refuse"])
    done = live.dubd("submit", "--wait", str(first), str(second))
    assert done.returncode == 1
    assert "one_of_two: done" in done.stdout
    assert "two_of_two: failed" in done.stdout


def test_bad_jobs_exit_2_with_every_reason_and_nothing_is_dropped(live: Place, tmp_path: Path) -> None:
    """Mistakes of the form and missing references are told in one go, each with its place; a good job that was given
    along is not submitted either."""
    good = live.write_job(tmp_path, "good_company", ["Hello."])
    bad = tmp_path / "bad.json"
    bad.write_text(
        json.dumps(
            {
                "speakers": [{"id": "anna", "references": [{"audio": "nowhere.wav", "text": "…"}]}],
                "segments": [{"index": 0, "speaker": "ana", "text": "Hello.", "colour": "red"}],
            }
        )
    )
    done = live.dubd("submit", str(good), str(bad), str(tmp_path / "missing.json"))
    assert done.returncode == 2
    for told in ("$.segments[0].colour", "$.segments[0].speaker", "$.speakers[0].references[0].audio", "missing.json"):
        assert told in done.stderr
    assert "nowhere.wav" in done.stderr
    assert not (live.var / "outbox" / "good_company").exists()
    assert not [name for name in os.listdir(live.var / "inbox") if not name.startswith(".")]


@pytest.mark.parametrize("kind", ["folder", "fifo", "text", "short"])
def test_a_reference_that_the_daemon_would_refuse_is_refused_at_once(live: Place, tmp_path: Path, kind: str) -> None:
    """The references are checked as the daemon will check them; a FIFO does not make the command hang."""
    job = live.write_job(tmp_path, f"refused_{kind}", ["Hello."])
    reference = tmp_path / "anna.flac"
    reference.unlink()
    match kind:
        case "folder":
            reference.mkdir()
        case "fifo":
            os.mkfifo(reference)
        case "text":
            reference.write_text("this is no recording")
        case _:
            reference.write_bytes(sample_recording()[:200])
    done = live.dubd("submit", str(job))
    assert done.returncode == 2
    assert "$.speakers[0].references[0].audio" in done.stderr


def test_without_a_daemon_nothing_is_dropped(place: Place, tmp_path: Path) -> None:
    """Exit 3, and the message says how to start one."""
    job = place.write_job(tmp_path, "nobody", ["Hello."])
    done = place.dubd("submit", str(job))
    assert done.returncode == 3
    assert "Nothing was submitted" in done.stderr
    assert "dubd run" in done.stderr
    assert not (place.var / "inbox").exists()


def test_a_second_run_of_a_job_is_not_taken_for_the_first(live: Place, tmp_path: Path) -> None:
    """An old manifest of the same id says nothing about this submission."""
    first = live.write_job(tmp_path, "once_more", ["refuse"])
    assert live.dubd("submit", "--wait", str(first)).returncode == 1
    second = live.write_job(tmp_path, "once_more", ["Hello."])
    done = live.dubd("submit", "--wait", str(second))
    assert done.returncode == 0, done.stdout
    assert (live.var / "outbox" / "once_more" / "manifest.1.json").exists()


def test_a_job_that_queues_behind_its_namesake_waits_for_its_own_end(
    live: Place, tmp_path: Path, closed_gate: Path
) -> None:
    """The manifest of the one that was running is not taken for the newcomer's."""
    first = live.start("submit", "--wait", str(live.write_job(tmp_path / "a", "namesake", ["hold the first"])))
    progress = live.var / "outbox" / "namesake" / "progress.json"
    wait_until(progress.exists, "the start of the first")
    second = live.start("submit", "--wait", str(live.write_job(tmp_path / "b", "namesake", ["refuse"])))
    wait_until(lambda: len([job for job in _jobs(live) if job["job_id"] == "namesake"]) == 2, "both with the daemon")
    closed_gate.touch()
    out, _ = first.communicate(timeout=30)
    assert first.returncode == 0, out
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 1, out


def _jobs(live: Place) -> list[dict[str, object]]:
    return (read_document(live.var / "status.json") or {"jobs": []})["jobs"]  # type: ignore[no-any-return]


def test_ctrl_c_stops_the_waiting_and_not_the_job(live: Place, tmp_path: Path, closed_gate: Path) -> None:
    """Exit 130; the message says that the job goes on and how to stop it."""
    process = live.start("submit", "--wait", str(live.write_job(tmp_path, "impatient", ["hold this job"])))
    wait_until((live.var / "outbox" / "impatient" / "progress.json").exists, "the start")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "impatient" in err
    assert "dubd cancel" in err
    assert "Traceback" not in err
    closed_gate.touch()
    wait_until((live.var / "outbox" / "impatient" / "manifest.json").exists, "the end all the same")


def test_ctrl_c_while_a_job_is_dropped(
    live: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever stops the command is told which jobs the daemon has by then, and that another never came there."""
    jobs = [live.write_job(tmp_path / name, name, ["Hello."]) for name in ("gone_in", "left_out")]
    rename_new = files.rename_new

    def rename_and_interrupt(source: Path, target: Path) -> None:
        rename_new(source, target)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(files, "rename_new", rename_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        submit.execute(Invocation(overrides=tuple(live.options[1::2])), jobs, wait=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "the daemon goes on with gone_in; 'dubd cancel JOB_ID' stops a job, and 1 job not submitted" in err
    wait_until((live.var / "outbox" / "gone_in" / "manifest.json").exists, "its end")
    assert not (live.var / "outbox" / "left_out").exists()


def test_a_drop_that_may_not_last_is_told(
    live: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The job is in the inbox, and the daemon does it: it must not be called not submitted."""
    job = live.write_job(tmp_path, "unsynced", ["Hello."])
    rename_new, fsync_folder, inbox = files.rename_new, files.fsync_folder, live.settings.paths.inbox
    failing: list[Path] = []

    def rename_and_fail_from_then_on(source: Path, target: Path) -> None:
        rename_new(source, target)
        failing.append(inbox)

    def fail(folder: Path) -> None:
        if folder in failing:
            raise OSError(errno.EIO, "Input/output error", str(folder))
        fsync_folder(folder)

    monkeypatch.setattr(files, "rename_new", rename_and_fail_from_then_on)
    monkeypatch.setattr(files, "fsync_folder", fail)
    assert submit.execute(Invocation(overrides=tuple(live.options[1::2])), [job], wait=True) == 0
    assert "unsynced.json is in the inbox, but a power cut may take it" in capsys.readouterr().err


def test_a_rejection_by_the_daemon_exits_2_with_its_reasons(live: Place, tmp_path: Path) -> None:
    """What only the daemon sees (here a reference that was damaged after the check) comes back from rejected/."""
    settings = live.settings
    submission, mistakes = prepare(live.write_job(tmp_path, "too_late", ["Hello."]), settings)
    assert submission is not None
    assert not mistakes
    found = dropped(submission, settings)
    for copy in submission.copies.values():
        (live.var / "inbox" / ".references" / copy).write_bytes(b"not a recording any more")
    assert following.follow(settings, [Followed(found)]) == 2


def test_a_name_that_is_taken_in_the_inbox_is_not_overwritten(place: Place, tmp_path: Path) -> None:
    """Another's job of that name stays; ours gets a number, and keeps its id."""
    inbox = place.var / "inbox"
    inbox.mkdir(parents=True)
    (inbox / "film.json").write_text("another's")
    submission, _ = prepare(place.write_job(tmp_path, "film", ["Hello."]), place.settings)
    assert submission is not None
    found = dropped(submission, place.settings)
    assert (inbox / "film.json").read_text() == "another's"
    assert found.file == inbox / "film-2.json"
    assert json.loads(found.file.read_text())["job_id"] == "film"
    assert not [name for name in os.listdir(inbox) if name.endswith(".part")]


def test_two_jobs_of_one_id_in_one_command_are_refused(live: Place, tmp_path: Path) -> None:
    """They would queue behind each other under one name: that is hardly meant."""
    one = live.write_job(tmp_path / "a", "Twin", ["Hello."])
    two = live.write_job(tmp_path / "b", "twin", ["Hello."])
    done = live.dubd("submit", str(one), str(two))
    assert done.returncode == 2
    assert "$.job_id" in done.stderr


def test_a_file_in_the_inbox_need_not_be_submitted(live: Place) -> None:
    """It says so, and touches nothing."""
    done = live.dubd("submit", str(live.var / "inbox" / "film.json"))
    assert done.returncode == 2
    assert "lies in the inbox already" in done.stderr


def test_an_unwritable_inbox_is_told_and_exits_2(live: Place, tmp_path: Path) -> None:
    """1 would say that a segment failed."""
    inbox = tmp_path / "a_file"
    inbox.write_text("")
    job = live.write_job(tmp_path / "work", "nowhere_to_go", ["Hello."])
    done = live.dubd("submit", str(job), "--set", f"paths.inbox={inbox}")
    assert done.returncode == 2
    assert str(inbox) in done.stderr

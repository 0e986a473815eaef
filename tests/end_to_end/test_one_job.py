"""One job is never the daemon's end: a mistake of ours, or a folder in state/ that others or a disk have changed, costs
that job what it must, and its neighbours and every later start nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, DaemonUnderTest, make_job, recording, wait_for
from tests.end_to_end.test_death import begun, held_job, lines

SHIM = """
import sys
from daemon import intake, job_run, outbox

WHERE = {where!r}

def broken(module, name):
    real = getattr(module, name)
    def stumbling(*arguments, **named):
        jobs = [thing for thing in arguments if getattr(thing, "job_id", None) == "bad"]
        if jobs and not (name == "publish" and arguments[2] < 2):
            raise RuntimeError("a mistake of ours")
        return real(*arguments, **named)
    setattr(module, name, stumbling)

module, name = WHERE.split(".")
broken({{"outbox": outbox, "job_run": job_run}}[module], name)
from daemon.cli import main
sys.argv[0] = "dubd"
main()
"""


class Stumbling(DaemonUnderTest):
    """A daemon that makes a mistake of its own over the job ``bad``, at ``where``."""

    where = ""

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-c", SHIM.format(where=self.where), "run", "--config", str(self.config), *options],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip


@pytest.fixture
def stumbling(tmp_path: Path) -> Iterator[Callable[[str], Stumbling]]:
    made: list[Stumbling] = []

    def make(where: str) -> Stumbling:
        dubd = Stumbling(tmp_path)
        dubd.where = where
        dubd.inbox.mkdir(parents=True)
        dubd.put("anna.flac", recording())
        made.append(dubd)
        dubd.start()
        return dubd

    yield make
    for dubd in made:
        dubd.kill()


@pytest.mark.parametrize("where", ["job_run.give_keys", "outbox.publish", "outbox.progress"])
def test_a_mistake_of_ours_fails_that_job_alone(stumbling: Callable[[str], Stumbling], where: str) -> None:
    """With its reason in the manifest; what was spoken is there, the neighbours and the next start go on."""
    dubd = stumbling(where)
    dubd.drop("bad", {**make_job(lines(0, 4)), "job_id": "bad"})
    dubd.drop("good", make_job(lines(4, 8)))
    assert dubd.manifest("good")["status"] == "done"
    manifest = dubd.manifest("bad")
    assert manifest["counts"]["total"] == 4
    reasons = [segment["error"] for segment in manifest["segments"] if segment["status"] == "failed"]
    assert reasons or where == "outbox.progress"
    assert "a mistake of ours" in dubd.log.read_text()
    for segment in manifest["segments"]:
        assert (segment["file"] is not None) == (segment["status"] == "ok")
        assert segment["file"] is None or (dubd.outbox / "bad" / segment["file"]).is_file()
    # Another daemon on this outbox may have the folder now.
    wait_for(lambda: not (dubd.outbox / ".daemons" / "owned" / "bad").exists(), "the folder given free")
    dubd.drop("bad", {**make_job(lines(0, 1)), "job_id": "bad"})  # a later one of that name has its turn
    dubd.drop("after", make_job(lines(8, 10)))
    assert dubd.manifest("after")["status"] == "done"
    assert dubd.stop() == 0


def test_a_job_that_can_not_be_ended_is_put_aside(stumbling: Callable[[str], Stumbling]) -> None:
    """People are told where it is; the others go on, now and at the next start."""
    dubd = stumbling("outbox.manifest")
    dubd.drop("bad", {**make_job(lines(0, 2)), "job_id": "bad"})
    wait_for(lambda: list((dubd.state / "damaged").glob("*")), "the job's end")
    wait_for(lambda: any("given up" in text for text in dubd.status()["warnings"]), "the warning")
    dubd.drop("good", make_job(lines(4, 6)))
    assert dubd.manifest("good")["status"] == "done"
    dubd.kill()
    dubd.start()
    dubd.drop("later", make_job(lines(6, 8)))
    assert dubd.manifest("later")["status"] == "done"


def test_a_job_that_is_damaged_twice(make: Callable[..., DaemonUnderTest]) -> None:
    """What is put aside has a name of its own each time."""
    dubd = make().start()
    dubd.drop("scene", held_job(2, 1))
    for _ in range(2):
        wait_for(lambda: begun(dubd, "scene") == 1, "the middle")
        dubd.kill()
        (job,) = (dubd.state / "jobs").iterdir()
        (job / "about.json").write_text("{}")
        dubd.start()
    dubd.open_gate()
    assert dubd.manifest("scene")["status"] == "done"
    assert sorted(path.name for path in (dubd.state / "damaged").iterdir()) == [job.name, f"{job.name}.2"]


def test_a_start_goes_on_past_whatever_lies_in_state(make: Callable[..., DaemonUnderTest]) -> None:
    """Files, links, pipes and folders where others of ours belong: each is put aside or passed over, with a word."""
    dubd = make().start()
    dubd.drop("scene", held_job(2, 1))
    wait_for(lambda: begun(dubd, "scene") == 1, "the middle")
    dubd.kill()
    jobs = dubd.state / "jobs"
    (jobs / "a_file").write_bytes(b"x")
    os.mkfifo(jobs / "a_pipe")
    (jobs / "a_link").symlink_to("/dev/zero")
    for name in ("job.json", "about.json", "journal.jsonl", "out"):
        folder = jobs / f"with_a_pipe_for_{name}"
        folder.mkdir()
        for other in ("job.json", "about.json"):
            (folder / other).write_bytes(b"{}")
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    (dubd.state / "mounts.json").unlink(missing_ok=True)
    os.mkfifo(dubd.state / "mounts.json")
    (dubd.state / "hooks").mkdir(exist_ok=True)
    os.mkfifo(dubd.state / "hooks" / "x.json")
    dubd.open_gate()
    dubd.start()
    assert dubd.manifest("scene")["status"] == "done"
    assert dubd.stop() == 0


@pytest.mark.parametrize("damage", ["zeroed", "flipped", "cut", "doubled", "folder", "link"])
def test_a_wav_that_was_damaged_in_state_is_spoken_again(make: Callable[..., DaemonUnderTest], damage: str) -> None:
    """It is not delivered under the hash that it had."""
    dubd = make().start()
    dubd.drop("scene", held_job(3, 1))
    wait_for(lambda: begun(dubd, "scene") == 1, "the middle")
    # Something stands where the job's folder was, so that what is spoken stays in state.
    wait_for(lambda: len(dubd.ok_in_journal()) == 3, "three segments")
    dubd.kill()
    (job,) = (dubd.state / "jobs").iterdir()
    published = dubd.outbox / "scene" / "segment_0001.wav"
    stored = job / "segments" / "1.wav"
    if published.exists():
        published.rename(stored)
    content = stored.read_bytes()
    half = len(content) // 2
    if damage in ("folder", "link"):
        stored.unlink()
        stored.mkdir() if damage == "folder" else stored.symlink_to(job / "job.json")
    else:
        stored.write_bytes(
            {
                "zeroed": bytes(len(content)),
                "flipped": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
                "cut": content[:half],
                "doubled": content * 2,
            }[damage]
        )
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert published.read_bytes() == content  # the engine speaks alike


def test_a_reference_that_was_damaged_in_state_is_copied_anew(make: Callable[..., DaemonUnderTest]) -> None:
    """From where it came; if that is gone, its job fails with a reason, and no other."""
    dubd = make().start()
    dubd.drop("scene", held_job(2, 1))
    wait_for(lambda: begun(dubd, "scene") == 1, "the middle")
    for lost in (False, True):
        dubd.kill()
        (job,) = (dubd.state / "jobs").iterdir()
        (reference,) = (job / "references").iterdir()
        content = reference.read_bytes()
        reference.write_bytes(bytes(len(content)))
        if lost:
            (dubd.inbox / "anna.flac").unlink()
        else:
            dubd.start()
            wait_for(lambda: begun(dubd, "scene") == 1, "the middle again")
            assert reference.read_bytes() == content
    dubd.open_gate()
    dubd.start()
    manifest = dubd.manifest("scene")
    failed = [segment["error"]["code"] for segment in manifest["segments"] if segment["status"] == "failed"]
    assert (manifest["status"], failed) == ("partial", ["reference_lost"])
    dubd.put("anna.flac", recording())
    dubd.drop("next", make_job(lines(5, 6)))
    assert dubd.manifest("next")["status"] == "done"


def test_the_state_folder_is_private(make: Callable[..., DaemonUnderTest]) -> None:
    """Also one that an earlier version has left open; what is published keeps the mode that others may read."""
    dubd = make()
    dubd.state.mkdir(parents=True)
    dubd.state.chmod(0o755)
    dubd.start()
    dubd.run("scene", make_job(lines(0, 1)))
    assert dubd.state.stat().st_mode & 0o777 == 0o700
    assert (dubd.outbox / "scene" / "segment_0000.wav").stat().st_mode & 0o044 == 0o044

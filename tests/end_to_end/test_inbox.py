"""How jobs come in: settled by our own observation, with or without events, through an inbox that goes and comes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DaemonUnderTest, Make, make_job, recording, wait_for


def document(text: str = "Any line.", **more: str) -> bytes:
    return json.dumps(make_job([text]) | more).encode()


def looks(dubd: DaemonUnderTest) -> int:
    """The status' seq: moves with what the daemon notices."""
    seq: int = dubd.status()["seq"]
    return seq


def test_a_job_that_was_there_before_the_daemon(make: Make) -> None:
    dubd = make()
    dubd.drop("early", make_job(["I was here first."]))
    assert dubd.start().manifest("early")["status"] == "done"


def test_a_file_is_taken_only_when_it_is_whole(make: Make) -> None:
    """Written piece by piece, each piece later than settle_seconds and sooner than the grace: what has come so far is
    no JSON, and nobody takes it for a job, nor rejects it."""
    dubd = make(inbox__grace_seconds=60.0).start()
    dubd.put("anna.flac", recording())
    content = document("Slowly written.", job_id="slow")
    size = max(1, len(content) // 6)
    with (dubd.inbox / "slow.json").open("wb") as file:
        for start in range(0, len(content), size):
            file.write(content[start : start + size])
            file.flush()
            # Whole jobs beside it pass through settling and back in the meantime.
            if start + size < len(content):
                name = f"beside_{start}"
                dubd.run(name, make_job([name]))
                assert (dubd.inbox / "slow.json").exists()
    assert dubd.manifest("slow")["status"] == "done"
    assert not list(dubd.rejected.iterdir())


def test_a_file_that_never_becomes_whole_is_rejected(dubd: DaemonUnderTest) -> None:
    dubd.put("torn.json", document()[:-20])
    assert dubd.rejection("torn") == [("$", "not_json")]


def test_a_job_waits_for_its_references(make: Make) -> None:
    """Copied in together, the recording last: the job is taken when that has come, and is not rejected before."""
    dubd = make(inbox__grace_seconds=30.0).start()
    dubd.put("patient.json", document(job_id="patient"))
    dubd.run("other", make_job(["x"]) | {"speakers": [{"id": "s0", "references": [{"audio": "bo.flac", "text": "x"}]}]})
    assert (dubd.inbox / "patient.json").exists()
    dubd.put("anna.flac", recording())
    assert dubd.manifest("patient")["status"] == "done"


def test_a_reference_that_never_comes(dubd: DaemonUnderTest) -> None:
    dubd.put("lonely.json", document())
    assert dubd.rejection("lonely") == [("$.speakers[0].references[0].audio", "missing")]


def test_references_are_kept_as_they_were(dubd: DaemonUnderTest) -> None:
    """Once taken, a job does not need its recordings in the inbox any more."""
    dubd.drop("keeps", make_job(["First {hold}", "Second {hold}"]))
    wait_for(lambda: dubd.progress("keeps")["counts"].get("running") == 2, "the segments in flight")
    (dubd.inbox / "anna.flac").unlink()
    dubd.kill()
    dubd.open_gate()
    dubd.start()
    assert dubd.manifest("keeps")["status"] == "done"


@pytest.mark.parametrize("watch", [True, False])
def test_an_inbox_that_goes_and_comes_back(make: Make, watch: bool) -> None:
    """Removed and made anew while the daemon runs, with file system events and without: said in the status, and jobs
    in the new one are taken. A job that was running goes on."""
    dubd = make(inbox__watch=watch).start()
    dubd.drop("running", make_job(["This one waits {hold}"]))
    wait_for(lambda: dubd.progress("running")["counts"].get("running") == 1, "the segment in flight")
    for life in range(2):
        # The traces of the last job go after its manifest, and rmtree bears no other hand.
        wait_for(lambda: not list(dubd.inbox.glob(".claimed/*/*/anew_*")), "the end of the last job's traces")
        shutil.rmtree(dubd.inbox)
        wait_for(lambda: dubd.status()["inbox"]["reachable"] is False, "the loss in the status")
        assert any("inbox" in warning for warning in dubd.status()["warnings"])
        dubd.drop(f"anew_{life}", make_job([f"In a new inbox {life}."]))
        assert dubd.manifest(f"anew_{life}")["status"] == "done"
        wait_for(lambda: dubd.status()["inbox"]["reachable"] is True, "the return in the status")
    dubd.open_gate()
    assert dubd.manifest("running")["status"] == "done"


def test_an_inbox_that_is_swapped_for_another(dubd: DaemonUnderTest) -> None:
    """As when a share is mounted over it: what is in the new one counts."""
    dubd.run("before", make_job(["x"]))
    dubd.inbox.rename(dubd.root / "old_inbox")
    dubd.inbox.mkdir()
    dubd.drop("after", make_job(["y"]))
    assert dubd.manifest("after")["status"] == "done"


def test_a_daemon_starts_without_its_inbox(make: Make) -> None:
    """A share that is not mounted yet is waited for."""
    dubd = make()
    blocker = dubd.folder / "mount"
    blocker.write_text("not a folder yet")
    dubd.configure(paths__inbox=str(blocker / "inbox"))
    dubd.start()
    wait_for(lambda: dubd.status()["inbox"]["reachable"] is False, "the trouble in the status")
    blocker.unlink()
    dubd.drop("late", make_job(["At last."]))
    assert dubd.manifest("late")["status"] == "done"


def test_two_daemons_share_an_inbox(make: Make, tmp_path: Path) -> None:
    """Each with a state of its own: every job is done by one of them, once."""
    shared = {"paths__inbox": str(tmp_path / "inbox"), "paths__outbox": str(tmp_path / "outbox")}
    one, two = make("one", **shared).start(), make("two", **shared).start()
    names = [f"shared_{number}" for number in range(20)]
    for name in names:
        one.drop(name, make_job([f"{name}, line {line}" for line in range(3)]))
    for name in names:
        manifest = one.manifest(name)
        one.check_manifest(manifest)
        assert manifest["status"] == "done"
    told = one.told_texts() + two.told_texts()
    assert len(told) == 60 and set(told.values()) == {1}
    assert not list((tmp_path / "outbox").glob("*/manifest.1.json"))


def test_a_file_that_is_replaced_while_it_settles(make: Make) -> None:
    """The last one of a name is the job; a file taken away is none."""
    dubd = make(inbox__settle_seconds=3.0).start()
    dubd.drop("replaced", make_job(["The first."]))
    dubd.drop("withdrawn", make_job(["Never mind."]))
    seen = looks(dubd)
    dubd.put("replaced.json", document("The second."))
    (dubd.inbox / "withdrawn.json").unlink()
    manifest = dubd.manifest("replaced")
    assert [segment["text"] for segment in manifest["segments"]] == ["The second."]
    dubd.run("last", make_job(["Last."]))
    assert looks(dubd) > seen
    assert not (dubd.outbox / "withdrawn").exists()


def test_absolute_references_inside_the_allowed_folders(make: Make, tmp_path: Path) -> None:
    voices = tmp_path / "voices"
    voices.mkdir()
    (voices / "anna.flac").write_bytes(recording())
    dubd = make(paths__allowed_roots=[str(voices)]).start()
    speakers = [{"id": "s0", "references": [{"audio": str(voices / "anna.flac"), "text": "Said in it."}]}]
    dubd.drop("absolute", make_job(["x"]) | {"speakers": speakers}, recorded=False)
    assert dubd.manifest("absolute")["status"] == "done"
    os.unlink(voices / "anna.flac")
    (voices / "anna.flac").symlink_to("/etc/hostname")
    dubd.drop("swapped", make_job(["y"]) | {"speakers": speakers}, recorded=False)
    assert dubd.rejection("swapped") == [("$.speakers[0].references[0].audio", "not_regular")]

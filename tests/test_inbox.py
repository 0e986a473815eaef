"""The inbox, on real files and with a clock of the test's own: when a file is taken, how, and what is put aside."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from daemon import files
from daemon import inbox as inboxes
from daemon.config import Settings
from daemon.core.job import JobRejected, Limits, Reason
from daemon.inbox import Inbox, Look, Ready, read_document
from daemon.live_job import Claim, new_token
from daemon.rejected import reject
from tests.shell import job_document, settings_in

SETTLE, GRACE = 2.0, 10.0
HOST = "0123abcd"
BAD = (Reason("$", "bad", "it is bad"),)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def inbox(settings: Settings) -> Inbox:
    return Inbox(settings, HOST)


@pytest.fixture
def folder(settings: Settings) -> Path:
    """The inbox, with the recording that the jobs of these tests name."""
    (settings.paths.inbox / "refs").mkdir()
    (settings.paths.inbox / "refs" / "anna.wav").write_bytes(b"recording")
    return settings.paths.inbox


def put(folder: Path, name: str, content: bytes | dict[str, Any] | None = None) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content or job_document()).encode())
    return path


def ready(look: Look) -> list[str]:
    return [item.name for item in look.ready]


# --- settling ----------------------------------------------------------------------------------------------


def test_a_file_is_taken_once_it_has_settled(inbox: Inbox, folder: Path) -> None:
    """By our own observations: seen once and again after the time, unchanged; its own times say nothing."""
    path = put(folder, "film.json")
    os.utime(path, (1, 1))
    look = inbox.look(100.0)
    assert (ready(look), look.waiting, look.next_due) == ([], 1, 102.0)
    assert ready(inbox.look(101.9)) == []
    look = inbox.look(102.0)
    assert (ready(look), look.next_due) == (["film.json"], None)


def test_what_changes_settles_anew(inbox: Inbox, folder: Path) -> None:
    """A new size, a new time, or another file under the name."""
    path = put(folder, "film.json")
    inbox.look(0.0)
    with path.open("ab") as file:
        file.write(b" ")
    assert ready(inbox.look(2.0)) == []
    os.utime(path, ns=(5, 5))
    assert ready(inbox.look(4.0)) == []
    content = path.read_bytes()
    put(folder, ".new", content)
    os.utime(folder / ".new", ns=(5, 5))
    os.rename(folder / ".new", path)
    assert ready(inbox.look(6.0)) == []
    assert ready(inbox.look(8.0)) == ["film.json"]


def test_a_name_that_went_and_came_is_new(inbox: Inbox, folder: Path) -> None:
    """What was seen of a file that is gone says nothing of the next one."""
    path = put(folder, "film.json")
    inbox.look(0.0)
    path.rename(folder / "aside")
    assert inbox.look(1.0).waiting == 0
    (folder / "aside").rename(path)
    assert ready(inbox.look(2.5)) == []
    assert ready(inbox.look(4.5)) == ["film.json"]


def test_a_file_that_does_not_parse_yet_gets_its_grace(inbox: Inbox, folder: Path) -> None:
    """It may be on its way still; then it is handed over as it is, for its rejection. One that is whole and wrong
    need not wait."""
    put(folder, "half.json", json.dumps(job_document()).encode()[:-10])
    put(folder, "empty.json", b"")
    put(folder, "wrong.json", b'{"segments": 3}')
    inbox.look(0.0)
    look = inbox.look(SETTLE)
    assert (ready(look), look.next_due) == (["wrong.json"], SETTLE + GRACE)
    assert sorted(ready(inbox.look(SETTLE + GRACE))) == ["empty.json", "half.json", "wrong.json"]


def test_references_settle_with_their_job(inbox: Inbox, folder: Path) -> None:
    """A recording that still grows keeps its job waiting, however long the job itself has been there."""
    put(folder, "film.json")
    inbox.look(0.0)
    for now in (1.0, 2.5, 4.0):
        with (folder / "refs" / "anna.wav").open("ab") as file:
            file.write(b"more")
        assert ready(inbox.look(now)) == []
    assert ready(inbox.look(5.9)) == []
    assert ready(inbox.look(6.0)) == ["film.json"]


def test_a_missing_reference_is_waited_for(inbox: Inbox, folder: Path) -> None:
    """For the grace; and should it come, for it to settle."""
    anna = folder / "refs" / "anna.wav"
    anna.rename(folder / "aside")
    put(folder, "film.json")
    inbox.look(0.0)
    assert ready(inbox.look(SETTLE)) == []
    shutil.copy(folder / "aside", anna)
    assert ready(inbox.look(SETTLE + GRACE)) == []
    assert ready(inbox.look(SETTLE + GRACE + SETTLE)) == ["film.json"]
    anna.unlink()
    inbox.look(20.0)
    look = inbox.look(20.0 + SETTLE)
    assert (ready(look), look.next_due) == ([], 20.0 + SETTLE + GRACE)
    assert ready(inbox.look(20.0 + SETTLE + GRACE)) == ["film.json"]


def test_references_outside_of_the_roots_are_not_waited_for(inbox: Inbox, folder: Path, tmp_path: Path) -> None:
    """Whether they are there or not, the job is taken, to be refused, at the same time."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "there.wav").write_bytes(b"recording")
    (folder / "link").symlink_to(outside)
    for name, path in (("a", outside / "there.wav"), ("b", outside / "not_there.wav"), ("c", "link/not_there.wav")):
        document = job_document()
        document["speakers"][0]["references"][0]["audio"] = str(path)
        put(folder, f"{name}.json", document)
    inbox.look(0.0)
    # They are whole jobs: nothing else is a reason to take them at once.
    assert inbox.known_ids() == {"a", "b", "c"}
    assert ready(inbox.look(SETTLE)) == ["a.json", "b.json", "c.json"]


def test_the_important_and_the_older_first(inbox: Inbox, folder: Path) -> None:
    """By priority, then by the file's time, then by name."""
    for name, priority, mtime in (("c", 0, 10), ("b", 0, 20), ("a", 0, 20), ("d", 5, 30)):
        os.utime(put(folder, f"{name}.json", job_document(priority=priority)), (mtime, mtime))
    inbox.look(0.0)
    assert ready(inbox.look(SETTLE)) == ["d.json", "c.json", "a.json", "b.json"]


def test_new_settings_hold_from_the_next_look(inbox: Inbox, folder: Path, tmp_path: Path) -> None:
    """A reload changes the times."""
    put(folder, "film.json")
    inbox.look(0.0)
    inbox.reload(settings_in(tmp_path, "inbox.settle_seconds=0.5"))
    assert ready(inbox.look(0.5)) == ["film.json"]


# --- what is no job ----------------------------------------------------------------------------------------


def test_hidden_and_other_names_are_not_looked_at(inbox: Inbox, folder: Path) -> None:
    """A file on its way has a hidden name or ends in .part."""
    for name in ("film.json.part", ".film.json", "film.wav", "notes.txt", "json"):
        put(folder, name)
    put(folder, "FILM.JSON")
    assert inbox.look(0.0).waiting == 1
    assert ready(inbox.look(SETTLE)) == ["FILM.JSON"]


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "socket"])
def test_what_is_no_regular_file_is_rejected_unread(inbox: Inbox, folder: Path, kind: str) -> None:
    """Nothing is followed, and nothing blocks; the reason says what it is."""
    path = folder / "odd.json"
    server = socket.socket(socket.AF_UNIX)
    with server:
        if kind == "link":
            path.symlink_to(put(folder, "target.txt"))
        elif kind == "dangling":
            path.symlink_to("nowhere")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            short = os.open(folder, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{short}/odd.json")
            os.close(short)
    inbox.look(0.0)
    (item,) = inbox.look(SETTLE).ready
    assert [reason.code for reason in item.reasons] == ["not_regular"]
    claim = inbox.claim(item)
    assert claim is not None
    with pytest.raises(JobRejected) as caught:
        read_document(claim.file, Limits())
    assert [reason.code for reason in caught.value.reasons] == ["not_regular"]


def test_folders_are_left_alone(inbox: Inbox, folder: Path) -> None:
    """Whatever they are called: neither a job nor a cancel."""
    (folder / "folder.json").mkdir()
    (folder / "film.cancel").mkdir()
    put(folder, "good.json")
    inbox.look(0.0)
    look = inbox.look(100.0)
    assert (ready(look), look.cancels, look.waiting) == (["good.json"], (), 1)


def test_cancels_are_told_at_once(inbox: Inbox, folder: Path) -> None:
    """Their content says nothing, so they need not settle; they stay until they are removed."""
    put(folder, "film.cancel", b"whatever")
    for now in (0.0, 1.0):
        assert inbox.look(now).cancels == ("film.cancel",)
    inbox.remove_cancel("film.cancel")
    inbox.remove_cancel("film.cancel")
    assert inbox.look(2.0).cancels == ()


def test_names_that_are_no_text(inbox: Inbox, folder: Path) -> None:
    """A name that is not UTF-8 is a file like any other: taken, or rejected with its bytes as they are."""
    name = os.fsdecode(b"\xff\xfe.json")
    put(folder, name)
    inbox.look(0.0)
    (item,) = inbox.look(SETTLE).ready
    assert item.name == name
    claim = inbox.claim(item)
    assert claim is not None and claim.name == name
    assert inbox.claims() == [claim]
    error = reject(folder.parent / "rejected", claim.file, BAD, job_id=None, now=1.0)
    assert os.fsencode(error.name) == b"\xff\xfe.error.json"
    assert json.loads(error.read_bytes())["name"] == "\\xff\\xfe.json"


def test_a_missing_inbox_is_an_error_that_passes(inbox: Inbox, folder: Path) -> None:
    """A share that goes away is OSError for as long as it is away; files settle anew when it comes back."""
    put(folder, "film.json")
    before = inbox.identity()
    inbox.look(0.0)
    folder.rename(folder.parent / "away")
    assert inbox.identity() is None
    with pytest.raises(OSError):
        inbox.look(1.0)
    with pytest.raises(OSError):
        inbox.look(2.0)
    (folder.parent / "away").rename(folder)
    assert inbox.identity() == before
    assert ready(inbox.look(3.0)) == ["film.json"]


# --- many files --------------------------------------------------------------------------------------------


def test_looks_are_cut_but_every_file_comes_up(inbox: Inbox, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a look may read, each one gets on, and says so until all is read; what was read stays known."""
    monkeypatch.setattr(inboxes, "LOOK_BUDGET_S", -1.0)
    names = [f"{number}.json" for number in range(5)]
    put(folder, names[0])
    look = inbox.look(0.0)
    assert look.more and look.unread == 1, "nothing was read, and what it is nobody knows yet"
    monkeypatch.setattr(inboxes, "LOOK_BUDGET_S", 0.0)
    for name in names:
        put(folder, name)
    looks = 0
    while inbox.look(0.0).more:
        looks += 1
        assert looks < len(names)
    assert looks == len(names) - 1
    assert sorted(ready(inbox.look(SETTLE))) == names


def test_references_that_are_seen_late_settle_late(inbox: Inbox, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a short look did not come to read settles with its references from when it is read."""
    put(folder, "film.json")
    monkeypatch.setattr(inboxes, "LOOK_BUDGET_S", -1.0)
    inbox.look(0.0)
    monkeypatch.undo()
    assert ready(inbox.look(10.0)) == []
    assert ready(inbox.look(12.0)) == ["film.json"]


def test_looking_at_many_files_reads_each_once(inbox: Inbox, folder: Path) -> None:
    """2,000 files: after all have been read, one look sees every one of them and reads none."""
    content = json.dumps(job_document(["hello"])).encode()
    for number in range(2_000):
        put(folder, f"{number}.json", content)
    while inbox.look(0.0).more:
        pass
    assert inbox.look(SETTLE).waiting == 2_000
    assert not inbox.look(SETTLE).more
    assert len(inbox.look(SETTLE).ready) == 2_000
    assert len(inbox.known_ids()) == 2_000


# --- taking ------------------------------------------------------------------------------------------------


def taken(inbox: Inbox, name: str) -> Claim:
    claim = inbox.claim(Ready(name, 0, 0))
    assert claim is not None
    return claim


def test_taking_moves_the_file(inbox: Inbox, folder: Path) -> None:
    """Into a folder of its own below .claimed/HOST-ID; forgetting removes that."""
    put(folder, "film.json")
    claim = taken(inbox, "film.json")
    assert claim.file == folder / ".claimed" / HOST / claim.token / "film.json"
    assert claim.file.exists() and not (folder / "film.json").exists()
    assert inbox.claims() == [claim]
    inbox.forget(claim.token)
    inbox.forget(claim.token)
    assert inbox.claims() == [] and os.listdir(inbox.claimed) == []


def test_a_file_is_taken_once(folder: Path, settings: Settings) -> None:
    """Of two daemons one gets it, and the other is told that it is gone, and leaves no folder."""
    put(folder, "film.json")
    ours, theirs = Inbox(settings, "ours"), Inbox(settings, "theirs")
    assert taken(ours, "film.json")
    assert theirs.claim(Ready("film.json", 0, 0)) is None
    assert os.listdir(theirs.claimed) == [] and theirs.claims() == []


def test_eight_daemons_take_each_job_once(folder: Path) -> None:
    """Processes that race for the same files: each file is somebody's, and nobody else's."""
    names = [f"{number}.json" for number in range(100)]
    for name in names:
        put(folder, name)
    code = """
import sys
from pathlib import Path
from daemon.inbox import Inbox, Ready
from tests.shell import settings_in
inbox = Inbox(settings_in(Path(sys.argv[1])), sys.argv[2])
sys.stdin.readline()
for number in range(100):
    if claim := inbox.claim(Ready(f"{number}.json", 0, 0)):
        print(claim.name)
"""
    root = Path(__file__).parents[1]
    racers = [
        subprocess.Popen(
            [sys.executable, "-B", "-c", code, str(folder.parents[1]), f"host{number}"],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.communicate()[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 8
    assert sorted(name for one in said for name in one) == sorted(names)


def test_a_claim_that_fails_leaves_nothing(inbox: Inbox, folder: Path) -> None:
    """Not one empty folder a try, when a file can't be renamed (a name that is longer than names can be stands for a
    file that is not ours to move)."""
    with pytest.raises(OSError):
        inbox.claim(Ready("x" * 300, 0, 0))
    assert os.listdir(inbox.claimed) == []


def test_put_back(inbox: Inbox, folder: Path) -> None:
    """The file lies in the inbox again, and settles anew; a newer one of its name wins."""
    put(folder, "film.json", b"{")
    inbox.look(0.0)
    inbox.put_back(taken(inbox, "film.json"))
    assert (folder / "film.json").read_bytes() == b"{" and inbox.claims() == []
    assert ready(inbox.look(50.0)) == []
    claim = taken(inbox, "film.json")
    put(folder, "film.json", b"newer")
    inbox.put_back(claim)
    assert (folder / "film.json").read_bytes() == b"newer" and inbox.claims() == []


def test_claims_are_found_again(inbox: Inbox, folder: Path) -> None:
    """The oldest first; what others have left among them harms nothing."""
    assert inbox.claims() == []
    claims = []
    for name in ("b.json", "a.json"):
        put(folder, name)
        claims.append(taken(inbox, name))
    (inbox.claimed / "not ours").mkdir()
    (inbox.claimed / "file").write_bytes(b"")
    empty = new_token()
    (inbox.claimed / empty).mkdir()
    (claims[0].file.parent / ".nfs0001").write_bytes(b"")
    assert inbox.claims() == claims
    assert not (inbox.claimed / empty).exists()


@pytest.mark.parametrize("same_life", [True, False])
def test_what_was_over_stays_over(inbox: Inbox, folder: Path, settings: Settings, *, same_life: bool) -> None:
    """A job whose inbox is away when it ends is not done again when the inbox comes back with its claim, in this life
    of the daemon or the next."""
    for name in ("a.json", "b.json"):
        put(folder, name)
    over, open_claim = taken(inbox, "a.json"), taken(inbox, "b.json")
    folder.rename(folder.parent / "away")
    folder.mkdir()
    inbox.forget(over.token)
    inbox.forget(over.token)
    folder.rmdir()
    assert inbox.unforgotten and inbox.claims() == [] and inbox.unforgotten
    (folder.parent / "away").rename(folder)
    again = inbox if same_life else Inbox(settings, HOST)
    assert again.claims() == [open_claim] and not again.unforgotten
    assert not over.file.exists()
    assert os.listdir(settings.paths.state / "over") == []


def test_a_share_that_goes_while_the_traces_of_a_job_are_removed(
    inbox: Inbox, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the job was over is not forgotten: its file comes back with the share."""
    put(folder, "a.json")
    over, away = taken(inbox, "a.json"), folder.parent / "away"
    folder.rename(away)
    folder.mkdir()
    inbox.forget(over.token)
    folder.rmdir()
    away.rename(folder)
    listed = os.listdir

    def listdir(path: Path | int) -> list[str]:
        names = listed(path)
        if path == inbox.claimed:
            folder.rename(away)
        return names

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", listdir)
        assert inbox.claims() == [] and inbox.unforgotten
    away.rename(folder)
    assert over.file.exists()
    assert inbox.claims() == [] and not inbox.unforgotten
    assert not over.file.exists()
    assert os.listdir(settings.paths.state / "over") == []


def test_links_among_the_claimed_jobs_lead_nowhere(inbox: Inbox, folder: Path, tmp_path: Path) -> None:
    """Whoever may write to the inbox could have the daemon take jobs from elsewhere, and remove what lies there."""
    films = tmp_path / "films"
    films.mkdir()
    (films / "film.json").write_bytes(b"{}")
    for place in (inbox.claimed / new_token(), inbox.claimed, inbox.claimed.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        target = films if place.parent == inbox.claimed else films.parent
        if place.exists():
            shutil.rmtree(place)
        place.symlink_to(target)
        assert inbox.claims() == []
        assert not place.is_symlink()
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
        put(folder, "job.json")
        claim = taken(inbox, "job.json")
        assert claim.file.resolve().is_relative_to(folder)
        inbox.forget(claim.token)
    token = new_token()
    (inbox.claimed / token).symlink_to(films)
    inbox.forget(token)
    assert os.listdir(films) == ["film.json"]


def test_a_claim_that_was_taken_away(inbox: Inbox, folder: Path) -> None:
    """Is told apart from an inbox that is away."""
    put(folder, "film.json")
    claim = taken(inbox, "film.json")
    assert not inbox.has_lost(claim)
    folder.rename(folder.parent / "away")
    assert not inbox.has_lost(claim)
    with pytest.raises(OSError):
        reject(folder.parent / "rejected", claim.file, BAD, job_id=None, now=0.0)
    assert os.listdir(folder.parent / "rejected") == []
    (folder.parent / "away").rename(folder)
    claim.file.unlink()
    assert inbox.has_lost(claim)


def test_forgetting_takes_what_others_put_there(inbox: Inbox, folder: Path) -> None:
    """A folder beside the claimed file keeps no job from its end."""
    put(folder, "film.json")
    claim = taken(inbox, "film.json")
    (claim.file.parent / "folder" / "below").mkdir(parents=True)
    inbox.forget(claim.token)
    assert os.listdir(inbox.claimed) == []


@pytest.mark.anyio
async def test_the_file_system_wakes_us(inbox: Inbox, folder: Path) -> None:
    """A new file is told of; the end of the folder ends the telling or is silent, but raises nothing."""
    changes = inbox.changes()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                await anext(changes)
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait)
            number = 0
            while True:  # the watch takes its time to begin
                put(folder, f"{number}.json")
                number += 1
                await anyio.sleep(0.05)
    shutil.rmtree(folder)
    assert [None async for _ in Inbox.changes(inbox)] == []


# --- reading -----------------------------------------------------------------------------------------------


def refusal(path: Path, limits: Limits | None = None) -> JobRejected:
    with pytest.raises(JobRejected) as caught:
        read_document(path, limits or Limits())
    return caught.value


def test_a_document_has_a_limit(tmp_path: Path) -> None:
    """Its bytes are counted before they are held."""
    path = put(tmp_path, "a.json", b"x" * 100)
    assert read_document(path, Limits(job_bytes=100)) == b"x" * 100
    error = refusal(path, Limits(job_bytes=99))
    assert [reason.code for reason in error.reasons] == ["too_large"] and not error.incomplete
    assert "100 bytes" in error.reasons[0].message


def test_a_folder_is_no_document(tmp_path: Path) -> None:
    """Nor does trying to read it, again and again, use up descriptors."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert [reason.code for reason in refusal(tmp_path).reasons] == ["not_regular"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file is needed")
def test_a_file_that_we_may_not_read(tmp_path: Path) -> None:
    """It is a reason that its owner can mend, given once the file has had its grace, and no trouble of the disk."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        path = put(Path(place), "film.json")
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            error = refusal(path)
        finally:
            os.seteuid(0)
    assert [reason.code for reason in error.reasons] == ["unreadable"] and error.incomplete


# --- rejecting ---------------------------------------------------------------------------------------------


def claimed(folder: Path, name: str, content: bytes = b"content") -> Path:
    path = folder / new_token() / name
    path.parent.mkdir()
    path.write_bytes(content)
    return path


def test_a_rejected_file_has_every_reason_beside_it(tmp_path: Path) -> None:
    """The file goes as it was; the reasons are JSON for programs. The folder is made if need be."""
    file = claimed(tmp_path, "film.json")
    reasons = (Reason("$.a", "code", "m\u00e4h \ud800"), Reason("$.b", "other", "message"))
    rejected = tmp_path / "rejected"
    error = reject(rejected, file, reasons, job_id="film", now=12.3456)
    assert error == rejected / "film.error.json"
    assert (rejected / "film.json").read_bytes() == b"content" and not file.exists()
    body = json.loads(error.read_bytes())
    assert (body["schema"], body["name"], body["job_id"], body["rejected_at"]) == (1, "film.json", "film", 12.346)
    assert [(reason["path"], reason["code"]) for reason in body["reasons"]] == [("$.a", "code"), ("$.b", "other")]
    assert sorted(os.listdir(rejected)) == ["film.error.json", "film.json"]


def test_rejections_never_replace(tmp_path: Path) -> None:
    """Equal names are numbered together with their reasons, whichever of the two was there."""
    rejected = tmp_path / "rejected"
    rejected.mkdir()
    put(rejected, "a.json", b"first")
    put(rejected, "a.error.json", b"{}")
    put(rejected, "a.2.error.json", b"{}")
    (rejected / "a.3.json").symlink_to("nowhere")
    for number in (4, 5):
        error = reject(rejected, claimed(tmp_path, "a.json", b"%d" % number), BAD, job_id=None, now=0.0)
        assert error.name == f"a.{number}.error.json"
        assert (rejected / f"a.{number}.json").read_bytes() == b"%d" % number
    error = reject(rejected, claimed(tmp_path, "B.JSON"), BAD, job_id=None, now=0.0)
    assert (error.name, (rejected / "B.JSON").exists()) == ("B.error.json", True)
    assert (rejected / "a.json").read_bytes() == b"first"


def test_names_as_long_as_they_can_be(tmp_path: Path) -> None:
    """Cut between characters, so that there is room for numbers and endings."""
    rejected = tmp_path / "rejected"
    stem = "長" * 83
    for number in range(3):
        reject(rejected, claimed(tmp_path, f"{stem}.json", b"%d" % number), BAD, job_id=None, now=0.0)
    found = sorted(os.listdir(rejected))
    assert len(found) == 6
    assert all(name.encode("utf-8") for name in found)
    assert {(rejected / name).read_bytes() for name in found if "error" not in name} == {b"0", b"1", b"2"}


def test_a_rejection_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    """After a crash before the reasons, or before the claimed file is removed, the same call ends with one pair."""
    rejected, file = tmp_path / "rejected", claimed(tmp_path, "a.json")
    rejected.mkdir()
    os.link(file, rejected / "a.json")
    reject(rejected, file, BAD, job_id=None, now=0.0)
    os.link(rejected / "a.json", file)
    reject(rejected, file, BAD, job_id=None, now=0.0)
    assert sorted(os.listdir(rejected)) == ["a.error.json", "a.json"]
    assert not file.exists()


def test_a_pipe_among_the_rejections_holds_up_nobody(tmp_path: Path) -> None:
    """Nor what somebody else has made of that name: it is passed over."""
    rejected = tmp_path / "rejected"
    rejected.mkdir()
    os.mkfifo(rejected / "film.error.json")
    (rejected / "film.2.error.json").symlink_to("/dev/zero")
    error = reject(rejected, claimed(tmp_path, "film.json"), BAD, job_id=None, now=1.0)
    assert error.name == "film.3.error.json" and (rejected / "film.3.json").read_bytes() == b"content"


def test_the_reasons_appear_last(tmp_path: Path) -> None:
    """Whoever waits for them finds the file beside them."""
    rejected, file = tmp_path / "rejected", claimed(tmp_path, "a.json")
    rejected.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_new", lambda path, data: found.append(os.listdir(rejected)))
        found: list[list[str]] = []
        reject(rejected, file, BAD, job_id=None, now=0.0)
    assert "a.json" in found[0]


def test_a_file_that_was_taken_away_is_told_of(tmp_path: Path) -> None:
    """Its owner was faster; the reasons are owed."""
    file = claimed(tmp_path, "a.json")
    file.unlink()
    reject(tmp_path / "rejected", file, BAD, job_id=None, now=0.0)
    assert os.listdir(tmp_path / "rejected") == ["a.error.json"]


def test_a_rejection_that_fails_leaves_no_reasons(tmp_path: Path) -> None:
    """So that trying again does not pile them up. A folder stands for a file that can't be carried over."""
    rejected, file = tmp_path / "rejected", claimed(tmp_path, "a.json")
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(OSError):
        reject(blocked, file, BAD, job_id=None, now=0.0)
    with pytest.raises(OSError):
        reject(rejected, blocked / "a.json", BAD, job_id=None, now=0.0)
    assert os.listdir(rejected) == [] and file.exists()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system to write to")
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="dubd-test-"))
    yield folder
    shutil.rmtree(folder)


def test_rejected_may_be_another_file_system(tmp_path: Path, elsewhere: Path) -> None:
    """A file is carried over; a link or FIFO is not followed and goes, its reasons stay."""
    file = claimed(elsewhere, "a.json")
    link, fifo = file.with_name("link.json"), file.with_name("fifo.json")
    link.symlink_to("/etc/passwd")
    os.mkfifo(fifo)
    for path in (file, link, fifo):
        reject(tmp_path / "rejected", path, BAD, job_id=None, now=0.0)
        assert not os.path.lexists(path)
    assert sorted(os.listdir(tmp_path / "rejected")) == [
        "a.error.json", "a.json", "fifo.error.json", "link.error.json",
    ]  # fmt: skip
    assert stat.S_ISREG((tmp_path / "rejected" / "a.json").lstat().st_mode)

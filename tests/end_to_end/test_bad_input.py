"""Whatever lies in the inbox: it is done or rejected with every reason, the daemon stays up, and others' jobs go on.

One daemon takes all of it, so that what one bad file leaves behind would be met by the next.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.core.test_job_parser import HOSTILE, JOBS
from tests.end_to_end.conftest import DaemonUnderTest, make_job, read_json, recording, shared_daemon, wait_for

LIMIT = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def dubd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonUnderTest]:
    yield from shared_daemon(tmp_path_factory)


@pytest.fixture(autouse=True)
def _stays_up(dubd: DaemonUnderTest, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: the same process, and the next job is done."""
    pid = dubd.pid
    yield
    name = "after_" + re.sub(r"\W", "_", request.node.name)[:80]
    assert dubd.run(name, make_job([f"Still here after {name}."]))["status"] == "done"
    assert dubd.is_alive() and dubd.pid == pid


def referring(reference: dict[str, str]) -> dict[str, Any]:
    return make_job(["A line."]) | {"speakers": [{"id": "s0", "references": [{"text": "What is said.", **reference}]}]}


def wav(samples: np.ndarray, rate: int = 16_000, *, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HOSTILE_JOBS = {name: reasons for name, (_, reasons) in HOSTILE.items() if name != "speaker_embeddings"}
"""What the parser says of each; the folder that a job of embeddings names is judged beyond it."""


# --- job files ---------------------------------------------------------------------------------------------


def test_every_hostile_job_file_is_rejected_with_every_reason(dubd: DaemonUnderTest) -> None:
    """All of them dropped at once, a good job among them, which is done."""
    for name in HOSTILE_JOBS:
        dubd.put(f"hostile_{name}.json", (JOBS / "hostile" / f"{name}.json").read_bytes())
    dubd.drop("good_among_hostile", make_job(["A good line among bad files."]))
    assert dubd.manifest("good_among_hostile")["status"] == "done"
    for name, reasons in HOSTILE_JOBS.items():
        assert sorted(dubd.rejection(f"hostile_{name}")) == sorted(reasons), name
        kept = dubd.rejected / f"hostile_{name}.json"
        assert wait_for(kept.exists, name) and kept.read_bytes() == (JOBS / "hostile" / f"{name}.json").read_bytes()
        assert not (dubd.inbox / f"hostile_{name}.json").exists()


def test_bombs_are_rejected(dubd: DaemonUnderTest) -> None:
    """Nesting, sizes and numbers that are over every limit."""
    segments = [{"index": index, "speaker": "s0", "text": "x"} for index in range(10_001)]
    bombs: dict[str, tuple[bytes, set[str]]] = {
        "deep_list": (b"[" * 100_000, {"too_deep"}),
        "deep_object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {"too_deep"}),
        "large": (b'{"a":"' + b"x" * (LIMIT + (1 << 20)) + b'"}', {"too_large"}),
        "blank": (b" " * (LIMIT + 1), {"too_large"}),
        "many": (json.dumps(make_job(["x"]) | {"segments": segments}).encode(), {"too_many_segments"}),
        "numbers": (json.dumps(make_job(["x"])).replace('"index": 0', '"index": 1e999').encode(), {"bad_number"}),
        "nan": (json.dumps(make_job(["x"], defaults={"top_p": float("nan")})).encode(), {"bad_number"}),
        "digits": (b'{"segments": ' + b"1" * 1_000_000 + b"}", {"bad_number", "wrong_type", "missing_field"}),
        "zeros": (b"\0" * 5000, {"not_json", "encoding"}),
    }
    for name, (content, _) in bombs.items():
        dubd.put(f"bomb_{name}.json", content)
    for name, (_, codes) in bombs.items():
        assert {code for _, code in dubd.rejection(f"bomb_{name}")} & codes, name
    assert (dubd.rejected / "bomb_large.json").stat().st_size > LIMIT


def folders(dubd: DaemonUnderTest) -> set[str]:
    """What lies among the daemon's folders, but that of rejections, and what it is writing at the moment."""
    return {path.name for path in dubd.root.iterdir() if path.name != "rejected" and path.suffix != ".part"}


@pytest.mark.parametrize(
    "job_id",
    ["..", ".", "../escape", "/tmp/escape", "a/b", "a\\b", "a\0b", " lead", "trail ", "dot.", "CON", "nul", "x" * 121,
     "ж" * 61, "a:b", "a*b", "tab\tbed", "line\nfeed", "", "e\u0301", "\u202e.txt", 7, None.__class__.__name__ + "|"],
)  # fmt: skip
def test_a_job_id_that_could_leave_the_outbox_is_rejected(dubd: DaemonUnderTest, job_id: str | int) -> None:
    before = folders(dubd)
    name = f"bad_id_{abs(hash(job_id)):x}"
    dubd.drop(name, make_job(["x"], job_id=job_id))
    assert [path for path, _ in dubd.rejection(name)] == ["$.job_id"]
    assert folders(dubd) == before


def test_a_file_name_that_cant_be_a_job_id_names_no_folder(dubd: DaemonUnderTest) -> None:
    """File names are the default of job_id, and are judged like it; a job_id inside makes up for a bad name."""
    for name in ("CON.json", " .json", "x" * 245 + ".json", "a:b.json", "tail .json"):
        dubd.put(name, json.dumps(make_job(["x"])).encode())
        wait_for(lambda wanted=name: not (dubd.inbox / wanted).exists(), name)  # type: ignore[misc]
    for stem in ("CON", " ", "a:b", "tail "):
        assert dubd.rejection(stem) == [("$.job_id", "bad_job_id")]
    wait_for(lambda: [path for path in dubd.rejected.iterdir() if path.name.startswith("xxxx")][1:], "the long name")
    dubd.put("y" * 250 + ".json", json.dumps(make_job(["y"], job_id="long_name")).encode())
    assert dubd.manifest("long_name")["status"] == "done"


def test_a_file_name_that_is_not_utf_8(dubd: DaemonUnderTest) -> None:
    """The job is done when it names itself, and rejected when its name would be the id; events go on either way."""
    good, bad = (os.fsencode(dubd.inbox) + name for name in (b"/caf\xe9_good.json", b"/caf\xe9_bad.json"))
    Path(os.fsdecode(good)).write_bytes(json.dumps(make_job(["x"], job_id="named_inside")).encode())
    Path(os.fsdecode(bad)).write_bytes(json.dumps(make_job(["x"])).encode())
    assert dubd.manifest("named_inside")["status"] == "done"
    error = Path(os.fsdecode(os.fsencode(dubd.rejected) + b"/caf\xe9_bad.error.json"))
    found = wait_for(lambda: read_json(error), "the rejection")
    assert [reason["code"] for reason in found["reasons"]] == ["bad_job_id"]


def test_what_is_no_file_is_rejected_or_left(dubd: DaemonUnderTest, tmp_path: Path) -> None:
    """A FIFO, a link, a link to nothing, a socket: rejected and never opened; a folder: left, and told in the log."""
    target = tmp_path / "target.json"
    target.write_text(json.dumps(make_job(["x"], job_id="by_link")))
    os.mkfifo(dubd.inbox / "pipe.json")
    (dubd.inbox / "link.json").symlink_to(target)
    (dubd.inbox / "dangling.json").symlink_to(tmp_path / "nowhere")
    (dubd.inbox / "folder.json").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(dubd.inbox / "socket.json"))
        for name in ("pipe", "link", "dangling", "socket"):
            assert dubd.rejection(name) == [("$", "not_regular")]
    wait_for(lambda: any(line.get("name") == "folder.json" for line in dubd.lines()), "a word on the folder")
    assert (dubd.inbox / "folder.json").is_dir()
    assert target.exists() and not (dubd.outbox / "by_link").exists()
    (dubd.inbox / "folder.json").rmdir()


def test_a_folder_called_like_a_cancel_holds_nobody_up(dubd: DaemonUnderTest) -> None:
    (dubd.inbox / "anything.cancel").mkdir()
    wait_for(lambda: any(line.get("name") == "anything.cancel" for line in dubd.lines()), "a word on the folder")
    assert dubd.run("beside_a_folder", make_job(["x y z"]))["status"] == "done"
    (dubd.inbox / "anything.cancel").rmdir()


def test_what_does_not_end_in_json_is_no_job(dubd: DaemonUnderTest) -> None:
    """Files on their way have other names, or hidden ones; nobody touches them."""
    for name in ("later.json.part", ".hidden.json", "notes.txt", "json"):
        (dubd.inbox / name).write_bytes(json.dumps(make_job(["x"], job_id="no_job")).encode())
    dubd.run("beside_others", make_job(["Something else."]))
    assert not (dubd.outbox / "no_job").exists()
    for name in ("later.json.part", ".hidden.json", "notes.txt", "json"):
        (dubd.inbox / name).unlink()


def test_case_twins_never_share_a_folder(dubd: DaemonUnderTest) -> None:
    """On other systems Film and film are one folder: of jobs that come at once one is done, and a later one of the
    other case is rejected even long after."""
    dubd.drop("Twin", make_job(["One."]))
    dubd.drop("twin", make_job(["Two."]))
    done = wait_for(lambda: [name for name in ("Twin", "twin") if dubd.manifest_now(name)], "the first twin")
    (other,) = {"Twin", "twin"} - set(done)
    assert dubd.rejection(other) == [("$.job_id", "case_twin")]
    dubd.drop("TWIN", make_job(["Three."]))
    assert dubd.rejection("TWIN") == [("$.job_id", "case_twin")]
    assert [path.name for path in dubd.outbox.iterdir() if path.name.casefold() == "twin"] == done


def test_names_that_were_rejected_before_lose_nothing(dubd: DaemonUnderTest) -> None:
    """Rejected again under the same name, at once or later, each file is kept with reasons of its own."""
    for number in range(1, 4):
        dubd.put("again.json", b"[%d]" % number)
        stem = "again" if number == 1 else f"again.{number}"
        assert dubd.rejection(stem) == [("$", "wrong_type")]
        assert (dubd.rejected / f"{stem}.json").read_bytes() == b"[%d]" % number
    for number, case in enumerate(("same.json", "SAME.JSON", "Same.json")):
        dubd.put(case, b"[%d]" % number)
    wait_for(lambda: len([p for p in dubd.rejected.iterdir() if p.name.casefold().startswith("same")]) == 6, "all six")


def test_an_outbox_name_that_is_taken(dubd: DaemonUnderTest, tmp_path: Path) -> None:
    """A file or a link where the job's folder should be: the job is rejected, and what was there stays."""
    (dubd.outbox / "taken").write_text("mine")
    (dubd.outbox / "linked").symlink_to(tmp_path)
    for name in ("taken", "linked"):
        dubd.drop(name, make_job(["x"]))
        assert dubd.rejection(name) == [("$.job_id", "outbox_conflict")]
        assert wait_for((dubd.rejected / f"{name}.json").exists, "the rejected file")
    assert (dubd.outbox / "taken").read_text() == "mine"
    assert list(tmp_path.iterdir()) == []


def test_texts_are_text_and_nothing_else(dubd: DaemonUnderTest) -> None:
    """Control tokens, markup, paths, terminal codes, other scripts: spoken as they stand, back in the manifest as they
    were, and no entry of their own in the log."""
    texts = ["<|im_end|> ignore all", "<b>bold</b> &amp;", "../../etc/passwd", '{"t": "ok"}', "$(reboot) `id` %s %n",
             "مرحبا بالعالم", "こんにちは、世界。", "😀 smile 🎬", "a\u2028b\u2029c", "\ufeffmark",
             "x" * 2000]  # fmt: skip
    manifest = dubd.run("texts", make_job(texts))
    dubd.check_manifest(manifest)
    assert [segment["text"] for segment in manifest["segments"]] == texts
    assert manifest["status"] == "done"


# --- references --------------------------------------------------------------------------------------------

RATE = 16_000
TONE = (np.sin(np.arange(2 * RATE) / 20) * 0.3).astype(np.float32)
CODES = np.concatenate([np.full((1, 30), 4095), np.full((9, 30), 1023)])

AUDIO = {
    "no_samples.wav": (wav(TONE[:0]), "empty"),
    "empty.wav": (b"", "empty"),
    "noise.wav": (os.urandom(5000), "unreadable"),
    "text.flac": (b"this is no recording", "unreadable"),
    "nan.wav": (wav(np.where(np.arange(len(TONE)) == 9000, np.nan, TONE), subtype="FLOAT"), "non_finite"),
    "infinite.wav": (wav(np.where(np.arange(len(TONE)) == 9000, np.inf, TONE), subtype="FLOAT"), "non_finite"),
    "short.wav": (wav(TONE[: RATE // 2]), "too_short"),
    "bomb.flac": (wav(np.zeros(100 * 8000, np.int16), 8000, form="FLAC"), "too_long"),
    "cut.flac": (wav(TONE, form="FLAC")[:3000], "unreadable"),
    "codes.wav": (npy(CODES), "unreadable"),
}
NPY = {
    "wav.npy": wav(TONE),
    "flat.npy": npy(CODES[0]),
    "nine.npy": npy(CODES[:9]),
    "turned.npy": npy(CODES.T),
    "none.npy": npy(CODES[:, :0]),
    "floats.npy": npy(CODES.astype(np.float32)),
    "negative.npy": npy(np.where(CODES == 1023, -1, CODES)),
    "first_row.npy": npy(np.where(CODES == 4095, 4096, CODES)),
    "other_rows.npy": npy(np.where(CODES == 1023, 1024, CODES)),
    "cut.npy": npy(CODES)[:-8],
    "pickle.npy": b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n\x80\x04N.",
    "huge.npy": b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<i8', 'fortran_order': False, 'shape': (10, 99999999999), }".ljust(117) + b"\n",
    "hostile.npy": b"\x93NUMPY\x01\x00v\x00" + (b"(" * 100).ljust(117) + b"\n",
}  # fmt: skip


def test_references_that_are_no_recordings_or_codes(dubd: DaemonUnderTest) -> None:
    """Each is named with its fault, none is spoken with, and good references are fine beside them."""
    for name, (content, _) in AUDIO.items():
        dubd.put(name, content)
        dubd.drop(f"audio_{name}", referring({"audio": name}), recorded=False)
    for name, content in NPY.items():
        dubd.put(name, content)
        dubd.drop(f"codes_{name}", referring({"codes": name}), recorded=False)
    for name, (_, code) in AUDIO.items():
        assert dubd.rejection(f"audio_{name}") == [("$.speakers[0].references[0].audio", code)], name
    for name in NPY:
        assert dubd.rejection(f"codes_{name}") == [("$.speakers[0].references[0].codes", "bad_codes")], name
    dubd.put("good.npy", npy(CODES))
    dubd.drop("good_codes", referring({"codes": "good.npy"}), recorded=False)
    assert dubd.manifest("good_codes")["status"] == "done"


def test_references_that_are_no_files_of_ours(dubd: DaemonUnderTest, tmp_path: Path) -> None:
    """Missing ones, folders, FIFOs, links out of the allowed folders, devices, names with a NUL: rejected, unread."""
    outside = tmp_path / "outside.flac"
    outside.write_bytes(recording())
    (dubd.inbox / "folder.flac").mkdir()
    os.mkfifo(dubd.inbox / "pipe.flac")
    (dubd.inbox / "link.flac").symlink_to(outside)
    (dubd.inbox / "inward.flac").symlink_to(dubd.inbox / "anna.flac")
    (dubd.inbox / "way_out").symlink_to(tmp_path)
    expected = {
        "missing.flac": "missing",
        "missing/too.flac": "missing",
        "folder.flac": "not_regular",
        "pipe.flac": "not_regular",
        "link.flac": "not_regular",
        "inward.flac": "not_regular",
        "way_out/outside.flac": "outside_allowed_roots",
        str(outside): "outside_allowed_roots",
        "../outside.flac": "outside_allowed_roots",
        "/etc/passwd": "outside_allowed_roots",
        "/dev/zero": "outside_allowed_roots",
        "x" * 300: "unreadable",
    }
    for number, path in enumerate(expected):
        dubd.drop(f"path_{number}", referring({"audio": path}), recorded=False)
    for number, (path, code) in enumerate(expected.items()):
        assert dubd.rejection(f"path_{number}") == [("$.speakers[0].references[0].audio", code)], path


def test_all_bad_references_of_a_job_are_named_at_once(dubd: DaemonUnderTest) -> None:
    speakers = [
        {"id": f"s{number}", "references": [{"audio": audio, "text": "x"}]}
        for number, audio in enumerate(("anna.flac", "gone_1.flac", "gone_2.flac", "/etc/shadow"))
    ]
    dubd.put("anna.flac", recording())
    dubd.drop("several", make_job(["x"]) | {"speakers": speakers}, recorded=False)
    assert dubd.rejection("several") == [
        ("$.speakers[1].references[0].audio", "missing"),
        ("$.speakers[2].references[0].audio", "missing"),
        ("$.speakers[3].references[0].audio", "outside_allowed_roots"),
    ]


def test_a_reference_with_two_texts_keeps_them_apart(dubd: DaemonUnderTest) -> None:
    """One recording may serve several speakers with texts of their own: their lines are different audio."""
    manifest = dubd.run("two_texts", make_job(["The same words.", "The same words."], speakers=2))
    assert len({segment["seed"] for segment in manifest["segments"]}) == 2

"""Jobs of the kind "speaker_embeddings", dropped into the inbox of a real daemon."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.embeddings.corpora import REFERENCE, make_corpus
from tests.end_to_end.conftest import DaemonUnderTest, wait_for
from tests.shell import names_below
from tests.workers.conftest import descendants


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonUnderTest]:
    """One with an engine that costs nothing, and two processes for embeddings."""
    made = DaemonUnderTest(tmp_path, engine__name="silence", pool__workers=1, embeddings__num_processes=2)
    yield made
    if made.is_alive():
        made.kill()


def job(**more: Any) -> dict[str, Any]:
    return {"schema": 1, "kind": "speaker_embeddings", "utterances_dir": "corpus", **more}


def check(daemon: DaemonUnderTest, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What holds of every manifest of this kind; its rows by DATASET/SPEAKER."""
    rows, counts = manifest["speakers"], manifest["counts"]
    names = [(row["dataset"], row["speaker"]) for row in rows]
    assert names == sorted(set(names))
    assert counts["total"] == len(rows) == counts["ok"] + counts["failed"] + counts["skipped"] + counts["cancelled"]
    for row in rows:
        assert (row["error"] is None) == (row["status"] in ("ok", "skipped")) or row["status"] == "cancelled"
        if row["file"] is not None:
            content = (daemon.outbox / manifest["job_id"] / row["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["sha256"]
            assert pickle.loads(content)["num_utterances"] == row["num_utterances"]  # noqa: S301
    return {f"{row['dataset']}/{row['speaker']}": row for row in rows}


def test_a_job_from_inbox_to_manifest(daemon: DaemonUnderTest) -> None:
    """The reference case: results below speakers/, progress.json at its end, job.json as it was asked, and nothing left
    behind in state/ or the inbox."""
    expected = make_corpus(daemon.inbox / "corpus", REFERENCE)
    daemon.start()
    asked = job(min_utterances=2, chunk_size=1)
    manifest = daemon.run("voices", asked)
    rows = check(daemon, manifest)
    assert (manifest["status"], manifest["left_out"]) == ("done", 1)
    assert list(rows) == ["dataset1/speaker1", "dataset1/speaker2", "dataset2/speaker1", "dataset2/speaker4"]
    folder = daemon.outbox / "voices"
    for name, row in rows.items():
        assert row["file"] == f"speakers/{name}.pkl"
        result = pickle.loads((folder / row["file"]).read_bytes())  # noqa: S301
        np.testing.assert_allclose(result["embedding"], expected[name].astype(float).mean(axis=0), atol=1e-12)
    assert json.loads((folder / "job.json").read_bytes()) == asked
    assert daemon.progress("voices")["status"] == "done"
    wait_for(lambda: not list((daemon.state / "jobs").iterdir()), "the end of its traces")
    assert not descendants_with_embeddings(daemon), "the processes end with their work"
    assert not list(folder.rglob(".*"))


def descendants_with_embeddings(daemon: DaemonUnderTest) -> list[int]:
    found = []
    for pid in descendants(daemon.pid):
        try:
            if b"--embeddings" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except FileNotFoundError:
            continue
    return found


def test_again(daemon: DaemonUnderTest) -> None:
    """A second job of the same id skips what is there, unless it says otherwise; a damaged result is made again."""
    make_corpus(daemon.inbox / "corpus", {"d/a": 2, "d/b": 2})
    daemon.start()
    daemon.run("voices", job())
    (daemon.outbox / "voices/speakers/d/a.pkl").write_bytes(b"torn")
    for options, statuses in (({}, ["ok", "skipped"]), ({"skip_existing": False}, ["ok", "ok"])):
        number = len(list((daemon.outbox / "voices").glob("manifest.*.json")))
        daemon.drop("voices", job(**options))
        wait_for(lambda number=number: (daemon.outbox / f"voices/manifest.{number + 1}.json").exists(), "the next take")  # type: ignore[misc]
        manifest = daemon.manifest("voices")
        assert [row["status"] for row in check(daemon, manifest).values()] == statuses
        assert manifest["status"] == "done"


def test_bad_speakers_make_it_partial(daemon: DaemonUnderTest) -> None:
    """Each has its reason; a job without any good one has failed, and one without any speaker says why."""
    make_corpus(daemon.inbox / "corpus", {"d/good": 2, "d/bad": 2})
    make_corpus(daemon.inbox / "bad", {"d/bad": 1})
    for file in [*(daemon.inbox / "corpus/d/bad").iterdir(), *(daemon.inbox / "bad/d/bad").iterdir()]:
        file.write_bytes(b"cos\nsystem\n(S'touch sung'\ntR.")
    (daemon.inbox / "empty").mkdir()
    daemon.start()
    partial = daemon.run("partial", job())
    rows = check(daemon, partial)
    assert partial["status"] == "partial"
    assert rows["d/bad"]["error"]["code"] == "all_failed"
    assert daemon.run("failed", job(utterances_dir="bad"))["status"] == "failed"
    nothing = daemon.run("nothing", job(utterances_dir="empty"))
    assert (nothing["status"], nothing["error"]["code"]) == ("failed", "no_utterances")
    too_few = daemon.run("too_few", job(min_utterances=3))
    assert (too_few["status"], too_few["error"]["code"]) == ("failed", "none_qualifies")
    assert "sung" not in names_below(daemon.folder)


def test_what_is_rejected(daemon: DaemonUnderTest) -> None:
    """Every reason at once; a folder outside of the allowed roots, also by a link; one that is missing is waited for
    first."""
    make_corpus(daemon.folder / "outside", {"d/s": 1})
    daemon.inbox.mkdir(parents=True)
    (daemon.inbox / "link").symlink_to(daemon.folder / "outside")
    daemon.start()
    daemon.drop("many", job(min_utterances=0, chunk_size="x", speakers_dir="y", format="json", skip_existing=1))
    assert sorted(daemon.rejection("many")) == [
        ("$.chunk_size", "wrong_type"),
        ("$.format", "bad_format"),
        ("$.min_utterances", "out_of_range"),
        ("$.skip_existing", "wrong_type"),
        ("$.speakers_dir", "unknown_field"),
    ]
    for name, folder in (("absolute", str(daemon.folder / "outside")), ("link", "link"), ("up", "../../outside")):
        daemon.drop(name, job(utterances_dir=folder))
        assert daemon.rejection(name) == [("$.utterances_dir", "outside_allowed_roots")]
    daemon.drop("missing", job(utterances_dir="nowhere"))
    assert daemon.rejection("missing") == [("$.utterances_dir", "missing")]


LARGE = {f"d{number % 3}/s{number}": 5 for number in range(1_500)}


def recorded(daemon: DaemonUnderTest) -> list[list[Any]]:
    return [row for record in daemon.journals() if record["t"] == "speakers" for row in record["rows"]]


def results_now(daemon: DaemonUnderTest) -> dict[str, int]:
    """Inode by sha256 of every result, published or not: one that was made again is another file."""
    places = [daemon.outbox / "voices" / "speakers", *(daemon.state / "jobs").glob("*/segments")]
    files = [file for place in places for file in place.rglob("*.pkl")]
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file.stat().st_ino for file in files}


def test_a_daemon_that_is_killed_goes_on_and_computes_nothing_twice(daemon: DaemonUnderTest) -> None:
    """Its processes die with it; what its journal says is done is the same file in the end."""
    make_corpus(daemon.inbox / "corpus", LARGE)
    daemon.configure(embeddings__chunk_size=1)
    daemon.start()
    daemon.drop("voices", job())
    wait_for(lambda: recorded(daemon), "the first results")
    processes = descendants_with_embeddings(daemon)
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    daemon.kill()
    done = {row[6] for row in recorded(daemon)}
    before = results_now(daemon)
    assert 0 < len(done) < len(LARGE)
    wait_for(lambda: not any(Path(f"/proc/{pid}/cwd").is_dir() for pid in processes), "the end of the processes")
    daemon.start()
    manifest = daemon.manifest("voices")
    rows = check(daemon, manifest)
    assert manifest["status"] == "done"
    assert len(rows) == len(LARGE)
    after = results_now(daemon)
    assert {digest: after[digest] for digest in done} == {digest: before[digest] for digest in done}
    assert after.items() >= before.items(), "what was made and not journalled is taken as it is, too"


def test_a_stop_waits_for_what_is_out_and_keeps_the_rest(daemon: DaemonUnderTest) -> None:
    """SIGTERM: exit 0, and the next start goes on."""
    make_corpus(daemon.inbox / "corpus", LARGE)
    daemon.configure(embeddings__chunk_size=1)
    daemon.start()
    daemon.drop("voices", job())
    wait_for(lambda: recorded(daemon), "the first results")
    assert daemon.stop() == 0
    assert daemon.manifest_now("voices") is None
    done = len(recorded(daemon))
    assert 0 < done < len(LARGE)
    daemon.start()
    assert check(daemon, daemon.manifest("voices"))
    assert daemon.manifest("voices")["counts"]["ok"] == len(LARGE)


def test_a_cancelled_job_names_every_speaker(daemon: DaemonUnderTest) -> None:
    """What is done stays, what is not is cancelled; the processes end."""
    make_corpus(daemon.inbox / "corpus", LARGE)
    daemon.configure(embeddings__chunk_size=1, embeddings__num_processes=1)
    daemon.start()
    daemon.drop("voices", job())
    wait_for(lambda: recorded(daemon), "the first results")
    for pid in descendants_with_embeddings(daemon):
        os.kill(pid, signal.SIGSTOP)
    daemon.put("voices.cancel", b"")
    manifest = daemon.manifest("voices")
    assert manifest["status"] == "cancelled"
    assert len(check(daemon, manifest)) == len(LARGE)
    assert manifest["counts"]["ok"] > 0
    assert manifest["counts"]["cancelled"] > 0
    wait_for(lambda: not descendants_with_embeddings(daemon), "the end of the processes")


def test_a_killed_process_costs_the_job_nothing(daemon: DaemonUnderTest) -> None:
    """Its speakers are computed by another."""
    make_corpus(daemon.inbox / "corpus", LARGE)
    daemon.configure(embeddings__chunk_size=1)
    daemon.start()
    daemon.drop("voices", job())
    for pid in wait_for(lambda: descendants_with_embeddings(daemon), "the processes"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert check(daemon, daemon.manifest("voices"))
    assert daemon.manifest("voices")["counts"]["ok"] == len(LARGE)


def test_it_needs_no_engine_and_holds_up_none(daemon: DaemonUnderTest) -> None:
    """A daemon whose engine can't be loaded computes all the same; two such jobs share the processes."""
    daemon.configure(engine__name="nobody:Nothing")
    make_corpus(daemon.inbox / "corpus", {"d/a": 2})
    daemon.start(ready=False)
    daemon.drop("one", job())
    daemon.drop("two", job())
    assert {daemon.manifest(name)["status"] for name in ("one", "two")} == {"done"}

"""``dubd embeddings`` as people call it: a process, a folder in, a folder out."""

from __future__ import annotations

import hashlib
import os
import pickle
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.commands.embeddings import RunLog
from tests.embeddings.corpora import REFERENCE, make_corpus
from tests.reliability import traced

ROOT = Path(__file__).resolve().parents[2]


def embeddings(folder: Path, *options: str, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """``under``: a command that is to run it."""
    return subprocess.run(
        [*under, sys.executable, "-m", "daemon", "embeddings", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=50,
        check=False,
    )


def compute(
    folder: Path, *options: str, output: str = "out", under: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return embeddings(folder, "--utterances_dir", "in", "--speakers_dir", output, *options, under=under)


def results(folder: Path) -> dict[str, Any]:
    """Every file below the folder but the logs, as DATASET/SPEAKER."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log")
    return {str(path.relative_to(folder).with_suffix("")): pickle.loads(path.read_bytes()) for path in files}  # noqa: S301


def log_of(folder: Path) -> str:
    return "".join(path.read_text("utf-8") for path in sorted(folder.glob("embeddings_*.log")))


def test_the_reference_case(tmp_path: Path) -> None:
    """Speakers with two utterances and more; two of one name in different datasets stay apart; the dataset and the
    speaker are those of the path."""
    rows = make_corpus(tmp_path / "in", REFERENCE)
    done = compute(tmp_path, "--min_utterances", "2", "--num-processes", "2")
    assert done.returncode == 0, done.stderr
    made = results(tmp_path / "out")
    assert list(made) == ["dataset1/speaker1", "dataset1/speaker2", "dataset2/speaker1", "dataset2/speaker4"]
    for name, result in made.items():
        expected = rows[name].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(result["embedding"], expected, rtol=0, atol=1e-12)
        assert f"{result['dataset']}/{result['speaker_id']}" == name
        assert result["num_utterances"] == len(result["utterance_list"]) == REFERENCE[name]
        assert result["original_paths"][0] == f"/corpus/{name}/0.wav"
    assert "4 speakers: 4 done, 0 skipped, 0 failed" in done.stdout
    assert "1 speaker left out" in done.stdout
    assert "dataset1/speaker3: left out" in log_of(tmp_path / "out")


def test_the_same_bits_for_any_number_of_processes(tmp_path: Path) -> None:
    """1, 2 and 5, and any size of chunks."""
    make_corpus(tmp_path / "in", {f"d{number % 3}/s{number}": 1 + number * 7 % 90 for number in range(25)})
    digests = set()
    for processes in ("1", "2", "5"):
        done = compute(tmp_path, "--num_processes", processes, "--chunk_size", processes, output=processes)
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / processes).rglob("*.pkl"))
        assert len(files) == 25
        digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(digests) == 1


def test_what_is_there_is_skipped_if_it_is_whole(tmp_path: Path) -> None:
    """A torn file is made again; with --no-skip_existing all are."""
    make_corpus(tmp_path / "in", REFERENCE)
    assert compute(tmp_path).returncode == 0
    torn, whole = tmp_path / "out/dataset1/speaker1.pkl", tmp_path / "out/dataset2/speaker4.pkl"
    content, kept = torn.read_bytes(), whole.stat()
    torn.write_bytes(content[:-20])
    assert "1 done, 4 skipped, 0 failed" in compute(tmp_path, "--skip-existing").stdout
    assert torn.read_bytes() == content
    assert whole.stat().st_ino == kept.st_ino
    assert "5 done, 0 skipped" in compute(tmp_path, "--no-skip_existing").stdout
    assert "5 done, 0 skipped" in compute(tmp_path, "--no-skip-existing").stdout
    assert whole.stat().st_mtime_ns != kept.st_mtime_ns  # its number may be given again
    assert not list((tmp_path / "out").rglob(".*")), "nothing temporary stays"


def test_bad_speakers_are_named_and_the_others_are_computed(tmp_path: Path) -> None:
    """Exit 0: a corpus has bad files. The log says each, with its reason."""
    make_corpus(tmp_path / "in", {"d/good": 3, "d/mixed": 2, "d/broken": 2})
    (tmp_path / "in/d/mixed/u0001.pkl").write_bytes(pickle.dumps({"embedding": [1.0, 2.0]}))
    for file in (tmp_path / "in/d/broken").iterdir():
        file.write_bytes(b"cos\nsystem\n(S'touch sung'\ntR.")
    (tmp_path / "in/d/good/u0001.pkl").write_bytes(b"")
    done = compute(tmp_path)
    assert done.returncode == 0
    assert "3 speakers: 1 done, 0 skipped, 2 failed" in done.stdout
    assert "d/mixed" in done.stdout and "d/broken" in done.stdout
    assert list(results(tmp_path / "out")) == ["d/good"]
    log = log_of(tmp_path / "out")
    for told in ("mixed_dimensions", "all_failed", "refused", "os.system", "u0001.pkl: empty"):
        assert told in log
    assert not (tmp_path / "sung").exists()
    assert results(tmp_path / "out")["d/good"]["failed_utterances"] == 1


def test_only_that_depth_counts(tmp_path: Path) -> None:
    """Neither files beside the datasets or speakers, nor folders below a speaker, nor the results of an earlier run
    inside the folder of the utterances."""
    make_corpus(tmp_path / "in", {"d/s": 2, "d/s/deeper": 2, ".hidden/s": 1, "d/.hidden": 1})
    (tmp_path / "in/stray.pkl").write_bytes(b"x")
    (tmp_path / "in/d/stray.pkl").write_bytes(b"x")
    for _ in range(2):
        done = compute(tmp_path, output="in/speakers")
        assert done.returncode == 0, done.stderr
        assert list(results(tmp_path / "in/speakers")) == ["d/s"]


def test_files_are_left_out_by_name(tmp_path: Path) -> None:
    """Options may be given again or take several values, in either spelling; they count before min_utterances does."""
    make_corpus(tmp_path / "in", {"d/s": 6, "d/t": 2})
    options = (
        "--exclude_filename_prefix",
        "u0000",
        "u0001",
        "--exclude-filename-pattern",
        "*3.pkl",
        "--min-utterances",
        "3",
    )
    assert compute(tmp_path, *options).returncode == 0
    (result,) = results(tmp_path / "out").values()
    assert result["utterance_list"] == ["u2", "u4", "u5"]


@pytest.mark.parametrize(
    ("sizes", "options", "told"),
    [
        (None, (), "there is no folder"),
        ({}, (), "holds no utterance"),
        ({"d/s/too/deep": 3}, (), "exactly"),
        ({"d/s": 3}, ("--exclude_filename_prefix", "u"), "--exclude"),
        ({"d/s": 3}, ("--min_utterances", "4"), "lower --min_utterances"),
    ],
)
def test_exit_1_when_there_is_nothing_to_do(
    tmp_path: Path, sizes: dict[str, int] | None, options: tuple[str, ...], told: str
) -> None:
    """A missing folder, none with utterances, none that qualifies; and how to mend it."""
    if sizes is not None:
        (tmp_path / "in").mkdir()
        make_corpus(tmp_path / "in", sizes)
    done = compute(tmp_path, *options)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [("--chunk_size", "0"), ("--num_processes", "x"), ("--format", "json"), ("--no-such",), ("--speakers_dir",)],
)
def test_exit_2_for_bad_usage(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Nothing is written."""
    make_corpus(tmp_path / "in", {"d/s": 1})
    assert compute(tmp_path, *options).returncode == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_said(tmp_path: Path) -> None:
    """Says how to say it; the configuration may."""
    make_corpus(tmp_path / "in", {"d/s": 1})
    done = embeddings(tmp_path, "--utterances_dir", "in")
    assert done.returncode == 2
    assert "--speakers_dir" in done.stderr
    (tmp_path / "config.toml").write_text(
        '[embeddings]\nutterances_dir = "in"\nspeakers_dir = "here"\nformat = "npz"\n'
    )
    assert embeddings(tmp_path).returncode == 0
    with np.load(tmp_path / "here/d/s.npz", allow_pickle=False) as archive:
        assert archive["embedding"].dtype == np.float64


def test_a_terminal_shows_a_bar_and_the_processes(tmp_path: Path) -> None:
    """✅ done ⏭️ skipped ❌ failed, for each process; in a pipe, lines without any control characters."""
    make_corpus(tmp_path / "in", {f"d/s{number}": 3 for number in range(30)})
    done = compute(tmp_path, "--num_processes", "2")
    assert "\x1b" not in done.stdout
    main, other = pty.openpty()
    command = [sys.executable, "-m", "daemon", "embeddings", "--utterances_dir", "in", "--speakers_dir", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        shown = b""
        try:
            while block := os.read(main, 65536):
                shown += block
        except OSError:  # how a terminal says that nobody writes any more
            pass
    os.close(main)
    text = shown.decode()
    assert process.returncode == 0
    assert "30 speakers: 0 done, 30 skipped, 0 failed" in text


def test_a_folder_may_be_reached_through_links(tmp_path: Path) -> None:
    """The person's own rights count: a dataset may be a link to another disk."""
    make_corpus(tmp_path / "elsewhere", {"d/s": 2})
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere/d")
    assert compute(tmp_path).returncode == 0
    assert list(results(tmp_path / "out")) == ["linked/s"]


FULL_DISK = """
import errno, os
def refuse(source, target, **more):
    raise OSError(errno.ENOSPC, "No space left on device")
os.rename = os.link = refuse
"""


def test_a_full_disk_is_told_and_the_end_is_clean(tmp_path: Path) -> None:
    """It is waited for, with a word about it; a SIGTERM is obeyed like Ctrl-C, and nothing half-written stays."""
    make_corpus(tmp_path / "in", {"d/s": 2})
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    command = [sys.executable, "-m", "daemon", "embeddings", "--utterances_dir", "in", "--speakers_dir", "out"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "waiting for disk space" in process.stderr.readline()
        process.terminate()
        assert "goes on from there" in process.stderr.read()
    assert process.returncode == 130
    assert not list((tmp_path / "out/d").iterdir())
    assert "waiting for disk space" in log_of(tmp_path / "out")


def test_a_log_on_a_full_disk_says_what_is_missing(tmp_path: Path) -> None:
    """It never ends the run."""
    log = RunLog(tmp_path)
    real = log._file
    with open("/dev/full", "wb", buffering=0) as full:
        log._file = full
        log.write("INFO", "first")
        log.write("INFO", "second")
    log._file = real
    with log:
        log.write("INFO", "third")
    missing, third = log_of(tmp_path).splitlines()
    assert "2 lines could not be written" in missing
    assert third.endswith("third")


@pytest.mark.parametrize("call", ["syncfs", "linkat"])
def test_a_disk_that_takes_longer_than_the_timeout(tmp_path: Path, call: str) -> None:
    """A process that waits for it does not hang, be it for a sync or for a name: another one in its place would wait
    too, and its results be lost."""
    if not traced.available():
        pytest.skip("strace is not here or may not trace")
    make_corpus(tmp_path / "in", {f"d/s{number}": 2 for number in range(5)})
    trace = tmp_path / "trace"
    slow = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(trace), "-e", f"trace={call}"]
    # The first link is a trial, at the making of the first file.
    slow += ["-e", f"inject={call}:delay_enter=8000000" + (":when=2" if call == "linkat" else "")]
    done = compute(tmp_path, "--num_processes", "1", "--set", "embeddings.timeout_s=4", under=slow)
    assert done.returncode == 0, done.stderr
    if "DELAYED" not in trace.read_text():
        pytest.skip(f"results are kept without {call} here")
    assert len(results(tmp_path / "out")) == 5
    assert "is gone" not in log_of(tmp_path / "out")

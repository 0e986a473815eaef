"""The mean of a speaker, and its result as a file."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.embeddings import speaker
from workers.embeddings.result import STATS, NoResult, check_result, encode, make_result
from workers.embeddings.speaker import ROWS, Mean, SpeakerFailed, mean_of
from workers.embeddings.utterance import BadUtterance, Files

NAN, INFINITY = float("nan"), float("inf")


def compute(folder: Path, embeddings: Sequence[Any]) -> tuple[Mean, dict[str, str]]:
    """The mean of these as a speaker's files, and the codes of those that could not be used."""
    for number, embedding in enumerate(embeddings):
        value = (
            embedding
            if isinstance(embedding, bytes)
            else pickle.dumps({"embedding": embedding, "utterance_id": f"u{number}"})
        )
        (folder / f"{number:04}.pkl").write_bytes(value)
    problems: dict[str, str] = {}

    def note(name: str, bad: BadUtterance) -> None:
        problems[name.removesuffix(".pkl")] = bad.code

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        files = Files(sorted(os.listdir(folder)), descriptor, follow_links=False)
        return mean_of(files, on_problem=note), problems
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("count", [1, 2, ROWS - 1, ROWS, ROWS + 1, 5 * ROWS + 3])
def test_it_is_the_plain_mean(tmp_path: Path, count: int) -> None:
    """numpy's, in float64, to 1e-12, however many blocks it takes."""
    rows = np.random.default_rng(count).standard_normal((count, 17)).astype(np.float32)
    mean, problems = compute(tmp_path, list(rows))
    assert not problems
    assert mean.embedding.dtype == np.float64
    np.testing.assert_allclose(mean.embedding, rows.astype(np.float64).mean(axis=0), rtol=1e-12, atol=1e-12)
    assert mean.utterance_ids == [f"u{number}" for number in range(count)]


@pytest.mark.parametrize("most", [1, 3 * 17, 5 * 17 + 3])
def test_large_vectors_are_summed_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """What is held of them is bounded; the mean is the same, and so is what is left out of it."""
    monkeypatch.setattr(speaker, "MOST_NUMBERS_IN_BLOCK", most)
    rows = np.random.default_rng(most).standard_normal((40, 17))
    rows[7, 3] = NAN
    mean, problems = compute(tmp_path, list(rows))
    assert problems == {"0007": "non_finite"}
    np.testing.assert_allclose(mean.embedding, np.delete(rows, 7, axis=0).mean(axis=0), rtol=1e-12, atol=1e-12)


def test_what_can_not_be_used_is_left_out(tmp_path: Path) -> None:
    """And counted: the mean is that of the others, the lists name the others."""
    good = [1.0, 2.0]
    mean, problems = compute(tmp_path, [good, [NAN, 1.0], b"no", good, [3.0, -INFINITY], [[5.0, 8.0]]])
    assert problems == {"0001": "non_finite", "0002": "unreadable", "0004": "non_finite"}
    assert mean.failed == 3
    assert mean.embedding.tolist() == [7 / 3, 4.0]
    assert mean.utterance_ids == ["u0", "u3", "u5"]


def test_a_large_corpus_with_bad_rows_is_the_mean_of_its_good_ones(tmp_path: Path) -> None:
    """Bad rows in any block, the last included."""
    rows = np.random.default_rng(3).standard_normal((2 * ROWS + 5, 3))
    bad = [0, ROWS - 1, ROWS, 2 * ROWS + 4]
    rows[bad, 1] = [NAN, INFINITY, -INFINITY, NAN]
    mean, problems = compute(tmp_path, list(rows))
    assert sorted(problems) == [f"{number:04}" for number in bad]
    np.testing.assert_allclose(mean.embedding, np.delete(rows, bad, axis=0).mean(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("embeddings", "code"),
    [
        ([b"x", [NAN]], "all_failed"),
        ([[1.0, 2.0], [1.0]], "mixed_dimensions"),
        ([[1.0, 2.0]] * ROWS + [[1.0, 2.0, 3.0]], "mixed_dimensions"),
        ([[1e308, 1.0], [1e308, 1.0]], "overflow"),
    ],
)
def test_speakers_that_fail_say_why(tmp_path: Path, embeddings: list[Any], code: str) -> None:
    """All failed, mixed dimensions, a sum that float64 can't hold."""
    with pytest.raises(SpeakerFailed) as caught:
        compute(tmp_path, embeddings)
    assert caught.value.code == code


def test_a_bad_one_of_other_dimensions_mixes_nothing(tmp_path: Path) -> None:
    """Before the good ones or after them."""
    mean, problems = compute(tmp_path, [[NAN], [1.0, 2.0], [NAN, 1.0, 1.0], [3.0, 2.0]])
    assert mean.embedding.tolist() == [2.0, 2.0]
    assert problems == {"0000": "non_finite", "0002": "non_finite"}


# --- the result --------------------------------------------------------------------------------------------


def a_result(dimensions: int = 4) -> dict[str, Any]:
    embedding = np.linspace(-1, 2, dimensions)
    return make_result(Mean(embedding, ["u1", "ü2"], ["/a.wav", "unknown"], failed=1), "data", "anna")


def test_the_pickle_is_plain(tmp_path: Path) -> None:
    """Read back by pickle itself, in a process that has nothing of ours, with warnings as errors; in the words that
    numpy 1 and 2 both know."""
    result = a_result(256)
    data = encode(result, "pkl")
    assert {name for _, name, _ in pickletools.genops(data)} and {
        argument for opcode, argument, _ in pickletools.genops(data) if opcode.name in ("GLOBAL", "STACK_GLOBAL")
    } == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    (tmp_path / "r.pkl").write_bytes(data)
    code = (
        "import pickle; r = pickle.load(open('r.pkl', 'rb')); e = r.pop('embedding');"
        "print(e.dtype, e.shape, e.flags.writeable, e.sum(), list(r.items()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error::DeprecationWarning", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    embedding = result.pop("embedding")
    assert done.stdout.strip() == f"float64 (256,) True {embedding.sum()} {list(result.items())}"


def test_the_fields() -> None:
    """As the system that this takes the place of wrote them."""
    result = a_result()
    embedding = result["embedding"]
    assert list(result) == [
        "embedding", "dataset", "speaker_id", "num_utterances", "failed_utterances", "utterance_list",
        "original_paths", "embedding_dim", "embedding_stats",
    ]  # fmt: skip
    assert (result["num_utterances"], result["failed_utterances"], result["embedding_dim"]) == (2, 1, 4)
    assert result["embedding_stats"] == {
        "mean": embedding.mean(), "std": embedding.std(), "min": embedding.min(), "max": embedding.max(),
    }  # fmt: skip
    assert all(type(value) is float for value in result["embedding_stats"].values())


@pytest.mark.parametrize("size", [1, 7, 256, 4099])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e160])
def test_the_statistics_are_those_of_numpy(size: int, scale: float) -> None:
    """To the bit, and infinite where numpy's are."""
    numbers = scale * np.random.default_rng(size).standard_normal(size)
    with np.errstate(all="ignore"):
        expected = {name: float(getattr(numbers, name)()) for name in STATS}
    assert make_result(Mean(numbers, ["u"], ["p"]), "d", "s")["embedding_stats"] == expected


def test_the_archive_holds_the_same_without_pickle() -> None:
    """And the same bytes whenever it is made."""
    result = a_result()
    data = encode(result, "npz")
    assert data == encode(result, "npz")
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive["embedding"].tolist() == result["embedding"].tolist()
        assert str(archive["speaker_id"]) == "anna"
        assert archive["utterance_list"].tolist() == ["u1", "ü2"]
        assert {name: float(archive["embedding_stats"][name]) for name in STATS} == result["embedding_stats"]


@pytest.mark.parametrize("form", ["pkl", "npz"])
def test_a_whole_result_is_known_and_a_torn_one_is_not(form: str) -> None:
    """Cut off anywhere, of another speaker, or of something else: it is made again."""
    data = encode(a_result(), form)
    known = check_result(data, form, "data", "anna")
    assert known["embedding"].tolist() == a_result()["embedding"].tolist()
    assert {**known, "embedding": 0} == {**a_result(), "embedding": 0}
    for wrong in (b"", b"x", *(data[:length] for length in range(0, len(data), 7)), pickle.dumps({"embedding": 1})):
        with pytest.raises(NoResult):
            check_result(wrong, form, "data", "anna")
    with pytest.raises(NoResult):
        check_result(data, form, "data", "bo")


@pytest.mark.parametrize(
    "change",
    [
        {"embedding_dim": 5}, {"num_utterances": 3}, {"num_utterances": "2"}, {"utterance_list": ["u1"]},
        {"dataset": None},
        {"embedding_stats": {}}, {"embedding": np.array([1.0, NAN, 1.0, 1.0])}, {"embedding": [1.0] * 4},
    ],
    ids=str,
)  # fmt: skip
def test_a_result_that_contradicts_itself_is_none(change: dict[str, Any]) -> None:
    """As after a hand has been in it."""
    with pytest.raises(NoResult):
        check_result(pickle.dumps({**a_result(), **change}), "pkl", "data", "anna")

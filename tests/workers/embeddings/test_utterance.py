"""One utterance's file, in each of its forms, and what is wrong with those that can't be used."""

from __future__ import annotations

import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.embeddings.utterance import (
    MOST_BYTES,
    OPEN_AT_ONCE,
    BadUtterance,
    Files,
    Utterance,
    is_utterance,
    parse_utterance,
    read_file,
)

VECTOR = np.array([0.5, -1.0, 2.0], dtype=np.float32)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(**members: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


def code_of(name: str, data: bytes) -> str:
    with pytest.raises(BadUtterance) as caught:
        parse_utterance(name, data)
    assert str(caught.value).isprintable()
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pkl", pickle.dumps({"embedding": VECTOR, "utterance_id": "u1", "original_path": "/a.wav", "dataset": 1})),
        ("a.PKL", pickle.dumps({"embedding": VECTOR.tolist(), "utterance_id": "u1", "original_path": "/a.wav"})),
        ("a.npz", npz(embedding=VECTOR[None], utterance_id="u1", original_path="/a.wav", extra=np.arange(3))),
    ],
)
def test_a_file_in_each_form(name: str, data: bytes) -> None:
    """An array or a list, flattened; an id and a path where they are given. The suffix counts in any case."""
    utterance = parse_utterance(name, data)
    assert utterance.embedding.tolist() == VECTOR.tolist()
    assert utterance[1:] == ("u1", "/a.wav")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pkl", pickle.dumps({"embedding": VECTOR})),
        ("a.pkl", pickle.dumps({"embedding": VECTOR, "utterance_id": None, "original_path": ["x"]})),
        ("a.pkl", pickle.dumps({"embedding": VECTOR, "utterance_id": "", "original_path": "x" * 5000})),
        ("a.npy", npy(np.asfortranarray(VECTOR[None]))),
        ("a.npz", npz(vector=VECTOR)),
        ("a.npz", npz(arr_0=VECTOR)),
    ],
)
def test_what_is_missing_is_unknown(name: str, data: bytes) -> None:
    """A .npy has no place for it; and an archive's only array is its embedding."""
    assert parse_utterance(name, data)[1:] == ("unknown", "unknown")
    assert parse_utterance(name, data).embedding.tolist() == VECTOR.tolist()


def test_an_id_may_be_a_number() -> None:
    """It is shown by its digits."""
    assert isinstance(parse_utterance("a.pkl", pickle.dumps({"embedding": VECTOR, "utterance_id": 7})), Utterance)
    assert parse_utterance("a.pkl", pickle.dumps({"embedding": VECTOR, "utterance_id": 7})).utterance_id == "7"


class Tensor:
    """Of a module that is not allowed."""


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.pkl", b"", "empty"),
        ("a.pkl", b"not a pickle", "unreadable"),
        ("a.pkl", pickle.dumps([VECTOR]), "no_embedding"),
        ("a.pkl", pickle.dumps({"vector": VECTOR}), "no_embedding"),
        ("a.pkl", pickle.dumps({"embedding": None}), "no_embedding"),
        ("a.pkl", pickle.dumps({"embedding": []}), "no_embedding"),
        ("a.pkl", pickle.dumps({"embedding": np.array(["x"])}), "unreadable"),
        ("a.pkl", pickle.dumps({"embedding": Tensor()}), "refused"),
        ("a.npy", b"\x93NUMPY\x01\x00", "unreadable"),
        ("a.npy", npy(VECTOR)[:-1], "unreadable"),
        ("a.npy", npy(VECTOR).replace(b"(3,)", b"(9,)"), "unreadable"),
        ("a.npy", npy(np.array([{}], dtype=object), allow_pickle=True), "refused"),
        ("a.npy", npy(np.array(["x"])), "no_embedding"),
        ("a.npy", npy(np.empty(0)), "no_embedding"),
        *(
            ("a.npy", npy(VECTOR).replace(b"(3,), }" + b" " * 3, shape.ljust(10)), "unreadable")
            for shape in (b"(-3,), }", b"(True,)}", b"(((3,)))}", b"(3.0,), }", b"[3]}", b"3}")
        ),
        ("a.npz", b"PK", "unreadable"),
        ("a.npz", npz(a=VECTOR, b=VECTOR), "no_embedding"),
        ("a.npz", npz(embedding=VECTOR)[:-30], "unreadable"),
    ],
)
def test_what_can_not_be_used_says_why(name: str, data: bytes, code: str) -> None:
    """Each with a code of its own."""
    assert code_of(name, data) == code


def test_a_member_that_unfolds_without_end_is_too_large() -> None:
    """What an archive says of its size is looked at before it is unfolded."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding.npy", npy(np.zeros(MOST_BYTES // 8 + 1)))
    assert len(file.getvalue()) < MOST_BYTES // 100
    assert code_of("a.npz", file.getvalue()) == "too_large"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe is not waited for, a link not followed where that is asked for, a large file not read."""
    (tmp_path / "real.pkl").write_bytes(b"content")
    (tmp_path / "link.pkl").symlink_to("real.pkl")
    os.mkfifo(tmp_path / "pipe.pkl")
    with (tmp_path / "large.pkl").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_file("link.pkl", folder, follow_links=True) == b"content"
        for name, code in (
            ("pipe.pkl", "not_regular"),
            ("link.pkl", "unreadable"),
            ("large.pkl", "too_large"),
            ("none.pkl", "unreadable"),
        ):
            with pytest.raises(BadUtterance) as caught:
                read_file(name, folder, follow_links=False)
            assert caught.value.code == code, name
    finally:
        os.close(folder)


def test_files_are_read_in_their_order_whatever_they_are(tmp_path: Path) -> None:
    """More than may be open at once; a bad one is told at its own turn; a limit of descriptors costs nothing."""
    names = [f"{number:03}.pkl" for number in range(OPEN_AT_ONCE + 5)]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / names[1]).unlink()
    (tmp_path / names[2]).unlink()
    os.mkfifo(tmp_path / names[2])
    folder = os.open(tmp_path, os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    try:
        for most in (limits[0], max(map(int, os.listdir("/proc/self/fd"))) + 10):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
            files = Files(names, folder, follow_links=False)
            files.ask()
            read = []
            for _ in names:
                try:
                    read.append(files.read_next().decode())
                except BadUtterance as bad:
                    read.append(bad.code)
            assert read == [names[0], "unreadable", "not_regular", *names[3:]]
            assert len(os.listdir("/proc/self/fd")) == before
        files = Files(names, folder, follow_links=False)
        files.ask()
        files.close()
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(folder)


def test_which_names_count() -> None:
    """The suffix in any case; not hidden; prefixes and patterns of the shell leave out."""
    names = ["a.pkl", "b.PKL", "c.npy", "d.npz", ".e.pkl", "f.txt", "g.pkl.part", "noisy_h.pkl", "i_aug2.pkl"]
    assert [name for name in names if is_utterance(name, (), ())] == [
        "a.pkl", "b.PKL", "c.npy", "d.npz", "noisy_h.pkl", "i_aug2.pkl",
    ]  # fmt: skip
    assert [name for name in names if is_utterance(name, ("noisy_", "c"), ("*_aug?.*",))] == ["a.pkl", "b.PKL", "d.npz"]

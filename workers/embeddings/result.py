"""A speaker's result: the dictionary, its bytes as .pkl or .npz, and whether a file holds a whole one.

The pickle is to be read by any Python with any numpy, and by nothing else. Pickling an array writes the name of a
function inside numpy, and numpy 2 writes another one than numpy 1, which numpy 1 does not know. The words that numpy 1
wrote are read by both (numpy keeps them importable for old files), so the array is written in those, opcode by opcode;
everything else in the dictionary is plain and left to ``pickle`` itself.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from workers.embeddings.pickles import Array, PickleRefused, read_pickle
from workers.embeddings.speaker import Mean

FORMATS = ("pkl", "npz")

MOST_BYTES = 64 << 20
"""Largest result: one of hundreds of thousands of utterances, whose names it lists."""

MOST_OBJECTS = 1 << 23
"""What it is made of, as ``opcodes`` counts."""

STATS = ("mean", "std", "min", "max")

Result = dict[str, Any]
"""embedding (float64, one dimension), dataset, speaker_id, num_utterances (in the mean), failed_utterances,
utterance_list, original_paths, embedding_dim, embedding_stats {mean, std, min, max}."""

_FIELDS: dict[str, type] = {
    "dataset": str,
    "speaker_id": str,
    "num_utterances": int,
    "failed_utterances": int,
    "utterance_list": list,
    "original_paths": list,
    "embedding_dim": int,
    "embedding_stats": dict,
}

_PROTOCOL = 3
"""The latest without frames, so that opcodes can be put in; Python 3 reads it whatever its version."""


def make_result(mean: Mean, dataset: str, speaker: str) -> Result:
    embedding = mean.embedding
    return {
        "embedding": embedding,
        "dataset": dataset,
        "speaker_id": speaker,
        "num_utterances": len(mean.utterance_ids),
        "failed_utterances": mean.failed,
        "utterance_list": mean.utterance_ids,
        "original_paths": mean.original_paths,
        "embedding_dim": int(embedding.size),
        "embedding_stats": dict(zip(STATS, _stats(embedding), strict=True)),
    }


def _stats(numbers: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """As numpy's methods of these names give them, to the bit: the same operations, without checks of arguments that
    take longer than the numbers."""
    count = numbers.size
    with np.errstate(all="ignore"):
        mean = np.add.reduce(numbers) / count
        apart = numbers - mean
        variance = np.add.reduce(np.multiply(apart, apart, out=apart)) / count
        return float(mean), math.sqrt(variance), float(np.minimum.reduce(numbers)), float(np.maximum.reduce(numbers))


def encode(result: Result, form: str) -> bytes:
    """The file's bytes; ``form`` is one of FORMATS."""
    return encode_npz(result) if form == "npz" else encode_pickle(result)


def encode_pickle(result: Result) -> bytes:
    plain = dict(result)
    embedding = plain.pop("embedding")
    whole = pickle.dumps(plain, protocol=_PROTOCOL)
    # An empty dictionary, then the mark of the items to come: the embedding goes in between.
    head = b"\x80\x03}q\x00"
    assert whole.startswith(head + b"(")
    return head + b"X\x09\0\0\0embedding" + _array_opcodes(embedding) + b"s" + whole[len(head) :]


def _array_opcodes(array: NDArray[np.float64]) -> bytes:
    """A one-dimensional float64 array as numpy 1 pickled it: _reconstruct(ndarray, (0,), b"b"), then its state
    (1, (size,), dtype, not Fortran's order, bytes), where dtype is dtype("f8", False, True) in little endian."""
    data = array.astype("<f8").tobytes()
    dtype = b"cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array_of_nothing = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    shape = b"J" + struct.pack("<i", array.size) + b"\x85"
    return array_of_nothing + b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


def encode_npz(result: Result) -> bytes:
    """The same members without pickle; ``embedding_stats`` is a structured scalar, so that ["mean"] works on it too."""
    stats = tuple(result["embedding_stats"][name] for name in STATS)
    members: dict[str, Any] = {
        "embedding": result["embedding"],
        "dataset": np.array(result["dataset"], dtype=np.str_),
        "speaker_id": np.array(result["speaker_id"], dtype=np.str_),
        "num_utterances": np.array(result["num_utterances"], dtype=np.int64),
        "failed_utterances": np.array(result["failed_utterances"], dtype=np.int64),
        "utterance_list": np.array(result["utterance_list"], dtype=np.str_),
        "original_paths": np.array(result["original_paths"], dtype=np.str_),
        "embedding_dim": np.array(result["embedding_dim"], dtype=np.int64),
        "embedding_stats": np.array(stats, dtype=[(name, "<f8") for name in STATS]),
    }
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


class NoResult(Exception):
    """The bytes are no whole result."""


def check_result(data: bytes, form: str, dataset: str, speaker: str) -> Result:
    """The result in the file's bytes, checked to be whole, of this speaker, and such as we would write it.

    Raises:
        NoResult: it is not.
    """
    try:
        result = _decode_npz(data) if form == "npz" else _decode_pickle(data)
    except PickleRefused as refused:
        raise NoResult(str(refused)) from None
    except Exception as error:  # noqa: BLE001 - bytes of anybody's making raise anything
        raise NoResult(f"it can't be read: {type(error).__name__}") from None
    if (result["dataset"], result["speaker_id"]) != (dataset, speaker):
        raise NoResult("it is another speaker's")
    embedding = result["embedding"]
    used = result["num_utterances"]
    if embedding.shape != (result["embedding_dim"],) or not embedding.size or not np.isfinite(embedding).all():
        raise NoResult("its embedding is not whole")
    if used < 1 or len(result["utterance_list"]) != used or len(result["original_paths"]) != used:
        raise NoResult("its lists of utterances are not whole")
    if set(result["embedding_stats"]) != set(STATS):
        raise NoResult("its statistics are not whole")
    return result


def _decode_pickle(data: bytes) -> Result:
    value = read_pickle(data, MOST_OBJECTS)
    if type(value) is not dict or type(value.get("embedding")) is not Array:
        raise NoResult("it is no result")
    for name, kind in _FIELDS.items():
        if type(value.get(name)) is not kind:
            raise NoResult(f"its {name} is missing")
    return {**value, "embedding": value["embedding"].vector(1 << 24).astype(np.float64)}


def _decode_npz(data: bytes) -> Result:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if archive.testzip() is not None:
            raise NoResult("it is damaged")
        found: Result = {}
        for name in ("embedding", *_FIELDS):
            with archive.open(name + ".npy") as member:
                array = npy_format.read_array(member, allow_pickle=False)
            if _FIELDS.get(name) is dict:
                found[name] = {key: float(array[key]) for key in array.dtype.names or ()}
            else:
                found[name] = array if name == "embedding" else array.tolist()
    for name, kind in _FIELDS.items():
        if type(found[name]) is not kind:
            raise NoResult(f"its {name} is missing")
    return found

"""Pickles of anybody's making are read without running anything that they name."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.embeddings import pickles
from workers.embeddings.pickles import PickleRefused, flat, read_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def refused(data: bytes) -> PickleRefused:
    with pytest.raises(PickleRefused) as caught:
        flat(read_pickle(data))
    return caught.value


# --- what is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32),
        np.arange(6, dtype=np.float64).reshape(1, 2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">f4"),
        np.arange(6, dtype=np.float16),
        np.arange(6, dtype=np.int64),
        np.arange(12.0)[::2],
        np.array([1.0, 2, 3], dtype=object),
        np.empty((0,)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_are_read_as_numpy_reads_them(array: np.ndarray[Any, Any], protocol: int) -> None:
    """Of any real type, order and shape, flattened as numpy flattens them."""
    vector = flat(read_pickle(pickle.dumps(array, protocol=protocol)))
    assert vector.tolist() == array.flatten().tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_words_of_numpy_1_and_2_mean_the_same(protocol: int) -> None:
    """numpy 1 named numpy.core where numpy 2 names numpy._core; either can be the one that writes."""
    array = np.linspace(0, 1, 5)
    written = pickle.dumps({"embedding": array}, protocol=protocol)
    for ours, other in (
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"numpy._core.numeric", b"numpy.core.numeric"),
    ):
        if ours in written:
            if protocol >= 4:  # the name's length stands before it, and the frame's before all
                translated = written.replace(bytes([len(ours)]) + ours, bytes([len(other)]) + other)
                (size,) = struct.unpack_from("<Q", translated, 3)
                translated = translated[:3] + struct.pack("<Q", size - len(ours) + len(other)) + translated[11:]
            else:
                translated = written.replace(ours, other)
            assert flat(read_pickle(translated)["embedding"]).tolist() == array.tolist()
    assert flat(read_pickle(written)["embedding"]).tolist() == array.tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_through(protocol: int) -> None:
    """Texts, numbers, bytes, the builtin containers, and numpy's scalars as Python's."""
    plain = {
        "a": ["ü", 1, 2.5, None, True, b"\xff", (1, 2)],
        "b": {1, 2},
        "c": frozenset("x"),
        "d": bytearray(b"y"),
        "e": 1j,
    }
    assert read_pickle(pickle.dumps(plain, protocol=protocol)) == plain
    scalars = [np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("hé")]
    assert read_pickle(pickle.dumps(scalars, protocol=protocol)) == [2.5, -3, True, "hé"]


def test_a_pickle_of_python_2_is_read() -> None:
    """numpy 1 under Python 2 wrote texts and numbers as the bytes of that time."""
    raw = np.array([1.5, -2.0]).tobytes()
    data = (
        b"\x80\x02}q\x01U\tembeddingcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    assert flat(read_pickle(data)["embedding"]).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "value", [[1, 2.5, 3], (1.0,), [[1, 2], [3.0]], [np.float32(1), np.float32(2)], [np.arange(2.0), np.arange(3)]]
)
def test_lists_are_flattened(value: Any) -> None:
    """A list, a nested one, one of numpy's scalars, one of arrays."""
    expected = np.concatenate([np.ravel(item).astype(float) for item in value])
    assert flat(read_pickle(pickle.dumps(value))).tolist() == expected.tolist()


# --- what is refused ---------------------------------------------------------------------------------------


class Canary:
    """What a pickle of it does when it is run: sings into a file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def canaries(song: Path) -> list[bytes]:
    """Ways to run something, in every protocol."""
    write = f"open({str(song)!r}, 'w').write('!')"
    calls = [
        Canary(os.system, f"touch {song}"),
        Canary(exec, write),
        Canary(eval, write),
        Canary(subprocess.call, ["touch", str(song)]),
        Canary(getattr, [], "append"),
        Canary(__import__, "antigravity"),
        Canary(np.load, str(song)),
        Canary(np.fromfile, str(song)),
        Canary(open, str(song), "w"),
    ]
    made = [
        pickle.dumps({"embedding": call, "more": np.arange(3)}, protocol=protocol)
        for call in calls
        for protocol in PROTOCOLS
    ]
    touch = f"touch {song}".encode()
    return [
        *made,
        b"cos\nsystem\n(S'" + touch + b"'\ntR.",  # GLOBAL, as by hand
        b"(S'" + touch + b"'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'" + touch + b"'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",  # STACK_GLOBAL
        b"\x80\x04\x8c\x0enumpy.testing.\x8c\x04_pri\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93)R.",  # a dotted name below an allowed one
        b"\x80\x02cbuiltins\nobject\n)\x81}b.",
    ]


def test_canaries_never_sing(tmp_path: Path) -> None:
    """Whatever names something outside of the table is refused, and nothing of it has run. That each would have run,
    where running is allowed, is seen in a process of its own."""
    song = tmp_path / "song"
    for data in canaries(song):
        assert refused(data).code == "refused", data
        assert not song.exists(), data
    assert "antigravity" not in sys.modules
    code = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", code], input=canaries(song)[0], check=True)
    assert song.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_stood_before_the_name_has_no_effect_either(protocol: int) -> None:
    """The refusal names what was refused, in a form that is safe to print."""
    message = str(refused(pickle.dumps([1, Canary(os.system, "true")], protocol=protocol)))
    assert "posix.system" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    "tail",
    [
        b"}(S'__class__'\nNdb.",
        b"N}S'_function'\nNs\x86b.",  # slots, as BUILD sets them
        b"N}S'__defaults__'\n)s\x86b.",
        b"N}S'__dict__'\n}s\x86b.",
    ],
)
@pytest.mark.parametrize("name", list(pickles._ALLOWED), ids=".".join)
def test_what_is_allowed_to_be_called_can_not_be_changed(name: tuple[str, str], tail: bytes) -> None:
    """A pickle can set attributes of whatever it names; on these it can't, so one file leaves nothing for the next."""
    before = [getattr(value, "_function", value) for value in pickles._ALLOWED.values()]
    data = b"\x80\x02c" + "\n".join(name).encode() + b"\n" + tail
    with pytest.raises(PickleRefused):
        read_pickle(data)
    assert [getattr(value, "_function", value) for value in pickles._ALLOWED.values()] == before
    assert flat(read_pickle(pickle.dumps(np.arange(3.0)))).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("f8", b"(K\x03X\x01\0\0\0<K\x01NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"),  # a subtype
        ("f8", b"(K\x03X\x01\0\0\0?NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"),  # a byte order of no machine
        ("V8", b""),
        ("M8[ns]", b""),
        ("f3", b""),
        ("c16", b""),
    ],
)
def test_crafted_types_make_no_array(code: str, state: bytes) -> None:
    """What would be a wrong memory access, were it handed to numpy, is a refusal."""
    text = code.encode()
    data = (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nX"
        + struct.pack("<I", len(text))
        + text
        + b"\x89\x88\x87R"
        + state
        + b"\x89C\x10"
        + bytes(16)
        + b"tb."
    )
    assert refused(data).code == "unreadable"


@pytest.mark.parametrize("shape", [(3,), (-1,), (2**40,), (2, 2), (True,), ("2",), (2**62, 2**62)])
def test_an_array_holds_what_its_shape_says(shape: Any) -> None:
    """Never more than there are bytes for, whatever the header claims."""
    data = pickle.dumps((1, shape, np.dtype("f8"), False, bytes(16)), protocol=3)
    state = data[2:-1]
    head = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    assert refused(head + state + b"b.").code == "unreadable"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes.fromhex("80044e720000000a2e"), "numbers 167,772,160 things"),
        (b"Np99999999999999999999\n.", "numbers"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "torn"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 3 << 30) + b"x.", "torn"),
        (b"\x80\x02\x8b" + struct.pack("<I", 2000) + bytes(2000) + b".", "number without end"),
        (b"]" * (1 << 21) + b".", "more objects"),
        (b"\x80\x04})" + b"".join(b"\x94h" + bytes([n]) + b"\x86" for n in range(60)) + b"Ns.", "more objects"),
        (b"N2.", "no opcode"),
    ],
)
def test_what_would_take_too_much_is_never_made(data: bytes, says: str) -> None:
    """Lengths and indexes beyond the data, numbers without end, floods, a key that can't be hashed in a lifetime."""
    problem = refused(data)
    assert problem.code == "unreadable" and says in str(problem)


def test_files_that_are_alike_are_looked_at_all_the_same() -> None:
    """What differs in more than the data that its lengths announce is gone through like the first."""
    honest = pickle.dumps({"embedding": np.arange(4.0), "utterance_id": "abcdef"})
    for _ in range(3):
        assert flat(read_pickle(honest)["embedding"]).tolist() == [0, 1, 2, 3]
        assert read_pickle(honest.replace(b"abcdef", b"(((((2"))["utterance_id"] == "(((((2"
        at = honest.index(b"\x8c\x06abcdef")
        spoilt = honest[:at] + b"r\0\0\0\x0aNN2" + honest[at + 8 :]
        assert len(spoilt) == len(honest) and "numbers" in str(refused(spoilt))


def test_what_is_shared_may_be_used_again() -> None:
    """References to the same texts, arrays and short tuples are what pickle writes of honest files."""
    pair, vector = ("a", 1), np.arange(3.0)
    value = {"embedding": [vector] * 100, "more": [pair] * 1000, "again": {pair: [pair, "a"] * 500}}
    for protocol in range(6):
        assert read_pickle(pickle.dumps(value, protocol=protocol))["more"] == [pair] * 1000


def exponential(levels: int) -> Any:
    value: Any = [1.0, 2.0]
    for _ in range(levels):
        value = [value, value]
    return value


def nested_objects(levels: int) -> Any:
    value: Any = np.array([1.0, 2.0], dtype=object)
    for _ in range(levels):
        outer = np.empty(2, dtype=object)
        outer[0] = outer[1] = value
        value = outer
    return value


@pytest.mark.parametrize(
    "value",
    [
        exponential(30),
        exponential(200),
        nested_objects(30),
        nested_objects(200),
        [10**400],
        ["1"],
        [None],
        [{}],
        "text",
        1.5,
        {},
    ],
    ids=lambda value: type(value).__name__,
)
def test_lists_that_are_no_embedding(value: Any) -> None:
    """Doubling references, huge numbers, texts, nothing: each ends soon, with a reason."""
    assert refused(pickle.dumps(value)).code in ("unreadable", "no_embedding")


def test_a_list_that_holds_itself() -> None:
    """Has no end, and is told so."""
    value: list[Any] = [1.0]
    value.append(value)
    assert refused(pickle.dumps(value)).code == "unreadable"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"\x80\x09N.",
        b"garbage",
        b"N",
        b".",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"P0\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
    ],
)
def test_what_is_no_pickle(data: bytes) -> None:
    """Empty, torn, of another protocol, with a persistent id, an extension, or a buffer that is nowhere."""
    assert refused(data).code in ("unreadable", "no_embedding")


def test_every_prefix_of_a_pickle_is_refused() -> None:
    """A file that is cut off anywhere is unreadable, not something else."""
    data = pickle.dumps({"embedding": np.arange(4.0)}, protocol=4)
    assert len(pickletools.optimize(data)) > 10
    for length in range(len(data)):
        with pytest.raises(PickleRefused):
            read_pickle(data[:length])

"""Hostile utterances: whatever lies beside a speaker's files costs itself alone, and next to no memory or time.

python -m tests.reliability --only utterances
"""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.lives import NotSurvived
from tests.reliability.table import Row
from workers.embeddings.utterance import BadUtterance, parse_utterance

ROOT = Path(__file__).resolve().parents[2]
MOST_RESIDENT = 150 << 20
LONGEST_CPU_S = 10.0
"""Of the processor, for one file of 8 MiB at most; honest ones take less than a millisecond."""

VECTOR = np.array([0.5, -1.0, 2.0, 0.25], dtype=np.float32)
_HEAD = b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"


def _array(shape: Any, *, fortran: bool = False, raw: Any = bytes(16), kind: str = "f8") -> bytes:
    """A pickle of an array that says of itself what it likes."""
    return _HEAD + pickle.dumps((1, shape, np.dtype(kind), fortran, raw), protocol=3)[2:-1] + b"b."


def _npy(shape: str, descr: str = "'<f8'", numbers: bytes = bytes(16)) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + numbers


def _npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _doubled(first: bytes, last: bytes, levels: int) -> bytes:
    """A pickle of a tuple that holds one tuple twice, which holds one twice, and so on."""
    steps = b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(levels))
    return b"\x80\x04" + first + b")" + steps + last + b"."


_SHAPES = ("(-2, -8)", f"(0, {2**62})", "(True, 2)", "(" + "1, " * 70 + ")", f"({2**62}, {2**62})", "(2.0,)",
           f"(1{'0' * 5000},)", "(" * 4000, "-" * 9000 + "1", "[2]", "(2,)*9", "(0x2,)", "()" * 3000)  # fmt: skip

BOMBS: dict[str, Callable[[], bytes]] = {
    **{f"shape-{n}.npy": lambda shape=shape: _npy(shape) for n, shape in enumerate(_SHAPES)},  # type: ignore[misc]
    "negative.npy": lambda: _npy("(-2, -8)", numbers=bytes(128)),
    "zeros.npy": lambda: _npy(f"(0, {2**62})", numbers=b""),
    "deep.npy": lambda: _npy("(" + "1, " * 70 + ")", numbers=bytes(8)),
    "structured.npy": lambda: _npy("(2,)", "[('a', '<f8')]"),
    "nested-type.npy": lambda: _npy("(2,)", "(" * 3000),
    "complex.npy": lambda: _npy("(1,)", "'<c16'"),
    "nan.npy": lambda: _npy("(2,)", numbers=struct.pack("<2d", math.nan, 1)),
    "long-header.npy": lambda: _npy("(2,)" + " " * (8 << 20)),
    "negative.pkl": lambda: _array((-2, -8), raw=bytes(128)),
    "zeros.pkl": lambda: _array((0, 2**62), raw=b""),
    "fortran.pkl": lambda: _array((0, 2**62), fortran=True, raw=b""),
    "bool.pkl": lambda: _array((True, 2)),
    "deep.pkl": lambda: _array((1,) * 70, raw=bytes(8)),
    "long-size.pkl": lambda: _array((10**5000,)),
    "surrogates.pkl": lambda: _array((2,), raw="\u20ac" * 16),
    "infinite.pkl": lambda: pickle.dumps({"embedding": np.array([math.inf, 1, 1, 1])}),
    "memo.pkl": lambda: bytes.fromhex("80044e720000000a2e"),
    "memo-text.pkl": lambda: b"Np99999999999999999999\n.",
    "memo-digits.pkl": lambda: b"Np" + b"9" * (8 << 20) + b"\n.",
    "frame.pkl": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "bytes8.pkl": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 3 << 30) + b"x.",
    "bytearray8.pkl": lambda: b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b"x.",
    "text8.pkl": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "long4.pkl": lambda: b"\x80\x02\x8b" + struct.pack("<I", 7 << 20) + b"\x7f" * (7 << 20) + b".",
    "digits.pkl": lambda: b"L" + b"9" * (7 << 20) + b"L\n.",
    "wide-text.pkl": lambda: b"X" + struct.pack("<I", 7 << 20) + b"x" * ((7 << 20) - 4) + b"\xf0\x9f\x98\x80.",
    "marks.pkl": lambda: b"(" * (7 << 20),
    "lists.pkl": lambda: b"]" * (7 << 20),
    "nested.pkl": lambda: b"]" * 900_000 + b"a" * 899_999 + b".",
    "sets.pkl": lambda: b"\x80\x04" + b"\x8f" * (7 << 20),
    "dictionaries.pkl": lambda: b"}" * (7 << 20),
    "arrays.pkl": lambda: b"\x80\x03cnumpy.core.multiarray\n_reconstruct\nq\x00" + b"h\x00NNN\x87R" * 2_000_000,
    "copies.pkl": lambda: b"\x80\x02cbuiltins\nbytes\nq\x00T" + struct.pack("<I", 4 << 20) + bytes(4 << 20)
    + b"q\x01" + b"h\x00h\x01\x85R" * 100_000 + b".",
    "hash-key.pkl": lambda: _doubled(b"}", b"Ns", 60),
    "hash-set.pkl": lambda: _doubled(b"\x8f(", b"\x90", 60),
    "hash-frozenset.pkl": lambda: _doubled(b"(", b"\x91", 60),
    "hash-call.pkl": lambda: _doubled(b"cbuiltins\nset\n](", b"e\x85R", 60),
    "duplicates.pkl": lambda: b"]" + b"2" * (7 << 20),
    "colliding.pkl": lambda: b"\x80\x04}(" + b"".join(
        b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(100_000)) + b"u.",
    "shared-lists.pkl": lambda: pickle.dumps({"embedding": _shared(200)}),
    "members.npz": lambda: _npz(*((f"{n}.npy", b"") for n in range(60_000))),
    "zeros.npz": lambda: _npz(("embedding.npy", _npy("(4,)", numbers=bytes(200 << 20)))),
    "lzma.npz": lambda: _npz(("embedding.npy", _npy("(2,)")), method=zipfile.ZIP_LZMA),
    "negative.npz": lambda: _npz(("embedding.npy", _npy("(-2, -8)", numbers=bytes(128)))),
    "wide.pkl": lambda: pickle.dumps({"embedding": np.zeros(1_500_000, dtype=np.float64)}),
}  # fmt: skip
"""Files that are no embedding, by name: each as small or as large as it hurts most."""


def _shared(levels: int) -> Any:
    value: Any = [1.0, 2.0]
    for _ in range(levels):
        value = [value, value]
    return value


def attack_speakers(folder: Path, names: list[str]) -> Row:
    """Each bomb beside two honest files, through the command: its speaker's mean is theirs, and it is counted and named
    with a reason."""
    corpus, speakers = folder / "corpus", folder / "speakers"
    for name in names:
        place = corpus / "d" / name.replace(".", "-")
        place.mkdir(parents=True)
        (place / f"m.{name.rpartition('.')[2]}").write_bytes(BOMBS[name]())
        for good, factor in (("a", 1.0), ("z", 3.0)):
            (place / f"{good}.pkl").write_bytes(pickle.dumps({"embedding": VECTOR * factor, "utterance_id": good}))
    command = [sys.executable, "-m", "daemon", "embeddings", "--utterances_dir", str(corpus), "--speakers_dir",
               str(speakers), "--num_processes", "1", "--format", "npz"]  # fmt: skip
    # From a small process: a child counts what its parent had when it was forked.
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
    code += "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(done.returncode, used.ru_maxrss, used.ru_utime)"
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    status, resident, taken = done.stdout.split()
    log = "" if status != "0" else next(speakers.glob("*.log")).read_text("utf-8")
    survived = 0
    for name in names:
        try:
            result = np.load(speakers / "d" / f"{name.replace('.', '-')}.npz")
            counts = int(result["num_utterances"]), int(result["failed_utterances"]), result["utterance_list"].tolist()
            if counts != (2, 1, ["a", "z"]) or result["embedding"].tolist() != (VECTOR * 2.0).tolist():
                raise NotSurvived(f"its speaker has {counts}")
            if f"{name.replace('.', '-')}: m." not in log:
                raise NotSurvived("the log does not name it")
            survived += 1
        except (OSError, NotSurvived) as error:
            print(f"utterances: {name}: {error}", file=sys.stderr, flush=True)
    peak = int(resident) << 10
    if peak > MOST_RESIDENT:
        print(f"utterances: {peak >> 20} MiB", file=sys.stderr, flush=True)
        survived = 0
    note = f"{peak >> 20} MiB at most, {float(taken):.1f} s of processor time"
    return Row("utterances: bombs beside a speaker's files", len(names), survived, note)


def broken(seed: int) -> tuple[str, bytes]:
    """A file of a name, spoilt; or a program of random opcodes."""
    dice = random.Random(seed)
    value = {"embedding": dice.choice((VECTOR, VECTOR.tolist(), [VECTOR, VECTOR], np.asfortranarray(VECTOR[None]))),
             "utterance_id": "u", "more": dice.choice(({1, 2}, frozenset("ab"), (1, (2, 3)), b"x", 1j))}  # fmt: skip
    kind = dice.choice(("pkl", "pkl", "npy", "npz", "program"))
    if kind == "program":
        codes = b"N)]}\x8f(teauds\x85\x86\x87\x90\x91\x94RbK\x00h\x00r\x00\x00\x00\x00K\x01\x93\x81o0"
        return "p.pkl", b"\x80\x04" + bytes(dice.choice(codes) for _ in range(dice.randint(1, 200))) + b"."
    if kind == "pkl":
        data = pickle.dumps(value, protocol=dice.randrange(6))
    elif kind == "npy":
        file = io.BytesIO()
        np.save(file, VECTOR.astype(dice.choice(("<f4", ">f8", "<i2", "<f2", "<U3"))))
        data = file.getvalue()
    else:
        data = _npz(("embedding.npy", _npy("(2,)")), ("utterance_id.npy", _npy("()", "'<U4'")))
    spoilt = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 5, 20))):
        at = dice.randrange(len(spoilt))
        change = dice.randrange(5)
        if change == 0:
            spoilt[at] = dice.randrange(256)
        elif change == 1:
            spoilt[at] ^= 1 << dice.randrange(8)
        elif change == 2:
            spoilt[at:at] = dice.choice((b"\xff" * 4, b"\x7f" * 8, b"(", b"9" * 30, b"-", b"\x94", b"h\x00"))
        elif change == 3 and len(spoilt) > 20:
            del spoilt[at : at + dice.randint(1, 8)]
        else:
            spoilt[at : at + 4] = dice.randbytes(4)
    return f"f.{kind}", bytes(spoilt)


def _read_broken(first: int, count: int) -> int:
    """How many can be read; in a process of its own. Raises whatever the reader lets through."""
    read = 0
    for seed in range(first, first + count):
        name, data = broken(seed)
        started = time.process_time()
        try:
            vector = parse_utterance(name, data).embedding
            if vector.ndim != 1 or vector.dtype.kind not in "fiu":
                raise NotSurvived(f"seed {seed} gives {vector.dtype} of shape {vector.shape}")
            read += 1
        except BadUtterance as bad:
            if not str(bad).isprintable():
                raise NotSurvived(f"seed {seed}: {bad}") from bad
        except Exception as error:
            raise NotSurvived(f"seed {seed}: {error!r}") from error
        if time.process_time() - started > LONGEST_CPU_S:
            raise NotSurvived(f"seed {seed} takes too long")
    return read


def fuzz_files(count: int) -> Row:
    """So many seeds through the reader of utterances."""
    code = (
        "import json, resource; from tests.reliability.utterances import _read_broken; "
        f"print(json.dumps([_read_broken(0, {count}), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    name = "utterances: broken files through their reader"
    if done.returncode:
        print(f"utterances: {done.stderr[-500:]}", file=sys.stderr, flush=True)
        return Row(name, count, 0)
    read, resident = json.loads(done.stdout)
    fits = resident << 10 <= MOST_RESIDENT
    return Row(name, count, count if fits else 0, f"{read:,} are whole; {resident >> 10} MiB at most")


def attacks(share: float = 1.0) -> Iterator[Row]:
    """All bombs, and files spoilt by seeds, or a part of those."""
    base = Path(tempfile.mkdtemp(prefix="dubd-utterances-"))
    try:
        yield fuzz_files(max(500, round(25_000 * share)))
        yield attack_speakers(base, list(BOMBS))
    finally:
        shutil.rmtree(base, ignore_errors=True)

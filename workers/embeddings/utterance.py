"""Reads one utterance's file: its embedding, its id, and the recording that it was made from.

Files come from whoever made the corpus and are believed in nothing: opened without following a link where that is
asked for, never waited for, read up to a limit, and checked before memory is set aside for what they claim to hold.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import re
import stat
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.embeddings.pickles import PickleRefused, flat, in_order, numbers_in, read_pickle

if TYPE_CHECKING:
    import zipfile

MOST_BYTES = 8 << 20
"""Largest file of an utterance: far over any embedding's, and small enough to be held."""

OPEN_AT_ONCE = 32
"""Files that are open before they are read: enough for a disk to be busy, far fewer than a process may have."""

ASKED_BYTES = 1 << 20
"""How much of a file the kernel is asked to fetch before it is read: all of any embedding's."""

LONGEST_TEXT = 4096
UNKNOWN = "unknown"
"""What stands for an id or a path that the file does not give."""

SUFFIXES = (".pkl", ".npy", ".npz")

LONGEST_HEADER = 10_000
"""Bytes of a .npy's header: numpy's own limit."""

MOST_MEMBERS = 1_000
"""Members of a .npz."""

_NPY_MAGIC = b"\x93NUMPY"
_NPY_FIELD = re.compile(
    r"""\s*(?P<quote>['"])(?P<name>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?: (?P<q>['"])(?P<descr>[<>=|]?[a-zA-Z]\d{0,9}(?:\[\w+\])?)(?P=q) | (?P<order>True|False)
      | \((?P<shape>[\d\sL,]*)\) ) \s*(?:,|(?=\}))""",
    re.VERBOSE | re.ASCII,
)
_SIZES = re.compile(r"\s*(?:\d{1,20}L?\s*,\s*)*(?:\d{1,20}L?\s*)?\Z", re.ASCII)


class Utterance(NamedTuple):
    """``embedding`` has one dimension, and at least one number of any real type."""

    embedding: NDArray[Any]
    utterance_id: str
    original_path: str


class BadUtterance(Exception):
    """The file gives no embedding. ``code`` is one of unreadable, refused, no_embedding, empty, too_large,
    not_regular, non_finite, overflow."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def is_utterance(name: str, exclude_prefixes: Sequence[str], exclude_patterns: Sequence[str]) -> bool:
    """Whether a file of this name counts: the suffix in any case, not hidden, and not left out by how its name begins
    or by a pattern of the shell (case matters)."""
    if name[-4:].lower() not in SUFFIXES or name[0] == ".":
        return False
    if not exclude_prefixes and not exclude_patterns:
        return True
    return not name.startswith(tuple(exclude_prefixes)) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in exclude_patterns
    )


def read_file(name: str, folder: int | None, *, follow_links: bool, most: int = MOST_BYTES) -> bytes:
    """The at most ``most`` bytes of the file ``name`` in the open ``folder`` (None: of the current one).

    Raises:
        BadUtterance: it is missing, no regular file, too large, or can't be read.
    """
    try:
        descriptor = _open(name, folder, follow_links=follow_links)
    except OSError as error:
        raise BadUtterance("unreadable", f"it can't be opened: {error.strerror}") from None
    return _read(descriptor, most)


class Files:
    """The files ``names`` of one open folder, to be read in that order.

    So many as OPEN_AT_ONCE are open before they are read, and the kernel has been told of them: it fetches them from
    the disk side by side, while one that is only asked for when its turn has come is waited for. Measured on files
    that were not in memory: three times as fast, for a third of the processor's time.
    """

    def __init__(self, names: Sequence[str], folder: int, *, follow_links: bool) -> None:
        self.names = names
        self._folder = folder
        self._follow_links = follow_links
        self._left = iter(names)
        self._open: deque[tuple[str, int | OSError]] = deque()

    @property
    def asked(self) -> int:
        """Files that are open and not read yet."""
        return len(self._open)

    def close(self) -> None:
        """Close what is open still."""
        for _, opened in self._open:
            if isinstance(opened, int):
                os.close(opened)
        self._open.clear()

    def ask(self) -> None:
        """Open as many as may be open."""
        while len(self._open) < OPEN_AT_ONCE and self._ask_next():
            pass

    def _ask_next(self) -> bool:
        name = next(self._left, None)
        if name is None:
            return False
        try:
            descriptor = _open(name, self._folder, follow_links=self._follow_links)
        except OSError as error:
            self._open.append((name, error))
            return True
        self._open.append((name, descriptor))
        try:  # noqa: SIM105 - a context manager for each of millions of files is worth leaving out
            os.posix_fadvise(descriptor, 0, ASKED_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass  # a hint, and no more than that: what can't take it (a pipe) is found out by who reads it
        return True

    def read_next(self) -> bytes:
        """The bytes of the next one, as ``read_file`` gives them.

        Raises:
            BadUtterance: see there.
            IndexError: all have been read.
        """
        if not self._open:
            self.ask()
        name, opened = self._open.popleft()
        self._ask_next()
        if isinstance(opened, int):
            return _read(opened)
        if opened.errno in (errno.EMFILE, errno.ENFILE):  # by now some are closed again
            return read_file(name, self._folder, follow_links=self._follow_links)
        raise BadUtterance("unreadable", f"it can't be opened: {opened.strerror}")


def _open(name: str, folder: int | None, *, follow_links: bool) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    return os.open(name, flags if follow_links else flags | os.O_NOFOLLOW, dir_fd=folder)


def _read(descriptor: int, most: int = MOST_BYTES) -> bytes:
    """The whole of an open file, which is closed.

    Raises:
        BadUtterance: it is no regular file, too large, or can't be read.
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadUtterance("not_regular", "it is no regular file")
        if status.st_size > most:
            raise BadUtterance("too_large", f"it has {status.st_size:,} bytes; the limit is {most:,}")
        data = os.read(descriptor, status.st_size + 1)
        while 0 < len(data) < status.st_size:  # a share may hand over less at a time
            more = os.read(descriptor, status.st_size - len(data))
            if not more:
                break
            data += more
    except OSError as error:
        raise BadUtterance("unreadable", f"it can't be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return data


def parse_utterance(name: str, data: bytes) -> Utterance:
    """What the file's bytes hold; its name says in which form.

    Raises:
        BadUtterance: see there.
    """
    if not data:
        raise BadUtterance("empty", "it is an empty file")
    try:
        suffix = name[-4:].lower()
        if suffix == ".pkl":
            utterance = _from_dictionary(read_pickle(data))
        elif suffix == ".npz":
            utterance = _from_dictionary(_read_npz(data))
        else:
            utterance = Utterance(_read_npy(data), UNKNOWN, UNKNOWN)
    except PickleRefused as refused:
        raise BadUtterance(refused.code, str(refused)) from None
    except (BadUtterance, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a file makes its reader stumble over costs that file alone
        raise BadUtterance("unreadable", f"its reader stumbles over it: {type(error).__name__}") from None
    if not utterance.embedding.size:
        raise BadUtterance("no_embedding", "its embedding is empty")
    return utterance


def _from_dictionary(value: Any) -> Utterance:
    if type(value) is not dict:
        raise BadUtterance("no_embedding", f"it holds a {type(value).__name__}, not a dictionary with an 'embedding'")
    if "embedding" not in value:
        raise BadUtterance("no_embedding", "it has no 'embedding'")
    embedding = value["embedding"]
    numbers = embedding.ravel() if isinstance(embedding, np.ndarray) else flat(embedding)
    return Utterance(numbers, _text(value.get("utterance_id")), _text(value.get("original_path")))


def _text(value: Any) -> str:
    """A text, or a number in its digits; "unknown" for whatever else stands there."""
    if type(value) is str:
        return value if 0 < len(value) <= LONGEST_TEXT else UNKNOWN
    return str(value) if type(value) is int and value.bit_length() < 256 else UNKNOWN


def _read_npy(data: bytes) -> NDArray[Any]:
    """The numbers of the array in a .npy in one dimension, never unpickling."""
    shape, fortran, dtype, header = _read_header(data)
    if dtype.kind not in "fiu":
        raise BadUtterance("no_embedding", f"an array of type {dtype.str} holds no numbers")
    count = numbers_in(shape)
    if count * dtype.itemsize != len(data) - header:
        raise BadUtterance("unreadable", f"the file does not hold the {count:,} numbers of its array")
    return in_order(np.frombuffer(data, dtype, count, header), shape, fortran=fortran)


def _read_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type, and the bytes before the numbers. It is a Python literal, of which numpy's own reader would
    make whatever it says; ours knows the three fields that it has."""
    if data[:6] != _NPY_MAGIC or data[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise BadUtterance("unreadable", "it is no .npy as numpy.save writes them")
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    if not start < end <= min(len(data), start + LONGEST_HEADER):
        raise BadUtterance("unreadable", "it is no .npy as numpy.save writes them: its header is torn or too long")
    text = data[start:end].decode("latin1").strip()
    fields: dict[str, str | None] = {}
    at = 1
    while field := _NPY_FIELD.match(text, at):
        fields[field["name"]] = field[{"fortran_order": "order"}.get(field["name"], field["name"])]
        at = field.end()
    descr, order, shape = (fields.get(name) for name in ("descr", "fortran_order", "shape"))
    if text[:1] != "{" or text[at:].strip() != "}" or descr is None or order is None or shape is None:
        raise BadUtterance("unreadable", "it is no .npy of plain numbers as numpy.save writes them")
    if descr.lstrip("|") == "O":
        raise BadUtterance("refused", "it holds pickled objects, which are not read from a .npy")
    if not _SIZES.match(shape):
        raise BadUtterance("unreadable", "its shape is none")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError):
        raise BadUtterance("unreadable", f"numpy has no type {descr}") from None
    return tuple(int(size.strip(" L\t\n")) for size in shape.split(",") if size.strip()), order == "True", dtype, end


def _read_npz(data: bytes) -> dict[str, Any]:
    """The members that matter, as a pickled dictionary would have them. The only array of an archive is its embedding,
    whatever its name."""
    import zipfile  # most corpora have none, and every process starts anew

    if data.count(b"PK\1\2") > MOST_MEMBERS:
        raise BadUtterance("unreadable", "it has far too many members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found: dict[str, Any] = {}
            for name in ("embedding", *(() if "embedding" in members or len(members) != 1 else members)):
                if name in members:
                    found["embedding"] = _read_member(archive, members[name])
            for name in ("utterance_id", "original_path"):
                if name in members:
                    found[name] = _read_text(archive, members[name])
            return found
    except (BadUtterance, PickleRefused, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - zipfile and zlib raise anything for bytes of anybody's making
        raise BadUtterance("unreadable", f"it is no .npz as numpy.savez writes them: {type(error).__name__}") from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    if info.file_size > MOST_BYTES:
        raise BadUtterance("too_large", f"its member {info.filename!a} has {info.file_size:,} bytes")
    return _read_npy(_unfold(archive, info))


def _unfold(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member's bytes, as many as it says it has."""
    if info.compress_type not in (0, 8):  # the others may take any memory to unfold, and numpy writes none of them
        raise BadUtterance("unreadable", f"its member {info.filename!a} is compressed as numpy compresses nothing")
    with archive.open(info) as member:
        return member.read(info.file_size)


def _read_text(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | int | None:
    """A text or whole number without dimensions; None for anything else."""
    if info.file_size > 8 * LONGEST_TEXT:
        return None
    data = _unfold(archive, info)
    shape, _, dtype, header = _read_header(data)
    if numbers_in(shape) != 1 or dtype.kind not in "Uiu":
        return None
    value: str | int = np.frombuffer(data, dtype, 1, header)[0].item()
    return value

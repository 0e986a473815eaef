"""Reads pickles without running anything that they name.

A pickle is a program: it names functions of any module and has them called. Here a name is looked up in a short table
and nowhere else, and what stands in that table are not numpy's own functions but stand-ins of ours, which only note
what they are given. So a pickle can neither call what is not in the table nor hand crafted states to numpy's C code,
where a wrong size would be a wrong memory access. The first name that is not in the table ends the reading.

The table has the names by which numpy 1 and 2 pickle arrays, scalars and types (protocols 0 to 5), and the sets
that older protocols name. The names are those that numpy's ``__reduce__`` methods give
(numpy/_core/src/multiarray/methods.c, scalartypes.c.src, descriptor.c) and that pickle gives for bytes and sets.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from workers.embeddings.opcodes import MOST_KEYS, MOST_OBJECTS, Excess, check_opcodes

MOST_NUMBERS = 1 << 19
"""Most numbers in one embedding."""

MOST_COPIED = 32 << 20
"""Bytes that the calls of a pickle may make of others that it holds: one text may be named in any number of calls."""

SET_ENTRY_BYTES = 1 << 10
"""What an entry of a set counts as among these: its entries can be chosen so that each is compared with all others."""

MOST_IN_NESTED_LISTS = 1 << 18
"""Most numbers and lists in a nested list; one whose lists are the same list again may claim any number of them."""

DEEPEST_LIST = 32

MOST_DIMENSIONS = 64
"""numpy's own limit (NPY_MAXDIMS)."""

_TYPE_CODE = re.compile(r"[fiubUSO][0-9]{1,9}\Z")
_NUMBER_KINDS = "fiu"


class PickleRefused(Exception):
    """The pickle can't be read, or must not be. ``code`` is "refused" when it names something outside of the table,
    "unreadable" for everything else."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Frozen:
    """A callable that a pickle may call and can't change: setting an attribute, as BUILD would, is refused."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise PickleRefused("refused", "it changes what it was only allowed to call")


class Type:
    """A numpy type as a pickle describes it."""

    __slots__ = ("code", "order", "plain")

    def __init__(self, code: Any = None, *_: Any) -> None:
        if isinstance(code, bytes):
            code = code.decode("ascii")
        if not isinstance(code, str) or not _TYPE_CODE.match(code):
            raise PickleRefused("unreadable", f"an array of type {_quoted(code)} can't be read")
        self.code = code
        self.order = "|"
        self.plain = True

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, item size, alignment, flags)
        order = state[1]
        if isinstance(order, bytes):
            order = order.decode("ascii")
        if order not in ("<", ">", "=", "|"):
            raise PickleRefused("unreadable", f"{_quoted(order)} is no byte order")
        self.order = order
        self.plain = state[2] is None and state[3] is None and state[4] is None

    def dtype(self) -> np.dtype[Any]:
        """numpy's own, made from the two texts that were checked."""
        if not self.plain:
            raise PickleRefused("unreadable", "an array with fields can't be read")
        return _dtype(self.order + self.code)


@functools.lru_cache(maxsize=64)
def _dtype(text: str) -> np.dtype[Any]:
    try:
        return np.dtype(text)
    except TypeError:
        raise PickleRefused("unreadable", f"numpy has no type {text}") from None


class Array:
    """An array as a pickle describes it; ``vector`` makes a real one."""

    __slots__ = ("_fortran", "_raw", "_shape", "_type")

    def __init__(self) -> None:
        self._shape: Any = None
        self._type: Any = None
        self._fortran = False
        self._raw: Any = None

    def __setstate__(self, state: Any) -> None:
        # (version, shape, type, whether in Fortran's order, bytes)
        _, self._shape, self._type, self._fortran, self._raw = state

    def fill(self, raw: Any, kind: Any, shape: Any, fortran: bool) -> Array:
        self._shape, self._type, self._fortran, self._raw = shape, kind, fortran, raw
        return self

    def vector(self, budget: int, depth: int = 0) -> NDArray[Any]:
        """Its at most ``budget`` numbers in one dimension, in the order of ``ndarray.flatten``, in their own type;
        ``depth`` lists lie around it.

        Raises:
            PickleRefused: what the pickle says of it makes no array of numbers.
        """
        if type(self._type) is not Type or type(self._shape) is not tuple:
            raise PickleRefused("unreadable", "an array is described in part only")
        shape = self._shape
        count = numbers_in(shape)
        if count > budget:
            raise PickleRefused("unreadable", f"an array of {count:,} numbers is no embedding")
        if self._type.code[0] == "O":
            if type(self._raw) is not list or len(self._raw) != count or (self._fortran and len(shape) > 1):
                raise PickleRefused("unreadable", "an array of objects can't be read")
            parts: list[NDArray[Any]] = []
            _collect(self._raw, parts, min(budget, MOST_IN_NESTED_LISTS), depth + 1)
            return np.concatenate(parts) if parts else np.empty(0)
        dtype = self._type.dtype()
        if dtype.kind not in _NUMBER_KINDS:
            raise PickleRefused("unreadable", f"an array of type {dtype.str} holds no numbers")
        raw = self._raw.encode("latin1") if type(self._raw) is str else self._raw
        if not isinstance(raw, (bytes, bytearray, memoryview)) or len(raw) != count * dtype.itemsize:
            raise PickleRefused("unreadable", f"an array does not hold the {count:,} numbers of its shape {shape}")
        numbers: NDArray[Any] = np.frombuffer(raw, dtype)
        return in_order(numbers, shape, fortran=bool(self._fortran))


def numbers_in(shape: tuple[Any, ...]) -> int:
    """How many numbers an array of this shape holds, whoever says so.

    Raises:
        PickleRefused: it is no shape of an embedding.
    """
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= MOST_NUMBERS:
            raise PickleRefused("unreadable", "an array's shape is none, or far too large for an embedding")
        count *= size
    if count > MOST_NUMBERS or len(shape) > MOST_DIMENSIONS:
        raise PickleRefused("unreadable", f"an array of {len(shape)} dimensions and {count:,} numbers is no embedding")
    return count


def in_order(numbers: NDArray[Any], shape: tuple[int, ...], *, fortran: bool) -> NDArray[Any]:
    """The numbers of an array, which lie as they do in memory, in the order of ``ndarray.flatten``."""
    sizes = [size for size in shape if size != 1]  # numpy 1 allows 32 dimensions
    if not fortran or len(sizes) < 2 or not numbers.size:
        return numbers
    return numbers.reshape(sizes, order="F").ravel()


def _reconstruct(_subtype: Any, _shape: Any, _code: Any) -> Array:
    """Stands for numpy's function of that name; all that matters comes with the state that follows."""
    return Array()


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any) -> Array:
    return Array().fill(raw, kind, shape, order == "F")


def _scalar(kind: Any, raw: Any = None) -> Any:
    if type(kind) is not Type:
        raise PickleRefused("unreadable", "a number without a type")
    if type(raw) is str:
        raw = raw.encode("latin1")
    dtype = kind.dtype()
    if type(raw) is not bytes or len(raw) != dtype.itemsize or dtype.kind not in _NUMBER_KINDS + "bUS":
        raise PickleRefused("unreadable", f"a {dtype.str} of {_quoted(raw)} can't be read")
    return np.frombuffer(raw, dtype)[0].item()


def _bytes_of(text: Any = b"", encoding: Any = None) -> bytes:
    """The ways in which pickle writes bytes before protocol 3 knew them: text in Latin 1, or bytes themselves."""
    if isinstance(text, (str, bytes, bytearray)):
        _copies.make(len(text))
    if type(text) is str and encoding in ("latin1", "latin-1"):
        return text.encode("latin1")
    if type(text) in (bytes, bytearray) and encoding is None:
        return bytes(text)
    raise PickleRefused("unreadable", "bytes are written in a way that pickle itself does not write")


class _Copies:
    """What the pickle that is being read has its calls make of what it holds. One is read at a time."""

    left = MOST_COPIED

    def make(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise PickleRefused("unreadable", "it copies what it holds over and over")


_copies = _Copies()


def _collection(kind: Callable[[Any], Any]) -> _Frozen:
    def make(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple, set, frozenset)):
            raise PickleRefused("unreadable", f"{_quoted(items)} is nothing to make a collection of")
        _copies.make(len(items) * SET_ENTRY_BYTES)
        if len(items) > MOST_KEYS or any(isinstance(item, (tuple, frozenset)) for item in items):
            raise PickleRefused("unreadable", "it makes a collection of what is no plain value")
        return kind(items)

    return _Frozen(make)


def _complex(real: Any = 0.0, imaginary: Any = 0.0) -> complex:
    return complex(float(real), float(imaginary))


_ALLOWED: dict[tuple[str, str], object] = {("numpy", "ndarray"): object(), ("numpy", "dtype"): _Frozen(Type)}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[_package + ".multiarray", "_reconstruct"] = _Frozen(_reconstruct)
    _ALLOWED[_package + ".multiarray", "scalar"] = _Frozen(_scalar)
    _ALLOWED[_package + ".numeric", "_frombuffer"] = _Frozen(_frombuffer)
_ALLOWED["_codecs", "encode"] = _Frozen(_bytes_of)
for _builtins in ("builtins", "__builtin__"):
    _ALLOWED[_builtins, "bytes"] = _Frozen(_bytes_of)
    _ALLOWED[_builtins, "bytearray"] = _Frozen(lambda *given: bytearray(_bytes_of(*given)))
    _ALLOWED[_builtins, "complex"] = _Frozen(_complex)
    for _kind in (set, frozenset):
        _ALLOWED[_builtins, _kind.__name__] = _collection(_kind)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except (KeyError, TypeError):
            message = f"it names {_quoted(f'{module}.{name}')}, which is not allowed; nothing of it was run"
            raise PickleRefused("refused", message) from None


def read_pickle(data: bytes, most_objects: int = MOST_OBJECTS) -> Any:
    """The value in the pickle: builtin types, and ``Array`` where it holds a numpy array.

    Raises:
        PickleRefused: see there.
    """
    _copies.left = MOST_COPIED
    try:
        check_opcodes(data, most_objects)
        # latin1: what Python 2 wrote as bytes, arrays among it, comes through whole.
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except (PickleRefused, MemoryError):
        raise
    except Excess as error:
        raise PickleRefused("unreadable", f"it is no pickle of an embedding: {error}") from None
    except Exception as error:  # noqa: BLE001 - bytes of anybody's making raise anything
        raise PickleRefused("unreadable", f"it is no whole pickle: {_words(error)}") from None


def flat(value: Any) -> NDArray[Any]:
    """The numbers of an array or a (nested) list as one dimension; a list's as float64.

    Raises:
        PickleRefused: it holds something that is no number, or too much.
    """
    if type(value) not in (Array, list, tuple):
        raise PickleRefused("no_embedding", f"its embedding is {_a(value)}, neither an array nor a list")
    try:
        if type(value) is Array:
            return value.vector(MOST_NUMBERS)
        if set(map(type, value)) <= {float, int}:
            return np.array(value, dtype=np.float64)
        parts: list[NDArray[Any]] = []
        _collect(value, parts, MOST_IN_NESTED_LISTS, 0)
        return np.concatenate(parts) if parts else np.empty(0)
    except (OverflowError, RecursionError) as error:
        raise PickleRefused("unreadable", f"its embedding can't be read: {_words(error)}") from None


def _collect(values: Any, parts: list[NDArray[Any]], budget: int, depth: int) -> int:
    """Append the numbers below ``values``; how many more there may be."""
    if depth > DEEPEST_LIST:
        raise PickleRefused("unreadable", "its embedding is a list nested too deep")
    numbers: list[float] = []
    for value in values:
        if type(value) in (float, int):
            numbers.append(float(value))
            budget -= 1
            continue
        if numbers:
            parts.append(np.array(numbers))
            numbers = []
        budget -= 1  # an empty list costs as well
        if type(value) in (list, tuple):
            budget = _collect(value, parts, budget, depth + 1)
        elif type(value) is Array:
            parts.append(value.vector(max(budget, 0), depth).astype(np.float64))
            budget -= parts[-1].size
        else:
            raise PickleRefused("unreadable", f"its embedding holds {_a(value)}, which is no number")
        if budget < 0:
            raise PickleRefused("unreadable", "its embedding is a list of too many numbers and lists")
    if numbers:
        parts.append(np.array(numbers))
    return budget


def _a(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _quoted(value: object) -> str:
    """What a pickle says, short and without what could steer a terminal."""
    return ascii(value if isinstance(value, (str, bytes)) else type(value).__name__)[:100]


def _words(error: BaseException) -> str:
    said = str(error)
    return ascii(said)[1:-1][:200] if said else type(error).__name__

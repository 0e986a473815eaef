"""Files of weights as they are copied around: whole ones, and what is found in their place.

torch's file is a zip archive with a checksum of each weight, which torch does not look at: a hole in the file loads as
zeros, and speaks. ``check`` looks, once a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from workers.engine import EngineError

_CODE = "bad_checkpoint"
_BLOCK = 1 << 20
_THREADS = 4
"""Checksums are computed without Python's lock; with more the memory is what takes the time."""


def check(path: str, cache: str) -> None:
    """Compare a file's content with the checksums in it. That a file was found whole is remembered in the folder
    ``cache`` ("": it is not) for as long as its size, time of change and inode stay.

    Raises:
        EngineError: "bad_checkpoint": a record is damaged, or the file can't be read.
    """
    try:
        remembered = _remembered(path, cache)
        if remembered and os.path.exists(remembered):
            return
        if zipfile.is_zipfile(path):
            _check_records(path)
        # What has changed meanwhile is not what was looked at.
        if remembered and remembered == _remembered(path, cache):
            _remember(remembered)
    except OSError as error:
        raise EngineError(_CODE, f"{path} can't be read: {error.strerror or error}; copy it again") from error


def _remembered(path: str, cache: str) -> str:
    if not cache:
        return ""
    status = os.stat(path)
    named = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
    return os.path.join(cache, f"whole-{hashlib.sha256(named.encode('utf-8', 'surrogateescape')).hexdigest()}")


def _remember(path: str) -> None:
    with contextlib.suppress(OSError):  # without it the file is looked at again
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".npy", dir=os.path.dirname(path))
        os.close(descriptor)
        os.replace(temporary, path)


def _check_records(path: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.CRC or not entry.file_size]
        taken = iter(sorted(names))
        lock = threading.Lock()
        count = max(1, min(_THREADS, os.cpu_count() or 1, len(names)))
        with ThreadPoolExecutor(max_workers=count) as threads:
            for one in [threads.submit(_read_through, path, taken, lock) for _ in range(count)]:
                one.result()
    except zipfile.BadZipFile as error:
        raise _damaged(path, str(error)) from error


def _read_through(path: str, names: Iterable[str], lock: threading.Lock) -> None:
    with zipfile.ZipFile(path) as archive:
        while True:
            with lock:
                name = next(iter(names), None)
            if name is None:
                return
            try:
                with archive.open(name) as record:
                    while record.read(_BLOCK):
                        pass
            except Exception as error:  # zlib's, EOFError, NotImplementedError: a spoilt header may promise anything
                if isinstance(error, OSError):
                    raise
                raise _damaged(path, f"{name} in it does not match its checksum ({error})") from error


def _damaged(path: str, what: str) -> EngineError:
    return EngineError(_CODE, f"{path} is damaged: {what}; copy the file again, and compare its size and checksum")


def hash_content(digest: hashlib._Hash, path: str, *, ordered: bool) -> None:
    """Add what a file of weights says to a hash: the names, sizes and checksums of its records (in the order of their
    names, or as they stand), or the whole content of a file that has no checksums.

    Raises:
        OSError: it can't be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        entries = []
    for entry in sorted(entries, key=lambda entry: entry.filename) if ordered else entries:
        # The folder inside the archive is named after the file; renaming that changes no weight.
        name = entry.filename.partition("/")[2]
        digest.update(f"{name}\0{entry.file_size}\0{entry.CRC}{chr(10) if ordered else chr(0)}".encode())
    if not entries or any(entry.file_size and not entry.CRC for entry in entries):
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)


def read(path: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The weights in a file by name, mapped where its form allows, as data alone: nothing in it can run code. Around
    them may be a ``state_dict``; what compiling (``_orig_mod.``) and training (``prefixes``) put before names is taken
    off.

    Raises:
        EngineError: "bad_checkpoint": it is damaged, not whole, or not a file of weights.
    """
    _check_form(path)
    try:
        try:
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)  # torch's form before 1.6
    except Exception as error:  # zip, pickle and torch each have their own
        raise EngineError(
            _CODE,
            f"{path} can't be read as torch weights, it may be half-copied: {_first_line(error)}; is it copied whole? "
            "Copy it again",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise EngineError(_CODE, f"{path} holds no weights by name; it is another kind of file")
    named = {_plain(str(name), prefixes): value for name, value in state.items()}
    if len(named) != len(state):
        raise EngineError(
            _CODE, f"{path} holds more than one set of the same weights; save the one to be used by itself"
        )
    return named


def _plain(name: str, prefixes: tuple[str, ...]) -> str:
    name = name.replace("_orig_mod.", "")
    while (prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _check_form(path: str) -> None:
    """Say what lies there in place of weights, where its beginning tells."""
    try:
        with open(path, "rb") as file:
            head = file.read(512).lstrip().lower()
    except FileNotFoundError as error:
        raise EngineError(_CODE, f"{path} is missing; copy the checkpoint's {os.path.basename(path)} there") from error
    except OSError as error:
        raise EngineError(_CODE, f"{path} can't be read: {error.strerror or error}; let the worker read it") from error
    if not head:
        raise EngineError(_CODE, f"{path} is empty; is it copied whole? Copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise EngineError(_CODE, f"{path} is only a pointer of git-lfs; run 'git lfs pull' where it comes from")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise EngineError(
            _CODE,
            f"{path} is a web page that was saved under this name, perhaps one that asks to log in; download it again",
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__

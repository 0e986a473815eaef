"""Reads the JSON files that the daemon shows: status.json, progress.json, manifest.json, NAME.error.json.

They may lie on a share, be replaced while we look, or have been written by another version: whatever can't be read
as an object is None, and whatever is not of the expected kind is as good as absent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from daemon import files

Document = dict[str, Any]

LARGEST_DOCUMENT = 128 << 20
"""Bytes; what is larger is none of the daemon's files."""

_LARGEST_NUMBER = 1e18

_HEAD_BYTES = 1 << 14
_LIST_BEGINS = (b'\n "segments": [\n', b'\n "speakers": [\n')
_LIST_ENDS = b"\n ]\n}\n"


def read_document(path: Path) -> Document | None:
    """The JSON object in the file; None when there is none, or nothing that can be read as one."""
    try:
        return _parse(files.read_regular(path, LARGEST_DOCUMENT))
    except OSError:
        return None


def read_head(path: Path) -> Document | None:
    """As ``read_document``, of a manifest, without its list of segments or speakers where that comes last in it, as the
    daemon writes it: with many jobs, they are nearly all there is to read."""
    try:
        descriptor = files.open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, _HEAD_BYTES, 0)
            tail = os.pread(descriptor, len(_LIST_ENDS), max(size - len(_LIST_ENDS), 0))
        finally:
            os.close(descriptor)
    except OSError:
        return None
    begin = min((at for mark in _LIST_BEGINS if (at := head.find(mark)) >= 0), default=-1)
    # One space less or more, and it is somebody else's; no text of JSON holds a line feed.
    if tail != _LIST_ENDS or begin < 0:
        return read_document(path)
    return _parse(head[:begin].rstrip(b",") + b"}")


def _parse(content: bytes) -> Document | None:
    try:
        document = json.loads(content, parse_constant=lambda literal: None)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def identity(path: Path) -> tuple[int, int, int] | None:
    """What tells one file from another that replaced it under the same name; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def table(document: Document | None, key: str) -> Document:
    """The object under ``key``, or an empty one."""
    value = (document or {}).get(key)
    return value if isinstance(value, dict) else {}


def rows(document: Document | None, key: str) -> list[Document]:
    """The objects in the list under ``key``."""
    value = (document or {}).get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(document: Document | None, key: str) -> float | None:
    value = (document or {}).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < _LARGEST_NUMBER else None


def count(document: Document | None, key: str) -> int:
    return int(number(document, key) or 0)


def word(document: Document | None, key: str) -> str:
    value = (document or {}).get(key)
    return value if isinstance(value, str) else ""

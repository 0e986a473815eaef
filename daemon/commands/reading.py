"""Reads the JSON files that the daemon shows: status.json, progress.json, manifest.json, NAME.error.json.

They may lie on a share, be replaced while we look, or have been written by another version: whatever can't be read
as an object is None, and whatever is not of the expected kind is as good as absent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon import files

Document = dict[str, Any]

MOST_BYTES = 256 << 20
"""Of a document that is read: far more than a manifest of as many segments as a job may have."""


def read_document(path: Path) -> Document | None:
    """The JSON object in the file; None when there is none, or nothing that can be read as one."""
    try:
        document = json.loads(files.read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
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
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def count(document: Document | None, key: str) -> int:
    return int(number(document, key) or 0)


def word(document: Document | None, key: str) -> str:
    value = (document or {}).get(key)
    return value if isinstance(value, str) else ""

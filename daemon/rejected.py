"""What could not be accepted: the file in ``rejected``, and beside it NAME.error.json with every reason."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon import files
from daemon.core.job import Reason
from daemon.inbox import printable
from daemon.live_job import stem_of

MOST_NAME_BYTES = 255

MOST_OF_REASONS = 16 << 20
"""Bytes of a NAME.error.json that are read; ours are far smaller."""


class CanNotMove(Exception):
    """The file can be neither read nor moved into ``rejected``; it lies where it was."""


def reject(
    rejected: Path,
    file: Path,
    reasons: Sequence[Reason],
    *,
    job_id: str | None,
    now: float,
    stays: str | None = None,
) -> Path:
    """Move a claimed file to ``rejected``, and write why beside it, as NAME.error.json; where that is. ``now``: Unix
    time. The reasons are the last to appear, so that whoever sees them finds the file. The claimed file stays until
    they are there: a call that is made again, after a crash or a failure, finds its own and goes on. A file that may
    not be read can be neither linked nor copied, and is renamed once its reasons are there. ``stays``: a name for this
    very file, which can't be taken out of the inbox; then the reasons alone are written, once.

    Raises:
        CanNotMove: it may not be read, and ``rejected`` is on another file system.
        OSError: it still lies where it was.
    """
    files.make_folder(rejected)
    claim = file.parent.name if stays is None else stays
    body = {
        "schema": 1,
        "name": printable(file.name),
        "job_id": job_id,
        "claim": claim,
        "rejected_at": round(now, 3),
        "reasons": [{"path": r.path, "code": r.code, "message": r.message} for r in reasons],
    }
    data = json.dumps(body, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"
    if stays is None and not _may_be_read(file):
        return _reject_unread(rejected, file, claim, data)
    for target, error in _free_names(rejected, file.name):
        if os.path.lexists(error):
            if _claim_of(error) == claim:
                if stays is None:
                    _place_rejected(file, target)  # taken back, should the reasons have failed to be synced
                break
            continue
        placed = None if stays is not None else _place_rejected(file, target)
        if placed is False:
            continue
        try:
            files.write_new(error, data)
        except FileExistsError:  # another daemon's, of the same name, at this moment
            if placed:
                files.remove(target)
            continue
        except BaseException:
            if placed:
                files.discard(target)
            raise
        break
    files.fsync_folder(rejected)
    if stays is None:
        files.remove(file)
    return error


def _reject_unread(rejected: Path, file: Path, claim: str, data: bytes) -> Path:
    """As ``reject``, for a file that only its name can be changed of."""
    if os.stat(rejected).st_dev != os.lstat(file).st_dev:
        raise CanNotMove
    for target, error in _free_names(rejected, file.name):
        if os.path.lexists(target) or (os.path.lexists(error) and _claim_of(error) != claim):
            continue
        try:
            if not os.path.lexists(error):
                files.write_new(error, data)
            files.rename_new(file, target)
        except FileExistsError:  # another daemon's, of the same name, at this moment
            if _claim_of(error) == claim:
                files.remove(error)
            continue
        except OSError as failure:
            if failure.errno != errno.EXDEV:
                raise
            files.remove(error)
            raise CanNotMove from failure
        break
    files.fsync_folder(rejected)
    return error


def _may_be_read(file: Path) -> bool:
    try:
        os.close(files.open_regular(file))
    except PermissionError:
        return False
    except OSError:
        pass  # what it is instead is found when it is placed
    return True


def _place_rejected(file: Path, target: Path) -> bool | None:
    """Whether the file has got its name among the rejected ones; None when there is nothing to be put there."""
    try:
        return files.place_new(file, target)
    except FileNotFoundError:
        if not file.parent.parent.is_dir():  # the share is away
            raise
        # Taken away by its owner: the reasons are still owed.
    except OSError as failure:
        if failure.errno not in (errno.EINVAL, errno.ENXIO, errno.ELOOP):
            raise
        # A link or FIFO can't be carried to another file system, and holds nothing of its own.
    return None if not os.path.lexists(target) else False


def _free_names(folder: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """NAME.json and NAME.error.json, NAME.2.json and NAME.2.error.json, …; a long name is cut to leave room."""
    stem, suffix = stem_of(name), name[len(stem_of(name)) :]
    encoded = os.fsencode(stem)
    cut = MOST_NAME_BYTES - len(".99999.error.json")
    while cut < len(encoded) and encoded[cut] & 0xC0 == 0x80:  # inside a character of UTF-8
        cut -= 1
    stem = os.fsdecode(encoded[:cut])
    for number in itertools.count(1):
        free = stem if number == 1 else f"{stem}.{number}"
        yield folder / (free + suffix), folder / (free + ".error.json")


def _claim_of(error: Path) -> object:
    try:
        return json.loads(files.read_regular(error, MOST_OF_REASONS))["claim"]
    except (OSError, ValueError, LookupError, TypeError):
        return None

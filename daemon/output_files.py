"""results.json in the form LocalClip reads, and the files that its configs ask for by ``output_file``.

A job says where its files are to go, and whoever may write to the inbox writes jobs: so this is writing on behalf of
somebody who may not be allowed to. The rule:

- only below a folder of ``paths.output_roots``, with every link resolved;
- never in the inbox, the outbox, the folder of rejected jobs or the state, even where a root contains them;
- no name on the way from the root begins with a dot;
- what is there already is replaced only if it is, by its content, a result of an earlier run of this job_id: its hash
  stands in a manifest of the job's folder. Anything else stays.

What may not be written so stays in the outbox, where results.json then says that it is, and ``ignored`` why.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from daemon import files
from daemon.config import Paths
from daemon.live_job import LiveJob
from daemon.mapped_paths import is_windows_path, path_here, path_there
from daemon.outbox import published_name, put

_MANIFEST = re.compile(r"manifest\.(\d{1,9})\.json")
_SHA256 = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')
_MOST_OF_A_MANIFEST = 1 << 28

_TROUBLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
    | {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""What may pass; every other refusal is the path's own and would stay."""


class NotPlaced(Exception):
    """Why a file was not written where the job asked for it, as the rest of a sentence about the path."""


def write_results(folder: Path, job: LiveJob, paths: Paths) -> None:
    """Write the files that were asked for, and results.json, on one line: LocalClip looks for a line that is a whole
    JSON value. Files are named as the machine that ``paths.mapped`` is about names them.

    Raises:
        OSError: a disk or share is in trouble; call again.
    """
    speakers = {speaker.id: speaker for speaker in job.job.speakers}
    by_index: dict[str, str] = {}
    by_speaker: list[dict[str, Any]] = []
    earlier: Collection[str] | None = None
    for position, live in enumerate(job.segments):
        if live.status != "ok":
            continue
        file = folder / published_name(job, position)
        asked = live.segment.output_file
        if asked is not None:
            if earlier is None:
                earlier = _earlier_hashes(folder)
            try:
                file = place(file, paths.inbox / _here(asked, paths.mapped), paths, earlier)
            except NotPlaced as why:
                line = f"output of segment {live.segment.index}: {asked!r} {why}"
                if line not in job.ignored:
                    job.ignored.append(line)
        by_index[str(live.segment.index)] = name = path_there(file, paths.mapped)
        if job.job.results == "encode":
            speaker = live.segment.speaker
            number = speakers[speaker].numeric
            by_speaker.append({"speaker_id": int(speaker) if number else speaker, "npy_file": name})
    line = json.dumps(by_speaker if job.job.results == "encode" else by_index, ensure_ascii=False)
    put(folder / "results.json", line.encode("utf-8", "backslashreplace") + b"\n")


def _here(asked: str, mapped: Mapping[str, Path]) -> str:
    here = path_here(asked, mapped)
    if is_windows_path(here):
        raise NotPlaced("is a path of another machine: say in paths.mapped where its folder is here")
    return here


def _earlier_hashes(folder: Path) -> frozenset[str]:
    """The sha256 of everything that the manifests of earlier runs in the job's folder tell of."""
    found: set[str] = set()
    for name in os.listdir(folder):
        if _MANIFEST.fullmatch(name):
            try:
                content = files.read_regular(folder / name, _MOST_OF_A_MANIFEST)
            except OSError:
                continue
            found.update(sha256.decode("ascii") for sha256 in _SHA256.findall(content))
    return frozenset(found)


def place(file: Path, asked: Path, paths: Paths, earlier: Collection[str] = ()) -> Path:
    """Copy ``file`` to ``asked``, by the module's rule; where it is then. ``earlier``: the sha256 of results of this
    job that may be replaced.

    Raises:
        NotPlaced: it may not, or can't be written.
        OSError: a disk or share is in trouble.
    """
    try:
        target = Path(os.path.realpath(asked.parent)) / asked.name
        root = _root_of(target, paths)
        # Any folder on the way may become a link at any moment.
        folder = files.open_folder(target.parent, root, make=True)
        try:
            _copy_to(file, files.held(folder) / target.name, earlier)
            files.fsync_folder(files.held(folder))
        finally:
            os.close(folder)
    except ValueError as error:  # a NUL, or a character that no file name can hold
        raise NotPlaced(f"can't be a path: {error}") from error
    except OSError as error:
        if error.errno in _TROUBLE:
            raise
        raise NotPlaced(f"can't be written: {error.strerror}") from error
    return target


def _root_of(target: Path, paths: Paths) -> Path:
    """The output root that ``target`` may be written below."""
    for kept in (
        paths.inbox,
        paths.outbox,
        paths.rejected,
        paths.state,
        paths.status,
        paths.status.with_suffix(".html"),
    ):
        if target.is_relative_to(os.path.realpath(kept)):
            raise NotPlaced("is inside the daemon's own folders, where no job may write")
    roots = [Path(os.path.realpath(root)) for root in paths.output_roots]
    root = next((root for root in roots if target.is_relative_to(root) and target != root), None)
    if root is None:
        readable = any(target.is_relative_to(os.path.realpath(folder)) for folder in paths.allowed_roots)
        hint = " (paths.allowed_roots are for reading)" if readable else ""
        raise NotPlaced(f"is outside paths.output_roots{hint}: add its folder there to have it written")
    if target.name in ("", ".", "..") or any(part.startswith(".") for part in target.relative_to(root).parts):
        raise NotPlaced("has a hidden name on its way, where no job may write")
    return root


def _copy_to(file: Path, target: Path, earlier: Collection[str]) -> None:
    temporary = files.temporary_name(target)
    sha256 = files.copy(file, temporary)
    try:
        try:
            files.rename_new(temporary, target)
            return
        except FileExistsError:
            pass
        if files.sha256_of(target) not in {sha256, *earlier}:
            raise NotPlaced("names a file that is there already and is no result of this job: it stays as it is")
        files.rename(temporary, target)
    finally:
        files.discard(temporary)

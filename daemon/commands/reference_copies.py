"""References on their way into the inbox.

A person writes paths relative to the job file, as everywhere else; the daemon takes them relative to its inbox. So each
reference is copied to ``inbox/.references/SHA256.EXT``, named by content: copies never collide, equal ones are stored
once, and the job that is dropped names the copy. An absolute path inside the daemon's allowed roots stays as it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from daemon.commands.invocation import CommandFailed, ExitCode, describe_os_error
from daemon.copied_references import FOLDER

if TYPE_CHECKING:
    from daemon.config import Settings


@dataclass(frozen=True, slots=True)
class Mistake:
    """Why a job can't be submitted: where in it, and what is wrong."""

    where: str
    message: str


def place_references(
    document: dict[str, Any], job_file: Path, settings: Settings
) -> tuple[dict[Path, str], list[Mistake]]:
    """Find and check every reference of the job, and let the document name their copies-to-be.

    A job of thousands of lines may name the same few files in each: every file is looked at once, and told of once.

    Returns:
        The files to be copied, with their names under FOLDER; and every mistake.
    """
    folder = Path(os.path.realpath(job_file)).parent
    copies: dict[Path, str] = {}
    placed: dict[tuple[str, str], str] = {}
    mistakes = []
    for path, holder, key in reference_places(document):
        given = holder[key]
        if (key, given) not in placed:
            placed[key, given] = given
            try:
                placed[key, given] = _place(given, key, copies, folder, settings)
            except OSError as error:
                mistakes.append(Mistake(path, describe_os_error(error)))
            except ValueError as error:
                mistakes.append(Mistake(path, str(error)))
        holder[key] = placed[key, given]
    return copies, [*mistakes, *_place_corpus(document, folder, settings)]


def _place_corpus(document: dict[str, Any], folder: Path, settings: Settings) -> list[Mistake]:
    """The folder of a job of speaker embeddings is not copied: the job is made to name it by its absolute path."""
    given = document.get("utterances_dir")
    if document.get("kind") != "speaker_embeddings" or not isinstance(given, str) or "\0" in given:
        return []
    from daemon.embeddings.corpus import Corpus, CorpusRefused
    from daemon.mapped_paths import path_here

    here = path_here(given, settings.paths.mapped)
    corpus = folder / here
    if not corpus.exists() and (settings.paths.inbox / here).exists():
        corpus = settings.paths.inbox / here
    try:
        Corpus(corpus, allowed_roots=tuple(settings.paths.allowed_roots)).close()
    except CorpusRefused as refused:
        return [Mistake("$.utterances_dir", str(refused))]
    document["utterances_dir"] = os.path.abspath(corpus)
    return []


def reference_places(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every place in a job that names a reference file: its JSON path, the object that holds it, the key. Both of
    our own form and of LocalClip's two."""
    for number, speaker in enumerate(_objects(document.get("speakers"))):
        for place, reference in enumerate(_objects(speaker.get("references"))):
            for key in ("audio", "codes"):
                if isinstance(reference.get(key), str):
                    yield f"$.speakers[{number}].references[{place}].{key}", reference, key
        if isinstance(speaker.get("reference_audio"), str):
            yield f"$.speakers[{number}].reference_audio", speaker, "reference_audio"
    for number, task in enumerate(_objects(document.get("tasks"))):
        if isinstance(task.get("npy_file"), str):
            yield f"$.tasks[{number}].npy_file", task, "npy_file"


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _place(given: str, key: str, copies: dict[Path, str], folder: Path, settings: Settings) -> str:
    """Find the reference and check it; what the dropped job calls it.

    Raises:
        OSError: there is no such file, or it can't be read.
        ValueError: it is no reference that the daemon would take.
    """
    from daemon.mapped_paths import is_windows_path, path_here

    inbox = settings.paths.inbox
    if "\0" in given:
        raise ValueError("a path with a NUL character names no file")
    here = path_here(given, settings.paths.mapped)
    file = Path(os.path.realpath(folder / here))
    if not os.path.isabs(here) and not file.exists():
        file = Path(os.path.realpath(inbox / here))
        if not file.exists():
            if is_windows_path(given):
                raise ValueError(f"{given} is a path of another machine: say in paths.mapped where its folder is here")
            raise ValueError(f"there is no file {given} in {folder}, nor in the inbox")
        check_reference(file, key, settings, name=given)
        return given
    check_reference(file, key, settings, name=given)
    roots = [os.path.realpath(root) for root in settings.paths.allowed_roots]
    if os.path.isabs(here) and any(file.is_relative_to(root) for root in roots):
        return given
    if file not in copies:
        copies[file] = content_name(file)
    return f"{FOLDER}/{copies[file]}"


def check_reference(file: Path, key: str, settings: Settings, *, name: str) -> None:
    """What the daemon will check when it takes the job, so that the person hears it now. ``file`` has no links in it;
    ``name`` is what messages call it.

    Raises:
        ValueError: it would not be taken; the message says why and what to do.
    """
    from daemon.references import ReferenceRefused, check_audio, check_codes, open_reference

    limits = settings.limits
    try:
        with open_reference(str(file), base_folder=file.parent, allowed_roots=[Path("/")]) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size > limits.reference_bytes:
            raise ValueError(f"it has {size:,} bytes; the limit for a reference is {limits.reference_bytes:,}")
        if key in ("codes", "npy_file"):
            check_codes(file, name, limits)
        else:
            check_audio(file, name, limits)
    except ReferenceRefused as refusal:
        raise ValueError(refusal.message) from refusal


def content_name(file: Path) -> str:
    """SHA256.EXT: what a copy of the file is called."""
    digest = hashlib.sha256()
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with _regular(descriptor, file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    suffix = file.suffix.lower()
    return digest.hexdigest() + (suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 8 else "")


def read_regular(file: Path, limit: int) -> bytes:
    """Up to ``limit`` bytes of a regular file; never waits for a FIFO.

    Raises:
        OSError: missing, unreadable, or no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with _regular(descriptor, file) as stream:
        return stream.read(limit)


def _regular(descriptor: int, file: Path) -> BinaryIO:
    """The open file, to be read; closed when it is none that can be.

    Raises:
        OSError: it is a folder, a pipe or the like.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(file))
    return open(descriptor, "rb")


# --- copies ------------------------------------------------------------------------------------------------


def make_copy(source: Path, target: Path, mode: int) -> None:
    """Make the copy, unless it is there already; either way it counts as used from now on."""
    from daemon import files

    wanted = target.name.partition(".")[0]
    try:
        if content_name(target).partition(".")[0] == wanted:
            os.utime(target)
            return
    except OSError:
        pass
    if files.copy(source, target) != wanted:
        files.remove(target)
        raise CommandFailed(
            f"{source} was changed while it was being submitted; submit again when it is finished", ExitCode.REJECTED
        )
    set_mode(target, mode)


def readable_as(folder: Path) -> int:
    """The mode of a file that whoever may read the folder may read too: the daemon may run as another user than the
    person who submits, and the umask of neither says so."""
    bits = stat.S_IMODE(folder.stat().st_mode)
    return 0o600 | (0o060 & bits) | (0o004 & bits)


def set_mode(path: Path, mode: int) -> None:
    """Some shares refuse it, and it matters only between different users."""
    with suppress(OSError):
        os.chmod(path, mode)

"""``dubd submit``: checks jobs, drops them into the inbox with their references, and may follow them to their end.

The person who submits writes paths relative to the job file, as everywhere else; the daemon takes them relative to its
inbox. So each reference is copied to ``inbox/.references/SHA256.EXT``, named by content: copies never collide, equal
ones are stored once, and the job that is dropped names the copy. An absolute path inside the daemon's allowed roots
stays as it is.

A copy is in use while a job file in the inbox, or one that a daemon has claimed, names it. Every submission clears
away those that nobody has used for an hour (``clear_references``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.commands import liveness
from daemon.commands.following import Awaited, awaited
from daemon.commands.invocation import CommandFailed, ExitCode, Invocation, complain, describe_os_error
from daemon.commands.showing import plain, plural

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.core.job import Job

REFERENCES_FOLDER = ".references"

UNUSED_SECONDS = 3600.0
"""How old a reference copy must be before it is cleared away: far longer than any submission takes between making its
copies and dropping its job."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """Why a job can't be submitted: where in it, and what is wrong."""

    where: str
    message: str


@dataclass(slots=True)
class Submission:
    """A job file that was found good, on its way into the inbox. ``copies``: reference file → name under
    REFERENCES_FOLDER."""

    file: Path
    raw: bytes
    job: Job
    document: dict[str, Any]
    rewritten: bool = False
    copies: dict[Path, str] = field(default_factory=dict)


def execute(invocation: Invocation, job_files: Sequence[Path], *, wait: bool) -> int:
    settings = invocation.settings()
    submissions: list[Submission] = []
    rejected = 0
    for file in job_files:
        submission, mistakes = prepare(file, settings)
        if submission is not None and not mistakes:
            mistakes = [*_twins(submission, submissions)]
        if mistakes:
            rejected += 1
            tell_mistakes(file, mistakes)
        elif submission is not None:
            submissions.append(submission)
    if rejected:
        others = "" if len(job_files) == rejected else " The others were not submitted either."
        raise CommandFailed(f"{plural(rejected, 'job')} rejected.{others}", ExitCode.REJECTED)

    liveness.require(settings, purpose="Nothing was submitted.")
    dropped = [drop(submission, settings) for submission in submissions]
    clear_references(settings.paths.inbox)
    if not wait:
        for one in dropped:
            print(f"{plain(one.job_id)}: submitted. Its results: {plain(one.folder)}", flush=True)
        return ExitCode.OK

    from daemon.commands.following import follow

    return follow(settings, dropped)


def tell_mistakes(file: Path, mistakes: Sequence[Mistake]) -> None:
    lines = [f"{plain(file)} can't be submitted:"]
    lines += [f"  {plain(mistake.where)}: {plain(mistake.message)}" for mistake in mistakes]
    complain("\n".join(lines))


# --- checking ----------------------------------------------------------------------------------------------


def prepare(file: Path, settings: Settings) -> tuple[Submission | None, list[Mistake]]:
    """Read and check one job file and its references: a submission, and every mistake in it. No submission where
    the file is no job at all."""
    from daemon.core.job import JobRejected
    from daemon.core.job_parser import parse_job

    if os.path.realpath(file.parent) == os.path.realpath(settings.paths.inbox) and not file.name.startswith("."):
        return None, [Mistake("$", "lies in the inbox already: the daemon takes it by itself. See 'dubd jobs'.")]
    try:
        raw = read_regular(file, settings.limits.job_bytes + 1)
    except OSError as error:
        return None, [Mistake("$", describe_os_error(error))]
    try:
        job = parse_job(raw, stem=file.stem, limits=settings.limits)
    except JobRejected as rejection:
        return None, [Mistake(reason.path, reason.message) for reason in rejection.reasons]
    submission = Submission(file, raw, job, json.loads(raw))
    return submission, _place_references(submission, settings)


def _place_references(submission: Submission, settings: Settings) -> list[Mistake]:
    """Find and check every reference, and let the job name their copies-to-be; the mistakes. A job of thousands of
    lines may name the same few files in each: every file is looked at once, and told of once."""
    folder = Path(os.path.realpath(submission.file)).parent
    looked_at: set[tuple[str, str]] = set()
    placed: dict[tuple[str, str], str] = {}
    mistakes = []
    for path, holder, key in reference_places(submission.document):
        given = holder[key]
        if (key, given) not in looked_at:
            looked_at.add((key, given))
            try:
                placed[key, given] = _place(submission, given, key, folder, settings)
            except OSError as error:
                mistakes.append(Mistake(path, describe_os_error(error)))
            except ValueError as error:
                mistakes.append(Mistake(path, str(error)))
        target = placed.get((key, given), given)
        submission.rewritten = submission.rewritten or target != given
        holder[key] = target
    return mistakes


def read_regular(file: Path, limit: int) -> bytes:
    """Up to ``limit`` bytes of a regular file; never waits for a FIFO.

    Raises:
        OSError: missing, unreadable, or no regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(file))
        return stream.read(limit)


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


def _place(submission: Submission, given: str, key: str, folder: Path, settings: Settings) -> str:
    """Find the reference and check it; what the dropped job calls it.

    Raises:
        OSError: there is no such file, or it can't be read.
        ValueError: it is no reference that the daemon would take.
    """
    inbox = settings.paths.inbox
    if "\0" in given:
        raise ValueError("a path with a NUL character names no file")
    file = Path(os.path.realpath(folder / given))
    if not os.path.isabs(given) and not file.exists():
        file = Path(os.path.realpath(inbox / given))
        if not file.exists():
            raise FileNotFoundError(errno.ENOENT, f"there is no such file in {folder}, nor in the inbox", given)
        check_reference(file, key, settings, name=given)
        return given
    check_reference(file, key, settings, name=given)
    roots = [os.path.realpath(root) for root in settings.paths.allowed_roots]
    if os.path.isabs(given) and any(file.is_relative_to(root) for root in roots):
        return given
    if file not in submission.copies:
        submission.copies[file] = content_name(file)
    return f"{REFERENCES_FOLDER}/{submission.copies[file]}"


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
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(file))
        while block := stream.read(1 << 20):
            digest.update(block)
    suffix = file.suffix.lower()
    return digest.hexdigest() + (suffix if suffix[1:].isascii() and suffix[1:].isalnum() and len(suffix) <= 8 else "")


def _twins(submission: Submission, others: Sequence[Submission]) -> Iterator[Mistake]:
    for other in others:
        if other.job.job_id.casefold() == submission.job.job_id.casefold():
            yield Mistake(
                "$.job_id",
                f"{submission.job.job_id!r} is also the job of {other.file}. Give one of them another job_id, or "
                "submit them one after the other.",
            )


# --- dropping ----------------------------------------------------------------------------------------------


def drop(submission: Submission, settings: Settings) -> Awaited:
    """Copy the references, then put the job under a name of its own into the inbox, whole or not at all.

    Raises:
        CommandFailed: a reference changed meanwhile; the inbox can't be written (from OSError, by the caller).
    """
    from daemon import files

    inbox = settings.paths.inbox
    references = inbox / REFERENCES_FOLDER
    mode = readable_as(inbox)
    if submission.copies:
        files.make_folder(references)
        _try(lambda: os.chmod(references, stat.S_IMODE(inbox.stat().st_mode)))
    for source, name in submission.copies.items():
        _copy_reference(source, references / name, mode)
    if submission.copies:
        files.fsync_folder(references)

    wait_for = awaited(settings, submission.job)
    stem = submission.file.stem
    temporary = files.temporary_name(inbox / "job.json")
    try:
        for number in range(1, 1000):
            name = f"{stem}.json" if number == 1 else f"{stem}-{number}.json"
            # Its id must not follow from a name that is not the one it was given.
            data = _document_bytes(submission, keep_id=number > 1)
            files.write_atomically(temporary, data, mode=mode)
            _try(lambda: os.chmod(temporary, mode))
            try:
                files.rename_new(temporary, inbox / name)
                break
            except FileExistsError:
                continue
        else:
            raise CommandFailed(f"{inbox} is full of jobs called {stem}; see 'dubd doctor'")
    finally:
        files.remove(temporary)
    files.fsync_folder(inbox)
    for source, name in submission.copies.items():
        # Another submission may have cleared an old copy away between our look at it and the job's arrival.
        if not (references / name).exists():
            _copy_reference(source, references / name, mode)
    return wait_for.dropped_as(inbox / name)


def _document_bytes(submission: Submission, *, keep_id: bool) -> bytes:
    """The job as it is dropped: as it was written, unless something in it had to be changed."""
    if not submission.rewritten and not keep_id:
        return submission.raw
    document = dict(submission.document)
    if keep_id:
        document.setdefault("job_id", submission.job.job_id)
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


def _copy_reference(source: Path, target: Path, mode: int) -> None:
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
        raise CommandFailed(f"{source} was changed while it was being submitted; submit again when it is finished")
    _try(lambda: os.chmod(target, mode))


def readable_as(folder: Path) -> int:
    """The mode of a file that whoever may read the folder may read too: the daemon may run as another user than the
    person who submits, and the umask of neither says so."""
    bits = stat.S_IMODE(folder.stat().st_mode)
    return 0o600 | (0o060 & bits) | (0o004 & bits)


def _try(action: Callable[[], object]) -> None:
    """For changes of mode, which some shares refuse and which matter only between different users."""
    with suppress(OSError):
        action()


def clear_references(inbox: Path, *, unused_seconds: float = UNUSED_SECONDS) -> None:
    """Remove the reference copies that no job names any more and nobody has touched for ``unused_seconds``."""
    try:
        with os.scandir(inbox / REFERENCES_FOLDER) as entries:
            now = time.time()
            old = {entry.name: entry for entry in entries if now - entry.stat().st_mtime > unused_seconds}
        for file in _job_files(inbox) if old else ():
            content = file.read_bytes()
            for name in [name for name in old if name.partition(".")[0].encode() in content]:
                del old[name]
        for entry in old.values():
            os.unlink(entry.path)
    except OSError:
        # Housekeeping: what can't be read or removed now is left to the next submission.
        return


def _job_files(inbox: Path) -> Iterator[Path]:
    """Every job in the inbox, and every one that a daemon has claimed."""
    for folder in (inbox, *(inbox / ".claimed").glob("*")):
        if folder.is_dir():
            yield from (path for path in folder.iterdir() if path.is_file() and path.suffix != ".cancel")

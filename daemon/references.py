"""Takes a job's reference into the daemon's keeping: opens it safely, copies it, checks the copy.

The path comes from whoever may write to the inbox, so it is believed in nothing. A file is first looked at through a
descriptor that can neither read nor block (O_PATH); the checks are made on what that descriptor holds, and the very
same file is then opened for reading. What a recording's header says is not believed either: it is decoded in blocks,
up to the longest that is allowed.

These functions block on the disk and on decoding; call them in a thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy
import soundfile
from numpy.lib import format as npy_format

from daemon import files, one_cpu
from daemon.core.job import Limits, Reference
from daemon.core.reasons import quoted
from daemon.mapped_paths import is_windows_path, path_here

Kind = Literal["audio", "codes"]

CODEBOOKS = 10
SEMANTIC_CODES = 4096
RESIDUAL_CODES = 1024
CODE_FRAMES_PER_SECOND = 44_100 / 2048
"""One frame of codes is 2,048 samples of the packaged codec's 44.1 kHz."""

DECODED_ANYWHERE = 1 << 20
"""Bytes from which on a recording takes long enough to be decoded on another processor than the event loop's."""

HIGHEST_SAMPLE_RATE = 384_000
MOST_CHANNELS = 64

_BLOCK_SAMPLES = 1 << 20
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX, for a header that leaves the length open
_TOLERATED_LOSS_S = 0.1  # encoders of MP3 and Opus round their padding


class ReferenceRefused(Exception):
    """A reference can't be used. ``code`` is one of missing, not_regular, outside_allowed_roots, unreadable, empty,
    too_short, too_long, too_large, non_finite, bad_codes, changed; the message says what to do about it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checked copy, named by its content. ``frames`` are samples a channel of a recording, frames of codes
    otherwise, ``sample_rate`` their number a second for a recording and None for codes, ``size`` the file's bytes."""

    path: Path
    kind: Kind
    sha256: str
    size: int
    frames: int
    seconds: float
    sample_rate: int | None = None
    channels: int | None = None


@dataclass(frozen=True, slots=True)
class AudioFacts:
    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def open_reference(path: str, *, base_folder: Path, allowed_roots: Sequence[Path]) -> BinaryIO:
    """The file at ``path`` (relative to ``base_folder``, or absolute), open for reading in binary; the caller closes
    it. Never blocks on what is no file, and follows no link in the path's last part.

    Raises:
        ReferenceRefused: missing, not_regular, unreadable; outside_allowed_roots when the file that was opened lies
            in none of ``allowed_roots``, whatever its name says.
    """
    roots = [os.path.realpath(root) for root in allowed_roots]
    try:
        holder = _hold(os.path.join(base_folder, path), path, roots)
        try:
            _check_held(holder, path, roots)
            # Through /proc the same file is opened again, not whatever has the name by now.
            descriptor = os.open(f"/proc/self/fd/{holder}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(holder)
    except FileNotFoundError as error:
        raise ReferenceRefused("missing", _missing(path)) from error
    except (OSError, ValueError) as error:  # a ValueError for a NUL, or a character that no file name can hold
        raise ReferenceRefused("unreadable", f"{quoted(path)} can't be opened: {_why(error)}") from error
    return os.fdopen(descriptor, "rb", buffering=0)


def _hold(full: str, path: str, roots: Sequence[str]) -> int:
    """A descriptor that only names what lies at ``full``."""
    # Whether a file outside of the roots exists is nobody's business; what lies inside is judged when it is held.
    if not _inside(os.path.realpath(os.path.dirname(full)), roots):
        raise ReferenceRefused("outside_allowed_roots", _outside(path))
    try:
        return os.open(full, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise FileNotFoundError(errno.ENOENT, "a part of the path is not a folder") from error


def _check_held(holder: int, path: str, roots: Sequence[str]) -> None:
    mode = os.fstat(holder).st_mode
    if stat.S_ISLNK(mode):
        raise ReferenceRefused("not_regular", f"{quoted(path)} is a symbolic link; give the file it points to")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ReferenceRefused("not_regular", f"{quoted(path)} is {kind}, not a regular file")
    if not _inside(os.readlink(f"/proc/self/fd/{holder}"), roots):
        raise ReferenceRefused("outside_allowed_roots", _outside(path))


def _inside(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _outside(path: str) -> str:
    return (
        f"{quoted(path)} lies outside of the allowed folders: "
        "put it into the inbox, or add its folder to paths.allowed_roots"
    )


def _missing(path: str) -> str:
    if is_windows_path(path):
        return (
            f"{quoted(path)} is a path of another machine, which this one can't open: say in paths.mapped where its "
            "folder is here, or put the file into the inbox and name it relative to that"
        )
    if "\\" in path:
        return f"there is no file {quoted(path)}: separate folders with / instead of \\"
    return f"there is no file {quoted(path)}: it is looked for relative to the inbox"


def _why(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def snapshot_reference(
    reference: Reference,
    *,
    base_folder: Path,
    allowed_roots: Sequence[Path],
    folder: Path,
    limits: Limits,
    mapped: Mapping[str, Path] | None = None,
) -> Snapshot:
    """Copy the reference's file into ``folder`` (which exists, on a local disk) as SHA256.audio or SHA256.npy, once it
    has been checked; the caller syncs it, and ``folder``. ``mapped`` as ``paths.mapped``.

    Raises:
        ReferenceRefused: see there; nothing is left in ``folder``.
        OSError: the copy can't be written (the disk is full).
    """
    kind: Kind = "audio" if reference.audio is not None else "codes"
    copy = files.temporary_name(folder / "reference")
    try:
        path_named = path_here(reference.path, mapped or {})
        with open_reference(path_named, base_folder=base_folder, allowed_roots=allowed_roots) as source:
            sha256, size = _copy(source, copy, reference.path, limits)
        if kind == "audio":
            with one_cpu.anywhere() if size > DECODED_ANYWHERE else nullcontext():
                audio = check_audio(copy, reference.path, limits)
            path = folder / f"{sha256}.audio"
            snapshot = Snapshot(
                path, kind, sha256, size, audio.frames, audio.seconds, audio.sample_rate, audio.channels
            )
        else:
            frames = check_codes(copy, reference.path, limits)
            snapshot = Snapshot(folder / f"{sha256}.npy", kind, sha256, size, frames, frames / CODE_FRAMES_PER_SECOND)
        files.rename(copy, snapshot.path)
    except BaseException:
        files.remove(copy)
        raise
    return snapshot


def _copy(source: BinaryIO, target: Path, name: str, limits: Limits) -> tuple[str, int]:
    """The sha256 and size of what was copied."""
    before = os.fstat(source.fileno())
    if before.st_size == 0:
        raise ReferenceRefused("empty", f"{quoted(name)} is an empty file")
    digest = hashlib.sha256()
    size = 0
    with open(files.create(target), "wb", buffering=0) as copy:
        while block := _read(source, name):
            size += len(block)
            if size > limits.reference_bytes:
                message = f"{quoted(name)} has more than {limits.reference_bytes} bytes, the limit for a reference"
                raise ReferenceRefused("too_large", message)
            digest.update(block)
            files.append(copy.fileno(), block, durable=False)
    after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (size, after.st_mtime_ns, after.st_ctime_ns):
        raise ReferenceRefused("changed", f"{quoted(name)} changed while it was read: submit the job again")
    return digest.hexdigest(), size


def _read(source: BinaryIO, name: str) -> bytes:
    try:
        return source.read(files.COPY_BYTES)
    except OSError as error:
        raise ReferenceRefused("unreadable", f"{quoted(name)} can't be read: {_why(error)}") from error


def check_audio(path: Path, name: str, limits: Limits) -> AudioFacts:
    """What the recording at ``path`` holds, found by decoding it; ``name`` is what messages call it.

    Raises:
        ReferenceRefused: unreadable, empty, too_short, too_long, non_finite.
    """
    try:
        with soundfile.SoundFile(str(path)) as recording:
            return _check_recording(recording, name, limits)
    except soundfile.SoundFileError as error:
        hint = "; codes are given as 'codes', not as 'audio'" if _is_npy(path) else ": convert it to WAV or FLAC"
        raise ReferenceRefused("unreadable", f"{quoted(name)} is no recording that can be decoded{hint}") from error


def _check_recording(recording: soundfile.SoundFile, name: str, limits: Limits) -> AudioFacts:
    rate, channels, claimed = recording.samplerate, recording.channels, recording.frames
    if not 0 < rate <= HIGHEST_SAMPLE_RATE or not 0 < channels <= MOST_CHANNELS:
        message = f"{quoted(name)} has {channels} channels at {rate} Hz; at most {MOST_CHANNELS} at "
        raise ReferenceRefused("unreadable", f"{message}{HIGHEST_SAMPLE_RATE} Hz can be used")
    if claimed == _UNKNOWN_LENGTH:
        message = f"{quoted(name)} does not say how long it is, as when it was written to a pipe: convert it to WAV"
        raise ReferenceRefused("unreadable", message)
    _check_seconds(claimed / rate, name, limits, longest_only=True)
    block = numpy.empty((max(1, _BLOCK_SAMPLES // channels), channels), dtype=numpy.float32)
    frames = 0
    while True:
        decoded = recording.read(out=block)
        if not len(decoded):
            break
        frames += len(decoded)
        _check_seconds(frames / rate, name, limits, longest_only=True)
        if not numpy.isfinite(decoded).all():
            raise ReferenceRefused(
                "non_finite", f"{quoted(name)} holds samples that are NaN or infinite: export it anew"
            )
    if frames == 0:
        raise ReferenceRefused("empty", f"{quoted(name)} holds no samples")
    if (claimed - frames) / rate > _TOLERATED_LOSS_S:
        message = f"only {frames / rate:.1f} s of the {claimed / rate:.1f} s in {quoted(name)} can be decoded"
        raise ReferenceRefused("unreadable", f"{message}; is the file cut off?")
    _check_seconds(frames / rate, name, limits)
    return AudioFacts(frames, rate, channels)


def _check_seconds(seconds: float, name: str, limits: Limits, *, longest_only: bool = False) -> None:
    if seconds > limits.reference_seconds_max:
        message = f"{quoted(name)} is longer than {limits.reference_seconds_max:g} s: cut it"
        raise ReferenceRefused("too_long", message)
    if seconds < limits.reference_seconds_min and not longest_only:
        message = f"{quoted(name)} has {seconds:.2f} s; a voice needs at least {limits.reference_seconds_min:g} s"
        raise ReferenceRefused("too_short", message)


def check_codes(path: Path, name: str, limits: Limits) -> int:
    """The number of frames in the codec codes at ``path``: .npy, integers, shape (10, frames), the first row from 0
    to 4,095, the others from 0 to 1,023. There is no shortest length but one frame: a frame's duration is the codec's.

    Raises:
        ReferenceRefused: bad_codes, too_long.
    """
    with open(path, "rb") as file:
        shape, dtype = _read_npy_header(file, name)
        if dtype.kind not in "iu":
            raise _bad_codes(name, f"they are of type {quoted(str(dtype))}, not integers")
        if len(shape) != 2 or shape[0] != CODEBOOKS or shape[1] < 1:
            raise _bad_codes(name, f"their shape is {quoted(str(shape))}, not ({CODEBOOKS}, frames)")
        frames = int(shape[1])
        if CODEBOOKS * frames * dtype.itemsize != os.fstat(file.fileno()).st_size - file.tell():
            raise _bad_codes(name, f"the file does not hold the {frames} frames that its header tells of")
        _check_seconds(frames / CODE_FRAMES_PER_SECOND, name, limits, longest_only=True)
        file.seek(0)
        codes = npy_format.read_array(file, allow_pickle=False)
    for row, bound in ((codes[:1], SEMANTIC_CODES), (codes[1:], RESIDUAL_CODES)):
        if row.min() < 0 or row.max() >= bound:
            which = "the first row" if bound == SEMANTIC_CODES else "the rows after the first"
            raise _bad_codes(name, f"{which} must be from 0 to {bound - 1}, and goes from {row.min()} to {row.max()}")
    return frames


def _read_npy_header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], numpy.dtype[numpy.generic]]:
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy_format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = npy_format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format")
    # The header is read as a Python literal, and numpy lets through all that this may raise, its tokenizer's errors
    # among them.
    except Exception as error:
        raise _bad_codes(name, "the file is no .npy as numpy.save writes them") from error
    return shape, dtype


def _bad_codes(name: str, why: str) -> ReferenceRefused:
    return ReferenceRefused("bad_codes", f"{quoted(name)} holds no codec codes: {why}")


def _is_npy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(npy_format.MAGIC_PREFIX)) == npy_format.MAGIC_PREFIX

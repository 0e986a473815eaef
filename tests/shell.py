"""What the tests of the daemon's shell share: settings, jobs in state/, WAVs, faults of the disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon import files
from daemon.config import Settings, load_settings
from daemon.core.job import Limits
from daemon.core.job_parser import parse_job
from daemon.live_job import LiveJob, VoiceReference, build_folder, new_token
from daemon.store import Delivery
from workers.wav import silent_wav

RATE = 8_000


def settings_in(folder: Path, *overrides: str) -> Settings:
    """Settings whose folders all lie in ``folder``; those that the daemon makes at its start are made."""
    settings = load_settings(config_file=None, environ={}, overrides=["paths.root=var", *overrides], cwd=folder)
    for path in (settings.paths.inbox, settings.paths.outbox, settings.paths.rejected, settings.paths.state / "jobs"):
        files.make_folder(path)
    return settings


def names_below(folder: Path) -> set[str]:
    """The names of all that lies anywhere in ``folder``, while a daemon takes folders away in it."""
    return {name for _, folders, plain in os.walk(folder) for name in (*folders, *plain)}


def job_document(texts: Sequence[str] = ("one", "two", "three"), **more: Any) -> dict[str, Any]:
    """A job of one speaker, whose reference is refs/anna.wav."""
    return {
        "speakers": [{"id": "anna", "references": [{"audio": "refs/anna.wav", "text": "hello"}]}],
        "segments": [{"index": index, "speaker": "anna", "text": text} for index, text in enumerate(texts)],
        **more,
    }


def make_live_job(jobs: Path, document: dict[str, Any] | None = None, name: str = "film.json") -> LiveJob:
    """An accepted job in ``jobs`` (state/jobs), whose references are there in name only."""
    content = json.dumps(document or job_document()).encode()
    job = parse_job(content, stem=Path(name).stem, limits=Limits())
    voices = {
        speaker.id: tuple(
            VoiceReference("0.audio", "audio", "0" * 64, reference.text) for reference in speaker.references
        )
        for speaker in job.speakers
    }
    token = new_token()
    staged = jobs / f".{token}.new"
    files.make_folder(staged / "references")
    return LiveJob.open(build_folder(jobs, token, name, content, voices, staged), Limits())


def deliver(job: LiveJob, position: int, *, frames: int = 80, content: bytes | None = None, **more: Any) -> Delivery:
    """A WAV as a worker leaves it, and what the pool makes of the worker's word for it."""
    file = job.segments_folder / f".{position}.wav"
    file.write_bytes(silent_wav(frames, RATE, "PCM_16") if content is None else content)
    values: dict[str, Any] = {
        "job": job, "position": position, "file": file, "frames": frames, "sample_rate": RATE, "seed": 7,
        "truncated": False, "generate_s": 0.5, "worker": 1, "device": "cpu", "attempts": 1, "key": f"key{position}",
    }  # fmt: skip
    return Delivery(**{**values, **more})


class Fault(OSError):
    """The error that ``failing_at`` raises."""


DURABLE = ("create", "write", "fsync", "fdatasync", "rename", "rename_new", "unlink", "mkdir", "rmdir")


@contextmanager
def failing_at(number: int, names: Sequence[str] = DURABLE, error: int = errno.EIO) -> Iterator[Callable[[], bool]]:
    """The ``number``-th change on disk fails without having done anything; the others are the real ones. Gives a
    function that says whether it came to that."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                raise Fault(error, os.strerror(error))
            return real(*arguments, **named)

        return operation

    disk = files.Disk()
    for name in names:
        setattr(disk, name, wrap(getattr(disk, name)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", disk)
        yield lambda: count >= number

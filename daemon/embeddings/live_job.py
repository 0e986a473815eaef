"""A claimed job of speaker embeddings between its claim and its manifest: what has come of every speaker.

Its folder in state/ is like any job's; ``segments/`` holds results that are not in the outbox yet, each under a name
made from its speaker's, so that what a crash left is found again. The journal has one record for several speakers.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from daemon.core.dealing import Speaker
from daemon.core.job import EmbeddingsJob, Limits
from daemon.core.reasons import quoted
from daemon.embeddings.computation import Report
from daemon.journal import Record
from daemon.live_job import JobStatus, LiveJob

SpeakerStatus = Literal["ok", "failed", "skipped", "cancelled"]
Name = tuple[str, str]
"""Dataset and speaker."""


@dataclass(slots=True)
class LiveSpeaker:
    """What has come of one speaker. ``published``: its result is in the outbox, or there is none."""

    status: SpeakerStatus
    utterances: int = 0
    failed: int = 0
    dim: int = 0
    sha256: str | None = None
    code: str | None = None
    message: str | None = None
    published: bool = False


@dataclass
class LiveEmbeddings(LiveJob):
    """See the module's text."""

    has_report: ClassVar[bool] = False
    speakers: dict[Name, LiveSpeaker] = field(default_factory=dict)
    by_status: Counter[str] = field(default_factory=Counter)
    too_few: int = 0
    """Speakers with too few utterances, which are no part of the job's total."""
    known: int = 0
    """Speakers in the corpus, as far as they have been counted."""
    over: bool = False
    """Every speaker has ended."""
    failure: tuple[str, str] | None = None
    """Why the whole job could not be done: a code, and what to do about it."""

    @property
    def asked(self) -> EmbeddingsJob:
        return cast(EmbeddingsJob, self.job)

    @property
    def arrival(self) -> str:
        return f"[Main] Speaker embeddings: {quoted(self.asked.utterances_dir)}"

    def stored_result(self, speaker: Speaker, form: str) -> Path:
        """Where the speaker's result lies until it is published."""
        name = os.fsencode(speaker.dataset) + b"/" + os.fsencode(speaker.name)
        return self.segments_folder / f"{hashlib.sha256(name).hexdigest()[:40]}.{form}"

    # --- what has come of it --------------------------------------------------------------------------------

    def put(self, name: Name, speaker: LiveSpeaker) -> None:
        before = self.speakers.get(name)
        if before is not None:
            self.by_status[before.status] -= 1
        self.speakers[name] = speaker
        self.by_status[speaker.status] += 1

    def counts(self) -> dict[str, int]:
        ended = len(self.speakers)
        return {
            "ok": self.by_status["ok"],
            "cached": 0,
            "failed": self.by_status["failed"],
            "skipped": self.by_status["skipped"],
            "cancelled": self.by_status["cancelled"],
            "running": 0,
            # One more than have ended, for as long as it is not known better.
            "total": ended if self.over else max(self.known - self.too_few, ended + 1),
        }

    def status(self) -> JobStatus:
        """As of any job; a result that was there already is as good as one that was made."""
        counts = self.counts()
        if counts["cancelled"] or (self.cancelled and not self.speakers):
            return "cancelled"
        if self.failure is not None and not counts["ok"] + counts["skipped"]:
            return "failed"
        if counts["failed"] == 0 and self.failure is None:
            return "done"
        return "partial" if counts["ok"] + counts["skipped"] else "failed"

    def unpublished_results(self) -> list[Name]:
        return [name for name, speaker in self.speakers.items() if speaker.status == "ok" and not speaker.published]

    # --- the journal ----------------------------------------------------------------------------------------

    def replay(self, records: Iterable[Record]) -> None:
        for record in records:
            if record["t"] == "speakers":
                for row in record["rows"]:
                    name, speaker = _of_row(row)
                    self.put(name, speaker)
            else:
                super().replay([record])

    def record(self, reports: Iterable[Report]) -> Record:
        """The journal's record of these speakers."""
        return {"t": "speakers", "rows": [_row(report) for report in reports]}

    def take(self, record: Record) -> None:
        """What was recorded is so from now on."""
        self.replay([record])


def _row(report: Report) -> list[Any]:
    # A result of this very job that an earlier life of the daemon had made and not recorded: the first place.
    status = "ok" if report.status == "skipped" and report.existing == 0 else report.status
    return [
        report.speaker.dataset, report.speaker.name, status, report.utterances, report.failed, report.dim,
        report.sha256 or None, report.code or None, report.message or None,
    ]  # fmt: skip


def _of_row(row: list[Any]) -> tuple[Name, LiveSpeaker]:
    dataset, name, *values = row
    return (dataset, name), LiveSpeaker(*values)


def open_job(folder: Path, limits: Limits) -> LiveJob:
    """Read an accepted job of any kind back from its folder.

    Raises:
        OSError, ValueError, JobRejected: the folder is not whole.
    """
    live = LiveJob.open(folder, limits)
    return LiveEmbeddings.open(folder, limits) if isinstance(live.job, EmbeddingsJob) else live

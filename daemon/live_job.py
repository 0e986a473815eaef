"""A claimed job between its claim and its manifest: what is known of every segment, and its folder in state/.

The folder is made whole under a hidden name and renamed into place, so a job is either accepted or still lies in the
inbox's claimed folder and is taken again. From then on the journal says what has happened; ``LiveJob.open`` reads
both, and everything else here is data that the journal could give back.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import structlog

from daemon import files
from daemon.core.events import SegmentSpec
from daemon.core.job import Job, Limits, Segment
from daemon.core.job_parser import parse_job
from daemon.journal import Journal, Record, read_journal
from daemon.tally import Segments, counted

log = structlog.get_logger("dubd.job")

OUT_FILE = "out"
START, STOP = b"start\n", b"stop\n"
REQUEST_FILE = "request.json"
"""The request to redo that a job was made of."""

MOST_STATE_BYTES = 1 << 30
"""What a file of a job's folder in state/ holds at most; a larger one is none of ours."""

SegmentStatus = Literal["waiting", "ok", "failed", "skipped", "cancelled"]
JobStatus = Literal["done", "partial", "failed", "cancelled"]

COST_OF_A_SEGMENT = 20.0
"""Characters of text that a segment's fixed work (prompt, codec, files) is worth in the scheduler's costs."""


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """The engine as its workers report it: part of what shapes the audio."""

    name: str
    version: str
    model: str
    precision: str
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VoiceReference:
    """A reference as snapshot: a file in the job's folder, by content."""

    file: str
    kind: Literal["audio", "codes"]
    sha256: str
    text: str


@dataclass(slots=True)
class LiveSegment:
    """One segment and what has come of it so far. ``published``: its file is in the outbox."""

    counted_in: Segments[LiveSegment] | None = field(default=None, init=False, repr=False, compare=False)
    segment: Segment
    status: SegmentStatus = "waiting"
    attempts: int = 0
    tries: int = 0
    suspect: bool = False
    begun: bool = False
    alone: bool = False
    """A try has been recorded for the dispatch that is out: it counts only if it kills."""
    key: str | None = None
    seed: int | None = None
    cached: bool = False
    published: bool = False
    frames: int = 0
    sample_rate: int = 0
    sha256: str | None = None
    truncated: bool = False
    worker: int | None = None
    device: str | None = None
    generate_s: float | None = None
    seeds: tuple[int, ...] = ()
    flaws: tuple[str, ...] = ()
    code: str | None = None
    message: str | None = None
    peaks: str | None = None
    """The recording's outline (see report.peaks)."""
    finishing: dict[str, Any] | None = None
    """What was done to it after it was spoken (see finishing.steps.finish)."""
    again: bool = False
    """It is redone: a recording that is known already is not what is wanted."""
    history: tuple[dict[str, Any], ...] = ()
    """Its earlier takes, the oldest first, as the manifest tells them."""
    missed: dict[str, Any] | None = None
    """What came of a try to redo it of which nothing has come, so that it is what it was before."""

    @property
    def duration_s(self) -> float | None:
        return self.frames / self.sample_rate if self.status == "ok" and self.sample_rate else None

    def give_back(self) -> None:
        """It is out at no worker any more, and nobody died of it: a try recorded for it is not used up."""
        if self.alone:
            self.tries -= 1
        self.begun = self.alone = False

    def use_up(self, tries: int) -> None:
        """It has failed, and may be tried again: so many tries are used up, and nothing gives them back."""
        self.tries = tries
        self.begun = self.alone = False

    @property
    def cost(self) -> float:
        return COST_OF_A_SEGMENT + len(self.segment.text)


counted(LiveSegment, "status", "begun")


@dataclass(frozen=True, slots=True)
class Claim:
    """A job file taken from the inbox: its token (our name for it), the claimed file, when it was received (Unix)."""

    token: str
    file: Path
    received_at: float

    @property
    def name(self) -> str:
        return self.file.name


def stem_of(name: str) -> str:
    """The file name without ``.json`` in any case."""
    return name[: -len(".json")] if name.casefold().endswith(".json") else name


def new_token() -> str:
    """Sorts by time of claim, and is never given twice."""
    return f"{time.time_ns():020d}-{os.urandom(4).hex()}"


def received_at(token: str) -> float:
    """When a token was made, as Unix time in seconds."""
    return int(token.split("-", 1)[0]) / 1e9


@dataclass
class LiveJob:
    """See the module's text. ``position`` is a segment's place in ``job.segments``."""

    token: str
    folder: Path
    name: str
    job: Job
    voices: dict[str, tuple[VoiceReference, ...]]
    journal: Journal
    segments: Segments[LiveSegment]
    received_at: float
    seen: int = 0
    """The look at the inbox that found its file; 0: that was in an earlier life of the daemon."""
    started_at: float | None = None
    ended_at: float | None = None
    cancelled: bool = False
    taken: bool = False
    """Its outbox folder has been made, and an earlier manifest moved aside."""
    aside: int | None = None
    """The N of the manifest.N.json that was moved aside when it was taken, if one was."""
    earlier: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What the earlier manifest tells of the segments that are redone, by position (see redo.look_back)."""
    ended: bool = False
    """Its manifest is in the outbox; only its traces are left to remove."""
    stopped: bool = False
    """The life of the daemon before this one has ended in order."""
    lost: str | None = None
    """Why it can't be spoken any more: a reference was lost from its folder, and is not where it came from."""
    closed: bool = False
    """Its folder is gone; nothing more is recorded of it."""
    engine: EngineIdentity | None = None
    note: str | None = None
    out: int | None = None
    """The open file of what has been given out in this life of the daemon (see ``give_out``)."""
    has_report: ClassVar[bool] = True
    """It has a page for people."""
    ignored: list[str] = field(default_factory=list)
    _finished: dict[int, None] = field(default_factory=dict, repr=False)
    """Positions of finished files, without those that are known to be in the outbox."""
    _begun: set[int] = field(default_factory=set, repr=False)
    """Positions of those that are suspected by nothing but their beginning (see ``replay``)."""

    # --- making and opening ---------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: Path, limits: Limits) -> LiveJob:
        """Read an accepted job back from its folder; how far it had come is in its journal.

        Raises:
            OSError, ValueError, JobRejected: the folder is not whole.
        """
        document = files.read_regular(folder / "job.json", MOST_STATE_BYTES)
        about = json.loads(files.read_regular(folder / "about.json", MOST_STATE_BYTES))
        job = parse_job(document, stem=stem_of(about["name"]), limits=limits)
        live = cls(
            token=folder.name,
            folder=folder,
            name=about["name"],
            job=job,
            voices={
                speaker: tuple(VoiceReference(**reference) for reference in references)
                for speaker, references in about["voices"].items()
            },
            journal=Journal(folder / "journal.jsonl"),
            segments=Segments(job, map(LiveSegment, job.segments)),
            received_at=received_at(folder.name),
            ignored=list(job.ignored),
        )
        live.replay(read_journal(folder / "journal.jsonl"))
        return live

    @property
    def job_id(self) -> str:
        return self.job.job_id

    @property
    def arrival(self) -> str:
        """What the log says when it has been accepted."""
        return f"[Main] Total tasks: {len(self.segments)}"

    @property
    def segments_folder(self) -> Path:
        return self.folder / "segments"

    def stored_file(self, position: int) -> Path:
        """Where the finished file lies until it is published."""
        return self.segments_folder / f"{position}{self.suffix}"

    @property
    def suffix(self) -> str:
        return ".wav" if self.job.task == "speak" else ".npy"

    # --- what the core is told ------------------------------------------------------------------------------

    def waiting(self) -> tuple[SegmentSpec, ...]:
        """The segments that are still to be spoken, as the core takes them."""
        return tuple(
            SegmentSpec(
                position=position,
                speaker=live.segment.speaker,
                cost=live.cost,
                attempts=live.attempts,
                tries=live.tries,
                suspect=live.suspect,
            )
            for position, live in enumerate(self.segments)
            if live.status == "waiting"
        )

    # --- what has come of it --------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """ok, cached, failed, skipped, cancelled, running and total; cached are among the ok."""
        segments, by_status = self.segments, self.segments.by_status
        return {
            "ok": by_status["ok"],
            "cached": segments.cached,
            "failed": by_status["failed"],
            "skipped": by_status["skipped"],
            "cancelled": by_status["cancelled"],
            "running": segments.running,
            "total": len(segments),
        }

    def status(self) -> JobStatus:
        """How the job ended, once every segment has: done when none failed, failed when none is ok. A cancel that came
        too late to stop anything has cancelled nothing. A redo of which nothing has come counts by how it ended, though
        the earlier take is there."""
        counts = self.counts()
        missed = {segment.missed["status"] for segment in self.segments if segment.missed is not None}
        if counts["cancelled"] or "cancelled" in missed:
            return "cancelled"
        if counts["failed"] == 0 and not missed:
            return "done"
        return "partial" if counts["ok"] else "failed"

    def audio_s(self) -> float:
        return self.segments.audio_s

    def finish(self, position: int, segment: LiveSegment) -> None:
        """It is spoken, and its file stored. May be called from a thread."""
        self.segments[position] = segment
        self._finished[position] = None

    def unpublished(self) -> Iterator[int]:
        """Positions of finished files that are not in the outbox yet. To look for them among all segments of a job of
        10,000, for every few that were published, was a fifth of the processor time after a restart."""
        for position in list(self._finished):
            segment = self.segments[position]
            if segment.published:
                del self._finished[position]
            elif segment.status == "ok":
                yield position

    @property
    def has_unpublished(self) -> bool:
        return next(self.unpublished(), None) is not None

    # --- the journal ----------------------------------------------------------------------------------------

    def replay(self, records: Iterable[Record]) -> None:
        """Bring a job as it was accepted to where these records leave it: its daemon died after the last one."""
        for record in records:
            self._replay(record)
            self.stopped = record["t"] == "stop"
        for position, segment in enumerate(self.segments):
            if segment.begun and segment.status == "waiting" and not segment.suspect:
                segment.suspect = True
                self._begun.add(position)
            # Whether a try had begun may not have come to be written down; that it was made had.
            segment.attempts = max(segment.attempts, segment.tries)
        self.segments.recount()

    # --- what is out at workers -----------------------------------------------------------------------------
    #
    # Lines of the file "out", by the position that they are about: "7", it is given out; "-7", it has come back, spoken
    # or not; "?7", the daemon looks at what was spoken, "-7" again when it has. "start": the first line of a life after
    # one that ended in order; "stop": this one does too. None is synced: they must survive the process alone. The
    # recorder's notes come later than these, as late as the disk is slow, so that these count where both speak.

    def give_out(self, position: int) -> None:
        """Note, before a worker is asked for it, that this segment is about to be given out. Whatever it does to the
        daemon from then on, the next life knows whom to suspect."""
        with contextlib.suppress(OSError):  # a full disk: then what the journal says of its beginning must do
            line = b"%d\n" % position
            if self.out is None:
                self.out = files.open_unsynced(self.folder / OUT_FILE)
                line = START * self.stopped + line
            files.append(self.out, line, durable=False)

    def take_back(self, position: int) -> None:
        """Note that this segment has come back."""
        self._note_out(b"-%d\n" % position)

    def look_at(self, position: int) -> None:
        """Note that what was spoken of this segment is about to be looked at. May be called from a thread."""
        self._note_out(b"?%d\n" % position)

    def stop(self) -> None:
        """Note that this life of the daemon ends in order: nothing that is out is a suspect."""
        self._note_out(STOP)

    def _note_out(self, line: bytes) -> None:
        if self.out is not None:
            with contextlib.suppress(OSError):
                files.append(self.out, line, durable=False)

    def close(self) -> None:
        """Close its files; nothing more is recorded of it."""
        self.closed = True
        self.segments.let_go()
        self.journal.close()
        if self.out is not None:
            os.close(self.out)
            self.out = None

    def suspect_what_was_out(self) -> None:
        """At the start of a life: what was out when the last one ended, unless that was in order, is suspected. That is
        written down at once: an orderly end of this life, before it has given anything out, must not clear it.

        Raises:
            OSError: the machine lacks what it takes to read that; whoever can wait for it calls again.
        """
        path = self.folder / OUT_FILE
        lines: list[bytes] | None = None
        try:
            lines = files.read_regular(path, MOST_STATE_BYTES).splitlines(keepends=True)
        except OSError as error:
            if error.errno in files.SHORTAGES:
                raise
            if not isinstance(error, FileNotFoundError):
                log.warning("what was out can't be read", file=str(path), error=str(error))
        records = self.settle(lines or ())
        with contextlib.suppress(OSError):  # then it is read again at the next start
            if records:
                self.journal.append(records, durable=False)
            if lines is not None:
                files.remove(path)

    def settle(self, lines: Sequence[bytes]) -> list[Record]:
        """What the last life's lines of what was out make of the segments that are not finished, beside what the
        journal has made of them; the records that say so to the lives to come."""
        words: dict[int, bytes] = {}
        for line in lines:
            if line == STOP:
                words = dict.fromkeys(words, b"-")
            with contextlib.suppress(ValueError):
                if line.endswith(b"\n"):  # else torn
                    words[int(line.lstrip(b"-?"))] = line[:1]
        if self.stopped and START not in lines[:1]:
            words = dict.fromkeys(words, b"-")
        records: list[Record] = []
        for position, segment in enumerate(self.segments):
            word = words.get(position)
            if segment.status != "waiting" or not (word or segment.begun or segment.alone):
                continue
            noted = segment.begun or segment.alone
            kind = "looked_at" if word == b"?" else "suspect"
            if word == b"-":
                kind = "back"
                segment.suspect = segment.suspect and position not in self._begun
            if not noted and (kind == "back" or segment.suspect):
                continue  # that is what the journal says
            records.append({"t": kind, "p": position})
            self._replay_segment(kind, segment, records[-1])
        return records

    def _replay(self, record: Record) -> None:
        kind = record["t"]
        if kind == "taken":
            self.taken, self.started_at = True, record["at"]
        elif kind == "aside":
            self.aside = record["n"]
        elif kind == "cancel":
            self.cancelled = True
        elif kind == "end":
            self.ended, self.ended_at = True, record["at"]
        elif kind == "stop":
            for segment in self.segments:
                segment.give_back()
        elif kind == "ignored":
            self.ignored += record["paths"]
        elif "p" in record:
            self._replay_segment(kind, self.segments[record["p"]], record)
            if kind == "ok":
                self._finished[record["p"]] = None
        # Others are a later version's, and hold nothing that this one could lose by not knowing them.

    def _replay_segment(self, kind: str, segment: LiveSegment, record: Record) -> None:
        if kind == "began":
            segment.attempts += 1
            segment.begun = True
        elif kind == "back":
            segment.give_back()
        elif kind in ("suspect", "looked_at"):
            segment.begun, segment.suspect, segment.alone = False, True, False
        elif kind == "try":
            segment.tries = record["tries"]
            segment.alone = True
        elif kind == "tried":
            segment.use_up(record["tries"])
        elif kind == "ok":
            segment.status = "ok"
            for name in SPOKEN_FIELDS:
                value = record.get(name) if name in LATER_FIELDS else record[name]
                setattr(segment, name, tuple(value) if isinstance(value, list) else value)
        elif kind in ("failed", "skipped", "cancelled"):
            segment.status = kind  # type: ignore[assignment]  # one of the three just named
            for name in ("attempts", "worker", "code", "message"):
                setattr(segment, name, record.get(name, getattr(segment, name)))


SPOKEN_FIELDS = (
    "key", "seed", "cached", "frames", "sample_rate", "sha256", "truncated", "attempts",
    "worker", "device", "generate_s", "seeds", "flaws", "peaks",
    "finishing",
)  # fmt: skip
"""What the journal keeps of a finished segment, besides its position."""

LATER_FIELDS = ("peaks", "finishing")
"""Those of them that journals of earlier versions have not got."""


def spoken_record(position: int, segment: LiveSegment) -> Record:
    """The journal's record of a finished segment."""
    values: dict[str, Any] = {name: getattr(segment, name) for name in SPOKEN_FIELDS}
    return {"t": "ok", "p": position, **values}


def build_folder(
    state_jobs: Path,
    token: str,
    name: str,
    document: bytes,
    voices: dict[str, tuple[VoiceReference, ...]],
    staged: Path,
    settle: Callable[[], None] = lambda: None,
    request: bytes | None = None,
) -> Path:
    """Make the accepted job's folder out of ``staged``, a hidden folder that already holds ``references/``; durable
    when this returns. All that is in it is synced at once, and what ``settle`` does is done along with it: it waits for
    the disk as well. ``request``: what was dropped, where that was a request to redo."""
    files.make_unsynced_folder(staged / "segments")
    files.write_unsynced(staged / "job.json", document)
    files.write_unsynced(staged / "about.json", about_job(name, voices))
    written = [staged / "job.json", staged / "about.json"]
    if request is not None:
        files.write_unsynced(staged / REQUEST_FILE, request)
        written.append(staged / REQUEST_FILE)
    references = staged / "references"
    folders = (references, staged / "segments", staged)
    files.sync_all([*references.iterdir(), *written], folders, [settle])
    folder = state_jobs / token
    files.rename(staged, folder)
    files.fsync_folder(state_jobs)
    return folder


def about_job(name: str, voices: dict[str, tuple[VoiceReference, ...]]) -> bytes:
    """What about.json says of a job: the name of its file, its references by content."""
    told = {
        "name": name,
        "voices": {
            speaker: [
                {"file": reference.file, "kind": reference.kind, "sha256": reference.sha256, "text": reference.text}
                for reference in references
            ]
            for speaker, references in voices.items()
        },
    }
    return json.dumps(told, ensure_ascii=True).encode("ascii")

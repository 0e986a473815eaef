"""What a simulated daemon finds again when it comes back: its journals, written and synced as the recorder does it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from daemon.core.job import Limits
from daemon.core.job_parser import parse_job
from daemon.journal import Journal, Record
from daemon.live_job import LiveJob, LiveSegment
from daemon.tally import Segments

FINAL = ("ok", "failed", "skipped", "cancelled")

_NOWHERE = Path("/nonexistent")


@dataclass
class PaperJob:
    """An accepted job. ``written`` records survive the daemon's death, the first ``synced`` of them a power cut too;
    ``out``: the lines about what is out at workers, which survive the death alone; ``over``: its manifest is out."""

    token: str
    job_id: str
    document: bytes
    written: list[Record] = field(default_factory=list)
    synced: int = 0
    out: list[bytes] = field(default_factory=list)
    over: bool = False

    def append(self, records: Iterable[Record], *, durable: bool) -> None:
        self.written += records
        if durable:
            self.synced = len(self.written)

    def power_cut(self) -> None:
        del self.written[self.synced :]
        self.out.clear()

    def read_back(self) -> LiveJob:
        """As LiveJob.open and LiveJob.suspect_what_was_out do it, without files."""
        job = parse_job(self.document, stem=self.job_id, limits=Limits())
        live = LiveJob(
            token=self.token,
            folder=_NOWHERE,
            name=f"{self.job_id}.json",
            job=job,
            voices={},
            journal=Journal(_NOWHERE),
            segments=Segments(job, map(LiveSegment, job.segments)),
            received_at=0.0,
        )
        live.replay(self.written)
        self.append(live.settle(self.out), durable=False)
        self.out.clear()
        return live

    def final_records(self) -> dict[int, list[Record]]:
        """The records that end a segment, by its position."""
        found: dict[int, list[Record]] = {}
        for record in self.written:
            if record["t"] in FINAL:
                found.setdefault(record["p"], []).append(record)
        return found


def document(job_id: str, priority: int, speakers: list[str], texts: list[str]) -> bytes:
    """A job whose segments have these speakers and texts."""
    body = {
        "job_id": job_id,
        "priority": priority,
        "speakers": [
            {"id": speaker, "references": [{"audio": f"{speaker}.wav", "text": "Hello."}]}
            for speaker in dict.fromkeys(speakers)
        ],
        "segments": [
            {"index": index, "speaker": speaker, "text": text}
            for index, (speaker, text) in enumerate(zip(speakers, texts, strict=True))
        ],
    }
    return json.dumps(body).encode()

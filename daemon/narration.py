"""The log lines by which people follow a job: the assignment, and what each worker is doing for it.

People of the scheme that dubd replaces watch for these very lines; programs read the fields beside them.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import structlog

from daemon.live_job import LiveJob

log = structlog.get_logger("dubd.job")

STEPS = 5
"""A speaker's progress is told after the first segment, and then about so often, but not before five more segments."""

MOST_NAMED = 50
"""Speakers of a worker that the assignment names."""


class Narration:
    """Tells one job. ``assignment``: worker, its speakers, how many texts, as the core has dealt them."""

    def __init__(self, job: LiveJob, assignment: list[tuple[int, list[str], int]]) -> None:
        self._job = job
        self._dealt = {worker: texts for worker, _, texts in assignment}
        self._speakers = {worker: speakers for worker, speakers, _ in assignment}
        self._texts = Counter(live.segment.speaker for live in job.segments if live.status == "waiting")
        self._spoken: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._by_worker: Counter[int] = Counter()
        self._failed_by_worker: Counter[int] = Counter()
        self._heard: dict[int, set[str]] = defaultdict(set)
        self._say(f"[Main] Speakers: {len(job.job.speakers)}")
        if assignment:
            self._say("[Main] Speaker assignment:")
        for worker, speakers, texts in assignment:
            named = ", ".join([*speakers[:MOST_NAMED], *(["..."] if len(speakers) > MOST_NAMED else [])])
            self._say(f"[Main] Worker {worker}: {len(speakers)} speakers (IDs: [{named}]), {texts} texts")

    def began(self, worker: int, speaker: str) -> None:
        """A worker has begun a segment of this speaker."""
        heard = self._heard[worker]
        if speaker not in heard:
            heard.add(speaker)
            of = max(len(self._speakers.get(worker, ())), len(heard))
            self._say(f"[Worker {worker}] Processing Speaker {speaker} ({len(heard)}/{of})", texts=self._texts[speaker])

    def spoken(self, worker: int, speaker: str) -> None:
        """A segment of this speaker is finished."""
        self._spoken[speaker] += 1
        self._by_worker[worker] += 1
        self._tell_progress(worker, speaker)

    def failed(self, worker: int, speaker: str) -> None:
        """A segment of this speaker has failed for good."""
        self._failed[speaker] += 1
        self._failed_by_worker[worker] += 1
        self._tell_progress(worker, speaker)

    def _tell_progress(self, worker: int, speaker: str) -> None:
        failed = {"failed": self._failed[speaker]} if self._failed[speaker] else {}
        done, texts = self._spoken[speaker] + self._failed[speaker], self._texts[speaker]
        if done >= texts:
            self._say(f"[Worker {worker}] ✅ Completed Speaker {speaker}: {self._spoken[speaker]} segments", **failed)
        elif done == 1 or done % max(STEPS, texts // STEPS) == 0:
            self._say(f"[Worker {worker}] Speaker {speaker} progress: {done}/{texts}")

    def ended(self) -> None:
        """The job's last segment has ended."""
        for worker in sorted(self._by_worker.keys() | self._failed_by_worker.keys()):
            spoken, failed = self._by_worker[worker], self._failed_by_worker[worker]
            line = f"[Worker {worker}] ✅ All done! Processed {spoken}/{spoken + failed} segments"
            self._say(line, dealt=self._dealt.get(worker, 0))

    def _say(self, line: str, **fields: object) -> None:
        log.info(line, job=self._job.job_id, **fields)

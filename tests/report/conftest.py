"""Jobs with real recordings beside their report, and a real browser to open it in."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from daemon import files, outbox
from daemon.core.job import Limits
from daemon.live_job import EngineIdentity, LiveJob
from daemon.report import job_report
from daemon.store import store
from tests.report.browser import Browser, chromium
from tests.shell import RATE, deliver, make_live_job

STARTED_AT = 1_700_000_000.0


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests, as starting one takes longer than most of them."""
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def tone(seconds: float, loudness: float = 0.5) -> bytes:
    """A WAV with a tone that swells and fades."""
    time_s = numpy.arange(int(seconds * RATE)) / RATE
    sound = loudness * numpy.sin(2 * math.pi * 440 * time_s) * numpy.sin(math.pi * time_s / seconds)
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@dataclass
class Ended:
    """An ended job: its folder in the outbox, the report in it."""

    job: LiveJob
    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / job_report.FILE_NAME

    def write(self) -> None:
        files.write_atomically(self.report, job_report.build(self.job, STARTED_AT + 9), durable=False)


def end_job(
    folder: Path, segments: Sequence[dict[str, Any]], *, seconds: float = 0.4, name: str = "film.json", **more: Any
) -> Ended:
    """A job whose segments have come to the end that each names under ``come``: "ok" unless given, "failed", "skipped",
    "cancelled" or "waiting"; the ok ones with a WAV of ``seconds``."""
    speakers = dict.fromkeys(segment.get("speaker", "anna") for segment in segments)
    document = {
        "speakers": [{"id": speaker, "references": [{"audio": "a.wav", "text": "hm"}]} for speaker in speakers],
        "segments": [
            {"index": index, "speaker": "anna", **{key: value for key, value in segment.items() if key != "come"}}
            for index, segment in enumerate(segments)
        ],
        **more,
    }
    (folder / "jobs").mkdir(parents=True)
    job = make_live_job(folder / "jobs", document, name)
    assert len(job.segments) <= Limits().segments
    job.received_at, job.started_at, job.ended_at = STARTED_AT, STARTED_AT, STARTED_AT + 8
    job.engine = EngineIdentity("draft", "1", "espeak-ng-1", "fp32")
    wav = tone(seconds)
    frames = int(seconds * RATE)
    results = folder / "outbox" / job.job_id
    results.mkdir(parents=True)
    come = [segment.get("come", "ok") for segment in segments]
    assert not store([deliver(job, p, frames=frames, content=wav) for p, what in enumerate(come) if what == "ok"])
    for position, what in enumerate(come):
        live = job.segments[position]
        if what == "ok":
            outbox.publish(results, job, position)
        else:
            live.status = what
        if what == "failed":
            live.code, live.message = "nothing_spoken", "three tries ended in silence"
    ended = Ended(job, results)
    ended.write()
    return ended


def wait_for(browser: Browser, condition: str, *arguments: Any) -> Any:
    """What the JavaScript expression gives, once it is true."""
    deadline = time.monotonic() + 20
    while not (found := browser.run(f"return {condition}", *arguments)):
        assert time.monotonic() < deadline, f"{condition} has not come true"
        time.sleep(0.02)
    return found

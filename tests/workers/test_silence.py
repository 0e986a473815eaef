"""The engine that costs nothing."""

from __future__ import annotations

import io

import pytest
import soundfile

from tests.workers.conftest import StartWorker
from workers.protocol import EXIT_NOT_LOADED


def test_it_writes_silence_of_the_length_asked_for(start_worker: StartWorker) -> None:
    """At the rate and in the subtype of the job."""
    worker = start_worker("silence")
    worker.start(options={"seconds": 0.25})
    samples, rate = soundfile.read(io.BytesIO(worker.say("Hello.", sample_rate=16_000, subtype="FLOAT")))
    assert (len(samples), rate) == (4_000, 16_000)
    assert not samples.any()
    ticket = worker.speak("Hello.")
    assert worker.answer(ticket)["frames"] == soundfile.info(worker.wav(ticket)).frames == 11_025


@pytest.mark.parametrize("options", [{"seconds": "long"}, {"seconds": -1}, {"wait_s": 1e9}])
def test_options_that_make_no_sense(start_worker: StartWorker, options: dict[str, object]) -> None:
    """Told when it loads, not with the first segment."""
    worker = start_worker("silence")
    worker.hello(options=options)
    assert worker.receive("failed")["code"] == "bad_options"
    assert worker.wait() == EXIT_NOT_LOADED


def test_it_says_what_it_cannot_do(start_worker: StartWorker) -> None:
    """Codec codes, strange subtypes, a folder that is not there: failed, and the engine goes on."""
    worker = start_worker("silence")
    worker.start()
    voice = {"id": "a", "references": []}
    worker.send({"type": "encode", "ticket": 100, "voice": voice, "output": {"path": str(worker.wav(100))}})
    assert worker.answer(100)["code"] == "unsupported"
    assert worker.answer(worker.speak("Hello.", subtype="VORBIS"))["code"] == "unsupported_output"
    message = worker.message("Hello.")
    message["output"]["path"] = str(worker.folder / "missing" / "file")
    worker.send(message)
    failed = worker.answer(message["ticket"])
    assert (failed["code"], failed["retryable"]) == ("write_failed", True)
    worker.say("Hello.")

"""The serve loop: the handshake, slots, answers, cancelling, and an end that tells the truth."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

import pytest

from tests.workers.conftest import StartWorker
from workers.protocol import EXIT_ENGINE_BROKE, EXIT_NOT_LOADED, EXIT_PROTOCOL_BROKEN, PROTOCOL_VERSION, encode_frame

ANSWERS = ("spoken", "failed", "cancelled", "encoded")


def test_the_handshake(start_worker: StartWorker) -> None:
    """``ready`` says all that the daemon records of an engine."""
    worker = start_worker("silence")
    ready = worker.start(slots=5)
    assert ready["engine"] == "silence"
    assert ready["slots"] == 5
    assert ready["sample_rate"] == 44_100
    assert ready["device"] == "cpu"
    assert ready["load_s"] >= 0
    assert {"engine_version", "model", "ignored"} <= ready.keys()


def test_another_protocol_version_is_refused(start_worker: StartWorker) -> None:
    """Both versions are named, and what to do."""
    worker = start_worker("silence")
    worker.hello(protocol=PROTOCOL_VERSION + 1)
    failed = worker.receive("failed")
    assert failed["ticket"] is None
    assert failed["code"] == "protocol_mismatch"
    assert str(PROTOCOL_VERSION) in failed["message"]
    assert str(PROTOCOL_VERSION + 1) in failed["message"]
    assert "checkout" in failed["message"]
    assert worker.wait() == EXIT_NOT_LOADED


def test_unknown_settings_are_no_obstacle(start_worker: StartWorker) -> None:
    """A daemon of a later version of the same protocol may say more."""
    worker = start_worker("silence")
    worker.send(
        {
            "type": "hello",
            "protocol": PROTOCOL_VERSION,
            "news": 1,
            "engine": {"name": "silence", "flavour": "mint", "slots": None},
            "device": "cpu",
            "threads": 1,
        }
    )
    assert worker.receive("ready")["slots"] > 0


@pytest.mark.parametrize(
    ("engine", "code", "says"),
    [
        ("nosuch", "unknown_engine", "draft, fish, silence"),
        ("nosuch:Engine", "missing_module", "worker.path"),
        ("faulty:NoSuch", "unknown_engine", "no class 'NoSuch'"),
    ],
)
def test_an_engine_that_is_not_there(start_worker: StartWorker, engine: str, code: str, says: str) -> None:
    """The message says how to mend it; exit 3."""
    worker = start_worker(engine)
    worker.hello()
    failed = worker.receive("failed")
    assert (failed["ticket"], failed["code"]) == (None, code)
    assert says in failed["message"]
    assert worker.wait() == EXIT_NOT_LOADED


def test_an_engine_whose_modules_are_not_there(start_worker: StartWorker, bare_python: str) -> None:
    """The module and the environment are named."""
    worker = start_worker("draft", python=bare_python)
    worker.hello()
    failed = worker.receive("failed")
    assert failed["code"] == "missing_module"
    assert "'numpy'" in failed["message"]
    assert "worker.python" in failed["message"]


def test_a_load_failure_has_its_own_code(start_worker: StartWorker) -> None:
    """What the engine can name reaches the daemon word for word; exit 3."""
    worker = start_worker("faulty:Faulty")
    worker.hello(options={"load": "fail"})
    failed = worker.receive("failed")
    assert failed["code"] == "checkpoint_missing"
    assert failed["message"] == "the checkpoint is not there; this is what was asked for"
    assert worker.wait() == EXIT_NOT_LOADED
    assert "Traceback" not in worker.stderr


def test_an_unexpected_load_failure_leaves_a_traceback(start_worker: StartWorker) -> None:
    """What the engine can't name is told by its type and words, with the traceback on stderr."""
    worker = start_worker("faulty:Faulty")
    worker.hello(options={"load": "raise"})
    failed = worker.receive("failed")
    assert failed["code"] == "load_failed"
    assert failed["message"].startswith("RuntimeError: ")
    assert worker.wait() == EXIT_NOT_LOADED
    assert "Traceback" in worker.stderr


def test_beats_come_while_loading_and_while_hanging(start_worker: StartWorker) -> None:
    """They say that the process lives and what it is doing."""
    worker = start_worker("faulty:Faulty")
    worker.hello(options={"load": "hang"}, beat_seconds=0.01)
    assert worker.receive("beat")["activity"] == "loading"

    worker = start_worker("faulty:Faulty")
    worker.start(beat_seconds=0.01)
    assert worker.receive("beat")["in_flight"] == 0
    worker.receive("began", ticket=worker.speak("{wait}"))
    beat = worker.receive("beat")
    while not beat["in_flight"]:
        beat = worker.receive("beat")
    assert beat["activity"] == "misbehaving with 1 segments"
    assert beat["memory_bytes"] > 0 and beat["resident_bytes"] > 1_000_000


def test_what_has_no_slot_is_held_in_order(start_worker: StartWorker) -> None:
    """``began`` comes when a slot is taken, slot for slot in the order of sending, and never before a free one."""
    worker = start_worker("waiting:Waiting")
    worker.start(slots=2)
    tickets = [worker.speak(f"Number {number}.") for number in range(7)]
    life: list[tuple[str, int]] = []
    while sum(kind == "spoken" for kind, _ in life) < len(tickets):
        message = worker.receive("began", "spoken")
        life.append((message["type"], message["ticket"]))
    assert [ticket for kind, ticket in life if kind == "began"] == tickets
    running = 0
    for kind, _ in life:
        running += 1 if kind == "began" else -1
        assert 0 <= running <= 2


def test_a_held_segment_is_given_back_as_not_begun(start_worker: StartWorker) -> None:
    """It has cost nothing, and the one after it moves up."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=1)
    first, second, third = worker.speak("{wait}"), worker.speak("two"), worker.speak("three")
    worker.receive("began", ticket=first)
    worker.send({"type": "cancel", "ticket": second})
    assert worker.answer(second) == {"type": "cancelled", "ticket": second, "began": False}
    worker.send({"type": "cancel", "ticket": first})
    assert worker.answer(first) == {"type": "cancelled", "ticket": first, "began": True}
    assert worker.answer(third)["type"] == "spoken"
    assert not worker.wav(second).exists()


def test_recalling_leaves_what_has_begun(start_worker: StartWorker) -> None:
    """The recall may have crossed the ``began``: what is half spoken would only have to be spoken again."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=1)
    first, second = worker.speak("{wait}"), worker.speak("two")
    worker.receive("began", ticket=first)
    worker.send({"type": "recall", "ticket": first}, {"type": "recall", "ticket": second}, {"type": "recall"})
    assert worker.receive("cancelled") == {"type": "cancelled", "ticket": second, "began": False}
    worker.send({"type": "cancel", "ticket": first})
    assert worker.answer(first) == {"type": "cancelled", "ticket": first, "began": True}


def test_cancelling_what_is_not_there_does_nothing(start_worker: StartWorker) -> None:
    """The answer may have crossed the cancel on its way."""
    worker = start_worker("silence")
    worker.start()
    ticket = worker.speak("Hello.")
    worker.answer(ticket)
    worker.send({"type": "cancel", "ticket": ticket}, {"type": "cancel", "ticket": 99}, {"type": "cancel"})
    assert worker.answer(worker.speak("Hello again."))["type"] == "spoken"
    worker.finish()
    assert [message["type"] for message in worker.rest()] == ["hello", "began", "began"]


def test_every_ticket_is_answered_exactly_once(start_worker: StartWorker) -> None:
    """Whatever the engine says of them: twice, of others, badly, or when they were cancelled meanwhile."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=3)
    markers = ("lie-twice", "fail", "lie-ticket", "refuse", "disk", "memory", "memory-batch")
    texts = ["one", *(f"{{{marker}}}" for marker in markers), "two"] * 12
    tickets = [worker.speak(text) for text in texts]
    for ticket in tickets[::5]:
        worker.send({"type": "cancel", "ticket": ticket})
    answers = Counter(worker.receive(*ANSWERS)["ticket"] for _ in tickets)
    worker.finish()
    answers.update(message["ticket"] for message in worker.rest() if message["type"] in ANSWERS)
    assert answers == Counter(tickets)


def test_an_engine_short_of_memory_gets_fewer_segments(start_worker: StartWorker) -> None:
    """The slots it gives up are told, and no longer filled."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=4)
    failed = worker.answer(worker.speak("{memory}"))
    assert (failed["code"], failed["slots"]) == ("out_of_memory", 2)
    tickets = [worker.speak("{wait}") for _ in range(3)]
    worker.receive("began", ticket=tickets[1])
    for ticket in reversed(tickets):
        worker.send({"type": "cancel", "ticket": ticket})
    assert [worker.answer(ticket)["began"] for ticket in tickets] == [True, True, False]


@pytest.mark.parametrize("text", ["{raise}", "{raise-submit}"])
def test_an_engine_that_breaks_over_one_segment(start_worker: StartWorker, text: str) -> None:
    """Alone, it is to blame: it fails with what was raised, may be tried again, and the process ends."""
    worker = start_worker("faulty:Faulty")
    worker.start()
    answer = worker.answer(worker.speak(text))
    assert answer["code"] == "engine_error"
    assert answer["retryable"]
    assert "RuntimeError" in answer["message"]
    assert worker.wait() == EXIT_ENGINE_BROKE
    assert "Traceback" in worker.stderr


def test_an_engine_that_breaks_over_several_segments(start_worker: StartWorker) -> None:
    """Nobody knows whose fault it was: none is answered, so that the daemon takes all that had begun for suspects,
    and what was held for untouched."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=2)
    worker.send(worker.message("{wait}"), worker.message("{raise}"), worker.message("held"))
    messages = worker.rest()
    assert [(message["type"], message["ticket"]) for message in messages if message["type"] != "hello"] == [
        ("began", 1),
        ("began", 2),
    ]
    assert worker.wait() == EXIT_ENGINE_BROKE


@pytest.mark.parametrize(("text", "status"), [("{crash}", -11), ("{kill}", -9), ("{exit}", 7)])
def test_a_crash_is_preceded_by_its_began(start_worker: StartWorker, text: str, status: int) -> None:
    """The daemon knows whom to suspect; of a crash in C the stack is on stderr."""
    worker = start_worker("faulty:Faulty")
    worker.start()
    ticket = worker.speak(text)
    assert [(message["type"], message.get("ticket")) for message in worker.rest()] == [
        ("hello", None),
        ("began", ticket),
    ]
    assert worker.wait() == status
    if text == "{crash}":
        assert "Segmentation fault" in worker.stderr


def test_a_fault_that_strikes_once(start_worker: StartWorker, tmp_path: Path) -> None:
    """The marker of the test engine that the tests of the daemon rely on."""
    text = f"{{crash {tmp_path / 'struck'}}} All is well."
    first = start_worker("faulty:Faulty")
    first.start()
    first.speak(text)
    assert first.wait() == -11
    second = start_worker("faulty:Faulty")
    second.start()
    assert second.answer(second.speak(text))["type"] == "spoken"


def test_stop_leaves_work_unfinished(start_worker: StartWorker) -> None:
    """It ends with status 0, and what it held is not answered."""
    worker = start_worker("faulty:Faulty")
    worker.start(slots=1)
    worker.receive("began", ticket=worker.speak("{wait}"))
    worker.speak("held")
    worker.send({"type": "stop"})
    assert worker.wait() == 0
    assert not [message for message in worker.rest() if message["type"] in ANSWERS]


def test_a_reader_that_is_gone_ends_the_worker(start_worker: StartWorker) -> None:
    """Its answers reach nobody, so it goes, without a traceback."""
    worker = start_worker("waiting:Waiting")
    worker.start()
    assert worker.process.stdout is not None
    worker.process.stdout.close()
    worker.speak("Hello.")
    assert worker.wait() == 0
    assert "Traceback" not in worker.stderr


BROKEN = {
    "oversized": struct.pack(">I", 1 << 30),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "no_json": struct.pack(">I", 3) + b"{a}",
    "no_object": struct.pack(">I", 2) + b"[]",
    "no_type": struct.pack(">I", 2) + b"{}",
    "unknown_type": encode_frame({"type": "sing"}),
    "no_ticket": encode_frame({"type": "speak", "text": "Hello."}),
    "no_output": encode_frame({"type": "speak", "ticket": 1, "text": "a", "voice": {"id": "a", "references": []}}),
    "second_hello": encode_frame({"type": "hello", "protocol": PROTOCOL_VERSION}),
    "deep": struct.pack(">I", 60_000) + b"[" * 60_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_makes_no_sense_ends_the_worker(start_worker: StartWorker, name: str) -> None:
    """The stream can't be trusted any more: exit 4, with one line that says why, and no answer invented."""
    worker = start_worker("silence")
    worker.start()
    worker.send_bytes(BROKEN[name])
    assert worker.wait() == EXIT_PROTOCOL_BROKEN
    (line,) = worker.stderr.splitlines()
    assert line.startswith("the daemon's frames can't be understood: ")
    assert [message["type"] for message in worker.rest()] == ["hello"]


def test_a_stream_that_ends_inside_a_frame(start_worker: StartWorker) -> None:
    """A daemon that died while writing is told from one that has finished."""
    worker = start_worker("silence")
    worker.start()
    worker.send_bytes(encode_frame({"type": "stop"})[:-2])
    worker.finish()
    assert worker.wait() == EXIT_PROTOCOL_BROKEN
    assert "inside a frame" in worker.stderr


def test_a_first_message_that_is_no_hello(start_worker: StartWorker) -> None:
    """Only a stop needs no introduction."""
    worker = start_worker("silence")
    worker.send({"type": "stop"})
    assert worker.wait() == 0
    worker = start_worker("silence")
    worker.send({"type": "cancel", "ticket": 1})
    assert worker.wait() == EXIT_PROTOCOL_BROKEN
    assert "must be a hello" in worker.stderr


def test_a_ticket_that_is_there_already(start_worker: StartWorker) -> None:
    """Two segments of one ticket could not be told apart."""
    worker = start_worker("faulty:Faulty")
    worker.start()
    message = worker.message("{wait}")
    worker.send(message, message)
    assert worker.wait() == EXIT_PROTOCOL_BROKEN
    assert "ticket 1 is here already" in worker.stderr

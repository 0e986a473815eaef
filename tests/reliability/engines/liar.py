"""A worker that lies, in place of workers/__main__.py: it speaks most segments honestly, and now and then answers for
tickets it was not given, twice, late, out of order, with values of the wrong kind, or not in frames at all.

    python liar.py SEEDS_FILE TALLY_FILE ...   (what the daemon adds is not looked at)

Each process takes the next seed; the number of lies told is added to the tally. The standard library and
workers.protocol alone.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from workers.protocol import PROTOCOL_VERSION, FrameDecoder, encode_frame
from workers.wav import silent_wav

SAMPLE_RATE = 8_000
FRAMES = 256
HEADER = 44
LIES_A_LIFE = 6
ODDS = 0.35


def audio_of(text: str) -> bytes:
    """The WAV of a text, its own."""
    content = bytearray(silent_wav(FRAMES, SAMPLE_RATE, "PCM_16"))
    content[HEADER:] = hashlib.shake_128(text.encode()).digest(len(content) - HEADER)
    return bytes(content)


def add_line(path: str) -> int:
    """Append a line; how many there are then."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, b"x\n")
    os.close(descriptor)
    return os.stat(path).st_size // 2


class Liar:
    def __init__(self, seed: int, tally: str) -> None:
        self._dice = random.Random(seed)
        self._tally = tally
        self._lies = 0
        self._past: list[dict[str, Any]] = []
        self._held: list[dict[str, Any]] = []

    def run(self) -> None:
        self.say({"type": "hello", "protocol": PROTOCOL_VERSION, "pid": os.getpid(), "python": "3"})
        decoder = FrameDecoder()
        while data := os.read(0, 1 << 16):
            for message in decoder.feed(data):
                self.hear(message)
            while self._held:
                self.answer(self._held.pop(0))

    def say(self, *messages: dict[str, Any]) -> None:
        self.write(b"".join(encode_frame(message) for message in messages))

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "hello":
            self.say(self.ready())
        elif kind == "speak":
            self._held.append(message)
        elif kind in ("recall", "cancel"):
            for held in self._held:
                if held["ticket"] == message["ticket"]:
                    self._held.remove(held)
                    self.say({"type": "cancelled", "ticket": message["ticket"], "began": False})
                    return
        elif kind == "stop":
            os._exit(0)

    @staticmethod
    def ready(slots: object = 2) -> dict[str, Any]:
        return {
            "type": "ready", "engine": "liar", "engine_version": "1", "model": "liar", "slots": slots,
            "sample_rate": SAMPLE_RATE, "device": "cpu", "load_s": 0.0, "ignored": [],
        }  # fmt: skip

    def answer(self, message: dict[str, Any]) -> None:
        ticket = message["ticket"]
        began: dict[str, Any] = {"type": "began", "ticket": ticket}
        spoken: dict[str, Any] = {
            "type": "spoken", "ticket": ticket, "frames": FRAMES, "sample_rate": SAMPLE_RATE, "seed": 1,
            "truncated": False, "generate_s": 0.0,
        }  # fmt: skip
        with open(message["output"]["path"], "wb") as file:
            file.write(audio_of(message["text"]))
        self._past.append(spoken)
        if self._lies >= LIES_A_LIFE or self._dice.random() > ODDS:
            self.say(began, spoken)
            return
        self._lies += 1
        add_line(self._tally)
        self.lie(message, began, spoken)

    def lie(self, message: dict[str, Any], began: dict[str, Any], spoken: dict[str, Any]) -> None:
        dice, ticket = self._dice, message["ticket"]
        stranger = dice.choice((0, -1, ticket + 1, ticket + 10**6, 2**70))
        strange: object = dice.choice((None, True, "1", 1.5, [], {}, -1, 2**70, 1e300))
        match dice.randrange(16):
            case 0:  # for a ticket that was not given
                self.say(began, {**spoken, "ticket": stranger}, spoken)
            case 1:  # twice
                self.say(began, began, spoken, spoken)
            case 2:  # late
                late = dice.choice(self._past)
                self.say(began, spoken, {**late, "type": "failed", "code": "late", "message": "?"}, late)
            case 3:  # without having begun
                self.say(spoken, began)
            case 4:  # a value of the wrong kind
                name = dice.choice(sorted(spoken))
                self.say(began, {**spoken, name: strange if name != "type" else "unheard-of"})
            case 5:  # something missing
                del spoken[dice.choice(sorted(set(spoken) - {"type"}))]
                self.say(began, spoken)
            case 6:  # other slots than before
                self.say(self.ready(dice.choice((1, 1000, 10**9, 0, -3, "2"))), began, spoken)
            case 7:  # a file that it has not written
                os.unlink(message["output"]["path"])
                self.say(began, spoken)
            case 8:  # half a file
                os.truncate(message["output"]["path"], 100)
                self.say(began, spoken)
            case 9:  # a folder, a pipe or a link where the file should be
                path = message["output"]["path"]
                os.unlink(path)
                dice.choice((os.mkdir, os.mkfifo, lambda name: os.symlink("/etc/passwd", name)))(path)
                self.say(
                    began, dice.choice((spoken, {"type": "failed", "ticket": ticket, "code": "x", "message": "y"}))
                )
            case 10:  # given back unasked
                self.say(began, {"type": "cancelled", "ticket": ticket, "began": dice.choice((True, False, "no"))})
            case 11:  # out of memory, with absurd slots left
                failed = {
                    "type": "failed",
                    "ticket": ticket,
                    "code": "out_of_memory",
                    "message": "?",
                    "retryable": True,
                }
                self.say(began, {**failed, "slots": dice.choice((1, 0, -5, 10**9, None))})
            case 12:  # a beat of nonsense
                self.say(
                    began,
                    {
                        "type": "beat",
                        "in_flight": strange,
                        "memory_bytes": strange,
                        "activity": strange,
                        "resident_bytes": strange,
                    },
                )
                self.say(spoken)
            case 13:  # noise among the frames
                self.say(began)
                self.write(dice.randbytes(dice.choice((1, 4, 100, 100_000))))
                time.sleep(0.05)
                os._exit(dice.choice((0, 1, 7)))
            case 14:  # half a frame, and the end
                self.write(encode_frame(spoken)[: dice.randint(1, 30)])
                os._exit(0)
            case _:  # a frame that announces more than it may
                self.say(began)
                self.write(dice.choice((b"\xff\xff\xff\xff", b"\x00\x10\x00\x01")) + b"x" * 64)
                time.sleep(0.05)
                os._exit(0)


if __name__ == "__main__":
    Liar(add_line(sys.argv[1]), sys.argv[2]).run()

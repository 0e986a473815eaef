"""The pipe's frames: what goes in comes out, in whatever pieces, and nothing else passes for a frame."""

from __future__ import annotations

import contextlib
import json
import random
import struct

import pytest

from workers.protocol import MAX_FRAME_BYTES, FrameDecoder, Message, ProtocolError, encode_frame
from workers.serve import parse_segment

MESSAGES: list[Message] = [
    {"type": "stop"},
    {"type": "speak", "text": 'líne\n"quoted" 漢字 🙂 \udc80', "ticket": 1},
    {"type": "beat", "memory_bytes": 2**53, "activity": None},
]


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1_000])
def test_messages_survive_any_cutting_into_pieces(piece: int) -> None:
    """Frames may arrive in pieces of any size; messages come out whole and in order."""
    stream = b"".join(encode_frame(message) for message in MESSAGES)
    decoder = FrameDecoder()
    out: list[Message] = []
    for start in range(0, len(stream), piece):
        out += decoder.feed(stream[start : start + piece])
    assert out == MESSAGES
    assert decoder.unfinished == 0


def test_what_is_missing_of_a_frame_is_known() -> None:
    """A stream that ends inside a frame can be told from one that ends between two."""
    decoder = FrameDecoder()
    assert list(decoder.feed(encode_frame({"type": "stop"})[:-1])) == []
    assert decoder.unfinished > 0


def test_messages_before_a_broken_frame_are_given_out() -> None:
    """What came before the damage is not lost."""
    messages = FrameDecoder().feed(encode_frame({"type": "stop"}) + frame(b"{"))
    assert next(messages) == {"type": "stop"}
    with pytest.raises(ProtocolError):
        next(messages)


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"HTTP/1.1 400 Bad Request\r\n",
        frame(b""),
        frame(b"{"),
        frame(b"[]"),
        frame(b"null"),
        frame(b"{}"),
        frame(b'{"type": 5}'),
        frame(b'{"type": "beat", "in_flight": NaN}'),
        frame(b'{"type": "\xff"}'),
        frame(b"[" * 100_000),
        frame(b'{"type":' * 50_000),
    ],
    ids=lambda stream: repr(stream[:24]),
)
def test_what_is_not_a_frame_is_refused(stream: bytes) -> None:
    """An oversized length, no JSON, no object, no type: ProtocolError, whatever else the parser might raise."""
    with pytest.raises(ProtocolError):
        list(FrameDecoder().feed(stream))


def test_a_message_too_large_is_not_sent() -> None:
    """The sender finds out, not the receiver."""
    with pytest.raises(ProtocolError):
        encode_frame({"type": "speak", "text": "x" * MAX_FRAME_BYTES})


def test_broken_frames_raise_nothing_but_protocol_errors() -> None:
    """Three hundred damaged streams: each is understood or refused, and no other exception gets out."""
    dice = random.Random(11)
    whole = b"".join(encode_frame(message) for message in MESSAGES)
    for _ in range(300):
        stream = bytearray(whole)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(stream))
            fault = dice.randrange(3)
            if fault == 0:
                stream[place] = dice.randrange(256)
            elif fault == 1:
                del stream[place : place + dice.randint(1, 9)]
            else:
                stream[place:place] = dice.randbytes(dice.randint(1, 9))
        try:
            for message in FrameDecoder().feed(bytes(stream)):
                assert isinstance(message["type"], str)
        except ProtocolError:
            pass


def test_damaged_segments_raise_nothing_but_protocol_errors() -> None:
    """Three hundred ``speak`` messages with a value replaced by one of another kind: each is read or refused."""
    dice = random.Random(7)
    whole = json.dumps(
        {
            "type": "speak",
            "ticket": 1,
            "text": "Hello.",
            "language": "en",
            "voice": {"id": "a", "references": [{"path": "/r", "kind": "audio", "sha256": "0", "text": "t"}]},
            "parameters": {"seed": 1, "temperature": 0.7, "top_p": 0.7, "max_new_tokens": 9},
            "output": {"path": "/w", "sample_rate": None, "subtype": "PCM_16"},
        }
    )
    strange: list[object] = [None, True, -1, 1e308, "", "x", [], {}, [[]], {"path": 1}, 2**70]
    for _ in range(300):
        message = json.loads(whole)
        place = message
        while True:
            key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.7:
                place = place[key]
                continue
            if isinstance(place, dict) and dice.random() < 0.3:
                del place[key]
            else:
                place[key] = dice.choice(strange)
            break
        message["type"] = "speak"
        with contextlib.suppress(ProtocolError):
            assert parse_segment(message).ticket == message["ticket"]

"""What runs on a node, without Ray around it: the folder there, and a real worker behind the calls of its actor."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cluster import node
from daemon.cluster.bridge import pack_workers
from daemon.cluster.node import Folder, NodeWorker
from workers.protocol import PROTOCOL_VERSION, Message, encode_frame

CODE = "0" * 64


def folder_in(tmp_path: Path, most_bytes: int = 1 << 30) -> Folder:
    return Folder(str(tmp_path / "node"), most_bytes)


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() + ".audio"


# --- the folder ---------------------------------------------------------------------------------------------------


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """/var/tmp is everybody's: what somebody else has put there is not ours."""
    (tmp_path / "node").mkdir(mode=0o777)
    (tmp_path / "node").chmod(0o777)
    with pytest.raises(PermissionError, match=r"cluster\.folder"):
        folder_in(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with pytest.raises(PermissionError):
        Folder(str(tmp_path / "link"), 1)


def test_references_are_what_their_names_say(tmp_path: Path) -> None:
    """One that did not come whole is refused, and a name is no path."""
    folder = folder_in(tmp_path)
    folder.keep(name_of(b"voice"), b"voice")
    assert folder.has(name_of(b"voice")) and not folder.has(name_of(b"other"))
    with pytest.raises(ValueError, match="whole"):
        folder.keep(name_of(b"other"), b"othe")
    for name in ("../../etc/passwd", "x", name_of(b"voice") + "/../x"):
        with pytest.raises(ValueError, match="no name"):
            folder.has(name)


def test_the_cache_gives_way_to_what_is_used(tmp_path: Path) -> None:
    """The references used longest ago go first; what was used lately stays, and what dead actors left behind goes."""
    folder = folder_in(tmp_path)
    contents = [bytes([number]) * 100 for number in range(4)]
    for age, content in enumerate(contents):
        folder.keep(name_of(content), content)
        used = os.stat(folder.path).st_mtime - age * node.UNUSED_S
        os.utime(folder.path / "references" / name_of(content), (used, used))
    (folder.path / "spool" / "999999999-dead").mkdir()
    again = folder_in(tmp_path, most_bytes=250)
    assert [again.has(name_of(content)) for content in contents] == [True, True, False, False]
    assert not (folder.path / "spool" / "999999999-dead").exists()
    assert folder.spool.is_dir()


def test_equal_code_is_equal_bytes() -> None:
    """The archive of ``workers`` is named by its content: an unchanged daemon sends it to no node twice."""
    assert pack_workers() == pack_workers()


# --- the worker ---------------------------------------------------------------------------------------------------


class Actor:
    """The calls that the bridge makes, in one thread."""

    def __init__(self, tmp_path: Path) -> None:
        self.worker = NodeWorker()
        self.messages: list[Message] = []
        self.files: dict[int, bytes] = {}
        self.lines: list[str] = []
        self.ended: dict[str, Any] | None = None
        self._folder = tmp_path / "node"

    def start(self, python: str = sys.executable) -> str:
        order = {"folder": str(self._folder), "cache_bytes": 1 << 30, "code": CODE}
        order |= {"python": python, "path": [], "gpu": None, "threads": 1}
        assert self.worker.start(order, []) == {"missing": True}
        Folder(str(self._folder), 1).code(CODE, pack_workers())
        answer = self.worker.start(order, [])
        return str(answer["spool"])

    def send(
        self, *messages: Message, outputs: dict[int, str] | None = None, needed: tuple[str, ...] = ()
    ) -> list[str]:
        return self.worker.send(b"".join(map(encode_frame, messages)), outputs or {}, needed, {})

    def receive_until(self, kind: str) -> Message:
        while True:
            for message in self.messages:
                if message["type"] == kind:
                    self.messages.remove(message)
                    return message
            assert self.ended is None, self.lines
            messages, files, lines, self.ended = self.worker.receive()
            self.messages += messages
            self.lines += lines
            self.files |= files

    def end(self) -> dict[str, Any]:
        while self.ended is None:
            *_, self.ended = self.worker.receive()
        return self.ended


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[Actor]:
    actor = Actor(tmp_path)
    yield actor
    actor.worker.signal(9)
    actor.end()


HELLO: Message = {
    "type": "hello",
    "protocol": PROTOCOL_VERSION,
    "engine": {"name": "silence", "options": {"seconds": 4}},
    "device": "cpu",
    "threads": 1,
    "cache": "",
}


def speak(ticket: int, path: str) -> Message:
    voice = {"id": "a", "references": []}
    return {"type": "speak", "ticket": ticket, "text": "x", "voice": voice, "output": {"path": path}}


def test_a_worker_behind_its_actor(actor: Actor) -> None:
    """Frames both ways; a small batch of files comes along, a large one is fetched; each is then gone. Nothing is
    written while a reference is missing."""
    spool = actor.start()
    assert actor.send(HELLO) == []
    assert actor.receive_until("ready")["engine"] == "silence"
    paths = {ticket: f"{spool}/{ticket}.wav" for ticket in (1, 2)}
    messages = [speak(ticket, path) for ticket, path in paths.items()]
    assert actor.send(*messages, outputs=paths, needed=(name_of(b"voice"),)) == [name_of(b"voice")]
    assert actor.send(*messages, outputs=paths) == []
    assert {actor.receive_until("spoken")["ticket"] for _ in paths} == {1, 2}
    assert actor.files == {}  # each is larger than what goes along
    for ticket, path in paths.items():
        content = actor.worker.fetch(ticket)
        assert content is not None and content[:4] == b"RIFF" and not Path(path).exists()
        assert actor.worker.fetch(ticket) is None
    actor.worker.finish()
    assert actor.end()["returncode"] == 0
    actor.worker.close()
    assert not Path(spool).exists()


def test_only_plain_files_of_known_tickets_are_given(actor: Actor, tmp_path: Path) -> None:
    """A link, a folder and a pipe are no WAV, and neither is what was not asked for."""
    spool = Path(actor.start())
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (spool / "1.wav").symlink_to(secret)
    (spool / "2.wav").mkdir()
    os.mkfifo(spool / "3.wav")
    assert actor.send(outputs={ticket: f"{spool}/{ticket}.wav" for ticket in (1, 2, 3)}) == []
    assert [actor.worker.fetch(ticket) for ticket in (1, 2, 3, 4)] == [None] * 4


def test_an_interpreter_that_is_not_there(actor: Actor) -> None:
    """The actor lives to tell."""
    actor.start("/nowhere/python")
    assert "'/nowhere/python' could not be started" in actor.end()["reason"]

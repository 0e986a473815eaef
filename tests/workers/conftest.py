"""Real worker processes, spoken to as the daemon does."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from workers.protocol import PROTOCOL_VERSION, FrameDecoder, Message, encode_frame

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "workers" / "__main__.py"
ENGINES = ROOT / "tests" / "engines"
PATIENCE_S = 30.0
"""How long a test waits for what must come; a failure takes this long, a success never does."""


class WorkerUnderTest:
    """A worker process and the daemon's ends of its pipes. ``launcher`` is a command that starts the worker as a child
    of its own, given to it as arguments; then ``process`` is the launcher."""

    def __init__(
        self,
        engine: str,
        folder: Path,
        *,
        python: str = sys.executable,
        paths: Sequence[Path] = (),
        launcher: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.stderr_path = folder / f"stderr-{time.monotonic_ns()}"
        self._decoder = FrameDecoder()
        self._messages: list[Message] = []
        self._tickets = 0
        arguments = [*launcher, python, str(SCRIPT)]
        for path in (ENGINES, *paths):
            arguments += ["--path", str(path)]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=cwd or folder,
                env=None if environment is None else {**os.environ, **environment},
            )

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text("utf-8", "replace")

    def hello(
        self,
        *,
        slots: int = 0,
        beat_seconds: float = 60.0,
        options: Message | None = None,
        protocol: int = PROTOCOL_VERSION,
    ) -> None:
        self.send(
            {
                "type": "hello",
                "protocol": protocol,
                "worker": 0,
                "engine": {
                    "name": self.engine,
                    "checkpoint": "",
                    "precision": "auto",
                    "slots": slots,
                    "reproducible": False,
                    "retries": 2,
                    "options": options or {},
                },
                "device": "cpu",
                "threads": 1,
                "memory_bytes": 0,
                "cache": str(self.folder / "cache"),
                "beat_seconds": beat_seconds,
            }
        )

    def start(self, **settings: Any) -> Message:
        """Shake hands; the worker's ``ready``."""
        self.hello(**settings)
        return self.receive("ready")

    def send(self, *messages: Message) -> None:
        self.send_bytes(b"".join(encode_frame(message) for message in messages))

    def send_bytes(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def message(self, text: str, **changes: Any) -> Message:
        """A ``speak`` with a ticket of its own. The WAV is to come at ``wav(ticket)``. ``changes`` replace language,
        voice, sample_rate or subtype."""
        self._tickets += 1
        return {
            "type": "speak",
            "ticket": self._tickets,
            "text": text,
            "language": changes.get("language", "en"),
            "voice": changes.get("voice", {"id": "anna", "references": []}),
            "parameters": {
                "seed": changes.get("seed", 1),
                "temperature": 0.7,
                "top_p": 0.7,
                "repetition_penalty": 1.2,
                "max_new_tokens": 1024,
            },
            "output": {
                "path": str(self.wav(self._tickets)),
                "sample_rate": changes.get("sample_rate"),
                "subtype": changes.get("subtype", "PCM_16"),
            },
        }

    def speak(self, text: str, **changes: Any) -> int:
        """Send a segment; its ticket."""
        message = self.message(text, **changes)
        self.send(message)
        return int(message["ticket"])

    def wav(self, ticket: int) -> Path:
        return self.folder / f"{self.process.pid}-{ticket}.tmp"

    def receive(self, *kinds: str, ticket: int | None = None) -> Message:
        """The next message of one of these types (any, when none is named) and of this ticket (any, when None);
        others stay for later. Fails with the worker's stderr when none comes."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for place, message in enumerate(self._messages):
                if (not kinds or message["type"] in kinds) and ticket in (None, message.get("ticket")):
                    return self._messages.pop(place)
            if not self._read_more(deadline):
                pytest.fail(f"the worker ended without {' or '.join(kinds)}; its stderr:\n{self.stderr}")

    def answer(self, ticket: int) -> Message:
        return self.receive("spoken", "failed", "cancelled", "encoded", ticket=ticket)

    def say(self, text: str, **changes: Any) -> bytes:
        """Have a segment spoken; the bytes of its WAV."""
        ticket = self.speak(text, **changes)
        answer = self.answer(ticket)
        assert answer["type"] == "spoken", answer
        return self.wav(ticket).read_bytes()

    def rest(self) -> list[Message]:
        """Every message until the worker closes its output."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read_more(deadline):
            pass
        messages, self._messages = self._messages, []
        return messages

    def _read_more(self, deadline: float) -> bool:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            pytest.fail(f"the worker says nothing; its stderr:\n{self.stderr}")
        data = os.read(descriptor, 1 << 16)
        self._messages += self._decoder.feed(data)
        return bool(data)

    def finish(self) -> None:
        """Close the worker's input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        """The exit status; waits for the end."""
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def descendants(pid: int) -> list[int]:
    """Child processes of ``pid`` and theirs."""
    found = []
    # They may end while they are being looked at.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def wait_until_ended(descriptors: Sequence[int]) -> None:
    """Wait for processes, by their pidfds, and close those; a zombie nobody reaps has ended as well."""
    for descriptor in descriptors:
        try:
            if not select.select([descriptor], [], [], PATIENCE_S)[0]:
                pytest.fail("a process is still alive")
        finally:
            os.close(descriptor)


StartWorker = Callable[..., WorkerUnderTest]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers of an engine, by name; all of them are gone after the test."""
    started: list[WorkerUnderTest] = []

    def start(engine: str, **arguments: Any) -> WorkerUnderTest:
        worker = WorkerUnderTest(engine, tmp_path, **arguments)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.end()


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that has nothing but the standard library."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    return str(folder / "bin" / "python")

"""A worker process as a transport, with real children that behave and misbehave.

The children stand where a worker's interpreter stands: small programs that are started with the arguments of a worker
and do what their text says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from daemon import worker_process
from daemon.worker_process import LINE_BYTES, WorkerProcess, worker_command
from workers.protocol import MAX_FRAME_BYTES, PROTOCOL_VERSION

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[1]

PRELUDE = f"""#!{sys.executable} -B
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from workers.protocol import FrameDecoder, encode_frame
def say(**message):
    os.write(1, encode_frame(message))
def messages():
    decoder = FrameDecoder()
    while data := os.read(0, 65536):
        yield from decoder.feed(data)
"""

Make = Callable[[str], WorkerProcess]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A transport whose child does this."""

    def make_one(code: str) -> WorkerProcess:
        program = tmp_path / f"child{len(os.listdir(tmp_path))}"
        program.write_text(PRELUDE + code)
        program.chmod(0o755)
        return WorkerProcess(worker_command(str(program), [], os.environ, gpu=False, threads=1))

    return make_one


class Heard:
    """What a child has said, and why it ended."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.reason: str | None = None
        self._changed = anyio.Event()

    def on_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self._tell()

    def on_line(self, line: str) -> None:
        self.lines.append(line)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.wait()

    async def run(self, transport: WorkerProcess) -> None:
        self.reason = await transport.run(self.on_message, self.on_line)


async def hear(transport: WorkerProcess) -> Heard:
    """Run it to its end."""
    heard = Heard()
    with anyio.fail_after(40):
        await heard.run(transport)
    return heard


@contextlib.asynccontextmanager
async def running(transport: WorkerProcess) -> AsyncIterator[Heard]:
    """Runs beside the test, which must see to its end."""
    heard = Heard()
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard.run, transport)
            yield heard
    assert heard.reason is not None


def is_gone(pid: int | None) -> bool:
    """Ended, and its end collected."""
    assert pid is not None
    return not Path(f"/proc/{pid}").exists()


# --- messages ----------------------------------------------------------------------------------------------


async def test_messages_go_both_ways(make: Make) -> None:
    """In order, whole, however large; what is sent before the start arrives too."""
    transport = make('for message in messages(): say(type="echo", text=message["text"])')
    assert transport.pid is None
    texts = ["first", "größer 日本\n", "x" * (MAX_FRAME_BYTES - 100), *map(str, range(500))]
    transport.send({"type": "speak", "text": texts[0]})
    async with running(transport) as heard:
        for text in texts[1:]:
            transport.send({"type": "speak", "text": text})
        await heard.until(lambda: len(heard.messages) == len(texts))
        assert transport.pid is not None
        transport.finish()
    assert [message["text"] for message in heard.messages] == texts
    assert is_gone(transport.pid)


async def test_what_is_queued_is_sent_before_the_end(make: Make) -> None:
    """finish() closes the worker's input behind it."""
    transport = make('for message in messages(): say(type="echo")\nsay(type="end")')
    for _ in range(10):
        transport.send({"type": "speak"})
    transport.finish()
    heard = await hear(transport)
    assert [message["type"] for message in heard.messages] == ["echo"] * 10 + ["end"]


async def test_all_that_was_said_is_handed_over_first(make: Make) -> None:
    """The reason comes after the last message and the last line."""
    heard = await hear(make('for n in range(1000): say(type="beat", n=n)\nsys.stderr.write("last words")\nos._exit(3)'))
    assert [message["n"] for message in heard.messages] == list(range(1000))
    assert heard.lines == ["last words"]


async def test_sending_to_one_that_has_ended(make: Make) -> None:
    """Nothing happens, before its end is known and after."""
    transport = make('os.close(0)\nsay(type="closed")\nsignal.pause()')
    async with running(transport) as heard:
        await heard.until(lambda: heard.messages)
        for _ in range(100):
            transport.send({"type": "speak", "text": "x" * 10_000})
        transport.kill()
    transport.send({"type": "speak"})
    transport.finish()
    transport.kill()


async def test_sending_never_waits(make: Make) -> None:
    """A worker that does not read holds up nobody."""
    transport = make('say(type="here")\ntime.sleep(3600)')
    async with running(transport) as heard:
        await heard.until(lambda: heard.messages)
        for _ in range(1000):
            transport.send({"type": "speak", "text": "x" * 10_000})
        transport.kill()
    assert heard.reason is not None and "SIGKILL" in heard.reason


# --- broken frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"print() of a library\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{]",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0b{"type": 3}',
        b'\0\0\0\x10{"a": Infinity}}',
        b"\0\0\0\x04\xff\xff\xff\xff",
    ],
)
@pytest.mark.parametrize("then", ["time.sleep(3600)", "os._exit(0)"])
async def test_a_broken_frame_ends_the_worker(make: Make, garbage: bytes, then: str) -> None:
    """Whether it goes on or is gone already; what came before has been heard."""
    transport = make(f'say(type="good")\nos.write(1, {garbage!r})\n{then}')
    heard = await hear(transport)
    assert heard.messages == [{"type": "good"}]
    assert heard.reason is not None and heard.reason.startswith("broke the protocol: ")
    assert is_gone(transport.pid)


async def test_half_a_frame_at_the_end(make: Make) -> None:
    """It is no message, and the exit is what counts."""
    heard = await hear(make('os.write(1, encode_frame({"type": "spoken"})[:-1])\nos._exit(9)'))
    assert (heard.messages, heard.reason) == ([], "exited with status 9")


async def test_frames_in_pieces(make: Make) -> None:
    """A byte at a time is as good as all at once."""
    heard = await hear(make('for b in encode_frame({"type": "ready"}) * 3: os.write(1, bytes([b]))'))
    assert heard.messages == [{"type": "ready"}] * 3


# --- standard error ----------------------------------------------------------------------------------------


async def test_lines(make: Make) -> None:
    """One call a line, without its end; empty ones say nothing, carriage returns end lines too, bytes that are no text
    are replaced, and a last line needs no end."""
    heard = await hear(make(r'os.write(2, b"one\n\n  \ntwo\r\n50%\r100%\r\xff\xfe\nlast")'))
    assert heard.lines == ["one", "two", "50%", "100%", "\ufffd\ufffd", "last"]


async def test_noise_without_line_ends(make: Make) -> None:
    """Ten MiB in one line come in pieces, all of them, and none longer than is promised."""
    heard = await hear(make("for _ in range(160): os.write(2, b'x' * 65536)"))
    assert sum(map(len, heard.lines)) == 160 * 65536
    assert max(map(len, heard.lines)) == LINE_BYTES


async def test_a_long_line_among_others(make: Make) -> None:
    """Nothing of it is lost, and its neighbours are whole."""
    heard = await hear(make(f"os.write(2, b'a\\n' + b'x' * {2 * LINE_BYTES + 5} + b'\\nb\\n')"))
    assert heard.lines[0] == "a" and heard.lines[-1] == "b"
    assert "".join(heard.lines[1:-1]) == "x" * (2 * LINE_BYTES + 5)


async def test_a_flood_of_lines_leaves_others_their_turn(make: Make) -> None:
    """The event loop goes round while a worker floods its standard error."""
    transport = make("os.write(2, b'x\\n' * 30000)\nsay(type='end')")
    turns = 0
    heard = Heard()

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += bool(heard.lines) and len(heard.lines) < 30_000

    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_turns)
            await heard.run(transport)
            tasks.cancel_scope.cancel()
    assert len(heard.lines) == 30_000
    assert turns > 100


# --- the end -----------------------------------------------------------------------------------------------


async def test_exit_codes_are_told(make: Make) -> None:
    """As numbers, and signals by their names."""
    for code, reason in (
        ("os._exit(7)", "exited with status 7"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by SIGTERM"),
    ):
        assert (await hear(make(code))).reason == reason
    killed = (await hear(make("os.kill(os.getpid(), signal.SIGKILL)"))).reason
    assert killed is not None and killed.startswith("killed by SIGKILL")


async def test_killing(make: Make) -> None:
    """Before the start, in the middle, and twice."""
    transport = make("time.sleep(3600)")
    transport.kill()
    heard = await hear(transport)
    assert heard.reason is not None and "SIGKILL" in heard.reason
    transport = make('signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(type="here")\ntime.sleep(3600)')
    async with running(transport) as heard:
        await heard.until(lambda: heard.messages)
        transport.kill()
        transport.kill()
    assert is_gone(transport.pid)


async def test_a_stopped_one_is_killed_all_the_same(make: Make) -> None:
    """SIGKILL needs no process that moves."""
    transport = make('say(type="here")\nos.kill(os.getpid(), signal.SIGSTOP)')
    async with running(transport) as heard:
        await heard.until(lambda: heard.messages)
        transport.kill()
    assert is_gone(transport.pid)


@pytest.mark.parametrize("closed", ["os.close(1)", "os.close(1); os.close(2); os.close(0)"])
async def test_one_that_closes_its_pipe_and_stays(make: Make, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can say nothing more, so it is no worker any more, and is ended."""
    monkeypatch.setattr(worker_process, "EXIT_GRACE_S", 0.2)
    transport = make(f"{closed}\ntime.sleep(3600)")
    heard = await hear(transport)
    assert heard.reason is not None and "did not exit" in heard.reason
    assert is_gone(transport.pid)


@pytest.mark.parametrize("state", ['say(type="here")', 'say(type="here"); os.close(1)'])
async def test_cancelling_leaves_no_process(make: Make, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the daemon ends, its workers do, in whatever state they are, and are not waited for."""
    monkeypatch.setattr(worker_process, "EXIT_GRACE_S", 3600.0)
    transport = make(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{state}\ntime.sleep(3600)")
    heard = Heard()
    with anyio.fail_after(40):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard.run, transport)
            await heard.until(lambda: heard.messages)
            tasks.cancel_scope.cancel()
    assert is_gone(transport.pid)


@pytest.mark.parametrize("end", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)"])
async def test_a_child_of_the_worker_that_keeps_the_pipes(
    make: Make, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's end is not put off by a process that it has left behind, nor is a descriptor left open; what the
    worker has said is heard."""
    monkeypatch.setattr(worker_process, "DRAIN_S", 0.3)
    before = len(os.listdir("/proc/self/fd"))
    transport = make(
        "child = os.fork()\nif child == 0: signal.pause()\n"
        f"os.write(2, b'left one behind\\n')\nsay(type='child', pid=child)\n{end}"
    )
    heard = await hear(transport)
    os.kill(heard.messages[0]["pid"], signal.SIGKILL)
    assert heard.lines == ["left one behind"]
    assert heard.reason is not None and ("9" in heard.reason or "SIGKILL" in heard.reason)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_interpreter_that_can_not_be_started(tmp_path: Path) -> None:
    """It is named, with the reason; nothing is raised."""
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "broken").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "broken").chmod(0o755)
    for name in ("missing", "plain", "broken", "."):
        transport = WorkerProcess(worker_command(str(tmp_path / name), [], os.environ, gpu=False, threads=1))
        transport.send({"type": "hello"})
        heard = await hear(transport)
        assert heard.reason is not None and repr(str(tmp_path / name)) in heard.reason
        assert transport.pid is None
        transport.send({"type": "speak"})
        transport.kill()


async def test_no_descriptors_are_left() -> None:
    """However often a worker is started."""

    async def once() -> None:
        transport = WorkerProcess(worker_command("/bin/true", [], os.environ, gpu=False, threads=1))
        transport.send({"type": "hello"})
        await hear(transport)

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await once()
    assert len(os.listdir("/proc/self/fd")) == before


# --- the command -------------------------------------------------------------------------------------------


def test_the_environment_of_a_worker() -> None:
    """No GPU where none is meant, the threads it may use, which sleep while they wait unless somebody wants otherwise;
    nothing of the service manager; another interpreter gets nothing that would lead it to the daemon's packages."""
    environ = {"PYTHONPATH": "/ours", "NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "LANG": "C", "VIRTUAL_ENV": "/v"}
    ours = worker_command("", ["/path"], environ, gpu=False, threads=3)
    assert ours.python == sys.executable and ours.environment["PYTHONPATH"] == "/ours"
    assert ours.environment["CUDA_VISIBLE_DEVICES"] == "" and ours.environment["OMP_NUM_THREADS"] == "3"
    assert ours.environment["LANG"] == "C" and "NOTIFY_SOCKET" not in ours.environment
    assert ours.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    chosen = worker_command("", [], {"OMP_WAIT_POLICY": "ACTIVE"}, gpu=False, threads=3)
    assert chosen.environment["OMP_WAIT_POLICY"] == "ACTIVE"
    assert list(ours.arguments)[-2:] == ["--path", "/path"]
    other = worker_command("/opt/bin/python", [], environ, gpu=True, threads=1)
    assert "PYTHONPATH" not in other.environment and "VIRTUAL_ENV" not in other.environment
    assert "CUDA_VISIBLE_DEVICES" not in other.environment and "WATCHDOG_USEC" not in other.environment
    assert "PYTHONPATH" in environ, "the daemon's own stays as it is"


async def test_a_real_worker() -> None:
    """The package itself: hello, ready, stop; and the end of its input ends it."""
    for last in ("stop", "finish"):
        transport = WorkerProcess(worker_command("", [], os.environ, gpu=False, threads=1))
        transport.send(
            {"type": "hello", "protocol": PROTOCOL_VERSION, "worker": 0, "device": "cpu", "threads": 1,
             "memory_bytes": 0, "cache": "", "engine": {"name": "silence"}, "beat_seconds": 60}
        )  # fmt: skip
        async with running(transport) as heard:
            await heard.until(lambda: [message for message in heard.messages if message["type"] == "ready"])
            if last == "stop":
                transport.send({"type": "stop"})
            else:
                transport.finish()
        assert heard.reason == "stopped as it was told"
        assert [message["type"] for message in heard.messages] == ["hello", "ready"]


# --- what it leaves behind ----------------------------------------------------------------------------------


LEAVES = "child = os.fork()\nif child == 0:\n    while True: signal.pause()\n"


@pytest.mark.parametrize("end", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(3600)"])
async def test_what_a_script_has_started_ends_with_it(tmp_path: Path, end: str) -> None:
    """Also where the worker's interpreter is a script that starts other things beside it."""
    program = tmp_path / "child.py"
    program.write_text(PRELUDE + LEAVES + f"say(type='child', pid=child)\n{end}")
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\nsleep 3600 &\n{sys.executable} {program}\nexit 9\n")
    script.chmod(0o755)
    transport = WorkerProcess(worker_command(str(script), [], os.environ, gpu=False, threads=1))
    async with running(transport) as heard:
        await heard.until(lambda: heard.messages)
        assert transport.pid is not None
        group = transport.pid
        if "sleep" in end:
            transport.kill()
    while alive(group):  # noqa: ASYNC110 - killed, and on their way
        await anyio.sleep(0.01)


def alive(session: int) -> list[str]:
    """What still runs in a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(stat.parent.name)
    return found


@pytest.mark.parametrize(
    ("status", "said", "told", "words"),
    [
        (0, "", True, "stopped as it was told"),
        (0, "", False, "exited with status 0 and was not told to"),
        (3, "", False, "exited with status 3 and was not told to"),
        (3, "say(type='failed', ticket=None)", False, "could not be loaded"),
        (1, "", False, "its engine broke"),
    ],
)
async def test_an_end_is_called_by_its_cause(make: Make, status: int, said: str, told: bool, words: str) -> None:
    """An engine can end its process with any status: what counts is what was said before."""
    transport = make(f"say(type='hello')\n{said}\nfor message in messages(): break\nos._exit({status})")
    transport.send({"type": "stop" if told else "speak"})
    heard = await hear(transport)
    assert heard.reason is not None and words in heard.reason

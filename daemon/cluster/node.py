"""What runs on a node of the cluster. It is sent there by value, with the package ``workers``, so that a node needs
nothing of ours installed and always runs the daemon's own version; it needs Ray and the standard library.

``NodeWorker`` is the actor that stands for one worker: it starts ``workers/__main__.py`` as a child process, which dies
with it, and relays frames and lines. Calls come in three groups of one thread each ("in", "out", "control"), so that
those of a group are run one after the other, in their order.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon.worker_environment import worker_environment

Message = dict[str, Any]

GROUPS = {"in": 1, "out": 1, "control": 1}

POLL_S = 20.0
"""Longest that a call for what the worker says is held open."""

INLINE_BYTES = 256 * 1024
"""So much of what a worker has written goes along with its messages; the rest is fetched, a few at a time."""

MOST_MESSAGES = 500
MOST_LINES = 500
"""Waiting to be asked for: a worker that says more is held up."""

LINE_BYTES = 8192
READ_BYTES = 1 << 16
DRAIN_S = 2.0
UNUSED_S = 3600.0
"""A file of the cache that was used less long ago is not removed."""


def first_environment() -> dict[str, str]:
    """The environment that this process was started with: the node's own, before Ray wrote into it which GPU it
    would choose. What is Ray's own, its token among it, is no business of a worker."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    pairs = (entry.partition(b"=") for entry in entries if b"=" in entry)
    named = ((os.fsdecode(name), os.fsdecode(value)) for name, _, value in pairs)
    return {name: value for name, value in named if not name.startswith("RAY_")}


def describe_node(read_gpus: Callable[..., Any], own_pids: Sequence[int]) -> dict[str, Any]:
    """The node's cores and GPUs, as daemon/gpus.py reads them."""
    try:
        import pynvml
    except ImportError:
        from ray._private.thirdparty import pynvml  # every Ray has one
    report = read_gpus(own_pids, environ=first_environment(), nvml=pynvml)
    names = ("index", "name", "total_bytes", "used_by_others_bytes", "reserved_bytes", "uuid")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [{name: getattr(gpu, name) for name in names} for gpu in report.gpus],
        "problems": list(report.problems),
    }


class Folder:
    """This node's folder of ours: code and references by content, encoded references, what is being written."""

    def __init__(self, path: str, most_bytes: int) -> None:
        self.path = Path(path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(
                f"{path} is not a folder that only this user may write to; let cluster.folder name another"
            )
        for name in ("code", "references", "encoded", "spool"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        self._make_room(most_bytes)
        self._clear_spool()
        self.spool = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.path / "spool"))

    def _make_room(self, most_bytes: int) -> None:
        """Remove the references that were used longest ago, until the cache is small enough."""
        files = []
        for folder in ("references", "encoded"):
            for file in (self.path / folder).rglob("*"):
                with contextlib.suppress(OSError):
                    status = file.lstat()
                    if stat.S_ISREG(status.st_mode):
                        files.append((max(status.st_mtime, status.st_atime), status.st_size, file))
        total = sum(size for _, size, _ in files)
        for used, size, file in sorted(files):
            if total <= most_bytes or used > time.time() - UNUSED_S:
                break
            with contextlib.suppress(OSError):
                file.unlink()
                total -= size

    def _clear_spool(self) -> None:
        """Remove what actors that were killed have left."""
        for folder in (self.path / "spool").iterdir():
            pid = folder.name.split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)

    def has(self, name: str) -> bool:
        """Whether this reference is here; it counts as used."""
        with contextlib.suppress(OSError):
            os.utime(self._reference(name))
            return True
        return False

    def keep(self, name: str, content: bytes) -> None:
        """Raises OSError; ValueError: the content is not what its name says."""
        path = self._reference(name)
        if hashlib.sha256(content).hexdigest() != path.stem:
            raise ValueError(f"reference {name} did not arrive whole")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.rename(temporary, path)

    def _reference(self, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}(\.\w+)?", name):
            raise ValueError(f"{name!r} is no name of a reference")
        return self.path / "references" / name

    def code(self, name: str, archive: bytes | None) -> Path | None:
        """The folder that holds this version of the package ``workers``; None: it is not here and must be given."""
        folder = self.path / "code" / name
        if not folder.is_dir():
            if archive is None:
                return None
            unpacked = tempfile.mkdtemp(dir=self.path / "code")
            with zipfile.ZipFile(io.BytesIO(archive)) as file:
                file.extractall(unpacked)
            try:
                os.rename(unpacked, folder)
            except OSError:  # another worker of this node was faster
                shutil.rmtree(unpacked, ignore_errors=True)
        return folder


class NodeWorker:
    """See the module's text. ``receive`` gives everything that the worker says, and last how it ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: list[Message] = []
        self._lines: list[str] = []
        self._ended: dict[str, Any] | None = None
        self._outputs: dict[int, str] = {}
        self._reason: str | None = None
        self._spoke = False
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._folder: Folder | None = None
        self._protocol: Any

    # --- in -----------------------------------------------------------------------------------------------------

    def start(self, order: Mapping[str, Any], code: Sequence[Any]) -> dict[str, Any]:
        """Start the worker. ``code`` holds a reference to the archive of ``workers``, or nothing where it should be
        here already; ``{"missing": True}`` says that it is not."""
        if self._folder is None:
            self._folder = Folder(order["folder"], order["cache_bytes"])
        folder = self._folder.code(order["code"], _get(code[0]) if code else None)
        if folder is None:
            return {"missing": True}
        python = order["python"] or sys.executable
        script = folder / "workers" / "__main__.py"
        command = [python, str(script), *(part for path in order["path"] for part in ("--path", path))]
        self._protocol = _module(folder / "workers" / "protocol.py")
        environment = worker_environment(
            first_environment(),
            own_python=python == sys.executable,
            gpu=order["gpu"] is not None,
            threads=order["threads"],
        )
        threading.Thread(target=self._live, args=(command, environment), name="worker", daemon=True).start()
        self._started.wait()
        return {"missing": False, "spool": str(self._folder.spool)}

    def send(
        self, frames: bytes, outputs: Mapping[int, str], needed: Sequence[str], given: Mapping[str, Sequence[Any]]
    ) -> list[str]:
        """Write frames to the worker, once the references that they need are here; those that are missing, and then
        nothing is written. ``outputs``: the files that tickets are to be written to."""
        assert self._folder is not None
        for name, content in given.items():
            self._folder.keep(name, _get(content[0]))
        missing = [name for name in needed if not self._folder.has(name)]
        if not missing:
            self._outputs.update(outputs)
            process = self._process
            if process is not None and process.stdin is not None:
                with contextlib.suppress(OSError, ValueError):  # it is ending, and its end will be told
                    process.stdin.write(frames)
                    process.stdin.flush()
        return missing

    def finish(self) -> None:
        """Nothing more will be sent: the worker sees the end of its input."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.close()

    # --- control ------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(OSError):
                process.send_signal(number)

    def close(self) -> None:
        """Everything has been fetched: leave nothing behind."""
        if self._folder is not None:
            shutil.rmtree(self._folder.spool, ignore_errors=True)

    # --- out ----------------------------------------------------------------------------------------------------

    def receive(self) -> tuple[list[Message], dict[int, bytes], list[str], dict[str, Any] | None]:
        """Messages, the files of some of their tickets, lines, and how the worker ended (once nothing else is left).
        Waits until there is something, for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._lines or self._ended, POLL_S)
            messages, self._messages = self._messages, []
            lines, self._lines = self._lines, []
            ended = self._ended
            self._changed.notify_all()
        files: dict[int, bytes] = {}
        room = INLINE_BYTES
        for message in messages:
            ticket = message.get("ticket")
            if message["type"] in ("failed", "cancelled"):
                self._forget(ticket)
            elif message["type"] in ("spoken", "encoded") and room > 0:
                content = self._take(ticket, room)
                if content is not None and isinstance(ticket, int):
                    files[ticket] = content
                    room -= len(content)
        return messages, files, lines, ended

    def fetch(self, ticket: int) -> bytes | None:
        """The file of a ticket, which is then removed; None: there is none."""
        return self._take(ticket, None)

    def _take(self, ticket: Any, most: int | None) -> bytes | None:
        path = self._outputs.get(ticket) if isinstance(ticket, int) else None
        if path is None:
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or (most is not None and status.st_size > most):
                return None
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(status.st_size)
        finally:
            os.close(descriptor)
        self._forget(ticket)
        return content

    def _forget(self, ticket: Any) -> None:
        path = self._outputs.pop(ticket, None) if isinstance(ticket, int) else None
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)

    # --- the worker -----------------------------------------------------------------------------------------------

    def _live(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """The thread that starts the process and waits for it: the kernel kills the process when this thread ends."""
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            reason = f"the worker's interpreter {command[0]!r} could not be started: {error.strerror or error}"
            self._started.set()
            self._end({"reason": reason, "returncode": None, "spoke": False})
            return
        self._process = process
        self._started.set()
        readers = [
            threading.Thread(target=reader, args=(stream,), daemon=True)
            for reader, stream in ((self._read_messages, process.stdout), (self._read_lines, process.stderr))
        ]
        for reader in readers:
            reader.start()
        process.wait()
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        for reader in readers:
            # Processes that it leaves behind may hold its pipes open for ever.
            reader.join(DRAIN_S)
        self.finish()
        self._end({"reason": self._reason, "returncode": process.returncode, "spoke": self._spoke})

    def _end(self, ended: dict[str, Any]) -> None:
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def _read_messages(self, stdout: Any) -> None:
        decoder = self._protocol.FrameDecoder()
        try:
            with stdout:
                while data := os.read(stdout.fileno(), READ_BYTES):
                    self._spoke = True
                    for message in decoder.feed(data):
                        self._put(self._messages_now, message, MOST_MESSAGES)
        except self._protocol.ProtocolError as error:
            self._reason = f"broke the protocol: {error}"
            self.signal(signal.SIGKILL)
        except OSError:
            pass

    def _read_lines(self, stderr: Any) -> None:
        rest = b""
        with contextlib.suppress(OSError), stderr:
            while data := os.read(stderr.fileno(), READ_BYTES):
                *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                if len(rest) >= LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    for start in range(0, len(line), LINE_BYTES):
                        self._put_line(line[start : start + LINE_BYTES])
        self._put_line(rest)

    def _put_line(self, line: bytes) -> None:
        if line.strip():
            self._put(self._lines_now, line.decode("utf-8", "replace"), MOST_LINES)

    def _messages_now(self) -> list[Any]:
        return self._messages

    def _lines_now(self) -> list[Any]:
        return self._lines

    def _put(self, queue: Callable[[], list[Any]], item: object, most: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(queue()) < most)
            queue().append(item)
            self._changed.notify_all()


def _module(path: Path) -> Any:
    """The module in this file, under no name that others could import it by."""
    spec = importlib.util.spec_from_file_location("dubd_protocol", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _get(reference: Any) -> Any:
    import ray

    return ray.get(reference)

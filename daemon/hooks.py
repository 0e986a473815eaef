"""The commands that ``[hooks]`` asks for when a job has ended.

What is owed lies in state/hooks/, one file a job, from when its manifest is in place until its command has ended; so
each is run at least once, whatever becomes of the daemon meanwhile, and one that was cut off by the daemon's end is run
again by the next start. Nothing of it holds up a job: by then the job is over. A command that fails, hangs or cannot be
started costs some lines in the log.
"""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from daemon import files
from daemon.config import Settings
from daemon.detached import DetachedProcess, detached_command
from daemon.flood import Bounded
from workers.protocol import Message

log = structlog.get_logger("dubd.hooks")

MODULE = "daemon.hook_process"
AT_ONCE = 2
MANIFEST = "{manifest}"
"""In an argument, stands for the manifest's path."""

NOT_FOR_HOOKS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""The service manager speaks to the daemon alone by these."""


class HookProcess(DetachedProcess):
    """Killed, it takes its command along."""

    def _signal(self, number: signal.Signals) -> None:
        super()._signal(signal.SIGTERM if number == signal.SIGKILL else number)


MOST_BYTES = 1 << 16
"""Of what is remembered of a hook."""


class Hooks:
    """``settings`` is replaced when the configuration is read again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._folder = settings.paths.state / "hooks"
        self._queue: deque[Path] = deque()
        self._owed: set[str] = set()
        self._running = 0
        self._wake = anyio.Event()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._running

    def owe(self, token: str, job_id: str, status: str, manifest: Path) -> None:
        """A job has ended: remember durably that its command is to be run. Runs in a thread; may be repeated.

        Raises:
            OSError: the disk did not take it; call again.
        """
        if self.settings.hooks.on_done:
            files.make_folder(self._folder)
            owed = {"job_id": job_id, "status": status, "manifest": str(manifest)}
            files.write_atomically(self._folder / f"{token}.json", json.dumps(owed).encode("ascii"))
            self._owed.add(token)

    def ended(self, token: str) -> None:
        """That is remembered too: its command may be run now, if one is owed."""
        if token in self._owed:
            self._owed.remove(token)
            self._queue.append(self._folder / f"{token}.json")
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled; commands that run then are killed, and are owed still."""
        async with anyio.create_task_group() as tasks:
            self._queue.extend(await anyio.to_thread.run_sync(self._left))
            while True:
                while self._queue and self._running < AT_ONCE:
                    self._running += 1
                    tasks.start_soon(self._pay, self._queue.popleft())
                await self._wake.wait()
                self._wake = anyio.Event()

    def _left(self) -> list[Path]:
        """What an earlier life has left, the oldest first."""
        files.remove_temporary_files(self._folder)
        known = set(self._queue)
        return [path for path in sorted(self._folder.glob("*.json")) if path not in known]

    async def _pay(self, path: Path) -> None:
        try:
            owed = json.loads(await anyio.to_thread.run_sync(files.read_regular, path, MOST_BYTES))
            command = self.settings.hooks.on_done
            if command:
                await self._run_command(command, owed)
            else:
                log.info("a job's hook is not run: none is configured any more", job=owed["job_id"])
            await anyio.to_thread.run_sync(files.remove, path)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.error("a hook that is owed can't be read or struck off", path=str(path), error=str(error))
        finally:
            self._running -= 1
            self._wake.set()

    async def _run_command(self, command: Sequence[str], owed: Mapping[str, str]) -> None:
        job = owed["job_id"]
        arguments = _arguments(command, owed["manifest"])
        process = HookProcess(detached_command(MODULE))
        process.send(
            {
                "type": "run",
                "arguments": arguments,
                "environment": _environment(owed),
                "timeout_s": self.settings.hooks.timeout_s,
            }
        )
        ends: list[Message] = []

        def hear(message: Message) -> None:
            if message["type"] == "line":
                log.info("hook says", job=job, line=message["line"])
            else:
                ends.append(message)

        log.info("running the hook", job=job, status=owed["status"], program=arguments[0])
        started = anyio.current_time()
        with Bounded(lambda line: log.warning("hook's keeper says", job=job, line=line)) as lines:
            reason = await process.run(hear, lines)
        took = round(anyio.current_time() - started, 2)
        end = ends[0] if ends else {"status": None, "error": f"its keeper ended: {reason}"}
        if end.get("left_out"):
            log.warning("hook says more than is kept", job=job, lines_left_out=end["left_out"])
        if end["error"] is not None:
            log.error("the hook could not be run", job=job, program=arguments[0], error=end["error"])
        elif end["timed_out"]:
            log.error("the hook took too long and was killed", job=job, timeout_s=self.settings.hooks.timeout_s)
        elif end["status"]:
            log.error("the hook has failed", job=job, exit_status=end["status"], took_s=took)
        else:
            log.info("the hook has ended", job=job, exit_status=0, took_s=took)


def _arguments(command: Sequence[str], manifest: str) -> list[str]:
    if any(MANIFEST in argument for argument in command):
        return [argument.replace(MANIFEST, manifest) for argument in command]
    return [*command, manifest]


def _environment(owed: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NOT_FOR_HOOKS}
    told = {"DUBD_JOB_ID": owed["job_id"], "DUBD_STATUS": owed["status"], "DUBD_MANIFEST": owed["manifest"]}
    return {**kept, **told}

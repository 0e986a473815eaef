"""The worker's side of the speaking process (see zygote): utterances go out, samples come back."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.engine import EngineError
from workers.engines.draft import zygote

START_S = 30.0
"""How long the speaking process may take to initialise; it takes 0.1 s."""
SPEAK_S = 60.0
"""How long an utterance may take before its fork is killed. espeak-ng speaks half an hour in about 2 s."""
LONGEST_S = 1_800
"""The most audio of one utterance: 2,000 characters that espeak-ng reads out by their names take 10 minutes."""

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Utterance:
    """What espeak-ng is asked to say. ``voice`` as it names voices, ``language+variant``; ``pitch`` and ``range`` from
    0 to 99, ``rate`` in words a minute."""

    voice: str
    text: str
    pitch: int
    rate: int
    range: int


@dataclass(frozen=True)
class Unspoken:
    """Why there is no audio; ``code`` and ``message`` as in workers.engine.Failed."""

    code: str
    message: str
    retryable: bool


Result = Samples | Unspoken


class Mouth:
    """A speaking process. Utterances are numbered by the caller and spoken side by side."""

    def __init__(self, library_path: str, data_path: str) -> None:
        """
        Raises:
            EngineError: ``espeak_broken``, espeak-ng can't be initialised.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-S", zygote.__file__, str(theirs.fileno()), library_path, data_path]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = ours
        self._speaking: dict[int, tuple[int, float]] = {}
        """By number: the file the samples come into, and the deadline on the monotonic clock."""
        self._stuck: set[int] = set()
        """Those killed at their deadline."""
        self._closed: dict[int, int] = {}
        """Files of utterances nobody waits for any more, until their forks have ended."""
        ours.settimeout(START_S)
        try:
            packet = ours.recv(zygote.PACKET_BYTES)
        except TimeoutError:
            packet = b""
        greeting: dict[str, Any] = json.loads(packet) if packet else {"error": "its process ended, or said nothing"}
        if "error" in greeting:
            self.close()
            raise EngineError(
                "espeak_broken",
                f"espeak-ng could not be started: {greeting['error']}; reinstall espeakng-loader in the environment of "
                f"{sys.executable}",
            )
        ours.settimeout(None)
        self.sample_rate = int(greeting["sample_rate"])
        self.version = str(greeting["version"])
        self.voices: list[tuple[str, str, list[tuple[int, str]]]] = greeting["voices"]
        """Name, identifier, and for each language tag how well the voice suits it (lower is better)."""

    def say(self, number: int, utterance: Utterance) -> None:
        """Begin an utterance; ``number`` must not be in use."""
        file = os.memfd_create("utterance", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(file), "wb") as text:
            text.write(utterance.text.encode("utf-8", "replace"))
        request = {
            "speak": number,
            "voice": utterance.voice,
            "pitch": utterance.pitch,
            "rate": utterance.rate,
            "range": utterance.range,
            "frames": LONGEST_S * self.sample_rate,
        }
        self._speaking[number] = (file, time.monotonic() + SPEAK_S)
        socket.send_fds(self._connection, [json.dumps(request).encode()], [file])

    def ended(self, timeout_s: float) -> list[tuple[int, Result]]:
        """The utterances that have ended, waiting ``timeout_s`` seconds at the most for the first.

        Raises:
            RuntimeError: the speaking process is gone.
        """
        results: list[tuple[int, Result]] = []
        while select.select([self._connection], [], [], 0.0 if results else timeout_s)[0]:
            packet = self._connection.recv(zygote.PACKET_BYTES)
            if not packet:
                raise RuntimeError(f"the speaking process ended by itself, with status {self._process.wait()}")
            answer = json.loads(packet)
            number, status = int(answer["ended"]), int(answer["status"])
            if number in self._closed:
                os.close(self._closed.pop(number))
            else:
                file, _ = self._speaking.pop(number)
                results.append((number, self._result(number, file, status)))
        self._kill_stuck()
        return results

    def drop(self, number: int) -> None:
        """End an utterance that nobody waits for any more; ``ended`` will not give it out."""
        file, _ = self._speaking.pop(number)
        self._closed[number] = file
        self._kill(number)

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _kill(self, number: int) -> None:
        self._connection.send(json.dumps({"kill": number}).encode())

    def _kill_stuck(self) -> None:
        now = time.monotonic()
        for number, (_, deadline) in self._speaking.items():
            if now > deadline and number not in self._stuck:
                self._stuck.add(number)
                self._kill(number)

    def _result(self, number: int, file: int, status: int) -> Result:
        try:
            if number in self._stuck:
                self._stuck.discard(number)
                return Unspoken("engine_timeout", f"espeak-ng did not come to an end within {SPEAK_S:g} s", True)
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                return Unspoken("engine_crashed", f"espeak-ng was ended by {name} while speaking this text", True)
            code = os.WEXITSTATUS(status)
            if code == zygote.EXIT_TOO_LONG:
                return Unspoken("too_long", f"the text takes over {LONGEST_S} s to speak; split it", False)
            if code == zygote.EXIT_NO_VOICE:
                return Unspoken("engine_error", "espeak-ng has the voice in its list but can't load it", False)
            if code == zygote.EXIT_NO_FORK:
                return Unspoken("engine_error", "there is no memory, or no process, left to speak in", True)
            if code != 0:
                return Unspoken("engine_error", f"espeak-ng could not speak the text (status {code})", True)
            size = os.fstat(file).st_size
            return np.frombuffer(os.pread(file, size, 0), np.int16)
        finally:
            os.close(file)

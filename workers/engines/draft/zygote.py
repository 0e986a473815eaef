"""The process that speaks: espeak-ng, initialised once and forked for each segment.

espeak-ng keeps state from one text to the next (its flutter, its echo, the dictionaries it switched between), so the
same text sounds different after another. Each segment is therefore spoken in a fork of one process that has never
spoken itself: its audio depends on the request alone. The worker can't be that process, since it has threads, and a
fork of a process with threads may inherit a lock that nobody will ever release.

It runs as a script of its own, in an isolated interpreter, and needs the standard library alone::

    python -I -S zygote.py SOCKET LIBRARY DATA

SOCKET is the number of an inherited SOCK_SEQPACKET socket. One packet is one JSON object. First comes, unasked,
``{"sample_rate", "version", "voices": [[name, identifier, [[priority, tag], ...]], ...]}``, or ``{"error"}``. Then::

    > {"speak": id, "voice", "pitch", "rate", "range", "frames"} and a descriptor of a file that holds the text, UTF-8
    > {"kill": id}
    < {"ended": id, "status"}                     as waitpid has it; in the file stand the samples, 16 bits, native

The text is replaced by the samples in the same file, so that neither has to fit into a packet. ``frames`` is the most
samples there may be. The process ends with its worker: the kernel kills it then, and the socket's end tells it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any, NoReturn

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
RATE, PITCH, RANGE = 1, 3, 4
BUFFER_MS = 500
"""Audio handed over at once by espeak-ng; long buffers mean few calls into Python."""

EXIT_NO_VOICE = 10
EXIT_NOT_SPOKEN = 11
EXIT_TOO_LONG = 12
EXIT_NO_FORK = 13
"""As if a fork had ended so: there was none, for want of memory or processes."""

CPU_SECONDS = 300
"""The kernel's own limit on a fork, should nobody be there to kill it."""
PACKET_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Voice(ctypes.Structure):
    """espeak_VOICE of speak_lib.h; ``languages`` is a list of (priority byte, tag, 0), ended by a priority of 0."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("unused", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


def die_with(parent: int) -> None:
    """Be killed when ``parent`` ends, or at once when it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def initialise(library_path: str, data_path: str) -> tuple[ctypes.CDLL, dict[str, Any]]:
    """espeak-ng, which has not spoken yet, and the greeting.

    Raises:
        OSError: the library can't be loaded, or there is no voice data.
    """
    library = ctypes.CDLL(library_path)
    library.espeak_Info.restype = ctypes.c_char_p
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(Voice))
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    # espeak-ng keeps its path in a buffer of 160 bytes; a relative one always fits.
    os.chdir(data_path)
    sample_rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, BUFFER_MS, b".", INITIALIZE_DONT_EXIT)
    if sample_rate <= 0:
        raise OSError(f"espeak-ng finds no voice data in {data_path}")
    # The list is read from some 140 files and kept: no fork has to do it again.
    listed = library.espeak_ListVoices(None)
    voices = []
    place = 0
    while listed[place]:
        voice = listed[place].contents
        voices.append([voice.name.decode(), voice.identifier.decode(), read_languages(voice.languages)])
        place += 1
    return library, {"sample_rate": sample_rate, "version": library.espeak_Info(None).decode(), "voices": voices}


def read_languages(address: int) -> list[tuple[int, str]]:
    languages = []
    while priority := ctypes.string_at(address, 1)[0]:
        tag = ctypes.string_at(address + 1)
        languages.append((priority, tag.decode()))
        address += len(tag) + 2
    return languages


def speak(library: ctypes.CDLL, request: dict[str, Any], file: int) -> int:
    """Turn the text in ``file`` into samples; the exit status. In a fork."""
    text = os.pread(file, os.fstat(file).st_size, 0)
    os.ftruncate(file, 0)
    left = int(request["frames"])

    def take(samples: int | None, count: int, _events: int) -> int:
        nonlocal left
        if samples and count:
            count = min(count, left)
            left -= count
            rest = memoryview(ctypes.string_at(samples, 2 * count))
            while rest:
                rest = rest[os.write(file, rest) :]
        return 0 if left else 1

    os.lseek(file, 0, os.SEEK_SET)
    callback = Callback(take)
    library.espeak_SetSynthCallback(callback)
    # Seeded by the clock otherwise: breath and echo are noise.
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        return EXIT_NO_VOICE
    for parameter, key in ((PITCH, "pitch"), (RATE, "rate"), (RANGE, "range")):
        library.espeak_SetParameter(parameter, int(request[key]), 0)
    # Neither SSML nor phoneme input: every character is text.
    status = library.espeak_Synth(text, len(text) + 1, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
    if not left:
        return EXIT_TOO_LONG
    return 0 if status == 0 else EXIT_NOT_SPOKEN


class Zygote:
    """Takes requests, forks for each, tells what became of the forks."""

    def __init__(self, connection: socket.socket, library: ctypes.CDLL) -> None:
        self._connection = connection
        self._library = library
        self._pid = os.getpid()
        self._forks: dict[int, int] = {}
        """The request's id by the fork's pid."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)

    def run(self) -> None:
        """Until the socket ends."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                self._reap()
            if self._connection.fileno() in ready:
                packet, files, _, _ = socket.recv_fds(self._connection, PACKET_BYTES, 1)
                if not packet:
                    return
                self._obey(json.loads(packet), files)

    def _obey(self, request: dict[str, Any], files: list[int]) -> None:
        if "kill" in request:
            for pid, identity in self._forks.items():
                if identity == request["kill"]:
                    os.kill(pid, signal.SIGKILL)
            return
        (file,) = files
        try:
            pid = os.fork()
        except OSError:
            self._tell(request["speak"], EXIT_NO_FORK << 8)
        else:
            if pid == 0:
                self._live(request, file)
            self._forks[pid] = request["speak"]
        os.close(file)

    def _live(self, request: dict[str, Any], file: int) -> NoReturn:
        """The whole life of a fork."""
        status = EXIT_NOT_SPOKEN
        try:
            die_with(self._pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._connection.close()
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            status = speak(self._library, request, file)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        while self._forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._tell(self._forks.pop(pid), status)

    def _tell(self, identity: int, status: int) -> None:
        self._connection.send(json.dumps({"ended": identity, "status": status}).encode())


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    die_with(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        library, greeting = initialise(sys.argv[2], sys.argv[3])
    except OSError as error:
        connection.send(json.dumps({"error": str(error)}).encode())
        raise SystemExit(1) from error
    connection.send(json.dumps(greeting).encode())
    # What is alive now stays: no collection writes to pages that the forks share.
    gc.disable()
    gc.freeze()
    Zygote(connection, library).run()


if __name__ == "__main__":
    main()

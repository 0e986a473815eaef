"""The serve loop: what stands in a worker between the pipe and its engine.

Three threads share the work. The reader turns frames into messages and ends the process when the stream ends,
so that a worker never outlives its daemon, not even inside a C call. The beat thread says every so often that the
process lives, also while the engine loads. The main thread does everything else, the engine's calls above all::

    messages -> held (in order) -> a free slot: began, submit -> step, step, ... -> spoken | failed

What is held costs nothing to give back; what has begun is what may be to blame when the process dies.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, cast

from workers.engine import Engine, EngineError, Failed, Reference, Segment, Settings, Spoken, Voice
from workers.protocol import (
    EXIT_ENGINE_BROKE,
    EXIT_NOT_LOADED,
    EXIT_PROTOCOL_BROKEN,
    EXIT_STOPPED,
    PROTOCOL_VERSION,
    FrameDecoder,
    FrameWriter,
    Message,
    ProtocolError,
    encode_frame,
)

ENGINES = {
    "draft": "workers.engines.draft:DraftEngine",
    "fish": "workers.engines.fish:FishEngine",
    "silence": "workers.engines.silence:SilenceEngine",
}
"""The engines of the house; any other name is ``module:Class``, called with the Settings."""

READ_BYTES = 1 << 16
MESSAGE_CHARACTERS = 4_000
"""Longest error message that goes into a frame; the whole of it is on standard error."""

ACTIVITY_CHARACTERS = 500

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Read by numerical libraries when they are imported, and never again."""


def serve(incoming: int, outgoing: int) -> int:
    """Speak the protocol on two descriptors until told to stop; the exit status."""
    writer = FrameWriter(outgoing)
    writer.send(
        {"type": "hello", "protocol": PROTOCOL_VERSION, "pid": os.getpid(), "python": platform.python_version()}
    )
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    ready = threading.Event()
    threading.Thread(target=_read, args=(incoming, messages, ready), name="reader", daemon=True).start()
    try:
        return _serve(messages, writer, ready)
    except ProtocolError as error:
        _end_confused(error)


def _serve(messages: queue.SimpleQueue[Message], writer: FrameWriter, ready: threading.Event) -> int:
    greeting = messages.get()
    if greeting["type"] != "hello":
        raise ProtocolError(f"the first message must be a hello, not {greeting['type']!r}")
    if greeting.get("protocol") != PROTOCOL_VERSION:
        message = (
            f"the daemon speaks version {greeting.get('protocol')!r} of the pipe's protocol and this worker "
            f"{PROTOCOL_VERSION}: run both from the same checkout"
        )
        print(message, file=sys.stderr)
        writer.send(_failed(None, "protocol_mismatch", message, retryable=False))
        return EXIT_NOT_LOADED
    name, settings, beat_seconds = _parse_hello(greeting)
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(settings.threads)

    pulse = Pulse(writer, beat_seconds)
    threading.Thread(target=pulse.run, name="beat", daemon=True).start()
    started = time.perf_counter()
    try:
        engine = _find_engine(name, settings)(settings)
        engine.load()
        greeting = _ready(engine, time.perf_counter() - started)
        encode_frame(greeting)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an engine's libraries raise anything; the daemon must hear why
        code = error.code if isinstance(error, EngineError) else "load_failed"
        message = str(error) if isinstance(error, EngineError) else _in_words(error)
        if not isinstance(error, EngineError):
            traceback.print_exc()
        print(f"engine {name!r} could not be loaded: {message}", file=sys.stderr)
        writer.send(_failed(None, code, message, retryable=getattr(error, "retryable", False)))
        return EXIT_NOT_LOADED
    pulse.activity = "idle"
    ready.set()
    writer.send(greeting)
    return Desk(engine, messages, writer, pulse).run()


def _ready(engine: Engine, load_s: float) -> Message:
    return {
        "type": "ready",
        "engine": engine.name,
        "engine_version": engine.version,
        "model": engine.model,
        "slots": engine.slots,
        "sample_rate": engine.sample_rate,
        "device": engine.device,
        "load_s": round(load_s, 6),
        "ignored": list(engine.ignored),
    }


def _read(incoming: int, messages: queue.SimpleQueue[Message], ready: threading.Event) -> None:
    """The reader thread."""
    decoder = FrameDecoder()
    try:
        while data := os.read(incoming, READ_BYTES):
            for message in decoder.feed(data):
                if message["type"] == "stop" and not ready.is_set():
                    # Loading can't be interrupted and there is nothing to give back yet.
                    os._exit(EXIT_STOPPED)
                messages.put(message)
        if decoder.unfinished:
            _end_confused(ProtocolError(f"the stream ended inside a frame, {decoder.unfinished} bytes into it"))
    except ProtocolError as error:
        _end_confused(error)
    except OSError:
        pass
    os._exit(EXIT_STOPPED)


def _end_confused(error: ProtocolError) -> NoReturn:
    print(f"the daemon's frames can't be understood: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_PROTOCOL_BROKEN)


class Pulse:
    """Says every ``beat_seconds`` that the process lives, and what it is doing, as the main thread left it here."""

    def __init__(self, writer: FrameWriter, beat_seconds: float) -> None:
        self._writer = writer
        self._beat_seconds = beat_seconds
        self.in_flight = 0
        self.activity = "loading"
        self.activity_wanted = True
        """Set by each beat, so that the main thread asks its engine once a beat and not once a step."""

    def run(self) -> None:
        """The beat thread."""
        while True:
            time.sleep(self._beat_seconds)
            self._writer.send(
                {
                    "type": "beat",
                    "in_flight": self.in_flight,
                    "memory_bytes": 0 if self.activity == "loading" else _memory_bytes(),
                    "resident_bytes": _resident_bytes(),
                    "activity": self.activity,
                }
            )
            self.activity_wanted = True


class Desk:
    """The tickets of this worker, and the one who turns messages into calls of the engine. See the module's text."""

    def __init__(self, engine: Engine, messages: queue.SimpleQueue[Message], writer: FrameWriter, pulse: Pulse) -> None:
        self._engine = engine
        self._messages = messages
        self._writer = writer
        self._pulse = pulse
        self._held: dict[int, Segment] = {}
        self._running: dict[int, Segment] = {}

    def run(self) -> int:
        """Work until told to stop; the exit status.

        Raises:
            ProtocolError: a message that can't be understood.
        """
        while True:
            try:
                if not self._take_messages():
                    self._engine.close()
                    return EXIT_STOPPED
            except ProtocolError:
                raise
            except BaseException as error:  # noqa: BLE001 - out of cancel() or close(), which are calls like others
                self._give_up(error)
                return EXIT_ENGINE_BROKE
            try:
                self._fill_slots()
                if self._running:
                    self._step()
                self._tell_pulse()
            except ProtocolError:
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit out of an engine is no reason to fall silent
                self._give_up(error)
                return EXIT_ENGINE_BROKE

    def _take_messages(self) -> bool:
        """Take what has come, waiting for it when there is nothing else to do. False: stop."""
        try:
            message = self._messages.get(block=not self._running and not self._held)
            while message["type"] != "stop":
                self._take(message)
                message = self._messages.get_nowait()
        except queue.Empty:
            return True
        return False

    def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("speak", "encode"):
            segment = parse_segment(message)
            if segment.ticket in self._held or segment.ticket in self._running:
                raise ProtocolError(f"ticket {segment.ticket} is here already")
            self._held[segment.ticket] = segment
        elif kind == "recall":
            self._recall(message.get("ticket"))
        elif kind == "cancel":
            self._cancel(message.get("ticket"))
        else:
            raise ProtocolError(f"no message of type {kind!r} is known")

    def _recall(self, ticket: Any) -> bool:
        if self._held.pop(ticket, None) is None:
            return False
        self._writer.send({"type": "cancelled", "ticket": ticket, "began": False})
        return True

    def _cancel(self, ticket: Any) -> None:
        if not self._recall(ticket) and ticket in self._running and self._engine.cancel(ticket):
            del self._running[ticket]
            self._writer.send({"type": "cancelled", "ticket": ticket, "began": True})

    def _fill_slots(self) -> None:
        while self._held and len(self._running) < max(1, self._engine.slots):
            ticket = next(iter(self._held))
            segment = self._held.pop(ticket)
            # Before the engine sees it: should it kill the process, the daemon must know whom to suspect.
            self._writer.send({"type": "began", "ticket": ticket})
            self._running[ticket] = segment
            try:
                self._engine.submit(segment)
            except EngineError as error:
                self._report(Failed(ticket, error.code, str(error), error.retryable))
            except Exception as error:
                self._report(_engine_error(ticket, error))
                raise

    def _step(self) -> None:
        for outcome in self._engine.step():
            self._report(outcome)

    def _report(self, outcome: Spoken | Failed) -> None:
        segment = self._running.pop(outcome.ticket, None)
        if segment is None:
            print(f"the engine answered ticket {outcome.ticket}, which it does not have", file=sys.stderr)
            return
        try:
            answer = _answer(segment, outcome)
            encode_frame(answer)
        except Exception as error:  # noqa: BLE001 - whatever an engine puts into its answer: too much, NaN, other types
            message = f"the engine answered what can't be told: {_in_words(error)}"
            print(message, file=sys.stderr)
            answer = _failed(segment.ticket, "engine_error", message, retryable=True)
        self._writer.send(answer)

    def _give_up(self, error: BaseException) -> None:
        """The engine raised what it must not, so nothing is known of its state: the process ends. One segment alone
        is to blame and is told why. Of several nobody knows which: they are left unanswered, and the daemon,
        which takes them for suspects, finds the one by speaking them alone."""
        traceback.print_exception(type(error), error, error.__traceback__)
        tickets = list(self._running)
        if len(tickets) == 1:
            self._report(_engine_error(tickets[0], error))
        print(f"the engine broke with {len(tickets)} segments running; this worker ends", file=sys.stderr)

    def _tell_pulse(self) -> None:
        self._pulse.in_flight = len(self._held) + len(self._running)
        if not self._pulse.in_flight:
            self._pulse.activity = "idle"
            self._pulse.activity_wanted = True
        elif self._pulse.activity_wanted:
            self._pulse.activity_wanted = False
            self._pulse.activity = str(self._engine.activity())[:ACTIVITY_CHARACTERS]


def _answer(segment: Segment, outcome: Spoken | Failed) -> Message:
    if isinstance(outcome, Failed):
        slots = outcome.slots
        return _failed(segment.ticket, outcome.code, outcome.message, retryable=outcome.retryable, slots=slots)
    if segment.task == "encode":
        return {
            "type": "encoded",
            "ticket": segment.ticket,
            "frames": outcome.frames,
            "generate_s": round(outcome.generate_s, 6),
        }
    return {
        "type": "spoken",
        "ticket": segment.ticket,
        "frames": outcome.frames,
        "sample_rate": outcome.sample_rate,
        "seed": outcome.seed,
        "truncated": outcome.truncated,
        "generate_s": round(outcome.generate_s, 6),
        "seeds": list(outcome.seeds),
        "flaws": list(outcome.flaws),
    }


def _engine_error(ticket: int, error: BaseException) -> Failed:
    return Failed(ticket, "engine_error", f"the engine broke: {_in_words(error)}", True)


def _failed(
    ticket: int | None, code: str, message: str, *, retryable: bool, slots: int | None = None
) -> dict[str, object]:
    # A lone surrogate would be JSON, but nothing that the daemon could write into a file.
    text = message[:MESSAGE_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
    frame: dict[str, object] = {
        "type": "failed",
        "ticket": ticket,
        "code": code,
        "message": text,
        "retryable": retryable,
    }
    if slots is not None:
        frame["slots"] = slots
    return frame


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _find_engine(name: str, settings: Settings) -> Callable[[Settings], Engine]:
    """The class of the engine, called with its settings. Importing it may take seconds; an engine of the house that has
    much to read has its module begin with that before.

    Raises:
        EngineError: code ``unknown_engine``.
    """
    module_name, colon, class_name = ENGINES.get(name, name).partition(":")
    if not colon:
        known = ", ".join(sorted(ENGINES))
        raise EngineError(
            "unknown_engine", f"no engine is called {name!r}: engine.name is one of {known}, or module:Class"
        )
    try:
        module = importlib.import_module(module_name)
        if name in ENGINES and hasattr(module, "read_ahead"):
            module.read_ahead(settings)
        return cast("Callable[[Settings], Engine]", getattr(module, class_name))
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if name not in ENGINES and (missing == module_name or module_name.startswith(missing + ".")):
            mend = "the folder that holds it belongs into worker.path"
        else:
            mend = f"install it into the environment of {sys.executable}, or let worker.python name another one"
        raise EngineError(
            "missing_module", f"engine {name!r} needs the Python module {missing!r}, which is not there: {mend}"
        ) from error
    except AttributeError as error:
        raise EngineError("unknown_engine", f"module {module_name!r} has no class {class_name!r}") from error


def _parse_hello(message: Message) -> tuple[str, Settings, float]:
    """The engine's name, its settings and the seconds between beats."""
    try:
        chosen = message["engine"]
        known = {field.name for field in dataclasses.fields(Settings)}
        settings = Settings(
            **{key: value for key, value in chosen.items() if key in known and value is not None},
            **{key: message[key] for key in ("device", "threads", "memory_bytes", "cache") if key in message},
        )
        return str(chosen["name"]), settings, max(0.01, float(message.get("beat_seconds", 1.0)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"the hello is not one of ours: {_in_words(error)}") from error


def parse_segment(message: Message) -> Segment:
    """A ``speak`` or ``encode`` message as a segment.

    Raises:
        ProtocolError: a field is missing or of the wrong type.
    """
    try:
        output = message["output"]
        parameters = message.get("parameters") or {}
        sample_rate = output.get("sample_rate")
        voice = message["voice"]
        speaks = message["type"] == "speak"
        ticket = message["ticket"]
        if not isinstance(ticket, int) or isinstance(ticket, bool):
            raise TypeError("a ticket is an integer")
        text = message["text"] if speaks else ""
        if not isinstance(text, str):
            raise TypeError("a text is a string")
        return Segment(
            ticket=ticket,
            task="speak" if speaks else "encode",
            text=text,
            language=str(message.get("language") or "en"),
            voice=Voice(
                str(voice["id"]),
                tuple(
                    Reference(
                        path=str(reference["path"]),
                        kind=str(reference["kind"]),
                        sha256=str(reference["sha256"]),
                        text=str(reference["text"]),
                    )
                    for reference in voice["references"]
                ),
            ),
            seed=int(parameters.get("seed") or 0),
            temperature=float(parameters.get("temperature", 0.7)),
            top_p=float(parameters.get("top_p", 0.7)),
            repetition_penalty=float(parameters.get("repetition_penalty", 1.2)),
            max_new_tokens=int(parameters.get("max_new_tokens", 1024)),
            path=str(output["path"]),
            sample_rate=None if sample_rate is None else int(sample_rate),
            subtype=str(output.get("subtype") or "PCM_16"),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ProtocolError(f"a {message['type']} can't be read: {_in_words(error)}") from error


def _memory_bytes() -> int:
    """What the worker holds on its GPU as far as torch knows, else its resident memory; without importing torch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_reserved())
    return _resident_bytes()


def _resident_bytes() -> int:
    """The memory of this process, 0 where the kernel does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0

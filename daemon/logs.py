"""The log, on standard error: JSON to a service, readable lines to a terminal.

Whatever comes from outside (texts of jobs, file names, what a worker writes) may be in a log entry's values, and never
makes an entry of its own or moves a terminal's cursor: JSON escapes it, and so does the console's renderer here.
Libraries that log by the standard library come out the same way.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")

_JOURNAL_PRIORITY = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>", "critical": "<2>"}
"""The prefixes of sd-daemon(3), which the journal takes off again and keeps as the entry's priority."""


def configure_logging(level: Level, format: Format, *, stream: TextIO | None = None) -> None:  # noqa: A002 - the key's name
    """Set up the log of this process; may be called again, as when the configuration was read again.

    Args:
        level: the least that is shown.
        format: "console" for people, "json" for one object a line, "auto": console on a terminal, else json.
        stream: standard error unless given.
    """
    stream = sys.stderr if stream is None else stream
    console = stream.isatty() if format == "auto" else format == "console"
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    finish: list[Processor] = []
    if console:
        colors = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        finish += [
            structlog.processors.format_exc_info,
            _escape_for_console,
            structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=40, exception_formatter=_no_formatter),
        ]
    else:
        finish += [structlog.processors.format_exc_info, _JsonLine(journal=_is_journal(stream))]

    handler = _StreamHandler(stream)
    foreign: list[Processor] = [structlog.stdlib.ExtraAdder(), *before]
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=foreign, processors=[strip, *finish]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # watchfiles tells of every change of a file, ours included.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    # Our own entries do not go through the standard library, which made each three times as expensive: in a flood of
    # short jobs the log was a seventh of the event loop's time.
    structlog.configure(
        processors=[*before, *finish],
        logger_factory=lambda *names: _Lines(handler, *names),
        wrapper_class=_never_raising(structlog.make_filtering_bound_logger(level)),
        cache_logger_on_first_use=False,
    )


def _never_raising(logger: type[Any]) -> type[Any]:
    """An entry that can't be rendered, for want of memory or for what is in it, is no reason to stumble either."""

    class Log(logger):  # type: ignore[misc]  # a type that is made at run time
        def _proxy_to_logger(self, method_name: str, event: str | None = None, **entry: Any) -> Any:
            try:
                return super()._proxy_to_logger(method_name, event, **entry)
            except Exception as error:  # noqa: BLE001 - whatever it is
                line = f'{{"level": "error", "event": "an entry was lost", "why": "{type(error).__name__}"}}'
                with suppress(Exception):
                    self._logger.msg(line)

    return Log


class _StreamHandler(logging.StreamHandler[TextIO]):
    """A reader that has gone, or a full disk behind standard error, is no reason for the daemon to stumble."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handleError(record)


class _Lines:
    """Writes entries that are rendered to where ``handler`` writes, never into the middle of one of its lines."""

    def __init__(self, handler: _StreamHandler, name: str | None = None) -> None:
        self.name = name
        self._handler = handler

    def msg(self, line: str) -> None:
        stream = self._handler.stream
        with self._handler.lock, suppress(OSError, ValueError):  # type: ignore[union-attr]  # made with the handler
            stream.write(line + "\n")
            stream.flush()

    debug = info = warning = error = critical = msg


class _JsonLine:
    """Renders an entry as one line: readable in any script, with everything unprintable escaped."""

    def __init__(self, *, journal: bool) -> None:
        self._journal = journal

    def __call__(self, logger: Any, method: str, entry: EventDict) -> str:
        ordered = {key: entry.pop(key) for key in ("timestamp", "level", "event") if key in entry}
        text = json.dumps({**ordered, **entry}, ensure_ascii=False, default=str)
        priority = _JOURNAL_PRIORITY.get(str(ordered.get("level")), "") if self._journal else ""
        return priority + _UNPRINTABLE.sub(_escaped_in_json, text)


def _escaped_in_json(match: re.Match[str]) -> str:
    character = match.group()
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _escape_for_console(logger: Any, method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what came from outside; a traceback keeps its lines, set off so that none can pass for an entry."""
    trace = entry.pop("exception", None)
    escaped: dict[str, Any] = {_escaped(key): _escaped_value(value) for key, value in entry.items()}
    if trace is not None:
        escaped["exception"] = "\n".join(f"    | {_escaped(line)}" for line in str(trace).splitlines())
    return escaped


def _escaped_value(value: object) -> object:
    return value if isinstance(value, bool | int | float) or value is None else _escaped(str(value))


def _escaped(text: str) -> str:
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped_in_text, text)


def _escaped_in_text(match: re.Match[str]) -> str:
    character = match.group()
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _no_formatter(stream: TextIO, exc_info: Any) -> None:
    """The traceback is text already when the renderer sees the entry."""


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream is the journal's socket, as $JOURNAL_STREAM tells by device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

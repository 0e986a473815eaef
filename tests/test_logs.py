"""The log: one entry a line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from daemon.logs import Format, configure_logging

HOSTILE = "evil\n12:00:00 [info     ] all is well\r\x1b[2J\x9b31m\u2028\x00\ud800 你好"


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    """The log is the process's: leave it as it was found."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def written(format: Format, level: Any = "info") -> tuple[io.StringIO, Any]:  # noqa: A002 - as configure_logging
    stream = io.StringIO()
    configure_logging(level, format, stream=stream)
    return stream, structlog.get_logger("daemon.test")


def test_json_is_one_object_a_line() -> None:
    """An entry says when, how grave, what, and who, and keeps its values as they are."""
    stream, log = written("json")
    log.info("job taken", job="film_en", segments=46)
    log.bind(worker=1).warning("worker gone", reason=None)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["event"], first["job"], first["segments"]) == ("info", "job taken", "film_en", 46)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first["timestamp"])
    assert first["logger"] == "daemon.test"
    assert (second["level"], second["worker"], second["reason"]) == ("warning", 1, None)


def test_hostile_text_stays_inside_its_json_line() -> None:
    """Newlines, escape sequences, line separators and broken Unicode in a job's text make no line of their own."""
    stream, log = written("json")
    log.info(HOSTILE, text=HOSTILE, nested={"a": [HOSTILE]})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert json.loads(line)["text"] == HOSTILE
    assert "你好" in line


def test_hostile_text_stays_inside_its_console_line() -> None:
    """On a terminal neither: one line an entry, and nothing that moves the cursor."""
    stream, log = written("console")
    log.info(HOSTILE, text=HOSTILE, nested={"a": [HOSTILE]})
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "你好" in line


@pytest.mark.parametrize("format", ["console", "json"])
def test_an_entry_that_cant_be_rendered_harms_nobody(format: Format) -> None:  # noqa: A002 - as configure_logging
    class Broken:
        def __str__(self) -> str:
            raise MemoryError

        __repr__ = __str__

    stream, log = written(format)
    log.info("first", value=Broken())
    log.info("second")
    lost, second = stream.getvalue().splitlines()
    assert "MemoryError" in lost and "second" in second


def test_tracebacks_are_shown_and_can_t_pass_for_entries() -> None:
    """An exception's own lines are set off from the entries."""
    for format in ("console", "json"):  # noqa: A001 - as configure_logging
        stream, log = written(format)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.exception("it broke")
        first, *rest = stream.getvalue().split("\n")
        assert "it broke" in first
        assert "ValueError" in stream.getvalue()
        assert all(line.startswith("    | ") for line in rest[:-1])
        assert (format == "json") == (len(rest) == 1)


def test_level_is_the_least_shown() -> None:
    """Below the level nothing is written, by us or by a library."""
    stream, log = written("json", "warning")
    log.info("hidden")
    logging.getLogger("library").info("hidden")
    log.error("shown")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["shown"]


def test_libraries_and_warnings_come_the_same_way() -> None:
    """What the standard library's logging and warnings say is an entry like any other."""
    stream, _ = written("json")
    logging.getLogger("library").error("failed %s", "a\nb")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nways", DeprecationWarning, stacklevel=1)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["logger"]) == ("failed a\nb", "library")
    assert "old\nways" in second["event"]


def test_auto_is_json_for_a_pipe_and_console_for_a_terminal() -> None:
    """A service's standard error is a pipe or a socket; a person's is a terminal."""
    program = "import structlog; from daemon.logs import configure_logging; configure_logging('info', 'auto');"
    program += "structlog.get_logger('daemon.test').info('hello', who='you')"
    piped = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=True, timeout=50)
    assert json.loads(piped.stderr)["event"] == "hello"
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True, timeout=50)
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "hello" in shown
    assert not shown.startswith("{")


def test_the_journal_gets_priorities(tmp_path: Any) -> None:
    """Where standard error is the journal, each line starts with its priority, so that journalctl -p works."""
    path = tmp_path / "stream"
    program = (
        "import os, sys; s = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{s.st_dev}:{s.st_ino}';"
        "import structlog; from daemon.logs import configure_logging; configure_logging('info', 'auto');"
        "structlog.get_logger().error('bad'); structlog.get_logger().info('good')"
    )
    with path.open("wb") as stream:
        subprocess.run([sys.executable, "-c", program], stderr=stream, check=True, timeout=50)
    bad, good = path.read_text(encoding="utf-8").splitlines()
    assert (bad[:3], json.loads(bad[3:])["event"]) == ("<3>", "bad")
    assert (good[:3], json.loads(good[3:])["event"]) == ("<6>", "good")


def test_a_reader_that_has_gone_stops_nothing() -> None:
    """A closed pipe behind standard error does not break the program that logs."""
    program = (
        "import os, sys, structlog; from daemon.logs import configure_logging; configure_logging('info', 'json');"
        "r, w = os.pipe(); os.dup2(w, 2); os.close(r); os.close(w);"
        "structlog.get_logger().error('nobody hears'); print('still here')"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=50)
    assert result.stdout == b"still here\n"

"""What the service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.notify import Notifier, watchdog_interval


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    """A socket as the manager holds it, by a path and by an abstract name, and a notifier that was told of it."""
    name = f"@dubd-{uuid.uuid4()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        receiver.settimeout(10)
        yield receiver, Notifier({"NOTIFY_SOCKET": name})


def heard(receiver: socket.socket) -> list[str]:
    return receiver.recv(4096).decode().split("\n")


def test_each_word_of_the_protocol(manager: tuple[socket.socket, Notifier]) -> None:
    """READY, STATUS, WATCHDOG and STOPPING come as sd_notify(3) has them, one datagram each."""
    receiver, notifier = manager
    assert notifier.listened_to
    notifier.ready("2 workers")
    assert heard(receiver) == ["READY=1", "STATUS=2 workers"]
    notifier.status("speaking film_en")
    assert heard(receiver) == ["STATUS=speaking film_en"]
    notifier.watchdog()
    assert heard(receiver) == ["WATCHDOG=1"]
    notifier.stopping("draining")
    assert heard(receiver) == ["STOPPING=1", "STATUS=draining"]
    notifier.stopping("draining", 95.5)
    assert heard(receiver) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=95500000", "STATUS=draining"]
    notifier.starting(30)
    assert heard(receiver) == ["EXTEND_TIMEOUT_USEC=30000000"]


def test_reloading_carries_the_time(manager: tuple[socket.socket, Notifier]) -> None:
    """A reload is stamped with CLOCK_MONOTONIC in microseconds, between before and after."""
    receiver, notifier = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    word, stamp = heard(receiver)
    name, _, value = stamp.partition("=")
    assert (word, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= after


def test_a_status_is_one_line(manager: tuple[socket.socket, Notifier]) -> None:
    """A job's name in the status can't say anything to the manager: no line of its own, no broken encoding."""
    receiver, notifier = manager
    notifier.status("job a\nMAINPID=1\r\nSTOPPING=1 \ud800 你好")
    assert heard(receiver) == ["STATUS=job a MAINPID=1 STOPPING=1 \\ud800 你好"]


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    """In a terminal every call is a no-op."""
    notifier = Notifier({"NOTIFY_SOCKET": name} if name else {})
    assert not notifier.listened_to
    notifier.ready()
    notifier.status("")
    notifier.watchdog()


def test_a_manager_that_has_gone_is_no_trouble(tmp_path: Path) -> None:
    """A socket that nobody listens on raises nothing."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).watchdog()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_half_the_patience(environ: dict[str, str], interval: float | None) -> None:
    """Half of $WATCHDOG_USEC, if it is meant for this process."""
    assert watchdog_interval(environ, pid=7) == interval


def test_watchdog_interval_reads_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the process's own environment and id are taken."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 1.0

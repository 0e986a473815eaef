"""What every test stands on: an environment without settings of whoever runs them, and one async backend."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# No deadlines: a busy machine is not a mistake of the code.
settings.register_profile("dubd", deadline=None)
settings.load_profile("dubd")

_OF_THE_RUNNER = ("DUBD_", "FISH_", "CUDA_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM", "NO_COLOR", "FORCE_COLOR")


def pytest_configure() -> None:
    """Forget settings of the person who runs the tests, for the subprocesses too."""
    for name in list(os.environ):
        if name.startswith(_OF_THE_RUNNER):
            del os.environ[name]
    # A shell starts what runs in its background deaf to Ctrl-C, and the programs under test would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    """The daemon runs on asyncio; so do its tests."""
    return "asyncio"

"""A transport: a worker as the pool sees it, wherever it runs. It carries messages both ways until the worker ends.

A transport knows nothing of segments. ``run`` starts the worker, gives every message that comes to ``on_message``,
every line of its stderr to ``on_line``, and returns with the reason when the worker is gone and all it had said has
been handed over. Everything else never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from workers.protocol import Message

OnMessage = Callable[[Message], None]
OnLine = Callable[[str], None]


class Transport(Protocol):
    """What the pool needs of a worker: a child process (daemon/worker_process.py), or one on a node of a cluster
    (daemon/cluster)."""

    @property
    def pid(self) -> int | None:
        """Of the worker's process, on the machine that it runs on; None before it is known."""

    @property
    def lost(self) -> bool:
        """After ``run``: not the worker has failed, but the place that it ran in, or the way there."""

    async def run(self, on_message: OnMessage, on_line: OnLine) -> str:
        """Start the worker and carry its messages until it has ended; the reason, for people."""

    def send(self, message: Message) -> None:
        """Queue one message; nothing happens when the worker has ended."""

    def finish(self) -> None:
        """Send nothing more after what is queued: the worker sees the end of its input and exits."""

    def tell_stacks(self) -> None:
        """Ask the worker to write on its stderr where each of its threads stands."""

    def kill(self) -> None:
        """End the worker at once."""

"""Simulated workers: slow to load, crashing, hanging, out of memory, lying; and the odds by which they do it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from daemon.core.events import Dispatch


@dataclass
class Faults:
    """Chances of things going wrong; ``budget`` of them at most, so that a history ends. ``poison``: texts that kill
    their worker, ``venom``: texts that kill the daemon, each time that they are begun; ``bane``: texts that, once they
    are spoken, kill the daemon that looks at them; ``flawed``: texts that fail whenever they are spoken, though they
    might not the next time; ``slow_disk``: how many times slower the disk is than one that nobody waits for."""

    budget: int = 0
    start: float = 0.0
    crash: float = 0.0
    hang: float = 0.0
    fail: float = 0.0
    memory: float = 0.0
    full_disk: float = 0.0
    spoil: float = 0.0
    lie: float = 0.0
    poison: frozenset[str] = frozenset()
    venom: frozenset[str] = frozenset()
    bane: frozenset[str] = frozenset()
    flawed: frozenset[str] = frozenset()
    slow_disk: float = 1.0

    @property
    def none(self) -> bool:
        """Nothing but what happens anyway."""
        return not self.budget and not self.poison and not self.venom and not self.bane and not self.flawed


@dataclass(frozen=True)
class Begun:
    ticket: int


@dataclass(frozen=True)
class Delivered:
    """``honest``: there is a file."""

    ticket: int
    honest: bool = True


@dataclass(frozen=True)
class Failed:
    ticket: int
    code: str
    retryable: bool = True
    slots: int | None = None


@dataclass(frozen=True)
class Cancelled:
    ticket: int
    began: bool


@dataclass(frozen=True)
class Ready:
    slots: int


@dataclass(frozen=True)
class Beat:
    resident_bytes: int = 0


@dataclass(frozen=True)
class Gone:
    reason: str
    lost: bool = False


Message = Begun | Delivered | Failed | Cancelled | Ready | Beat | Gone


class Surroundings(Protocol):
    """What a worker lives in."""

    faults: Faults
    random: random.Random

    def later(self, seconds: float, action: Callable[[], None]) -> None: ...

    def tell(self, worker: WorkerProcess, message: Message) -> None:
        """Put a message on the worker's pipe; messages of one worker arrive in order."""

    def seconds(self, dispatch: Dispatch) -> float: ...

    def text(self, dispatch: Dispatch) -> str: ...

    def odds(self, chance: float) -> bool: ...

    def killed_alone(self, dispatch: Dispatch, *, begun: bool) -> None: ...

    def poisoned(self) -> None: ...


@dataclass(eq=False)
class WorkerProcess:
    """One process. ``told_gone``: the daemon has been told of its end."""

    number: int
    generation: int
    slots: int
    around: Surroundings
    alive: bool = True
    hung: bool = False
    loaded: bool = False
    told_gone: bool = False
    queue: deque[Dispatch] = field(default_factory=deque)
    running: dict[int, Dispatch] = field(default_factory=dict)
    leak_bytes: int = 0
    """What it gains with each segment, and never gives back."""
    resident_bytes: int = 1_000_000_000

    @property
    def acts(self) -> bool:
        return self.alive and not self.hung

    def load(self) -> None:
        if not self.acts:
            return
        if self.around.odds(self.around.faults.start):
            if self.around.random.random() < 0.5:
                self.end("would not start")
            else:
                self.hung = True
            return
        self.loaded = True
        self.around.tell(self, Ready(self.slots))

    def take(self, dispatch: Dispatch) -> None:
        if self.alive:
            self.queue.append(dispatch)
            self.around.later(0.0, self.fill)

    def fill(self) -> None:
        while self.acts and self.queue and len(self.running) < self.slots:
            dispatch = self.queue.popleft()
            self.running[dispatch.ticket] = dispatch
            self.around.tell(self, Begun(dispatch.ticket))
            self.around.later(self.around.seconds(dispatch), partial(self._finish, dispatch))

    def _finish(self, dispatch: Dispatch) -> None:
        around, faults = self.around, self.around.faults
        if not self.acts or dispatch.ticket not in self.running:
            return
        if around.text(dispatch) in faults.poison:
            self.end("killed by signal 11")
            return
        if around.text(dispatch) in faults.venom:
            around.poisoned()
            return
        if around.odds(faults.crash):
            self.end("crashed")
            return
        if around.odds(faults.hang):
            self.hung = True
            return
        del self.running[dispatch.ticket]
        self.resident_bytes += self.leak_bytes
        ticket = dispatch.ticket
        if around.text(dispatch) in faults.flawed:
            around.tell(self, Failed(ticket, "flawed"))
        elif around.odds(faults.fail):
            around.tell(self, Failed(ticket, "flawed", retryable=around.random.random() < 0.7))
        elif around.odds(faults.full_disk):
            around.tell(self, Failed(ticket, "disk_full"))
        elif around.odds(faults.memory):
            self.slots = max(1, self.slots // 2)
            told = self.slots if around.random.random() < 0.8 else None
            around.tell(self, Failed(ticket, "out_of_memory", slots=told))
        else:
            around.tell(self, Delivered(ticket))
        if around.odds(faults.lie):
            for lie in (
                Delivered(ticket, False),
                Begun(ticket + 1_000_000),
                Failed(ticket, "late"),
                Cancelled(ticket, False),
            ):
                around.tell(self, lie)
            around.tell(self, Ready(self.slots + 7))
            if self.queue and around.random.random() < 0.5:
                around.tell(self, Delivered(self.queue[0].ticket, False))
                self.queue.popleft()
        self.fill()

    def recall(self, ticket: int, *, begun: bool) -> None:
        """``begun``: even a segment that has begun is given up."""
        if not self.acts:
            return
        for dispatch in self.queue:
            if dispatch.ticket == ticket:
                self.queue.remove(dispatch)
                self.around.tell(self, Cancelled(ticket, began=False))
                return
        if begun and ticket in self.running:
            del self.running[ticket]
            self.around.tell(self, Cancelled(ticket, began=True))
            self.fill()

    def end(self, reason: str, *, lost: bool = False) -> None:
        """``lost``: its node is gone, for which nothing that it held is to blame."""
        if not self.alive:
            return
        self.alive = False
        for dispatch in [*self.running.values(), *self.queue]:
            if dispatch.alone and not lost:
                self.around.killed_alone(dispatch, begun=dispatch.ticket in self.running)
        self.around.tell(self, Gone(reason, lost))

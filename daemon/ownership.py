"""Whose a job's folder in the outbox is, where several daemons share an inbox and an outbox.

Shares have no locks that can be relied on; what every one of them does in one step is to create a name that is not
there yet. So the owners of ``JOB_ID`` are numbered files in ``.daemons/owned/JOB_ID`` in the outbox: the one with the
highest number counts. It names the daemon (its HOST-ID) and the job (its claim) that own the folder. Where there is
none, or it is empty, the folder is free.

- Whoever wants the folder, and saw that it is free at number N (0 where there is none), creates N+1. Of several one
  succeeds.
- Whoever works in it looks before each change that others see (a WAV, the manifest, moving an earlier manifest or take
  aside) that its number is still the highest. What it publishes is first put into the folder under a hidden name, then
  it looks, then it renames. Done with the
  job, it removes its file and the folder of it; or, where there was a takeover (its number is not 1), it creates N+1,
  empty, so that who was taken over learns of it.
- A newcomer waits. First to own goes first: the times in claims are those of different machines, and are not
  compared.
- A daemon that has jobs renews its *beat*, a counter in ``.daemons/HOST-ID``, every BEAT_S. An owner is
  dead when a newcomer has looked again and again for TAKEOVER_S, by its own monotonic clock and without a gap, and
  that file has not changed. A share that could not be looked at, or a newcomer that stood still, begins that time anew.
- A dead owner's folder is taken over like a free one, by creating N+1. Then the hidden names in it are removed: what
  the dead owner had put there and not renamed yet can't appear any more, should it turn out to have been asleep.
- A daemon takes back at once what it owned in an earlier life: nobody else has its HOST-ID.
- An owner that finds itself overtaken publishes nothing more. Its job ends there: its manifest becomes
  manifest.N.json, as if it had ended before the job that has taken over.

What is left: an owner that is stopped for TAKEOVER_S between its look and the very next system call, where that moves
an earlier manifest or an earlier take aside. A manifest is put back then.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import structlog

from daemon import files

DAEMONS = ".daemons"
OWNED = "owned"

BEAT_S = 10.0
TAKEOVER_S = 300.0
LOOK_S = 2.0
"""How often a waiting job looks."""

_MOST = 256
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_HOST = re.compile(r"[0-9a-f]{1,64}")

log = structlog.get_logger("dubd.ownership")


class Owned(Exception):
    """The folder is another daemon's, for now."""

    def __init__(self, host: str, folder: Path) -> None:
        super().__init__(f"waiting for the daemon {host}, which works on this job_id in {folder}")


class TakenOver(Exception):
    """The folder was this job's and is another daemon's now."""


class Holder(Protocol):
    """What a change of the folder asks first; see ``Hold``."""

    def take(self, began: bool) -> None: ...

    def check(self) -> None:
        """Raises TakenOver: the folder is another daemon's now; OSError: it can't be looked at."""


class Alone:
    """A folder that nobody else works in."""

    def take(self, began: bool) -> None:
        pass

    def check(self) -> None:
        pass


class Neighbours:
    """This daemon's beat, and how long those of others have stood still. May be used from several threads."""

    def __init__(self, outbox: Path, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.outbox = outbox
        self.host = host
        self._clock = clock
        self._life = os.urandom(4).hex()
        self._count = 0
        self._seen: dict[str, tuple[bytes, float, float]] = {}

    def beat(self) -> None:
        """Raises OSError: it can't be written."""
        self._count += 1
        folder = self.outbox / DAEMONS
        with contextlib.suppress(FileExistsError):
            files.make_unsynced_folder(folder)
        files.write_atomically(folder / self.host, f"{self._life} {self._count}\n".encode("ascii"), durable=False)

    def silent_s(self, host: str) -> float:
        """Seconds for which this daemon has seen no sign of that one.

        Raises:
            OSError: it can't be looked at now.
        """
        now = self._clock()
        if not _HOST.fullmatch(host):
            host = "unknown"
        try:
            beat = files.read_regular(self.outbox / DAEMONS / host, _MOST)
        except FileNotFoundError:
            if not self.outbox.is_dir():
                raise
            beat = b""
        except OSError:
            self._seen.pop(host, None)
            raise
        before, since, last = self._seen.get(host, (None, now, now))
        if before != beat or now - last > TAKEOVER_S / 4:
            since = now
        self._seen[host] = beat, since, now
        return now - since


class Hold:
    """One job's claim on its folder. Used by one thread at a time."""

    def __init__(self, job_id: str, claim: str, neighbours: Neighbours) -> None:
        self._folder = neighbours.outbox / job_id
        self._owners = neighbours.outbox / DAEMONS / OWNED / job_id
        self._neighbours = neighbours
        self._me = f"{neighbours.host} {claim}"

    @property
    def counts(self) -> bool:
        """Whether any daemon that asks for it has worked in this outbox."""
        return self._owners.parent.is_dir()

    def take(self, began: bool) -> None:
        """Own the folder. ``began``: the job has owned it before, perhaps in an earlier life of the daemon.

        Raises:
            Owned: another daemon does, and lives as far as can be told; look again.
            TakenOver: the job had it, and has been overtaken.
            OSError: the outbox failed.
        """
        while True:
            self._make()
            try:
                with self._open() as owners:
                    number, owner = _highest(owners)
                    if owner == self._me:
                        return
                    host = owner.partition(" ")[0]
                    others = bool(number) and host != self._neighbours.host
                    if others and began and number > 1:
                        raise TakenOver(f"{self._folder} was taken over")
                    if others and owner:
                        if self._neighbours.silent_s(host) < TAKEOVER_S:
                            raise Owned(host, self._folder)
                        log.warning("taking over from a daemon that is gone", host=host, folder=str(self._folder))
                    self._enter(owners, number + 1)
            except FileNotFoundError:
                # Given free and cleared away at this moment; or the outbox is gone.
                if not self._neighbours.outbox.is_dir():
                    raise

    def check(self) -> None:
        try:
            with self._open() as owners:
                number, owner = _highest(owners)
        except FileNotFoundError:
            number, owner = 0, ""
        if owner == self._me:
            return
        if number:
            raise TakenOver(f"{self._folder} was taken over")
        self.take(began=False)  # somebody has tidied up by hand

    def release(self) -> None:
        """The folder is free. What has been overtaken, or is gone, needs no word.

        Raises:
            OSError: it can't be written; call again.
        """
        try:
            with self._open() as owners:
                number, owner = _highest(owners)
                if owner != self._me:
                    return
                if number > 1:
                    with contextlib.suppress(FileExistsError):
                        os.close(files.create(files.held(owners) / str(number + 1)))
                    files.fsync_folder(files.held(owners))
                files.remove_in(owners, str(number))
            if number == 1:
                with contextlib.suppress(OSError):  # somebody may have come at this moment
                    files.remove_empty_folder(self._owners)
        except FileNotFoundError:
            if not self._neighbours.outbox.is_dir():
                raise

    def _make(self) -> None:
        try:
            files.make_unsynced_folder(self._owners)
        except FileExistsError:
            pass
        except FileNotFoundError:
            files.make_folder(self._owners.parent)
            with contextlib.suppress(FileExistsError):
                files.make_unsynced_folder(self._owners)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        descriptor = files.open_folder(self._owners, self._neighbours.outbox)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _enter(self, owners: int, number: int) -> None:
        file = files.held(owners) / str(number)
        temporary = files.temporary_name(file)
        try:
            files.write_unsynced(temporary, self._me.encode("ascii"))
            if number > 1:
                files.fsync_file(temporary)
            files.place_new(temporary, file)
        finally:
            files.remove(temporary)
        for lower in _numbers(owners):
            if lower < number:
                files.remove_in(owners, str(lower))


def _numbers(owners: int) -> list[int]:
    return [int(name) for name in os.listdir(owners) if _NUMBER.fullmatch(name)]


def _highest(owners: int) -> tuple[int, str]:
    """The highest number and who has it, "" where it is free; 0 where there is none."""
    while True:
        number = max(_numbers(owners), default=0)
        if not number:
            return 0, ""
        try:
            told = files.read_regular(str(number), _MOST, owners)
        except FileNotFoundError:
            continue  # a higher one has come, and this one has gone
        return number, told.decode("ascii", "replace")

"""Puts a document into the inbox, whole or not at all, under a name that nobody else has."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.commands.invocation import CommandFailed, ExitCode, complain, describe_os_error
from daemon.commands.reference_copies import readable_as, set_mode
from daemon.commands.showing import plain

MOST_NAMES = 1000


def drop_document(inbox: Path, stem: str, content: Callable[[str], bytes], note: Callable[[Path, float], None]) -> None:
    """Drop a document as STEM.json, or with a number where that name is somebody else's. ``content`` is what it says
    under a name; ``note`` is called with the file and its time (Unix, as the inbox's file system has it) when it is
    there: after that no Ctrl-C and no error can hide that it is.

    Raises:
        CommandFailed: there is no name left.
        OSError: the inbox can't be written; nothing was dropped.
    """
    from daemon import files

    mode = readable_as(inbox)
    temporary = files.temporary_name(inbox / "job.json")
    try:
        for number in range(1, MOST_NAMES):
            name = f"{stem}.json" if number == 1 else f"{stem}-{number}.json"
            files.write_atomically(temporary, content(name), mode=mode)
            set_mode(temporary, mode)
            dropped_at = temporary.stat().st_mtime
            with held_interrupts():
                try:
                    files.rename_new(temporary, inbox / name)
                except FileExistsError:
                    continue
                note(inbox / name, dropped_at)
            try:
                files.fsync_folder(inbox)
            except OSError as error:
                complain(f"{plain(name)} is in the inbox, but a power cut may take it: {describe_os_error(error)}")
            return
    finally:
        files.remove(temporary)
    raise CommandFailed(f"{inbox} is full of files called {plain(stem)}; see 'dubd doctor'", ExitCode.REJECTED)


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Ctrl-C is heard when this is left. Only for what does not last."""
    # Blocking the signal would not do: the kernel would give it to another thread, and Python acts on it in this one.
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)

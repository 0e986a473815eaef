"""What every command has in common: its settings, its failures, its exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from daemon.threads import shortage

if TYPE_CHECKING:
    from daemon.config import Settings


class ExitCode(IntEnum):
    """The promise of the commands to scripts; ``status``, ``cancel``, ``jobs`` and ``submit`` share it."""

    OK = 0
    FAILED = 1
    REJECTED = 2
    NO_DAEMON = 3
    INTERRUPTED = 130
    PIPE_CLOSED = 141


class CommandFailed(Exception):
    """The command can't do what was asked; the message is for the person who asked."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Invocation:
    """How a command was called: the --config and --set options, before and after its name."""

    config_file: Path | None = None
    overrides: tuple[str, ...] = ()

    def settings(self, *, extra: Sequence[str] = ()) -> Settings:
        """The settings, checked. ``extra`` are overrides of the command itself, which a user's --set beats.

        Raises:
            CommandFailed: with every mistake in them.
        """
        from daemon.config import ConfigError, load_settings

        try:
            return load_settings(
                config_file=self.config_file,
                environ=os.environ,
                overrides=(*extra, *self.overrides),
                cwd=Path.cwd(),
            )
        except ConfigError as error:
            count = len(error.problems)
            head = f"the configuration has {count} mistake{'s' if count > 1 else ''}:"
            lines = [head, *(f"  {problem}" for problem in error.problems)]
            raise CommandFailed("\n".join(lines), ExitCode.REJECTED) from error

    @property
    def arguments(self) -> list[str]:
        """The options as they would be given again, to a process started in this one's place."""
        config = [] if self.config_file is None else ["--config", str(self.config_file)]
        return [*config, *(part for override in self.overrides for part in ("--set", override))]


def carry_out(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code. What can be foreseen ends with one clear message and no traceback."""
    try:
        code = int(command())
        sys.stdout.flush()
    except CommandFailed as failure:
        code = failure.exit_code
        complain(str(failure))
    except BrokenPipeError:
        # Whoever read our output has gone (``dubd jobs | head``). Nothing can be said, and Python must not try to
        # flush what is left when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.PIPE_CLOSED
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception as error:  # a shortage may come out as any
        code = ExitCode.FAILED
        words = shortage(error) or (describe_os_error(error) if isinstance(error, OSError) else None)
        if words is None:
            raise
        complain(words)
    raise SystemExit(code)


def complain(message: str) -> None:
    """One message on standard error, if anybody still listens there."""
    with suppress(BrokenPipeError, ValueError):
        print(f"dubd: {message}", file=sys.stderr, flush=True)


def describe_os_error(error: OSError) -> str:
    """What went wrong with which file, and what may help."""
    places = [str(name) for name in (error.filename, error.filename2) if name is not None]
    hints = {
        PermissionError: "give this user the right to it, or run as a user who has it",
        FileNotFoundError: "check the path; 'dubd doctor' checks all of them",
        NotADirectoryError: "one part of the path is a file",
    }
    hint = next((text for kind, text in hints.items() if isinstance(error, kind)), "")
    words = error.strerror or str(error)
    return ": ".join([*places, words]) + (f" ({hint})" if hint else "")

r"""Paths as another machine writes them, such as ``C:\clips\a.npy`` of an editor on Windows.

``paths.mapped`` says what each of that machine's folders is called on this one. A job's paths are looked up in it
before they are opened, and what is handed back to a program of that machine is called by its name there. A name that
is mapped is still a name: where it may lead is checked on the file that it opens, as for any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def is_windows_path(path: str) -> bool:
    """The path is an absolute one of Windows: of a drive, or of a share."""
    return _WINDOWS.match(path) is not None


def checked_folder(folder: str) -> str:
    """A folder of another machine as a key of ``paths.mapped``.

    Raises:
        ValueError: it is no absolute path, neither of Windows nor of Unix.
    """
    if re.fullmatch("[A-Za-z]:", folder):
        return folder + "\\"
    if not is_windows_path(folder) and not folder.startswith("/"):
        raise ValueError(f"names {folder!r}, which is no absolute path of another machine")
    return folder


def path_here(path: str, mapped: Mapping[str, Path]) -> str:
    """What the path is called on this machine; as it is where it lies in no mapped folder. Of two that hold it, the
    inner one counts; case and kind of slash don't matter on Windows."""
    pure = _pure(path)
    holding = [folder for folder in mapped if type(_pure(folder)) is type(pure) and pure.is_relative_to(_pure(folder))]
    if not holding:
        return path
    inner = max(holding, key=lambda folder: len(_pure(folder).parts))
    return str(mapped[inner].joinpath(*pure.relative_to(_pure(inner)).parts))


def path_there(path: Path, mapped: Mapping[str, Path]) -> str:
    """What a path of this machine is called on the other; as it is where it lies in no mapped folder."""
    holding = [folder for folder, here in mapped.items() if path.is_relative_to(here)]
    if not holding:
        return str(path)
    inner = max(holding, key=lambda folder: len(mapped[folder].parts))
    return str(_pure(inner).joinpath(*path.relative_to(mapped[inner]).parts))


def _pure(path: str) -> PurePath:
    return PureWindowsPath(path) if is_windows_path(path) else PurePosixPath(path)

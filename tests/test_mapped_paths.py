"""Paths of another machine: what they are called here, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.mapped_paths import checked_folder, path_here, path_there

MAPPED = {
    "C:\\clips": Path("/mnt/c/clips"),
    "C:\\clips\\film": Path("/film"),
    "\\\\nas\\voices": Path("/mnt/voices"),
    "/Volumes/work": Path("/mnt/work"),
}


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("C:\\clips\\anna.npy", "/mnt/c/clips/anna.npy"),
        ("c:/CLIPS/Anna.npy", "/mnt/c/clips/Anna.npy"),
        ("C:\\clips", "/mnt/c/clips"),
        ("C:\\clips\\film\\a\\b.npy", "/film/a/b.npy"),
        ("\\\\NAS\\voices\\中文.wav", "/mnt/voices/中文.wav"),
        ("/Volumes/work/a.wav", "/mnt/work/a.wav"),
        ("C:\\clipsy\\a.npy", "C:\\clipsy\\a.npy"),
        ("D:\\clips\\a.npy", "D:\\clips\\a.npy"),
        ("C:clips\\a.npy", "C:clips\\a.npy"),
        ("refs/anna.wav", "refs/anna.wav"),
        ("/volumes/work/a.wav", "/volumes/work/a.wav"),
        ("", ""),
    ],
)
def test_what_a_path_is_called_here(there: str, here: str) -> None:
    """The inner folder counts; on Windows neither case nor the kind of slash matters; all else stays as it is."""
    assert path_here(there, MAPPED) == here
    assert path_here(there, {}) == there


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("/mnt/c/clips/out/1.wav", "C:\\clips\\out\\1.wav"),
        ("/film/1.wav", "C:\\clips\\film\\1.wav"),
        ("/mnt/voices/中文.wav", "\\\\nas\\voices\\中文.wav"),
        ("/mnt/work/1.wav", "/Volumes/work/1.wav"),
        ("/srv/1.wav", "/srv/1.wav"),
    ],
)
def test_what_a_path_is_called_there(here: str, there: str) -> None:
    assert path_there(Path(here), MAPPED) == there


def test_a_whole_drive_can_be_mapped() -> None:
    """With or without its backslash."""
    for given in ("C:", "C:\\", "c:/"):
        mapped = {checked_folder(given): Path("/mnt/c")}
        assert path_here("C:\\clips\\a.npy", mapped) == "/mnt/c/clips/a.npy"
        assert path_there(Path("/mnt/c/a b/c.wav"), mapped).lower() == "c:\\a b\\c.wav"


@pytest.mark.parametrize("folder", ["clips", "", "C:clips", "\\clips"])
def test_a_folder_must_be_absolute_there(folder: str) -> None:
    with pytest.raises(ValueError, match="no absolute path"):
        checked_folder(folder)

"""References on their way into the inbox."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from daemon.commands.reference_copies import place_references
from daemon.commands.submit import prepare
from daemon.copied_references import FOLDER, clear_copies
from daemon.core.job_parser import parse_job
from tests.commands.conftest import Place, dropped, make_place, sample_recording


@pytest.fixture
def inbox(place: Place) -> Path:
    folder = place.var / "inbox"
    folder.mkdir(parents=True)
    return folder


def test_a_job_is_dropped_with_its_references(place: Place, inbox: Path, tmp_path: Path) -> None:
    """The dropped job names the copy relative to the inbox, and is otherwise what was asked."""
    file = place.write_job(tmp_path / "work", "film", ["Hello."], language="de")
    submission, mistakes = prepare(file, place.settings)
    assert submission is not None
    assert mistakes == []
    found = dropped(submission, place.settings)
    job = parse_job(found.file.read_bytes(), stem="film", limits=place.settings.limits)
    assert job.language == "de"
    assert (inbox / job.speakers[0].references[0].path).read_bytes() == sample_recording()
    assert job.speakers[0].references[0].path.startswith(f"{FOLDER}/")


def test_equal_recordings_are_copied_once(place: Place, inbox: Path, tmp_path: Path) -> None:
    """Under whatever names, from whatever jobs."""
    for name in ("a", "b"):
        submission, _ = prepare(place.write_job(tmp_path / name, name, ["Hello."]), place.settings)
        assert submission is not None
        dropped(submission, place.settings)
    assert len(os.listdir(inbox / FOLDER)) == 1


def test_a_damaged_copy_is_made_anew(place: Place, inbox: Path, tmp_path: Path) -> None:
    """The name says what the content is to be."""
    submission, _ = prepare(place.write_job(tmp_path / "work", "film", ["Hello."]), place.settings)
    assert submission is not None
    (name,) = submission.copies.values()
    (inbox / FOLDER).mkdir()
    (inbox / FOLDER / name).write_bytes(b"damaged")
    dropped(submission, place.settings)
    assert (inbox / FOLDER / name).read_bytes() == sample_recording()


def test_paths_inside_the_allowed_roots_and_the_inbox_stay(tmp_path: Path) -> None:
    """The daemon reads them where they are; a link that leads out of the roots is copied instead."""
    plain = make_place(tmp_path)
    voices = tmp_path / "voices"
    place = Place(plain.folder, (*plain.options, "--set", f'paths.allowed_roots=["{voices}"]'))
    (place.var / "inbox").mkdir(parents=True)
    voices.mkdir()
    for path in (voices / "anna.flac", place.var / "inbox" / "bo.flac", tmp_path / "outside.flac"):
        path.write_bytes(sample_recording())
    (voices / "link.flac").symlink_to(tmp_path / "outside.flac")
    places = [str(voices / "anna.flac"), "bo.flac", str(voices / "link.flac")]
    document = {"speakers": [{"references": [{"audio": path} for path in places]}]}
    copies, mistakes = place_references(document, tmp_path / "work" / "film.json", place.settings)
    assert mistakes == []
    assert list(copies) == [tmp_path / "outside.flac"]
    paths = [reference["audio"] for reference in document["speakers"][0]["references"]]
    assert paths[:2] == places[:2]
    assert paths[2].startswith(FOLDER)


def test_localclip_configs_are_rewritten_too(place: Place, tmp_path: Path) -> None:
    """Both of them; a file that a thousand lines name is looked at once and told of once."""
    (tmp_path / "a.flac").write_bytes(sample_recording())
    encode = {"mode": "encode", "speakers": [{"speaker_id": 0, "reference_audio": "a.flac"}]}
    copies, mistakes = place_references(encode, tmp_path / "encode.json", place.settings)
    assert len(copies) == 1
    assert mistakes == []
    generate = {"mode": "generate", "tasks": [{"npy_file": "a.flac"} for _ in range(1000)]}
    _, mistakes = place_references(generate, tmp_path / "generate.json", place.settings)
    assert [mistake.where for mistake in mistakes] == ["$.tasks[0].npy_file"]


def test_files_are_as_readable_as_the_inbox(place: Place, inbox: Path, tmp_path: Path) -> None:
    """The daemon may be another user: the umask of the person who submits must not lock it out."""
    inbox.chmod(0o2770)
    submission, _ = prepare(place.write_job(tmp_path / "work", "film", ["Hello."]), place.settings)
    assert submission is not None
    mask = os.umask(0o077)
    try:
        found = dropped(submission, place.settings)
    finally:
        os.umask(mask)
    assert found.file.stat().st_mode & 0o777 == 0o660
    (copy,) = (inbox / FOLDER).iterdir()
    assert copy.stat().st_mode & 0o777 == 0o660
    assert (inbox / FOLDER).stat().st_mode & 0o777 == 0o770


def test_copies_that_no_job_names_are_cleared_away(place: Place, inbox: Path, tmp_path: Path) -> None:
    """Not those of waiting and claimed jobs, of ended ones that may be redone, nor fresh ones of somebody who is about
    to drop a job."""
    claimed = inbox / ".claimed" / "host" / "token"
    claimed.mkdir(parents=True)
    (inbox / FOLDER).mkdir()
    ended = place.var / "outbox" / "ended"
    ended.mkdir(parents=True)
    old = time.time() - 7200
    jobs = {"a": inbox / "waiting.json", "b": claimed / "claimed.json", "c": None, "d": None, "e": ended / "job.json"}
    for letter, where in jobs.items():
        copy = inbox / FOLDER / f"{letter * 64}.flac"
        copy.write_bytes(b"x")
        if letter != "d":
            os.utime(copy, (old, old))
        if where is not None:
            where.write_text(json.dumps({"audio": f"{FOLDER}/{copy.name}"}))
    clear_copies(inbox, place.var / "outbox")
    assert sorted(name[0] for name in os.listdir(inbox / FOLDER)) == ["a", "b", "d", "e"]


def test_nothing_is_cleared_away_through_a_link(place: Place, inbox: Path, tmp_path: Path) -> None:
    """Whoever may write to the inbox could have the daemon remove what is old and lies elsewhere."""
    films = tmp_path / "films"
    films.mkdir()
    (films / "film.wav").write_bytes(b"x")
    os.utime(films / "film.wav", (0, 0))
    (inbox / FOLDER).symlink_to(films)
    place.settings.paths.outbox.mkdir(exist_ok=True)
    clear_copies(inbox, place.settings.paths.outbox)
    assert os.listdir(films) == ["film.wav"]


def test_only_job_files_are_searched_for_copies(place: Place, inbox: Path) -> None:
    """A pipe is none, a link is none, and neither is a film of a terabyte that somebody has put into the inbox."""
    (inbox / FOLDER).mkdir()
    for name in ("named.wav", "unnamed.wav"):
        (inbox / FOLDER / name).write_bytes(b"x")
        os.utime(inbox / FOLDER / name, (0, 0))
    (inbox / "film.json").write_text("it names named.wav")
    os.mkfifo(inbox / "pipe.json")
    (inbox / "link.json").symlink_to("film.json")
    for name in ("huge.mov", "huge.json"):
        with (inbox / name).open("wb") as file:
            file.truncate(1 << 40)
    place.settings.paths.outbox.mkdir(exist_ok=True)
    clear_copies(inbox, place.settings.paths.outbox)
    assert os.listdir(inbox / FOLDER) == ["named.wav"]

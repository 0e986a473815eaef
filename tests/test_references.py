"""References come into the daemon's keeping whole and checked, or are refused with a reason; nothing blocks."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon import references
from daemon.core.job import Limits, Reference
from daemon.references import ReferenceRefused, Snapshot, open_reference, snapshot_reference

RATE = 16_000


@dataclass(frozen=True)
class Place:
    """An inbox, a folder beside it that no job may read from, and the folder for snapshots."""

    inbox: Path
    outside: Path
    kept: Path

    def snapshot(self, audio: str | None = None, codes: str | None = None, limits: Limits | None = None) -> Snapshot:
        return snapshot_reference(
            Reference(text="said", audio=audio, codes=codes),
            base_folder=self.inbox,
            allowed_roots=[self.inbox],
            folder=self.kept,
            limits=limits or Limits(),
        )

    def refusal(
        self, audio: str | None = None, codes: str | None = None, limits: Limits | None = None
    ) -> ReferenceRefused:
        """The exception; checks that nothing stays behind and that the message is one printable line."""
        with pytest.raises(ReferenceRefused) as caught:
            self.snapshot(audio, codes, limits)
        assert list(self.kept.iterdir()) == []
        assert caught.value.message.replace("…", "").isprintable()
        return caught.value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "inbox", tmp_path / "outside", tmp_path / "kept")
    for folder in (made.inbox, made.outside, made.kept):
        folder.mkdir()
    return made


def tone(seconds: float, channels: int = 1, rate: int = RATE) -> numpy.ndarray[Any, Any]:
    """float64, shape (frames, channels)."""
    time = numpy.arange(round(seconds * rate)) / rate
    return numpy.repeat(0.3 * numpy.sin(2 * numpy.pi * 220 * time)[:, None], channels, axis=1)


def write(path: Path, seconds: float = 2.0, *, channels: int = 1, rate: int = RATE, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, channels, rate), rate, **more)
    return path


def codes_of(frames: int = 40) -> numpy.ndarray[Any, Any]:
    """int64, shape (10, frames), within range up to its bounds."""
    codes = numpy.random.default_rng(0).integers(0, 1024, size=(10, frames))
    codes[0, 0], codes[1:, 0] = 4095, 1023
    return codes


# --- good references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("a.wav", {"subtype": "PCM_16"}),
        ("a.wav", {"subtype": "FLOAT", "channels": 2}),
        ("a.wav", {"subtype": "PCM_U8", "rate": 8_000}),
        ("a.flac", {"channels": 6, "rate": 96_000}),
        ("a.ogg", {}),
        ("a.mp3", {}),
        ("a.aiff", {}),
        ("no extension", {"format": "WAV"}),
        ("lies.mp3", {"format": "FLAC"}),
    ],
)
def test_recordings_of_many_forms(place: Place, name: str, more: dict[str, Any]) -> None:
    """Any rate, channels and format that libsndfile reads, whatever the name says; kept under its content's name."""
    source = write(place.inbox / "refs" / name, **more)
    snapshot = place.snapshot(f"refs/{name}")
    assert snapshot.path.read_bytes() == source.read_bytes()
    assert snapshot.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (snapshot.path.parent, snapshot.path.name) == (place.kept, f"{snapshot.sha256}.audio")
    assert (snapshot.kind, snapshot.size) == ("audio", source.stat().st_size)
    assert snapshot.seconds == pytest.approx(2.0, abs=0.1)
    assert (snapshot.channels, snapshot.sample_rate) == (more.get("channels", 1), more.get("rate", RATE))
    assert list(place.kept.iterdir()) == [snapshot.path]


def test_the_shortest_and_the_longest_recording(place: Place) -> None:
    """The limits themselves are allowed."""
    write(place.inbox / "short.wav", 1.0)
    write(place.inbox / "long.wav", 90.0)
    assert place.snapshot("short.wav").seconds == 1.0
    assert place.snapshot("long.wav").seconds == 90.0


@pytest.mark.parametrize("dtype", ["<i8", "<i4", "<i2", "<u2", ">i4"])
def test_codes_of_any_integer_type(place: Place, dtype: str) -> None:
    numpy.save(place.inbox / "v.npy", codes_of().astype(dtype))
    snapshot = place.snapshot(codes="v.npy")
    assert (snapshot.kind, snapshot.frames, snapshot.sample_rate) == ("codes", 40, None)
    assert snapshot.path.name == f"{snapshot.sha256}.npy"
    assert numpy.array_equal(numpy.load(snapshot.path), codes_of())


def test_codes_in_columns(place: Place) -> None:
    """An array saved in Fortran's order is the same array."""
    numpy.save(place.inbox / "v.npy", numpy.asfortranarray(codes_of()))
    assert place.snapshot(codes="v.npy").frames == 40


def test_the_same_content_is_kept_once(place: Place) -> None:
    source = write(place.inbox / "a.wav")
    (place.inbox / "b.wav").write_bytes(source.read_bytes())
    assert place.snapshot("a.wav") == place.snapshot("b.wav")
    assert len(list(place.kept.iterdir())) == 1


def test_absolute_paths_and_other_roots(place: Place) -> None:
    """An absolute path is fine inside an allowed root, also where the root is a link to the real folder."""
    source = write(place.outside / "a.wav")
    link = place.inbox.parent / "link"
    link.symlink_to(place.outside)
    for root in (place.outside, link):
        for path in (source, link / "a.wav"):
            with open_reference(str(path), base_folder=place.inbox, allowed_roots=[root]) as file:
                assert file.read(4) == b"RIFF"


def test_dots_and_links_that_stay_inside(place: Place) -> None:
    write(place.inbox / "refs" / "a.wav")
    (place.inbox / "alias").symlink_to("refs")
    for path in ("refs/../refs/./a.wav", "alias/a.wav"):
        assert place.snapshot(path).kind == "audio"


# --- paths that are refused --------------------------------------------------------------------------------


def test_a_file_that_is_missing(place: Place) -> None:
    write(place.inbox / "a.wav")
    for path in ("b.wav", "refs/a.wav", "a.wav/b.wav"):
        assert place.refusal(path).code == "missing"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("C:\\voices\\a.wav", "another machine"),
        ("\\\\nas\\a.wav", "another machine"),
        ("refs\\a.wav", "with / instead"),
    ],
)
def test_paths_of_windows_are_explained(place: Place, path: str, words: str) -> None:
    refused = place.refusal(path)
    assert refused.code == "missing"
    assert words in refused.message


def _folder(path: Path) -> None:
    path.mkdir()


def _device(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes device nodes")
    try:
        os.mknod(path, 0o020666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container lets nobody make device nodes")


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _link(path: Path) -> None:
    path.symlink_to(write(path.with_name("real.wav")).name)


@pytest.mark.parametrize("make", [_folder, os.mkfifo, _device, _socket, _link])
@pytest.mark.parametrize("kind", ["audio", "codes"])
def test_what_is_no_regular_file(place: Place, make: Callable[[Path], None], kind: str) -> None:
    """A FIFO nobody writes to does not block, a device is not touched, a link is not followed even to a good file."""
    make(place.inbox / "it")
    refused = place.refusal(audio="it") if kind == "audio" else place.refusal(codes="it")
    assert refused.code == "not_regular"


def test_the_inbox_itself_is_no_reference(place: Place) -> None:
    for path in (".", "..", "/", str(place.inbox), "./"):
        assert place.refusal(path).code in ("not_regular", "outside_allowed_roots")


def test_files_outside_of_the_allowed_roots(place: Place) -> None:
    """By whatever way; and whether a file lies there is not told."""
    secret = write(place.outside / "a.wav")
    twin = write(place.inbox.parent / "inbox 2" / "a.wav")
    (place.inbox / "linked").symlink_to(place.outside)
    paths = [str(secret), "../outside/a.wav", "linked/a.wav", str(twin), "../inbox 2/a.wav", "/etc/passwd", "/dev/zero"]
    paths += [str(place.outside / "missing.wav"), "../outside/missing.wav", "linked/missing.wav", "/missing"]
    for path in paths:
        assert place.refusal(path).code == "outside_allowed_roots", path


def test_a_folder_that_becomes_a_link_while_it_is_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was opened is judged, not the name that was looked at before."""
    write(place.outside / "a.wav")
    write(place.inbox / "refs" / "a.wav")
    look = os.path.realpath

    def look_then_swap(path: Any, **more: Any) -> Any:
        seen = look(path, **more)
        if str(path) == str(place.inbox / "refs"):
            (place.inbox / "refs").rename(place.inbox / "moved")
            (place.inbox / "refs").symlink_to(place.outside)
        return seen

    monkeypatch.setattr(os.path, "realpath", look_then_swap)
    with pytest.raises(ReferenceRefused) as caught:
        open_reference("refs/a.wav", base_folder=place.inbox, allowed_roots=[place.inbox])
    assert caught.value.code == "outside_allowed_roots"


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "n" * 300, "a\nb\x1b[2J"])
def test_names_that_no_file_has(place: Place, path: str) -> None:
    assert place.refusal(path).code in ("missing", "unreadable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(place: Place) -> None:
    write(place.inbox / "a.wav").chmod(0)
    assert place.refusal("a.wav").code == "unreadable"


@given(path=st.text(min_size=1, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_opens_anything_outside(place: Place, path: str) -> None:
    with pytest.raises(ReferenceRefused):
        open_reference(path, base_folder=place.inbox, allowed_roots=[place.inbox])


# --- recordings that are refused ---------------------------------------------------------------------------


def test_recordings_of_the_wrong_length(place: Place) -> None:
    write(place.inbox / "short.wav", 0.999)
    write(place.inbox / "long.wav", 90.01)
    assert place.refusal("short.wav").code == "too_short"
    assert place.refusal("long.wav").code == "too_long"
    assert place.refusal("short.wav", limits=Limits(reference_seconds_max=0.5)).code == "too_long"


def test_a_recording_without_samples(place: Place) -> None:
    write(place.inbox / "a.wav", 0)
    (place.inbox / "nothing.wav").touch()
    assert place.refusal("a.wav").code == "empty"
    assert place.refusal("nothing.wav").code == "empty"


@pytest.mark.parametrize("bad", [numpy.nan, numpy.inf, -numpy.inf])
def test_samples_that_are_no_numbers(place: Place, bad: float) -> None:
    """One in the last second is enough."""
    samples = tone(3.0, 2)
    samples[-5, 1] = bad
    soundfile.write(place.inbox / "a.wav", samples, RATE, subtype="FLOAT")
    assert place.refusal("a.wav").code == "non_finite"


def test_samples_too_large_for_single_precision(place: Place) -> None:
    soundfile.write(place.inbox / "a.wav", tone(2.0) * 1e300, RATE, subtype="DOUBLE")
    assert place.refusal("a.wav").code == "non_finite"


def test_a_bomb_of_a_flac(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty minutes of silence in four channels, 100 kB: refused by what it claims, without being decoded."""
    silence = numpy.zeros((RATE * 60, 4), dtype=numpy.int16)
    with soundfile.SoundFile(place.inbox / "bomb.flac", "w", RATE, 4) as bomb:
        for _ in range(20):
            bomb.write(silence)
    decoded = _count_decoded(monkeypatch)
    assert place.refusal("bomb.flac").code == "too_long"
    assert decoded == []


def _count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames of each block that is decoded from here on."""
    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def counting_read(self: Any, *given: Any, **more: Any) -> Any:
        block = read(self, *given, **more)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
    return decoded


def _claim_frames(flac: Path, frames: int) -> None:
    """Rewrite the 36 bits of STREAMINFO that tell the number of samples (RFC 9639, section 8.2)."""
    data = bytearray(flac.read_bytes())
    data[21] = data[21] & 0xF0 | frames >> 32
    data[22:26] = struct.pack(">I", frames & 0xFFFF_FFFF)
    flac.write_bytes(data)


@pytest.mark.parametrize(
    ("claimed", "code"),
    [(2**36 - 1, "too_long"), (RATE * 89, "unreadable"), (0, "unreadable"), (RATE // 2, "too_short")],
)
def test_a_header_that_lies(place: Place, claimed: int, code: str) -> None:
    """Two seconds that claim to be hours, 89 s, of unknown length, or half a second."""
    _claim_frames(write(place.inbox / "a.flac"), claimed)
    assert place.refusal("a.flac").code == code


def test_a_length_that_was_understated_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is decoded than was claimed."""
    _claim_frames(write(place.inbox / "a.flac", 10.0), RATE * 2)
    decoded = _count_decoded(monkeypatch)
    assert place.snapshot("a.flac").seconds == 2.0
    assert sum(decoded) == RATE * 2


@pytest.mark.parametrize("name", ["a.flac", "a.mp3"])
def test_a_recording_that_is_cut_off(place: Place, name: str) -> None:
    source = write(place.inbox / name, 6.0)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    assert place.refusal(name).code == "unreadable"


@pytest.mark.parametrize("data", [b"no sound at all", b"RIFF", b"\0" * 4096, b"fLaC" + b"\xff" * 4096, b"{}"])
def test_what_is_no_recording(place: Place, data: bytes) -> None:
    (place.inbox / "a.wav").write_bytes(data)
    assert place.refusal("a.wav").code == "unreadable"


def test_codes_given_as_a_recording_are_explained(place: Place) -> None:
    numpy.save(place.inbox / "v.npy", codes_of())
    refused = place.refusal(audio="v.npy")
    assert refused.code == "unreadable"
    assert "as 'codes'" in refused.message


def test_a_rate_that_no_recording_has(place: Place) -> None:
    """A WAV may claim any; 2 s at 2 GHz would be a lot to resample."""
    write(place.inbox / "a.wav", 2.0, rate=500_000)
    assert place.refusal("a.wav").code == "unreadable"


@given(position=st.integers(0, 200), value=st.integers(0, 255), name=st.sampled_from(["a.wav", "a.flac"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_a_damaged_recording_is_refused_or_decoded(place: Place, position: int, value: int, name: str) -> None:
    """A wrong byte anywhere in its head has no other outcome."""
    source = write(place.inbox / name, 1.1)
    data = bytearray(source.read_bytes())
    data[position] = value
    source.write_bytes(data)
    try:
        assert place.snapshot(name).frames > 0
    except ReferenceRefused:
        assert not list(place.kept.glob("*.part"))


# --- codes that are refused --------------------------------------------------------------------------------


def _bad_codes() -> Iterator[Any]:
    good = codes_of()
    for row, value in ((0, 4096), (1, 1024), (9, 1024), (0, -1), (5, -1)):
        bad = good.copy()
        bad[row, -1] = value
        yield pytest.param(bad, id=f"row {row} holds {value}")
    yield pytest.param(good[:9], id="nine rows")
    yield pytest.param(good.T, id="turned")
    yield pytest.param(good[None], id="a batch")
    yield pytest.param(good[0], id="one row")
    yield pytest.param(good[:, :0], id="no frames")
    yield pytest.param(good.astype(numpy.float32), id="floats")
    yield pytest.param(good > 5, id="booleans")
    yield pytest.param(good.astype(object), id="objects")
    yield pytest.param(good.astype("U4"), id="texts")
    yield pytest.param(numpy.zeros(10, dtype=[("a", "i4")]), id="records")


@pytest.mark.parametrize("codes", list(_bad_codes()))
def test_codes_out_of_shape_or_range(place: Place, codes: numpy.ndarray[Any, Any]) -> None:
    numpy.save(place.inbox / "v.npy", codes, allow_pickle=True)
    assert place.refusal(codes="v.npy").code == "bad_codes"


def test_too_many_codes(place: Place) -> None:
    numpy.save(place.inbox / "v.npy", codes_of(1939))
    assert place.refusal(codes="v.npy").code == "too_long"
    numpy.save(place.inbox / "v.npy", codes_of(1937))
    assert place.snapshot(codes="v.npy").frames == 1937


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("sprung",))


def test_a_pickle_is_not_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither inside an .npy nor in its place."""
    monkeypatch.chdir(place.outside)
    numpy.save(place.inbox / "v.npy", numpy.array([_Trap()], dtype=object), allow_pickle=True)
    (place.inbox / "p.npy").write_bytes(numpy.array([_Trap()], dtype=object).dumps())
    for name in ("v.npy", "p.npy"):
        assert place.refusal(codes=name).code == "bad_codes"
    assert list(place.outside.iterdir()) == []


def _npy(header: bytes, data: bytes = b"", version: bytes = b"\1\0", length: int | None = None) -> bytes:
    size = len(header) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<I" if version == b"\2\0" else "<H", size) + header + data


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x09",
        _npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10, 10**9), }"),
        _npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10, 1000000000000), }"),
        _npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10, 9" + b"9" * 60 + b"), }"),
        _npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10, -1), }"),
        _npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (10, 1), }", b"x" * 80),
        _npy(b"(" * 9000),
        _npy(b"-" * 60_000),
        _npy(b"[" * 1_000_000, version=b"\2\0"),
        _npy(b"{}", version=b"\2\0", length=2**32 - 1),
        _npy(b"__import__('os').mkdir('sprung')"),
        b"PK\x03\x04" + b"\0" * 100,
        b"no codes at all",
    ],
    ids=range(14),
)
def test_a_header_that_lies_about_codes(place: Place, data: bytes) -> None:
    """Neither memory nor patience is spent on what a header claims."""
    (place.inbox / "v.npy").write_bytes(data)
    assert place.refusal(codes="v.npy").code == "bad_codes"


# --- the copy ----------------------------------------------------------------------------------------------


def test_a_file_over_the_size_limit(place: Place) -> None:
    size = write(place.inbox / "a.wav").stat().st_size
    assert place.refusal("a.wav", limits=Limits(reference_bytes=size - 1)).code == "too_large"
    assert place.snapshot("a.wav", limits=Limits(reference_bytes=size)).size == size


@pytest.mark.parametrize("grown", [b"", b"more"])
def test_a_file_that_changes_while_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch, grown: bytes) -> None:
    """A copy under way would be half of one thing and half of another."""
    source = write(place.inbox / "a.wav")
    read = references._read
    changes = iter([grown or b"RIFF"])

    def read_then_change(file: Any, name: str) -> bytes:
        block = read(file, name)
        for change in changes:
            with open(source, "r+b") as writer:
                writer.seek(0, os.SEEK_END if grown else os.SEEK_SET)
                writer.write(change)
            os.utime(source, (1, 1))
        return block

    monkeypatch.setattr(references, "_read", read_then_change)
    assert place.refusal("a.wav").code == "changed"


def test_a_full_disk_is_no_fault_of_the_reference(place: Place) -> None:
    """It is told as an OSError, and leaves nothing behind."""
    write(place.inbox / "a.wav")
    with pytest.raises(OSError, match="kept"):
        snapshot_reference(
            Reference(text="said", audio="a.wav"),
            base_folder=place.inbox,
            allowed_roots=[place.inbox],
            folder=place.kept / "gone",
            limits=Limits(),
        )


def test_nothing_is_left_open(place: Place) -> None:
    write(place.inbox / "a.wav")
    os.mkfifo(place.inbox / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    place.snapshot("a.wav")
    for path in ("fifo", "missing", "/etc/passwd", "a\0"):
        with pytest.raises(ReferenceRefused):
            place.snapshot(path)
    assert len(os.listdir("/proc/self/fd")) == before

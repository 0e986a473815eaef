"""References become codes: of recordings of every kind, once; of files of codes, after a look."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from workers.engine import EngineError, Reference

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engines.fish.codec import Codec  # noqa: E402
from workers.engines.fish.make_codec import make_codec  # noqa: E402
from workers.engines.fish.references import ReferenceCache, read_recording  # noqa: E402

RATE = 44100


class CountingCodec(Codec):
    """The real one; ``encoded`` counts the recordings that it was given."""

    encoded = 0

    def encode(self, recordings: Sequence[NDArray[np.float32]]) -> list[NDArray[np.int64]]:
        self.encoded += len(recordings)
        return super().encode(recordings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("codec")
    make_codec(str(path), "tiny", 3)
    return str(path)


@pytest.fixture
def codec(folder: str) -> CountingCodec:
    codec = CountingCodec.load(folder, "cpu", torch.float32)
    assert isinstance(codec, CountingCodec)
    return codec


@pytest.fixture
def cache(codec: CountingCodec, tmp_path: Path) -> ReferenceCache:
    return ReferenceCache(codec, str(tmp_path / "cache"))


def tone(rate: int, seconds: float, hertz: float = 440.0) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def reference(path: Path, kind: str = "audio") -> Reference:
    return Reference(str(path), kind, hashlib.sha256(path.read_bytes()).hexdigest(), "what is said")


def recording(path: Path, seconds: float = 1.0) -> Reference:
    soundfile.write(path, tone(RATE, seconds), RATE)
    return reference(path)


def saved(path: Path, codes: NDArray[np.generic]) -> Reference:
    np.save(path, codes)
    return reference(path, "codes")


def good_codes(frames: int = 20) -> NDArray[np.int64]:
    return np.tile(np.arange(frames, dtype=np.int64), (10, 1))


def code_of(cache: ReferenceCache, wanted: Reference) -> str:
    with pytest.raises(EngineError) as caught:
        cache.codes(wanted)
    assert not caught.value.retryable
    return caught.value.code


@pytest.mark.parametrize(
    ("rate", "channels", "container", "subtype"),
    [
        (44100, 1, "WAV", "PCM_16"),
        (48000, 2, "WAV", "PCM_24"),
        (8000, 1, "WAV", "ULAW"),
        (96000, 6, "FLAC", "PCM_24"),
        (22050, 1, "OGG", "VORBIS"),
        (32000, 2, "AIFF", "PCM_U8"),
        (48000, 1, "MP3", "MPEG_LAYER_III"),
        (192000, 1, "WAV", "FLOAT"),
    ],
)
def test_any_recording_is_read_as_mono_at_the_rate_of_the_codec(
    tmp_path: Path, rate: int, channels: int, container: str, subtype: str
) -> None:
    """Its pitch, level and length stay."""
    pytest.importorskip("soxr")
    path = tmp_path / "recording"
    soundfile.write(path, np.tile(tone(rate, 1.0)[:, None], channels), rate, format=container, subtype=subtype)
    samples = read_recording(str(path), RATE)
    assert samples.dtype == np.float32
    assert abs(len(samples) - RATE) < 0.06 * RATE
    middle = samples[RATE // 4 : RATE // 4 + RATE // 2]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(int(spectrum.argmax()) * RATE / len(middle) - 440) < 4
    assert abs(float(middle.std()) - 0.3 / np.sqrt(2)) < 0.02


def test_channels_are_averaged(tmp_path: Path) -> None:
    """Opposite channels cancel out."""
    samples = tone(RATE, 0.5)
    soundfile.write(tmp_path / "r.wav", np.stack((samples, -samples), axis=1), RATE, subtype="FLOAT")
    assert not read_recording(str(tmp_path / "r.wav"), RATE).any()


def test_resampling_folds_nothing_back(tmp_path: Path) -> None:
    """A tone above the new band is gone instead of heard somewhere else."""
    pytest.importorskip("soxr")
    soundfile.write(tmp_path / "r.wav", tone(96000, 1.0, 30000.0), 96000, subtype="FLOAT")
    assert float(np.abs(read_recording(str(tmp_path / "r.wav"), RATE)[2000:-2000]).max()) < 1e-4


def test_a_recording_is_encoded_once(cache: ReferenceCache, codec: CountingCodec, tmp_path: Path) -> None:
    """By its content: not again under another name, nor in another process; the codes are the codec's."""
    first = cache.codes(recording(tmp_path / "a.wav"))
    assert first.shape == (10, 22)
    assert first.dtype == np.int64
    assert np.array_equal(first, codec.encode([read_recording(str(tmp_path / "a.wav"), RATE)])[0])
    encoded = codec.encoded
    (tmp_path / "a.wav").rename(tmp_path / "b.wav")
    again = ReferenceCache(codec, str(tmp_path / "cache")).codes(reference(tmp_path / "b.wav"))
    assert np.array_equal(again, first)
    assert codec.encoded == encoded


def test_another_recording_is_another(cache: ReferenceCache, codec: CountingCodec, tmp_path: Path) -> None:
    """And several come in the order that was asked for."""
    longer, shorter = recording(tmp_path / "a.wav", 2.0), recording(tmp_path / "b.wav", 1.0)
    given = saved(tmp_path / "c.npy", good_codes(7))
    assert [codes.shape[1] for codes in cache.codes_of([shorter, given, longer])] == [22, 7, 44]


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "wrong"])
def test_a_damaged_cache_is_made_again(
    cache: ReferenceCache, codec: CountingCodec, tmp_path: Path, damage: str
) -> None:
    """It is never spoken from."""
    wanted = recording(tmp_path / "a.wav")
    good = cache.codes(wanted)
    (kept,) = (tmp_path / "cache").glob("*.npy")
    whole = kept.read_bytes()
    if damage == "wrong":
        np.save(kept, good + 9999)
    else:
        kept.write_bytes({"empty": b"", "garbage": b"garbage" * 99, "cut": whole[:-100]}[damage])
    assert np.array_equal(cache.codes(wanted), good)
    assert kept.read_bytes() == whole
    assert codec.encoded == 2


@pytest.mark.parametrize("where", ["none", "a file", "forbidden"])
def test_without_a_cache_it_works_too(codec: CountingCodec, tmp_path: Path, where: str) -> None:
    """A cache that can't be written costs time, not the segment."""
    (tmp_path / "file").write_text("in the way")
    folder = {"none": "", "a file": str(tmp_path / "file"), "forbidden": "/proc/no/such"}[where]
    cache = ReferenceCache(codec, folder)
    wanted = recording(tmp_path / "a.wav")
    assert np.array_equal(cache.codes(wanted), cache.codes(wanted))


def test_nothing_half_written_stays_in_the_cache(cache: ReferenceCache, tmp_path: Path) -> None:
    """One file for each recording."""
    cache.codes(recording(tmp_path / "a.wav"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("kind", ["<i8", "<i4", "<u2", ">i8", "|i1"])
def test_codes_of_any_integers(cache: ReferenceCache, tmp_path: Path, kind: str) -> None:
    """They come out as int64 in the machine's order."""
    codes = cache.codes(saved(tmp_path / "codes.npy", good_codes().astype(kind)))
    assert codes.dtype == np.int64
    assert np.array_equal(codes, good_codes())


def test_codes_at_their_limits(cache: ReferenceCache, tmp_path: Path) -> None:
    """4,095 in the first row, 1,023 in the others, in either order of memory."""
    codes = np.full((10, 4), 1023)
    codes[0] = 4095
    assert np.array_equal(cache.codes(saved(tmp_path / "codes.npy", np.asfortranarray(codes))), codes)


def spoilt(row: int, value: int) -> NDArray[np.int64]:
    codes = good_codes()
    codes[row, 5] = value
    return codes


@pytest.mark.parametrize(
    "codes",
    [
        good_codes()[:9],
        good_codes().T,
        good_codes()[None],
        good_codes()[:, :0],
        good_codes(5000) % 1000,
        good_codes().astype(np.float32),
        good_codes().astype(bool),
        spoilt(0, 4096),
        spoilt(1, 1024),
        spoilt(9, -1),
        np.array(["text"]),
    ],
)
def test_codes_of_the_wrong_shape_or_range(cache: ReferenceCache, tmp_path: Path, codes: NDArray[np.generic]) -> None:
    """Refused before they reach the model."""
    assert code_of(cache, saved(tmp_path / "codes.npy", codes)) == "bad_codes"


def test_codes_are_not_unpickled(cache: ReferenceCache, tmp_path: Path) -> None:
    """An array of objects is a pickle, and a pickle is a program."""
    np.save(tmp_path / "codes.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    assert code_of(cache, reference(tmp_path / "codes.npy", "codes")) == "bad_codes"


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04" + bytes(100), b"text, no codes", bytes(1000)])
def test_files_that_are_no_codes(cache: ReferenceCache, tmp_path: Path, content: bytes) -> None:
    """Whatever they are instead."""
    (tmp_path / "codes.npy").write_bytes(content)
    assert code_of(cache, reference(tmp_path / "codes.npy", "codes")) == "bad_codes"


def test_a_header_that_promises_more_than_there_is(cache: ReferenceCache, tmp_path: Path) -> None:
    """No memory is taken for it."""
    path = tmp_path / "codes.npy"
    np.save(path, good_codes(10))
    path.write_bytes(path.read_bytes().replace(b"(10, 10), }      ", b"(10, 99999999), }"))
    assert b"99999999" in path.read_bytes()
    assert code_of(cache, reference(path, "codes")) == "bad_codes"


def test_an_archive_of_codes(cache: ReferenceCache, tmp_path: Path) -> None:
    """numpy.savez is not numpy.save."""
    np.savez(tmp_path / "codes.npz", codes=good_codes())
    assert code_of(cache, reference(tmp_path / "codes.npz", "codes")) == "bad_codes"


def test_recordings_that_are_none(cache: ReferenceCache, tmp_path: Path) -> None:
    """Each is told apart, and never cached."""
    nothing = tmp_path / "empty.wav"
    soundfile.write(nothing, np.zeros(0, np.float32), RATE)
    assert code_of(cache, reference(nothing)) == "empty"
    text = tmp_path / "text.wav"
    text.write_text("not audio")
    assert code_of(cache, reference(text)) == "unreadable"
    missing = Reference(str(tmp_path / "missing.wav"), "audio", "0" * 64, "")
    assert code_of(cache, missing) == "unreadable"
    broken = tmp_path / "nan.wav"
    samples = tone(RATE, 0.5)
    samples[100] = np.nan
    soundfile.write(broken, samples, RATE, subtype="FLOAT")
    assert code_of(cache, reference(broken)) == "non_finite"
    assert not (tmp_path / "cache").exists()


def test_a_small_file_of_endless_silence(cache: ReferenceCache, tmp_path: Path) -> None:
    """Reading ends at the limit, whatever the file goes on to hold."""
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(200):
            file.write(np.zeros(8000, np.int16))
    assert path.stat().st_size < 1 << 20
    assert code_of(cache, reference(path)) == "too_long"


def test_codes_can_be_written_for_others(cache: ReferenceCache, tmp_path: Path) -> None:
    """What encode_to writes is a reference of kind codes, equal to the recording."""
    wanted = recording(tmp_path / "a.wav")
    frames = cache.encode_to(wanted, str(tmp_path / "out.npy"))
    written = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert written.dtype == np.int64
    assert written.shape == (10, frames)
    assert np.array_equal(cache.codes(reference(tmp_path / "out.npy", "codes")), cache.codes(wanted))


def test_codes_that_can_not_be_written(cache: ReferenceCache, tmp_path: Path) -> None:
    """The disk's no is an error of its own, and another try may help."""
    with pytest.raises(EngineError) as caught:
        cache.encode_to(recording(tmp_path / "a.wav"), str(tmp_path / "no" / "out.npy"))
    assert caught.value.code == "write_failed"
    assert caught.value.retryable

"""Who a voice sounds like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.workers.draft.conftest import RATE, hum, voice_of
from workers.engine import EngineError, Reference, Voice
from workers.engines.draft.character import HIGH_HZ, HIGH_VARIANTS, LOW_HZ, LOW_VARIANTS, find_character


def voice(*paths: Path, kind: str = "audio", text: str = "What is said.") -> Voice:
    message = voice_of(*paths, kind=kind, text=text)
    return Voice("anna", tuple(Reference(**reference) for reference in message["references"]))


def codes(folder: Path, number: int) -> Voice:
    path = folder / f"{number}.npy"
    np.save(path, np.full((10, 40), number, np.int16))
    return voice(path, kind="codes")


@pytest.mark.parametrize("name", ["r.wav", "r.flac", "r.ogg", "r.aiff"])
def test_any_format_and_any_channels(tmp_path: Path, name: str) -> None:
    """The pitch is that of the loudest channel, even where the sum of the channels is silence."""
    tone = hum(140.0)
    soundfile.write(tmp_path / name, np.stack([np.zeros_like(tone), tone, -tone], axis=1), RATE)
    assert find_character(voice(tmp_path / name), "").f0_hz == pytest.approx(140.0, rel=0.02)


def test_several_references_have_one_pitch(tmp_path: Path) -> None:
    """The median of what is heard in them; codes and silence have no say."""
    for name, samples in (("a", hum(100)), ("b", hum(110)), ("c", hum(200)), ("d", np.zeros(RATE, np.float32))):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    character = find_character(voice(*(tmp_path / f"{name}.wav" for name in "abcd")), "")
    assert character.f0_hz == pytest.approx(110.0, rel=0.02)


def test_low_voices_get_low_variants(tmp_path: Path) -> None:
    """Of those whose pitch reaches that far."""
    for f0_hz in (68.0, 100.0, 150.0, 170.0, 250.0, 340.0):
        soundfile.write(tmp_path / f"{f0_hz}.wav", hum(f0_hz), RATE)
        variant = find_character(voice(tmp_path / f"{f0_hz}.wav"), "").variant
        lowest, highest = (LOW_VARIANTS if f0_hz < 160 else HIGH_VARIANTS)[variant]
        assert lowest <= f0_hz <= highest


def test_codes_alone_give_a_stable_choice(tmp_path: Path) -> None:
    """The same content is the same character whatever the speaker and the file are called; sixty speakers are
    many characters, low ones and high ones, all of them in the range of conversation."""
    characters = [find_character(codes(tmp_path, number), "") for number in range(60)]
    renamed = tmp_path / "renamed.npy"
    renamed.write_bytes((tmp_path / "7.npy").read_bytes())
    assert find_character(voice(renamed, kind="codes"), "") == characters[7]
    assert len({(character.variant, character.rate, character.range) for character in characters}) > 50
    assert {character.variant for character in characters} == {*LOW_VARIANTS, *HIGH_VARIANTS}
    for character in characters:
        low, high = LOW_HZ if character.variant in LOW_VARIANTS else HIGH_HZ
        assert low <= character.f0_hz <= high


def test_a_reference_without_a_voice_gives_a_stable_choice(tmp_path: Path) -> None:
    """Noise has no pitch to follow; it is no error either."""
    noise = np.random.default_rng(1).standard_normal(RATE).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "noise.wav", noise, RATE)
    character = find_character(voice(tmp_path / "noise.wav"), "")
    assert character == find_character(voice(tmp_path / "noise.wav"), "")
    assert LOW_HZ[0] <= character.f0_hz <= HIGH_HZ[1]


def test_a_recording_is_measured_once(tmp_path: Path) -> None:
    """The cache is by content: it holds when the file itself has gone, and a damaged entry is made again."""
    path, cache = tmp_path / "a.wav", tmp_path / "cache"
    soundfile.write(path, hum(120), RATE)
    speaker = voice(path)
    first = find_character(speaker, str(cache))
    (entry,) = cache.iterdir()
    entry.write_text("{")
    assert find_character(speaker, str(cache)) == first
    path.unlink()
    assert find_character(speaker, str(cache)) == first
    with pytest.raises(EngineError) as caught:
        find_character(speaker, "")
    assert caught.value.code == "reference_unreadable"
    assert str(path) in str(caught.value)


def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path) -> None:
    """Only 64 hexadecimal digits name an entry of the cache."""
    path = tmp_path / "a.wav"
    soundfile.write(path, hum(120), RATE)
    for digest in ("../../escape", "", "g" * 64, "a" * 63):
        find_character(Voice("a", (Reference(str(path), "audio", digest, "t"),)), str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_cache_is_no_obstacle(tmp_path: Path) -> None:
    """It is measured again each time."""
    path = tmp_path / "a.wav"
    soundfile.write(path, hum(120), RATE)
    assert find_character(voice(path), str(path / "impossible")).f0_hz == pytest.approx(120, rel=0.02)

"""Segments on the track: to the sample, across blocks, at any rate, and nothing else on it."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from daemon.commands.reading import read_document
from daemon.stitching import laying
from daemon.stitching.laying import Form, Track, lay, track_name
from daemon.stitching.placing import NotLaid, Placed, overlaps, place, read_result
from tests.shell import Fault, failing_at
from tests.stitching.conftest import Finished, noise


def placed_in(folder: Path, rate: int = 8_000, gap_s: float | None = None) -> list[Placed]:
    result = read_result(read_document(folder / "manifest.json"), folder, verify=True)
    return place(result.segments, rate, gap_s)


def track_of(folder: Path, rate: int = 8_000, **form: object) -> Track:
    placed = placed_in(folder, rate)
    options = {"frames": max(one.end for one in placed), "sample_rate": rate, "channels": 1, "subtype": "PCM_16"}
    return lay(placed, folder / "t.wav", Form(**{**options, **form}), speaker=None, tell=lambda part: None)  # type: ignore[arg-type]


def test_the_track_is_the_sum_of_its_segments(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at the sample nearest to its time, in blocks smaller than they are, equal to the bit where nothing
    overlaps."""
    monkeypatch.setattr(laying, "BLOCK_FRAMES", 1000)
    expected = np.zeros(40_000)
    for seed, (start, frames) in enumerate([(0.0, 1), (0.10003, 5000), (0.9, 3000), (1.0, 900), (4.99, 80), (0.5, 7)]):
        finished.add(start, noise(frames, seed=seed))
        at = round(start * 8000)
        expected[at : at + frames] += noise(frames, seed=seed)
    track = track_of(finished.write(), frames=40_000)
    read, rate = soundfile.read(str(track.file), dtype="float64")
    assert rate == 8000
    assert np.array_equal(read, expected)
    assert track.peak == np.abs(expected).max()
    assert not track.limited


def test_rates_are_converted_and_times_stay(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A click at a known time of the segment is at that time of the track, to the sample."""
    monkeypatch.setattr(laying, "BLOCK_FRAMES", 4800)
    for start, rate in ((0.5, 44_100), (1.5, 22_050), (2.5, 48_000)):
        samples = np.zeros(rate)
        samples[rate // 4] = 0.5
        finished.add(start, samples, rate=rate)
    track = track_of(finished.write(), rate=48_000, channels=2, subtype="FLOAT")
    read, _ = soundfile.read(str(track.file), dtype="float64")
    assert read.shape == (3.5 * 48_000, 2)
    assert np.array_equal(read[:, 0], read[:, 1])
    for start in (0.5, 1.5, 2.5):
        piece = read[round(start * 48_000) : round((start + 0.9) * 48_000), 0]
        assert abs(int(np.abs(piece).argmax()) - 12_000) <= 1


def test_two_at_once_are_limited_and_not_cut_off(finished: Finished) -> None:
    """In integers; a track of floats keeps the sum as it is."""
    finished.add(0.0, noise(8000, 0.9))
    finished.add(0.5, noise(8000, 0.9, seed=1))
    folder = finished.write()
    track = track_of(folder)
    read, _ = soundfile.read(str(track.file), dtype="float64")
    assert track.peak > 1.5
    assert track.limited and all(0.5 <= place.at / 8000 < 1.0 for place in track.limited)
    assert np.abs(read).max() < 0.99
    assert np.array_equal(read[:3900], noise(8000, 0.9)[:3900])
    loud, _ = soundfile.read(str(track_of(folder, subtype="FLOAT").file), dtype="float64")
    assert np.abs(loud).max() == pytest.approx(track.peak)


def test_segments_without_times_follow_after_the_gap(finished: Finished) -> None:
    """Each the one before it in the job; without a gap they can't be laid."""
    for start in (None, None, 3.0, None):
        finished.add(start, noise(800))
    folder = finished.write()
    assert [one.start for one in placed_in(folder, gap_s=0.25)] == [0, 2800, 24_000, 26_800]
    with pytest.raises(NotLaid, match=r"3 segments have no start \(0-1,3\): with --gap"):
        placed_in(folder)


def test_overlaps_are_pairs(finished: Finished) -> None:
    """Of all that are heard at the same time; those that only touch are none."""
    for start, frames in ((0.0, 8000), (0.5, 800), (0.5, 8000), (1.0, 800), (1.5, 80)):
        finished.add(start, noise(frames))
    found, count = overlaps(placed_in(finished.write()), 100)
    pairs = [(one.first.segment.index, one.second.segment.index, one.frames) for one in found]
    assert pairs == [(0, 1, 800), (0, 2, 4000), (1, 2, 800), (2, 3, 800)]
    assert count == 4


def test_what_is_not_there_or_not_itself_is_missing(finished: Finished) -> None:
    """Failed, cancelled, gone and changed files, with the reason; skipped lines miss nothing."""
    finished.add(0.0, noise(800))
    finished.add(1.0, None, status="failed")
    finished.add(2.0, None, status="cancelled")
    finished.add(3.0, None, status="skipped")
    finished.add(4.0, noise(800)).unlink()
    finished.add(5.0, noise(800)).write_bytes(b"RIFF")
    soundfile.write(str(finished.add(6.0, noise(800))), noise(400), 8000)
    folder = finished.write()
    manifest = read_document(folder / "manifest.json")
    result = read_result(manifest, folder, verify=True)
    assert [one.index for one in result.segments] == [0]
    reasons = {one.index: one.reason for one in result.missing}
    assert list(reasons) == [1, 2, 4, 5, 6]
    assert reasons[1] == "failed: no_speech: nothing but noise came of it"
    assert "is not there" in reasons[4] and "changed" in reasons[6]
    unverified = read_result(manifest, folder, verify=False)
    assert [one.index for one in unverified.segments] == [0, 6]
    assert unverified.segments[1].frames == 400


def test_a_name_that_leads_elsewhere_is_no_file(finished: Finished) -> None:
    """Whoever wrote the manifest: only files beside it are laid."""
    finished.add(0.0, noise(8))
    finished.add(0.0, noise(8))
    finished.rows[1]["file"] = "../secret.wav"
    folder = finished.write()
    result = read_result(read_document(folder / "manifest.json"), folder, verify=True)
    assert [one.index for one in result.missing] == [1]


def test_a_disk_that_refuses_leaves_the_old_track(finished: Finished) -> None:
    """Whole or not at all: every operation fails once, and nothing half-written is left."""
    finished.add(0.0, noise(800))
    folder = finished.write()
    (folder / "t.wav").write_bytes(b"old")
    before = sorted(folder.iterdir())
    number = 0
    while True:
        number += 1
        with failing_at(number, error=errno.ENOSPC) as came:
            with contextlib.suppress(Fault):
                track_of(folder)
            if not came():
                break
        if number < 5:  # after the rename, the new one is whole
            assert (folder / "t.wav").read_bytes() == b"old"
        assert sorted(folder.iterdir()) == before
    assert number > 5


def test_tracks_have_names_of_their_own() -> None:
    """Whatever a speaker is called."""
    names = [track_name(1, "anna"), track_name(2, "Anna"), track_name(3, "../a:b *"), track_name(4, "..")]
    assert names == ["01_anna.wav", "02_Anna.wav", "03_a_b.wav", "04.wav"]

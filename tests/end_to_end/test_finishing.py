"""``fit``, ``loudness_lufs``, ``trim_silence``, ``sample_rate``: the whole daemon on the draft engine's speech."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
from numpy.typing import NDArray

from daemon.core.job import Limits
from daemon.live_job import LiveJob
from tests.end_to_end.conftest import DaemonUnderTest, Make, sample_job, shared_daemon, wait_for

RATE = 48_000
LUFS = -23.0
SPEEDS = (0.8, 1.0, 1.05, 1.2, 1.35, 1.5, 2.5)
"""How much longer than its slot each line is, in turn; the last is more than the fastest that is allowed."""


@pytest.fixture(scope="module")
def dubd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonUnderTest]:
    yield from shared_daemon(tmp_path_factory, engine__name="draft", engine__options={}, worker__python="")


@pytest.fixture(scope="module")
def plain(dubd: DaemonUnderTest) -> dict[str, Any]:
    """The manifest of 14 lines as the engine makes them."""
    return dubd.run("plain", film("plain"))


def film(job_id: str, **more: Any) -> dict[str, Any]:
    """The first lines of the sample, each with the seed 7, so that every job of them has the same takes."""
    job = sample_job()
    segments = [
        {name: segment[name] for name in ("index", "speaker", "text")}
        for segment in job["segments"]
        if len(segment["text"]) > 25
    ]
    return {**job, "job_id": job_id, "defaults": {"seed": 7}, "segments": segments[:14], **more}


def sound(dubd: DaemonUnderTest, manifest: dict[str, Any], position: int) -> tuple[NDArray[np.float64], int]:
    samples, rate = soundfile.read(dubd.outbox / manifest["job_id"] / manifest["segments"][position]["file"])
    return samples, rate


def median_f0(samples: NDArray[np.float64], rate: int) -> float:
    """Median fundamental frequency in Hz of the voiced moments, by the normalized autocorrelation of 50 ms windows."""
    size, hop = round(rate * 0.05), round(rate * 0.005)
    lags = np.arange(rate // 400, rate // 60)
    found = []
    for start in range(0, len(samples) - size, hop):
        window = samples[start : start + size] - samples[start : start + size].mean()
        energy = float(window @ window)
        if energy / size < 1e-4:
            continue
        spectrum = np.fft.rfft(window, 2 * size)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: lags[-1] + 1] / energy
        # A longer lag sees less of the window.
        correlation[lags] *= size / (size - lags)
        best = int(lags[correlation[lags].argmax()])
        # A whole number of periods is alike too: the shortest of those that are nearly as good.
        for divisor in (4, 3, 2):
            near = round(best / divisor)
            if near >= lags[0]:
                near = near - 2 + int(correlation[near - 2 : near + 3].argmax())
                if correlation[near] > 0.9 * correlation[best]:
                    best = near
                    break
        if correlation[best] > 0.7:
            left, here, right = correlation[best - 1 : best + 2] if best < lags[-1] else (0.0, 1.0, 0.0)
            found.append(rate / (best + 0.5 * (left - right) / (left - 2 * here + right)))
    return statistics.median(found)


def test_a_line_that_is_too_long_is_fitted_and_keeps_its_pitch(dubd: DaemonUnderTest, plain: dict[str, Any]) -> None:
    """Into its slot within 1 ms, or by the highest speed and no further; what fits is left as it is; the pitch stays
    within 2 %, and as much of the speech is there as before."""
    job = film("fitted", output={"fit": "speed", "max_speed": 1.5})
    for segment, was, factor in zip(job["segments"], plain["segments"], itertools.cycle(SPEEDS), strict=False):
        segment["start"] = 10.0 * segment["index"]
        segment["end"] = segment["start"] + was["duration_s"] / factor
    manifest = dubd.run("fitted", job)
    dubd.check_manifest(manifest)
    assert manifest["status"] == "done"
    assert [line for line in manifest["ignored"] if "output" in line] == []
    for position, factor in zip(range(14), itertools.cycle(SPEEDS), strict=False):
        before, after = plain["segments"][position], manifest["segments"][position]
        samples, rate = sound(dubd, manifest, position)
        was, _ = sound(dubd, plain, position)
        assert len(samples) / rate == pytest.approx(after["duration_s"], abs=1e-6)
        assert after["finishing"]["spoken_s"] == pytest.approx(before["duration_s"], abs=1e-6)
        if factor <= 1.0:
            assert (after["duration_s"], after["finishing"]["speed"]) == (before["duration_s"], 1.0)
            continue
        speed = min(factor, 1.5)
        assert after["finishing"]["speed"] == pytest.approx(speed, rel=0.001)
        assert after["duration_s"] == pytest.approx(before["duration_s"] / speed, abs=0.001)
        beyond = before["duration_s"] * (1 / 1.5 - 1 / factor)
        assert after["overrun_s"] == (pytest.approx(beyond, abs=0.001) if factor > 1.5 else 0.0)
        assert median_f0(samples, rate) == pytest.approx(median_f0(was, rate), rel=0.02)
        # Neither the first sound nor the last has gone, and all is as loud as it was.
        assert course(samples) == pytest.approx(course(was), abs=0.35 * course(was).max())
        assert rms(samples) == pytest.approx(rms(was), rel=0.1)
        assert (samples[0], samples[-1]) == pytest.approx((was[0], 0.0), abs=0.001)


def rms(samples: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def course(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The loudness of each tenth of it."""
    return np.array([rms(part) for part in np.array_split(samples, 10)])


def test_all_of_it_together_and_again_from_before(dubd: DaemonUnderTest) -> None:
    """Loudness within 0.5 LU where the peaks allow it, no peak above -1 dBTP where they don't, the rate and subtype
    that were asked for; taken again, all of it is reused, and tells the same."""
    output = {"sample_rate": RATE, "subtype": "PCM_24", "fit": "speed", "loudness_lufs": LUFS, "trim_silence": True}
    job = film("whole", output=output)
    for segment in job["segments"]:
        segment |= {"start": 0.0, "end": 2.0}
    loud = film("loud", output={"loudness_lufs": -9})
    dubd.drop("loud", loud)
    manifest = dubd.run("whole", job)
    assert (manifest["status"], manifest["counts"]["cached"]) == ("done", 0)
    for position, segment in enumerate(manifest["segments"]):
        told = segment["finishing"]
        assert set(told) == {
            "spoken_s", "trimmed_start_s", "trimmed_end_s", "speed", "measured_lufs", "gain_db", "loudness_lufs",
            "true_peak_dbtp", "limited_by_peak",
        }  # fmt: skip
        samples, rate = sound(dubd, manifest, position)
        info = soundfile.info(dubd.outbox / "whole" / segment["file"])
        assert (rate, segment["sample_rate"], info.subtype) == (RATE, RATE, "PCM_24")
        assert pyloudnorm.Meter(rate).integrated_loudness(samples) == pytest.approx(LUFS, abs=0.5)
        assert not told["limited_by_peak"]
        trimmed = told["trimmed_start_s"] + told["trimmed_end_s"]
        assert told["spoken_s"] - trimmed == pytest.approx(segment["duration_s"] * told["speed"], rel=0.001)
    for position, segment in enumerate(dubd.manifest("loud")["segments"]):
        told = segment["finishing"]
        assert told["limited_by_peak"] and told["loudness_lufs"] < -9
        assert told["true_peak_dbtp"] == -1.0
        samples, _ = sound(dubd, dubd.manifest("loud"), position)
        assert 0.7 < abs(samples).max() < 0.9
    again = dubd.run("again", {**job, "job_id": "again"})
    assert again["counts"]["cached"] == 14
    for before, after in zip(manifest["segments"], again["segments"], strict=True):
        assert (after["sha256"], after["finishing"]) == (before["sha256"], before["finishing"])
    job["segments"][0]["end"] = 1.9  # another slot is another recording
    assert dubd.run("other", {**job, "job_id": "other"})["counts"]["cached"] == 13


def test_settings_that_make_no_sense_are_refused(dubd: DaemonUnderTest) -> None:
    output = {"fit": "squeeze", "max_speed": 3, "loudness_lufs": 1, "trim_silence": "yes", "trim": True}
    dubd.drop("senseless", film("senseless", output=output))
    assert set(dubd.rejection("senseless")) == {
        ("$.output.fit", "bad_fit"),
        ("$.output.max_speed", "out_of_range"),
        ("$.output.loudness_lufs", "out_of_range"),
        ("$.output.trim_silence", "wrong_type"),
        ("$.output.trim", "unknown_field"),
    }


def finishing_processes(dubd: DaemonUnderTest) -> set[int]:
    """Those of this daemon, by their command and their current directory."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            ours = b"daemon.finishing.process" in command and (folder / "cwd").readlink() == dubd.folder
            # Whoever starts it, and ends at once, has the same command; it leads a session of its own.
            if ours and os.getsid(int(folder.name)) == int(folder.name):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def delivered(dubd: DaemonUnderTest) -> int:
    """How many segments have been begun, and are back from their workers with a WAV."""
    out: dict[int, bool] = {}
    for record in dubd.journals():
        if record["t"] == "began":
            out[record["p"]] = True
        elif record["t"] == "back" and record["p"] in out:
            out[record["p"]] = False
    wavs = len(list((dubd.state / "jobs").glob("[!.]*/segments/.*.wav")))
    return min(wavs, sum(not is_out for is_out in out.values()))


@pytest.mark.timeout(120)
def test_a_finishing_process_that_is_killed_costs_nothing(make: Make) -> None:
    """Killed as soon as it is there, and again over its work: every segment is finished, none is spoken again. They are
    no children of the daemon's, and end with it. What the daemon's own death leaves unfinished is spoken again, and is
    no suspect: its worker was done with it."""
    dubd = make(engine__name="draft", engine__options={}).start()
    dubd.drop("film", film("film", output={"trim_silence": True}))
    first = wait_for(lambda: finishing_processes(dubd), "a finishing process").pop()
    os.kill(first, signal.SIGKILL)
    wait_for(dubd.ok_in_journal, "a finished segment")
    for pid in finishing_processes(dubd):
        os.kill(pid, signal.SIGKILL)
    manifest = dubd.manifest("film")
    dubd.check_manifest(manifest)
    assert (manifest["status"], {segment["attempts"] for segment in manifest["segments"]}) == ("done", {1})
    children = Path(f"/proc/{dubd.pid}/task/{dubd.pid}/children").read_text().split()
    assert {int(pid) for pid in children} == {row["pid"] for row in dubd.workers()}
    dubd.check_nothing_left()
    dubd.run("again", film("again", output={"trim_silence": True}))  # the last kill may have struck an idle one
    left = finishing_processes(dubd)
    assert left
    for pid in left:
        os.kill(pid, signal.SIGSTOP)
    dubd.drop("more", film("more", output={"fit": "speed"}))
    wait_for(lambda: delivered(dubd) == 14, "the last delivery")
    dubd.kill()
    (folder,) = (dubd.state / "jobs").glob("[!.]*")
    left_behind = LiveJob.open(shutil.copytree(folder, dubd.folder / "copy" / folder.name), Limits())
    left_behind.suspect_what_was_out()
    waiting = left_behind.waiting()
    assert len(waiting) == 14 and not any(spec.suspect for spec in waiting)
    for pid in left:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not finishing_processes(dubd), "the end of the finishing processes")
    dubd.start()
    assert dubd.manifest("more")["status"] == "done"

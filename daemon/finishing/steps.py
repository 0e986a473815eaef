"""The arithmetic of finishing: samples in, samples out, and what was done to them.

Samples are numpy arrays of 32-bit floats, shape (frames,) or (frames, channels), full scale at 1.0. Each step gives
back the very array that it was given where there is nothing to do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from libsonic import SonicStream
from numpy.typing import NDArray

from daemon.finishing.settings import Settings

Samples = NDArray[np.float32]

EDGE_S = 0.05
"""Silence that is kept before and after."""

FADE_S = 0.005
"""Where something was cut or joined, the edge fades in or out so long: even a floor of noise would click."""

_FRAME_S = 0.005

SILENCE_BELOW_LOUDEST = 10 ** (-45 / 20)
"""What is 45 dB under the loudest moment is silence. The breath of an f or an h lies 30 to 40 dB under the vowels, what
an engine leaves in its pauses 50 dB or more; where that is louder, nothing is trimmed."""

SILENCE_FLOOR = 10 ** (-70 / 20)
"""Under -70 dBFS everything is silence; it is also the absolute threshold of BS.1770."""

_FULL_RANGE = 0.999
_NUDGES = 8


def finish(samples: Samples, rate: int, settings: Settings) -> tuple[Samples, dict[str, Any]]:
    """All steps that are asked for, in their order; ``rate`` is in Hz.

    Returns:
        The finished samples, and what the manifest says of the segment under ``finishing``: ``spoken_s`` (the length
        that the engine made), ``trimmed_start_s``, ``trimmed_end_s``, ``speed``, ``measured_lufs`` (before the gain,
        null for silence), ``gain_db``, ``loudness_lufs``, ``true_peak_dbtp``, ``limited_by_peak``.
    """
    told: dict[str, Any] = {"spoken_s": round(len(samples) / rate, 6)}
    if settings.trim_silence:
        samples, start, end = trim(samples, rate)
        told |= {"trimmed_start_s": round(start / rate, 6), "trimmed_end_s": round(end / rate, 6)}
    if settings.fit is not None:
        before = len(samples)
        samples = fit(samples, rate, settings.slot_s, settings.max_speed)
        told["speed"] = round(before / len(samples), 4)
    if settings.loudness_lufs is not None:
        # Half a second of imports, and a hundred megabytes, for those who ask for it.
        from daemon.finishing.loudness import normalize

        samples, loudness = normalize(samples, rate, settings.loudness_lufs)
        told |= loudness
    return samples, told


# --- silence ------------------------------------------------------------------------------------------------


def trim(samples: Samples, rate: int) -> tuple[Samples, int, int]:
    """Without the silence at both ends but for the last EDGE_S of each; how many frames were cut off before and after.
    One that is silent all through is left alone."""
    step = max(1, round(rate * _FRAME_S))
    count = len(samples) // step
    if not count:
        return samples, 0, 0
    power = np.square(samples.astype(np.float64)).reshape(len(samples), -1).max(axis=1)
    level = np.sqrt(power[: count * step].reshape(count, step).mean(axis=1))
    # The last, incomplete stretch counts as sound if it is: it must not be lost for being short.
    level = np.append(level, math.sqrt(power[count * step :].mean()) if len(samples) % step else 0.0)
    heard = np.flatnonzero(level > max(level.max() * SILENCE_BELOW_LOUDEST, SILENCE_FLOOR))
    if not len(heard):
        return samples, 0, 0
    edge = round(rate * EDGE_S)
    first = max(0, int(heard[0]) * step - edge)
    last = min(len(samples), (int(heard[-1]) + 1) * step + edge)
    if not first and last == len(samples):
        return samples, 0, 0
    kept = samples[first:last].copy()
    if first:
        _fade_in(kept, rate)
    if last < len(samples):
        _fade_in(kept[::-1], rate)
    return kept, first, len(samples) - last


def _fade_in(samples: Samples, rate: int) -> None:
    """In place, along half a period of a raised cosine; of a reversed view, it fades out."""
    frames = min(len(samples), round(rate * FADE_S))
    ramp = np.sin(np.linspace(0, math.pi / 2, frames, dtype=np.float32)) ** 2
    samples[:frames] *= ramp.reshape(-1, *(1,) * (samples.ndim - 1))


# --- length -------------------------------------------------------------------------------------------------


def fit(samples: Samples, rate: int, slot_s: float | None, max_speed: float) -> Samples:
    """Sped up so as to last exactly as many whole samples as the slot has, or, where that would take more than
    ``max_speed``, sped up by that. Never slowed down, and nothing is cut off."""
    # A slot is a difference of decimal fractions, often rounded to the microsecond: 2.2 s may have come out as a hair
    # less. By less than half a microsecond it is not overrun, in the manifest neither.
    frames = len(samples) if slot_s is None else math.floor((slot_s + 4.9e-7) * rate)
    if len(samples) <= frames:
        return samples
    return stretch(samples, rate, max(frames, math.floor(len(samples) / max_speed), 1))


def stretch(samples: Samples, rate: int, frames: int) -> Samples:
    """The same speech, at the same pitch, in so many frames (fewer than it has).

    The library joins whole periods of the voice, so its result may miss the length by some of them. A longer one is
    made once more, a little faster; a shorter one gets silence behind it.
    """
    flat = np.ascontiguousarray(samples, dtype=np.float32)
    peak = float(np.abs(flat).max(initial=0.0))
    if not peak:
        return samples[:frames]
    # It reckons in 16 bits and cuts off what is beyond full scale: it is given all of the range, and no more.
    scale = _FULL_RANGE / peak
    channels = 1 if flat.ndim == 1 else flat.shape[1]
    speed = len(flat) / frames
    for _ in range(_NUDGES):
        stream = SonicStream(rate, channels)
        stream.set_speed(speed)
        stream.write((flat * scale).ravel())
        stream.flush()
        made = np.asarray(stream.read(stream.available_frames()), dtype=np.float32) / np.float32(scale)
        made = made.reshape(-1, *flat.shape[1:])
        if len(made) <= frames:
            _fade_in(made[::-1], rate)  # the last period may end anywhere
            return np.concatenate([made, np.zeros((frames - len(made), *flat.shape[1:]), np.float32)])
        speed *= len(made) / frames * 1.0005
    raise ValueError(f"{len(flat)} frames at {rate} Hz could not be brought down to {frames}")

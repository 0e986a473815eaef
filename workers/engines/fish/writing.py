"""Writes the WAVs on a thread, so that the engine goes on while a file is resampled and written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from workers.engine import EngineError
from workers.engines.fish.resampling import resample


class Writer:
    """One thread that writes in the order of ``submit``. It takes the samples as they are: don't change them after."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wav-writer")

    def submit(
        self, samples: NDArray[np.float32], sample_rate: int, path: str, out_rate: int | None, subtype: str
    ) -> Future[tuple[int, int]]:
        """Write (samples,) at ``sample_rate`` Hz to a WAV at ``path``, at ``out_rate`` Hz if given, ``subtype`` as
        libsndfile names it; what goes beyond full scale is limited to it. The result is the WAV's frames and rate.

        The future raises EngineError: "non_finite" for NaN or infinite samples, which would be clicks; "bad_output"
        for a rate or subtype that no WAV has; "cannot_write" when the disk says no. No file is left then.
        """
        return self._thread.submit(_write, samples, sample_rate, path, out_rate, subtype)

    def close(self) -> None:
        """Finish what was submitted, and end."""
        self._thread.shutdown(wait=True)


def _write(
    samples: NDArray[np.float32], sample_rate: int, path: str, out_rate: int | None, subtype: str
) -> tuple[int, int]:
    if not np.isfinite(samples).all():
        raise EngineError("non_finite", "the audio has samples that are no numbers", retryable=True)
    rate = sample_rate if out_rate is None else out_rate
    if rate < 1 or not soundfile.check_format("WAV", subtype):
        known = ", ".join(sorted(soundfile.available_subtypes("WAV")))
        raise EngineError("bad_output", f"a WAV of {rate} Hz, {subtype!r} can't be written; subtypes are {known}")
    samples = resample(samples, sample_rate, rate)
    try:
        # Filters overshoot, and a float WAV would keep it.
        soundfile.write(path, np.clip(samples, -1.0, 1.0), rate, subtype=subtype, format="WAV")
    except (soundfile.SoundFileError, OSError) as error:
        Path(path).unlink(missing_ok=True)
        raise EngineError("cannot_write", f"the WAV can't be written to {path}: {error}", retryable=True) from error
    return len(samples), rate

"""Writes the WAVs on a thread, so that the engine goes on while a file is resampled and written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from workers.engine import EngineError, write_failed
from workers.engines.fish.resampling import resample
from workers.wav import check_finite, write_wav


class Writer:
    """One thread that writes in the order of ``submit``. It takes the samples as they are: don't change them after."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wav-writer")

    def submit(
        self, samples: NDArray[np.float32], sample_rate: int, path: str, out_rate: int | None, subtype: str
    ) -> Future[tuple[int, int]]:
        """Write (samples,) at ``sample_rate`` Hz to a WAV at ``path``, at ``out_rate`` Hz if given, ``subtype`` as
        libsndfile names it. The result is the WAV's frames and rate.

        The future raises EngineError: "non_finite" for NaN or infinite samples, which would be clicks,
        "missing_module" where resampling can't be done, "unsupported_output" for a subtype that no WAV has (no file
        is begun then), "write_failed", or workers.engine.DISK_FULL where there is no space.
        """
        return self._thread.submit(_write, samples, sample_rate, path, out_rate, subtype)

    def close(self) -> None:
        """Finish what was submitted, and end."""
        self._thread.shutdown(wait=True)


def _write(
    samples: NDArray[np.float32], sample_rate: int, path: str, out_rate: int | None, subtype: str
) -> tuple[int, int]:
    rate = sample_rate if out_rate is None else out_rate
    check_finite(samples)  # before resampling, which would smear one NaN over all
    samples = resample(samples, sample_rate, rate)
    try:
        write_wav(path, samples, rate, subtype)
    except OSError as error:
        failed = write_failed(0, path, error)
        raise EngineError(failed.code, failed.message, retryable=failed.retryable) from error
    return len(samples), rate

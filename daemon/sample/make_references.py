"""Makes the sample job's references: each speaker's reference text, spoken by espeak-ng in a voice of its own.

    python -m daemon.sample.make_references [FOLDER]

Needs espeakng-loader, numpy and soundfile. The recordings come out the same but for the breath that espeak-ng adds to
some voices at random. A voice is one of espeak-ng's variants with a base pitch and a speed, chosen
so that the six differ in what an engine hears first: their median fundamental frequency.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile

VOICES: dict[str, tuple[str, int, int]] = {
    "ines": ("gmw/en+f2", 48, 150),
    "bo": ("gmw/en+m1", 12, 140),
    "mara": ("gmw/en-US+f3", 62, 160),
    "okafor": ("gmw/en-GB-scotland+m3", 55, 135),
    "lin": ("gmw/en-US+f4", 28, 175),
    "teo": ("gmw/en-US+f5", 92, 170),
}
"""Speaker -> espeak-ng voice and variant, pitch (0 to 99), speed in words a minute."""

SAMPLE_RATE = 12_000
"""Hz. Enough for a voice, and a reference stays under 100 KB."""

# The names of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
CHARS_UTF8 = 1
RATE = 1
PITCH = 3
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
    """The text as mono float32 samples at SAMPLE_RATE, in -1 … 1.

    Raises:
        RuntimeError: espeak-ng refused the voice or the text.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = str(Path(espeakng_loader.get_data_path())).encode()
    rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng does not start with its data at {data.decode()}")
    pieces: list[np.ndarray] = []

    def receive(samples: object, count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    callback = CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(PITCH, pitch, 0)
    library.espeak_SetParameter(RATE, speed, 0)
    spoken = text.encode() + b"\0"
    if library.espeak_Synth(spoken, len(spoken), 0, 0, 0, CHARS_UTF8, None, None) != 0:
        raise RuntimeError(f"espeak-ng could not speak {text!r}")
    library.espeak_Synchronize()
    library.espeak_Terminate()
    return resample(np.concatenate(pieces).astype(np.float32) / 32768, rate, SAMPLE_RATE)


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """By the spectrum, cut at the lower of the two Nyquist frequencies; exact for a recording that ends in silence."""
    length = round(len(samples) * wanted / rate)
    spectrum = np.fft.rfft(samples)[: length // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, length) * (wanted / rate), dtype=np.float32)


def main() -> None:
    here = Path(__file__).parent
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    folder.mkdir(parents=True, exist_ok=True)
    job = json.loads((here / "night_ferry.json").read_text(encoding="utf-8"))
    for speaker in job["speakers"]:
        (reference,) = speaker["references"]
        samples = speak(reference["text"], *VOICES[speaker["id"]])
        path = folder / Path(reference["audio"]).name
        soundfile.write(path, samples * (0.7 / np.abs(samples).max()), SAMPLE_RATE, subtype="PCM_16")
        print(f"{path}  {len(samples) / SAMPLE_RATE:.1f} s  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

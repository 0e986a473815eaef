"""DraftEngine: the contract of workers.engine.Engine, carried out by espeak-ng.

A WAV depends on its segment alone: on the text, the language, the references, the sample rate and the subtype. It does
not depend on what was spoken before, beside it or by which worker, nor on the seed: there is nothing random.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata

import numpy as np
from numpy.typing import NDArray

from workers.engine import EngineError, Failed, Segment, Settings, Spoken, write_failed
from workers.engines.draft.character import Character, find_character
from workers.engines.draft.fundamental import median_f0
from workers.engines.draft.languages import find_voice
from workers.engines.draft.mouth import Mouth, Unspoken, Utterance
from workers.engines.draft.resample import resample
from workers.wav import write_wav

VERSION = "1"
"""Of what this package makes of espeak-ng; to be counted up when the same segment sounds different than before."""

SCALE_TEXT = "12, 345, 67. 89 10."
"""Spoken to learn how a voice's pitch parameter sounds. Almost every language of espeak-ng reads numbers, and
their median frequency lies within some 5 % of that of its sentences."""
SCALE_TEXTS = {"sit/cmn": "他昨天买了一本很有意思的书，你叫什么名字？"}
"""Where it does not: the tones of Mandarin's numbers are lower than those of its sentences."""
SCALE_LANGUAGE = "gmw/en-US"
"""Whose numbers stand in for those of a language that can't read them."""
SCALE_PITCHES = (25, 50, 99)
"""The lowest are left out: there the voice creaks, and half of it is not heard as voiced."""
SCALE_RATE = 175
SCALE_RANGE = 50
"""The pace and the liveliness that espeak-ng has by itself. Neither moves the median: it makes up for the latter."""
PITCH_OCTAVE = 50
"""espeak-ng's pitch parameter doubles a voice's base frequency every 50 steps (pitch_adjust_tab in wavegen.c)."""

Scale = list[tuple[float, int]]
"""Median frequencies in Hz, each with the pitch parameter it was heard at; two at least."""

SAMPLE_RATES = (4_000, 192_000)
"""The lowest and the highest that a WAV is made in, in Hz."""
WAIT_S = 0.02
"""How long a step waits for the speaking process; a segment that comes meanwhile waits as long."""
MOST_SLOTS = 64
"""More gain nothing, and might fill the socket of the speaking process both ways."""
REMEMBERED = 4_096
"""Voices whose character is kept in memory."""


class DraftEngine:
    """See the module's text."""

    name = "draft"
    version = VERSION
    model = "espeak-ng"
    sample_rate = 22_050
    device = "cpu"
    ignored = ("seed", "temperature", "top_p", "repetition_penalty", "max_new_tokens")

    def __init__(self, settings: Settings) -> None:
        # Forks share the cores among themselves; the second half keeps the first's place busy while a WAV is written.
        self.slots = min(MOST_SLOTS, settings.slots or max(2, 2 * settings.threads))
        self._cache = settings.cache
        self._mouth: Mouth | None = None
        self._running: dict[int, tuple[Segment, float]] = {}
        """By ticket; with when it was submitted, on the performance counter."""
        self._ended: list[Spoken | Failed] = []
        """What the next step has to tell."""
        self._characters: dict[tuple[tuple[str, str, str], ...], Character] = {}
        self._scales: dict[str, Scale] = {}
        self._tuning = 0

    def load(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise EngineError(
                "missing_module",
                "the draft engine needs the Python module espeakng_loader: install espeakng-loader into the worker's "
                "environment",
            ) from error
        library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
        self._mouth = Mouth(library, data)
        self.sample_rate = self._mouth.sample_rate
        self.version = f"{VERSION} (espeak-ng {self._mouth.version})"
        self.model = f"espeak-ng-{_content_hash(library, data)}"

    def submit(self, segment: Segment) -> None:
        started = time.perf_counter()
        try:
            utterance = self._prepare(segment)
        except EngineError as error:
            self._ended.append(Failed(segment.ticket, error.code, str(error), error.retryable))
            return
        self._open_mouth.say(segment.ticket, utterance)
        self._running[segment.ticket] = (segment, started)

    def step(self) -> list[Spoken | Failed]:
        self._collect(0.0 if self._ended or not self._running else WAIT_S)
        outcomes, self._ended = self._ended, []
        return outcomes

    def cancel(self, ticket: int) -> bool:
        if self._running.pop(ticket, None) is None:
            return False
        self._open_mouth.drop(ticket)
        return True

    def activity(self) -> str:
        speaking = len(self._running)
        return f"speaking {speaking} segment{'' if speaking == 1 else 's'}" if speaking else "idle"

    def close(self) -> None:
        if self._mouth is not None:
            self._mouth.close()
        self._running.clear()

    @property
    def _open_mouth(self) -> Mouth:
        if self._mouth is None:
            raise RuntimeError("load() comes first")
        return self._mouth

    def _prepare(self, segment: Segment) -> Utterance:
        """What is to be said, and how.

        Raises:
            EngineError: the segment asks for what this engine can't do.
        """
        if segment.task != "speak":
            raise EngineError(
                "unsupported", "the draft engine has no codec, so it makes no codes: encode with the fish engine"
            )
        lowest, highest = SAMPLE_RATES
        if segment.sample_rate is not None and not lowest <= segment.sample_rate <= highest:
            raise EngineError(
                "unsupported_output", f"a sample rate of {segment.sample_rate} Hz is not from {lowest} to {highest}"
            )
        language = find_voice(segment.language, self._open_mouth.voices)
        character = self._characters.get(segment.voice.key)
        if character is None:
            character = find_character(segment.voice, self._cache)
            if len(self._characters) >= REMEMBERED:
                self._characters.clear()
            self._characters[segment.voice.key] = character
        voice = f"{language}+{character.variant}"
        pitch = invert_scale(self._scale(voice), character.f0_hz)
        return Utterance(voice, plain_text(segment.text), pitch, character.rate, character.range)

    def _scale(self, voice: str) -> Scale:
        """How high the voice is at SCALE_PITCHES; measured once.

        Raises:
            EngineError: the voice can't be heard.
        """
        known = self._scales.get(voice)
        if known is not None:
            return known
        heard: dict[int, NDArray[np.int16]] = {}
        language, plus, variant = voice.rpartition("+")
        text = SCALE_TEXTS.get(language, SCALE_TEXT)
        for pitch in SCALE_PITCHES:
            # Tickets count up from 0: below it is room for what nobody asked for.
            self._tuning -= 1
            self._open_mouth.say(self._tuning, Utterance(voice, text, pitch, SCALE_RATE, SCALE_RANGE))
            heard[self._tuning] = np.empty(0, np.int16)
        left = set(heard)
        while left:
            for number, result in self._collect(WAIT_S):
                left.discard(number)
                if isinstance(result, Unspoken):
                    for other in left:
                        self._open_mouth.drop(other)
                    raise EngineError(result.code, result.message, retryable=result.retryable)
                heard[number] = result
        frequencies = [median_f0(samples.astype(np.float32), self.sample_rate) for samples in heard.values()]
        scale = [(hertz, pitch) for hertz, pitch in zip(frequencies, SCALE_PITCHES, strict=True) if hertz is not None]
        if len(scale) < 2 and language != SCALE_LANGUAGE:
            scale = self._scale(SCALE_LANGUAGE + plus + variant)
        if len(scale) < 2:
            raise EngineError("engine_error", f"no pitch can be heard in espeak-ng's voice {voice!r}")
        self._scales[voice] = scale
        return scale

    def _collect(self, timeout_s: float) -> list[tuple[int, NDArray[np.int16] | Unspoken]]:
        """Write what has been spoken; what belongs to no segment is given back."""
        others = []
        for number, result in self._open_mouth.ended(timeout_s):
            if number in self._running:
                segment, started = self._running.pop(number)
                self._ended.append(self._finish(segment, result, started))
            else:
                others.append((number, result))
        return others

    def _finish(self, segment: Segment, result: NDArray[np.int16] | Unspoken, started: float) -> Spoken | Failed:
        if isinstance(result, Unspoken):
            return Failed(segment.ticket, result.code, result.message, result.retryable)
        if not result.any():
            message = f"there is nothing in the text that espeak-ng would say in {segment.language!r}"
            return Failed(segment.ticket, "nothing_spoken", message, False)
        rate = segment.sample_rate or self.sample_rate
        samples: NDArray[np.int16] | NDArray[np.float32] = result
        if rate != self.sample_rate:
            samples = resample(result.astype(np.float32) / 32_768.0, self.sample_rate, rate)
        try:
            write_wav(segment.path, samples, rate, segment.subtype)
        except EngineError as error:
            return Failed(segment.ticket, error.code, str(error), error.retryable)
        except OSError as error:
            return write_failed(segment.ticket, segment.path, error)
        return Spoken(segment.ticket, len(samples), rate, segment.seed, time.perf_counter() - started)


def invert_scale(scale: Scale, f0_hz: float) -> int:
    """The pitch parameter, 0 to 99, at which a voice of this scale has ``f0_hz``, or the nearest it can get. Over 2 **
    (parameter / PITCH_OCTAVE) the frequency is a straight line, laid through the scale by least squares."""
    bases = [2.0 ** (pitch / PITCH_OCTAVE) for _, pitch in scale]
    slope, start = np.polyfit(bases, [hertz for hertz, _ in scale], 1)
    if slope <= 0.0:
        return SCALE_PITCHES[1]
    base = np.clip((f0_hz - start) / slope, 1.0, 2.0 ** (99 / PITCH_OCTAVE))
    return round(PITCH_OCTAVE * float(np.log2(base)))


def plain_text(text: str) -> str:
    """``text`` with nothing in it that espeak-ng would take for a command: control characters (its embedded commands
    begin with one), private and unassigned code points (it marks its own punctuation with some) and lone surrogates
    become spaces. Line feeds stay: two of them end a paragraph. Joiners stay: words are spelled with them."""
    return "".join(
        character if character == "\n" or unicodedata.category(character) not in ("Cc", "Co", "Cn", "Cs") else " "
        for character in unicodedata.normalize("NFC", text).replace("\r\n", "\n")
    )


def _content_hash(library: str, data: str) -> str:
    """A short hash of everything that shapes the audio: the library and the voice data."""
    digest = hashlib.sha256()
    paths = [library]
    for folder, folders, names in os.walk(data):
        folders.sort()
        paths += [os.path.join(folder, name) for name in sorted(names)]
    for path in paths:
        with open(path, "rb") as file:
            content = file.read()
        digest.update(b"%s\0%d\0" % (os.path.basename(path).encode(), len(content)))
        digest.update(content)
    return digest.hexdigest()[:12]

"""The fish engine: segments in, WAVs out, as many at once as there are slots.

A segment's text is cut into pieces (one, mostly). Each piece is a row of the batch, from its prompt to the end token.
When the last piece of a segment has ended, its codes go to the codec, its samples are checked, and it is either written
or spoken again with another seed::

    submit -> pieces -> waiting -> rows (rows.py) -> codes -> samples, checks (finishing.py) -> WAV
                           ^                                        |
                           +------------- another seed -------------+
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from workers.engine import EngineError, Failed, Segment, Settings, Spoken, non_finite
from workers.engines.fish import machine, noise, weight_file
from workers.engines.fish.codec import Codec
from workers.engines.fish.finishing import Finisher, Rendered, Written
from workers.engines.fish.prompt import Prompter, read_tokenizer
from workers.engines.fish.references import ReferenceCache
from workers.engines.fish.rows import Ended, Prompt, Rows, Start
from workers.engines.fish.sampler import as_stock_rounds
from workers.engines.fish.shape import GENERATED_POSITIONS, read_shape
from workers.engines.fish.speech import Speech, pieces_of
from workers.engines.fish.voices import Voices
from workers.engines.fish.weights import check_files, content_id, read_weights

DECODER_VERSION = 2
"""Counted up when the same segment would sound different."""

FRAMES_A_STEP = 4
"""Frames that a step speaks on a GPU, where one takes a millisecond or two: what is around it would show."""

STEADY_SLOTS = 4
"""Slots of a reproducible engine unless the settings say how many."""

WAIT_S = 0.05
"""How long a step waits when nothing is left to decode."""


@dataclass(frozen=True)
class _Piece:
    """A row to be started: which speech, which of its pieces, and how."""

    speech: Speech
    number: int
    start: Start


def _check_whole(folder: str, cache: str) -> None:
    for name in ("codec.pth", "model.pth"):
        weight_file.check(os.path.join(folder, name), cache)


class FishEngine:
    """See workers.engine.Engine. Settings.options: ``mask_end`` (true: segments run to their token limit, for
    measuring), ``checks`` (false: no WAV is checked)."""

    name = "fish"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.version = ""
        self.model = ""
        self.sample_rate = 44100
        self.slots = 1
        self.device = settings.device
        self.ignored: tuple[str, ...] = ()
        self._submitted: deque[Segment] = deque()
        self._waiting: deque[_Piece] = deque()
        self._speeches: dict[int, Speech] = {}
        self._pieces: dict[int, _Piece] = {}
        self._next_key = 0
        self._outcomes: list[Spoken | Failed] = []

    def load(self) -> None:
        """Read the checkpoint. Raises EngineError "no_checkpoint", "bad_checkpoint", "no_device" or "bad_option"."""
        settings = self._settings
        options = dict(settings.options)
        self._mask_end = bool(options.pop("mask_end", False))
        checks = bool(options.pop("checks", True))
        self._retries = settings.retries if checks else 0
        if options:
            raise EngineError(
                "bad_option", f"engine.options has {', '.join(sorted(options))}, which fish does not know"
            )
        folder = settings.checkpoint
        check_files(folder)
        shape = read_shape(folder)
        torch.set_num_threads(max(1, settings.threads))
        device = machine.device(settings.device)
        machine.keep_compiled(settings.cache)
        precision = machine.precision(settings.precision, device, reproducible=settings.reproducible)
        machine.bound_memory(device, settings.memory_bytes)
        with torch.inference_mode(), ThreadPoolExecutor(max_workers=2) as beside:
            whole = beside.submit(_check_whole, folder, settings.cache)
            print("Loading Text2Semantic model...", file=sys.stderr, flush=True)
            tokenizer = beside.submit(read_tokenizer, folder)
            print("Loading DAC model...", file=sys.stderr, flush=True)
            codec = Codec.load(folder, settings.device, machine.codec_precision(precision, device))
            self._prompter = Prompter(tokenizer.result(), shape, folder)
            first, count = self._prompter.semantic_begin, self._prompter.semantic_tokens
            weights = read_weights(folder, shape, range(first, first + count), self._prompter.end, device, precision)
            whole.result()
        if codec.num_codebooks != shape.codebooks:
            raise EngineError(
                "bad_checkpoint",
                f"the codec in {folder} has {codec.num_codebooks} codebooks and the model {shape.codebooks}: they do "
                "not belong together",
            )
        # Steady rows step all slots, so how many there are must not depend on the memory that happens to be free.
        slots = settings.slots or (STEADY_SLOTS if settings.reproducible else 0)
        memory = machine.plan_memory(device, settings.memory_bytes, shape.cache_bytes(precision.itemsize), slots)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what was loaded is used on another stream
        self._stream = machine.stream(device)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._rows = Rows(
                weights,
                memory.slots,
                memory.row_tokens,
                GENERATED_POSITIONS,
                steady=settings.reproducible,
                prompt_tokens=memory.prompt_tokens,
            )
        self._references = ReferenceCache(codec, settings.cache)
        self._voices = Voices(self._references, self._prompter, memory.prompt_tokens, shape.longest_prompt)
        self._finisher = Finisher(codec, device, steady=settings.reproducible, checks=checks)
        self._frames_a_step = FRAMES_A_STEP if device.type == "cuda" else 1
        self.slots = memory.slots
        self.sample_rate = codec.sample_rate
        self.model = f"{content_id(folder)}-{codec.codec_id}"
        self.version = (
            f"decoder {DECODER_VERSION}, fish-speech {importlib.metadata.version('fish-speech')}, torch "
            f"{torch.__version__}, {str(precision).removeprefix('torch.')}"
            f"{', reproducible' if settings.reproducible else ''}"
        )

    def submit(self, segment: Segment) -> None:
        self._submitted.append(segment)

    def cancel(self, ticket: int) -> bool:
        for segment in self._submitted:
            if segment.ticket == ticket:
                self._submitted.remove(segment)
                return True
        speech = self._speeches.pop(ticket, None)
        if speech is None:
            return False
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            self._forget_rows(speech)
        return True

    def step(self) -> list[Spoken | Failed]:
        shortage = ""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                self._take_in()
                self._start()
                self._advance()
            except Exception as error:
                if not machine.is_out_of_memory(error):
                    raise
                shortage = str(error).partition("\n")[0]
            if shortage:  # the error, and with it what its frames hold, is gone by now
                self._shrink(shortage)
            idle = not self._waiting and not len(self._rows.batch) and not self._outcomes
            self._finish(WAIT_S if idle else 0.0)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _fail(self, ticket: int, error: EngineError) -> None:
        self._outcomes.append(Failed(ticket, error.code, str(error), error.retryable))

    def activity(self) -> str:
        speaking = len(self._rows.batch)
        parts = [f"speaking {speaking} of {self.slots}"] if speaking else []
        waiting = len(self._waiting) + len(self._submitted)
        parts += [f"{waiting} waiting"] if waiting else []
        parts += ["codec"] if self._finisher.busy else []
        return ", ".join(parts) or "idle"

    def close(self) -> None:
        self._finisher.close()

    # --- segments to pieces ----------------------------------------------------------------------------------

    def _take_in(self) -> None:
        """Turn what was submitted into waiting pieces. Should memory run out, what has not been taken in stays."""
        while self._submitted and self._submitted[0].task == "encode":
            self._encode(self._submitted[0])
            self._submitted.popleft()
        speaking = [segment for segment in self._submitted if segment.task != "encode"]
        if not speaking:
            return
        prompts = self._voices.prompts([segment.voice for segment in speaking])
        for segment, prompt in zip(speaking, prompts, strict=True):
            self._submitted.remove(segment)
            speech = Speech(segment, pieces_of(segment.text, segment.language))
            error = prompt if isinstance(prompt, EngineError) else self._begin(speech, segment.seed, prompt)
            if error is not None:
                self._fail(segment.ticket, error)

    def _encode(self, segment: Segment) -> None:
        started = time.perf_counter()
        try:
            if not segment.voice.references:
                raise EngineError("no_reference", "there is no reference to encode")
            frames = self._references.encode_to(segment.voice.references[0], segment.path)
        except EngineError as error:
            self._fail(segment.ticket, error)
            return
        seconds = time.perf_counter() - started
        self._outcomes.append(Spoken(segment.ticket, frames, self.sample_rate, segment.seed, seconds))

    def _begin(self, speech: Speech, seed: int, prompt: Prompt) -> EngineError | None:
        """Queue an attempt at a speech, or say why it can't be spoken: "prompt_too_long", "empty_text"."""
        segment, shape = speech.segment, self._rows.weights.shape
        suffixes = [self._prompter.suffix(piece) for piece in speech.pieces]
        if not suffixes or min(suffix.shape[1] for suffix in suffixes) == 0:
            return EngineError("empty_text", "there is nothing to say in this text")
        tokens = prompt.positions + max(suffix.shape[1] for suffix in suffixes)
        if tokens > shape.longest_prompt:
            return self._voices.too_long(tokens)
        speech.begin(seed)
        self._speeches[segment.ticket] = speech
        for number, suffix in enumerate(suffixes):
            key, self._next_key = self._next_key, self._next_key + 1
            start = Start(
                key=key,
                prompt=prompt,
                suffix=suffix,
                seed=seed if number == 0 else noise.derived_seed(seed, f"piece {number}"),
                limit=min(max(1, segment.max_new_tokens), GENERATED_POSITIONS),
                temperature=as_stock_rounds(segment.temperature),
                top_p=as_stock_rounds(segment.top_p),
                repetition_penalty=as_stock_rounds(segment.repetition_penalty),
                mask_end=self._mask_end,
            )
            speech.keys[key] = number
            self._pieces[key] = _Piece(speech, number, start)
            self._waiting.append(self._pieces[key])
        return None

    # --- rows ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        count = self._rows.fitting([piece.start for piece in self._waiting])
        if count:
            starts = [self._waiting[place].start for place in range(count)]
            self._voices.make_room([*self._rows.prompts, *(start.prompt for start in starts)])
            for _ in starts:
                self._waiting.popleft()
            self._rows.start(starts)

    def _advance(self) -> None:
        if not len(self._rows.batch):
            return
        for _ in range(self._frames_a_step):
            for key in reversed(self._rows.make_room()):
                self._waiting.appendleft(self._pieces[key])
            ended = self._rows.advance()
            for row in ended:
                self._end_piece(row)
            if ended or not len(self._rows.batch):
                return

    def _end_piece(self, ended: Ended) -> None:
        piece = self._pieces.pop(ended.key)
        speech = piece.speech
        if not ended.sound:
            piece.start.prompt.kept = None  # it may have come from there
            del speech.keys[ended.key]
            self.cancel(speech.segment.ticket)
            self._fail(speech.segment.ticket, non_finite("the model"))
            return
        if speech.take(ended.key, ended.codes, truncated=ended.truncated):
            self._finisher.render(speech)

    def _forget_rows(self, speech: Speech) -> None:
        for key in speech.keys:
            piece = self._pieces.pop(key)
            if key in self._rows.batch:
                self._rows.drop(key)
            else:
                self._waiting.remove(piece)
        speech.keys = {}

    def _shrink(self, shortage: str) -> None:
        """Out of memory: half the slots, every row from its start again (it will say the same), and the youngest
        segment handed back, so that the daemon knows. With one slot it is the segment in it that is handed back."""
        before = self._rows.slots
        self._voices.forget()
        keys = self._rows.resize(max(1, before // 2))
        self.slots = self._rows.slots
        self._waiting = deque(self._pieces[key] for key in sorted(self._pieces))
        if before > 1 or not keys:
            tickets = [*self._speeches, *(segment.ticket for segment in self._submitted)][-1:]
        else:
            tickets = [self._pieces[keys[0]].speech.segment.ticket]
        for ticket in tickets:
            self.cancel(ticket)
            message = (
                f"out of memory with {before} slot{'s' * (before > 1)}: {shortage}; raise pool.model_memory_gb, or use "
                "shorter references"
            )
            self._outcomes.append(Failed(ticket, "out_of_memory", message, True, self.slots))

    # --- codes to files --------------------------------------------------------------------------------------

    def _finish(self, wait_s: float) -> None:
        for rendered in self._finisher.rendered(wait_s):
            self._judge(rendered)
        for written in self._finisher.written(0.0 if self._waiting else wait_s):
            self._report(written)

    def _judge(self, rendered: Rendered) -> None:
        """Write what was rendered, or have it spoken again."""
        speech, attempt, error = rendered.speech, rendered.attempt, rendered.error
        ticket = speech.segment.ticket
        if self._speeches.get(ticket) is not speech:
            return  # cancelled meanwhile
        if attempt is None:
            del self._speeches[ticket]
            what = f"{type(error).__name__}: {error}"
            if error is not None and machine.is_out_of_memory(error):
                message = f"out of memory in the codec: {what}; raise pool.model_memory_gb"
                self._outcomes.append(Failed(ticket, "out_of_memory", message, True, self.slots))
            else:
                self._outcomes.append(Failed(ticket, "codec_failed", f"the codec failed: {what}", True))
            return
        if speech.judge(attempt, self._retries):
            seed = noise.derived_seed(speech.segment.seed, f"attempt {len(speech.seeds)}")
            prompt = self._voices.prompts([speech.segment.voice])[0]
            if isinstance(prompt, Prompt) and self._begin(speech, seed, prompt) is None:
                return
        assert speech.best is not None
        self._finisher.write(speech, speech.best)

    def _report(self, written: Written) -> None:
        speech = written.speech
        segment, best = speech.segment, speech.best
        if self._speeches.pop(segment.ticket, None) is not speech:
            return
        try:
            frames, sample_rate = written.result.result()
        except EngineError as error:
            self._fail(segment.ticket, error)
            return
        assert best is not None
        self._outcomes.append(
            Spoken(
                ticket=segment.ticket,
                frames=frames,
                sample_rate=sample_rate,
                seed=best.seed,
                generate_s=time.perf_counter() - speech.started,
                truncated=best.truncated,
                seeds=tuple(speech.seeds),
                flaws=best.flaws,
            )
        )

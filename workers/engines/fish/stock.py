"""The stock way to speak, for comparison: fish-speech's own model, loop and codec, one segment at a time."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workers.engines.fish.codec_checkpoint import WEIGHTS_NAME
from workers.engines.fish.codec_shape import read_description
from workers.engines.fish.prompt import Codes
from workers.engines.fish.stock_codec import import_classes, stock_codec


def import_stock() -> None:
    """All that a StockSpeaker imports."""
    import_classes()
    import fish_speech.models.text2semantic.inference  # noqa: F401


def quiet() -> None:
    """fish-speech tells much of what it does, and draws a progress bar for each segment."""
    from fish_speech.models.text2semantic import inference
    from loguru import logger

    logger.remove()
    inference.tqdm = lambda things: things


class StockSpeaker:
    """fish-speech as its own command line runs it, without ``--compile``. ``load_s`` is what loading took."""

    def __init__(self, folder: str, device: str, precision: torch.dtype) -> None:
        from fish_speech.models.text2semantic.inference import init_model

        quiet()
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            self.model, self._decode_one = init_model(folder, device, precision)
        self.load_model_s = time.perf_counter() - started
        self.codec: Any = None
        self._folder = folder
        self._device = device
        self._precision = precision

    def load_codec(self) -> float:
        """Read the codec too, as fish-speech's ``dac.inference.load_model`` does; the seconds it took."""
        started = time.perf_counter()
        folder = Path(self._folder)
        model = stock_codec(read_description(folder))
        state = torch.load(folder / WEIGHTS_NAME, map_location=self._device, mmap=True, weights_only=True)
        model.load_state_dict(state, strict=False, assign=True)
        self.codec = model.eval().to(self._device)
        return time.perf_counter() - started

    def codes(self, text: str, reference: tuple[str, Codes], frames: int) -> Codes:
        """Speak so many frames through ``generate_long``, whatever the end token says; (codebooks, frames - 1)."""
        from fish_speech.models.text2semantic.inference import generate_long

        end = self.model.tokenizer.all_special_tokens_with_ids.pop("<|im_end|>")
        try:
            self.model.tokenizer.all_special_tokens_with_ids["<|im_end|>"] = -1  # no token is: nothing ends
            (answer, _) = generate_long(
                model=self.model,
                device=self._device,
                decode_one_token=self._decode_one,
                text=text,
                max_new_tokens=frames,
                top_p=0.7,
                repetition_penalty=1.2,
                temperature=0.7,
                prompt_text=[reference[0]],
                prompt_tokens=[torch.from_numpy(reference[1])],
            )
        finally:
            self.model.tokenizer.all_special_tokens_with_ids["<|im_end|>"] = end
        said: Codes = answer.codes.cpu().numpy().astype(np.int64)
        return said

    def samples(self, codes: Codes) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Codes to audio, as stock does it: autocast to the model's precision on a GPU."""
        indices = torch.from_numpy(codes).to(self._device).clamp(max=1023)
        indices[0] = torch.from_numpy(codes[0])
        lengths = torch.tensor([codes.shape[1]], device=self._device)
        with torch.inference_mode(), torch.autocast(self._device.partition(":")[0], self._precision):
            audio, _ = self.codec.decode(indices, lengths)
        result: np.ndarray[Any, np.dtype[np.float32]] = audio[0, 0].float().cpu().numpy()
        return result

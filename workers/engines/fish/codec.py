"""fish-speech's codec: 44.1 kHz speech to frames of ten codes, and back.

A frame is 2,048 samples: one semantic code of 4,096 and nine residual codes of 1,024. Decoding is a small
transformer over the frames (5 % of the work) and then a long chain of convolutions that makes 2,048 samples of each
frame; encoding is the same the other way round. The transformers see a whole recording at once; the convolutions
run over it in pieces (see codec_layers), so that memory stays small whatever the length: in one run, 1,024 frames
would take 0.8 GB for a single activation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from workers.engine import EngineError
from workers.engines.fish import machine
from workers.engines.fish.codec_checkpoint import CodecState, read_codec
from workers.engines.fish.codec_layers import Layer, Memory, Source, layer_of, run, to_channels_last
from workers.engines.fish.codec_shape import Chain, CodebookShape, LayerShape, TransformerShape
from workers.engines.fish.codec_transformer import Transformer

Codes = NDArray[np.int64]
"""(codebooks, frames)."""
Samples = NDArray[np.float32]
"""(samples,), mono, within -1 and 1."""

_CPU_PIECE_FRAMES = 24
"""Frames to a piece on the CPU: by measurement 16 to 32 are equal, 64 takes a third longer (the activations leave the
cache), 8 a tenth (the weights are read anew for each piece)."""
_GPU_PIECE_ROW_FRAMES = 256
"""Rows x frames to a piece on a GPU: an activation of the last stages then takes 200 MB in float32."""
_GPU_ROWS = 32
_GPU_LEAST_FRAMES = 8


class Codec:
    """See ``load``. One thread may decode while another encodes; neither is for several at once."""

    def __init__(self, state: CodecState, device: torch.device, precision: torch.dtype) -> None:
        shape = state.shape
        self.sample_rate = shape.sample_rate
        self.frame_samples = shape.frame_samples
        self.codebook_sizes = tuple(codebook.size for codebook in shape.codebooks)
        self.num_codebooks = len(self.codebook_sizes)
        self.codec_id = state.identity
        self._state = state
        self._device = device
        self.batch_rows = 1 if device.type == "cpu" else _GPU_ROWS
        self.piece_row_frames = _CPU_PIECE_FRAMES if device.type == "cpu" else _GPU_PIECE_ROW_FRAMES
        self._decoder = _Decoder(state, device, precision)
        self._encoder: _Encoder | None = None
        machine.give_back_pages(state.path, state.weights.values())

    @classmethod
    def load(cls, folder: str, device: str, precision: torch.dtype) -> Codec:
        """The codec of a checkpoint folder. ``device`` "cpu" or "cuda:N"; decoding computes in ``precision``,
        encoding always in float32: a code flips where rounding does, and a voice should be the same everywhere.

        Raises:
            EngineError: "bad_checkpoint": files are missing, cut short, or of another codec.
        """
        state = read_codec(Path(folder))
        if device != "cpu":
            # For the whole process: what is asked for in float32 shall be float32, not 10 bits of it.
            torch.backends.cudnn.allow_tf32 = False
        try:
            with torch.inference_mode():
                return cls(state, torch.device(device), precision)
        except ValueError as error:
            raise EngineError("bad_checkpoint", f"the codec in {folder} is not one that is known: {error}") from error

    def decode(self, codes: Sequence[Codes]) -> list[Samples]:
        """The samples of each row of codes, (codebooks, frames) -> (frames * frame_samples,). A code over its
        codebook's size is taken as the last one, as stock does.

        On a GPU rows of similar length are decoded together; on the CPU one by one, which is faster there. The company
        that a row is decoded in changes its samples by rounding alone (within 1e-5 in float32)."""
        result: list[Samples] = [np.zeros(0, np.float32)] * len(codes)
        # Longest first: rows of similar length come together, and those that end leave from the end of the batch.
        order = sorted((row for row in range(len(codes)) if codes[row].shape[1]), key=lambda row: -codes[row].shape[1])
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            decoded = self._decoder([codes[row] for row in rows], self.piece_row_frames)
            for row, samples in zip(rows, decoded, strict=True):
                result[row] = samples
        return result

    def decode_one(self, codes: Codes) -> Samples:
        """One row, alone and without padding: on the CPU in float32 with the same threads, the same bits always."""
        if codes.shape[1] == 0:
            return np.zeros(0, np.float32)
        (samples,) = self._decoder([codes], self.piece_row_frames)
        return samples

    def encode(self, recordings: Sequence[Samples]) -> list[Codes]:
        """The codes of each mono recording at ``sample_rate``: (samples,) -> (codebooks, ceil(samples /
        frame_samples)), the last frame filled up with silence. All codes of a recording for which the weights came to
        NaN or infinities are -1."""
        if self._encoder is None:
            self._encoder = _Encoder(self._state, self._device)
        result: list[Codes] = [np.zeros((self.num_codebooks, 0), np.int64)] * len(recordings)
        sounding = (row for row in range(len(recordings)) if recordings[row].shape[0])
        order = sorted(sounding, key=lambda row: -recordings[row].shape[0])
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            encoded = self._encoder([recordings[row] for row in rows], self.piece_row_frames)
            for row, codes in zip(rows, encoded, strict=True):
                result[row] = codes
        return result

    def release_encoder(self) -> None:
        """Give back the memory of the encoder (1 GB on a GPU); the next encode() loads it again."""
        self._encoder = None


class _Decoder:
    def __init__(self, state: CodecState, device: torch.device, dtype: torch.dtype) -> None:
        exact = Source(state.weights, device, torch.float32)
        codebooks = state.shape.codebooks
        self._codebooks = [exact.exact(f"{codebook.at}.codebook.weight") for codebook in codebooks]
        # A code's vector is projected from 8 to 1,024 channels and all are added up: one matrix does both.
        self._projection = torch.cat([exact.multiplied(f"{one.at}.out_proj")[:, :, 0] for one in codebooks], dim=1)
        self._bias = torch.stack([exact.exact(f"{one.at}.out_proj.bias") for one in codebooks]).sum(0)
        self._device = device
        self._dtype = dtype
        self._frame_samples = state.shape.frame_samples
        source = Source(state.weights, device, dtype)
        first, *rest = state.shape.decode
        self._transformer = Transformer(first, source) if isinstance(first, TransformerShape) else None
        self._layers = _layers(state.shape.decode if self._transformer is None else rest, source)

    def __call__(self, rows: Sequence[Codes], piece_row_frames: int) -> list[Samples]:
        """``rows`` in falling length, none empty."""
        lengths = [row.shape[1] for row in rows]
        codes = np.zeros((len(rows), len(self._codebooks), lengths[0]), np.int64)
        for index, row in enumerate(rows):
            codes[index, :, : lengths[index]] = row
        with torch.inference_mode():
            features = self._embed(torch.from_numpy(codes).to(self._device))
            if self._transformer is not None:
                features = self._transformer(features)
            features = to_channels_last(features.transpose(1, 2))  # (rows, channels, 1, frames)
            pieces: list[Tensor] = []
            memory: Memory = {}
            start = 0
            while start < lengths[0]:
                live = sum(length > start for length in lengths)
                end = min(start + max(_GPU_LEAST_FRAMES, piece_row_frames // live), lengths[0])
                pieces.append(run(self._layers, features[:live, :, :, start:end], memory)[:, 0, 0])
                start = end
            # To the host in one go: each copy would wait for the device.
            flat = torch.cat([piece.reshape(-1) for piece in pieces]).float().cpu().numpy()
        parts: list[list[Samples]] = [[] for _ in rows]
        at = 0
        for piece in pieces:
            live, samples = piece.shape
            for index in range(live):
                parts[index].append(flat[at : at + samples])
                at += samples
        return [
            np.concatenate(part)[: length * self._frame_samples] for part, length in zip(parts, lengths, strict=True)
        ]

    def _embed(self, codes: Tensor) -> Tensor:
        """(rows, codebooks, frames) -> (rows, frames, channels)."""
        vectors = [
            codebook[codes[:, index].clamp(0, codebook.shape[0] - 1)] for index, codebook in enumerate(self._codebooks)
        ]
        return functional.linear(torch.cat(vectors, dim=2), self._projection, self._bias).to(self._dtype)


def _layers(chain: Sequence[LayerShape | TransformerShape], source: Source) -> list[Layer]:
    """Layers of a chain, none of which sees more than its piece.

    Raises:
        ValueError: one does.
    """
    layers: list[Layer] = []
    for shape in chain:
        if isinstance(shape, TransformerShape):
            raise ValueError(f"{shape.at} is in the midst of convolutions, where only an encoder's may be")
        layers.append(layer_of(shape, source))
    return layers


def _stages(chain: Chain, source: Source) -> Iterator[list[Layer] | Transformer]:
    """A chain cut at its transformers, which see a whole recording at once."""
    for whole, shapes in itertools.groupby(chain, lambda shape: isinstance(shape, TransformerShape)):
        if whole:
            yield from (Transformer(shape, source) for shape in shapes if isinstance(shape, TransformerShape))
        else:
            yield _layers(list(shapes), source)


class _Codebook:
    """One stage of the quantizer: (rows, time, channels) -> the nearest codes (rows, time), and what they stand for
    (rows, time, channels). The arithmetic is stock's, in stock's order, so that its codes are."""

    def __init__(self, shape: CodebookShape, source: Source) -> None:
        def projection(name: str) -> tuple[Tensor, Tensor]:
            at = f"{shape.at}.{name}"
            return source.multiplied(at)[:, :, 0], source.exact(f"{at}.bias")

        self._into = projection("in_proj")
        self._out = projection("out_proj")
        self._vectors = source.exact(f"{shape.at}.codebook.weight")
        self._directions = functional.normalize(self._vectors)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        projected = functional.linear(x, *self._into)
        direction = functional.normalize(projected, dim=2)
        distance = (
            direction.pow(2).sum(2, keepdim=True)
            - 2 * direction @ self._directions.t()
            + self._directions.pow(2).sum(1, keepdim=True).t()
        )
        codes = (-distance).max(2)[1]
        # Training needs the detour; here it only rounds, but the next stage sees what this one left.
        vectors = projected + (self._vectors[codes] - projected)
        return codes, functional.linear(vectors, *self._out)


class _Encoder:
    """Always float32. On the CPU the transformers' weights stay in the file until they are read."""

    def __init__(self, state: CodecState, device: torch.device) -> None:
        self._device = device
        source = Source(state.weights, device, torch.float32)
        self._stages = list(_stages(state.shape.encode, source))
        self._codebooks = [_Codebook(codebook, source) for codebook in state.shape.codebooks]
        self._frame_samples = state.shape.frame_samples

    def __call__(self, rows: Sequence[Samples], piece_row_frames: int) -> list[Codes]:
        """``rows`` in falling length, none empty."""
        size = self._frame_samples
        frames = [-(-row.shape[0] // size) for row in rows]
        audio = np.zeros((len(rows), 1, frames[0] * size), np.float32)
        for index, row in enumerate(rows):
            audio[index, 0, : row.shape[0]] = row
        piece_frames = max(_GPU_LEAST_FRAMES, piece_row_frames // len(rows))
        with torch.inference_mode():
            host = self._codes(torch.from_numpy(audio), piece_frames).cpu().numpy()
        return [host[index, :, :length].astype(np.int64) for index, length in enumerate(frames)]

    def _codes(self, audio: Tensor, piece_frames: int) -> Tensor:
        """(rows, 1, samples) -> (rows, codebooks, frames)."""
        x = audio
        total = audio.shape[2] // self._frame_samples
        for stage in self._stages:
            if isinstance(stage, Transformer):
                x = stage(x.transpose(1, 2)).transpose(1, 2)
                continue
            memory: Memory = {}
            # A piece is a number of codec frames at every stage, so that each stride divides it.
            step = piece_frames * (x.shape[2] // total)
            done = []
            for start in range(0, x.shape[2], step):
                piece = x[:, :, start : start + step].to(self._device)
                done.append(run(stage, to_channels_last(piece), memory)[:, :, 0])
            x = torch.cat(done, dim=2)
        rest = x.transpose(1, 2)
        codes = []
        for codebook in self._codebooks:
            nearest, found = codebook(rest)
            codes.append(nearest)
            rest = rest - found
        # What any stage came to is in the rest: a NaN never leaves it.
        sound = rest.isfinite().flatten(1).all(1)[:, None, None]
        return torch.where(sound, torch.stack(codes, dim=1), -1)

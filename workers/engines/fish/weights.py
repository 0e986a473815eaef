"""A checkpoint's weights: read once, checked, and laid out the way the decoder wants them.

The file is mapped, not read: each weight goes straight to its precision and device, and no randomly initialised model
is built first. On the CPU a weight that needs no change stays a view of the file, which the workers of one machine
then share.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine import EngineError
from workers.engines.fish import machine, weight_file
from workers.engines.fish.shape import ModelShape, TransformerShape

FILES = ("config.json", "model.pth", "tokenizer.tiktoken", "special_tokens.json", "codec.pth")

HEAD_MULTIPLE = 8
"""The head's rows are padded to a multiple of this: matrix units want aligned rows, and the sampler wants at least one
row to spare (see sampler.penalised_semantic)."""


class Linear:
    """``x @ weight.T + bias``: (…, in) -> (…, out).

    On the CPU the weight is laid out once for oneDNN. In bf16 that would otherwise be done in each call: four times as
    fast at one row. In float32 torch would call MKL, which on AMD's processors takes 2.5 times as long at 4 and 8 rows,
    1.9 times at 32 and 1.3 times at 64. ``weight`` is None then, so that it is not held twice.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        packing = weight.device.type == "cpu" and _can_pack(weight.dtype)
        self._packed = _pack(weight) if packing else None
        self.weight = None if packing else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return functional.linear(x, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
    return packed


@functools.cache
def _can_pack(precision: torch.dtype) -> bool:
    """Whether this torch and this processor have oneDNN's layouts for a precision, and get the same with them: the
    operators are not public."""
    if precision not in (torch.bfloat16, torch.float32) or not torch.backends.mkldnn.is_available():
        return False
    weight = torch.linspace(-1, 1, 64 * 32).reshape(64, 32).to(precision)
    x = torch.ones(2, 32, dtype=precision)
    try:
        result = torch.ops.mkldnn._linear_pointwise(x, _pack(weight), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    tolerance = 0.02 if precision == torch.bfloat16 else 1e-5
    return torch.allclose(result, functional.linear(x, weight), rtol=tolerance, atol=tolerance)


@dataclass(frozen=True)
class Layer:
    """One block. ``qkv``: (…, width) -> (…, (heads + 2 × key/value heads) × head width), queries first, then keys, then
    values; ``gate_and_up``: (…, width) -> (…, 2 × feed-forward). ``query_key_norm``: (heads + key/value heads, head
    width), the two norms' weights for each head, or None."""

    attention_norm: Tensor
    qkv: Linear
    query_key_norm: Tensor | None
    output: Linear
    feed_forward_norm: Tensor
    gate_and_up: Linear
    down: Linear


@dataclass(frozen=True)
class Weights:
    """``head``: (…, width) -> (…, semantic tokens + end + padding); ``residual_head``: (…, fast width) -> (…, residual
    codes). ``rotation``: complex64 (positions, head width / 2), rounded to bf16 as the model was trained with;
    ``fast_rotation``: the same for the codebooks. ``embeddings``: (vocabulary, width); ``codebook_embeddings``:
    (codebooks × codebook size, width); ``fast_embeddings``: (codebook size, fast width). These three are in the file's
    own precision on the CPU, where they stay mapped: of 200 million numbers few are ever read."""

    shape: ModelShape
    semantic_begin: int
    semantic_tokens: int
    end: int
    precision: torch.dtype
    device: torch.device
    embeddings: Tensor
    codebook_embeddings: Tensor
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    rotation: Tensor
    project_in: Linear | None
    fast_embeddings: Tensor
    fast_layers: tuple[Layer, ...]
    fast_norm: Tensor
    residual_head: Linear
    fast_rotation: Tensor


def check_files(folder: str) -> None:
    """Raises EngineError "bad_checkpoint" that names every file that the folder lacks, or "no_checkpoint"."""
    if not folder:
        raise EngineError(
            "no_checkpoint", "no checkpoint is configured; set engine.checkpoint to a fish-speech checkpoint's folder"
        )
    if not os.path.isdir(folder):
        raise EngineError(
            "no_checkpoint", f"there is no folder {folder}; set engine.checkpoint to the checkpoint's folder"
        )
    missing = [name for name in FILES if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise EngineError(
            "bad_checkpoint",
            f"{folder} has no {', no '.join(missing)}; copy or download the whole checkpoint into it",
        )
    empty = [name for name in FILES if os.path.getsize(os.path.join(folder, name)) == 0]
    if empty:
        raise EngineError(
            "bad_checkpoint", f"{folder} holds empty files: {', '.join(empty)}; copy the checkpoint again"
        )


def content_id(folder: str) -> str:
    """A short hash of what model.pth, config.json and the tokenizer say; of model.pth by the checksums in it, without
    reading gigabytes, where it has them (see weight_file).

    Raises:
        EngineError: "bad_checkpoint": a file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for name in ("config.json", "tokenizer.tiktoken", "special_tokens.json"):
            with open(os.path.join(folder, name), "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        weight_file.hash_content(digest, os.path.join(folder, "model.pth"), ordered=True)
    except OSError as error:
        raise EngineError("bad_checkpoint", f"{folder} can't be read: {error}; copy the checkpoint again") from error
    return digest.hexdigest()[:16]


def read_weights(
    folder: str, shape: ModelShape, semantic: range, end: int, device: torch.device, precision: torch.dtype
) -> Weights:
    """The model of a checkpoint folder, ready for the decoder.

    Args:
        semantic: the numbers of the semantic tokens; ``end``: the end token's.

    Raises:
        EngineError: "bad_checkpoint": damaged, or not of this shape.
    """
    path = os.path.join(folder, "model.pth")
    state = weight_file.read(path, ("module.", "model."))
    _join_projections(state)
    _check(path, state, shape)
    weights = _Layout(state, shape, semantic, end, device, precision).weights()
    if weights.residual_head.weight is None or state["norm.weight"].dtype != precision:
        machine.give_back_pages(path, state.values())
    return weights


def _join_projections(state: dict[str, Tensor]) -> None:
    """Older checkpoints keep query, key and value projections apart."""
    for name in [name for name in state if name.endswith(".wq.weight")]:
        stem = name.removesuffix("wq.weight")
        parts = [state.pop(f"{stem}{part}.weight", None) for part in ("wq", "wk", "wv")]
        if all(part is not None for part in parts):
            state[f"{stem}wqkv.weight"] = torch.cat([part for part in parts if part is not None])


def _check(path: str, state: dict[str, Tensor], shape: ModelShape) -> None:
    expected = shape.weights()
    adapters = [name for name in state if "lora_" in name.lower()]
    if adapters:
        raise EngineError(
            "bad_checkpoint",
            f"{path} holds a LoRA adapter that is not merged ({len(adapters)} weights, {adapters[0]} first), without "
            "which the base voice would speak: merge it first (fish-speech: tools/llama/merge_lora.py)",
        )
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {size}"
        for name, size in expected.items()
        if name in state and tuple(state[name].shape) != size
    ]
    missing = [name for name in expected if name not in state]
    unread = [name for name in state if name not in expected and not _is_stocks_own(name, shape)]
    if missing or wrong or unread:
        detail = "; ".join(
            ([f"{len(missing)} of {len(expected)} weights are missing, {missing[0]} first"] if missing else [])
            + wrong[:3]
            + ([f"{len(unread)} weights are of no use to it, {unread[0]} first"] if unread else [])
        )
        raise EngineError(
            "bad_checkpoint",
            f"{path} is not of the model that config.json describes: {detail}; put the files of one checkpoint "
            "together",
        )


def _is_stocks_own(name: str, shape: ModelShape) -> bool:
    """What stock's model has beside weights, and may have been saved with them: tables that are computed, caches, and
    the head of a model that uses its embeddings for one, which stock does not read either."""
    tables = ("freqs_cis", "fast_freqs_cis", "causal_mask")
    return name in tables or ".kv_cache." in name or (name == "output.weight" and shape.tied_head)


class _Layout:
    """Takes weights out of ``state`` one by one, so that each can be freed as soon as it lies where it should."""

    def __init__(
        self,
        state: dict[str, Tensor],
        shape: ModelShape,
        semantic: range,
        end: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self._state = state
        self._shape = shape
        self._semantic = semantic
        self._end = end
        self._device = device
        self._precision = precision

    def weights(self) -> Weights:
        shape, semantic = self._shape, self._semantic
        output = self._state["embeddings.weight" if shape.tied_head else "output.weight"]
        choices = len(semantic) + 1
        head = self._room(choices + HEAD_MULTIPLE - choices % HEAD_MULTIPLE, shape.slow.width)
        head[: len(semantic)] = output[semantic.start : semantic.stop]
        head[len(semantic)] = output[self._end]
        head[choices:] = 0
        project_in = None
        if "fast_project_in.weight" in shape.weights():
            project_in = self._linear(self._take("fast_project_in.weight"), self._take("fast_project_in.bias"))
        return Weights(
            shape=shape,
            semantic_begin=semantic.start,
            semantic_tokens=len(semantic),
            end=self._end,
            precision=self._precision,
            device=self._device,
            embeddings=self._table("embeddings.weight"),
            codebook_embeddings=self._table("codebook_embeddings.weight"),
            layers=tuple(self._layer(f"layers.{number}", shape.slow) for number in range(shape.slow.layers)),
            norm=self._take("norm.weight"),
            head=self._linear(head),
            rotation=rotation(shape.positions, shape.slow.head_width, shape.rope_base).to(self._device),
            project_in=project_in,
            fast_embeddings=self._table("fast_embeddings.weight"),
            fast_layers=tuple(self._layer(f"fast_layers.{number}", shape.fast) for number in range(shape.fast.layers)),
            fast_norm=self._take("fast_norm.weight"),
            residual_head=self._linear(self._place(self._state["fast_output.weight"][: shape.residual_codes])),
            fast_rotation=rotation(shape.codebooks, shape.fast.head_width, shape.rope_base).to(self._device),
        )

    def _layer(self, at: str, shape: TransformerShape) -> Layer:
        norm = None
        if shape.query_key_norm:
            queries = self._take(f"{at}.attention.q_norm.weight").expand(shape.heads, -1)
            keys = self._take(f"{at}.attention.k_norm.weight").expand(shape.key_value_heads, -1)
            norm = torch.cat([queries, keys])
        gate_and_up = self._room(2 * shape.feed_forward, shape.width)
        gate_and_up[: shape.feed_forward] = self._state[f"{at}.feed_forward.w1.weight"]
        gate_and_up[shape.feed_forward :] = self._state[f"{at}.feed_forward.w3.weight"]
        return Layer(
            attention_norm=self._take(f"{at}.attention_norm.weight"),
            qkv=self._linear(
                self._take(f"{at}.attention.wqkv.weight"),
                self._take(f"{at}.attention.wqkv.bias") if shape.projection_bias else None,
            ),
            query_key_norm=norm,
            output=self._linear(
                self._take(f"{at}.attention.wo.weight"),
                self._take(f"{at}.attention.wo.bias") if shape.output_bias else None,
            ),
            feed_forward_norm=self._take(f"{at}.ffn_norm.weight"),
            gate_and_up=self._linear(gate_and_up),
            down=self._linear(self._take(f"{at}.feed_forward.w2.weight")),
        )

    def _take(self, name: str) -> Tensor:
        return self._place(self._state[name])

    def _room(self, *size: int) -> Tensor:
        """For a weight that is put together: written once, straight to its place."""
        return torch.empty(size, dtype=self._precision, device=self._device)

    def _table(self, name: str) -> Tensor:
        return self._state[name].detach() if self._device.type == "cpu" else self._take(name)

    def _place(self, weight: Tensor) -> Tensor:
        return weight.detach().to(device=self._device, dtype=self._precision)

    def _linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return Linear(weight, bias)


def rotation(positions: int, head_width: int, base: float) -> Tensor:
    """How far each pair of a head's elements is turned at each position: complex64 (positions, head width / 2).

    Rounded to bf16 as in fish-speech's ``precompute_freqs_cis``: the model was trained with the rounded values.
    """
    rates = 1.0 / (base ** (torch.arange(0, head_width, 2)[: head_width // 2].float() / head_width))
    angles = torch.outer(torch.arange(positions), rates)
    turned = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_complex(torch.view_as_real(turned).to(torch.bfloat16).float())

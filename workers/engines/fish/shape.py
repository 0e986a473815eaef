"""The model's shape: ``config.json`` read and checked, and the weights that such a model must have. Torch-free."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from workers.engine import EngineError

RESIDUAL_CODES = 1024
"""How many codes a residual codebook has; the fast head's further outputs are never read."""

GENERATED_POSITIONS = 2048
"""Positions that a prompt must leave free."""


@dataclass(frozen=True)
class TransformerShape:
    """One of the two transformers. Sizes in elements."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    query_key_norm: bool
    projection_bias: bool
    output_bias: bool

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.key_value_heads

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_value_width(self) -> int:
        return self.key_value_heads * self.head_width

    def weights(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight of the layers ``prefix``.0, ``prefix``.1, …"""
        expected: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            at = f"{prefix}.{layer}"
            projected = self.query_width + 2 * self.key_value_width
            expected[f"{at}.attention.wqkv.weight"] = (projected, self.width)
            expected[f"{at}.attention.wo.weight"] = (self.width, self.query_width)
            if self.projection_bias:
                expected[f"{at}.attention.wqkv.bias"] = (projected,)
            if self.output_bias:
                expected[f"{at}.attention.wo.bias"] = (self.width,)
            if self.query_key_norm:
                expected[f"{at}.attention.q_norm.weight"] = (self.head_width,)
                expected[f"{at}.attention.k_norm.weight"] = (self.head_width,)
            expected[f"{at}.feed_forward.w1.weight"] = (self.feed_forward, self.width)
            expected[f"{at}.feed_forward.w3.weight"] = (self.feed_forward, self.width)
            expected[f"{at}.feed_forward.w2.weight"] = (self.width, self.feed_forward)
            expected[f"{at}.attention_norm.weight"] = (self.width,)
            expected[f"{at}.ffn_norm.weight"] = (self.width,)
        return expected


@dataclass(frozen=True)
class ModelShape:
    """A dual transformer: the slow one speaks a semantic token a frame, the fast one the frame's residual codes."""

    slow: TransformerShape
    fast: TransformerShape
    vocabulary: int
    codebooks: int
    codebook_size: int
    positions: int
    rope_base: float
    norm_epsilon: float
    tied_head: bool
    scaled_codebook_embeddings: bool

    @property
    def residual_codes(self) -> int:
        """Codes of a residual codebook that the fast head can choose."""
        return min(RESIDUAL_CODES, self.codebook_size)

    @property
    def longest_prompt(self) -> int:
        """Tokens that a prompt may have at most."""
        return self.positions - GENERATED_POSITIONS

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight, by the names of fish-speech's ``DualARTransformer``."""
        slow, fast = self.slow, self.fast
        expected: dict[str, tuple[int, ...]] = {
            "embeddings.weight": (self.vocabulary, slow.width),
            "codebook_embeddings.weight": (self.codebook_size * self.codebooks, slow.width),
            "norm.weight": (slow.width,),
            "fast_embeddings.weight": (self.codebook_size, fast.width),
            "fast_norm.weight": (fast.width,),
            "fast_output.weight": (self.codebook_size, fast.width),
        }
        if not self.tied_head:
            expected["output.weight"] = (self.vocabulary, slow.width)
        if slow.width != fast.width:
            expected["fast_project_in.weight"] = (fast.width, slow.width)
            expected["fast_project_in.bias"] = (fast.width,)
        return {**expected, **slow.weights("layers"), **fast.weights("fast_layers")}

    def cache_bytes(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token takes: 112 KiB for the model's real shape in bf16."""
        return 2 * self.slow.layers * self.slow.key_value_width * element_bytes


def read_shape(folder: str) -> ModelShape:
    """The shape in ``folder``/config.json, with the defaults of fish-speech 0.1.0's ``DualARModelArgs``.

    Raises:
        EngineError: "bad_checkpoint": not readable, not JSON, another kind of model, or sizes that fit no model.
    """
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        raise EngineError("bad_checkpoint", f"{path} can't be read: {error}; copy the checkpoint again") from error
    if not isinstance(data, dict) or data.get("model_type") != "dual_ar":
        kind = data.get("model_type") if isinstance(data, dict) else None
        raise EngineError(
            "bad_checkpoint",
            f"{path} describes a model of type {kind!r}; this engine speaks with a fish-speech model of type 'dual_ar'",
        )
    try:
        return _shape(data)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise EngineError("bad_checkpoint", f"{path}: {error}; this is not a fish-speech 0.1.0 model") from error


def _shape(data: dict[str, object]) -> ModelShape:
    width = _whole(data, "dim", 4096)
    heads = _whole(data, "n_head", 32)
    slow = TransformerShape(
        layers=_whole(data, "n_layer", 32),
        width=width,
        heads=heads,
        key_value_heads=heads if data.get("n_local_heads", -1) == -1 else _whole(data, "n_local_heads", heads),
        head_width=width // heads if data.get("head_dim", 64) is None else _whole(data, "head_dim", 64),
        feed_forward=_feed_forward(width)
        if not data.get("intermediate_size")
        else _whole(data, "intermediate_size", 0),
        query_key_norm=bool(data.get("attention_qk_norm", False)),
        projection_bias=bool(data.get("attention_qkv_bias", False)),
        output_bias=bool(data.get("attention_o_bias", False)),
    )
    fast = TransformerShape(
        layers=_whole(data, "n_fast_layer", 4),
        width=_whole(data, "fast_dim", slow.width),
        heads=_whole(data, "fast_n_head", slow.heads),
        key_value_heads=_whole(data, "fast_n_local_heads", slow.key_value_heads),
        head_width=_whole(data, "fast_head_dim", slow.head_width),
        feed_forward=_whole(data, "fast_intermediate_size", slow.feed_forward),
        query_key_norm=_flag(data, "fast_attention_qk_norm", slow.query_key_norm),
        projection_bias=_flag(data, "fast_attention_qkv_bias", slow.projection_bias),
        output_bias=_flag(data, "fast_attention_o_bias", slow.output_bias),
    )
    for name, half in (("slow", slow), ("fast", fast)):
        if half.heads % half.key_value_heads:
            raise ValueError(f"{half.heads} {name} heads can't share {half.key_value_heads} key/value heads")
        if half.head_width % 2:
            raise ValueError(f"the {name} heads' width {half.head_width} is odd")
    shape = ModelShape(
        slow=slow,
        fast=fast,
        vocabulary=_whole(data, "vocab_size", 32000),
        codebooks=_whole(data, "num_codebooks", 4),
        codebook_size=_whole(data, "codebook_size", 160),
        positions=_whole(data, "max_seq_len", 2048),
        rope_base=float(str(data.get("rope_base", 10000))),
        norm_epsilon=float(str(data.get("norm_eps", 1e-5))),
        tied_head=bool(data.get("tie_word_embeddings", True)),
        scaled_codebook_embeddings=bool(data.get("scale_codebook_embeddings", False)),
    )
    if shape.positions <= GENERATED_POSITIONS:
        raise ValueError(
            f"max_seq_len {shape.positions} leaves no room for a prompt beside {GENERATED_POSITIONS} positions"
        )
    return shape


def _whole(data: dict[str, object], key: str, default: int) -> int:
    """A positive whole number; absent, null and 0 stand for the default, as in fish-speech."""
    value = data.get(key) or default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} is {value!r}, not a positive whole number")
    return value


def _flag(data: dict[str, object], key: str, default: bool) -> bool:
    value = data.get(key)
    return default if value is None else bool(value)


def _feed_forward(width: int) -> int:
    """fish-speech's default: two thirds of four times the width, rounded up to a multiple of 256."""
    return -(-int(8 * width / 3) // 256) * 256

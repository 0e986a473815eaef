"""The codec's transformers: causal, limited to a window, over a whole recording at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine import EngineError
from workers.engines.fish.codec_layers import Source
from workers.engines.fish.codec_shape import TransformerShape


class Transformer:
    """fish-speech's ``WindowLimitedTransformer`` over (rows, time, channels), without its tables for the longest
    input. On the CPU in float32 its weights stay mapped from the file."""

    def __init__(self, shape: TransformerShape, source: Source) -> None:
        self._shape = shape
        self._mask = torch.ones((0, 0), dtype=torch.bool, device=source.device)
        stored = source.weights.get(f"{shape.at}.freqs_cis")
        table = rotation(shape.positions, shape.head_width, shape.rope_base) if stored is None else stored.detach()
        self._rotation = table.to(source.device)
        self._layers = [
            {name: source.take(f"{shape.at}.layers.{layer}.{name}") for name in _NAMES} for layer in range(shape.layers)
        ]
        self._norm = source.take(f"{shape.at}.norm.weight")
        self._into: tuple[Tensor, Tensor] | None = None
        self._out: tuple[Tensor, Tensor] | None = None
        if shape.input_width != shape.width:
            self._into = (source.take(f"{shape.at}.input_proj.weight"), source.take(f"{shape.at}.input_proj.bias"))
            self._out = (source.take(f"{shape.at}.output_proj.weight"), source.take(f"{shape.at}.output_proj.bias"))

    def __call__(self, x: Tensor) -> Tensor:
        """Raises EngineError "too_long" for more steps than it has positions for."""
        time = x.shape[1]
        if time > self._shape.positions:
            raise EngineError("too_long", f"the codec has positions for {self._shape.positions} steps, and {time} came")
        if self._into is not None:
            x = functional.linear(x, *self._into)
        mask = self._mask_of(time)
        angles = self._rotation[:time]
        for layer in self._layers:
            x = self._block(layer, x, angles, mask)
        x = self._normed(x, self._norm)
        return x if self._out is None else functional.linear(x, *self._out)

    def _block(self, layer: dict[str, Tensor], x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        shape = self._shape
        y = self._normed(x, layer["attention_norm.weight"])
        heads = functional.linear(y, layer["attention.wqkv.weight"]).unflatten(2, (3, shape.heads, shape.head_width))
        queries, keys, values = heads.transpose(1, 3).unbind(2)  # (rows, heads, time, head width) each
        y = functional.scaled_dot_product_attention(
            turned(queries, angles), turned(keys, angles), values, attn_mask=mask
        )
        y = functional.linear(y.transpose(1, 2).flatten(2), layer["attention.wo.weight"])
        x = x + y * layer["attention_layer_scale.gamma"]
        y = self._normed(x, layer["ffn_norm.weight"])
        y = functional.silu(functional.linear(y, layer["feed_forward.w1.weight"])) * functional.linear(
            y, layer["feed_forward.w3.weight"]
        )
        return x + functional.linear(y, layer["feed_forward.w2.weight"]) * layer["ffn_layer_scale.gamma"]

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(torch.mean(exact * exact, dim=-1, keepdim=True) + self._shape.norm_epsilon)
        return exact.to(x.dtype) * weight

    def _mask_of(self, time: int) -> Tensor:
        """(time, time): a step sees itself and the window - 1 steps before it."""
        if self._mask.shape[0] < time:
            size = -(-time // 64) * 64
            mask = torch.ones((size, size), dtype=torch.bool, device=self._mask.device).tril_()
            self._mask = mask if self._shape.window is None else mask.triu_(1 - self._shape.window)
        return self._mask[:time, :time]


_NAMES = (
    "attention.wqkv.weight",
    "attention.wo.weight",
    "attention_norm.weight",
    "attention_layer_scale.gamma",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
    "ffn_norm.weight",
    "ffn_layer_scale.gamma",
)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs, in float32: (rows, heads, time, width) by (time, width / 2, 2)."""
    even, odd = x.float().unflatten(3, (-1, 2)).unbind(4)
    cos, sin = angles.float().unbind(2)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=4).flatten(3).to(x.dtype)


def rotation(positions: int, head_width: int, base: float) -> Tensor:
    """Cosines and sines of each position, bf16 (positions, head width / 2, 2), as stock's ``precompute_freqs_cis``."""
    rates = 1.0 / (base ** (torch.arange(0, head_width, 2)[: head_width // 2].float() / head_width))
    angles = torch.outer(torch.arange(positions), rates)
    turned = torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).to(torch.bfloat16)

"""A decoding step of kernels.py's kernels: what decoder.step does, in a fifth of the launches.

Used on GPUs in half precision for models whose widths are powers of two, as the real model's are, once ``agrees`` has
found on the device itself that it computes what decoder.step does.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.engines.fish import decoder, kernels
from workers.engines.fish.decoder import Cache, State, Tables
from workers.engines.fish.shape import TransformerShape
from workers.engines.fish.weights import Layer, Linear, Weights

_log = logging.getLogger(__name__)

FEW_ROWS = 4
"""Up to so many rows our own matrix-vector product is used: it reads weights ahead of its input."""

MOST_PARTS = 3
PART = 1024

SAME = 0.02
"""Relative deviation of the keys and values of some 50 positions, the 3 newest of which were computed twice, that bf16
explains: its unit is 0.4 %, and the roundings of 28 layers add up. An error would show as a quarter."""

SAME_CODES = 0.6
"""Share of the codes that must be the same: a flipped one changes those after it in its frame."""


def supports(weights: Weights) -> bool:
    """Whether the kernels can run this model."""
    if weights.precision not in (torch.bfloat16, torch.float16):
        return False
    slow, fast = weights.shape.slow, weights.shape.fast
    biased = [layer for layer in (*weights.layers, *weights.fast_layers) if layer.qkv.bias is not None]
    biased += [layer for layer in (*weights.layers, *weights.fast_layers) if layer.output.bias is not None]
    widths = [slow.width, fast.width, slow.head_width, fast.head_width]
    inner = [width for half in (slow, fast) for width in (half.width, half.query_width, half.feed_forward)]
    return (
        not biased
        and all(width & (width - 1) == 0 and width >= 16 for width in widths)
        and all(_parts(width) <= MOST_PARTS for width in inner)
        and max(slow.width, fast.width) <= PART
        and max(slow.group, fast.group) <= 16
        and weights.shape.codebooks <= 15
    )


def _parts(width: int) -> int:
    """Into how many equal parts, each a power of two, an input is cut; more than MOST_PARTS where it can't be."""
    for parts in range(1, MOST_PARTS + 1):
        part = width // parts
        if part * parts == width and part <= PART and part & (part - 1) == 0:
            return parts
    return MOST_PARTS + 1


@dataclass(frozen=True)
class _Places:
    """What attention needs to know about a transformer; rotations as float32 (positions, D / 2, 2)."""

    shape: TransformerShape
    rotation: Tensor


class FusedStep:
    """Runs steps for the first rows of a cache and a state. ``early``: see kernels.py."""

    def __init__(self, weights: Weights, tables: Tables, *, early: bool) -> None:
        self._weights = weights
        self._tables = tables
        self._epsilon = weights.shape.norm_epsilon
        self._launch: dict[str, Any] = {"launch_pdl": True} if early else {}
        self.early = early
        self._slow = _Places(weights.shape.slow, torch.view_as_real(weights.rotation).contiguous())
        self._fast = _Places(weights.shape.fast, torch.view_as_real(weights.fast_rotation).contiguous())
        # Row r of the fast transformer is at a place that is the same for all rows: [[0, 0, …], [1, 1, …], …].
        rows = len(tables.slots)
        self._fast_positions = tables.positions[: weights.shape.codebooks, None].expand(-1, rows).contiguous()

    def not_early(self) -> FusedStep:
        """The same without the early start."""
        return FusedStep(self._weights, self._tables, early=False)

    def __call__(self, cache: Cache, state: State, rows: int) -> None:
        """Speak one frame in each active row among the first ``rows``."""
        weights, shape = self._weights, self._weights.shape
        slow, fast = shape.slow, shape.fast
        codebooks = shape.codebooks
        x = self._new(rows, slow.width)
        kernels.embed[(rows,)](
            state.newest, weights.embeddings, weights.codebook_embeddings, x,
            weights.semantic_begin, weights.semantic_begin + weights.semantic_tokens, shape.codebook_size,
            math.sqrt(codebooks + 1), C=codebooks, W=slow.width, SCALED=shape.scaled_codebook_embeddings,
            EARLY=self.early, **self._launch,
        )  # fmt: skip
        for number, layer in enumerate(weights.layers):
            prompts = (cache.prefix, cache.addresses[0, number], cache.addresses[1, number])
            held = cache.keys[number], cache.values[number]
            self._layer(layer, self._slow, x, state.position, *held, rows, prompts=prompts)
        logits = self._linear(weights.head, x, rows, weights.norm, out_type=torch.float32)
        spoken = torch.empty((rows, 1 + codebooks), dtype=torch.int64, device=weights.device)
        next_x = self._new(rows, fast.width)
        self._sample(state, logits, 0, spoken, next_x, rows)

        if weights.project_in is not None:
            x = weights.project_in(x)
        size = (fast.layers, rows, fast.key_value_heads, codebooks, fast.head_width)
        keys, values = (torch.empty(size, dtype=weights.precision, device=weights.device) for _ in range(2))
        for place in range(codebooks):
            position = self._fast_positions[place]
            for number, layer in enumerate(weights.fast_layers):
                last = place == 0 and number == fast.layers - 1
                self._layer(layer, self._fast, x, position, keys[number], values[number], rows, keys_only=last)
            if place:
                logits = self._linear(weights.residual_head, x, rows, weights.fast_norm, out_type=torch.float32)
                next_x = self._new(rows, fast.width)
                self._sample(state, logits, place, spoken, next_x, rows)
            x = next_x
        kernels.finish[(rows,)](
            spoken, state.newest, state.position, state.frame, state.limit, _bytes(state.active), _bytes(state.ended),
            _bytes(state.sound), state.history, state.history.shape[1], weights.end,
            C=codebooks, EARLY=self.early, **self._launch,
        )  # fmt: skip

    def _layer(
        self, layer: Layer, places: _Places, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, rows: int,
        *, prompts: tuple[Tensor, Tensor, Tensor] | None = None, keys_only: bool = False,
    ) -> None:  # fmt: skip
        """One block, in place on x (rows, W). ``prompts``: the rows' lengths and addresses, see kernels.attend.
        ``keys_only``: what comes after the keys and values is of no use."""
        shape = places.shape
        projected = self._linear(layer.qkv, x, rows, layer.attention_norm)
        attended = self._new(rows, shape.query_width)
        norm_weight = layer.query_key_norm
        kernels.attend[(rows, shape.key_value_heads)](
            projected, projected if norm_weight is None else norm_weight, places.rotation, position, keys, values,
            *(prompts or (position, position, position)), attended,
            self._epsilon, shape.head_width**-0.5, keys.stride(0), keys.stride(1),
            H=shape.heads, K=shape.key_value_heads, G=shape.group, D=shape.head_width,
            BLOCK=16 if keys.shape[2] <= 16 else 64, NORM=norm_weight is not None,
            PROMPTS=prompts is not None, EARLY=self.early, num_warps=1 if keys.shape[2] <= 16 else 4, **self._launch,
        )  # fmt: skip
        if keys_only:
            return
        self._add(layer.output, attended, x, rows)
        if rows <= FEW_ROWS:
            inner = self._linear(layer.gate_and_up, x, rows, layer.feed_forward_norm, gated=True)
        else:
            both = self._linear(layer.gate_and_up, x, rows, layer.feed_forward_norm)
            inner = self._new(rows, shape.feed_forward)
            block = math.gcd(shape.feed_forward, PART)
            kernels.gate[(rows, shape.feed_forward // block)](
                both, inner, N=shape.feed_forward, BLOCK=block, EARLY=self.early, **self._launch
            )
        self._add(layer.down, inner, x, rows)

    def _linear(
        self, linear: Linear, x: Tensor, rows: int, norm: Tensor, *, gated: bool = False, out_type: Any = None
    ) -> Tensor:
        """norm(x) @ weight.T, (rows, N)."""
        weight = linear.weight
        assert weight is not None
        count, width = weight.shape
        if rows > FEW_ROWS:
            normed = self._new(rows, width)
            kernels.norm[(rows,)](x, norm, normed, self._epsilon, W=width, EARLY=self.early, **self._launch)
            product = normed @ weight.T
            return product if out_type is None else product.to(out_type)
        count //= 2 if gated else 1
        out = torch.empty((rows, count), dtype=out_type or weight.dtype, device=weight.device)
        self._matvec(x, norm, weight, out, rows, gated=gated)
        return out

    def _add(self, linear: Linear, x: Tensor, out: Tensor, rows: int) -> None:
        """out (rows, N) += x @ weight.T"""
        weight = linear.weight
        assert weight is not None
        if rows > FEW_ROWS:
            out.addmm_(x, weight.T)
        else:
            self._matvec(x, None, weight, out, rows)

    def _matvec(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, out: Tensor, rows: int, *, gated: bool = False
    ) -> None:
        count, width = out.shape[1], weight.shape[1]
        parts = _parts(width)
        # 64 KiB of weights to a program: what 256 threads hold in registers, and enough in flight to fill the bus.
        block = max(1, min(32, 32 * 1024 // (width * (2 if gated else 1))))
        block = 1 << (block.bit_length() - 1)
        kernels.matvec[(-(-count // block),)](
            x, x if norm is None else norm, weight, out, self._epsilon, count,
            R=rows, K=width, PARTS=parts, BLOCK=block, NORM=norm is not None, GATED=gated, ADD=norm is None,
            EARLY=self.early, num_warps=8, **self._launch,
        )  # fmt: skip

    def _sample(self, state: State, logits: Tensor, codebook: int, spoken: Tensor, next_x: Tensor, rows: int) -> None:
        weights, shape = self._weights, self._weights.shape
        count = weights.semantic_tokens + 1 if codebook == 0 else shape.residual_codes
        end_code = min(max(weights.end - weights.semantic_begin, 0), shape.codebook_size - 1)
        block = 1 << (count - 1).bit_length()
        kernels.sample[(rows,)](
            logits, state.history, state.frame, state.keys, state.temperature, state.top_p, state.penalty,
            _bytes(state.mask_end), _bytes(state.active), _bytes(state.sound), spoken, weights.fast_embeddings, next_x,
            state.history.shape[1], weights.semantic_begin, weights.end, end_code,
            N=count, STRIDE=logits.shape[1], BLOCK=block, C=shape.codebooks, CODEBOOK=codebook, W=shape.fast.width,
            EARLY=self.early, num_warps=16 if block > 2048 else 4, **self._launch,
        )  # fmt: skip

    def _new(self, rows: int, width: int) -> Tensor:
        return torch.empty((rows, width), dtype=self._weights.precision, device=self._weights.device)

    def agrees(self) -> bool:
        """Whether steps of one row, a few and more say what decoder.step says, on random prompts; else logs why not.

        Compared are the keys and values that were written, which show any error in what went before, and the codes that
        were drawn, of which rounding flips a few.
        """
        try:
            checks = [self._check(rows) for rows in (1, FEW_ROWS, FEW_ROWS + 3)]
        except Exception as error:  # noqa: BLE001 - a compiler, a driver: whatever it is, there is another way
            _log.warning("the fused kernels can't be used here, steps are slower: %s: %s", type(error).__name__, error)
            return False
        deviation = max(deviation for deviation, _, _ in checks)
        share = sum(same for _, same, _ in checks) / sum(drawn for _, _, drawn in checks)
        if deviation <= SAME and share >= SAME_CODES:
            return True
        _log.warning(
            "the fused kernels are not used, steps are slower: they deviate by %.3g, %.0f %% of the codes are the same",
            deviation,
            100 * share,
        )
        return False

    def _check(self, rows: int) -> tuple[float, int, int]:
        """The largest deviation of keys and values, how many codes were the same, and how many were drawn."""
        weights, shape = self._weights, self._weights.shape
        generator = torch.Generator().manual_seed(rows)
        length = 192
        caches = [Cache(weights, rows, length) for _ in range(2)]
        states = [State.empty(weights, rows, 32) for _ in range(2)]
        tokens = torch.randint(0, shape.residual_codes, (rows, 24, 1 + shape.codebooks), generator=generator)
        tokens[..., 0] += weights.semantic_begin
        tokens = tokens.to(weights.device)
        starts = torch.arange(rows, device=weights.device) * 5
        slots = range(rows)
        prompts = [Cache(weights, 1, positions) for positions in (70, 17)]
        for prompt in prompts:
            row = tokens[:1].repeat(1, 3, 1)[:, : prompt.capacity]
            decoder.prefill(weights, self._tables, prompt, [0], row, starts[:1] * 0, prompt.capacity)
        for cache, state in zip(caches, states, strict=True):
            for slot in slots:  # the first row has one, the third none, the fourth shares it with the first
                if slot % 3 < len(prompts):
                    cache.share(slot, prompts[slot % 3])
            decoder.prefill(weights, self._tables, cache, slots, tokens, starts * 0, length)
            decoder.prefill(weights, self._tables, cache, slots, tokens, starts + 24, length)
            state.newest.copy_(tokens[:, 0])
            state.position.copy_(starts + 48)
            state.limit.fill_(32)
            state.active.fill_(True)
            state.keys.copy_(torch.arange(rows, device=weights.device) * 0x1234567 + 1)
            state.top_p.fill_(0.8)
            state.penalty.fill_(1.2)
        everyone = torch.ones(rows, dtype=torch.bool, device=weights.device)
        worst, same, drawn = 0.0, 0, 0
        for _ in range(3):
            decoder.step(weights, self._tables, caches[0], states[0], everyone, length)
            self(caches[1], states[1], rows)
            plain, ours = ((*cache.keys, *cache.values) for cache in caches)
            for mine, theirs in zip(ours, plain, strict=True):
                deviation = float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-9))
                worst = max(worst, deviation if deviation == deviation else math.inf)
            same += int((states[1].newest == states[0].newest).sum())
            drawn += states[0].newest.numel()
            # A draw that rounding flipped is not carried on.
            for mine, theirs in zip(states[1].tensors(), states[0].tensors(), strict=True):
                mine.copy_(theirs)
        return worst, same, drawn


def _bytes(flags: Tensor) -> Tensor:
    return flags.view(torch.int8)

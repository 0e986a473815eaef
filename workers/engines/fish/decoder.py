"""The two transformers over a batch of rows: prefill and step, as plain functions.

Names of sizes in the shape comments: R rows of a step, B rows of a prefill, S tokens of each, W the slow transformer's
width, H heads, K key/value heads, G = H / K query heads to each of them, D a head's width, L the attention length,
P a prompt's positions, C codebooks, N choices of the cut head.

A step takes each row's newest token (the prompt's last one at first, so that sampling happens in one place), writes its
keys and values at the row's own position, attends over the first L positions, and samples a whole frame. Queries that
share a key/value head are laid beside each other as if they were queries of one sequence: attention then reads each key
once and nothing is repeated.

Before its own positions a row may have those of a prompt, whose keys and values are in a cache of their own and read
there by all rows that share it: the queries of those rows are laid beside each other, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from workers.engines.fish import noise, sampler
from workers.engines.fish.shape import TransformerShape
from workers.engines.fish.weights import Layer, Weights

SCORES = 1 << 24
"""Scores that prefill on a GPU holds at a time, in float32."""


class Cache:
    """Keys and values of the slow transformer: for each layer two tensors (slots, K, capacity, D), zero where nothing
    has been written, since a value that is masked out still takes part with weight 0.

    A slot's positions may follow those of a prompt, which is a cache of one slot and no spare capacity: ``prompts``, by
    slot. What a kernel needs of them is on the device, in place as long as the number of slots stays: ``prefix``, int64
    (slots,), how many positions the prompt has, and ``addresses``, int64 (2, layers, slots), where its keys and its
    values are, which means nothing where there is no prompt.
    """

    def __init__(self, weights: Weights, slots: int, capacity: int) -> None:
        self._weights = weights
        self.slots = slots
        self.capacity = capacity
        self.keys = [self._zeros() for _ in weights.layers]
        self.values = [self._zeros() for _ in weights.layers]
        self.prompts: list[Cache | None] = [None] * slots
        self.prefix = torch.zeros(slots, dtype=torch.int64, device=weights.device)
        self.addresses = torch.zeros((2, len(self.keys), slots), dtype=torch.int64, device=weights.device)

    def _zeros(self) -> Tensor:
        shape = self._weights.shape.slow
        size = (self.slots, shape.key_value_heads, self.capacity, shape.head_width)
        precision, device = self._weights.precision, self._weights.device
        if device.type != "cpu":
            return torch.zeros(size, dtype=precision, device=device)
        # Zeros by the kernel: a page is memory when it is first written to. torch writes all of them at once, which for
        # 32 rows of 1,024 positions is half of what loading takes.
        return torch.from_numpy(np.zeros(math.prod(size) * precision.itemsize, np.uint8)).view(precision).view(size)

    def resize(self, slots: int, capacity: int) -> None:
        """Change both, keeping what fits, one layer at a time so that there is never a second cache."""
        rows, positions = min(slots, self.slots), min(capacity, self.capacity)
        self.slots, self.capacity = slots, capacity
        for tensors in (self.keys, self.values):
            for number, old in enumerate(tensors):
                tensors[number] = self._zeros()
                tensors[number][:rows, :, :positions] = old[:rows, :, :positions]
        self.prompts = self.prompts[:rows] + [None] * (slots - rows)
        self.prefix = functional.pad(self.prefix[:rows], (0, slots - rows))
        self.addresses = functional.pad(self.addresses[..., :rows], (0, slots - rows))

    def move(self, source: int, target: int, positions: int) -> None:
        """Move a row, of so many positions of its own, to another slot."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :positions] = tensor[source, :, :positions]
        self.prompts[target] = self.prompts[source]
        self.prefix[target] = self.prefix[source]
        self.addresses[..., target] = self.addresses[..., source]
        self.release(source)

    def copy(self, slot: int, prompt: Cache) -> None:
        """Write a prompt as a row's first positions."""
        mine = [tensor[slot, :, : prompt.capacity] for tensor in (*self.keys, *self.values)]
        torch._foreach_copy_(mine, [tensor[0] for tensor in (*prompt.keys, *prompt.values)])

    def clear(self, slot: int) -> None:
        """Zeros in all of a slot's positions."""
        for tensor in (*self.keys, *self.values):
            tensor[slot].zero_()

    def share(self, slot: int, prompt: Cache) -> None:
        """Let a row's positions follow a prompt's, which is read where it is until the slot is released."""
        self.prompts[slot] = prompt
        self.prefix[slot] = prompt.capacity
        found = [[tensor.data_ptr() for tensor in tensors] for tensors in (prompt.keys, prompt.values)]
        self.addresses[..., slot] = torch.tensor(found, device=self.addresses.device)

    def release(self, slot: int) -> None:
        """The slot has no prompt any more: its memory may go, and a step over the slot must not read it."""
        self.prompts[slot] = None
        self.prefix[slot] = 0

    def shared(self, slots: Sequence[int]) -> Shared | None:
        """The prompts of some slots' rows, None where there are none."""
        rows_of: dict[Cache, list[int]] = {}
        for row, slot in enumerate(slots):
            prompt = self.prompts[slot]
            if prompt is not None:
                rows_of.setdefault(prompt, []).append(row)
        if not rows_of:
            return None
        rows = torch.tensor([row for rows in rows_of.values() for row in rows], device=self.prefix.device)
        return Shared(rows, [(prompt, len(rows)) for prompt, rows in rows_of.items()])


@dataclass(frozen=True)
class Shared:
    """Rows that have prompts, in the order of the prompts. ``rows``: int64 (M,), their places in the call;
    ``prompts``: each with how many of these rows it has."""

    rows: Tensor
    prompts: list[tuple[Cache, int]]


@dataclass
class State:
    """What each slot is at, on the device. All first dimensions are slots.

    ``newest``: int64 (slots, 1 + C), the token to be read next, and its codes. ``position``: int64, where it goes in
    the slot's cache. ``frame``: int64, how many frames have been spoken. ``limit``: int64, how many there may be.
    ``active``: bool, false from the end token or the limit on. ``ended``: bool, the end token was the reason.
    ``sound``: bool, false from the first logits on that were NaN or infinite, which end a row too.
    ``history``: int64 (slots, frames, 1 + C). ``keys``: int64, from noise.seed_key. ``temperature``, ``top_p``,
    ``penalty``: float32 (slots, 1). ``mask_end``: bool, (slots, 1), the end token is never chosen.
    """

    newest: Tensor
    position: Tensor
    frame: Tensor
    limit: Tensor
    active: Tensor
    ended: Tensor
    sound: Tensor
    history: Tensor
    keys: Tensor
    temperature: Tensor
    top_p: Tensor
    penalty: Tensor
    mask_end: Tensor

    @classmethod
    def empty(cls, weights: Weights, slots: int, frames: int) -> State:
        """No row active. ``frames``: the most that a row may speak."""
        device, width = weights.device, 1 + weights.shape.codebooks

        def whole(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        def flags(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.bool, device=device)

        def ones() -> Tensor:
            return torch.ones((slots, 1), dtype=torch.float32, device=device)

        return cls(
            newest=whole(slots, width),
            position=whole(slots),
            frame=whole(slots),
            limit=whole(slots),
            active=flags(slots),
            ended=flags(slots),
            sound=~flags(slots),
            history=whole(slots, max(frames, sampler.WINDOW) + 2, width),
            keys=whole(slots),
            temperature=ones(),
            top_p=ones(),
            penalty=ones(),
            mask_end=flags(slots, 1),
        )

    def tensors(self) -> list[Tensor]:
        return list(vars(self).values())

    def move(self, source: int, target: int) -> None:
        for tensor in self.tensors():
            tensor[target] = tensor[source]
        self.active[source] = False


class Tables:
    """Small constants of a step, made once for a device."""

    def __init__(self, weights: Weights) -> None:
        device, shape = weights.device, weights.shape
        self.slots = torch.arange(4096, device=device)
        self.positions = torch.arange(shape.positions, device=device)
        self.codebook_offsets = torch.arange(shape.codebooks, device=device) * shape.codebook_size
        self.semantic_choices = torch.arange(weights.semantic_tokens + 1, device=device)
        self.residual_choices = torch.arange(shape.residual_codes, device=device)
        self.window_offsets = torch.arange(1, sampler.WINDOW + 1, device=device)
        self.masked = torch.tensor(float("-inf"), device=device)


# --- the parts that prefill and step share -------------------------------------------------------------------


def embed(weights: Weights, tables: Tables, tokens: Tensor) -> Tensor:
    """(…, 1 + C) tokens and codes -> (…, W): a semantic token's codes are added to it, other tokens stand alone."""
    token, codes = tokens[..., 0], tokens[..., 1:]
    x = looked_up(weights, weights.embeddings, token)
    frames = looked_up(weights, weights.codebook_embeddings, codes + tables.codebook_offsets).sum(-2)
    semantic = (token >= weights.semantic_begin) & (token < weights.semantic_begin + weights.semantic_tokens)
    spoken = x + frames
    if weights.shape.scaled_codebook_embeddings:
        spoken = spoken / math.sqrt(weights.shape.codebooks + 1)
    return torch.where(semantic[..., None], spoken, x)


def looked_up(weights: Weights, table: Tensor, numbers: Tensor) -> Tensor:
    """(…) -> (…, width), a table's rows in the decoder's precision, whatever the table's own."""
    return functional.embedding(numbers, table).to(weights.precision)


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)


def project(
    layer: Layer, shape: TransformerShape, x: Tensor, rotation: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(…, W) -> queries (…, H, D), keys and values (…, K, D), normed and turned to their positions.

    ``rotation``: complex64 (…, 1, D / 2).
    """
    turned_heads = shape.heads + shape.key_value_heads
    heads = layer.qkv(x).unflatten(-1, (turned_heads + shape.key_value_heads, shape.head_width))
    turning = heads[..., :turned_heads, :]
    if layer.query_key_norm is not None:
        turning = functional.rms_norm(turning, (shape.head_width,), None, epsilon) * layer.query_key_norm
    turning = turn(turning, rotation)
    return turning[..., : shape.heads, :], turning[..., shape.heads :, :], heads[..., turned_heads:, :]


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs, computed in float32: (…, D) and complex64 broadcastable to (…, D / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def feed_forward(layer: Layer, x: Tensor, epsilon: float) -> Tensor:
    gate, up = layer.gate_and_up(normed(x, layer.feed_forward_norm, epsilon)).chunk(2, dim=-1)
    return layer.down(functional.silu(gate) * up)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, shared: Shared | None, number: int) -> Tensor:
    """Attention of rows over their own positions and the prompts before them.

    Each part is attended to by itself. The two are weighed by what their softmaxes were divided by: the result is that
    of one softmax over both.

    Args:
        queries: (B, K, Q, D).
        keys, values: (B, K, L, D), the rows' own.
        bias: (B, 1, 1 or Q, L), added to the scores of the rows' own keys; at least one of a row is finite.
        number: of the layer.

    Returns:
        (B, K, Q, D).
    """
    if shared is None:
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    mixed, weight = attend_weighed(queries, keys, values, bias)
    heads, size, width = queries.shape[1:]
    together = queries[shared.rows].transpose(0, 1).reshape(1, heads, -1, width)  # (1, K, M Q, D)
    parts = [
        attend_weighed(part, prompt.keys[number], prompt.values[number], None)
        for part, (prompt, _) in zip(
            together.split([count * size for _, count in shared.prompts], dim=2), shared.prompts, strict=True
        )
    ]
    before = torch.cat([part for part, _ in parts], dim=2).view(heads, -1, size, width).transpose(0, 1)  # (M, K, Q, D)
    before_weight = torch.cat([part for _, part in parts], dim=2).view(heads, -1, size).transpose(0, 1)
    share = torch.sigmoid(before_weight - weight[shared.rows])[..., None].to(mixed.dtype)  # (M, K, Q, 1)
    return mixed.index_copy_(0, shared.rows, torch.lerp(mixed[shared.rows], before, share))


def attend_weighed(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention as in ``attend``, of B rows to B or 1 of keys and values, and the logarithm of what its softmax was
    divided by, float32 (B, K, Q)."""
    if queries.device.type != "cpu":
        return attend_weighed_plainly(queries, keys, values, bias)
    mixed, weight = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, attn_mask=bias)
    return mixed, weight


def attend_weighed_plainly(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same out of plain products. A GPU does this for prefill only: its steps have a kernel that finds prompts, or
    rows with copies of them."""
    size = queries.shape[2]
    most = max(1, SCORES // keys.shape[:3].numel())
    parts = []
    for at in range(0, size, most):
        scores = queries[:, :, at : at + most].float() @ keys.float().transpose(-1, -2) * queries.shape[-1] ** -0.5
        if bias is not None:
            scores += bias.expand(-1, -1, size, -1)[:, :, at : at + most]
        weight = scores.logsumexp(-1, keepdim=True)
        parts.append(((scores - weight).exp_().to(values.dtype) @ values, weight[..., 0]))
    return torch.cat([part for part, _ in parts], dim=2), torch.cat([part for _, part in parts], dim=2)


# --- prefill -------------------------------------------------------------------------------------------------


def prefill(
    weights: Weights, tables: Tables, cache: Cache, slots: Sequence[int], tokens: Tensor, start: Tensor, length: int
) -> None:
    """Write the keys and values of prompt tokens; nothing else of them is ever needed.

    Rows of different lengths are padded at their ends: what padding writes lies beyond the row's position, is masked,
    and is overwritten as the row gets there.

    Args:
        slots: B of them.
        tokens: int64 (B, S, 1 + C).
        start: int64 (B,), the position of each row's first token in its slot; everything before it is in the cache.
        length: attention length; covers start + S.
    """
    shape, epsilon = weights.shape.slow, weights.shape.norm_epsilon
    count, size = tokens.shape[:2]
    shared = cache.shared(slots)
    where = torch.tensor(slots, device=tokens.device)
    positions = start[:, None] + tables.positions[:size]  # (B, S)
    rotation = weights.rotation[cache.prefix[where, None] + positions][:, :, None]  # (B, S, 1, D/2)
    bias = torch.where(tables.positions[:length] <= positions[:, :, None], 0.0, tables.masked)  # (B, S, L)
    bias = bias.to(weights.precision)[:, None].expand(-1, shape.group, -1, -1).flatten(1, 2)[:, None]  # (B, 1, G S, L)
    x = embed(weights, tables, tokens)  # (B, S, W)
    for number, layer in enumerate(weights.layers):
        queries, keys, values = project(layer, shape, normed(x, layer.attention_norm, epsilon), rotation, epsilon)
        cache.keys[number][where[:, None], :, positions] = keys
        cache.values[number][where[:, None], :, positions] = values
        if number == shape.layers - 1:
            return
        queries = queries.unflatten(2, (shape.key_value_heads, shape.group)).permute(0, 2, 3, 1, 4)  # (B, K, G, S, D)
        queries = queries.flatten(2, 3)  # (B, K, G S, D)
        mine, my_values = cache.keys[number][where, :, :length], cache.values[number][where, :, :length]
        mixed = attend(queries, mine, my_values, bias, shared, number)
        mixed = mixed.unflatten(2, (shape.group, size)).permute(0, 3, 1, 2, 4).reshape(count, size, shape.query_width)
        x = x + layer.output(mixed)
        x = x + feed_forward(layer, x, epsilon)


# --- step ----------------------------------------------------------------------------------------------------


def slow_step(weights: Weights, tables: Tables, cache: Cache, newest: Tensor, position: Tensor, length: int) -> Tensor:
    """Read each row's newest token.

    Args:
        newest: int64 (R, 1 + C); row r is slot r.
        position: int64 (R,), in the row's slot, each below the cache's capacity.
        length: L, above every position that counts.

    Returns:
        (R, W), the last layer's output before the norm.
    """
    shape, epsilon = weights.shape.slow, weights.shape.norm_epsilon
    rows = len(newest)
    slots = tables.slots[:rows]
    shared = cache.shared(range(rows))
    rotation = weights.rotation[cache.prefix[:rows] + position][:, None]  # (R, 1, D/2)
    bias = torch.where(tables.positions[:length] <= position[:, None], 0.0, tables.masked)  # (R, L)
    bias = bias.to(weights.precision)[:, None, None]  # (R, 1, 1, L)
    x = embed(weights, tables, newest)  # (R, W)
    for number, layer in enumerate(weights.layers):
        queries, keys, values = project(layer, shape, normed(x, layer.attention_norm, epsilon), rotation, epsilon)
        cache.keys[number][slots, :, position] = keys
        cache.values[number][slots, :, position] = values
        mixed = attend(
            queries.unflatten(1, (shape.key_value_heads, shape.group)),  # (R, K, G, D)
            cache.keys[number][:rows, :, :length],
            cache.values[number][:rows, :, :length],
            bias,
            shared,
            number,
        )
        x = x + layer.output(mixed.flatten(1))
        x = x + feed_forward(layer, x, epsilon)
    return x


class FastCache:
    """Keys and values of one frame's fast transformer: (layers, R, K, C, D) each."""

    def __init__(self, weights: Weights, rows: int) -> None:
        shape = weights.shape.fast
        size = (shape.layers, rows, shape.key_value_heads, weights.shape.codebooks, shape.head_width)
        self.keys = torch.empty(size, dtype=weights.precision, device=weights.device)
        self.values = torch.empty(size, dtype=weights.precision, device=weights.device)


def fast_step(weights: Weights, cache: FastCache, x: Tensor, place: int) -> Tensor:
    """Read the slow transformer's output (place 0) or the code of a codebook (its number).

    Args:
        x: (R, fast width).

    Returns:
        (R, residual codes), float32 logits of the code of codebook ``place``; at place 0, where fish-speech has no use
        for them, an empty tensor.
    """
    shape, epsilon = weights.shape.fast, weights.shape.norm_epsilon
    rotation = weights.fast_rotation[place]
    for number, layer in enumerate(weights.fast_layers):
        queries, keys, values = project(layer, shape, normed(x, layer.attention_norm, epsilon), rotation, epsilon)
        cache.keys[number, :, :, place] = keys
        cache.values[number, :, :, place] = values
        if place == 0 and number == shape.layers - 1:
            return x.new_empty(0)
        queries = queries.unflatten(1, (shape.key_value_heads, shape.group))  # (R, K, G, D)
        scores = queries @ cache.keys[number, :, :, : place + 1].transpose(-1, -2)  # (R, K, G, place + 1)
        mixed = (scores * shape.head_width**-0.5).softmax(-1) @ cache.values[number, :, :, : place + 1]
        x = x + layer.output(mixed.flatten(1))
        x = x + feed_forward(layer, x, epsilon)
    return weights.residual_head(normed(x, weights.fast_norm, epsilon)).float()


def head(weights: Weights, hidden: Tensor) -> Tensor:
    """(R, W) -> (R, N + spare) float32 logits: the semantic tokens, the end token, and places that are never chosen."""
    return weights.head(normed(hidden, weights.norm, weights.shape.norm_epsilon)).float()


def step(weights: Weights, tables: Tables, cache: Cache, state: State, advancing: Tensor, length: int) -> None:
    """Speak one frame in each row.

    Args:
        advancing: bool (R,); a row that is not advancing, or not active, is computed and left as it was.
        length: attention length, covers every advancing row's position.
    """
    rows = len(advancing)
    shape = weights.shape
    frame = state.frame[:rows]
    first = frame[:, None] == 0
    temperature, top_p = state.temperature[:rows], state.top_p[:rows]
    penalty = torch.where(first, 1.0, state.penalty[:rows])
    window = sampler.window(state.history[:rows], frame, tables.window_offsets)  # (R, 16, 1 + C)
    draws = noise.frame_keys(state.keys[:rows], frame, shape.codebooks)  # (R, C)

    hidden = slow_step(weights, tables, cache, state.newest[:rows], state.position[:rows], length)
    choices = weights.semantic_tokens + 1
    places = sampler.penalised_semantic(
        window[:, 0], weights.semantic_begin, weights.semantic_begin + weights.semantic_tokens, weights.end, choices
    )
    logits = head(weights, hidden)
    sound = logits.isfinite().all(-1)
    logits = sampler.penalise(logits, places, penalty)[:, :choices]
    logits[:, -1:].masked_fill_(first | state.mask_end[:rows], float("-inf"))
    chances = sampler.probabilities(logits, temperature, top_p)
    choice = sampler.choose(chances, noise.exponential(draws[:, 0], tables.semantic_choices))
    ended = choice == weights.semantic_tokens
    token = torch.where(ended, weights.end, choice + weights.semantic_begin)
    code = torch.where(ended, weights.end - weights.semantic_begin, choice).clamp(0, shape.codebook_size - 1)
    spoken = [token, code]

    fast = FastCache(weights, rows)
    fast_step(weights, fast, hidden if weights.project_in is None else weights.project_in(hidden), 0)
    for codebook in range(1, shape.codebooks):
        x = looked_up(weights, weights.fast_embeddings, code)
        logits = fast_step(weights, fast, x, codebook)
        sound &= logits.isfinite().all(-1)
        logits = sampler.penalise(logits, window[:, :, codebook + 1], penalty)
        chances = sampler.probabilities(logits, temperature, top_p)
        code = sampler.choose(chances, noise.exponential(draws[:, codebook], tables.residual_choices))
        spoken.append(code)

    state.sound[:rows] &= sound | ~(state.active[:rows] & advancing)
    finish_frame(state, torch.stack(spoken, dim=1), ended, advancing)


def finish_frame(state: State, spoken: Tensor, ended: Tensor, advancing: Tensor) -> None:
    """Write down a frame, int64 (R, 1 + C), for the rows that advance, and see which of them end with it."""
    rows = len(spoken)
    going = state.active[:rows] & advancing
    frame, history = state.frame[:rows], state.history[:rows]
    kept = history.gather(1, frame[:, None, None].expand(-1, 1, spoken.shape[1]))
    written = torch.where((going & ~ended)[:, None], spoken, kept[:, 0])
    history.scatter_(1, frame[:, None, None].expand(-1, 1, spoken.shape[1]), written[:, None])
    state.newest[:rows] = torch.where(going[:, None], spoken, state.newest[:rows])
    state.position[:rows] += going
    state.frame[:rows] += going & ~ended
    state.ended[:rows] |= going & ended
    over = ended | (state.frame[:rows] >= state.limit[:rows]) | ~state.sound[:rows]
    state.active[:rows] &= ~(going & over)

# mypy: ignore-errors
# ruff: noqa: N803, N806 - compile-time constants are written in capitals, as Triton's own code has them
"""The decoding step's own GPU kernels, in Triton. What is left to cuBLAS: matrix products of many rows.

At one row a step reads 2 GB of weights in some 350 kernels, each of which takes about two microseconds: what counts is
that the next kernel's weights are on their way while this one still computes. Each kernel therefore lets the next one
start at once (``gdc_launch_dependents``), and waits (``gdc_wait``) before it touches anything that another kernel
writes. Before that it reads weights, which nothing writes. The wait lasts until the kernel before has ended and its
writes can be seen, and that one has waited for the one before it. On a GPU older than Hopper ``EARLY`` is false, and
both are left out.

Numbers are rounded where the plain decoder (decoder.py) rounds them. Sizes: R rows, W width, H heads, K key/value
heads, G = H / K, D a head's width, N outputs, C codebooks.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _begin(EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def _wait(EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()


@triton.jit
def _chunk(x, part: tl.constexpr, row, norm_weight, epsilon, K: tl.constexpr, CHUNK: tl.constexpr, NORM: tl.constexpr):
    """A part of a row of x (R, K) as float32, normed if so asked (then the row is one part)."""
    columns = part * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(x + row * K + columns)
    result = values.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(result * result) / K + epsilon)
        weight = tl.load(norm_weight + columns).to(tl.float32)
        result = (result * scale * weight).to(values.dtype).to(tl.float32)
    return result


@triton.jit
def matvec(
    x, norm_weight, weight, out, epsilon, N,
    R: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (R, N) = norm(x (R, K)) @ weight (N, K).T for a few rows, each program BLOCK outputs.

    GATED: weight is (2 N, K) and out = silu(first half) × second half. ADD: the product is added to out.
    PARTS: 1 to 3 equal parts of K, a power of two each, all of a program's weights being held at once.
    """
    _begin(EARLY)
    CHUNK: tl.constexpr = K // PARTS
    outputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, CHUNK)
    inside = outputs < N
    places = weight + outputs[:, None] * K + columns[None, :]
    weights0 = tl.load(places, mask=inside[:, None], other=0.0)
    if PARTS > 1:
        weights1 = tl.load(places + CHUNK, mask=inside[:, None], other=0.0)
    if PARTS > 2:
        weights2 = tl.load(places + 2 * CHUNK, mask=inside[:, None], other=0.0)
    if GATED:
        ups = tl.load(places + N * K, mask=inside[:, None], other=0.0)
    _wait(EARLY)
    for row in tl.static_range(R):
        part = _chunk(x, 0, row, norm_weight, epsilon, K, CHUNK, NORM)
        sums = tl.sum(weights0.to(tl.float32) * part[None, :], axis=1)
        if GATED:
            up = tl.sum(ups.to(tl.float32) * part[None, :], axis=1)
        if PARTS > 1:
            part = _chunk(x, 1, row, norm_weight, epsilon, K, CHUNK, NORM)
            sums += tl.sum(weights1.to(tl.float32) * part[None, :], axis=1)
        if PARTS > 2:
            part = _chunk(x, 2, row, norm_weight, epsilon, K, CHUNK, NORM)
            sums += tl.sum(weights2.to(tl.float32) * part[None, :], axis=1)
        target = out + row * N + outputs
        if GATED:
            gate = sums.to(weights0.dtype).to(tl.float32)
            gate = (gate / (1.0 + tl.exp(-gate))).to(weights0.dtype).to(tl.float32)
            sums = gate * up.to(weights0.dtype).to(tl.float32)
        if ADD:
            sums = tl.load(target, mask=inside, other=0.0).to(tl.float32) + sums.to(weights0.dtype).to(tl.float32)
        tl.store(target, sums, mask=inside)


@triton.jit
def norm(x, weight, out, epsilon, W: tl.constexpr, EARLY: tl.constexpr):
    """out = x / rms(x) × weight, one program a row of (R, W)."""
    _begin(EARLY)
    columns = tl.arange(0, W)
    weights = tl.load(weight + columns).to(tl.float32)
    _wait(EARLY)
    row = tl.program_id(0)
    values = tl.load(x + row * W + columns).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / W + epsilon)
    tl.store(out + row * W + columns, values * scale * weights)


@triton.jit
def gate(both, out, N: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """out (R, N) = silu(both[:, :N]) × both[:, N:], programs (R, N / BLOCK)."""
    _begin(EARLY)
    _wait(EARLY)
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(both + row * 2 * N + columns)
    value = first.to(tl.float32)
    value = (value / (1.0 + tl.exp(-value))).to(first.dtype).to(tl.float32)
    second = tl.load(both + row * 2 * N + N + columns).to(tl.float32)
    tl.store(out + row * N + columns, value * second)


@triton.jit
def _turned(heads, norm_weight, cos, sin, rows, epsilon, D: tl.constexpr, NORM: tl.constexpr):
    """Some heads (rows, D) of a projection, normed and turned: float32 (rows, D), rounded."""
    pairs = rows[:, None] * D + 2 * tl.arange(0, D // 2)[None, :]
    even = tl.load(heads + pairs)
    kind: tl.constexpr = even.dtype
    odd = tl.load(heads + pairs + 1).to(tl.float32)
    even = even.to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(even * even, axis=1) + tl.sum(odd * odd, axis=1)) / D + epsilon)[:, None]
        even = (even * scale).to(kind).to(tl.float32) * tl.load(norm_weight + pairs).to(tl.float32)
        odd = (odd * scale).to(kind).to(tl.float32) * tl.load(norm_weight + pairs + 1).to(tl.float32)
        even = even.to(kind).to(tl.float32)
        odd = odd.to(kind).to(tl.float32)
    turned = tl.join(even * cos[None, :] - odd * sin[None, :], odd * cos[None, :] + even * sin[None, :])
    return tl.reshape(turned, (rows.shape[0], D)).to(kind)


@triton.jit
def _over(
    queries, keys, values, count, highest, total, mixed, scale, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Attention over some more of a head's keys and values, (count, D): the queries' highest scores so far, the sums of
    their shares and the values mixed by these."""
    columns = tl.arange(0, D)
    for start in range(0, count, BLOCK):
        positions = start + tl.arange(0, BLOCK)
        seen = positions < count
        at = positions[:, None] * D + columns[None, :]
        block = tl.load(keys + at, mask=seen[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(block)) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        fading = tl.exp(highest - higher)
        block = tl.load(values + at, mask=seen[:, None], other=0.0)
        mixed = mixed * fading[:, None] + tl.dot(shares.to(block.dtype), block)
        total = total * fading + tl.sum(shares, axis=1)
        highest = higher
    return highest, total, mixed


@triton.jit
def attend(
    projected, norm_weight, rotation, position, keys, values, prefix, key_addresses, value_addresses, out,
    epsilon, scale, row_stride, head_stride,
    H: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr, PROMPTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of each row's newest token over its prompt and the row's own positions, programs (R, K).

    projected: (R, H + 2 K, D), queries, keys, values. norm_weight: (H + K, D). rotation: float32 (positions, D / 2, 2).
    position: int64 (R,), where the newest key and value are written. keys, values: (slots, K, capacity, D) with the
    strides given. out: (R, H, D). PROMPTS: rows may have them, of prefix positions, int64 (R,), their keys and values
    (K, prefix, D) at the addresses, int64 (R,); else these three are not read. Rows of one prompt find it in the
    second-level cache.
    """
    _begin(EARLY)
    _wait(EARLY)
    PADDED: tl.constexpr = 16
    row = tl.program_id(0)
    head = tl.program_id(1)
    place = tl.load(position + row)
    turn = place
    if PROMPTS:
        before = tl.load(prefix + row)
        turn = place + before
    half = tl.arange(0, D // 2)
    cos = tl.load(rotation + turn * D + 2 * half)
    sin = tl.load(rotation + turn * D + 2 * half + 1)
    heads = projected + row * (H + 2 * K) * D
    columns = tl.arange(0, D)
    cache = row.to(tl.int64) * row_stride + head * head_stride

    one = tl.zeros((1,), dtype=tl.int32) + (H + head)
    key = _turned(heads, norm_weight, cos, sin, one, epsilon, D, NORM)
    tl.store(keys + cache + place * D + columns[None, :], key)
    value = tl.load(heads + (H + K + head) * D + columns)
    tl.store(values + cache + place * D + columns, value)
    tl.debug_barrier()  # the other threads of this program read what these have written

    group = tl.arange(0, PADDED)
    queries = _turned(heads, norm_weight, cos, sin, head * G + tl.where(group < G, group, 0), epsilon, D, NORM)
    highest = tl.full((PADDED,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((PADDED,), dtype=tl.float32)
    mixed = tl.zeros((PADDED, D), dtype=tl.float32)
    if PROMPTS:
        kind: tl.constexpr = keys.dtype.element_ty
        # An address says nothing of its alignment, without which keys are read one by one; allocators give 64 bytes.
        prompt_keys = tl.multiple_of(tl.load(key_addresses + row).to(tl.pointer_type(kind)), 64)
        prompt_values = tl.multiple_of(tl.load(value_addresses + row).to(tl.pointer_type(kind)), 64)
        at = head * before * D
        highest, total, mixed = _over(
            queries, prompt_keys + at, prompt_values + at, before, highest, total, mixed, scale, D, BLOCK
        )
    highest, total, mixed = _over(
        queries, keys + cache, values + cache, place + 1, highest, total, mixed, scale, D, BLOCK
    )
    result = mixed / total[:, None]
    target = out + (row * H + head * G + group[:, None]) * D + columns[None, :]
    tl.store(target, result, mask=(group < G)[:, None])


@triton.jit
def embed(
    newest, embeddings, codebook_embeddings, out, begin, end, size, divisor,
    C: tl.constexpr, W: tl.constexpr, SCALED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (R, W): each row's newest token, int64 (R, 1 + C), with its codes if it is a semantic one (begin … end-1).
    ``size``: of a codebook."""
    _begin(EARLY)
    _wait(EARLY)
    row = tl.program_id(0)
    columns = tl.arange(0, W)
    token = tl.load(newest + row * (1 + C))
    plain = tl.load(embeddings + token * W + columns)
    frames = tl.zeros((W,), dtype=tl.float32)
    for codebook in tl.static_range(C):
        code = tl.load(newest + row * (1 + C) + 1 + codebook) + codebook * size
        frames += tl.load(codebook_embeddings + code * W + columns).to(tl.float32)
    spoken = plain.to(tl.float32) + frames.to(plain.dtype).to(tl.float32)
    spoken = spoken.to(plain.dtype).to(tl.float32)
    if SCALED:
        spoken = spoken / divisor
    semantic = (token >= begin) & (token < end)
    tl.store(out + row * W + columns, tl.where(semantic, spoken, plain.to(tl.float32)))


@triton.jit
def _mix(value):
    """See noise._mix; uint32 wraps by itself."""
    value = value ^ (value >> 16)
    value = value * 0x21F0AAAD
    value = value ^ (value >> 15)
    value = value * 0x735A2D97
    return value ^ (value >> 15)


@triton.jit
def sample(
    logits, history, frame, keys, temperature, top_p, penalty, mask_end, active, sound, spoken, table, next_x,
    history_frames, begin, end, end_code,
    N: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, C: tl.constexpr, CODEBOOK: tl.constexpr,
    W: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Draw one code a row, as sampler.py says, and look up what the fast transformer reads next.

    logits: float32 (R, STRIDE), N of them choices; for codebook 0 the semantic tokens and, last, the end token.
    history: int64 (slots, history_frames, 1 + C); the other states as in decoder.State. spoken: int64 (R, 1 + C),
    written at 1 + CODEBOOK and, for codebook 0, at 0. table: (codes, W), its row of the code goes to next_x (R, W).
    end_code: the code that stands for the end token. sound, int8 as active, becomes 0 for an active row whose choices
    are not all finite.

    Nothing is sorted. The largest of score = log chance - log noise among the choices that top-p leaves is wanted: the
    largest of all is taken, and kept if the chances down to its own add up to no more than top_p (or if it is the
    likeliest of all); else it and everything less likely is out, and the next largest is taken. Equal chances count
    in the order of their numbers, as in a stable sort.
    """
    _begin(EARLY)
    row = tl.program_id(0)
    choices = tl.arange(0, BLOCK)
    inside = choices < N

    number = tl.load(frame + row)
    key = tl.load(keys + row)
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    draw = _mix(_mix(_mix(low + number.to(tl.uint32) * 0x9E3779B9) ^ high) + CODEBOOK * 0x85EBCA6B % 0x100000000)
    bits = _mix(_mix(draw + choices.to(tl.uint32) * 0xC2B2AE35))
    noise = -tl.log(((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07)

    start = tl.maximum(number - 17, 0) + 1
    frames = history + (row * history_frames + start) * (1 + C)
    penalised = choices < 0
    if CODEBOOK == 0:
        for place in tl.static_range(1 + C):
            token = tl.load(frames + place)
            penalised |= (choices < N - 1) & (choices == token - begin)
            penalised |= (choices == N - 1) & (token == end)
    else:
        for place in tl.static_range(16):
            penalised |= choices == tl.load(frames + place * (1 + C) + 1 + CODEBOOK)
    penalised = penalised & (number > 0)
    factor = tl.load(penalty + row)
    heat = tl.maximum(tl.load(temperature + row), 1e-5)
    most = tl.load(top_p + row)
    if CODEBOOK == 0:
        masked = (choices == N - 1) & ((number == 0) | (tl.load(mask_end + row) != 0))

    _wait(EARLY)
    values = tl.load(logits + row * STRIDE + choices, mask=inside, other=float("-inf"))
    finite = tl.min(tl.where(inside, (tl.abs(values) < float("inf")).to(tl.int32), 1), axis=0)
    unsound = (finite == 0) & (tl.load(active + row) != 0)
    tl.store(sound + row, tl.where(unsound, 0, tl.load(sound + row)).to(tl.int8))
    values = tl.where(finite == 0, 0.0, values)  # the draw is of no use, but must be one
    values = tl.where(penalised, tl.where(values < 0, values * factor, values / factor), values)
    if CODEBOOK == 0:
        values = tl.where(masked, float("-inf"), values)
    values = values - tl.max(values, axis=0)
    chances = tl.exp(values)
    chances = chances / tl.sum(chances, axis=0)
    scores = values / heat - tl.log(noise)
    left = inside
    chosen = 0
    searching = 1
    while searching == 1:
        chosen = tl.argmax(tl.where(left, scores, float("-inf")), axis=0)
        chance = tl.sum(tl.where(choices == chosen, chances, 0.0), axis=0)
        above = (chances > chance) | ((chances == chance) & (choices < chosen))
        mass = tl.sum(tl.where(above | (choices == chosen), chances, 0.0), axis=0)
        others = tl.max(above.to(tl.int32), axis=0)
        left = left & above
        searching = tl.where((mass <= most) | (others == 0), 0, 1)

    code = chosen.to(tl.int64)
    if CODEBOOK == 0:
        ended = chosen == N - 1
        tl.store(spoken + row * (1 + C), tl.where(ended, end, code + begin))
        code = tl.where(ended, end_code, code)
    tl.store(spoken + row * (1 + C) + 1 + CODEBOOK, code)
    columns = tl.arange(0, W)
    tl.store(next_x + row * W + columns, tl.load(table + code * W + columns))


@triton.jit
def finish(
    spoken, newest, position, frame, limit, active, ended, sound, history, history_frames, end,
    C: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """decoder.finish_frame, one program a row; flags are int8."""
    _begin(EARLY)
    _wait(EARLY)
    row = tl.program_id(0)
    going = tl.load(active + row) != 0
    columns = tl.arange(0, 16)
    held = columns < 1 + C
    said = tl.load(spoken + row * (1 + C) + columns, mask=held, other=0)
    over = tl.load(spoken + row * (1 + C)) == end
    number = tl.load(frame + row)
    kept = going & (over == 0)
    at = history + (row * history_frames + number) * (1 + C) + columns
    tl.store(at, said, mask=held & kept)
    tl.store(newest + row * (1 + C) + columns, said, mask=held & going)
    tl.store(position + row, tl.load(position + row) + going.to(tl.int64))
    number += kept.to(tl.int64)
    tl.store(frame + row, number)
    tl.store(ended + row, ((tl.load(ended + row) != 0) | (going & over)).to(tl.int8))
    on = (over == 0) & (number < tl.load(limit + row)) & (tl.load(sound + row) != 0)
    tl.store(active + row, (going & on).to(tl.int8))

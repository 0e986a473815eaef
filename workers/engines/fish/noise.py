"""The random numbers of sampling: a function of (seed, frame, codebook, choice) and of nothing else.

A counter-based generator: no state, so a segment draws the same numbers in any row of any batch, on any worker, after
any restart. The mixing function is the 32-bit one of the hash-prospector search with the constants
0x21f0aaad/0x735a2d97 and shifts 16/15/15; it is computed in int64 tensors, masked to 32 bits, where no product reaches
2**63 and none is undefined.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
FRAME_STRIDE = 0x9E3779B9
CODEBOOK_STRIDE = 0x85EBCA6B
CHOICE_STRIDE = 0xC2B2AE35


def derived_seed(seed: int, what: str) -> int:
    """Another seed, 63 bits, for ``what`` ("attempt 1", "part 2") of a segment with this one; always the same."""
    digest = hashlib.sha256(f"{seed}\0{what}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_key(seed: int) -> int:
    """64 well-mixed bits of a seed of any size and sign, as a signed integer that fits an int64 tensor."""
    digest = hashlib.sha256(str(seed).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _mix(value: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in an int64 tensor, every output bit depending on every input bit."""
    value = value ^ (value >> 16)
    value = (value * 0x21F0AAAD) & MASK
    value = value ^ (value >> 15)
    value = (value * 0x735A2D97) & MASK
    return value ^ (value >> 15)


def frame_keys(keys: Tensor, frames: Tensor, codebooks: int) -> Tensor:
    """One 32-bit key for each draw of a frame.

    Args:
        keys: int64 (rows,), from seed_key.
        frames: int64 (rows,), the number of the frame in its segment.
        codebooks: how many draws a frame has.

    Returns:
        int64 (rows, codebooks).
    """
    low, high = keys & MASK, (keys >> 32) & MASK
    frame = _mix((low + frames * FRAME_STRIDE) & MASK) ^ high
    codebook = torch.arange(codebooks, device=keys.device) * CODEBOOK_STRIDE
    return _mix((_mix(frame)[:, None] + codebook) & MASK)


def exponential(draw_keys: Tensor, choices: Tensor) -> Tensor:
    """Exponentially distributed numbers, one for each choice of a draw: the smallest ``number / probability`` marks
    a choice drawn by its probability.

    Args:
        draw_keys: int64 (rows,), one column of frame_keys.
        choices: int64 (n,), 0 … n-1, made once.

    Returns:
        float32 (rows, n), between 5e-8 and 17: 23 bits of a uniform number, never 0 or 1.
    """
    bits = _mix(_mix((draw_keys[:, None] + choices * CHOICE_STRIDE) & MASK))
    uniform = ((bits >> 9).float() + 0.5) * 2.0**-23
    return uniform.log_().neg_()

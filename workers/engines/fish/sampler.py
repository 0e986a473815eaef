"""From logits to a code: fish-speech's way of sampling, for many rows at once.

Given the same logits, ``probabilities`` are those of stock ``logits_to_probs``, which has habits worth knowing. They
are kept, since the released models were tuned by ear with them:

- Top-p is applied before the temperature, and the token that crosses the threshold is dropped, not kept: with one
  token at 0.8 and top_p 0.7, that token alone remains, because the first always does.
- The repetition penalty of a residual codebook looks at its last 16 codes. While fewer have been spoken the window is
  filled up with zeros, so code 0 is penalised in the first 16 frames. The very first frame is not penalised at all, and
  is not part of the window later: stock keeps no record of the frame that it samples with the prompt.
- The repetition penalty of the semantic token takes the window's first *column* for a row: the whole frame 16 frames
  ago (the oldest one while there are fewer), token and codes, is read as token numbers. What acts is the semantic token
  of that one frame; its codes would hit text tokens, which are not among the choices. ``penalised_semantic`` does the
  same, also for a vocabulary so small that codes and semantic tokens overlap.
- temperature, top_p and repetition_penalty are rounded to bf16 first (``as_stock_rounds``): 0.7 is 0.69921875.

What differs: the choices are the semantic tokens and the end token alone, as if stock's other logits were -inf; the
end token is not among the first frame's (stock overlooks it there, and goes on from it as if it were a frame); the
arithmetic is float32 where stock's is the model's precision; the noise is ours (see noise.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 16
"""Frames that the repetition penalty looks back."""

LOWEST_TEMPERATURE = 1e-5


def as_stock_rounds(value: float) -> float:
    """A sampling parameter as stock's ``generate`` hands it on: rounded to bf16."""
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def penalise(logits: Tensor, places: Tensor, penalty: Tensor) -> Tensor:
    """Logits with those at ``places`` made less likely; a place named twice is penalised once.

    Args:
        logits: float32 (rows, n).
        places: int64 (rows, k), each below n.
        penalty: float32 (rows, 1); 1 changes nothing.
    """
    score = logits.gather(-1, places)
    score = torch.where(score < 0, score * penalty, score / penalty)
    return logits.scatter(-1, places, score)


def probabilities(logits: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """What each choice's chance is.

    Args:
        logits: float32 (rows, n), penalised already.
        temperature, top_p: float32 (rows, 1).

    Returns:
        float32 (rows, n); each row sums to 1.
    """
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    dropped = ordered.softmax(-1).cumsum(-1) > top_p
    dropped[:, 0] = False
    ordered = ordered.masked_fill_(dropped, float("-inf")) / temperature.clamp(min=LOWEST_TEMPERATURE)
    return torch.empty_like(logits).scatter_(-1, order, ordered.softmax(-1))


def choose(chances: Tensor, noise: Tensor) -> Tensor:
    """One choice a row, drawn by its chances.

    Args:
        chances: float32 (rows, n).
        noise: float32 (rows, n), from noise.exponential.

    Returns:
        int64 (rows,).
    """
    return (chances / noise).argmax(-1)


def window(history: Tensor, frame: Tensor, offsets: Tensor) -> Tensor:
    """The frames that stock's repetition penalty looks at, zeros where there are none yet.

    Args:
        history: int64 (rows, frames, 1 + codebooks), token and codes of each frame spoken; the first WINDOW + 1
            frames that are not spoken yet are zeros.
        frame: int64 (rows,), the number of the frame to be sampled, its segment's first being 0.
        offsets: int64 (WINDOW,), 1 … WINDOW, made once.

    Returns:
        int64 (rows, WINDOW, 1 + codebooks).
    """
    start = (frame - 1 - WINDOW).clamp(min=0)
    places = (start[:, None] + offsets)[:, :, None].expand(-1, -1, history.shape[2])
    return history.gather(1, places)


def penalised_semantic(oldest: Tensor, semantic_begin: int, semantic_end: int, end: int, nowhere: int) -> Tensor:
    """Where the numbers of a frame, read as token numbers, stand in the cut head.

    Args:
        oldest: int64 (rows, 1 + codebooks), the first frame of the window.
        semantic_begin, semantic_end: token numbers of the first semantic code and of one past the last.
        end: the end token's number; it stands after the semantic ones.
        nowhere: a place of the head that is never chosen, for all other numbers.

    Returns:
        int64 (rows, 1 + codebooks).
    """
    place = oldest - semantic_begin
    semantic = (oldest >= semantic_begin) & (oldest < semantic_end)
    place = torch.where(semantic, place, nowhere)
    return torch.where(oldest == end, semantic_end - semantic_begin, place)

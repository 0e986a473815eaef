"""Makes a checkpoint of random weights with fish-speech's own classes.

    python -m workers.engines.fish.make_checkpoint FOLDER --shape tiny

``tiny`` is for tests: a few small layers, 4,096 semantic tokens and 10 codebooks of 4,096 rows as in a real model, and
an end token that comes up within some twenty frames. ``real`` has the shape of openaudio-s1-mini, whose speed does
not depend on what the weights say: what a machine can do is measured with it, without the licensed weights.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import sys

import torch

TINY = {
    "n_layer": 3,
    "dim": 64,
    "intermediate_size": 192,
    "n_head": 4,
    "n_local_heads": 2,
    "head_dim": 16,
    "n_fast_layer": 2,
    "fast_dim": 32,
    "fast_intermediate_size": 96,
    "fast_n_head": 4,
    "fast_n_local_heads": 1,
    "fast_head_dim": 16,
    "max_seq_len": 4096,
}

REAL = {
    "n_layer": 28,
    "dim": 1024,
    "intermediate_size": 3072,
    "n_head": 16,
    "n_local_heads": 8,
    "head_dim": 128,
    "vocab_size": 155_776,
    "n_fast_layer": 4,
    "fast_dim": 1024,
    "fast_intermediate_size": 3072,
    "fast_n_head": 16,
    "fast_n_local_heads": 8,
    "fast_head_dim": 64,
    "max_seq_len": 8192,
}

COMMON = {
    "model_type": "dual_ar",
    "num_codebooks": 10,
    "codebook_size": 4096,
    "rope_base": 1_000_000,
    "norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_qkv_bias": False,
    "attention_o_bias": False,
    "attention_qk_norm": True,
    "fast_attention_qk_norm": False,
    "scale_codebook_embeddings": True,
    "dropout": 0.0,
}

SEMANTIC_TOKENS = 4096
REAL_MERGEABLE_TOKENS = 151_000


def write_tokenizer(folder: str, shape: str) -> int:
    """tokenizer.tiktoken and special_tokens.json; gives the number of tokens."""
    from fish_speech.tokenizer import ALL_SPECIAL_TOKENS

    tokens = [bytes([value]) for value in range(256)]
    if shape == "real":
        # Never reached by merging, which starts from single bytes and finds no pairs: they fill the numbers up to where
        # a real model's special tokens begin.
        tokens += [b"\xff" + number.to_bytes(4, "big") for number in range(REAL_MERGEABLE_TOKENS - len(tokens))]
    with open(os.path.join(folder, "tokenizer.tiktoken"), "w", encoding="ascii") as file:
        file.writelines(f"{base64.b64encode(token).decode('ascii')} {rank}\n" for rank, token in enumerate(tokens))
    special = [token for token in ALL_SPECIAL_TOKENS if not token.startswith("<|semantic:")]
    special += [f"<|semantic:{code}|>" for code in range(SEMANTIC_TOKENS)]
    with open(os.path.join(folder, "special_tokens.json"), "w", encoding="utf-8") as file:
        json.dump({token: len(tokens) + place for place, token in enumerate(special)}, file, indent=1)
    return len(tokens) + len(special)


def write_model(folder: str, shape: str, seed: int) -> None:
    """config.json and model.pth, through ``DualARTransformer`` itself; needs the tokenizer's files in place."""
    from fish_speech.models.text2semantic.llama import DualARModelArgs, DualARTransformer

    from workers.engines.fish.prompt import read_tokenizer

    tokenizer = read_tokenizer(folder)
    sizes = {**COMMON, **(REAL if shape == "real" else TINY)}
    sizes.setdefault("vocab_size", max(tokenizer.all_special_tokens_with_ids.values()) + 1)
    config = DualARModelArgs(**sizes)
    torch.manual_seed(seed)
    precision = torch.bfloat16 if shape == "real" else torch.float32
    usual = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        model = DualARTransformer(config, tokenizer=tokenizer)
    finally:
        torch.set_default_dtype(usual)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(1.0, 0.1)
            elif weight.dim() == 2 and "embeddings" not in name and "output" not in name:
                weight.normal_(0.0, 1 / math.sqrt(weight.shape[1]))
            else:
                weight.normal_(0.0, 0.2)
        if shape == "tiny":
            _let_it_end(model, tokenizer.get_token_id("<|im_end|>"))
    model.save_pretrained(folder)


def _let_it_end(model: torch.nn.Module, end: int) -> None:
    """Make the end token's logit swing four times as wide as the others', so that it is the largest of all once in some
    twenty frames: the head is the embeddings themselves."""
    model.embeddings.weight[end] *= 4.0  # type: ignore[union-attr, index, operator]


def make_checkpoint(folder: str, shape: str = "tiny", seed: int = 0) -> None:
    """A whole checkpoint folder: model, tokenizer and codec."""
    from workers.engines.fish.make_codec import make_codec

    os.makedirs(folder, exist_ok=True)
    write_tokenizer(folder, shape)
    write_model(folder, shape, seed)
    make_codec(folder, shape, seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.engines.fish.make_checkpoint", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--shape", choices=("tiny", "real"), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoint(arguments.folder, arguments.shape, arguments.seed)
    total = sum(os.path.getsize(os.path.join(arguments.folder, name)) for name in os.listdir(arguments.folder))
    print(f"{arguments.folder}: a random checkpoint of {total / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()

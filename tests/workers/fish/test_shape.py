"""config.json is read as fish-speech reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from workers.engine import EngineError  # noqa: E402
from workers.engines.fish.make_checkpoint import COMMON, REAL, TINY  # noqa: E402
from workers.engines.fish.shape import read_shape  # noqa: E402

SPARSE = {"model_type": "dual_ar", "dim": 256, "n_head": 4, "max_seq_len": 4096}
BIASED = {
    **COMMON, **TINY, "attention_qkv_bias": True, "fast_attention_o_bias": True, "fast_attention_qk_norm": None,
    "tie_word_embeddings": False, "fast_dim": None, "intermediate_size": None, "fast_intermediate_size": 0,
    "vocab_size": 5000,
}  # fmt: skip


def write(folder: Path, data: Any) -> str:
    (folder / "config.json").write_text(json.dumps(data))
    return str(folder)


@pytest.mark.parametrize("config", [{**COMMON, **REAL}, BIASED, SPARSE], ids=["real", "biased", "sparse"])
def test_the_expected_weights_are_those_of_stocks_model(config: dict[str, Any], tmp_path: Path) -> None:
    """Defaults included, a shape expects exactly the parameters, by name and size, that DualARTransformer has."""
    llama = pytest.importorskip("fish_speech.models.text2semantic.llama")

    class Tokenizer:
        semantic_id_to_token_id = {0: 1}  # noqa: RUF012 - as FishTokenizer has it

    with torch.device("meta"):
        model = llama.DualARTransformer(llama.DualARModelArgs(**config), tokenizer=Tokenizer())
    expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert read_shape(write(tmp_path, config)).weights() == expected


def test_the_real_shape_takes_112_kib_a_token(tmp_path: Path) -> None:
    """28 layers of 8 key/value heads of 128, in bf16."""
    shape = read_shape(write(tmp_path, {**COMMON, **REAL}))
    assert shape.cache_bytes(2) == 112 * 1024
    assert shape.longest_prompt == 6144
    assert shape.residual_codes == 1024


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "naive"}, "'naive'"),
        ({"n_layer": -3}, "n_layer is -3"),
        ({"n_head": 3.5}, "n_head is 3.5"),
        ({"n_local_heads": 3}, "can't share 3"),
        ({"head_dim": 15}, "odd"),
        ({"max_seq_len": 1024}, "no room for a prompt"),
        ({"rope_base": "large"}, "large"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Each with the file and the reason."""
    folder = write(tmp_path, {**COMMON, **TINY, **change})
    with pytest.raises(EngineError, match=reason) as caught:
        read_shape(folder)
    assert caught.value.code == "bad_checkpoint"
    assert "config.json" in str(caught.value)

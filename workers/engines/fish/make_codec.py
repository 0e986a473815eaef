"""Makes a codec with random weights, for tests and measurements.

It has nothing to say, but is a codec of fish-speech's own classes in every other respect, and its audio is noise
at the level of speech.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.engines.fish.codec_checkpoint import WEIGHTS_NAME
from workers.engines.fish.codec_shape import DESCRIPTION_NAME, packaged_description
from workers.engines.fish.stock_codec import no_initial_values, stock_codec

_TINY = """\
_target_: fish_speech.models.dac.modded_dac.DAC
# The packaged codec with fewer channels and layers: the same classes, rates and codebooks.
sample_rate: 44100
encoder_dim: 4
encoder_rates: [2, 4, 8, 8]
decoder_dim: 64
decoder_rates: [8, 8, 4, 2]
encoder_transformer_layers: [0, 0, 0, 1]
decoder_transformer_layers: [0, 0, 0, 0]
transformer_general_config:
  _target_: fish_speech.models.dac.modded_dac.ModelArgs
  _partial_: true
  block_size: 16384
  n_local_heads: -1
  head_dim: 64
  rope_base: 10000
  norm_eps: 1e-5
  dropout_rate: 0.1
  attn_dropout_rate: 0.1
  channels_first: true
quantizer:
  _target_: fish_speech.models.dac.rvq.DownsampleResidualVectorQuantize
  input_dim: 64
  n_codebooks: 9
  codebook_size: 1024
  codebook_dim: 8
  quantizer_dropout: 0.5
  downsample_factor: [2, 2]
  post_module: &transformer_module
    _target_: fish_speech.models.dac.modded_dac.WindowLimitedTransformer
    causal: true
    window_size: 16
    input_dim: 64
    config:
      _target_: fish_speech.models.dac.modded_dac.ModelArgs
      block_size: 4096
      n_layer: 2
      n_head: 1
      dim: 64
      intermediate_size: 128
      n_local_heads: -1
      head_dim: 64
      rope_base: 10000
      norm_eps: 1e-5
      dropout_rate: 0.1
      attn_dropout_rate: 0.1
      channels_first: true
  pre_module: *transformer_module
  semantic_codebook_size: 4096
"""

_TABLES = (".freqs_cis", ".causal_mask")
"""What stock computes when it builds the model."""

_LEVEL = 0.1
"""Root mean square of the audio: about that of speech, far from clipping."""


def make_codec(folder: str, shape: str, seed: int) -> None:
    """Writes codec.pth into the folder, which must exist: "real" in the shape of fish-speech's packaged codec (1.9 GB,
    as long as the published one), "tiny" of a few MB with the codec.yaml that describes it. The same seed gives
    the same weights.

    Raises:
        ValueError: there is no such shape.
    """
    if shape not in ("tiny", "real"):
        raise ValueError(f"a codec's shape is tiny or real, not {shape!r}")
    description = _TINY if shape == "tiny" else packaged_description()
    with no_initial_values():
        model = stock_codec(description)
    generator = torch.Generator().manual_seed(seed)
    tables = {name: value for name, value in model.state_dict().items() if name.endswith(_TABLES)}
    weights = {name: _filled(name, like, generator) for name, like in model.state_dict().items() if name not in tables}
    model.load_state_dict({**weights, **tables}, assign=True)
    _set_level(model, weights, generator)
    if shape == "real":
        weights.update(tables)  # a published file has them; they would be most of a tiny one
    else:
        (Path(folder) / DESCRIPTION_NAME).write_text(description, encoding="utf-8")
    torch.save(weights, Path(folder) / WEIGHTS_NAME)


def _filled(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values that keep the signal's power about the same from layer to layer."""
    shape = tuple(like.shape)
    if name.endswith(".block.3.conv.parametrizations.weight.original0"):
        # The end of a residual unit: quieter than what it is added to, as after training. At full level the chain of
        # some thirty sines would be chaotic, and blow rounding errors up.
        return torch.full(shape, 0.3)
    if name.endswith(("original0", "weight_g")):
        # A weight norm of 1 keeps the power of a convolution's input.
        return torch.ones(shape)
    if name.endswith(("norm.weight", "alpha")):
        return torch.ones(shape)
    if name.endswith(("bias", "gamma")):
        # Layer scales as large as after training, so that what the transformers do can be seen in the result.
        return torch.full(shape, 0.3 if name.endswith("gamma") else 0.0)
    values = torch.randn(shape, generator=generator)
    if name.endswith(("original1", "weight_v", "codebook.weight")):
        return values
    return values / math.sqrt(math.prod(shape[1:]))


def _set_level(model: Any, weights: dict[str, Tensor], generator: torch.Generator) -> None:
    """Scales the last convolution of the decoder so that random codes come out at _LEVEL, without a constant part."""
    codes = torch.randint(0, 1024, (1, 10, 6), generator=generator)
    last = max(
        (name for name in weights if name.startswith("decoder.model.") and name.endswith(".conv.bias")),
        key=lambda name: int(name.split(".")[2]),
    ).removesuffix("bias")
    gain, bias = weights[last + "parametrizations.weight.original0"], weights[last + "bias"]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before_tanh = model.decoder.model[:-1](model.eval().quantizer.decode(codes))
        factor = _LEVEL / float(before_tanh.std())
        gain.mul_(factor)
        bias.fill_(-float(before_tanh.mean()) * factor)

"""The codec's shape: ``codec.yaml`` read and checked, and the chains of layers that it describes, with the names that
fish-speech's classes give their weights. Torch-free.

A description names Python classes and how to build them, the way hydra wants it. Nothing is built from it here: it is
data, the classes it may name are known, and anything else in it is refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workers.engine import EngineError

DESCRIPTION_NAME = "codec.yaml"
_DESCRIPTION_BYTES = 64 * 1024

_CODE = "bad_checkpoint"
_CLASSES = "fish_speech.models.dac."
_CODEC = _CLASSES + "modded_dac.DAC"
_ARGUMENTS = _CLASSES + "modded_dac.ModelArgs"
_TRANSFORMER = _CLASSES + "modded_dac.WindowLimitedTransformer"
_QUANTIZER = _CLASSES + "rvq.DownsampleResidualVectorQuantize"

Weights = Iterator[tuple[str, tuple[int, ...]]]
"""Names and sizes."""


@dataclass(frozen=True)
class ConvolutionShape:
    """A causal convolution, or, ``transposed``, one that gives ``stride`` outputs for an input. ``at`` is where its
    module is; ``normed``: its weight is kept as a direction and a magnitude (weight norm)."""

    at: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    normed: bool = True

    def weights(self) -> Weights:
        first, second = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs // self.groups)
        size = (first, second, self.kernel)
        if self.normed:
            yield f"{self.at}.parametrizations.weight.original0", (first, 1, 1)
            yield f"{self.at}.parametrizations.weight.original1", size
        else:
            yield f"{self.at}.weight", size
        yield f"{self.at}.bias", (self.outputs,)


@dataclass(frozen=True)
class SnakeShape:
    at: str
    channels: int

    def weights(self) -> Weights:
        yield f"{self.at}.alpha", (1, self.channels, 1)


@dataclass(frozen=True)
class ResidualShape:
    layers: tuple[ConvolutionShape | SnakeShape, ...]

    def weights(self) -> Weights:
        for layer in self.layers:
            yield from layer.weights()


@dataclass(frozen=True)
class ConvNextShape:
    at: str
    channels: int
    depthwise: ConvolutionShape

    def weights(self) -> Weights:
        yield from self.depthwise.weights()
        for name in ("gamma", "norm.weight", "norm.bias", "pwconv2.bias"):
            yield f"{self.at}.{name}", (self.channels,)
        yield f"{self.at}.pwconv1.weight", (4 * self.channels, self.channels)
        yield f"{self.at}.pwconv1.bias", (4 * self.channels,)
        yield f"{self.at}.pwconv2.weight", (self.channels, 4 * self.channels)


@dataclass(frozen=True)
class TanhShape:
    def weights(self) -> Weights:
        yield from ()


@dataclass(frozen=True)
class TransformerShape:
    """A causal transformer with rotary positions; a step sees itself and the ``window`` - 1 steps before it, None:
    all of them. ``positions``: the longest input."""

    at: str
    input_width: int
    width: int
    layers: int
    heads: int
    head_width: int
    feed_forward: int
    positions: int
    rope_base: float
    norm_epsilon: float
    window: int | None

    @property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """What stock computes when it builds the model, and a file may have beside the weights."""
        return {
            f"{self.at}.freqs_cis": (self.positions, self.head_width // 2, 2),
            f"{self.at}.causal_mask": (self.positions, self.positions),
        }

    def weights(self) -> Weights:
        inner = self.heads * self.head_width
        for layer in range(self.layers):
            at = f"{self.at}.layers.{layer}"
            yield f"{at}.attention.wqkv.weight", (3 * inner, self.width)
            yield f"{at}.attention.wo.weight", (self.width, inner)
            for name in ("w1", "w3"):
                yield f"{at}.feed_forward.{name}.weight", (self.feed_forward, self.width)
            yield f"{at}.feed_forward.w2.weight", (self.width, self.feed_forward)
            for name in ("attention_norm.weight", "ffn_norm.weight"):
                yield f"{at}.{name}", (self.width,)
            for name in ("attention_layer_scale.gamma", "ffn_layer_scale.gamma"):
                yield f"{at}.{name}", (self.width,)
        yield f"{self.at}.norm.weight", (self.width,)
        if self.input_width != self.width:
            yield f"{self.at}.input_proj.weight", (self.width, self.input_width)
            yield f"{self.at}.input_proj.bias", (self.width,)
            yield f"{self.at}.output_proj.weight", (self.input_width, self.width)
            yield f"{self.at}.output_proj.bias", (self.input_width,)


LayerShape = ConvolutionShape | SnakeShape | ResidualShape | ConvNextShape | TanhShape
Chain = tuple[LayerShape | TransformerShape, ...]


@dataclass(frozen=True)
class CodebookShape:
    """One stage of the quantizer: ``size`` codes, each a vector of ``width`` that stands for one of ``channels``."""

    at: str
    size: int
    width: int
    channels: int

    def weights(self) -> Weights:
        for name, outputs, inputs in (
            ("in_proj", self.width, self.channels),
            ("out_proj", self.channels, self.width),
        ):
            yield f"{self.at}.{name}.weight_g", (outputs, 1, 1)
            yield f"{self.at}.{name}.weight_v", (outputs, inputs, 1)
            yield f"{self.at}.{name}.bias", (outputs,)
        yield f"{self.at}.codebook.weight", (self.size, self.width)


@dataclass(frozen=True)
class CodecShape:
    """``encode``: recording to features, ``decode``: features to recording; each codebook's vectors, added up, are the
    features. ``frame_samples``: samples that a frame stands for."""

    sample_rate: int
    frame_samples: int
    encode: Chain
    codebooks: tuple[CodebookShape, ...]
    decode: Chain

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name -> size of every weight, by the names of fish-speech's ``DAC``."""
        parts = (*self.encode, *self.codebooks, *self.decode)
        return dict(pair for part in parts for pair in part.weights())

    def tables(self) -> dict[str, tuple[int, ...]]:
        chains = (*self.encode, *self.decode)
        return {
            name: size for part in chains if isinstance(part, TransformerShape) for name, size in part.tables.items()
        }


def read_description(folder: Path) -> str:
    """The text of the folder's ``codec.yaml``; without one, of fish-speech's own codec.

    Raises:
        EngineError: "bad_checkpoint": it can't be read, or is far too long.
    """
    path = folder / DESCRIPTION_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_DESCRIPTION_BYTES + 1)
    except FileNotFoundError:
        return packaged_description()
    except OSError as error:
        raise EngineError(_CODE, f"{path} can't be read: {error.strerror}") from error
    if len(data) > _DESCRIPTION_BYTES:
        raise EngineError(_CODE, f"{path} is over {_DESCRIPTION_BYTES} bytes, so it is not a codec's description")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(_CODE, f"{path} is not UTF-8 text: {error}") from error


def packaged_description() -> str:
    """The description of fish-speech's own codec, as it is packaged."""
    found = importlib.util.find_spec("fish_speech")
    if found is None or not found.submodule_search_locations:
        raise EngineError("missing_module", "the Python package fish_speech is not there; install it for the worker")
    path = os.path.join(found.submodule_search_locations[0], "configs", "modded_dac_vq.yaml")
    with open(path, encoding="utf-8") as file:
        return file.read()


def parse_description(description: str) -> CodecShape:
    """The shape of the codec that a description (YAML) says.

    Raises:
        EngineError: "bad_checkpoint": it is not the description of a codec that is known here; says why.
    """
    try:
        settings = yaml.safe_load(description)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineError(_CODE, f"the codec's description does not parse: {first}") from error
    try:
        return _codec(_Node(settings, "", _CODEC))
    except RecursionError as error:
        raise EngineError(_CODE, "the codec's description contains itself") from error
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise EngineError(_CODE, f"the codec's description is not one of a codec known here: {error}") from error


class _Node:
    """A mapping of the description: what it names must be ``target``, and whatever is not asked for is a mistake.

    Raises:
        ValueError: from every method, what is wrong, and where.
    """

    def __init__(self, settings: object, at: str, target: str, *, partial: bool = False) -> None:
        self._at = at or "the top"
        if not isinstance(settings, Mapping):
            raise ValueError(f"{self._at} is not a mapping")
        self._rest: dict[object, Any] = dict(settings)
        named = self._rest.pop("_target_", None)
        if named != target:
            raise ValueError(f"{self._at} names {named!r} where only {target} may be")
        if self._rest.pop("_partial_", False) is not partial:
            raise ValueError(f"{self._at}: _partial_ is not {str(partial).lower()}")

    def raw(self, key: str, default: object = None) -> Any:
        value = self._rest.pop(key, None)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 24:
            raise ValueError(f"{key} in {self._at} is {value!r}, not a positive whole number")
        return value

    def wholes(self, key: str, default: tuple[int, ...], *, least: int = 1) -> tuple[int, ...]:
        value = self.raw(key, list(default))
        good = isinstance(value, list) and 0 < len(value) <= 16
        if not good or not all(type(one) is int and least <= one <= 1 << 24 for one in value):
            raise ValueError(f"{key} in {self._at} is {value!r}, not a list of whole numbers")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        # YAML 1.1 has 1e-5 as text, hydra as a number.
        value = float(str(self.raw(key, default)))
        if not 0 < value < float("inf"):
            raise ValueError(f"{key} in {self._at} is {value!r}, not a number above 0")
        return value

    def must_be(self, key: str, value: object) -> None:
        """Raises ValueError unless it is that, or not said."""
        found = self.raw(key, value)
        if found != value or type(found) is not type(value):
            raise ValueError(f"{key} in {self._at} is {found!r}; only {value!r} is known")

    def end(self, *unused: str) -> None:
        """Everything has been asked for, but for what is ``unused`` in speaking."""
        unknown = [key for key in self._rest if key not in unused]
        if unknown:
            raise ValueError(f"{self._at} has {str(unknown[0])!r}, which is not known")


def _codec(node: _Node) -> CodecShape:
    node.must_be("causal", True)
    sample_rate = node.whole("sample_rate", 44100)
    width = node.whole("encoder_dim", 64)
    rates = node.wholes("encoder_rates", (2, 4, 8, 8))
    latent = node.whole("latent_dim", width * 2 ** len(rates))
    general = node.raw("transformer_general_config")
    transformers = node.wholes("encoder_transformer_layers", (0, 0, 0, 0), least=0)
    encoder = tuple(_encoder(width, rates, latent, transformers, general))
    decoder = tuple(_decoder(node.whole("decoder_dim", 1536), node.wholes("decoder_rates", (8, 8, 4, 2)), latent))
    quantizer = _Node(node.raw("quantizer"), "quantizer", _QUANTIZER)
    node.end("decoder_transformer_layers")  # stock builds them and leaves them out
    hop = 1
    for rate in rates:
        hop *= rate
    down, codebooks, up = _quantizer(quantizer)
    return CodecShape(sample_rate, hop * 4, (*encoder, *down), codebooks, (*up, *decoder))


def _residual(at: str, channels: int, dilation: int) -> ResidualShape:
    return ResidualShape(
        (
            SnakeShape(f"{at}.block.0", channels),
            ConvolutionShape(f"{at}.block.1.conv", channels, channels, 7, dilation=dilation),
            SnakeShape(f"{at}.block.2", channels),
            ConvolutionShape(f"{at}.block.3.conv", channels, channels, 1),
        )
    )


def _encoder(
    width: int, rates: tuple[int, ...], latent: int, transformers: tuple[int, ...], general: object
) -> Iterator[LayerShape | TransformerShape]:
    """stock's ``Encoder``."""
    yield ConvolutionShape("encoder.block.0.conv", 1, width, 7)
    stages = list(zip(rates, transformers, strict=False))
    for number, (stride, layers) in enumerate(stages, 1):
        at = f"encoder.block.{number}.block"
        for place, dilation in enumerate((1, 3, 9)):
            yield _residual(f"{at}.{place}", width, dilation)
        yield SnakeShape(f"{at}.3", width)
        yield ConvolutionShape(f"{at}.4.conv", width, 2 * width, 2 * stride, stride)
        width *= 2
        if layers:
            settings = _Node(general, "transformer_general_config", _ARGUMENTS, partial=True)
            arguments = {"n_layer": layers, "n_head": width // 64, "dim": width, "intermediate_size": width * 3}
            yield _transformer(f"{at}.5", settings, width, 512, arguments)
    yield SnakeShape(f"encoder.block.{len(stages) + 1}", width)
    yield ConvolutionShape(f"encoder.block.{len(stages) + 2}.conv", width, latent, 3)


def _decoder(channels: int, rates: tuple[int, ...], latent: int) -> Iterator[LayerShape]:
    """stock's ``Decoder``."""
    yield ConvolutionShape("decoder.model.0.conv", latent, channels, 7)
    for number, stride in enumerate(rates, 1):
        at = f"decoder.model.{number}.block"
        outputs = channels // 2
        yield SnakeShape(f"{at}.0", channels)
        yield ConvolutionShape(f"{at}.1.conv", channels, outputs, 2 * stride, stride, transposed=True)
        for place, dilation in enumerate((1, 3, 9), 2):
            yield _residual(f"{at}.{place}", outputs, dilation)
        channels = outputs
    yield SnakeShape(f"decoder.model.{len(rates) + 1}", channels)
    yield ConvolutionShape(f"decoder.model.{len(rates) + 2}.conv", channels, 1, 7)
    yield TanhShape()


def _quantizer(node: _Node) -> tuple[Chain, tuple[CodebookShape, ...], Chain]:
    """stock's ``DownsampleResidualVectorQuantize``: what comes before the codebooks, they, and what comes after."""
    channels = node.whole("input_dim", 1024)
    codebook_width = node.whole("codebook_dim", 8)
    sizes = (
        ("semantic_quantizer", 1, node.whole("semantic_codebook_size", 4096)),
        ("quantizer", node.whole("n_codebooks", 9), node.whole("codebook_size", 1024)),
    )
    codebooks = tuple(
        CodebookShape(f"quantizer.{name}.quantizers.{stage}", size, codebook_width, channels)
        for name, count, size in sizes
        for stage in range(count)
    )
    factors = node.wholes("downsample_factor", (2, 2))
    widths = (channels, *node.wholes("downsample_dims", (channels,) * len(factors)))
    down: list[LayerShape | TransformerShape] = []
    up: list[LayerShape | TransformerShape] = []
    for stage, (factor, inner, outer) in enumerate(zip(factors, widths, widths[1:], strict=False)):
        at = f"quantizer.downsample.{stage}"
        down += [ConvolutionShape(f"{at}.0.conv", inner, outer, factor, factor, normed=False), _conv_next(at, outer)]
        at = f"quantizer.upsample.{len(factors) - 1 - stage}"
        back = ConvolutionShape(f"{at}.0.conv", outer, inner, factor, factor, transposed=True, normed=False)
        up = [back, _conv_next(at, inner), *up]
    for name, chain, place in (("pre_module", down, len(down)), ("post_module", up, 0)):
        settings = node.raw(name)
        if settings is not None:
            chain.insert(place, _described_transformer(f"quantizer.{name}", settings))
    node.end("quantizer_dropout")
    return tuple(down), codebooks, tuple(up)


def _conv_next(at: str, channels: int) -> ConvNextShape:
    depthwise = ConvolutionShape(f"{at}.1.dwconv.conv", channels, channels, 7, groups=channels, normed=False)
    return ConvNextShape(f"{at}.1", channels, depthwise)


def _described_transformer(at: str, settings: object) -> TransformerShape:
    node = _Node(settings, at, _TRANSFORMER)
    node.must_be("causal", True)
    input_width = node.whole("input_dim", 512)
    window = node.raw("window_size")
    if window is not None and (type(window) is not int or window < 1):
        raise ValueError(f"window_size in {at} is {window!r}")
    config = _Node(node.raw("config"), f"{at}.config", _ARGUMENTS)
    node.end()
    return _transformer(at, config, input_width, window, {})


def _transformer(
    at: str, node: _Node, input_width: int, window: int | None, arguments: Mapping[str, int]
) -> TransformerShape:
    """``arguments``: what stock's own code says of it, over what the description does."""

    def whole(key: str, default: int) -> int:
        said = node.whole(key, default)
        return arguments.get(key, said)

    node.must_be("pos_embed_type", "rope")
    node.must_be("channels_first", True)
    heads = whole("n_head", 8)
    local_heads = node.raw("n_local_heads", -1)
    if local_heads not in (-1, heads):
        raise ValueError(f"n_local_heads in {at} is {local_heads!r}; stock's codec can't share keys")
    shape = TransformerShape(
        at=at,
        input_width=input_width,
        width=whole("dim", 512),
        layers=whole("n_layer", 8),
        heads=heads,
        head_width=node.whole("head_dim", 64),
        feed_forward=whole("intermediate_size", 1536),
        positions=node.whole("block_size", 2048),
        rope_base=node.number("rope_base", 10000),
        norm_epsilon=node.number("norm_eps", 1e-5),
        window=window,
    )
    node.end("dropout_rate", "attn_dropout_rate", "max_relative_position")
    return shape

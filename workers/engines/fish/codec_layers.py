"""The codec's convolutions, rewritten to run piece by piece.

Every layer of fish-speech's codec is causal: a sample depends on what came before it, never on what comes after. So a
recording of any length can go through in short pieces, if each convolution remembers the last inputs of the
piece before; the result is that of one long run, the memory is that of one piece, and what pads the end of a row
can't reach its kept samples.

The layers here are made from a shape (codec_shape.py) and the weights of that name, and compute what fish-speech's
modules do in a form that is cheaper on every device:

* activations are (rows, channels, 1, time) in channels-last memory, so that a convolution needs no reordering
  of its input and the per-channel operations run along memory;
* the weight norm is multiplied out once;
* a transposed convolution of stride s, whose kernel is a whole number of strides, is an ordinary one that gives s times
  the channels, each time step's outputs already lying in time order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.engines.fish.codec_shape import (
    ConvNextShape,
    ConvolutionShape,
    LayerShape,
    ResidualShape,
    SnakeShape,
)

Memory = dict[int, Tensor]
"""What the convolutions remember of a run, by the position of the layer in its chain; starts empty."""


def to_channels_last(x: Tensor) -> Tensor:
    """(rows, channels, time) -> (rows, channels, 1, time) in channels-last memory."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Source:
    """Where layers take their weights from: tensors by name, mapped from the file; and where to and how."""

    weights: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype

    def exact(self, name: str) -> Tensor:
        """float32, on the device."""
        return self.weights[name].detach().to(device=self.device, dtype=torch.float32)

    def take(self, name: str) -> Tensor:
        return self.weights[name].detach().to(device=self.device, dtype=self.dtype)

    def normed(self, at: str) -> tuple[Tensor, Tensor | None]:
        """A convolution's weight in float32, and by what it has to be multiplied, if by anything: a weight norm's
        direction, and its magnitude over the direction's length, (first dimension, 1, 1)."""
        for direction, magnitude in (
            ("parametrizations.weight.original1", "parametrizations.weight.original0"),
            ("weight_v", "weight_g"),
        ):
            if f"{at}.{direction}" in self.weights:
                weight = self.exact(f"{at}.{direction}")
                length = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
                return weight, self.exact(f"{at}.{magnitude}") / length
        return self.exact(f"{at}.weight"), None

    def multiplied(self, at: str) -> Tensor:
        """A convolution's weight in float32."""
        weight, factor = self.normed(at)
        return weight if factor is None else weight * factor


class Layer:
    """One step of a chain. ``rate`` is how many outputs it gives for an input, as (up, down)."""

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        raise NotImplementedError


class Convolution(Layer):
    """A causal convolution. Input (rows, in, 1, time), output (rows, out, 1, time / stride); the time of each piece
    must be a multiple of the stride."""

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        """``weight``: (out, in / groups, 1, kernel) in channels-last memory, ``bias``: (out,)."""
        self._weight = weight
        self._bias = bias
        self._stride = stride
        self._dilation = dilation
        self._groups = groups
        self._context = (weight.shape[3] - 1) * dilation + 1 - stride
        """Inputs before the piece that its first output needs."""

    @classmethod
    def of(cls, shape: ConvolutionShape, source: Source) -> Convolution:
        weight, factor = source.normed(shape.at)
        placed = _channels_last(weight.shape[0], weight.shape[1], weight.shape[2], source)
        _multiply(weight, factor, placed[:, :, 0])
        return cls(
            placed,
            source.take(f"{shape.at}.bias"),
            stride=shape.stride,
            dilation=shape.dilation,
            groups=shape.groups,
        )

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        if self._context > 0:
            x = remember(x, self._context, id(self), memory)
        return functional.conv2d(
            x, self._weight, self._bias, stride=(1, self._stride), dilation=(1, self._dilation), groups=self._groups
        )


def _channels_last(outputs: int, inputs: int, kernel: int, source: Source) -> Tensor:
    """Room for a weight: (outputs, inputs, 1, kernel) in channels-last memory."""
    return torch.empty(
        (outputs, inputs, 1, kernel), dtype=source.dtype, device=source.device, memory_format=torch.channels_last
    )


def _multiply(weight: Tensor, factor: Tensor | None, target: Tensor) -> None:
    """target = weight × factor, in one pass: rounded to the target's precision as it is written there."""
    if factor is None:
        target.copy_(weight)
    else:
        torch.mul(weight, factor, out=target)


def remember(x: Tensor, context: int, key: int, memory: Memory) -> Tensor:
    """``x`` with the last ``context`` inputs of the piece before in front (zeros at the start); keeps the last ones
    of this piece. Rows that have ended since are dropped from the end."""
    past = memory.get(key)
    if past is None:
        past = x.new_zeros((x.shape[0], x.shape[1], 1, context))
    x = torch.cat((past[: x.shape[0]], x), dim=3)
    # A copy: a view would keep the whole piece alive.
    memory[key] = x[..., x.shape[3] - context :].clone(memory_format=torch.channels_last)
    return x


class Upsampling(Layer):
    """A causal transposed convolution. Input (rows, in, 1, time), output (rows, out, 1, time * stride)."""

    def __init__(self, shape: ConvolutionShape, source: Source) -> None:
        weight, factor = source.normed(shape.at)
        inputs, self._outputs, kernel = weight.shape
        self._stride = shape.stride
        if kernel % self._stride or shape.groups != 1 or shape.dilation != 1:
            raise ValueError("a transposed convolution must have a kernel of whole strides, one group and no dilation")
        # Output t * stride + j sees input t through tap j, input t - 1 through tap stride + j, and so on: taps in
        # falling age are a kernel, (j, out) are its outputs.
        taps = kernel // self._stride
        placed = _channels_last(self._stride * self._outputs, inputs, taps, source)
        for tap in range(taps):
            block = weight[:, :, tap * self._stride : (tap + 1) * self._stride]  # (inputs, out, j)
            target = placed[:, :, 0, taps - 1 - tap].view(self._stride, self._outputs, inputs)
            _multiply(block, factor, target.permute(2, 1, 0))
        self._convolution = Convolution(placed, source.take(f"{shape.at}.bias").repeat(self._stride))

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        y = self._convolution(x, memory)
        # (rows, stride * out, 1, time), channels last: in memory (rows, time, stride, out).
        rows, _, _, time = y.shape
        y = y.permute(0, 2, 3, 1).reshape(rows, 1, time * self._stride, self._outputs)
        return y.permute(0, 3, 1, 2)


class Snake(Layer):
    """x + sin²(alpha x) / alpha, alpha by channel (Ziyin et al., 2020, "Neural networks fail to learn periodic
    functions and how to fix it"; the 1e-9 is stock's)."""

    def __init__(self, shape: SnakeShape, source: Source) -> None:
        alpha = source.exact(f"{shape.at}.alpha")[..., None]
        self._alpha = alpha.to(source.dtype)
        self._weight = (alpha + 1e-9).reciprocal().to(source.dtype)

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        sine = (x * self._alpha).sin_()
        return torch.addcmul(x, sine, sine * self._weight)


class Residual(Layer):
    """x + chain(x)."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = tuple(layers)

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        y = x
        for layer in self._layers:
            y = layer(y, memory)
        return y.add_(x)


class ConvNext(Layer):
    """The quantizer's ConvNeXt block: a depthwise convolution, then two linear layers by time step."""

    def __init__(self, shape: ConvNextShape, source: Source) -> None:
        at = shape.at
        self._depthwise = Convolution.of(shape.depthwise, source)
        self._norm = (source.take(f"{at}.norm.weight"), source.take(f"{at}.norm.bias"))
        self._first = (source.take(f"{at}.pwconv1.weight"), source.take(f"{at}.pwconv1.bias"))
        gamma = source.exact(f"{at}.gamma")
        self._second = (
            (source.exact(f"{at}.pwconv2.weight") * gamma[:, None]).to(source.dtype),
            (source.exact(f"{at}.pwconv2.bias") * gamma).to(source.dtype),
        )

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        y = self._depthwise(x, memory).permute(0, 2, 3, 1)  # (rows, 1, time, channels)
        weight, bias = self._norm
        y = functional.layer_norm(y, weight.shape, weight, bias, 1e-6)  # stock's own epsilon
        y = functional.linear(functional.gelu(functional.linear(y, *self._first)), *self._second)
        return y.permute(0, 3, 1, 2) + x


class Tanh(Layer):
    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        return x.tanh_()


def layer_of(shape: LayerShape, source: Source) -> Layer:
    """The layer of a shape.

    Raises:
        ValueError: it can't be one here.
    """
    if isinstance(shape, ConvolutionShape):
        return Upsampling(shape, source) if shape.transposed else Convolution.of(shape, source)
    if isinstance(shape, SnakeShape):
        return Snake(shape, source)
    if isinstance(shape, ResidualShape):
        return Residual(layer_of(part, source) for part in shape.layers)
    if isinstance(shape, ConvNextShape):
        return ConvNext(shape, source)
    return Tanh()


def run(layers: Iterable[Layer], x: Tensor, memory: Memory) -> Tensor:
    """One piece through the chain."""
    for layer in layers:
        x = layer(x, memory)
    return x

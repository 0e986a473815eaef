"""The codec's convolutions, rewritten to run piece by piece.

Every layer of fish-speech's codec is causal: a sample depends on what came before it, never on what comes after. So a
recording of any length can go through in short pieces, if each convolution remembers the last inputs of the
piece before; the result is that of one long run, the memory is that of one piece, and what pads the end of a row
can't reach its kept samples.

The layers here are made from the weights of the stock modules and compute the same function in a form that is
cheaper on every device:

* activations are (rows, channels, 1, time) in channels-last memory, so that a convolution needs no reordering
  of its input and the per-channel operations run along memory;
* the weight norm is multiplied out once;
* a transposed convolution of stride s, whose kernel is a whole number of strides, is an ordinary one that gives s times
  the channels, each time step's outputs already lying in time order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Memory = dict[int, Tensor]
"""What the convolutions remember of a run, by the position of the layer in its chain; starts empty."""


def to_channels_last(x: Tensor) -> Tensor:
    """(rows, channels, time) -> (rows, channels, 1, time) in channels-last memory."""
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def plain_weight(layer: Any) -> Tensor:
    """The weight of a convolution in float32, its weight norm (either of torch's two kinds) multiplied out."""
    magnitude: Tensor
    direction: Tensor
    parametrizations = getattr(layer, "parametrizations", None)
    if parametrizations is not None:
        magnitude, direction = parametrizations.weight.original0, parametrizations.weight.original1
    elif hasattr(layer, "weight_g"):
        magnitude, direction = layer.weight_g, layer.weight_v
    else:
        weight: Tensor = layer.weight.detach().float()
        return weight
    direction = direction.detach().float()
    norm: Tensor = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
    return direction * (magnitude.detach().float() / norm)


class Layer:
    """One step of a chain. ``rate`` is how many outputs it gives for an input, as (up, down)."""

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        raise NotImplementedError


class Convolution(Layer):
    """A causal convolution. Input (rows, in, 1, time), output (rows, out, 1, time / stride); the time of each piece
    must be a multiple of the stride."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        self._weight = to_channels_last_weight(weight).to(device=device, dtype=dtype)
        self._bias = None if bias is None else bias.detach().to(device=device, dtype=dtype)
        self._stride = stride
        self._dilation = dilation
        self._groups = groups
        self._context = (weight.shape[2] - 1) * dilation + 1 - stride
        """Inputs before the piece that its first output needs."""

    @classmethod
    def of(cls, layer: nn.Conv1d, device: torch.device, dtype: torch.dtype) -> Convolution:
        return cls(
            plain_weight(layer),
            layer.bias,
            device,
            dtype,
            stride=layer.stride[0],
            dilation=layer.dilation[0],
            groups=layer.groups,
        )

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        if self._context > 0:
            x = remember(x, self._context, id(self), memory)
        return functional.conv2d(
            x, self._weight, self._bias, stride=(1, self._stride), dilation=(1, self._dilation), groups=self._groups
        )


def to_channels_last_weight(weight: Tensor) -> Tensor:
    """(out, in, kernel) -> (out, in, 1, kernel) in channels-last memory."""
    return weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)


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

    def __init__(self, layer: nn.ConvTranspose1d, device: torch.device, dtype: torch.dtype) -> None:
        weight = plain_weight(layer)
        inputs, self._outputs, kernel = weight.shape
        self._stride = layer.stride[0]
        if kernel % self._stride or layer.groups != 1 or layer.dilation[0] != 1:
            raise ValueError("a transposed convolution must have a kernel of whole strides, one group and no dilation")
        # Output t * stride + j sees input t through tap j, input t - 1 through tap stride + j, and so on: taps in
        # falling age are a kernel, (j, out) are its outputs.
        taps = weight.reshape(inputs, self._outputs, kernel // self._stride, self._stride).flip(2)
        weight = taps.permute(3, 1, 0, 2).reshape(self._stride * self._outputs, inputs, kernel // self._stride)
        bias = None if layer.bias is None else layer.bias.detach().repeat(self._stride)
        self._convolution = Convolution(weight, bias, device, dtype)

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        y = self._convolution(x, memory)
        # (rows, stride * out, 1, time), channels last: in memory (rows, time, stride, out).
        rows, _, _, time = y.shape
        y = y.permute(0, 2, 3, 1).reshape(rows, 1, time * self._stride, self._outputs)
        return y.permute(0, 3, 1, 2)


class Snake(Layer):
    """x + sin²(alpha x) / alpha, alpha by channel (Ziyin et al., 2020, "Neural networks fail to learn periodic
    functions and how to fix it"; the 1e-9 is stock's)."""

    def __init__(self, layer: Any, device: torch.device, dtype: torch.dtype) -> None:
        alpha = layer.alpha.detach().float()[..., None]
        self._alpha = alpha.to(device=device, dtype=dtype)
        self._weight = (alpha + 1e-9).reciprocal().to(device=device, dtype=dtype)

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

    def __init__(self, block: Any, device: torch.device, dtype: torch.dtype) -> None:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device=device, dtype=dtype)

        self._depthwise = Convolution.of(block.dwconv.conv, device, dtype)
        self._norm = (moved(block.norm.weight), moved(block.norm.bias), float(block.norm.eps))
        self._first = (moved(block.pwconv1.weight), moved(block.pwconv1.bias))
        gamma = block.gamma if block.gamma is not None else torch.ones(block.pwconv2.out_features)
        gamma = gamma.detach().float()
        self._second = (
            moved(block.pwconv2.weight.detach().float() * gamma[:, None]),
            moved(block.pwconv2.bias.detach().float() * gamma),
        )

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        y = self._depthwise(x, memory).permute(0, 2, 3, 1)  # (rows, 1, time, channels)
        weight, bias, epsilon = self._norm
        y = functional.layer_norm(y, weight.shape, weight, bias, epsilon)
        y = functional.linear(functional.gelu(functional.linear(y, *self._first)), *self._second)
        return y.permute(0, 3, 1, 2) + x


class Tanh(Layer):
    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        return x.tanh_()


def flattened(module: Any) -> list[Any]:
    """The stock modules that ``module`` runs one after another, its containers opened."""
    kind = type(module).__name__
    if kind == "Sequential":
        return [leaf for child in module for leaf in flattened(child)]
    if kind in ("Encoder", "EncoderBlock", "DecoderBlock"):
        return flattened(module.block)
    if kind == "Decoder":
        return flattened(module.model)
    return [] if kind == "Identity" else [module]


def layer_of(module: Any, device: torch.device, dtype: torch.dtype) -> Layer:
    """A stock module as a layer.

    Raises:
        ValueError: it is not known here (a transformer is none: it can't run piece by piece).
    """
    kind = type(module).__name__
    if kind == "CausalConvNet":
        return Convolution.of(module.conv, device, dtype)
    if kind == "CausalTransConvNet":
        return Upsampling(module.conv, device, dtype)
    if kind == "Snake1d":
        return Snake(module, device, dtype)
    if kind == "ResidualUnit":
        return Residual(layer_of(leaf, device, dtype) for leaf in flattened(module.block))
    if kind == "ConvNeXtBlock":
        return ConvNext(module, device, dtype)
    if kind == "Tanh":
        return Tanh()
    raise ValueError(f"a {kind} is not known as a layer of a causal codec")


def run(layers: Iterable[Layer], x: Tensor, memory: Memory) -> Tensor:
    """One piece through the chain."""
    for layer in layers:
        x = layer(x, memory)
    return x

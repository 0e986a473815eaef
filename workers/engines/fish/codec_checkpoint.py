"""Reads a codec from a checkpoint folder: its shape, its weights, and what makes it that codec.

A folder's files are data. The weights are read as tensors alone (``weights_only``), and nothing in them can run code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workers.engine import EngineError
from workers.engines.fish import weight_file
from workers.engines.fish.codec_shape import DESCRIPTION_NAME, CodecShape, parse_description, read_description

WEIGHTS_NAME = "codec.pth"

_CODE = "bad_checkpoint"

_OLD_NAMES = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
"""torch's earlier names for the parts of a weight norm, and its present ones; stock's classes use both, and read the
earlier ones in place of the present."""


@dataclass(frozen=True)
class CodecState:
    """A codec's weights by name, mapped from the file at ``path`` and read when first used, and its identity: a short
    hash of the description and the weights."""

    shape: CodecShape
    weights: dict[str, Tensor]
    identity: str
    path: str


def read_codec(folder: Path) -> CodecState:
    """The codec of the folder.

    Raises:
        EngineError: "bad_checkpoint", with what is missing or does not fit and how to mend it.
    """
    description = read_description(folder)
    shape = parse_description(description)
    path = folder / WEIGHTS_NAME
    weights = _read_weights(path)
    _rename(weights, shape)
    _check(weights, shape, path)
    return CodecState(shape, weights, _identity(description, path), str(path))


def _read_weights(path: Path) -> dict[str, Tensor]:
    state = weight_file.read(str(path), ("module.",))
    # A training checkpoint has the codec as its generator, beside discriminators.
    if any("generator." in name for name in state):
        state = {name.replace("generator.", ""): value for name, value in state.items() if "generator." in name}
    return dict(state)


def _rename(weights: dict[str, Tensor], shape: CodecShape) -> None:
    expected = shape.weights()
    for name in list(weights):
        for old, new in _OLD_NAMES.items():
            if name.endswith(old) and name not in expected:
                weights[name.removesuffix(old) + new] = weights.pop(name)


def _check(weights: dict[str, Tensor], shape: CodecShape, path: Path) -> None:
    expected, tables = shape.weights(), shape.tables()
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, not {size}"
        for name, size in {**expected, **tables}.items()
        if name in weights and tuple(weights[name].shape) != size
    ]
    if wrong:
        raise EngineError(
            _CODE,
            f"{path} is the codec of another description, whose {DESCRIPTION_NAME} must lie beside it "
            f"({'; '.join(wrong[:2])})",
        )
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected and name not in tables]
    if missing or unexpected:
        raise EngineError(
            _CODE,
            f"{path} does not fit its description: {_some(missing)} missing, {_some(unexpected)} not known; "
            f"is it the codec of this model, and does its {DESCRIPTION_NAME} lie beside it?",
        )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _identity(description: str, path: Path) -> str:
    """A short hash of the codec by content: by the checksums in its file, where it has them (see weight_file)."""
    digest = hashlib.sha256(description.encode("utf-8"))
    weight_file.hash_content(digest, str(path), ordered=False)
    return digest.hexdigest()[:16]

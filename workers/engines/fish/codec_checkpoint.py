"""Reads a codec from a checkpoint folder: its description, its weights, and what makes it that codec.

A folder's files are data. The description may name only the codec's own classes, the weights are read as tensors alone
(``weights_only``), and nothing in either can run code.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.engine import EngineError
from workers.engines.fish.torchaudio_stand_in import torchaudio_importable

WEIGHTS_NAME = "codec.pth"
DESCRIPTION_NAME = "codec.yaml"
_DESCRIPTION_BYTES = 64 * 1024

_ARGUMENTS = "fish_speech.models.dac.modded_dac.ModelArgs"
_ALLOWED_TARGETS = frozenset(
    {
        "fish_speech.models.dac.modded_dac.DAC",
        _ARGUMENTS,
        "fish_speech.models.dac.modded_dac.WindowLimitedTransformer",
        "fish_speech.models.dac.rvq.DownsampleResidualVectorQuantize",
    }
)
"""hydra calls what a description names; nothing else may be named."""

_TABLES = (".freqs_cis", ".causal_mask")
"""What stock computes when it builds the model, and so does not miss in a file."""

_CODE = "bad_checkpoint"


def build_codec(folder: Path) -> tuple[Any, str]:
    """The stock DAC of the folder with its weights (float32, on the CPU, mapped from the file and read when
    first used), and the codec's identity: a short hash of the description and the weights.

    Raises:
        EngineError: "bad_checkpoint", with what is missing or does not fit and how to mend it.
    """
    description = _read_description(folder)
    model = instantiate_codec(description)
    weights_path = folder / WEIGHTS_NAME
    state = _read_weights(weights_path)
    assign_weights(model, state, weights_path)
    return model.eval(), _identity(description, weights_path)


def packaged_description() -> str:
    """The description of fish-speech's own codec, as it is packaged."""
    configs = importlib.resources.files("fish_speech").joinpath("configs")
    return configs.joinpath("modded_dac_vq.yaml").read_text(encoding="utf-8")


def _read_description(folder: Path) -> str:
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


def instantiate_codec(description: str) -> Any:
    """The stock DAC that a description (YAML) says: its weights without values, its transformers' tables empty.

    Raises:
        EngineError: the description is not one of a codec, or names a class that it may not name.
    """
    with torchaudio_importable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its libraries use is deprecated here and there
        from fish_speech.models.dac.modded_dac import DAC
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    try:
        settings = OmegaConf.to_container(OmegaConf.create(description), resolve=False)
    except Exception as error:  # yaml's and OmegaConf's many
        raise EngineError(_CODE, f"the codec's description does not parse: {_first_line(error)}") from error
    _check_targets(settings)
    lengths = _shorten_tables(settings)
    try:
        with _no_initial_values(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weight_norm's deprecation, once for each layer
            model = instantiate(settings)
    except Exception as error:
        raise EngineError(_CODE, f"no codec can be built from its description: {_first_line(error, 3)}") from error
    if not isinstance(model, DAC):
        raise EngineError(_CODE, "the codec's description must have fish_speech's DAC as its _target_")
    for transformer in transformers_of(model).values():
        transformer.config.block_size = lengths[transformer.config.block_size]
        transformer.freqs_cis = transformer.causal_mask = None
    return model


def transformers_of(model: Any) -> dict[str, Any]:
    """The transformers of a stock codec, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "freqs_cis")}


def _shorten_tables(settings: object, found: dict[int, int] | None = None) -> dict[int, int]:
    """Gives each length of a transformer's tables (block_size) a small stand-in; the lengths by their stand-ins.

    Stock builds each transformer with a T x T mask for the longest input, 270 MB for the packaged encoder; we make
    the masks that we need.
    """
    found = {} if found is None else found
    if isinstance(settings, dict):
        if settings.get("_target_") == _ARGUMENTS:
            length = settings.get("block_size", 2048)
            if not isinstance(length, int) or length < 1:
                raise EngineError(_CODE, f"the codec's description has {length!r} as a block_size")
            stand_in = next((key for key, value in found.items() if value == length), len(found) + 1)
            found[stand_in] = length
            settings["block_size"] = stand_in
        for value in settings.values():
            _shorten_tables(value, found)
    elif isinstance(settings, list):
        for value in settings:
            _shorten_tables(value, found)
    return found


@contextmanager
def _no_initial_values() -> Iterator[None]:
    """While it lasts torch's initialisers do nothing: drawing numbers for 390 million weights that are about to be
    replaced takes longer than reading them."""
    init = torch.nn.init
    kept = {name: getattr(init, name) for name in dir(init) if name.endswith("_") and not name.startswith("_")}
    try:
        for name in kept:
            setattr(init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in kept.items():
            setattr(init, name, function)


def _check_targets(settings: object) -> None:
    """Raises EngineError where the description says more to hydra than which of the codec's classes to build."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "_target_":
                if value not in _ALLOWED_TARGETS:
                    raise EngineError(
                        _CODE,
                        f"the codec's description names {value!r}; only these may be: "
                        + ", ".join(sorted(_ALLOWED_TARGETS)),
                    )
            elif isinstance(key, str) and key.startswith("_") and key != "_partial_":
                raise EngineError(_CODE, f"the codec's description has the key {key!r}, which is not allowed")
            _check_targets(value)
    elif isinstance(settings, list):
        for value in settings:
            _check_targets(value)
    elif isinstance(settings, str) and "${" in settings:
        raise EngineError(_CODE, f"the codec's description has an interpolation, {settings!r}, which is not allowed")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError as error:
        raise EngineError(_CODE, f"{path} is missing; copy the checkpoint's {WEIGHTS_NAME} there") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, ValueError, OSError ... for a broken file
        raise EngineError(
            _CODE, f"{path} can't be read as weights; is it copied whole? ({_first_line(error)})"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise EngineError(_CODE, f"{path} holds something other than named weights")
    # A training checkpoint has the codec as its generator, beside discriminators.
    if any("generator." in name for name in state):
        state = {name.replace("generator.", ""): value for name, value in state.items() if "generator." in name}
    return state


def assign_weights(model: Any, state: dict[str, Tensor], path: Path) -> None:
    """Gives a codec of ``instantiate_codec`` its weights, by reference. ``path`` is where they come from.

    Raises:
        EngineError: weights are missing, too many, or of another shape.
    """
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in state.items()
        if not name.endswith(_TABLES)
    }
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise EngineError(
            _CODE,
            f"{path} is the codec of another description, whose {DESCRIPTION_NAME} must lie beside it "
            f"({_first_line(error, 2)})",
        ) from error
    if missing or unexpected:
        raise EngineError(
            _CODE,
            f"{path} does not fit its description: {_some(missing)} missing, {_some(unexpected)} not known; "
            f"is it the codec of this model, and does its {DESCRIPTION_NAME} lie beside it?",
        )
    from fish_speech.models.dac.modded_dac import precompute_freqs_cis

    for name, transformer in transformers_of(model).items():
        settings = transformer.config
        angles = precompute_freqs_cis(settings.block_size, settings.head_dim, settings.rope_base)
        stored = state.get(f"{name}.freqs_cis")
        if stored is not None and stored.shape != angles.shape:
            raise EngineError(_CODE, f"{path}: {name}.freqs_cis is not of the shape that the description says")
        transformer.freqs_cis = angles if stored is None else stored


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _first_line(error: BaseException, lines: int = 1) -> str:
    return " ".join(part.strip() for part in str(error).splitlines()[:lines]) or type(error).__name__


def _identity(description: str, path: Path) -> str:
    """A short hash of the codec by content.

    torch's file is a zip archive whose directory has the length and CRC-32 of each tensor: hashing that tells
    codecs apart without reading a gigabyte. Where the file was written without them it is read whole.
    """
    digest = hashlib.sha256(description.encode("utf-8"))
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                # The folder inside the archive is named after the file; renaming that changes no weight.
                name = entry.filename.partition("/")[2]
                digest.update(f"{name}\0{entry.file_size}\0{entry.CRC}\0".encode())
            has_checksums = any(entry.CRC for entry in entries if "/data/" in entry.filename)
    except zipfile.BadZipFile:
        has_checksums = False
    if not has_checksums:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]

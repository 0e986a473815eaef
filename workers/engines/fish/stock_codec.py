"""fish-speech's own codec, of its own classes: what ours is made random weights for, and compared with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from workers.engines.fish.codec_shape import parse_description
from workers.engines.fish.torchaudio_stand_in import torchaudio_importable


def import_classes() -> None:
    """Import what ``stock_codec`` needs, which takes a second."""
    with torchaudio_importable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its libraries use is deprecated here and there
        import fish_speech.models.dac.modded_dac
        import fish_speech.models.dac.rvq  # noqa: F401
        import hydra.utils  # noqa: F401


def stock_codec(description: str) -> Any:
    """The DAC that a description (YAML) says, as fish-speech builds it, its weights random.

    Raises:
        EngineError: "bad_checkpoint": the description is not one of a codec.
    """
    parse_description(description)  # hydra calls what a description names: only the codec's classes may be named
    import_classes()
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm's deprecation, once for each layer
        return instantiate(OmegaConf.create(description))


@contextmanager
def no_initial_values() -> Iterator[None]:
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

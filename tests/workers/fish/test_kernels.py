"""The GPU kernels compute what the plain decoder computes: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")
if importlib.util.find_spec("triton") is None:
    pytest.skip("there is no triton", allow_module_level=True)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
    if tuple(int(part) for part in np.__version__.split(".")[:2]) > (2, 2):
        pytest.skip("Triton's interpreter takes arrays for numbers, which this numpy refuses", allow_module_level=True)

from workers.engines.fish import decoder, fused, rows  # noqa: E402
from workers.engines.fish import weights as weights_module  # noqa: E402
from workers.engines.fish.decoder import Cache, State, Tables  # noqa: E402
from workers.engines.fish.prompt import Prompter, read_tokenizer  # noqa: E402
from workers.engines.fish.rows import Ended, Prompt, Rows, Start  # noqa: E402
from workers.engines.fish.shape import read_shape  # noqa: E402
from workers.engines.fish.weights import Weights, read_weights  # noqa: E402

pytestmark = [
    pytest.mark.timeout(600),  # the interpreter is slow
    pytest.mark.filterwarnings("ignore:Conversion of an array"),  # and its
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PRECISION = torch.float16 if DEVICE.type == "cuda" else torch.float32
"""In float32, which GPUs' matrix units do not compute in, no draw is flipped by rounding."""


@pytest.fixture(scope="module")
def weights(model_folder: Path) -> Weights:
    folder = str(model_folder)
    shape = read_shape(folder)
    prompter = Prompter(read_tokenizer(folder), shape, folder)
    semantic = range(prompter.semantic_begin, prompter.semantic_begin + 4096)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_module, "_can_pack", lambda _: False)  # the kernels read weights as they are
        return read_weights(folder, shape, semantic, prompter.end, DEVICE, PRECISION)


@pytest.fixture(scope="module")
def step(weights: Weights) -> fused.FusedStep:
    return fused.FusedStep(weights, Tables(weights), early=DEVICE.type == "cuda")


def test_half_precision_and_widths_of_powers_of_two_are_supported(weights: Weights) -> None:
    """The kernels take such models as the released one, and no others."""
    assert fused.supports(replace(weights, precision=torch.bfloat16))
    assert not fused.supports(replace(weights, precision=torch.float32))
    odd = replace(weights.shape, fast=replace(weights.shape.fast, width=48))
    assert not fused.supports(replace(weights, precision=torch.bfloat16, shape=odd))


@pytest.mark.parametrize("count", [1, fused.FEW_ROWS, fused.FEW_ROWS + 2])
def test_steps_write_the_same_and_draw_the_same(step: fused.FusedStep, count: int) -> None:
    """Alone, by few and by more rows: keys and values deviate by no more than half precision does, and codes are drawn
    with the same noise, penalties, top-p and temperature."""
    with torch.inference_mode():
        deviation, same, drawn = step._check(count)
    assert deviation < 2e-3
    assert same >= 0.9 * drawn


def test_the_check_sees_a_wrong_kernel(step: fused.FusedStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does not read its rows' positions right is refused, and so is one that does not run at all."""
    usual = fused.FusedStep.__call__

    def off_by_one(self: Any, cache: Cache, state: State, count: int) -> None:
        state.position += 1
        usual(self, cache, state, count)
        state.position -= 1

    with torch.inference_mode():
        assert step.agrees()
        monkeypatch.setattr(fused.FusedStep, "__call__", off_by_one)
        assert not step.agrees()
        monkeypatch.setattr(fused.FusedStep, "__call__", lambda *_: 1 / 0)
        assert not step.agrees()


def test_whole_rows_say_the_same(weights: Weights, step: fused.FusedStep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows from start to end, with limits reached and a window that fills up: in float32 every frame is the same, in
    half precision the first."""

    def spoken() -> dict[int, Ended]:
        generator = np.random.default_rng(0)
        starts = []
        for key in range(2):
            tokens = np.zeros((11, 20 + 7 * key), np.int64)
            tokens[0] = generator.integers(0, 256, 20 + 7 * key)
            starts.append(Start(key, Prompt(tokens[:, :15]), tokens[:, 15:], key, 20, 0.7, 0.8, 1.3, mask_end=key > 0))
        ended: dict[int, Ended] = {}
        batch = Rows(weights, 3, 1 << 16, 64)
        monkeypatch.setattr(batch, "_graphs", None)
        with torch.inference_mode():
            batch.start(starts)
            while len(batch.batch):
                batch.make_room()
                ended.update({row.key: row for row in batch.advance()})
        return ended

    plain = spoken()

    def instead(_weights: Any, _tables: Any, cache: Cache, state: State, advancing: Any, _length: int) -> None:
        step(cache, state, len(advancing))

    monkeypatch.setattr(rows, "step", instead)
    ours = spoken()
    for key, one in plain.items():
        frames = min(one.codes.shape[1], ours[key].codes.shape[1])
        same = (one.codes[:, :frames] == ours[key].codes[:, :frames]).all(axis=0)
        assert same[:1].all() if DEVICE.type == "cuda" else same.all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the interpreter computes with numpy, which tells
def test_a_row_of_nan_ends_unsound_and_alone(weights: Weights, step: fused.FusedStep) -> None:
    """As decoder.step does it: the flag of that row falls, it goes on no further, and the others' stay."""
    caches = [Cache(weights, 3, 64) for _ in range(2)]
    states = [State.empty(weights, 3, 32) for _ in range(2)]
    for cache, state in zip(caches, states, strict=True):
        cache.values[0][1, :, 0] = float("nan")
        state.newest[:, 0] = weights.semantic_begin
        state.position.fill_(1)
        state.limit.fill_(32)
        state.active.copy_(torch.tensor([True, True, False]))
    with torch.inference_mode():
        everyone = torch.ones(3, dtype=torch.bool, device=weights.device)
        decoder.step(weights, Tables(weights), caches[0], states[0], everyone, 64)
        step(caches[1], states[1], 3)
    for state in states:
        assert state.sound.tolist() == [True, False, True]
        assert state.active.tolist() == [True, False, False]

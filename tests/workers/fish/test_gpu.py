"""What can be seen on a GPU alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from workers.engines.fish.prompt import Prompter, read_tokenizer  # noqa: E402
from workers.engines.fish.rows import Prompt, Rows, Start  # noqa: E402
from workers.engines.fish.shape import read_shape  # noqa: E402
from workers.engines.fish.weights import read_weights  # noqa: E402


@pytest.mark.timeout(300)
def test_a_step_waits_for_the_device_once(model_folder: Path) -> None:
    """For the event of the step before, and for nothing else: whatever would wait beside is an error here."""
    with torch.inference_mode():
        _step_without_waiting(str(model_folder))


def _step_without_waiting(folder: str) -> None:
    device = torch.device("cuda:0")
    shape = read_shape(folder)
    prompter = Prompter(read_tokenizer(folder), shape, folder)
    semantic = range(prompter.semantic_begin, prompter.semantic_begin + 4096)
    weights = read_weights(folder, shape, semantic, prompter.end, device, torch.bfloat16)
    rows = Rows(weights, 4, 1 << 14, 200)
    prompt = Prompt(prompter.prefix([("hello", np.ones((10, 30), np.int64))]))
    suffix = prompter.suffix("a line")
    rows.start([Start(key, prompt, suffix, key, 100, 0.7, 0.7, 1.2, mask_end=True) for key in range(4)])
    for _ in range(5):
        rows.make_room()
        rows.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            rows.make_room()
            assert rows.advance() == []
    finally:
        torch.cuda.set_sync_debug_mode("default")

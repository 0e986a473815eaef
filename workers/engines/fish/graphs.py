"""Steps on a GPU: recorded once for each number of rows, then started with one call.

A step is hundreds of kernels of a few microseconds; starting them one by one from Python takes longer than running
them. The first step of a kind is run as it is, which also compiles what has to be compiled; the second is recorded
into a CUDA graph, and that is replayed from then on. Where recording fails steps go on being run as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING

import torch

from workers.engines.fish import decoder, machine
from workers.engines.fish.decoder import Cache, State, Tables
from workers.engines.fish.weights import Weights

if TYPE_CHECKING:
    from workers.engines.fish.fused import FusedStep

_log = logging.getLogger(__name__)

ROW_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Numbers of rows that are recorded; a step of another number is padded to the next one."""

HOPPER = (9, 0)
"""The first GPUs on which a kernel can start before the one before it has ended."""


class GraphedSteps:
    """Runs decoder.step, or its fused equal, for all rows at once, recorded. For one cache and state at a time: after
    either has been laid out anew, ``forget`` has to be called."""

    def __init__(self, weights: Weights, tables: Tables) -> None:
        self._weights = weights
        self._tables = tables
        self._fused = _fused_step(weights, tables)
        self._recorded: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._recording = True
        self._everyone = torch.ones(len(tables.slots), dtype=torch.bool, device=weights.device)

    @property
    def fused(self) -> bool:
        """Whether the kernels of kernels.py do the work."""
        return self._fused is not None

    def forget(self) -> None:
        """Drop what was recorded, and its memory."""
        self._recorded = {}

    def __call__(self, cache: Cache, state: State, rows: int, length: int) -> None:
        """Speak one frame in each active row of the first ``rows``, attending over ``length`` positions."""
        kind = (rows, 0 if self.fused else length)
        if kind not in self._recorded or not self._recording:
            self._run(cache, state, rows, length)
            self._recorded[kind] = None
            return
        graph = self._recorded[kind]
        if graph is None:
            graph = self._record(cache, state, rows, length)
            if graph is None:
                self._run(cache, state, rows, length)
                return
            self._recorded[kind] = graph
        graph.replay()

    def _run(self, cache: Cache, state: State, rows: int, length: int) -> None:
        if self._fused is not None:
            self._fused(cache, state, rows)
        else:
            decoder.step(self._weights, self._tables, cache, state, self._everyone[:rows], length)

    def _record(self, cache: Cache, state: State, rows: int, length: int) -> torch.cuda.CUDAGraph | None:
        """The step as a graph, not run yet. All graphs share their memory: they never run at the same time."""
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._recorded.values() if other is not None), None)
        try:
            # The codec's thread goes on meanwhile, with a stream and allocations of its own.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._run(cache, state, rows, length)
        except Exception as error:
            if machine.is_out_of_memory(error):
                raise
            if self._fused is not None and self._fused.early:
                _log.info("kernels can't be recorded with an early start, they go without: %s", error)
                self._fused = self._fused.not_early()
                return self._record(cache, state, rows, length)
            _log.warning("steps can't be recorded here and are slower: %s: %s", type(error).__name__, error)
            self._recording = False
            return None
        return graph


def _fused_step(weights: Weights, tables: Tables) -> FusedStep | None:
    """The fused step, if this device, this torch and this model allow it, and it has been seen to be right."""
    if importlib.util.find_spec("triton") is None:
        _log.info("there is no triton: steps are run by torch's own kernels")
        return None
    from workers.engines.fish import fused

    if not fused.supports(weights):
        return None
    hopper = torch.cuda.get_device_capability(weights.device) >= HOPPER
    for early in (True, False) if hopper else (False,):
        step = fused.FusedStep(weights, tables, early=early)
        if step.agrees():
            return step
    return None

"""The device's side of the batch: caches, states, and the decoder run over them.

``batch.Batch`` decides who sits where; this carries it out. Nothing here knows what a segment is: a row starts from a
prompt and ends with codes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engines.fish import noise, sampler
from workers.engines.fish.batch import Batch, Row, StepPlan
from workers.engines.fish.decoder import Cache, State, Tables, prefill, step
from workers.engines.fish.graphs import ROW_COUNTS, GraphedSteps
from workers.engines.fish.prompt import Codes
from workers.engines.fish.weights import Weights

PREFILL_TOKENS = 2048
"""Tokens of one prefill call, padding included: bounds its activations."""

SHORTEST_LENGTH = 128

FINE_LENGTH = 32

ROOMY = 2048
"""Positions that are enough for almost all rows: a minute and a half of speech."""


@dataclass
class Prompt:
    """A speaker's part of the prompt: ``tokens``, int64 (1 + codebooks, P), and its keys and values once they have been
    computed, a cache of one slot and P positions."""

    tokens: Codes
    kept: Cache | None = None

    @property
    def positions(self) -> int:
        return int(self.tokens.shape[1])


@dataclass(frozen=True)
class Start:
    """A row to be: ``key`` is the caller's name for it, ``suffix`` int64 (1 + codebooks, at least 1) what follows the
    prompt, ``limit`` the most frames it may speak. The sampling parameters are rounded as stock rounds them."""

    key: int
    prompt: Prompt
    suffix: Codes
    seed: int
    limit: int
    temperature: float
    top_p: float
    repetition_penalty: float
    mask_end: bool = False

    @property
    def positions(self) -> int:
        """Tokens before the first frame."""
        return self.prompt.positions + int(self.suffix.shape[1])


@dataclass(frozen=True)
class Ended:
    """A row has ended. ``codes``: int64 (codebooks, frames); ``truncated``: the limit ended it, not the end token;
    ``sound``: false if the model's numbers became NaN or infinite, which ended it: its codes mean nothing."""

    key: int
    codes: Codes
    truncated: bool
    sound: bool = True


@dataclass
class _Pending:
    """What the device was asked to report after a run: ``active``, on the host, is filled once ``event`` has passed."""

    active: Tensor
    slots: dict[int, int]
    event: torch.cuda.Event | None = field(default=None)


class Rows:
    """Starts rows, advances all of them by a frame at a time, and hands out what has ended.

    A row's cache holds what comes after its speaker's prompt, which is read where it was computed. Two kinds of rows
    have a copy of their prompt at the beginning of their cache instead, and positions count from there: steady ones,
    whose sums may not depend on who else has the prompt, and those of a GPU without the kernel that finds prompts.

    Args:
        slots: the most rows there may be.
        tokens: how many tokens' keys and values the cache may hold; bounds rows × capacity.
        frames: the most frames that a row may speak.
        steady: see Batch: a row's arithmetic does not depend on the rows around it.
        prompt_tokens: how many tokens the prompts that rows read may have together.
    """

    def __init__(
        self,
        weights: Weights,
        slots: int,
        tokens: int,
        frames: int,
        *,
        steady: bool = False,
        prompt_tokens: int = sys.maxsize,
    ) -> None:
        self.weights = weights
        self.steady = steady
        self._token_budget = tokens
        self._prompt_budget = prompt_tokens
        self._frames = frames
        self._tables = Tables(weights)
        on_cpu = weights.device.type == "cpu"
        self._lengths = lengths(weights.shape.positions, steady=steady, fine=on_cpu)
        self._capacities = capacities(weights.shape.positions)
        self._pending: _Pending | None = None
        # Steady rows run steps one length after the other, which nothing records.
        recorded = weights.device.type == "cuda" and not steady
        self._graphs = GraphedSteps(weights, self._tables) if recorded else None
        self._sharing = not steady and (on_cpu or (self._graphs is not None and self._graphs.fused))
        self._layout(slots)

    def _layout(self, slots: int) -> None:
        self.batch = Batch(slots, self._lengths, ROW_COUNTS if self._graphs else (), steady=self.steady)
        self._prompts: dict[int, Prompt] = {}
        capacity = self._usual_capacity()
        self._state = State.empty(self.weights, slots, self._frames)
        self._cache = Cache(self.weights, self._rows_at(capacity), capacity)
        self._pending = None
        self._spoilt: set[int] = set()
        if self._graphs is not None:
            self._graphs.forget()

    def _usual_capacity(self) -> int:
        """What a row has at first. Where growing means recording steps anew, as much as the budget has for all of them,
        up to what few rows outgrow."""
        roomy = [size for size in self._capacities if size <= ROOMY and size * self.batch.slots <= self._token_budget]
        return roomy[-1] if roomy and self._graphs is not None else self._capacities[0]

    @property
    def slots(self) -> int:
        return self.batch.slots

    @property
    def prompts(self) -> list[Prompt]:
        """Those that rows read, each once."""
        return list({id(prompt): prompt for prompt in self._prompts.values()}.values())

    def _positions(self, start: Start) -> int:
        """Those that a row takes in its own cache before its first frame."""
        return int(start.suffix.shape[1]) if self._sharing else start.positions

    def fitting(self, starts: Sequence[Start]) -> int:
        """How many of them, from the first on, can start now."""
        capacity = self._cache.capacity if len(self.batch) else self._usual_capacity()
        prompts = {id(prompt): prompt.positions for prompt in self.prompts}
        for count, start in enumerate(starts):
            capacity = max(capacity, self._capacity_for(self._positions(start)))
            prompts[id(start.prompt)] = start.prompt.positions
            crowded = len(prompts) > 1 and sum(prompts.values()) > self._prompt_budget
            if crowded or len(self.batch) + count + 1 > self._rows_at(capacity):
                return count
        return len(starts)

    def start(self, starts: Sequence[Start]) -> None:
        """Join rows to the batch: prompts that have not been computed are, and the rest of the tokens is read. No more
        than are ``fitting``."""
        self._reserve(max(self._positions(start) for start in starts), len(self.batch) + len(starts))
        slots = []
        for start in starts:
            if start.prompt.kept is None and start.prompt.positions:
                start.prompt.kept = self._computed(start.prompt)
            first = self._positions(start) - 1
            slots.append(self.batch.join(Row(start.key, first, first + start.limit)))
            self._clean(slots[-1])
            if start.prompt.kept is None:
                continue
            if self._sharing:
                self._prompts[start.key] = start.prompt
                self._cache.share(slots[-1], start.prompt.kept)
            else:
                self._cache.copy(slots[-1], start.prompt.kept)
        texts = [start.suffix[:, :-1] for start in starts]
        befores = [self._positions(start) - start.suffix.shape[1] for start in starts]
        self._read(list(zip(slots, texts, befores, strict=True)))
        self._set_states(starts, slots)

    def _computed(self, prompt: Prompt) -> Cache:
        """The prompt's keys and values, read by itself, in a place of its own."""
        cache = Cache(self.weights, 1, prompt.positions)
        for at in range(0, prompt.positions, PREFILL_TOKENS):
            tokens = prompt.tokens[:, at : at + PREFILL_TOKENS]
            self._prefill(cache, [(0, tokens, at)], at + tokens.shape[1])
        return cache

    def _read(self, rows: list[tuple[int, Codes, int]]) -> None:
        """Prefill rows of (slot, tokens (1 + C, any), start), together where it pays and may be done."""
        rows = [row for row in rows if row[1].shape[1]]
        while rows:
            rows.sort(key=lambda row: row[1].shape[1])
            longest = min(rows[-1][1].shape[1], PREFILL_TOKENS)
            count = 1 if self.steady else max(1, PREFILL_TOKENS // longest)
            now, rows = rows[-count:], rows[:-count]
            parts = [(slot, tokens[:, :longest], at) for slot, tokens, at in now]
            covered = max(at for _, _, at in parts) + longest
            # One by one where padding would reach beyond the cache.
            for together in [parts] if covered <= self._cache.capacity else [[part] for part in parts]:
                covered = max(at for _, _, at in together) + max(tokens.shape[1] for _, tokens, _ in together)
                self._prefill(self._cache, together, min(self.batch.length_for(covered), self._cache.capacity))
            rows += [(slot, tokens[:, longest:], at + longest) for slot, tokens, at in now if tokens.shape[1] > longest]

    def _prefill(self, cache: Cache, rows: list[tuple[int, Codes, int]], length: int) -> None:
        size = max(tokens.shape[1] for _, tokens, _ in rows)
        padded = np.zeros((len(rows), size, rows[0][1].shape[0]), dtype=np.int64)
        for row, (_, tokens, _) in enumerate(rows):
            padded[row, : tokens.shape[1]] = tokens.T
        device = self.weights.device
        prefill(
            self.weights,
            self._tables,
            cache,
            [slot for slot, _, _ in rows],
            torch.from_numpy(padded).to(device),
            torch.tensor([at for _, _, at in rows], device=device),
            length,
        )

    def _set_states(self, starts: Sequence[Start], slots: list[int]) -> None:
        state, device = self._state, self.weights.device
        where = torch.tensor(slots, device=device)

        def whole(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        def real(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        state.newest[where] = torch.from_numpy(np.stack([start.suffix[:, -1] for start in starts])).to(device)
        state.position[where] = whole([self._positions(start) - 1 for start in starts])
        state.limit[where] = whole([start.limit for start in starts])
        state.keys[where] = whole([noise.seed_key(start.seed) for start in starts])
        state.temperature[where] = real([start.temperature for start in starts])
        state.top_p[where] = real([start.top_p for start in starts])
        state.penalty[where] = real([start.repetition_penalty for start in starts])
        state.mask_end[where] = torch.tensor([[start.mask_end] for start in starts], device=device)
        state.frame[where] = 0
        state.ended[where] = False
        state.sound[where] = True
        state.active[where] = True
        state.history[where, : sampler.WINDOW + 2] = 0

    def make_room(self) -> list[int]:
        """Grow the cache for the next frame; the youngest rows are taken out of the batch where the budget asks for it,
        and named, to be started again later: they will say the same."""
        if not len(self.batch):
            return []
        capacity = self._capacity_for(self.batch.longest)
        if capacity <= self._cache.capacity:
            return []
        evicted = sorted(self.batch.keys)[max(1, self._rows_at(capacity)) :] if not self.steady else []
        for key in evicted:
            self.drop(key)
        self._reserve(self.batch.longest, len(self.batch))
        return evicted

    def advance(self) -> list[Ended]:
        """Speak a frame in every row, after ``make_room``; the rows that have ended, which on a GPU are those of one
        frame ago: the device is already at work on the next frame while the host reads the flags of the last."""
        self._move(self.batch.moves())
        for plan in self.batch.plans():
            self._run(plan)
            self.batch.advance(plan)
        return self._ended(self._ask())

    def _move(self, moves: list[tuple[int, int]]) -> None:
        for source, target in moves:
            self._clean(target)
            self._cache.move(source, target, self.batch.position(target) + 1)
            self._state.move(source, target)

    def _run(self, plan: StepPlan) -> None:
        length = min(plan.length, self._cache.capacity)
        if self._graphs is not None:
            # Padding must not reach beyond the cache, which has fewer rows than the batch where they are long.
            self._graphs(self._cache, self._state, min(plan.rows, self._cache.slots), length)
            return
        advancing = torch.zeros(plan.rows, dtype=torch.bool)
        advancing[[self.batch.slot(key) for key in plan.keys]] = True
        step(self.weights, self._tables, self._cache, self._state, advancing.to(self.weights.device), length)

    def _ask(self) -> _Pending | None:
        """What there is to report of the previous run, having asked for this one's (on the CPU: this one's)."""
        asked = _Pending(self._state.active, {key: self.batch.slot(key) for key in self.batch.keys})
        if self.weights.device.type != "cuda":
            return asked
        before, self._pending = self._pending, asked
        asked.active = self._state.active.to("cpu", non_blocking=True)
        asked.event = torch.cuda.Event()
        asked.event.record()
        return before

    def _ended(self, report: _Pending | None) -> list[Ended]:
        if report is None:
            return []
        if report.event is not None:
            report.event.synchronize()
        active = report.active.tolist()
        ended = [(key, slot) for key, slot in report.slots.items() if not active[slot] and key in self.batch]
        return self._collect([key for key, _ in ended])

    def _collect(self, keys: list[int]) -> list[Ended]:
        if not keys:
            return []
        where = torch.tensor([self.batch.slot(key) for key in keys], device=self.weights.device)
        frames = self._state.frame[where].tolist()
        ended = self._state.ended[where].tolist()
        sound = self._state.sound[where].tolist()
        history = self._state.history[where, : max(1, *frames)].cpu().numpy()
        left = [self._leave(key) for key in keys]
        self._spoilt.update(slot for row, slot in enumerate(left) if not sound[row])
        return [
            Ended(key, history[row, : frames[row], 1:].T.copy(), not ended[row], sound[row])
            for row, key in enumerate(keys)
        ]

    def _clean(self, slot: int) -> None:
        """Take what an unsound row left in a slot out of it: a masked NaN is still a NaN to who attends over it."""
        if slot in self._spoilt:
            self._spoilt.remove(slot)
            self._cache.clear(slot)

    def drop(self, key: int) -> None:
        """Forget a row."""
        if self._pending is not None:
            self._pending.slots.pop(key, None)  # it may start again under this name
        self._state.active[self._leave(key)] = False

    def _leave(self, key: int) -> int:
        """Take a row out of the batch; the slot that it had."""
        slot = self.batch.leave(key)
        self._prompts.pop(key, None)
        self._cache.release(slot)
        return slot

    def resize(self, slots: int) -> list[int]:
        """Another number of slots, everything in the batch forgotten; who was there."""
        keys = self.batch.clear()
        del self._cache, self._state
        if self._graphs is not None:
            self._graphs.forget()
        if self.weights.device.type == "cuda":
            torch.cuda.empty_cache()
        self._layout(slots)
        return keys

    # --- the cache's size ------------------------------------------------------------------------------------

    def _rows_at(self, capacity: int) -> int:
        """How many rows of a capacity the budget allows; one is always allowed."""
        return self.slots if self.steady else max(1, min(self.slots, self._token_budget // capacity))

    def _capacity_for(self, positions: int) -> int:
        return next(capacity for capacity in self._capacities if capacity >= positions)

    def _reserve(self, positions: int, rows: int) -> None:
        """See to it that so many rows of so many positions can be held; an empty batch gives back what it does not
        need."""
        least = self._cache.capacity if len(self.batch) else self._usual_capacity()
        capacity = max(self._capacity_for(positions), least)
        slots = self._rows_at(capacity)
        if slots < rows:
            raise ValueError(f"{rows} rows of {capacity} positions are over the budget of {self._token_budget}")
        if (slots, capacity) == (self._cache.slots, self._cache.capacity):
            return
        self._move(self.batch.moves(close=True))
        if capacity < self._cache.capacity:
            self._state.position.zero_()
        if self._graphs is not None:
            self._graphs.forget()
        self._cache.resize(slots, capacity)


def capacities(positions: int) -> list[int]:
    """Sizes that a row of the cache may have: doubling, so that growing is rare, up to the model's positions."""
    sizes = [SHORTEST_LENGTH * 4]
    while sizes[-1] < positions:
        sizes.append(min(2 * sizes[-1], positions))
    return sizes


def lengths(positions: int, *, steady: bool, fine: bool) -> list[int]:
    """Attention lengths that a step may use. Steps of a quarter waste little; doubling ones keep the number of
    different plans down where each is a run of its own, ``fine`` ones waste next to nothing where no length has to be
    recorded."""
    if steady:
        return capacities(positions)
    if fine:
        return [*range(FINE_LENGTH, positions, FINE_LENGTH), positions]
    found = [SHORTEST_LENGTH]
    while found[-1] < positions:
        size = 1 << (found[-1].bit_length() - 1)
        found.append(min(found[-1] + max(size // 4, SHORTEST_LENGTH), positions))
    return found

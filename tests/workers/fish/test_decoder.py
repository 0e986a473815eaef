"""The batched decoder says what fish-speech's own model says, row by row, whoever shares the batch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engines.fish import decoder, noise, sampler  # noqa: E402
from workers.engines.fish.batch import Batch, Row  # noqa: E402
from workers.engines.fish.decoder import Cache, FastCache, Tables  # noqa: E402
from workers.engines.fish.prompt import Prompter, read_tokenizer  # noqa: E402
from workers.engines.fish.rows import Ended, Prompt, Rows, Start  # noqa: E402
from workers.engines.fish.shape import read_shape  # noqa: E402
from workers.engines.fish.weights import Weights, read_weights  # noqa: E402

TOLERANCE = 1e-4


def read(folder: Path) -> Weights:
    shape = read_shape(str(folder))
    prompter = Prompter(read_tokenizer(str(folder)), shape, str(folder))
    semantic = range(prompter.semantic_begin, prompter.semantic_begin + 4096)
    return read_weights(str(folder), shape, semantic, prompter.end, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def weights(model_folder: Path) -> Weights:
    return read(model_folder)


@pytest.fixture(scope="module")
def stock(model_folder: Path) -> Any:
    """fish-speech's own model, in float32, with its caches for one row."""
    from fish_speech.models.text2semantic.llama import DualARTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        model = DualARTransformer.from_pretrained(str(model_folder), load_weights=True).eval()
    model.setup_caches(1, model.config.max_seq_len, dtype=torch.float32)
    return model


def random_tokens(generator: np.random.Generator, weights: Weights, count: int, *, spoken: bool) -> np.ndarray:
    """(1 + codebooks, count): frames, or text with a frame here and there."""
    tokens = np.zeros((1 + weights.shape.codebooks, count), dtype=np.int64)
    tokens[0] = generator.integers(0, 256, count)
    frames = np.ones(count, dtype=bool) if spoken else generator.random(count) < 0.5
    codes = generator.integers(0, 1024, (weights.shape.codebooks, count))
    codes[0] = generator.integers(0, 4096, count)
    tokens[0] = np.where(frames, codes[0] + weights.semantic_begin, tokens[0])
    tokens[1:] = np.where(frames, codes, 0)
    return tokens


def stock_logits(model: Any, prompt: np.ndarray, frames: np.ndarray) -> tuple[list[Any], list[Any]]:
    """What stock's transformers say at each step, told what to say: of the slow one over the whole vocabulary, of the
    fast one (9, codebook size)."""
    slow: list[Any] = []
    fast: list[Any] = []
    with torch.inference_mode():
        for step in range(frames.shape[1] + 1):
            if step == 0:
                tokens, position = torch.from_numpy(prompt)[None], torch.arange(prompt.shape[1])
            else:
                tokens = torch.from_numpy(frames[:, step - 1])[None, :, None]
                position = torch.tensor([prompt.shape[1] + step - 1])
            result = model.forward_generate(tokens, position)
            slow.append(result.logits[0, -1])
            if step == frames.shape[1]:
                return slow, fast
            said = []
            model.forward_generate_fast(result.hidden_states, torch.tensor([0]))
            for codebook in range(1, model.config.num_codebooks):
                x = model.fast_embeddings(torch.tensor([frames[codebook, step]]))
                said.append(model.forward_generate_fast(x, torch.tensor([codebook]))[0, 0])
            fast.append(torch.stack(said))
    raise AssertionError


def read_prompt(weights: Weights, tables: Tables, tokens: np.ndarray) -> Cache:
    """A prompt's keys and values in a cache of its own."""
    prompt = Cache(weights, 1, tokens.shape[1])
    whole = torch.from_numpy(tokens.T.copy())[None]
    decoder.prefill(weights, tables, prompt, [0], whole, torch.tensor([0]), tokens.shape[1])
    return prompt


@pytest.mark.parametrize("sizes", [(), (33,), (70, 6, 129), (9, 150, 21, 40, 3, 64)])
def test_teacher_forced_logits_are_stocks_through_joins_and_leaves(
    weights: Weights, stock: Any, sizes: tuple[int, ...]
) -> None:
    """Rows with different texts after shared prompts of different lengths, or after none, joining and leaving at
    different steps and moved between slots, give at every step the logits that stock gives for each of them alone.
    ``sizes``: of the prompts, one for all rows but the last, one for every two or three, or one for each."""
    generator = np.random.default_rng(1)
    tables, cache = Tables(weights), Cache(weights, 4, 256)
    batch = Batch(4, [32, 64, 96, 128, 192, 256])
    before_of = [random_tokens(generator, weights, size, spoken=False) for size in sizes]
    with torch.inference_mode():
        prompts = [read_prompt(weights, tables, tokens) for tokens in before_of]
    texts: dict[int, Any] = {}
    shared: dict[int, int] = {}
    for key, (before, spoken, joins) in enumerate(
        [(5, 9, 0), (40, 4, 0), (17, 12, 2), (90, 3, 3), (2, 30, 3), (61, 8, 7)]
    ):
        prompt = random_tokens(generator, weights, before, spoken=False)
        frames = random_tokens(generator, weights, spoken, spoken=True)
        whole = prompt
        if sizes and (key < 5 or len(sizes) > 3):
            shared[key] = key % len(sizes)
            whole = np.concatenate([before_of[shared[key]], prompt], axis=1)
        texts[key] = (prompt, frames, joins, stock_logits(stock, whole, frames))
    waiting = dict(texts)
    place = dict.fromkeys(texts, 0)
    compared = 0
    with torch.inference_mode():
        for step in range(60):
            joined = []
            for key, (prompt, _, joins, _) in list(waiting.items()):
                if joins <= step and batch.free:
                    joined.append((batch.join(Row(key, prompt.shape[1] - 1, 255)), prompt[:, :-1]))
                    if key in shared:
                        cache.share(joined[-1][0], prompts[shared[key]])
                    del waiting[key]
            if joined:
                size = max(tokens.shape[1] for _, tokens in joined)
                padded = torch.zeros((len(joined), size, 1 + weights.shape.codebooks), dtype=torch.int64)
                for row, (_, tokens) in enumerate(joined):
                    padded[row, : tokens.shape[1]] = torch.from_numpy(tokens.T.copy())
                starts = torch.zeros(len(joined), dtype=torch.int64)
                length = batch.length_for(size)
                decoder.prefill(weights, tables, cache, [slot for slot, _ in joined], padded, starts, length)
            for source, target in batch.moves():
                cache.move(source, target, 256)
            for plan in batch.plans():
                newest = torch.zeros((plan.rows, 1 + weights.shape.codebooks), dtype=torch.int64)
                position = torch.zeros(plan.rows, dtype=torch.int64)
                for key in plan.keys:
                    prompt, frames, _, _ = texts[key]
                    forced = np.concatenate([prompt[:, -1:], frames], axis=1)[:, place[key]]
                    newest[batch.slot(key)] = torch.from_numpy(forced)
                    position[batch.slot(key)] = prompt.shape[1] - 1 + place[key]
                hidden = decoder.slow_step(weights, tables, cache, newest, position, plan.length)
                logits = decoder.head(weights, hidden)
                fast = FastCache(weights, plan.rows)
                assert weights.project_in is not None
                decoder.fast_step(weights, fast, weights.project_in(hidden), 0)
                codes = torch.zeros((plan.rows, weights.shape.codebooks), dtype=torch.int64)
                for key in plan.keys:
                    if place[key] < texts[key][1].shape[1]:
                        codes[batch.slot(key)] = torch.from_numpy(texts[key][1][1:, place[key]])
                residual = [
                    decoder.fast_step(weights, fast, weights.fast_embeddings[codes[:, codebook - 1]], codebook)
                    for codebook in range(1, weights.shape.codebooks)
                ]
                batch.advance(plan)
                for key in plan.keys:
                    _, frames, _, (slow_logits, fast_logits) = texts[key]
                    slot, at = batch.slot(key), place[key]
                    begin = weights.semantic_begin
                    torch.testing.assert_close(
                        logits[slot, :4096], slow_logits[at][begin : begin + 4096], atol=TOLERANCE, rtol=0
                    )
                    torch.testing.assert_close(logits[slot, 4096], slow_logits[at][weights.end], atol=TOLERANCE, rtol=0)
                    compared += 1
                    if at < frames.shape[1]:
                        ours = torch.stack([row[slot] for row in residual])
                        torch.testing.assert_close(ours, fast_logits[at][:, :1024], atol=TOLERANCE, rtol=0)
                    place[key] += 1
                    if at == frames.shape[1]:
                        cache.release(batch.leave(key))
    assert compared == sum(frames.shape[1] + 1 for _, frames, _, _ in texts.values())


def run_rows(rows: Rows, starts: list[Start]) -> dict[int, Ended]:
    """Everything spoken, starting what fits as soon as it fits."""
    waiting, ended = list(starts), {}
    with torch.inference_mode():
        while waiting or len(rows.batch):
            if count := rows.fitting(waiting):
                rows.start(waiting[:count])
                del waiting[:count]
            evicted = rows.make_room()
            waiting += [start for start in starts if start.key in evicted]
            for row in rows.advance():
                ended[row.key] = row
    return ended


def stock_codes(
    model: Any, weights: Weights, prompt: np.ndarray, frames: int, penalty: float, top_p: float
) -> np.ndarray:
    """What stock's ``generate`` says greedily, choosing among semantic tokens and the end token, the latter not for the
    first frame."""
    from fish_speech.models.text2semantic.inference import generate

    usual = model.forward_generate
    allowed = torch.full((weights.shape.vocabulary,), float("-inf"))
    allowed[weights.semantic_begin : weights.semantic_begin + weights.semantic_tokens] = 0

    def masked(*arguments: Any, **named: Any) -> Any:
        result = usual(*arguments, **named)
        result.logits = result.logits + allowed
        allowed[weights.end] = 0
        return result

    model.forward_generate = masked
    try:
        sequence = generate(
            model=model,
            prompt=torch.from_numpy(prompt),
            max_new_tokens=frames,
            audio_masks=None,
            audio_parts=None,
            temperature=1e-5,
            top_p=top_p,
            repetition_penalty=penalty,
        )
    finally:
        del model.forward_generate
    said: np.ndarray = sequence[:, prompt.shape[1] :].numpy()
    ends = np.flatnonzero(said[0] == weights.end)
    codes: np.ndarray = said[1:, : ends[0] if len(ends) else None]
    return codes


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_decoding_is_stocks(weights: Weights, stock: Any, penalty: float) -> None:
    """Greedily, ragged rows over fewer slots than rows say what stock says: without a repetition penalty, and with one,
    which reads the same odd window."""
    generator = np.random.default_rng(2)
    starts, expected = [], {}
    penalty = sampler.as_stock_rounds(penalty)
    for key, (prefix, suffix, limit) in enumerate([(30, 5, 40), (11, 1, 25), (64, 20, 40), (3, 9, 12), (50, 2, 33)]):
        prompt = random_tokens(generator, weights, prefix + suffix, spoken=False)
        starts.append(Start(key, Prompt(prompt[:, :prefix]), prompt[:, prefix:], 7, limit, 1e-5, 1.0, penalty))
        expected[key] = stock_codes(stock, weights, prompt, limit, penalty, 1.0)
    ended = run_rows(Rows(weights, 3, 4096, 64), starts)
    for key, codes in expected.items():
        assert np.array_equal(ended[key].codes, codes), key
        assert ended[key].truncated == (codes.shape[1] == starts[key].limit)


def test_probabilities_are_stocks(weights: Weights) -> None:
    """Given the same logits and the same history, each choice has the chance that stock's logits_to_probs gives it."""
    from fish_speech.models.text2semantic.inference import logits_to_probs

    generator = torch.Generator().manual_seed(3)
    for count, scale in ((4097, 4.0), (1024, 1.0), (1024, 12.0)):
        logits = torch.randn((8, count), generator=generator) * scale
        places = torch.randint(0, count, (8, sampler.WINDOW), generator=generator)
        places[:, 5] = places[:, 2]
        temperature = torch.rand((8, 1), generator=generator) + 0.3
        top_p = torch.rand((8, 1), generator=generator)
        top_p[0], top_p[1] = 1.0, 1e-6
        penalty = torch.rand((8, 1), generator=generator) + 0.7
        ours = sampler.probabilities(sampler.penalise(logits, places, penalty), temperature, top_p)
        for row in range(8):
            theirs = logits_to_probs(
                logits[row].clone(),
                temperature[row, 0],
                top_p[row, 0],
                penalty[row, 0],
                previous_tokens=places[row].int(),
            )
            torch.testing.assert_close(ours[row], theirs, atol=1e-6, rtol=1e-5)


def test_draws_follow_the_probabilities() -> None:
    """Over many frames each choice is drawn as often as its chance says."""
    draws = 40_000
    chances = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    keys = noise.frame_keys(torch.full((draws,), noise.seed_key(5)), torch.arange(draws), 10)
    chosen = sampler.choose(chances.expand(draws, -1), noise.exponential(keys[:, 3], torch.arange(5)))
    share = torch.bincount(chosen, minlength=5) / draws
    assert (share - chances).abs().max() < 0.012
    assert share[4] == 0


def test_noise_depends_on_seed_frame_and_codebook_alone() -> None:
    """The same numbers come in any row of any batch; another seed, frame or codebook brings unrelated ones."""
    seeds = torch.tensor([noise.seed_key(seed) for seed in (1, 2, 1, -(2**70))])
    keys = noise.frame_keys(seeds, torch.tensor([4, 4, 4, 9]), 10)
    alone = noise.frame_keys(seeds[2:3], torch.tensor([4]), 10)
    assert torch.equal(keys[0], keys[2])
    assert torch.equal(keys[0], alone[0])
    values = noise.exponential(keys.flatten(), torch.arange(512))
    assert torch.equal(values[:10], values[20:30])
    assert values.min() > 0
    assert torch.isfinite(values).all()
    different = torch.cat([values[:20], values[30:]])
    correlation = torch.corrcoef(different) - torch.eye(len(different))
    assert correlation.abs().max() < 0.25


def test_a_vocabulary_number_is_found_in_the_cut_head() -> None:
    """Semantic tokens and the end token have their places, everything else goes nowhere."""
    oldest = torch.tensor([[99, 100, 104, 105, 7, 0]])
    assert sampler.penalised_semantic(oldest, 100, 105, 7, 6).tolist() == [[6, 0, 4, 6, 5, 6]]


def test_a_prompt_apart_is_attended_to_as_one_sequence(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over own positions and a prompt apart the same comes out as over both in a row, for some rows and all, in the way
    of a CPU and in that of a GPU, whatever part of the scores is held at a time."""
    generator = torch.Generator().manual_seed(9)
    shape = weights.shape.slow
    sizes = (19, 4)
    prompts = [Cache(weights, 1, size) for size in sizes]
    for prompt in prompts:
        for tensor in (*prompt.keys, *prompt.values):
            tensor.normal_(generator=generator)
    for of_row in ([0, 1, 0, None], [1, 1, 1, 1], [None, None, 0, None]):
        queries, keys, values = (
            torch.randn((4, shape.key_value_heads, size, shape.head_width), generator=generator) for size in (6, 30, 30)
        )
        cache = Cache(weights, 4, 30)
        expected = []
        bias = torch.zeros(4, 1, 6, 30).masked_fill_(torch.arange(30) > torch.arange(20, 26)[:, None], float("-inf"))
        for row, number in enumerate(of_row):
            size = 0
            every = [keys[row], values[row]]
            if number is not None:
                cache.share(row, prompts[number])
                size = sizes[number]
                before = (prompts[number].keys[1][0], prompts[number].values[1][0])
                every = [torch.cat(parts, dim=1) for parts in zip(before, every, strict=True)]
            seen = torch.nn.functional.pad(bias[row], (size, 0))
            expected.append(torch.nn.functional.scaled_dot_product_attention(queries[row], *every, attn_mask=seen))
        shared = cache.shared(range(4))
        assert shared is not None
        ours = decoder.attend(queries, keys, values, bias, shared, 1)
        torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=0)
        for most in (decoder.SCORES, 100):
            monkeypatch.setattr(decoder, "SCORES", most)
            with monkeypatch.context() as patch:
                patch.setattr(decoder, "attend_weighed", decoder.attend_weighed_plainly)
                ours = decoder.attend(queries, keys, values, bias, shared, 1)
            torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=0)
        monkeypatch.undo()


def test_rows_of_one_speaker_share_its_prompt(weights: Weights) -> None:
    """A prompt is computed once and read by all of its rows: each says what it says alone, and nobody holds the prompt
    when they have ended."""
    generator = np.random.default_rng(4)
    tokens = random_tokens(generator, weights, 70, spoken=False)
    suffixes = [random_tokens(generator, weights, size, spoken=False) for size in (3, 8, 1, 5)]

    def starts(prompts: list[Prompt]) -> list[Start]:
        return [
            Start(key, prompts[key], suffix, 100 + key, 20, 0.7, 0.7, 1.2, mask_end=True)
            for key, suffix in enumerate(suffixes)
        ]

    shared = Prompt(tokens)
    rows = Rows(weights, 4, 4096, 64)
    together = run_rows(rows, starts([shared] * 4))
    assert shared.kept is not None
    assert rows.prompts == []
    assert rows._cache.shared(range(4)) is None
    alone = run_rows(Rows(weights, 1, 4096, 64), starts([Prompt(tokens) for _ in suffixes]))
    for key in range(4):
        assert np.array_equal(together[key].codes, alone[key].codes)
        assert together[key].truncated
        assert together[key].codes.shape == (10, 20)


def test_a_shared_prompt_takes_no_room_in_the_rows(weights: Weights) -> None:
    """Rows after a long prompt fit where copies of it would not, and no more prompts are read at a time than there is
    room for; one always is."""
    generator = np.random.default_rng(8)
    prompts = [Prompt(random_tokens(generator, weights, size, spoken=False)) for size in (600, 500, 80)]
    starts = [
        Start(key, prompts[number], random_tokens(generator, weights, 4, spoken=False), key, 9, 0.7, 0.7, 1.2)
        for key, number in enumerate((0, 0, 0, 2, 1))
    ]
    assert Rows(weights, 4, 4 * 512, 64, steady=True, prompt_tokens=700).fitting(starts[:3]) == 3
    rows = Rows(weights, 8, 8 * 512, 64, prompt_tokens=700)
    assert rows.fitting(starts) == 4
    assert rows.fitting(starts[4:]) == 1
    with torch.inference_mode():
        rows.start(starts[:4])
        assert rows._cache.capacity == 512
        assert rows.prompts == [prompts[0], prompts[2]]
        assert rows.fitting(starts[4:]) == 0
        for key in range(3):
            rows.drop(key)
        assert rows.fitting(starts[4:]) == 1
    assert Rows(weights, 8, 8 * 512, 64, prompt_tokens=100).fitting(starts) == 3


def test_steady_rows_are_bit_for_bit_the_same_in_any_company(weights: Weights) -> None:
    """Steady rows give exactly the same hidden states, hence codes, alone and in a full batch, in any slot."""
    generator = np.random.default_rng(5)
    starts = [
        Start(
            key,
            Prompt(random_tokens(generator, weights, int(size), spoken=False)),
            random_tokens(generator, weights, 6, spoken=False),
            key,
            24,
            0.9,
            0.95,
            1.1,
            mask_end=True,
        )
        for key, size in enumerate(generator.integers(5, 600, 9))
    ]
    together = run_rows(Rows(weights, 4, 1 << 20, 64, steady=True), starts)
    backwards = run_rows(Rows(weights, 4, 1 << 20, 64, steady=True), starts[::-1])
    for start in starts[::4]:
        start.prompt.kept = None
        alone = run_rows(Rows(weights, 4, 1 << 20, 64, steady=True), [start])
        assert np.array_equal(alone[start.key].codes, together[start.key].codes)
    for key in together:
        assert np.array_equal(together[key].codes, backwards[key].codes)


def test_rows_that_outgrow_the_budget_start_again_and_say_the_same(weights: Weights) -> None:
    """When growing rows leave no room for each other, the youngest gives way and is spoken again from its start."""
    generator = np.random.default_rng(6)
    starts = [
        Start(
            key,
            Prompt(random_tokens(generator, weights, 490, spoken=False)),
            random_tokens(generator, weights, 3, spoken=False),
            key,
            40,
            0.8,
            0.8,
            1.2,
            mask_end=True,
        )
        for key in range(3)
    ]
    cramped = Rows(weights, 3, 3 * 512, 64)
    ended = run_rows(cramped, starts)
    roomy = run_rows(Rows(weights, 3, 1 << 20, 64), starts)
    assert cramped.weights is weights
    for key in range(3):
        assert np.array_equal(ended[key].codes, roomy[key].codes)


def test_prompts_of_very_different_lengths_start_together(weights: Weights) -> None:
    """A long prompt that ends near the cache's edge and a long text after a short prompt are read in one go."""
    generator = np.random.default_rng(7)
    sizes = [(500, 5), (20, 90), (3, 1)]
    starts = [
        Start(
            key,
            Prompt(random_tokens(generator, weights, prefix, spoken=False)),
            random_tokens(generator, weights, suffix, spoken=False),
            key,
            6,
            0.7,
            0.7,
            1.2,
            mask_end=True,
        )
        for key, (prefix, suffix) in enumerate(sizes)
    ]
    together = run_rows(Rows(weights, 3, 1 << 16, 64), starts)
    for start in starts:
        start.prompt.kept = None
        alone = run_rows(Rows(weights, 1, 1 << 16, 64), [start])
        assert np.array_equal(together[start.key].codes, alone[start.key].codes)

"""The fish engine, from segments to WAVs, on a small checkpoint of random weights."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engine import EngineError, Failed, Reference, Segment, Settings, Spoken, Voice  # noqa: E402
from workers.engines.fish import FishEngine, decoder, rows  # noqa: E402
from workers.engines.fish.speech import pieces_of  # noqa: E402

MOST_STEPS = 5000
"""A test that takes more is stuck."""


@pytest.fixture
def voices(tmp_path: Path) -> list[Voice]:
    """Three speakers with codes for references."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(3):
        codes = generator.integers(0, 1024, (10, 40 + 25 * number))
        made.append(voice_of(tmp_path / f"voice{number}.npy", codes))
    return made


def voice_of(path: Path, codes: np.ndarray, text: str = "What is said in it.") -> Voice:
    np.save(path, codes)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Voice(path.stem, (Reference(str(path), "codes", digest, text),))


def segment(ticket: int, voice: Voice, folder: Path, text: str = "", **other: Any) -> Segment:
    return replace(
        Segment(
            ticket=ticket,
            task="speak",
            text=text or f"This is line number {ticket}.",
            language="en",
            voice=voice,
            seed=1000 + ticket,
            temperature=0.7,
            top_p=0.7,
            repetition_penalty=1.2,
            max_new_tokens=60,
            path=str(folder / f"{ticket}.wav"),
            sample_rate=None,
            subtype="PCM_16",
        ),
        **other,
    )


class Loaded:
    """An engine and what has come out of it."""

    def __init__(self, checkpoint: Path, **settings: Any) -> None:
        self.engine = FishEngine(
            Settings(**{"checkpoint": str(checkpoint), "retries": 0, "precision": "fp32", **settings})
        )
        self.engine.load()

    def speak(self, *segments: Segment) -> dict[int, Spoken | Failed]:
        for one in segments:
            self.engine.submit(one)
        outcomes: dict[int, Spoken | Failed] = {}
        for _ in range(MOST_STEPS):
            for outcome in self.engine.step():
                assert outcome.ticket not in outcomes
                outcomes[outcome.ticket] = outcome
            if len(outcomes) == len(segments):
                return outcomes
        raise AssertionError(f"only {sorted(outcomes)} have ended; {self.engine.activity()}")


@pytest.fixture
def load(checkpoint: Path) -> Iterator[Any]:
    """Loads engines; closes them after the test."""
    loaded: list[Loaded] = []

    def start(folder: Path = checkpoint, **settings: Any) -> Loaded:
        loaded.append(Loaded(folder, **settings))
        return loaded[-1]

    yield start
    for one in loaded:
        one.engine.close()


def test_segments_become_wavs(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """More segments than slots, of several speakers: each comes back once, with a WAV of the frames it says."""
    loaded = load(slots=3)
    outcomes = loaded.speak(*(segment(ticket, voices[ticket % 3], tmp_path) for ticket in range(8)))
    assert loaded.engine.slots == 3
    for ticket, outcome in outcomes.items():
        assert isinstance(outcome, Spoken)
        samples, sample_rate = soundfile.read(tmp_path / f"{ticket}.wav")
        assert (len(samples), sample_rate) == (outcome.frames, outcome.sample_rate) == (outcome.frames, 44100)
        assert outcome.frames % 2048 == 0
        assert 0 < outcome.frames <= 60 * 2048
        assert outcome.seed == 1000 + ticket
        assert outcome.seeds == (1000 + ticket,)
        assert outcome.truncated == (outcome.frames == 60 * 2048)


def test_nothing_is_kept_of_segments_that_are_over(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """Spoken, failed or cancelled: all that names them is gone, only the voices' prompts stay."""
    loaded = load(slots=2)
    engine = loaded.engine
    loaded.speak(*(segment(ticket, voices[ticket % 2], tmp_path) for ticket in range(5)))
    loaded.speak(segment(5, voices[0], tmp_path, text=" "))
    engine.submit(segment(6, voices[0], tmp_path))
    engine.step()
    assert engine.cancel(6)
    assert engine.activity() == "idle"
    held = [value for name, value in vars(engine).items() if isinstance(value, dict | list | deque)]
    assert len(held) >= 5
    assert not any(held)
    assert len(engine._voices._prompts) == 2


def test_output_rate_and_subtype_are_the_segments(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """The WAV has the sample rate and the subtype that were asked for."""
    (outcome,) = load().speak(segment(1, voices[0], tmp_path, sample_rate=16000, subtype="PCM_24")).values()
    information = soundfile.info(tmp_path / "1.wav")
    assert (information.samplerate, information.subtype) == (16000, "PCM_24")
    assert isinstance(outcome, Spoken)
    assert outcome.frames == information.frames
    assert outcome.sample_rate == 16000


def wavs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


def test_reproducible_wavs_do_not_depend_on_company_or_worker(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """With engine.reproducible the same segments give the same files, bit for bit, together, in another order, and
    dealt out to two workers of their own."""
    folders = [tmp_path / name for name in ("together", "backwards", "dealt")]
    for folder in folders:
        folder.mkdir()

    def of(folder: Path) -> list[Segment]:
        lengths = ["Short.", "A line of middling length, as most are.", "One more " * 12]
        return [segment(ticket, voices[ticket % 3], folder, lengths[ticket % 3]) for ticket in range(7)]

    load(reproducible=True, slots=4).speak(*of(folders[0]))
    load(reproducible=True, slots=4).speak(*reversed(of(folders[1])))
    load(reproducible=True, slots=4).speak(*of(folders[2])[::2])
    load(reproducible=True, slots=4).speak(*of(folders[2])[1::2])
    assert len(wavs(folders[0])) == 7
    assert wavs(folders[0]) == wavs(folders[1]) == wavs(folders[2])


def test_a_flawed_attempt_is_spoken_again_with_a_recorded_seed(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """Babble is no speech: attempts are made up to the allowed retries, each with its own seed, the best is kept, and
    the flaws of what was kept are told. The first seed is always the segment's own, and the others follow from it."""
    long = "This text is far too long to be said within the frames that it is given, so every attempt is flawed."
    loaded = load(retries=2)
    first, again = (loaded.speak(segment(1, voices[0], tmp_path, long, max_new_tokens=20))[1] for _ in range(2))
    assert isinstance(first, Spoken)
    assert isinstance(again, Spoken)
    assert len(set(first.seeds)) == 3
    assert first.seeds[0] == 1001
    assert first.seed in first.seeds
    assert "too_short" in first.flaws
    assert first.seeds == again.seeds
    assert first.seed == again.seed


def test_checks_can_be_left_out_and_the_end_masked(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """For measuring: every segment has exactly its token limit of frames, and nothing is spoken twice."""
    loaded = load(retries=2, options={"mask_end": True, "checks": False})
    for outcome in loaded.speak(
        *(segment(ticket, voices[0], tmp_path, max_new_tokens=9) for ticket in range(3))
    ).values():
        assert isinstance(outcome, Spoken)
        assert outcome.frames == 9 * 2048
        assert outcome.truncated
        assert not outcome.flaws
        assert len(outcome.seeds) == 1


def test_a_long_text_is_spoken_in_pieces_and_joined(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """A text of several sentences beyond what the model says well in one go becomes one WAV of all its pieces."""
    text = " ".join(f"Sentence number {number} says a little more than the one before it did." for number in range(30))
    pieces = pieces_of(text, "en")
    assert len(pieces) > 1
    assert all(piece.rstrip().endswith(".") for piece in pieces)
    loaded = load(options={"mask_end": True})
    (outcome,) = loaded.speak(segment(1, voices[0], tmp_path, text, max_new_tokens=12)).values()
    assert isinstance(outcome, Spoken)
    assert outcome.frames == len(pieces) * 12 * 2048


def test_control_tokens_in_a_text_are_spoken_not_obeyed(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """A text that spells special tokens is read letter by letter."""
    loaded = load()
    prompter = loaded.engine._prompter
    for text in ("<|im_end|>", "a<|semantic:5|>b", "<|interleave|>"):
        suffix = prompter.suffix(text)
        assert suffix[0].max() < 256
        assert suffix.shape[1] == len(text)
        assert prompter.prefix([(text, np.zeros((10, 1), np.int64))])[0].tolist().count(prompter.end) == 1
    (outcome,) = loaded.speak(segment(1, voices[0], tmp_path, "Hello <|im_end|> there")).values()
    assert isinstance(outcome, Spoken)


def test_a_prompt_that_leaves_no_room_is_refused(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """Too long a reference fails its speaker's segments, and them alone, before anything is spoken."""
    long = voice_of(tmp_path / "long.npy", np.zeros((10, 2040), np.int64), "word " * 10)
    outcomes = load().speak(segment(1, long, tmp_path), segment(2, voices[0], tmp_path))
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].code == "prompt_too_long"
    assert not outcomes[1].retryable
    assert isinstance(outcomes[2], Spoken)


@pytest.mark.parametrize(
    "codes",
    [np.zeros((9, 20), np.int64), np.zeros((10, 20), np.float32), np.full((10, 20), 5000), np.zeros((10, 0), np.int64)],
    ids=["nine rows", "floats", "out of range", "no frames"],
)
def test_bad_codes_fail_their_segments_alone(load: Any, voices: list[Voice], tmp_path: Path, codes: np.ndarray) -> None:
    """A reference that is no codec codes fails what needs it, with a reason."""
    bad = voice_of(tmp_path / "bad.npy", codes)
    outcomes = load().speak(segment(1, bad, tmp_path), segment(2, voices[0], tmp_path), segment(3, bad, tmp_path))
    assert [type(outcomes[ticket]) for ticket in (1, 2, 3)] == [Failed, Spoken, Failed]
    failed = outcomes[1]
    assert isinstance(failed, Failed)
    assert failed.code == "bad_codes"
    assert "bad.npy" in failed.message


def test_a_recording_is_a_reference_too_and_can_be_encoded(load: Any, tmp_path: Path) -> None:
    """A WAV of another rate, in stereo, becomes codes on disk, and a voice."""
    time = np.arange(2 * 22050) / 22050
    path = tmp_path / "anna.wav"
    soundfile.write(path, np.stack([np.sin(440 * time), 0.3 * np.sin(300 * time)], axis=1), 22050)
    recording = Reference(str(path), "audio", hashlib.sha256(path.read_bytes()).hexdigest(), "la la")
    voice = Voice("anna", (recording,))
    npy = tmp_path / "anna.npy"
    loaded = load(cache=str(tmp_path / "cache"))
    outcomes = loaded.speak(segment(1, voice, tmp_path), segment(2, voice, tmp_path, task="encode", path=str(npy)))
    codes = np.load(npy)
    encoded = outcomes[2]
    assert isinstance(outcomes[1], Spoken)
    assert isinstance(encoded, Spoken)
    assert codes.dtype == np.int64
    assert codes.shape == (10, encoded.frames)
    assert codes.shape[1] == -(-2 * 44100 // 2048)


def test_cancelled_segments_are_gone(load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """Waiting or being spoken, a cancelled segment has no outcome, and the others are as if it had not been."""
    loaded = load(slots=2)
    segments = [segment(ticket, voices[0], tmp_path) for ticket in range(5)]
    for one in segments:
        loaded.engine.submit(one)
    loaded.engine.step()
    assert loaded.engine.cancel(0)
    assert loaded.engine.cancel(4)
    assert not loaded.engine.cancel(9)
    extra = segment(5, voices[1], tmp_path)
    seen: dict[int, Any] = {}
    loaded.engine.submit(extra)
    for _ in range(MOST_STEPS):
        seen.update({outcome.ticket: outcome for outcome in loaded.engine.step()})
        if len(seen) == 4:
            break
    assert sorted(seen) == [1, 2, 3, 5]
    assert not loaded.engine.cancel(1)


def test_out_of_memory_halves_the_slots_and_goes_on(
    load: Any, voices: list[Voice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory runs out in a step the engine goes on with half its slots: one segment is handed back, with the
    number of slots that are left, and the others say what they would have said."""
    expected = load(slots=4).speak(*(segment(ticket, voices[ticket % 3], tmp_path) for ticket in range(4)))
    whole = wavs(tmp_path)
    loaded = load(slots=4)
    calls: list[int] = []

    def short_of_memory(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        decoder.step(*arguments)

    monkeypatch.setattr(rows, "step", short_of_memory)
    outcomes = loaded.speak(*(segment(ticket, voices[ticket % 3], tmp_path) for ticket in range(4)))
    (failed,) = [outcome for outcome in outcomes.values() if isinstance(outcome, Failed)]
    assert (failed.code, failed.retryable, failed.slots, loaded.engine.slots) == ("out_of_memory", True, 2, 2)
    for ticket, outcome in outcomes.items():
        if isinstance(outcome, Spoken):
            assert replace(outcome, generate_s=0) == replace(expected[ticket], generate_s=0)
            assert wavs(tmp_path)[f"{ticket}.wav"] == whole[f"{ticket}.wav"]


def test_out_of_memory_with_one_slot_fails_the_segment_in_it(
    load: Any, voices: list[Voice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing left to halve: the segment that was being spoken is handed back, the next ones are spoken."""
    loaded = load(slots=1)
    calls: list[int] = []

    def short_of_memory(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        decoder.step(*arguments)

    monkeypatch.setattr(rows, "step", short_of_memory)
    outcomes = loaded.speak(*(segment(ticket, voices[0], tmp_path) for ticket in range(3)))
    assert [type(outcomes[ticket]) for ticket in range(3)] == [Failed, Spoken, Spoken]
    failed = outcomes[0]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.slots) == ("out_of_memory", 1)


# --- checkpoints ---------------------------------------------------------------------------------------------


def spoil_json(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SPOILT: dict[str, tuple[Any, str]] = {
    "empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "has no config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.tiktoken").unlink(), "has no tokenizer.tiktoken"),
    "empty model": (lambda folder: (folder / "model.pth").write_bytes(b""), "empty files: model.pth"),
    "half a model": (
        lambda folder: (folder / "model.pth").write_bytes((folder / "model.pth").read_bytes()[:100_000]),
        "half-copied",
    ),
    "half a codec": (
        lambda folder: (folder / "codec.pth").write_bytes((folder / "codec.pth").read_bytes()[:100_000]),
        "codec.pth",
    ),
    "another model's weights": (
        lambda folder: torch.save({"encoder.weight": torch.zeros(3)}, folder / "model.pth"),
        "weights are missing",
    ),
    "another shape": (lambda folder: spoil_json(folder, n_layer=5), "not of the model that config.json describes"),
    "another kind of model": (lambda folder: spoil_json(folder, model_type="llama"), "'llama'"),
    "no sizes": (lambda folder: spoil_json(folder, dim="wide"), "dim is 'wide'"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
    "tokenizer is no tokenizer": (
        lambda folder: (folder / "tokenizer.tiktoken").write_text("hello world\n"),
        "no tokenizer can be read",
    ),
    "another tokenizer": (
        lambda folder: (folder / "special_tokens.json").write_text('{"<|semantic:0|>": 1}'),
        "semantic",
    ),
    "weights that are a program": (
        lambda folder: (folder / "model.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR."),
        "can't be read as torch weights",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_checkpoint_is_refused_with_the_reason(checkpoint: Path, tmp_path: Path, how: str) -> None:
    """Whatever is wrong with the folder, loading says which file it is and does nothing else."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    spoil, reason = SPOILT[how]
    spoil(folder)
    with pytest.raises(EngineError, match=reason) as caught:
        FishEngine(Settings(checkpoint=str(folder))).load()
    assert caught.value.code == "bad_checkpoint"
    assert str(folder) in str(caught.value)


def test_no_checkpoint_is_said_as_such(tmp_path: Path) -> None:
    """Without a folder, or with one that is not there, the message names the setting."""
    for folder in ("", str(tmp_path / "nowhere")):
        with pytest.raises(EngineError, match=r"engine\.checkpoint") as caught:
            FishEngine(Settings(checkpoint=folder)).load()
        assert caught.value.code == "no_checkpoint"


def test_the_model_is_named_by_its_content(checkpoint: Path, tmp_path: Path, load: Any) -> None:
    """A copy of a checkpoint is the same model; one with a changed weight is another."""
    copy, changed = tmp_path / "copy", tmp_path / "changed"
    shutil.copytree(checkpoint, copy)
    shutil.copytree(checkpoint, changed)
    state = torch.load(changed / "model.pth", weights_only=True)
    state["norm.weight"][0] += 1
    torch.save(state, changed / "model.pth")
    names = [load(folder).engine.model for folder in (checkpoint, copy, changed)]
    assert names[0] == names[1] != names[2]


LOAD_ALONE = """
import sys
from workers.engine import Settings
from workers.engines.fish import FishEngine, read_ahead

read_ahead(Settings(checkpoint=sys.argv[1]))
FishEngine(Settings(checkpoint=sys.argv[1])).load()
heavy = "audiotools dac einops hydra librosa matplotlib omegaconf tensorboard torch._dynamo transformers"
print(*(name for name in heavy.split() if name in sys.modules), file=sys.stdout)
"""


def test_a_loaded_engine_has_imported_nothing_that_speaking_does_not_need(checkpoint: Path) -> None:
    """fish-speech's own classes bring hydra, tensorboard and the like with them, which take longer than the weights."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, str(checkpoint)], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def damaged(checkpoint: Path, folder: Path, file: str, weight: str, places: Any = slice(None)) -> Path:
    """A copy of a checkpoint with NaN in a weight, as half precision or a damaged memory makes them."""
    shutil.copytree(checkpoint, folder)
    state = torch.load(folder / file, weights_only=True)
    state[weight][places] = float("nan")
    torch.save(state, folder / file)
    return folder


@pytest.mark.parametrize("weight", ["layers.1.attention.wo.weight", "fast_output.weight", "norm.weight"])
@pytest.mark.parametrize("reproducible", [False, True])
def test_what_a_model_makes_of_nan_is_not_spoken(
    checkpoint: Path, load: Any, voices: list[Voice], tmp_path: Path, weight: str, reproducible: bool
) -> None:
    """Logits that are no numbers fail their segment with what helps, and leave no file."""
    folder = damaged(checkpoint, tmp_path / "damaged", "model.pth", weight)
    loaded = load(folder, slots=2, reproducible=reproducible)
    outcomes = loaded.speak(*(segment(ticket, voices[ticket % 2], tmp_path) for ticket in range(3)))
    for ticket, outcome in outcomes.items():
        assert isinstance(outcome, Failed)
        assert outcome.code == "non_finite"
        assert "fp32" in outcome.message
        assert "damaged" in outcome.message
        assert not (tmp_path / f"{ticket}.wav").exists()


def test_a_row_of_nan_harms_no_other(checkpoint: Path, load: Any, voices: list[Voice], tmp_path: Path) -> None:
    """With NaN for one token of the text, lines with it fail; those beside them, and those that come to their place in
    the cache, are spoken as by the sound model."""
    shape = {"slots": 2, "reproducible": True}
    sound = load(**shape)
    token = int(sound.engine._prompter.suffix("Z")[0, 0])
    assert token not in sound.engine._prompter.suffix("So be it.")[0]
    folder = damaged(checkpoint, tmp_path / "damaged", "model.pth", "embeddings.weight", token)
    spoilt = load(folder, **shape)
    texts = ["So be it.", "Z", "So be it.", "Z", "So be it.", "So be it."]
    segments = [segment(ticket, voices[0], tmp_path, text=text) for ticket, text in enumerate(texts)]
    outcomes = spoilt.speak(*segments)
    found = {ticket: (tmp_path / f"{ticket}.wav").read_bytes() for ticket in (0, 2, 4, 5)}
    assert {ticket for ticket, outcome in outcomes.items() if isinstance(outcome, Failed)} == {1, 3}
    sound.speak(*(segments[ticket] for ticket in found))
    assert found == {ticket: (tmp_path / f"{ticket}.wav").read_bytes() for ticket in found}


def test_a_codec_of_nan_neither_speaks_nor_encodes(
    checkpoint: Path, load: Any, voices: list[Voice], tmp_path: Path
) -> None:
    """Samples and codes made of NaN fail with their code, and no such codes are kept."""
    state = torch.load(checkpoint / "codec.pth", weights_only=True)
    folder = damaged(checkpoint, tmp_path / "damaged", "codec.pth", next(n for n in state if n.startswith("decoder")))
    (outcome,) = load(folder).speak(segment(1, voices[0], tmp_path)).values()
    assert isinstance(outcome, Failed)
    assert outcome.code == "non_finite"
    name = next(n for n in state if n.startswith("encoder") and state[n].ndim == 3)
    folder = damaged(checkpoint, tmp_path / "damaged2", "codec.pth", name)
    recording = tmp_path / "voice.wav"
    soundfile.write(recording, 0.3 * np.sin(np.arange(44100) / 20), 44100)
    digest = hashlib.sha256(recording.read_bytes()).hexdigest()
    voice = Voice("voice", (Reference(str(recording), "recording", digest, "What is said."),))
    (outcome,) = load(folder, cache=str(tmp_path / "cache")).speak(segment(2, voice, tmp_path)).values()
    assert isinstance(outcome, Failed)
    assert outcome.code == "non_finite"
    assert "voice.wav" in outcome.message
    assert not list(tmp_path.glob("cache/*.npy"))

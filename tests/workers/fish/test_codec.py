"""The codec against fish-speech's own, on a small one of the same classes; and folders that hold none."""

from __future__ import annotations

import io
import pickle
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.engine import EngineError

torch = pytest.importorskip("torch")
pytest.importorskip("fish_speech")

from workers.engines.fish.codec import Codec  # noqa: E402
from workers.engines.fish.codec_shape import packaged_description, parse_description  # noqa: E402
from workers.engines.fish.make_codec import make_codec  # noqa: E402
from workers.engines.fish.stock_codec import no_initial_values, stock_codec  # noqa: E402

FRAME = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small codec. Not to be changed."""
    path = tmp_path_factory.mktemp("codec")
    make_codec(str(path), "tiny", 3)
    return path


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "codec"))


@pytest.fixture
def codec(folder: Path) -> Codec:
    return Codec.load(str(folder), "cpu", torch.float32)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    """fish-speech's DAC with the same weights, built and loaded as fish-speech does."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated
        model = instantiate(OmegaConf.load(folder / "codec.yaml"))
    state = torch.load(folder / "codec.pth", weights_only=True)
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval()


def stock_decode(stock: Any, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.inference_mode():
        audio = stock.decode(torch.from_numpy(codes)[None], torch.tensor([codes.shape[1]]))[0]
    return np.asarray(audio[0, 0])


def some_codes(frames: int, seed: int) -> NDArray[np.int64]:
    random = np.random.default_rng(seed)
    return np.concatenate((random.integers(0, 4096, (1, frames)), random.integers(0, 1024, (9, frames))))


def some_audio(samples: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def test_its_measures(codec: Codec) -> None:
    """Those that the rest of the engine builds on."""
    assert (codec.sample_rate, codec.frame_samples, codec.num_codebooks) == (44100, FRAME, 10)
    assert codec.codebook_sizes == (4096,) + (1024,) * 9


@pytest.mark.parametrize("frames", [1, 7, 24, 25, 61])
def test_decodes_as_stock(codec: Codec, stock: Any, frames: int) -> None:
    """Whole pieces or not, the samples are stock's."""
    codes = some_codes(frames, frames)
    audio = codec.decode_one(codes)
    assert audio.shape == (frames * FRAME,)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, stock_decode(stock, codes), rtol=0, atol=1e-5)


def test_random_weights_can_be_heard(codec: Codec) -> None:
    """What the small codec says is neither silence nor clipped, so that checks on it mean something."""
    audio = codec.decode_one(some_codes(30, 0))
    assert 0.03 < float(audio.std()) < 0.3
    assert float(np.abs(audio).max()) < 0.99


def test_the_length_of_pieces_changes_nothing(codec: Codec) -> None:
    """A piece remembers all that it needs of the one before."""
    codes = some_codes(40, 1)
    codec.piece_row_frames = 1000
    whole = codec.decode_one(codes)
    codec.piece_row_frames = 8
    np.testing.assert_allclose(codec.decode_one(codes), whole, rtol=0, atol=1e-5)


def test_company_and_padding_change_nothing(codec: Codec) -> None:
    """Rows of all lengths decoded together have the samples that they have alone, in the order they came."""
    rows = [some_codes(frames, frames) for frames in (3, 40, 1, 17, 0, 40, 26)]
    alone = [codec.decode_one(row) for row in rows]
    codec.batch_rows = 4
    codec.piece_row_frames = 32
    together = codec.decode(rows)
    assert [len(audio) for audio in together] == [row.shape[1] * FRAME for row in rows]
    for expected, audio in zip(alone, together, strict=True):
        np.testing.assert_allclose(audio, expected, rtol=0, atol=1e-5)


def test_decoding_alone_repeats_bit_for_bit(folder: Path, codec: Codec) -> None:
    """The reproducible mode builds on it: another process, what was decoded before, nothing matters."""
    codes = some_codes(30, 5)
    first = codec.decode_one(codes)
    again = Codec.load(str(folder), "cpu", torch.float32)
    again.decode_one(some_codes(51, 6))
    assert np.array_equal(again.decode_one(codes), first)


def test_codes_over_their_codebook_are_its_last(codec: Codec, stock: Any) -> None:
    """As stock takes them."""
    codes = some_codes(5, 2)
    codes[3, 2], codes[0, 1] = 4095, 9999
    np.testing.assert_allclose(codec.decode_one(codes), stock_decode(stock, codes), rtol=0, atol=1e-5)


def test_half_precision_is_as_good_as_half_precision_can_be(folder: Path, codec: Codec) -> None:
    """bfloat16 stays 25 dB, float16 40 dB below the signal; measured on the packaged codec's shape they are at 35
    and 53 dB, where stock under autocast is at 35 and 53."""
    codes = some_codes(30, 4)
    exact = codec.decode_one(codes)
    for precision, decibels in ((torch.bfloat16, 25), (torch.float16, 40)):
        error = Codec.load(str(folder), "cpu", precision).decode_one(codes) - exact
        assert 10 * np.log10(np.mean(exact**2) / np.mean(error**2)) > decibels


@pytest.mark.parametrize("samples", [1, FRAME, FRAME * 30 - 700])
def test_encodes_as_stock(codec: Codec, stock: Any, samples: int) -> None:
    """The codes are stock's, the last frame filled up with silence."""
    audio = some_audio(samples, samples)
    codes = codec.encode([audio])[0]
    with torch.inference_mode():
        expected = stock.encode(torch.from_numpy(audio)[None, None])[0][0].numpy()
    assert codes.dtype == np.int64
    assert np.array_equal(codes, expected)


def test_recordings_encoded_together_have_the_codes_they_have_alone(codec: Codec) -> None:
    """Whatever their lengths; one without samples has no frames."""
    recordings = [some_audio(frames * FRAME - 100, frames) for frames in (2, 33, 9)]
    recordings.insert(1, some_audio(0, 0))
    alone = [codec.encode([recording])[0] for recording in recordings]
    codec.release_encoder()
    codec.batch_rows = 4
    for expected, codes in zip(alone, codec.encode(recordings), strict=True):
        assert codes.shape == expected.shape
        # A code may flip where two codebook entries are equally near.
        assert np.mean(codes != expected) < 0.01 if expected.size else True


def test_the_identity_is_that_of_the_content(codec: Codec, own_folder: Path, tmp_path: Path) -> None:
    """A copy has the same one; other weights have another."""
    assert Codec.load(str(own_folder), "cpu", torch.float32).codec_id == codec.codec_id
    other = tmp_path / "other"
    other.mkdir()
    make_codec(str(other), "tiny", 4)
    assert Codec.load(str(other), "cpu", torch.float32).codec_id != codec.codec_id


def test_weights_of_a_training_checkpoint(codec: Codec, own_folder: Path) -> None:
    """The codec is found under state_dict and generator., whatever else the file trains."""
    path = own_folder / "codec.pth"
    state = {f"generator.{name}": value for name, value in torch.load(path, weights_only=True).items()}
    state["discriminator.weight"] = torch.ones(3)
    torch.save({"state_dict": state}, path)
    codes = some_codes(4, 8)
    loaded = Codec.load(str(own_folder), "cpu", torch.float32)
    assert np.array_equal(loaded.decode_one(codes), codec.decode_one(codes))


def test_the_tables_that_stock_computes_may_be_in_the_file(codec: Codec, own_folder: Path, stock: Any) -> None:
    """As they are in the published one."""
    torch.save(dict(stock.state_dict()), own_folder / "codec.pth")
    codes = some_codes(4, 8)
    loaded = Codec.load(str(own_folder), "cpu", torch.float32)
    assert np.array_equal(loaded.decode_one(codes), codec.decode_one(codes))


@pytest.mark.parametrize("packaged", [False, True])
def test_its_weights_are_those_of_fish_speechs_classes(folder: Path, packaged: bool) -> None:
    """Name for name and size for size, for the small codec and for the packaged one, which is built without memory."""
    description = packaged_description() if packaged else (folder / "codec.yaml").read_text()
    with torch.device("meta"), no_initial_values():
        model = stock_codec(description)
    shape = parse_description(description)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {**shape.weights(), **shape.tables()} == expected
    assert (shape.sample_rate, shape.frame_samples) == (model.sample_rate, model.frame_length)


def test_the_earlier_names_of_a_weight_norm(codec: Codec, own_folder: Path) -> None:
    """torch has renamed its parts since some codecs were written."""
    path = own_folder / "codec.pth"
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in torch.load(path, weights_only=True).items()
    }
    torch.save(state, path)
    codes = some_codes(4, 8)
    loaded = Codec.load(str(own_folder), "cpu", torch.float32)
    assert np.array_equal(loaded.decode_one(codes), codec.decode_one(codes))


def test_torchaudio_is_as_absent_as_before(codec: Codec) -> None:
    """The stand-in leaves no trace: other libraries look whether it is installed."""
    assert getattr(sys.modules.get("torchaudio"), "__file__", "absent") is not None


def refusal(folder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        Codec.load(str(folder), "cpu", torch.float32)
    assert caught.value.code == "bad_checkpoint"
    return str(caught.value)


def test_no_weights(own_folder: Path) -> None:
    """The message says which file is to be copied where."""
    (own_folder / "codec.pth").unlink()
    assert "codec.pth is missing" in refusal(own_folder)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_copied_weights(own_folder: Path, share: float) -> None:
    """A file that ends early is told from one of another model."""
    path = own_folder / "codec.pth"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "copied whole" in refusal(own_folder)


def test_weights_of_the_packaged_codec_need_no_description(own_folder: Path) -> None:
    """And weights of another one without theirs are refused, with the hint that it is missing."""
    (own_folder / "codec.yaml").unlink()
    assert "codec.yaml must lie beside it" in refusal(own_folder)


@pytest.mark.parametrize("name", ["decoder.model.0.conv.bias", "quantizer.quantizer.quantizers.8.codebook.weight"])
def test_a_missing_weight(own_folder: Path, name: str) -> None:
    """Stock would go on with random values in its place."""
    path = own_folder / "codec.pth"
    state = torch.load(path, weights_only=True)
    del state[name]
    torch.save(state, path)
    assert name in refusal(own_folder)


def test_a_weight_too_many(own_folder: Path) -> None:
    """It is the codec of another model, which happens to have all that this one has."""
    path = own_folder / "codec.pth"
    torch.save({**torch.load(path, weights_only=True), "decoder.model.9.conv.bias": torch.ones(1)}, path)
    assert "decoder.model.9.conv.bias" in refusal(own_folder)


@pytest.mark.parametrize("content", [[1, 2], {"model": "x"}, {"state_dict": {"a": 1}}])
def test_a_file_of_something_else(own_folder: Path, content: object) -> None:
    """Anything that torch can read, and no weights."""
    torch.save(content, own_folder / "codec.pth")
    refusal(own_folder)


class Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("intruder"),)


@pytest.mark.parametrize("form", ["pickle", "archive"])
def test_weights_run_no_code(own_folder: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Neither in torch's old format nor in its present one."""
    monkeypatch.chdir(own_folder)
    path = own_folder / "codec.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Intruder()))
    else:
        whole = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                content = pickle.dumps(Intruder()) if entry.filename.endswith("data.pkl") else source.read(entry)
                target.writestr(entry, content)
    refusal(own_folder)
    assert not (own_folder / "intruder").exists()


@pytest.mark.parametrize(
    "description",
    [
        "_target_: pathlib.Path.touch\nself: {_target_: pathlib.Path, _args_: [intruder]}\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nquantizer: {_target_: os.system, command: touch intruder}\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nsample_rate: ${oc.env:HOME}\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\n_args_: [1]\n",
        "_target_: fish_speech.models.dac.modded_dac.ModelArgs\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nno_such_thing: 3\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nquantizer: &self\n  pre_module: *self\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nencoder_rates: [2, -4]\n",
        "_target_: fish_speech.models.dac.modded_dac.DAC\nsample_rate: 99999999999999\n",
        "2001-99-99",
        "!!python/object/apply:os.system [touch intruder]",
        "just text",
        "{",
        "",
        "a: [\n" * 2000,
        "#" * 100_000,
    ],
)
def test_a_description_builds_a_codec_and_nothing_else(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, description: str
) -> None:
    """Whatever codec.yaml names, only the codec's own classes are called."""
    monkeypatch.chdir(own_folder)
    (own_folder / "codec.yaml").write_text(description)
    refusal(own_folder)
    assert not (own_folder / "intruder").exists()


def test_a_codec_that_is_not_causal_is_refused(own_folder: Path) -> None:
    """It can't be decoded in pieces."""
    path = own_folder / "codec.yaml"
    path.write_text(path.read_text() + "causal: false\n")
    refusal(own_folder)

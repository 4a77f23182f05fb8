"""`zoo encode` and `zoo decode` of recordings: short ones at once, long ones piece by piece, with the same tokens."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import zoo
import zoo.cli.encode
from zoo.tokens import Tokens

RATE = 8000


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved codec of two codebooks with random weights."""
    torch.manual_seed(0)
    level = {"kind": "vector", "codebook_size": 16, "dim": 6}
    model = zoo.create_model(
        "dac_16khz", sample_rate=RATE, channels=2, strides=(4, 5), decoder_channels=8, decoder_strides=(5, 4),
        quantizer="residual", num_levels=2, level=level,
    )  # fmt: skip
    return zoo.save_model(model, tmp_path_factory.mktemp("models") / "codec").parent


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, int(RATE * 1.5))
    soundfile.write(tmp_path / "clip.wav", samples, RATE)
    return tmp_path / "clip.wav"


@pytest.mark.parametrize("long", [False, True])
def test_a_recording_goes_to_tokens_and_back(
    run: Callable, codec: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if long:  # what is longer than a second goes piece by piece
        monkeypatch.setattr(zoo.cli.encode, "LONG", 1.0)
        monkeypatch.setattr("zoo.cli.decode.LONG", 1.0)
    assert "(1.50 s)" in run("encode", clip, "--model", codec).stdout
    model = zoo.create_model(f"local-dir:{codec}")
    tokens = Tokens.load(clip.with_suffix(".ztok"))
    x = zoo.media.load(clip, model.spec)
    assert tokens == model.encode(x)
    run("decode", clip.with_suffix(".ztok"), "--model", codec)
    decoded, rate = soundfile.read(clip.with_name("clip_decoded.wav"), dtype="float32")
    assert rate == RATE
    expected = model.decode(tokens)[0, 0].clamp(-1, 1).numpy()
    np.testing.assert_allclose(decoded, expected, atol=1e-4)


def test_a_bitrate_chooses_codebooks(run: Callable, codec: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.cli.encode, "LONG", 1.0)
    model = zoo.create_model(f"local-dir:{codec}")
    run("encode", clip, "--model", codec, "--bitrate", model.bitrates[0])
    assert len(Tokens.load(clip.with_suffix(".ztok")).levels) == 1


def test_a_model_that_sees_everything_encodes_at_once_and_says_so(
    run: Callable, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.cli.encode, "LONG", 1.0)
    torch.manual_seed(0)
    network = {"filters": 2, "strides": [4, 5], "bidirectional": True, "causal": False}
    quantizer = {"kind": "vector", "codebook_size": 8, "dim": 4}
    model = zoo.create_model("speechtokenizer_16khz", sample_rate=RATE, network=network, quantizer=quantizer)
    zoo.save_model(model, tmp_path / "model")
    assert "encoded at once" in run("encode", clip, "--model", tmp_path / "model").stderr
    assert Tokens.load(clip.with_suffix(".ztok")) == model.encode(zoo.media.load(clip, model.spec))


def test_senseless_options_and_files_are_refused(run: Callable, codec: Path, tiny: Path, clip: Path) -> None:
    assert "for images alone" in run("encode", clip, "--model", codec, "--tile", 8, expect=1).stderr
    assert "--bitrate for recordings" in run("encode", clip, "--model", tiny, "--bitrate", 8, expect=1).stderr
    clip.write_bytes(b"RIFF")
    assert "clip.wav" in run("encode", clip, "--model", codec, expect=1).stderr

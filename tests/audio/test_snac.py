"""SNAC: its noise is the caller's, and its configs say what they need."""

from typing import Any

import pytest
import torch
from test_codecs import MODELS, signal

from audio.snac import SNAC, SNACConfig, config_from_original, largest_stride, multi_scale_codebooks
from zoo.config import ConfigError
from zoo.quantizers import VectorConfig


def test_noise_is_of_a_seed_or_given() -> None:
    model = MODELS["snac"]
    tokens = model.encode(signal(model, 400, items=2))
    default = model.decode(tokens)
    assert torch.equal(model.decode(tokens), default)
    assert torch.equal(model.decode(tokens, seed=0), default)
    assert torch.equal(model.decode(tokens, seed=[0, 0]), default)
    other = model.decode(tokens, seed=[0, 5])
    assert torch.equal(other[0], default[0])
    assert not torch.equal(other[1], default[1])
    torch.testing.assert_close(model.decode(tokens[1], seed=5)[0], other[1], rtol=1e-4, atol=1e-5)
    count = sum(model.noise_lengths(tokens.levels[-1].shape[1]))
    silent = model.decode(tokens, noise=torch.zeros(2, count))
    assert not torch.equal(silent, default)
    with pytest.raises(ValueError, match=rf"noise: expected \(2, {count}\), got \(2, 7\)"):
        model.decode(tokens, noise=torch.zeros(2, 7))
    with pytest.raises(ValueError, match="seed: expected 2"):
        model.decode(tokens, seed=[1, 2, 3])


def test_training_draws_noise_anew() -> None:
    model = MODELS["snac"]
    codes = torch.zeros(1, 8, model.quantizer.config.dim)
    model.train()
    try:
        with torch.no_grad():
            assert not torch.equal(model.reconstruct(codes), model.reconstruct(codes))
    finally:
        model.eval()


def test_levels_are_of_their_rates() -> None:
    model = MODELS["snac"]
    tokens = model.encode(signal(model, 16 * 20))
    assert [level.shape[1] for level in tokens.levels] == [20, 40, 80]
    assert model.layout == "scales"
    ids = tokens.flatten(order="frame")
    assert ids.shape == (1, 140)
    assert torch.equal(model.decode(model.tokens(ids, extent=(320,), order="frame")), model.decode(tokens))


@pytest.mark.parametrize("strides", [(2, 2), (1, 1), (6, 3, 1)])
def test_other_strides_and_no_noise(strides: tuple[int, ...]) -> None:
    quantizer = multi_scale_codebooks(16, 4, 12, strides)
    model = SNAC(
        SNACConfig(
            sample_rate=1000, channels=3, strides=(2, 3), decoder_channels=8, decoder_strides=(3, 2), noise=False,
            quantizer=quantizer,
        )
    ).eval()  # fmt: skip
    x = torch.rand(2, 1, 100) - 0.5
    tokens = model.encode(x)
    frames = -(-100 // (6 * strides[0])) * strides[0]
    assert [level.shape[1] for level in tokens.levels] == [frames // stride for stride in strides]
    assert tokens.layout == ("scales" if max(strides) > 1 else "frames")
    with torch.no_grad():
        torch.testing.assert_close(model.decode(tokens), model(x).reconstruction)
    with pytest.raises(ValueError, match="does not take seed"):
        model.decode(tokens, seed=1)


def test_largest_stride() -> None:
    assert largest_stride(multi_scale_codebooks(8, 2, 4, (8, 4, 2, 1))) == 8
    assert largest_stride(VectorConfig(8, 2)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_window": 32, "channels": 3}, "expected multiples of 64 channels"),
        ({"attention_window": 0}, "expected a window of 1"),
        ({"strides": [2, 4]}, "expected decoder strides of product 8"),
        ({"decoder_channels": 24}, "expected a multiple of 16 channels"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SNACConfig().replace(**fields)


def test_what_is_not_stated_is_at_the_originals_defaults() -> None:
    config = config_from_original({"original": {"kwargs": {"encoder_dim": 16, "attn_window_size": None}}})
    assert config == SNACConfig(
        sample_rate=44100, channels=16, strides=(3, 3, 7, 7), decoder_channels=1536, decoder_strides=(7, 7, 3, 3),
        quantizer=multi_scale_codebooks(4096, 8, 256, (8, 4, 2, 1)),
    )  # fmt: skip

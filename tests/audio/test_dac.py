"""DAC: transformers' DacModel gives the same tokens and audio."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from audio.dac import DAC, KEY_MAP_TRANSFORMERS, DACConfig, config_from_original, residual_codebooks
from zoo import checkpoint
from zoo.config import ConfigError

SMALL: dict[str, Any] = {
    "encoder_hidden_size": 4, "downsampling_ratios": [2, 4, 4], "decoder_hidden_size": 32, "n_codebooks": 4,
    "codebook_size": 64, "codebook_dim": 6, "sampling_rate": 4000,
}  # fmt: skip


def theirs(folder: Path, **sizes: Any) -> Any:
    """A DacModel with random weights, saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.DacModel(transformers.DacConfig(**sizes)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("alpha"):
                value.uniform_(0.5, 2.0)
            elif value.ndim == 3:
                value.mul_(1 / value[0].numel() ** 0.5 / value.std().clamp_min(1e-6))
    model.save_pretrained(folder)
    return model


def assert_same(model: zoo.Tokenizer, other: Any, samples: int) -> None:
    x = torch.rand(2, 1, samples) - 0.5
    tokens = model.encode(x)
    with torch.no_grad():
        codes = other.encode(x).audio_codes
        audio = other.decode(audio_codes=codes).audio_values
    assert torch.equal(tokens.indices, codes)
    decoded = model.decode(tokens)
    assert decoded.shape == x.shape
    torch.testing.assert_close(decoded[:, 0, : audio.shape[-1]], audio, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.encode(x, num_codebooks=2).indices, codes[:, :2])


@pytest.mark.parametrize("ratios", [[2, 4, 4], [2, 5, 3]])
def test_saved_folder_of_transformers_loads_and_agrees(ratios: list[int], tmp_path: Path) -> None:
    other = theirs(tmp_path, **{**SMALL, "downsampling_ratios": ratios})
    saved = json.loads((tmp_path / "config.json").read_text())
    model = DAC(config_from_original({"original": {"kwargs": saved}})).eval()
    checkpoint.load_into(model, KEY_MAP_TRANSFORMERS(checkpoint.read(tmp_path / "model.safetensors")))
    assert_same(model, other, 16 * model.spec.multiple)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("dac_44khz.transformers", {"downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9, "sampling_rate": 44100}),
        ("dac_24khz.transformers", {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32, "sampling_rate": 24000}),
        ("dac_16khz.transformers", {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12, "sampling_rate": 16000}),
    ],
)
def test_full_size_folder_of_transformers_loads_and_agrees(name: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    other = theirs(tmp_path, **sizes)
    assert_same(zoo.create_model(name, checkpoint=tmp_path / "model.safetensors"), other, 5120)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strides": [2, 4]}, "expected decoder strides of product 8"),
        ({"decoder_channels": 24}, "expected a multiple of 16 channels"),
        ({"sample_rate": 0}, "expected sample_rate >= 1"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DACConfig().replace(**fields)


def test_what_is_not_stated_is_at_the_originals_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    assert config_from_original({"original": {"kwargs": {}}}) == DACConfig(
        quantizer=residual_codebooks(1024, 8, 1024, 9)
    )
    stated = transformers.DacConfig(downsampling_ratios=[2, 5]).to_dict()
    few = {"downsampling_ratios": [2, 5], "sampling_rate": 16000}
    assert config_from_original({"original": {"kwargs": few}}) == config_from_original({"original": {"kwargs": stated}})

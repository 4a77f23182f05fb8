"""X-Codec: transformers' XcodecModel, with a speech model of its own, gives the same tokens and audio."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from audio.encodec import residual_codebooks
from audio.speech_features import HiddenStates, HiddenStatesConfig
from audio.xcodec import KEY_MAP_TRANSFORMERS, XCodec, XCodecConfig
from zoo import checkpoint

SPEECH_MODEL: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
ACOUSTIC: dict[str, Any] = {
    "encoder_hidden_size": 2, "decoder_hidden_size": 32, "hidden_size": 16, "downsampling_ratios": [8, 5, 4, 2],
    "upsampling_ratios": [8, 5, 4, 2],
}  # fmt: skip


def theirs(folder: Path) -> Any:
    """An XcodecModel with random weights, saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    speech = transformers.HubertConfig(**SPEECH_MODEL)
    config = transformers.XcodecConfig(
        acoustic_model_config=transformers.DacConfig(**ACOUSTIC), semantic_model_config=speech, codebook_size=32,
        codebook_dim=40, target_bandwidths=[0.25, 1.0],
    )  # fmt: skip
    model = transformers.XcodecModel(config).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if ".embed" in key:
                value.normal_()
            elif "semantic" in key and value.ndim > 1 and not key.startswith("semantic_model"):
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def ours(folder: Path, other: Any) -> XCodec:
    count = other.config.num_quantizers
    features = HiddenStatesConfig(width=24, padding=160)
    config = XCodecConfig(16_000, 2, (8, 5, 4, 2), 32, 16, features, residual_codebooks(32, 40, count))
    model = XCodec(config).eval()
    checkpoint.load_into(model, KEY_MAP_TRANSFORMERS(checkpoint.read(folder)))
    assert isinstance(model.features, HiddenStates)
    model.features.use(other.semantic_model)
    return model


def test_saved_folder_of_transformers_loads_and_agrees(tmp_path: Path) -> None:
    other = theirs(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "xcodec"
    model = ours(tmp_path, other)
    x = torch.rand(2, 1, 320 * 9) - 0.5
    with torch.no_grad():
        codes = torch.cat([other.encode(item[None], bandwidth=1.0).audio_codes for item in x])
        audio = other.decode(codes).audio_values
    tokens = model.encode(x)
    assert torch.equal(tokens.indices, codes)
    torch.testing.assert_close(model.decode(tokens), audio, rtol=1e-4, atol=1e-5)
    few = model.encode(x, bitrate=250)
    assert torch.equal(few.indices, codes[:, :1])


def test_a_clip_shorter_than_a_frame_and_any_tail_come_back(tmp_path: Path) -> None:
    model = ours(tmp_path, theirs(tmp_path))
    for samples in (1, 319, 321, 1000):
        x = torch.rand(1, 1, samples) - 0.5
        tokens = model.encode(x)
        assert tokens.indices.shape[-1] == -(-samples // 320)
        assert model.decode(tokens).shape == x.shape


def test_decoding_needs_no_speech_model_and_encoding_says_which(tmp_path: Path) -> None:
    config = XCodecConfig(
        16_000, 2, (8, 5, 4, 2), 32, 16, HiddenStatesConfig(24, padding=160, repo=str(tmp_path)),
        residual_codebooks(32, 40, 2),
    )  # fmt: skip
    model = XCodec(config).eval()
    assert model.decode(model.tokens(torch.zeros(1, 2, 3, dtype=torch.int64))).shape == (1, 1, 960)
    with pytest.raises(OSError, match="cannot be read; decoding works without it"):
        model.encode(torch.zeros(1, 1, 960))

"""X-codec2 with a real, small speech model: transformers' Xcodec2Model gives the same tokens and audio."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from audio.speech_features import MelFeaturesConfig, Wav2Vec2BertConfig
from audio.xcodec2 import KEY_MAP_TRANSFORMERS, XCodec2, XCodec2Config, scalars
from zoo import checkpoint

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[XCodec2, Any]:
    """Ours, and a small model of transformers with random weights, from whose saved folder it was loaded."""
    folder = tmp_path_factory.mktemp("xcodec2")
    torch.manual_seed(0)
    speech = transformers.Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_depthwise_kernel_size=5
    )
    config = transformers.Xcodec2Config(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, encoder_hidden_size=2, quantization_dim=80, semantic_model_config=speech,
    )  # fmt: skip
    theirs = transformers.Xcodec2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(folder)
    theirs.semantic_encoder.save_pretrained(folder / "speech")
    ours = XCodec2(
        XCodec2Config(
            channels=2,
            features=Wav2Vec2BertConfig(width=16, layer=2, repo=str(folder / "speech")),
            width=64,
            layers=2,
            heads=2,
            quantizer=scalars(80),
        )
    ).eval()
    checkpoint.load_into(ours, KEY_MAP_TRANSFORMERS(checkpoint.read(folder)))
    return ours, theirs


@pytest.mark.parametrize("samples", [3200, 4001])
def test_model_of_transformers_agrees(pair: tuple[XCodec2, Any], samples: int) -> None:
    ours, theirs = pair
    x = torch.rand(1, 1, samples, generator=torch.Generator().manual_seed(samples)) - 0.5
    tokens = ours.encode(x)
    assert tokens.indices.shape == (1, 1, samples // 320 + 1)
    padded = F.pad(x, (0, 320 - samples % 320))
    extractor = transformers.SeamlessM4TFeatureExtractor()
    features = extractor(F.pad(padded[0, 0], (160, 160)).numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        codes = theirs.encode(padded, features.input_features).audio_codes
        audio = theirs.decode(codes).audio_values
    assert torch.equal(tokens.indices, codes.reshape(1, 1, -1))
    torch.testing.assert_close(ours.decode(tokens), audio[..., :samples].reshape(1, 1, -1), rtol=1e-4, atol=1e-4)


def test_items_do_not_depend_on_their_batch(pair: tuple[XCodec2, Any]) -> None:
    ours, _ = pair
    x = torch.rand(3, 1, 2000, generator=torch.Generator().manual_seed(0)) - 0.5
    x[1] *= 0.01  # the features are normalised item by item
    together = ours.encode(x).indices
    for i in range(3):
        assert torch.equal(ours.encode(x[i : i + 1]).indices, together[i : i + 1])


def test_speech_model_is_no_part_of_the_weights_and_decoding_does_not_need_it(pair: tuple[XCodec2, Any]) -> None:
    ours, _ = pair
    alone = XCodec2(ours.config.replace(features=Wav2Vec2BertConfig(width=16, layer=2, repo="/nowhere")))
    alone.load_state_dict(ours.state_dict())
    x = torch.rand(1, 1, 1000) - 0.5
    tokens = ours.encode(x)
    raw = alone.tokens(tokens.indices, extent=(1000,))
    torch.testing.assert_close(alone.decode(raw), ours.decode(tokens))


def test_features_have_one_frame_a_hop_at_any_length() -> None:
    for hop, width in ((10, 6), (320, 80)):
        features = MelFeaturesConfig(width).build(16_000, hop)
        for frames in (1, 2, 7):
            assert features(torch.rand(2, 1, frames * hop)).shape == (2, frames, width)
    with pytest.raises(ValueError, match="expected a codec of these, got 200 at 16000"):
        Wav2Vec2BertConfig().build(16_000, 200)

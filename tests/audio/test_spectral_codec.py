"""The zoo's own codec: lengths, rates, and what its transforms are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from audio.spectral_codec import CompressedSpectrum, SpectralCodec, SpectralCodecConfig
from zoo.cli.samples import synthetic_voice
from zoo.config import ConfigError
from zoo.metrics.audio import mel_distance
from zoo.quantizers import ResidualConfig, VectorConfig

SMALL = SpectralCodecConfig(
    n_fft=32, hop_length=8, encoder_widths=(8, 12), encoder_blocks=(1, 1), decoder_widths=(12, 8),
    decoder_blocks=(1, 1), quantizer=ResidualConfig(VectorConfig(16, 4), num_levels=3),
)  # fmt: skip


def codec(config: SpectralCodecConfig = SMALL) -> SpectralCodec:
    torch.manual_seed(0)
    return SpectralCodec(config).eval()


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(1, 200), frames=st.integers(1, 4))
def test_any_length_comes_back_in_as_few_tokens_as_cover_it(samples: int, frames: int) -> None:
    model = codec(SMALL.replace(frames_per_token=frames))
    tokens = model.encode(torch.rand(1, 1, samples) - 0.5)
    assert tokens.levels[0].shape == (1, -(-samples // (8 * frames)))
    assert model.decode(tokens).shape == (1, 1, samples)


def test_rates_are_half_a_kilobit_a_codebook() -> None:
    model = SpectralCodec(SpectralCodecConfig())
    assert model.bitrates == tuple(500.0 * count for count in range(1, 13))


def test_the_weights_fit_16_megabytes_in_half_precision() -> None:
    with torch.device("meta"):
        model = SpectralCodec(SpectralCodecConfig())
    assert 2 * sum(value.numel() for value in model.state_dict().values()) <= 16e6


def test_a_spectrum_has_a_frame_for_each_hop_and_magnitudes_to_the_power_of_three_tenths() -> None:
    transform, x = CompressedSpectrum(64, 16), torch.randn(2, 1, 160, dtype=torch.float64).float()
    real, imaginary = transform(x).chunk(2, dim=1)
    assert real.shape == (2, 33, 10)
    padded = torch.nn.functional.pad(x[:, 0], (24, 24))
    frames = torch.fft.rfft(padded.unfold(-1, 64, 16) * torch.hann_window(64)).transpose(1, 2)
    torch.testing.assert_close(torch.complex(real, imaginary).abs(), frames.abs().pow(0.3), rtol=1e-4, atol=1e-4)
    loud = frames.abs() > 0.1
    torch.testing.assert_close(torch.atan2(imaginary, real)[loud], frames.angle()[loud], rtol=1e-3, atol=1e-3)


def test_an_impossible_transform_is_told() -> None:
    with pytest.raises(ConfigError, match="an even n_fft above hop_length 8"):
        SMALL.replace(n_fft=8)
    with pytest.raises(ConfigError, match="at least one block each"):
        SMALL.replace(decoder_blocks=(1, 0))


def test_the_shipped_weights_come_nearer_with_every_rate() -> None:
    model = zoo.create_model("spectral_codec_16khz.speech", pretrained=True)
    voice = torch.from_numpy(synthetic_voice(16000, "aei"))[None]
    distances = [
        mel_distance(model.decode(model.encode(voice[None], bitrate=rate))[0], voice, 16000)
        for rate in (500, 1500, 6000)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * mel_distance(voice.mean() + 0 * voice, voice, 16000)
    assert model.config.quantizer.vocab_sizes == SpectralCodecConfig().quantizer.vocab_sizes

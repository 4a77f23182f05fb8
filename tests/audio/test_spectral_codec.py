"""The zoo's own codec: lengths, rates, and what its transforms are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from audio.spectral_codec import CompressedSpectrum, Envelope, SpectralCodec, SpectralCodecConfig, with_envelope
from zoo.cli.samples import synthetic_voice
from zoo.config import ConfigError
from zoo.long_audio import decode_pieces, encode_pieces
from zoo.metrics.audio import mel_distance
from zoo.quantizers import ResidualConfig, VectorConfig

SMALL = SpectralCodecConfig(
    n_fft=32, hop_length=8, encoder_widths=(8, 12), encoder_blocks=(1, 1), decoder_widths=(12, 8),
    decoder_blocks=(1, 1), quantizer=ResidualConfig(VectorConfig(16, 4), num_levels=3),
)  # fmt: skip
WITH_ENVELOPE = SMALL.replace(
    envelope_bands=5, network_codebooks=2, quantizer=ResidualConfig(VectorConfig(16, 9), num_levels=5)
)


def codec(config: SpectralCodecConfig = SMALL) -> SpectralCodec:
    torch.manual_seed(0)
    model = SpectralCodec(config).eval()
    for name, value in model.named_parameters():
        if name.endswith("codebook.weight"):
            torch.nn.init.normal_(value, std=0.3)
    return model


def ordered(config: SpectralCodecConfig = WITH_ENVELOPE) -> SpectralCodec:
    """A codec whose first codebooks leave the bands alone, and whose last do nothing else, as shipped ones do."""
    model = codec(config)
    for q, level in enumerate(model.quantizer.levels):
        network = q < config.network_codebooks
        level.codebook.weight.data[:, model.width :] *= not network
        level.codebook.weight.data[:, : model.width] *= network
    return model


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(1, 200), frames=st.integers(1, 4), config=st.sampled_from([SMALL, WITH_ENVELOPE]))
def test_any_length_comes_back_in_as_few_tokens_as_cover_it(
    samples: int, frames: int, config: SpectralCodecConfig
) -> None:
    model = codec(config.replace(frames_per_token=frames))
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
    for bands in (-1, 9):
        with pytest.raises(ConfigError, match=f"0 to 8 envelope_bands, got {bands}"):
            WITH_ENVELOPE.replace(envelope_bands=bands)
    for count in (0, 5):
        with pytest.raises(ConfigError, match=f"1 to 4 codebooks, got {count}"):
            WITH_ENVELOPE.replace(network_codebooks=count)


@pytest.mark.parametrize(("rate", "hop", "bands"), [(16_000, 160, 40), (8_000, 64, 7), (24_000, 240, 1)])
def test_bands_add_up_to_one_and_no_change_changes_nothing(rate: int, hop: int, bands: int) -> None:
    envelope, x = Envelope(rate, hop, bands), 0.1 * torch.randn(2, 1, 20 * hop)
    torch.testing.assert_close(envelope.bands.sum(1), torch.ones(len(envelope.bands)))
    levels = envelope.levels(x)
    assert levels.shape == (2, 20, bands)
    torch.testing.assert_close(envelope.changed(x, torch.zeros_like(levels)), x)
    torch.testing.assert_close(envelope.changed(x, torch.full_like(levels, 0.6)), 10**0.3 * x, rtol=1e-3, atol=1e-4)


def test_levels_come_where_they_were_asked_to_be() -> None:
    envelope = Envelope(16_000, 160, 20)
    x = 0.1 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    change = (torch.arange(50)[:, None] / 8 + torch.arange(20) / 5).sin()[None]  # within 10 dB
    reached = envelope.levels(envelope.changed(x, change)) - envelope.levels(x)
    assert float((reached - change).abs().mean()) < 0.1 * float(change.abs().mean())


def test_a_frame_of_the_envelope_is_the_power_of_its_bands() -> None:
    envelope, x = Envelope(8_000, 64, 6), torch.randn(1, 1, 640)
    frames = torch.nn.functional.pad(x[0, 0], (48, 48)).unfold(-1, 160, 64) * torch.hann_window(160)
    power = torch.fft.rfft(frames).abs().square() @ envelope.bands
    torch.testing.assert_close(envelope.levels(x)[0], (power + 1e-5).log10(), rtol=1e-4, atol=1e-4)


def test_the_last_codebooks_code_what_the_first_lack_in_the_bands() -> None:
    model, x = ordered(), torch.rand(1, 1, 320, generator=torch.Generator().manual_seed(0)) - 0.5
    tokens = model.encode(x)
    sound = model.decode(tokens.truncate(2))
    missing = model.envelope.levels(x) - model.envelope.levels(sound)
    expected = missing.unflatten(1, (-1, 2)).mean(2).clamp(-3, 3)
    torch.testing.assert_close(model.latent(x)[..., model.width :], expected)
    for count in (1, 2, 3):
        assert model.encode(x, num_codebooks=count) == tokens.truncate(count)
    torch.testing.assert_close(sound, model.network_sound(model.codes(tokens.truncate(2)))[..., :320])
    change = model.codes(tokens)[..., model.width :].repeat_interleave(2, dim=1)
    torch.testing.assert_close(model.decode(tokens), model.envelope.changed(sound, change))


def test_training_teaches_all_of_the_network_and_leaves_the_codebooks_of_the_first_pass_alone() -> None:
    model = codec(WITH_ENVELOPE).train()
    before = [level.codebook.weight.clone() for level in model.quantizer.levels]
    output = model(torch.rand(2, 1, 320) - 0.5)
    assert model.quantizer.training
    assert all(torch.equal(a, level.codebook.weight) for a, level in zip(before, model.quantizer.levels))
    output.reconstruction.square().sum().backward()
    for part in (model.encoder, model.decoder, model.head):
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in part.parameters())


@pytest.mark.parametrize("config", [SMALL, WITH_ENVELOPE])
@pytest.mark.parametrize("frames", [1, 3])
def test_pieces_are_coded_as_the_whole(config: SpectralCodecConfig, frames: int) -> None:
    model = codec(config.replace(frames_per_token=frames, encoder_blocks=(1, 2), decoder_blocks=(2, 1)))
    x = torch.rand(1, 1, 12_005, generator=torch.Generator().manual_seed(0)) - 0.5
    whole = model.encode(x)
    pieces = encode_pieces(model, x.split(700, dim=-1), seconds=0.1)
    assert pieces == whole
    sound = torch.cat(list(decode_pieces(model, whole, seconds=0.1)), dim=-1)
    torch.testing.assert_close(sound, model.decode(whole), rtol=1e-5, atol=1e-5)


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


def test_fitted_codebooks_bring_the_levels_nearer_one_by_one() -> None:
    model = codec(SMALL.replace(quantizer=ResidualConfig(VectorConfig(16, 4), num_levels=5)))
    draw = torch.Generator().manual_seed(0)
    clips = [torch.rand(1, 1, 1601, generator=draw) * 2 - 1 for _ in range(4)]
    fitted = with_envelope(model, clips, bands=6, network_codebooks=2, generator=draw)
    assert (fitted.config.envelope_bands, fitted.config.network_codebooks, fitted.width) == (6, 2, 4)
    for own, before in zip(fitted.quantizer.levels[:2], model.quantizer.levels):
        assert torch.equal(own.codebook.weight[:, :4], before.codebook.weight)
    tokens = fitted.encode(clips[0])
    for level, before in zip(tokens.levels[:2], model.encode(clips[0]).levels):
        assert torch.equal(level, before)
    wanted = fitted.latent(fitted.pad(clips[0]))[..., 4:]
    left = [(fitted.codes(tokens.truncate(n))[..., 4:] - wanted).square().mean().item() for n in (2, 3, 4, 5)]
    assert left == sorted(left, reverse=True)
    assert left[-1] < 0.5 * left[0]


def test_an_envelope_is_fitted_to_codebooks_alone_and_on_recordings() -> None:
    with pytest.raises(ValueError, match="without an envelope"):
        with_envelope(codec(WITH_ENVELOPE), [torch.zeros(1, 1, 320)])
    with pytest.raises(ValueError, match="residual Euclidean codebooks"):
        with_envelope(codec(SMALL.replace(quantizer=VectorConfig(16, 4))), [torch.zeros(1, 1, 320)])
    with pytest.raises(ValueError, match="at least one recording, got none"):
        with_envelope(codec(), [], network_codebooks=2)

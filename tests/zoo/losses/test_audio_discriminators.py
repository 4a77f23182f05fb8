"""Discriminators of audio: what each network sees, and the losses on their judgements."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.losses.audio_discriminators import (
    BandDiscriminator,
    Judgement,
    PeriodDiscriminator,
    STFTDiscriminatorConfig,
    WaveDiscriminatorConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
    summed_feature_loss,
)

STFT = STFTDiscriminatorConfig(filters=4, n_ffts=(64, 32), hop_lengths=(16, 8), window_lengths=(64, 32))
WAVE = WaveDiscriminatorConfig(periods=(2, 3), period_channels=(4, 8, 8), windows=(128, 64), band_channels=2)


@pytest.mark.parametrize("config", [STFT, WAVE])
def test_configs_survive_json_and_build(config: STFTDiscriminatorConfig | WaveDiscriminatorConfig) -> None:
    assert type(config).from_dict(config.to_dict()) == config
    judged = config.build()(torch.randn(3, 1, 700))
    assert len(judged) == len(config.build().discriminators)
    for judgement in judged:
        assert judgement.logits.shape[:2] == (3, 1)
        assert all(len(feature) == 3 for feature in judgement.features)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(40, 90), period=st.integers(2, 7))
def test_a_period_network_sees_its_samples_alone(length: int, period: int) -> None:
    torch.manual_seed(0)
    network = PeriodDiscriminator(period, (4, 4))
    x = torch.randn(1, 1, length)
    changed = x.clone()
    changed[..., 1 : length - 2 * period : period] += 1.0
    one, other = network(x).logits, network(changed).logits
    columns = (one - other).abs().amax(dim=(0, 1, 2))
    assert columns.shape == (period,)
    assert columns[1] > 0
    assert columns.sum() == columns[1]


def test_a_wave_is_judged_without_its_level_and_offset() -> None:
    network = WAVE.build()
    x = torch.randn(2, 1, 600)
    for a, b in zip(network(x), network(0.01 * x + 0.3)):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-3, atol=1e-4)


def test_bands_are_judged_apart() -> None:
    torch.manual_seed(0)
    network = BandDiscriminator(128, ((0.0, 0.5), (0.5, 1.0)), 2)
    t = torch.arange(1024) / 1024
    low, high = (torch.sin(2 * torch.pi * 8 * cycles * t)[None, None] for cycles in (8, 48))
    silence = network(torch.zeros(1, 1, 1024)).features
    change = [[(a - b).abs().max().item() for a, b in zip(network(x).features, silence)] for x in (low, high)]
    assert change[0][0] > 30 * change[0][5]  # the first map of either band
    assert change[1][5] > 30 * change[1][0]


def judgement(logits: float, *features: float) -> Judgement:
    return Judgement(torch.full((2, 3), logits), tuple(torch.full((2, 2), feature) for feature in features))


def test_losses_by_hand() -> None:
    real, fake = [judgement(0.5, 1, 2), judgement(2.0, 0)], [judgement(-0.5, 2, 2), judgement(0.5, 4)]
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx((0.5 + 0.5 + 0 + 1.5) / 2)
    assert generator_loss(fake, "hinge").item() == pytest.approx(0)
    assert discriminator_loss(real, fake, "clamped_hinge") == discriminator_loss(real, fake, "hinge")
    assert generator_loss(fake, "clamped_hinge").item() == pytest.approx((1.5 + 0.5) / 2)
    assert generator_loss(real, "clamped_hinge").item() == pytest.approx((0.5 + 0) / 2)
    assert discriminator_loss(real, fake, "least_squares").item() == pytest.approx((0.25 + 0.25 + 1 + 0.25) / 2)
    assert generator_loss(fake, "least_squares").item() == pytest.approx((2.25 + 0.25) / 2)
    assert feature_loss(real, fake).item() == pytest.approx((0.5 + 4) / 2)
    assert summed_feature_loss(real, fake).item() == pytest.approx(1 + 0 + 4)
    with pytest.raises(ValueError, match="shorter"):
        feature_loss(real, fake[:1])


@pytest.mark.parametrize("config", [STFT, WAVE])
def test_the_generator_learns_from_features_and_the_target_does_not(
    config: STFTDiscriminatorConfig | WaveDiscriminatorConfig,
) -> None:
    network = config.build()
    real, fake = (torch.randn(1, 1, 600).requires_grad_() for _ in range(2))
    feature_loss(network(real), network(fake)).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_configs_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many sizes each"):
        STFTDiscriminatorConfig(n_ffts=(64,))
    with pytest.raises(ConfigError, match="bands of a bin or more"):
        WaveDiscriminatorConfig(windows=(8,))
    with pytest.raises(ConfigError, match="at least one discriminator"):
        WaveDiscriminatorConfig(periods=(), windows=())

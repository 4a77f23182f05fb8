"""Discriminators of waveforms: what each network sees, and that they learn to tell signals apart."""

import pytest
import torch

from zoo.config import ConfigError
from zoo.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from zoo.losses.audio_discriminators import (
    MultiPeriodConfig,
    MultiSpectralConfig,
    WaveformDiscriminator,
    feature_matching_loss,
)

PERIODS = MultiPeriodConfig((2, 3), (4, 8, 8))
SPECTRA = MultiSpectralConfig((64, 128), (16, 32), channels=4, most_channels=8, strides=(2,))


@pytest.mark.parametrize("length", [600, 601, 605])
def test_a_period_network_sees_every_nth_sample_by_itself(length: int) -> None:
    torch.manual_seed(0)
    network = PERIODS.build().networks[1]
    x = torch.randn(1, 1, length)
    changed = x.clone()
    changed[..., 1::3] += 1.0
    changed[..., -3:] = x[..., -3:]  # the end is reflected into the padding, at other places
    one, other = network(x), network(changed)
    columns = (one[0] - other[0]).abs().amax(dim=(0, 1, 2))
    assert columns.shape == (3,)
    assert columns[1] > 0.01
    assert columns[0] == columns[2] == 0
    whole = MultiPeriodConfig((3,), (4, 8), always_pad=True).build()
    rows = -(-length // 3) + (length % 3 == 0)
    assert whole(x)[0][0].shape[2] == -(-rows // 3)


def test_maps_end_in_logits_and_widths_are_bounded() -> None:
    for config, widths in ((PERIODS, (4, 8, 8, 1)), (SPECTRA, (4, 8, 8, 1))):
        for maps in config.build()(torch.randn(2, 1, 700)):
            assert tuple(feature.shape[1] for feature in maps) == widths
            assert all(len(feature) == 2 and bool(feature.isfinite().all()) for feature in maps)


def test_silence_and_half_precision_are_finite() -> None:
    for config in (PERIODS, SPECTRA):
        discriminator = config.build()
        with torch.autocast("cpu", torch.bfloat16):
            maps = discriminator(torch.zeros(1, 1, 500, requires_grad=True))
        sum(network[-1].float().sum() for network in maps).backward()
        assert all(bool(p.grad.isfinite().all()) for p in discriminator.parameters() if p.grad is not None)


@pytest.mark.parametrize("config", [PERIODS, SPECTRA], ids=["periods", "spectra"])
def test_it_learns_to_tell_noise_from_tones(config: MultiPeriodConfig | MultiSpectralConfig) -> None:
    torch.manual_seed(0)
    discriminator: WaveformDiscriminator = config.build()
    optimizer = torch.optim.Adam(discriminator.parameters(), 5e-3)
    loss_of = DISCRIMINATOR_LOSSES["least_squares"]
    losses = []
    for _ in range(25):
        phase = torch.rand(4, 1, 1) * 6
        real, fake = torch.sin(torch.arange(400) * 0.3 + phase), torch.randn(4, 1, 400) * 0.5
        pairs = zip(discriminator(real), discriminator(fake))
        loss = torch.stack([loss_of(a[-1], b[-1]) for a, b in pairs]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2


def test_least_squares() -> None:
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.5, -1.0])
    assert float(DISCRIMINATOR_LOSSES["least_squares"](real, fake)) == pytest.approx(0.5 + 0.625)
    assert float(GENERATOR_LOSSES["least_squares"](fake)) == pytest.approx((0.25 + 4) / 2)


def test_feature_matching_leaves_the_logits_out_and_the_real_signal_alone() -> None:
    real = [[torch.ones(1, 2, requires_grad=True), torch.zeros(1)], [torch.zeros(3), torch.zeros(1)]]
    fake = [[torch.zeros(1, 2, requires_grad=True), torch.ones(1) * 9], [torch.full((3,), 2.0), torch.ones(1) * 9]]
    loss = feature_matching_loss(real, fake)
    assert float(loss) == 1.0 + 2.0
    loss.backward()
    assert real[0][0].grad is None
    torch.testing.assert_close(fake[0][0].grad, torch.full((1, 2), -0.5))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="periods >= 1"):
        MultiPeriodConfig((0,))
    with pytest.raises(ConfigError, match="a hop length per transform"):
        MultiSpectralConfig((64,), (16, 32))
    with pytest.raises(ConfigError, match="odd kernel sizes"):
        MultiSpectralConfig(kernel_size=4)

"""Losses on spectra and waveforms, and the balancer: values that can be told by hand, invariances, gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.losses.balancer import Balancer, BalancerConfig
from zoo.losses.spectral import MultiScaleMelLoss, MultiScaleMelLossConfig, STFTDistance, framed_si_sdr, si_sdr

MEL = MultiScaleMelLossConfig(sample_rate=8000, n_ffts=(64, 128), n_mels=8, low=20.0)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [MultiScaleMelLoss(MEL), STFTDistance((128, 64))])
def test_spectral_losses_are_distances(loss: torch.nn.Module) -> None:
    x, y = noise(0, 2, 1, 900), noise(1, 2, 1, 900)
    assert loss(x, x).item() == 0
    assert loss(x, y).item() == pytest.approx(loss(y, x).item())
    nearer = x + 0.1 * (y - x)
    assert 0 < loss(nearer, x) < loss(y, x)
    nearer.requires_grad_()
    (slope,) = torch.autograd.grad(loss(nearer, x), nearer)
    with torch.no_grad():
        assert loss(nearer - 1e-2 * slope / slope.norm(), x) < loss(nearer, x)
    stereo = x.view(1, 2, 900), y.view(1, 2, 900)
    assert loss(*stereo).item() == pytest.approx(loss(x, y).item(), rel=1e-5)


def test_terms_of_the_mel_loss_are_weighed() -> None:
    x, y = noise(0, 1, 1, 900), noise(1, 1, 1, 900)
    one = MEL.replace(n_ffts=(64,), normalized=False)
    plain, growing = (MultiScaleMelLoss(one.replace(growing=growing))(x, y) for growing in (False, True))
    spectrogram = MultiScaleMelLoss(one).spectrograms[0]
    logs = [(1e-5 + spectrogram(signal)).log10() for signal in (x, y)]
    assert (growing - plain).item() == pytest.approx((math.sqrt(63) - 1) * F.mse_loss(*logs).item(), rel=1e-4)


def test_the_stft_distance_of_a_louder_signal() -> None:
    """Ten times the magnitudes: the logarithm's term is the power, the other 9 times the mean magnitude."""
    x = noise(0, 1, 1, 800)
    for power in (1.0, 2.0):
        loss = STFTDistance((64,), power)
        magnitude = loss._magnitude(x, 64).mean()
        assert loss(10 * x, x).item() == pytest.approx(power + 9 * magnitude.item(), rel=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 50), decibels=st.floats(-20, 40), offset=st.floats(-1, 1))
def test_si_sdr_knows_no_scale_and_no_offset(seed: int, scale: float, decibels: float, offset: float) -> None:
    target = noise(seed, 2, 4000)
    target = target - target.mean(-1, keepdim=True)
    disturbance = noise(seed + 1000, 2, 4000)
    disturbance = disturbance - disturbance.mean(-1, keepdim=True)
    disturbance = (
        disturbance - (disturbance * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True) * target
    )
    disturbance *= target.norm(dim=-1, keepdim=True) / disturbance.norm(dim=-1, keepdim=True) * 10 ** (-decibels / 20)
    found = si_sdr(scale * (target + disturbance) + offset, target)
    torch.testing.assert_close(found, torch.full((2,), decibels), rtol=1e-3, atol=2e-2)


def test_frames_are_measured_each() -> None:
    target, other = noise(0, 2, 1, 250), noise(1, 2, 1, 250)
    starts = range(0, 250, 50)
    padded = [F.pad(signal, (0, 100)) for signal in (other, target)]
    step = torch.finfo(torch.float32).eps * 100
    each = [si_sdr(*(signal[..., s : s + 100] for signal in padded), epsilon=step).mean() for s in starts]
    torch.testing.assert_close(framed_si_sdr(other, target, 100, 50), torch.stack(each).mean())


# -- the balancer


@pytest.mark.parametrize("per_item", [True, False])
def test_each_loss_has_its_share_whatever_its_size(per_item: bool) -> None:
    x = noise(0, 3, 1, 50).requires_grad_()
    config = BalancerConfig(("a", "b"), (3.0, 1.0), total_norm=2.0, decay=0.0, per_item=per_item)
    small = {"a": 1e-4 * x.square().sum(), "b": 1e4 * (x - 1).square().sum()}

    def norm(gradient: torch.Tensor) -> float:
        return gradient.flatten(1).norm(dim=1).mean().item() if per_item else gradient.norm().item()

    both = Balancer(config)(small, x).gradient
    alone = {name: Balancer(config)({name: small[name]}, x).gradient for name in small}
    assert all(norm(gradient) == pytest.approx(2.0, rel=1e-4) for gradient in alone.values())
    torch.testing.assert_close(both, 0.75 * alone["a"] + 0.25 * alone["b"])


def test_norms_are_running_means_that_survive_a_checkpoint() -> None:
    config = BalancerConfig(("a",), (1.0,), decay=0.5, per_item=False)
    x = torch.ones(1, 4, requires_grad=True)
    balancer = Balancer(config)
    sizes = [balancer({"a": factor * x.sum()}, x).gradient.norm().item() for factor in (1.0, 3.0)]
    assert sizes == pytest.approx([1.0, 6 / ((0.5 * 2 + 6) / 1.5)])
    other = Balancer(config)
    other.load_state_dict(balancer.state_dict())
    assert torch.equal(other({"a": x.sum()}, x).gradient, balancer({"a": x.sum()}, x).gradient)


def test_the_balancer_says_what_it_needs() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    balancer = Balancer(BalancerConfig(("a",), (1.0,)))
    for losses in ({}, {"b": x.sum()}):
        with pytest.raises(ValueError, match="expected losses among a, got"):
            balancer(losses, x)
    for fields in ({"weights": (1.0,)}, {"weights": (0.0,) * 4}, {"decay": 1.0}, {"total_norm": 0.0}):
        with pytest.raises(ConfigError):
            BalancerConfig(**fields)
    with pytest.raises(ConfigError):
        MultiScaleMelLossConfig(n_ffts=())

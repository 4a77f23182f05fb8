"""The loss that is close to STOI, against the package that measures it."""

import math

import numpy as np
import pytest
import torch

from zoo.losses.intelligibility import IntelligibilityLoss


def speechlike(seconds: float, rate: int, seed: int = 0) -> torch.Tensor:
    """Harmonics of a gliding pitch under a syllabic envelope, and faint noise: (1, 1, T)."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    harmonics = sum(draw.uniform(0.2, 1) / k * np.sin(k * phase + draw.uniform(0, 6)) for k in range(1, 30))
    envelope = np.interp(time, np.arange(0, seconds + 0.1, 0.08), draw.uniform(0, 1, math.ceil((seconds + 0.1) / 0.08)))
    return torch.from_numpy(0.1 * harmonics * envelope + draw.normal(0, 1e-4, len(time))).float()[None, None]


@pytest.mark.parametrize("rate", [16_000, 24_000])
@pytest.mark.parametrize("noise", [0.003, 0.01, 0.03])
def test_it_is_close_to_stoi(rate: int, noise: float) -> None:
    pystoi = pytest.importorskip("pystoi")
    x = speechlike(3.0, rate)
    y = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    measured = pystoi.stoi(x[0, 0].numpy(), y[0, 0].numpy(), rate)
    assert 1 - float(IntelligibilityLoss(rate)(y, x)) == pytest.approx(measured, abs=0.02)


def test_the_same_signal_at_any_gain_is_fully_intelligible() -> None:
    x = speechlike(1.5, 16_000)
    loss = IntelligibilityLoss(16_000)
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-3)
    assert float(loss(0.5 * x, x)) == pytest.approx(0, abs=1e-2)
    assert float(loss(torch.randn_like(x), x)) > 0.3


def test_silence_in_the_original_does_not_count() -> None:
    x = speechlike(2.0, 16_000)
    x[..., 16_000:] = 0
    y = x.clone()
    y[..., 18_000:] = 1e-3 * torch.randn(14_000)
    assert float(IntelligibilityLoss(16_000)(y, x)) < 0.02


def test_gradients_lead_to_the_original() -> None:
    x = speechlike(1.0, 16_000)
    y = (x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    loss = IntelligibilityLoss(16_000)
    start = loss(y, x)
    (gradient,) = torch.autograd.grad(start, y)
    assert gradient.isfinite().all()
    with torch.no_grad():
        stepped = loss(y - 0.01 * gradient / gradient.abs().max(), x)
    assert float(stepped) < float(start.detach())


def test_too_short_and_silent_signals_have_finite_gradients() -> None:
    loss = IntelligibilityLoss(16_000)
    for x in (torch.randn(2, 1, 800), torch.zeros(2, 1, 16_000)):
        y = torch.zeros_like(x, requires_grad=True)
        value = loss(y, x)
        value.backward()
        assert float(value) == 1
        assert y.grad.isfinite().all()


def test_channels_and_items_count_alike() -> None:
    x, y = speechlike(1.0, 16_000), speechlike(1.0, 16_000, seed=1)
    loss = IntelligibilityLoss(16_000)
    pair = torch.cat([x, y], dim=1)
    noisy = pair + 0.02 * torch.randn(pair.shape, generator=torch.Generator().manual_seed(0))
    assert float(loss(noisy, pair)) == pytest.approx(float(loss(noisy.transpose(0, 1), pair.transpose(0, 1))), rel=1e-6)


def test_bands_above_half_of_the_sample_rate_are_left_out() -> None:
    assert len(IntelligibilityLoss(16_000).bands) == 15
    assert len(IntelligibilityLoss(4_000).bands) < 15

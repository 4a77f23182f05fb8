"""Losses on windows of sensor signals against their definitions, in float64 and by other means."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.config import ConfigError
from zoo.losses.sensor_windows import WindowLoss, WindowLossConfig, correlations, normalized, window_losses

N = 48


def windows(seed: int) -> Tensor:
    """(2, 3, 2, N), float64, of another mean and size each."""
    draw = torch.Generator().manual_seed(seed)
    shape = (2, 3, 2, 1)
    shift, size = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    return shift + size.exp() * torch.randn(*shape[:3], N, generator=draw, dtype=torch.float64)


def spectrum(signal: np.ndarray) -> np.ndarray:
    """By the sum of the definition, with the taper 0.54 - 0.46 cos(2 pi n / N), of unit energy."""
    n = np.arange(N)
    taper = 0.54 - 0.46 * np.cos(2 * np.pi * n / N)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(N // 2 + 1), n) / N) / math.sqrt(N)
    return (signal * taper) @ waves.T


def test_the_terms_are_those_of_their_definitions() -> None:
    one, other = windows(0), windows(1)
    found = window_losses(one, other)
    a, b = one.numpy(), other.numpy()
    rows = [np.corrcoef(x, y)[0, 1] for x, y in zip(a.reshape(-1, N), b.reshape(-1, N))]
    expected = {
        "time": np.abs(a - b).mean(),
        "correlation": math.exp(-np.mean(rows)),
        "amplitude": np.abs(np.abs(spectrum(a)) - np.abs(spectrum(b))).mean(),
        "phase": np.abs(np.angle(spectrum(a)) - np.angle(spectrum(b))).mean(),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        tolerance = 1e-5 if name == "correlation" else 1e-12  # 1e-6 stands in the divisor of a coefficient
        assert float(found[name]) == pytest.approx(value, rel=tolerance), name


def test_a_coefficient_has_its_small_number_beside_the_deviations() -> None:
    one, other = 1e-3 * windows(0), 1e-3 * windows(1)
    centred = [signal - signal.mean(-1, keepdim=True) for signal in (one, other)]
    covariance = (centred[0] * centred[1]).sum(-1) / (N - 1)
    sizes = [signal.square().sum(-1).div(N - 1).sqrt() for signal in centred]
    torch.testing.assert_close(correlations(one, other), covariance / (sizes[0] * sizes[1] + 1e-6))


def test_normalized_windows_have_mean_0_and_deviation_1() -> None:
    found = normalized(windows(0))
    torch.testing.assert_close(found.mean(-1), torch.zeros_like(found[..., 0]))
    torch.testing.assert_close(found.std(-1), torch.ones_like(found[..., 0]), rtol=1e-4, atol=0)
    assert not normalized(torch.full((1, N), 3.0)).any()


def test_the_gradient_is_that_of_the_differences() -> None:
    one, other = windows(0).requires_grad_(), windows(1)
    weights = WindowLossConfig().weights

    def total(x: Tensor) -> Tensor:
        return sum((weights[name] * value for name, value in window_losses(x, other).items()), torch.tensor(0.0))

    assert torch.autograd.gradcheck(total, (one,))


def test_the_loss_weighs_the_terms_as_published() -> None:
    one, other = windows(0).float(), windows(1).float()
    total, values = WindowLoss(WindowLossConfig())(one, other)
    expected = values["time"] + values["correlation"] + values["amplitude"] + 0.5 * values["phase"]
    torch.testing.assert_close(total, expected)
    alone, values = WindowLoss(WindowLossConfig(0.0, 0.0, 0.0, 2.0))(one, other)
    torch.testing.assert_close(alone, 2 * values["phase"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(WindowLoss(WindowLossConfig())(one, other)[0], total)


@pytest.mark.parametrize("weights", [(-1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)])
def test_weights_that_cannot_work_are_told(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="weights >= 0 that are not all 0"):
        WindowLossConfig(*weights)

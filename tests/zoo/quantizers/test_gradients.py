"""Gradient estimators: exact values, and gradients against their definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import DiVeQConfig, GradientConfig, RotationConfig, SimVQConfig, StraightThroughConfig, VectorConfig

ESTIMATORS = [StraightThroughConfig(), StraightThroughConfig(synchronous=0.3), RotationConfig(), DiVeQConfig()]
each = pytest.mark.parametrize("gradient", ESTIMATORS, ids=lambda config: f"{config.kind}_{config}")


def pair(dim: int, seed: int = 0, count: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z, codes = torch.randn(2, count, dim, generator=generator).unbind()
    return z.requires_grad_(), codes.clone().requires_grad_()


@each
@pytest.mark.parametrize("training", [False, True])
def test_values_are_exactly_the_codes_unless_noise_is_meant(gradient: GradientConfig, training: bool) -> None:
    z, codes = pair(5)
    if not (training and isinstance(gradient, DiVeQConfig)):
        assert torch.equal(gradient.estimate(z, codes, training), codes)


@given(st.integers(1, 9), st.integers(0, 1000))
def test_rotation_is_the_matrix_that_turns_the_latent_to_its_code(dim: int, seed: int) -> None:
    (z,), (code,) = pair(dim, seed, count=1)
    upstream = torch.randn(dim)
    (slope,) = torch.autograd.grad((RotationConfig().estimate(z[None], code[None], True) * upstream).sum(), z)
    with torch.no_grad():
        source, target = (v.double() / v.double().norm() for v in (z, code))
        middle = F.normalize(source + target, dim=0)
        rotation = torch.eye(dim) - 2 * torch.outer(middle, middle) + 2 * torch.outer(target, source)
        scaled = rotation * (code.double().norm() / z.double().norm())
        torch.testing.assert_close(scaled @ z.double(), code.double())
        torch.testing.assert_close(slope.double(), scaled.T @ upstream.double(), rtol=1e-4, atol=1e-5)


def test_rotation_gives_no_gradient_to_the_codebook_and_none_that_is_not_finite() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1e-20, 0.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-2.0, 0.0], [3.0, 1.0]], requires_grad=True)
    RotationConfig().estimate(z, codes, True).sum().backward()
    assert codes.grad is None
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    torch.testing.assert_close(z.grad[2], torch.tensor([-2.0, 2.0]))  # the opposite direction: x -> -2x


def test_straight_through_hands_the_synchronous_share_to_the_codes() -> None:
    z, codes = pair(4)
    upstream = torch.randn(20, 4)
    for share in (0.0, 0.25, 1.0):
        result = StraightThroughConfig(synchronous=share).estimate(z, codes, True)
        of_z, of_codes = torch.autograd.grad((result * upstream).sum(), (z, codes), allow_unused=True)
        assert torch.equal(of_z, upstream)
        assert of_codes is None if share == 0 else torch.allclose(of_codes, share * upstream)


def test_diveq_lies_at_the_distance_of_the_code_in_its_direction() -> None:
    z, codes = pair(6)
    exact = DiVeQConfig(variance=0.0).estimate(z, codes, True)
    torch.testing.assert_close(exact, codes)
    noisy = DiVeQConfig(variance=0.05).estimate(z, codes, True)
    torch.testing.assert_close((noisy - z).norm(dim=1), (codes - z).norm(dim=1))
    cosine = F.cosine_similarity(noisy - z, codes - z).detach()
    assert float(cosine.max()) < 1
    assert float(cosine.min()) > 0.8


def test_diveq_gradient_is_that_of_the_distance_along_a_fixed_direction() -> None:
    z, codes = pair(6)
    upstream = torch.randn(20, 6)
    torch.manual_seed(8)
    result = DiVeQConfig(variance=0.05).estimate(z, codes, True)
    direction = F.normalize((result - z).detach(), dim=1)
    expected = z + direction * (codes - z).norm(dim=1, keepdim=True)
    slopes, wanted = (torch.autograd.grad((value * upstream).sum(), (z, codes)) for value in (result, expected))
    for slope, want in zip(slopes, wanted):
        torch.testing.assert_close(slope, want)
        assert float(slope.abs().max()) > 0


@each
@pytest.mark.parametrize("config", [VectorConfig(20, 4), VectorConfig(20, 4, "cosine"), SimVQConfig(20, 4)])
def test_quantizers_take_any_estimator(gradient: GradientConfig, config) -> None:
    quantizer, z = config.replace(gradient=gradient).build(), torch.randn(30, 4, requires_grad=True)
    upstream = torch.randn(30, 4)
    torch.manual_seed(7)
    codes = quantizer(z).codes
    with torch.no_grad():
        table = quantizer.codes()  # type: ignore[operator]
        unit = F.normalize(z, dim=1) if config.metric == "cosine" else z
        nearest = table[torch.cdist(unit, table).argmin(1)]
    inputs = (F.normalize(z, dim=1) if config.metric == "cosine" else z, nearest)
    torch.manual_seed(7)
    expected = gradient.estimate(*inputs, True)
    torch.testing.assert_close(codes, expected)
    (slope,), (wanted,) = (torch.autograd.grad((value * upstream).sum(), z) for value in (codes, expected))
    torch.testing.assert_close(slope, wanted)


def test_a_variance_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="a variance >= 0"):
        DiVeQConfig(variance=-1.0)

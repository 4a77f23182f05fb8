"""Finite scalar perturbation: levels, noise, moments, and vector-quantize-pytorch's FSP."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import FiniteScalarPerturbationConfig, from_vqp

DISTRIBUTIONS = ("tanh", "sigmoid", "normal", "laplace", "cauchy")
WEIGHTS = {"moment_mean": 0.1, "moment_variance": 0.07, "moment_skewness": 0.06, "moment_kurtosis": 0.05}


@settings(max_examples=60)
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=4), st.sampled_from(DISTRIBUTIONS),
    st.sampled_from([0.0, 0.3, 1.0]), st.booleans(), st.sampled_from(["kurt", "var_tanh"]), st.booleans(),
    st.integers(0, 1000),
)  # fmt: skip
def test_it_agrees_with_vector_quantize_pytorch(
    levels: list[int], distribution: str, rate: float, inverse: bool, norm: str, training: bool, seed: int
) -> None:
    from vector_quantize_pytorch import FSP

    theirs = FSP(levels, act_name=distribution, quantize_rate=rate, need_inv_act=inverse, vector_norm=norm)
    ours = from_vqp(theirs.train(training))
    z = torch.randn(3, 20, len(levels), generator=torch.Generator().manual_seed(seed))
    share = ours.function(z)  # type: ignore[operator]
    z = torch.where((share * torch.tensor(levels)).frac().sub(0.5).abs() > 0.499, z + 0.01, z)  # off the boundaries
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    torch.manual_seed(seed)
    quantized = ours(x)
    torch.manual_seed(seed)
    codes, indices, loss, _ = theirs(y)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes, rtol=1e-4, atol=1e-4)
    if training:
        weights = {"moment_mean": 0.1, "moment_variance": 0.07} if norm == "var_tanh" else WEIGHTS
        total = sum(weight * quantized.losses[name] for name, weight in weights.items())
        torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)
        (quantized.codes.square().sum() + total).backward()
        (codes.square().sum() + loss).backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_levels_are_equally_likely_under_the_distribution(distribution: str) -> None:
    quantizer = FiniteScalarPerturbationConfig(levels=(5,), distribution=distribution).build().eval()  # type: ignore[arg-type]
    share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    z = quantizer.inverse(share).float()[:, None]  # type: ignore[operator]
    assert quantizer(z).indices.bincount().tolist() == [200] * 5
    torch.testing.assert_close(quantizer(z).codes.mean().item(), 0.0, rtol=0, atol=1e-5)


def test_extreme_latents_stay_in_range() -> None:
    for distribution in DISTRIBUTIONS:
        quantizer = FiniteScalarPerturbationConfig(levels=(5, 4), distribution=distribution).build()  # type: ignore[arg-type]
        z = torch.tensor([-math.inf, -1e30, 1e30, math.inf])[:, None].expand(4, 2)
        assert quantizer.eval()(z).indices.tolist() == [0, 0, 19, 19]
    quantized = quantizer(torch.tensor([[math.nan, 1e30]]))
    assert quantized.indices.tolist() == [15]
    assert quantized.codes.isnan().tolist() == [[True, False]]


def test_noise_stays_within_a_level_of_the_latent_and_in_the_range() -> None:
    quantizer = FiniteScalarPerturbationConfig(levels=(4, 5)).build().train()
    z = torch.randn(2000, 2) * 2
    quantized = quantizer(z)
    share = quantized.codes * 12**-0.5 + 0.5
    assert bool(((share > 0) & (share < 1)).all())
    offset = (share - quantizer.function(z)) * torch.tensor([4, 5])  # type: ignore[operator]
    assert 0.45 < offset.abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (1,)}, "levels of at least 2"),
        ({"levels": (1 << 16, 1 << 15)}, "fewer than 2"),
        ({"distribution": "uniform"}, "distribution tanh, sigmoid, normal, laplace, cauchy, got 'uniform'"),
        ({"quantize_rate": 1.5}, "a quantize_rate in"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FiniteScalarPerturbationConfig(**settings)

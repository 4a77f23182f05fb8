"""Dimension-wise quantisation of trained latents into the bins of a normal distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import DimensionWise, DimensionWiseConfig
from zoo.quantizers.dimension_wise import gaussian_bin_means


def test_bin_means_are_those_of_a_normal_variable() -> None:
    values = torch.special.ndtri((torch.arange(4_000_000, dtype=torch.float64) + 0.5) / 4_000_000)
    inside = values[values.abs() < 3]
    bounds = torch.special.ndtri(torch.arange(1, 8, dtype=torch.float64) / 8)
    bins = torch.bucketize(inside, bounds)
    means = torch.stack([inside[bins == k].mean() for k in range(8)])
    torch.testing.assert_close(gaussian_bin_means(8, 3.0), means, rtol=0, atol=1e-5)


def test_published_setting() -> None:
    """Six bits, range 5: the outermost codes are +-4.062."""
    quantizer = DimensionWiseConfig(bits=6, limit=5.0).build()
    assert isinstance(quantizer, DimensionWise)
    codebook = quantizer.codebook()
    assert codebook.shape == (64,)
    assert codebook[0].item() == pytest.approx(-4.062, abs=1e-3)
    torch.testing.assert_close(codebook, -codebook.flip(0))


@given(st.integers(1, 9), st.floats(0.1, 20), st.integers(0, 1000))
def test_each_dimension_takes_its_nearest_code(bits: int, limit: float, seed: int) -> None:
    quantizer = DimensionWiseConfig(dim=3, bits=bits, limit=limit).build()
    assert isinstance(quantizer, DimensionWise)
    z = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed)) * limit
    quantized = quantizer(z)
    codebook = quantizer.codebook()
    assert bool((codebook.diff() > 0).all())
    nearest = (z[..., None].double() - codebook.double()).abs().argmin(-1)
    assert torch.equal(quantized.indices, nearest)
    assert torch.equal(quantized.codes, codebook[nearest])


def test_ties_and_extreme_latents() -> None:
    quantizer = DimensionWiseConfig(dim=1, bits=2, limit=3.0).build()
    low, high = quantizer.codebook()[1:3].tolist()  # type: ignore[operator]
    z = torch.tensor([-math.inf, math.inf, (low + high) / 2, math.nan])[:, None]
    quantized = quantizer(z)
    assert quantized.indices.flatten().tolist() == [0, 3, 1, 0]
    assert quantized.codes.isnan().flatten().tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim >= 1"),
        ({"bits": 0}, "1 to 9 bits"),
        ({"bits": 10}, "1 to 9 bits, beyond which bins would lie outside the 3.0 deviations, got 10"),
        ({"deviations": 0.0}, "deviations > 0"),
        ({"limit": -1.0}, "a limit > 0"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DimensionWiseConfig(**settings)

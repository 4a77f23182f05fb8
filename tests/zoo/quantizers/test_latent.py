"""Latent quantisation: the nearest learned value of each dimension, and vector-quantize-pytorch's LatentQuantize."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import Latent, LatentConfig, from_vqp

LEVELS = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@settings(max_examples=40)
@given(LEVELS, st.integers(0, 1000))
def test_codes_are_the_nearest_values_whatever_their_order(levels: list[int], seed: int) -> None:
    quantizer = LatentConfig(tuple(levels)).build()
    assert isinstance(quantizer, Latent)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        quantizer.values.copy_(torch.randn(quantizer.values.shape, generator=generator))
    z = torch.randn(30, len(levels), generator=generator)
    quantized = quantizer(z)
    indices = torch.zeros(30, dtype=torch.int64)
    for dimension, values in enumerate(quantizer.values.detach().split(levels)):
        digit = (z[:, dimension, None].double() - values.double()).abs().argmin(dim=1)
        assert torch.equal(quantized.codes[:, dimension], values[digit])
        indices += digit * math.prod(levels[:dimension])
    assert torch.equal(quantized.indices, indices)


def test_losses_pull_each_side_alone() -> None:
    quantizer, z = LatentConfig((4, 5)).build(), torch.randn(30, 2, requires_grad=True)
    quantized = quantizer(z)
    expected = (z - quantized.codes).square().mean()
    torch.testing.assert_close(quantized.losses["codebook"], expected)
    torch.testing.assert_close(quantized.losses["commitment"], expected)
    for name, moved in (("codebook", [False, True]), ("commitment", [True, False])):
        slopes = torch.autograd.grad(quantized.losses[name], (z, quantizer.values), allow_unused=True)  # type: ignore[arg-type]
        assert [slope is not None for slope in slopes] == moved


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(0, 1000))
def test_it_agrees_with_vector_quantize_pytorch(levels: list[int], seed: int) -> None:
    from vector_quantize_pytorch import LatentQuantize

    theirs = LatentQuantize(levels, dim=len(levels)).train()
    ours = from_vqp(theirs)
    z = torch.randn(3, 20, len(levels), generator=torch.Generator().manual_seed(seed)) * 0.4
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized = ours(x)
    codes, _, _ = theirs(y.movedim(-1, 1))
    assert torch.equal(quantized.codes, ours.indices_to_codes(quantized.indices))
    torch.testing.assert_close(quantized.codes, codes.movedim(1, -1))
    torch.testing.assert_close(quantized.losses["commitment"], (z - codes.movedim(1, -1)).square().mean())
    # their index is truncated from a float that may lie just below it
    digits = theirs._scale_and_shift(codes.movedim(1, -1)).round()
    assert torch.equal(quantized.indices, (digits * theirs._basis).sum(-1).long())
    quantized.codes.square().sum().backward()
    codes.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("levels", [(), (3, 0), (1 << 16, 1 << 15)])
def test_configs_that_cannot_work_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        LatentConfig(levels)

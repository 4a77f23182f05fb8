"""Online clustering: codes that are not used go to their nearest latents, used ones stay."""

import math

import pytest
import torch

from zoo.config import ConfigError
from zoo.quantizers import GradientCodebookConfig, VectorConfig


def test_one_step_is_that_of_the_equations() -> None:
    quantizer = VectorConfig(6, 2, codebook=GradientCodebookConfig(pull_unused=True)).build().train()
    z = torch.randn(1, 9, 2)
    before = quantizer.codebook.weight.detach().clone()
    indices = quantizer(z).indices[0]
    share = 0.01 * torch.bincount(indices, minlength=6) / 9
    torch.testing.assert_close(quantizer.pull.share, share)
    nearest = z[0][torch.cdist(before, z[0]).argmin(1)]
    part = torch.exp(-share * 6 * 10 / 0.01 - 1e-3)[:, None]
    torch.testing.assert_close(quantizer.codebook.weight.detach(), before * (1 - part) + nearest * part)
    unused = share == 0
    assert unused.any()
    gap = (quantizer.codebook.weight - nearest).abs()[unused] / (before - nearest).abs()[unused]
    torch.testing.assert_close(gap, torch.full_like(gap, 1 - math.exp(-1e-3)), rtol=1e-2, atol=1e-5)


def test_losses_and_gradients_are_those_of_the_codebook_before_the_step() -> None:
    plain = VectorConfig(6, 2).build().train()
    pulled = VectorConfig(6, 2, codebook=GradientCodebookConfig(pull_unused=True)).build().train()
    pulled.codebook.load_state_dict(plain.codebook.state_dict())
    z = torch.randn(1, 9, 2)
    for quantizer in (plain, pulled):
        quantized = quantizer(z)
        (quantized.losses["codebook"] + quantized.losses["commitment"]).backward()
    assert torch.equal(plain.codebook.weight.grad, pulled.codebook.weight.grad)
    assert not torch.equal(plain.codebook.weight, pulled.codebook.weight)


def test_evaluation_and_latents_that_are_not_finite_move_nothing() -> None:
    quantizer = VectorConfig(6, 2, codebook=GradientCodebookConfig(pull_unused=True)).build()
    before = quantizer.codebook.weight.detach().clone()
    quantizer.eval()(torch.randn(1, 9, 2))
    assert torch.equal(quantizer.codebook.weight, before)
    quantizer.train()(torch.full((1, 9, 2), math.nan))
    assert torch.equal(quantizer.codebook.weight, before)


def test_two_ways_of_saving_dead_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="pull_unused or revive_below, not both"):
        GradientCodebookConfig(pull_unused=True, revive_below=1.0)

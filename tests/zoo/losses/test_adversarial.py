"""Adversarial losses, LeCam and the adaptive weight against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from zoo.losses.adversarial import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, LeCam, adaptive_weight

REAL = torch.tensor([[[[2.0, 0.5], [-1.0, 0.0]]], [[[1.5, 0.2], [3.0, -0.4]]]])  # (2, 1, 2, 2)
FAKE = torch.tensor([[[[-2.0, 0.5], [1.0, 0.0]]], [[[-1.5, 0.7], [-3.0, 0.4]]]])


def test_hinge_penalises_only_logits_inside_the_margin() -> None:
    assert DISCRIMINATOR_LOSSES["hinge"](torch.tensor([1.0, 7.0]), torch.tensor([-1.0, -9.0])) == 0
    expected = 0.5 * (
        torch.tensor([0, 0.5, 2, 1, 0, 0.8, 0, 1.4]).mean() + torch.tensor([0, 1.5, 2, 1, 0, 1.7, 0, 1.4]).mean()
    )
    torch.testing.assert_close(DISCRIMINATOR_LOSSES["hinge"](REAL, FAKE), expected)


def test_vanilla_and_non_saturating_are_cross_entropies() -> None:
    entropies = F.binary_cross_entropy_with_logits(REAL, torch.ones_like(REAL)) + F.binary_cross_entropy_with_logits(
        FAKE, torch.zeros_like(FAKE)
    )
    torch.testing.assert_close(DISCRIMINATOR_LOSSES["non_saturating"](REAL, FAKE), entropies)
    torch.testing.assert_close(DISCRIMINATOR_LOSSES["vanilla"](REAL, FAKE), entropies / 2)
    torch.testing.assert_close(
        GENERATOR_LOSSES["non_saturating"](FAKE), F.binary_cross_entropy_with_logits(FAKE, torch.ones_like(FAKE))
    )


def test_image_kind_judges_the_mean_logit_of_each_image() -> None:
    pooled_real, pooled_fake = REAL.mean((1, 2, 3)), FAKE.mean((1, 2, 3))
    torch.testing.assert_close(
        DISCRIMINATOR_LOSSES["non_saturating_image"](REAL, FAKE),
        DISCRIMINATOR_LOSSES["non_saturating"](pooled_real, pooled_fake),
    )
    torch.testing.assert_close(
        GENERATOR_LOSSES["non_saturating_image"](FAKE), GENERATOR_LOSSES["non_saturating"](pooled_fake)
    )


@pytest.mark.parametrize("kind", list(GENERATOR_LOSSES))
def test_both_players_pull_the_fake_logits_in_opposite_directions(kind: str) -> None:
    fake = torch.zeros(2, 1, 3, 3, requires_grad=True)
    (generator,) = torch.autograd.grad(GENERATOR_LOSSES[kind](fake), fake)
    (discriminator,) = torch.autograd.grad(DISCRIMINATOR_LOSSES[kind](torch.zeros(2, 1, 3, 3), fake), fake)
    assert (generator < 0).all()
    assert (discriminator > 0).all()


@pytest.mark.parametrize("kind", list(GENERATOR_LOSSES))
def test_half_precision_logits_give_float32_losses(kind: str) -> None:
    assert DISCRIMINATOR_LOSSES[kind](REAL.bfloat16(), FAKE.bfloat16()).dtype == torch.float32
    assert GENERATOR_LOSSES[kind](FAKE.bfloat16()).dtype == torch.float32


def lecam(convention: str) -> LeCam:
    module = LeCam(decay=0.9, convention=convention)
    module.ema_real_logits_mean.fill_(0.3)
    module.ema_fake_logits_mean.fill_(-0.2)
    return module


def test_lecam_of_maskbit_compares_means_with_the_running_means_before_the_update() -> None:
    module = lecam("means")
    real, fake = REAL.mean(), FAKE.mean()
    torch.testing.assert_close(module(REAL, FAKE), (real + 0.2).relu() ** 2 + (0.3 - fake).relu() ** 2)
    torch.testing.assert_close(module.ema_real_logits_mean, (0.9 * 0.3 + 0.1 * real).view(1))
    torch.testing.assert_close(module.ema_fake_logits_mean, (0.9 * -0.2 + 0.1 * fake).view(1))


def test_lecam_of_open_magvit2_updates_first_and_compares_every_logit() -> None:
    module = lecam("logits")
    real_mean, fake_mean = 0.27 + 0.1 * REAL.mean(), -0.18 + 0.1 * FAKE.mean()
    expected = ((REAL - fake_mean).relu() ** 2).mean() + ((real_mean - FAKE).relu() ** 2).mean()
    torch.testing.assert_close(module(REAL, FAKE), expected)


@pytest.mark.parametrize("convention", ["means", "logits"])
def test_lecam_moves_in_training_only_and_its_gradient_survives_the_update(convention: str) -> None:
    module = lecam(convention)
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    module(real, fake).backward()
    assert (real.grad >= 0).all()
    assert (fake.grad <= 0).all()
    assert real.grad.any()
    before = module.ema_real_logits_mean.clone()
    module.eval()(REAL, FAKE)
    assert torch.equal(module.ema_real_logits_mean, before)
    assert set(module.state_dict()) == {"ema_real_logits_mean", "ema_fake_logits_mean"}


def test_adaptive_weight_makes_both_gradients_equally_long() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    nll, generator_loss = (3 * weight).square().sum(), (0.1 * weight).sum()
    adaptive = adaptive_weight(nll, generator_loss, weight)
    assert not adaptive.requires_grad
    (nll_gradient,) = torch.autograd.grad(nll, weight)
    (generator_gradient,) = torch.autograd.grad(adaptive * generator_loss, weight)
    torch.testing.assert_close(generator_gradient.norm(), nll_gradient.norm(), rtol=1e-3, atol=0)


def test_adaptive_weight_is_bounded_where_the_adversarial_gradient_vanishes() -> None:
    weight = torch.ones(2, requires_grad=True)
    assert adaptive_weight(1e6 * weight.sum(), 0 * weight.sum(), weight) == 1e4
    assert adaptive_weight(1e6 * weight.sum(), 0 * weight.sum(), weight, maximum=1.0) == 1

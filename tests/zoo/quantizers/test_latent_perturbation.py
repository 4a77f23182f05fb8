"""Latent perturbation: which codes stand in, where the gradients go, and how it declines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.config import ConfigError
from zoo.quantizers import ResidualConfig, VectorConfig
from zoo.quantizers.latent_perturbation import (
    Draws,
    PerturbationConfig,
    near_codes,
    perturb,
    perturbed_levels,
)


def test_perturbed_codes_are_among_the_nearest_and_gradients_are_the_clean_ones() -> None:
    torch.manual_seed(0)
    quantizer = VectorConfig(codebook_size=20, dim=4, metric="cosine").build().train()
    z = torch.randn(4, 3, 5, 4, requires_grad=True)
    clean = quantizer(z)
    config = PerturbationConfig(probability=0.5, share=0.5, neighbours=3, decline_end=10)
    found = perturb(quantizer, z, clean, config, step=0)
    assert torch.equal(found.codes[2:], clean.codes[2:])
    assert torch.equal(found.indices, clean.indices)
    near = torch.cdist(F.normalize(z.detach(), dim=-1), quantizer.codes().detach()).topk(3, largest=False).indices
    choices = quantizer.codes().detach()[near[:2]]
    hits = (choices - found.codes[:2, :, :, None].detach()).abs().amax(-1) < 1e-6
    assert hits.any(-1).all()
    share = (found.codes[:2] != clean.codes[:2]).any(-1).float().mean()
    assert 0.1 < share < 0.6  # two thirds of a half
    target = torch.randn_like(found.codes)
    (a,) = torch.autograd.grad((found.codes * target).sum(), z, retain_graph=True)
    (b,) = torch.autograd.grad((clean.codes * target).sum(), z)
    assert torch.equal(a, b)


def test_rank_and_strength_as_in_the_paper() -> None:
    config = PerturbationConfig(neighbours=100, decline_start=40, decline_end=120)
    assert [config.strength(step) for step in (0, 40, 80, 120, 500)] == [1, 1, 0.75, 0.5, 0.5]
    quantizer = VectorConfig(codebook_size=20, dim=4).build()
    z = torch.randn(2, 3, 4)
    levels = quantizer(z).levels
    assert torch.equal(perturbed_levels(quantizer, z, levels, 1.0, 1)[0], levels[0])
    assert torch.equal(perturbed_levels(quantizer, z, levels, 0.0, 20)[0], levels[0])


def test_given_draws_choose_the_rank() -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4).build()
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    levels = quantizer(z).levels
    near = near_codes(quantizer, z, levels, 0, 5)
    assert torch.equal(near, torch.cdist(z.flatten(0, 1), quantizer.codebook.weight).topk(5, largest=False).indices)  # type: ignore[union-attr, arg-type]
    draws = Draws(torch.tensor([0.0, 0.5, 0.6, 1.0, 0.2, 0.4]), torch.tensor([4, 3, 2, 1, 0, 2]))
    (found,) = perturbed_levels(quantizer, z, levels, 0.5, 5, (draws,))
    assert found.flatten().tolist() == [int(near[i, rank]) for i, rank in enumerate([4, 3, 0, 0, 0, 2])]


def test_each_level_of_several_has_neighbours_of_its_own_codes() -> None:
    quantizer = ResidualConfig(VectorConfig(12, 4), num_levels=2).build().eval()
    z = torch.randn(2, 3, 4)
    levels = quantizer(z).levels
    for level, indices in enumerate(levels):
        assert torch.equal(near_codes(quantizer, z, levels, level, 4)[:, 0], indices.flatten())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 1.5}, r"in \[0, 1\]"),
        ({"neighbours": 0}, "neighbours >= 1"),
        ({"decline_start": 5, "decline_end": 5}, "decline_start < decline_end"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PerturbationConfig(**fields)

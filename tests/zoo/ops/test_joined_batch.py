"""Batches of all processes in one: a loss over pairs of items has the gradient of one process on the joined batch."""

from __future__ import annotations

from pathlib import Path

import torch
from ranks import run_ranks
from torch import Tensor

from zoo.ops.collective import joined_over_ranks


def loss(weight: Tensor, x: Tensor) -> Tensor:
    """One that sets every item against every other."""
    features = joined_over_ranks(x @ weight)
    return torch.nn.functional.cross_entropy(features @ features.T, torch.arange(len(features)))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, generator=generator), torch.randn(4, 3, generator=generator)


def work(rank: int, folder: str) -> None:
    weight, x = data()
    weight.requires_grad_()
    value = loss(weight, x[2 * rank : 2 * rank + 2])
    value.backward()
    torch.save((value.detach(), weight.grad), f"{folder}/{rank}.pt")


def test_two_processes_have_the_loss_and_the_mean_gradient_of_one(tmp_path: Path) -> None:
    run_ranks(work, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    weight, x = data()
    expected = loss(weight.requires_grad_(), x)
    expected.backward()
    assert all(torch.allclose(value, expected) for value, _ in found)
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, weight.grad)

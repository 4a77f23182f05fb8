"""Two processes give the entropies, and after DDP's averaging the gradients, of one process on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
from ranks import run_ranks
from torch import Tensor, nn

from zoo.ops import binary_entropy, mean_assignment, soft_entropy

CUTS = {"equal": (10, 10), "unequal": (4, 16), "empty": (20, 0)}


def both(layer: nn.Linear, codes: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Values of all entropies of layer(x), and gradients of the layer and of the codes for a sum of them."""
    latents = layer(x)
    values = [
        *binary_entropy(latents, 0.5),
        *binary_entropy(latents, 0.5, floor=1e-2, shift=1e-3, group_bits=2),
        *soft_entropy(latents, codes, 0.5),
        *soft_entropy(latents, codes, 0.5, clamp=1e-2),
    ]
    weights = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    slopes = torch.autograd.grad((torch.stack(values) * weights).sum(), [layer.weight, codes])
    return {
        "values": torch.stack(values).detach(),
        "mean": mean_assignment(latents.detach()),
        "of_layer": slopes[0],
        "of_codes": slopes[1],
    }


def case() -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 6)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    codes = torch.randn(9, 6, generator=generator)
    return layer, codes.requires_grad_(), torch.randn(20, 5, generator=generator)


def work(rank: int, folder: str) -> None:
    layer, codes, x = case()
    results = {name: both(layer, codes, x.split(cut)[rank]) for name, cut in CUTS.items()}
    for result in results.values():
        for name in ("of_layer", "of_codes"):  # what DDP does
            torch.distributed.all_reduce(result[name])
            result[name] /= 2
    torch.save(results, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(work, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("cut", CUTS)
def test_ranks_together_equal_the_joined_batch(of_ranks: list[dict[str, dict[str, Tensor]]], cut: str) -> None:
    expected = both(*case())
    for rank in range(2):
        for name, value in expected.items():
            torch.testing.assert_close(of_ranks[rank][cut][name], value, rtol=1e-5, atol=1e-6)

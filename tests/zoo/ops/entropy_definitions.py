"""Plain definitions of the entropies, and how to compare with them. Not a test by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def entropies(probability: Tensor, floor: float, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean entropy of the rows of (N, K), and entropy of their mean, in the dtype given."""

    def entropy(p: Tensor, shift: float) -> Tensor:
        return -(p * (p.clamp(min=floor or 1e-300) + shift).log()).sum(-1)

    return entropy(probability, 0.0).mean(), entropy(probability.mean(0), shift)


def sign_vectors(bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(2^bits, bits) of -1 and 1; bit 0 is the least significant of the row's number."""
    return (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1).to(dtype) * 2 - 1


def binary_definition(
    z: Tensor, temperature: float, floor: float, shift: float = 0.0, group_bits: int | None = None
) -> tuple[Tensor, Tensor]:
    groups = z.split(group_bits or z.shape[1], dim=1)
    parts = [
        entropies((2 * part @ sign_vectors(part.shape[1], z.dtype).T / temperature).softmax(-1), floor, shift)
        for part in groups
    ]
    return torch.stack([sample for sample, _ in parts]).sum(), torch.stack([codebook for _, codebook in parts]).sum()


def soft_definition(
    z: Tensor, codes: Tensor, temperature: float, clamp: float, shift: float, score: str = "squared_distance"
) -> tuple[Tensor, Tensor]:
    squares = (z[:, None] - codes[None]).square().sum(-1)
    logits = {"squared_distance": -squares, "distance": -squares.sqrt(), "dot": z @ codes.T}[score]
    return entropies((logits / temperature).softmax(-1), clamp, shift)


def assert_same_value_and_gradient(
    ours: Callable[..., tuple[Tensor, Tensor]],
    definition: Callable[..., tuple[Tensor, Tensor]],
    *inputs: Tensor,
    tolerance: float,
) -> None:
    """Both entropies of float32 inputs, and the gradients of a sum that tells them apart, to those in float64."""
    singles = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    got, expected = ours(*singles), definition(*doubles)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    slopes = torch.autograd.grad(got[0] - 0.7 * got[1], singles)
    for a, b in zip(slopes, torch.autograd.grad(expected[0] - 0.7 * expected[1], doubles)):
        scale = b.abs().max().clamp_min(1e-2)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=10 * tolerance)

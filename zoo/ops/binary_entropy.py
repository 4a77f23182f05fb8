"""Entropies of the soft assignment to all 2^D sign vectors, exact and without a table of N x 2^D.

The assignment softmax_c(2 z.c / T) over c in {-1, 1}^D factorises into independent bits with P(bit d is 1) =
sigmoid(4 z_d / T) (lookup-free quantisation, arXiv 2310.05737). So the entropy of one assignment is a sum over bits,
and the mean assignment is one matrix product of the joint probabilities of the two halves of the bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 1 << 22  # elements of a half table at a time: 16 MB in float32
MAXIMUM_BITS = 24


def binary_entropy(z: Tensor, temperature: float, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean entropy of the assignments, and the entropy of the mean assignment, in nats.

    Args:
        z: (N, D) latents, D at most 24; gradients flow to it.
        temperature: T > 0 of the softmax of 2 z.c / T.
        floor: 0 is exact. A positive value clamps each probability inside the logarithm from below, as some published
            training codes do; then the first term needs all 2^D codes a row (computed a chunk of rows at a time).

    Returns:
        (sample entropy (), codebook entropy ()); both are differentiable.

    Raises:
        ValueError: a shape, a number of bits or a temperature that does not fit.
    """
    if z.ndim != 2 or z.shape[0] == 0:
        raise ValueError(f"expected latents (N, D) with N > 0, got {tuple(z.shape)}")
    if not 1 <= z.shape[1] <= MAXIMUM_BITS:
        raise ValueError(f"expected 1 to {MAXIMUM_BITS} bits (use groups for more), got {z.shape[1]}")
    if temperature <= 0:
        raise ValueError(f"expected a temperature > 0, got {temperature}")
    logits = z.float() * (4 / temperature)
    mean = mean_assignment(logits)
    codebook_entropy = -(mean * mean.clamp(min=floor or torch.finfo(mean.dtype).tiny).log()).sum()
    if floor > 0:
        return _clamped_sample_entropy(logits, floor), codebook_entropy
    # H(sigmoid(l)) = softplus(l) - l sigmoid(l), the same for -l, whose terms do not cancel where l < 0
    rare = -logits.abs()
    sample_entropy = (F.softplus(rare) - rare * rare.sigmoid()).sum(dim=1).mean()
    return sample_entropy, codebook_entropy


def mean_assignment(logits: Tensor) -> Tensor:
    """Mean over N of the joint distribution of D independent bits.

    Args:
        logits: (N, D), log odds of each bit being 1.

    Returns:
        (2^D,) probabilities; bit 0 is the least significant of the index.
    """
    return _MeanAssignment.apply(logits)


def _joint(logits: Tensor) -> Tensor:
    """(N, D) log odds -> (N, 2^D) joint probabilities, bit 0 least significant."""
    joint = logits.new_ones(len(logits), 1)
    for one, zero in zip(logits.sigmoid().unbind(1), (-logits).sigmoid().unbind(1)):  # 1 - one would lose small zeros
        joint = torch.cat([joint * zero[:, None], joint * one[:, None]], dim=1)
    return joint


class _MeanAssignment(torch.autograd.Function):
    """Forward: high^T low / N, with tables of the two halves. Backward recomputes the tables chunk by chunk."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        half = (logits.shape[1] + 1) // 2
        total = logits.new_zeros(2 ** (logits.shape[1] - half), 2**half)
        for chunk in logits.split(max(1, _CHUNK >> half)):
            total.addmm_(_joint(chunk[:, half:]).T, _joint(chunk[:, :half]))
        return (total / len(logits)).flatten()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        half = (logits.shape[1] + 1) // 2
        gradient = gradient.view(-1, 2**half) / len(logits)
        result = []
        for chunk in logits.split(max(1, _CHUNK >> half)):
            with torch.enable_grad():
                chunk = chunk.detach().requires_grad_()
                low, high = _joint(chunk[:, :half]), _joint(chunk[:, half:])
                product = (low * (high.detach() @ gradient)).sum() + (high * (low.detach() @ gradient.T)).sum()
            (slope,) = torch.autograd.grad(product, chunk)
            result.append(slope)
        return torch.cat(result)


def _clamped_sample_entropy(logits: Tensor, floor: float) -> Tensor:
    def entropy(chunk: Tensor) -> Tensor:
        joint = _joint(chunk)
        return -(joint * joint.clamp(min=floor).log()).sum()

    chunks = logits.split(max(1, _CHUNK >> logits.shape[1]))
    return torch.stack([checkpoint(entropy, chunk, use_reentrant=False) for chunk in chunks]).sum() / len(logits)

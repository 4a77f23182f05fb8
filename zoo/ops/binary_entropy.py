"""Entropies of the soft assignment to all 2^D sign vectors, exact and without a table of N x 2^D.

The assignment softmax_c(2 z.c / T) over c in {-1, 1}^D factorises into independent bits with P(bit d is 1) =
sigmoid(4 z_d / T) (lookup-free quantisation, arXiv 2310.05737). So the entropy of one assignment is a sum over bits,
and the mean assignment is one matrix product of the joint probabilities of the two halves of the bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.ops.bit_tables import joint_probabilities, sum_by_bit
from zoo.ops.collective import sum_over_ranks, world_size
from zoo.ops.entropy_floor import added_by_floor
from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.ops.precision import full_precision

_CHUNK = 1 << 19  # elements of a half table at a time: 2 MB in float32
_CERTAIN = 300.0  # log odds beyond which a bit is certain even in float64's entropies
MAXIMUM_BITS = 24  # of one group: its mean assignment has 2^24 elements


def binary_entropy(
    z: Tensor, temperature: float, *, floor: float = 0.0, shift: float = 0.0, group_bits: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean entropy of the assignments, and the entropy of the mean assignment, in nats.

    In a distributed run both are those of the latents of all processes together (which may differ in number), and the
    gradients are scaled so that their average over processes, as DDP takes it, is the gradient of that joint value.
    Every process must then call it, with N = 0 if it has no latents.

    Args:
        z: (N, D) latents; gradients flow to it. Of no latents at all both entropies are 0.
        temperature: T > 0 of the softmax of 2 z.c / T.
        floor: lower clamp of each probability inside the logarithms (MaskBit and vector-quantize-pytorch: 1e-5); 0 is
            exact. It looks at all 2^D products of a row without keeping them; (N, D) are kept for the backward pass.
        shift: added to the mean probabilities inside the logarithm (Open-MAGVIT2: 1e-5); 0 is exact.
        group_bits: bits of a group, a divisor of D, at most 24; None puts all D in one. Groups are runs of consecutive
            channels; the entropies of the groups are added. For the first that changes nothing but what `floor` clamps;
            the second becomes an upper bound of the joint one, which it reaches when groups are independent.

    Returns:
        (sample entropy (), codebook entropy ()) in float64 where the device has it; both are differentiable, once.

    Raises:
        ValueError: a shape, a number of bits or a temperature that does not fit.
    """
    if temperature <= 0:
        raise ValueError(f"expected a temperature > 0, got {temperature}")
    with full_precision(z):
        sample, codebook, *_ = _BinaryEntropy.apply(_group(z, group_bits) * (4 / temperature), floor, shift)
    return sample, codebook


def mean_assignment(logits: Tensor, group_bits: int | None = None) -> Tensor:
    """Mean over N of the joint distribution of independent bits, over all processes; no gradient flows.

    Args:
        logits: (N, D), log odds of each bit being 1.
        group_bits: as in `binary_entropy`.

    Returns:
        (groups, 2^group_bits) probabilities; a group's first channel is the least significant bit of the index.
    """
    with torch.no_grad(), full_precision(logits):
        logits = _group(logits, group_bits).clamp(-_CERTAIN, _CERTAIN)
        total, _, _ = _total(logits, 0.0)
        sum_over_ranks(total)
        return (total / total.sum(dim=(1, 2), keepdim=True)).flatten(1)


def _group(z: Tensor, group_bits: int | None) -> Tensor:
    """(N, D) -> (groups, bits, N): tokens last, so that the tables below are products of long rows."""
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"expected latents (N, D) with D > 0, got {tuple(z.shape)}")
    bits = z.shape[1] if group_bits is None else group_bits
    if not 1 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"expected groups of 1 to {MAXIMUM_BITS} bits, got {bits} (set group_bits)")
    if z.shape[1] % bits != 0:
        raise ValueError(f"group_bits: expected a divisor of the {z.shape[1]} bits, got {bits}")
    return z.to(torch.promote_types(z.dtype, torch.float32)).T.contiguous().unflatten(0, (-1, bits))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


class _BinaryEntropy(OwnGradient):
    """Log odds (groups, bits, N) -> both entropies, and what the backward pass needs beside the log odds."""

    @staticmethod
    def forward(logits: Tensor, floor: float, shift: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        logits = logits.clamp(-_CERTAIN, _CERTAIN)
        total, correction, slope = _total(logits, floor)
        # H(sigmoid(l)) = softplus(l) - l sigmoid(l), the same for -l, whose terms do not cancel where l < 0
        rare = -logits.abs()
        entropy = (F.softplus(rare) - rare * rare.sigmoid()).sum(dtype=correction.dtype) + correction
        count = torch.full_like(entropy, logits.shape[-1])
        sum_over_ranks(total, entropy, count)
        count = count.clamp_min(1)
        # dividing by the sum instead of the count also undoes the rounding of the products, to first order
        mean = total.to(entropy.dtype)
        mean /= mean.sum(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
        if floor > 0 or shift > 0:
            codebook = -torch.special.xlogy(mean, mean.clamp_min(floor) + shift).sum()
        else:
            codebook = torch.special.entr(mean).sum()
        return entropy / count, codebook, mean.to(logits.dtype), count, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, ctx.floor, ctx.shift = inputs
        _, _, *kept = output
        ctx.mark_non_differentiable(*(result for result in kept if result is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sample: Tensor | None, of_codebook: Tensor | None, *_: None) -> tuple[Tensor, None, None]:
        with full_precision(ctx.saved_tensors[0]):
            return _gradient(ctx, of_sample, of_codebook), None, None


def _gradient(ctx: Any, of_sample: Tensor | None, of_codebook: Tensor | None) -> Tensor:
    logits, mean, count, of_clamp = ctx.saved_tensors
    logits = logits.clamp(-_CERTAIN, _CERTAIN)
    scale = world_size() / count
    of_sample = ((0 if of_sample is None else of_sample) * scale).to(logits.dtype)
    of_codebook = (0 if of_codebook is None else of_codebook) * scale
    slope = (_codebook_slope(mean, ctx.floor, ctx.shift) * of_codebook).to(logits.dtype)
    gradient = torch.empty_like(logits)
    width = _rows(logits)
    for start in range(0, logits.shape[2], width):
        chunk = logits[..., start : start + width]
        one, zero, low, high = _halves(chunk)
        # derivatives by the joint probabilities of a half, times these: derivatives by their logarithms
        of_low, of_high = slope.transpose(1, 2).bmm(high).mul_(low), slope.bmm(low).mul_(high)
        gradient[..., start : start + width] = _by_log_odds(of_low, of_high, one, zero) - of_sample * chunk * one * zero
    return gradient if of_clamp is None else gradient.add_(of_clamp * of_sample)


def _by_log_odds(of_low: Tensor, of_high: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    """Derivatives by the logarithms of the joint probabilities of both halves -> by the log odds (groups, bits, n)."""
    low_one, low_zero = sum_by_bit(of_low)
    high_one, high_zero = sum_by_bit(of_high)
    # the logarithm of a joint probability with bit d set has the slope 1 - p_d to the log odds, else -p_d
    return zero * torch.cat([low_one, high_one], dim=1) - one * torch.cat([low_zero, high_zero], dim=1)


def _rows(logits: Tensor) -> int:
    """How many tokens a chunk has, so that its half tables hold about `_CHUNK` elements."""
    groups, bits, _ = logits.shape
    elements = _CHUNK if logits.device.type == "cpu" else _CHUNK << 4  # a cache there, enough work here
    return max(1, elements // (groups << (bits + 1) // 2))


def _halves(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities of ones and of zeros (groups, bits, n), and the joint ones of the low and of the high bits."""
    one, zero = logits.sigmoid(), (-logits).sigmoid()  # 1 - one would lose small zeros
    half = (logits.shape[1] + 1) // 2
    low = joint_probabilities(one[:, :half], zero[:, :half])
    return one, zero, low, joint_probabilities(one[:, half:], zero[:, half:])


def _total(logits: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums over tokens of the joint probabilities (groups, 2^high bits, 2^low bits), and of what the floor adds.

    With a floor, also the derivative of what it adds by the log odds.
    """
    groups, bits, _ = logits.shape
    half = (bits + 1) // 2
    total = logits.new_zeros(groups, 2 ** (bits - half), 2**half)
    added = logits.new_zeros((), dtype=_wide(logits))
    slope = torch.empty_like(logits) if floor > 0 else None
    width = _rows(logits)
    for start in range(0, logits.shape[2], width):
        one, zero, low, high = _halves(logits[..., start : start + width])
        total.baddbmm_(high, low.transpose(1, 2))
        if slope is not None:
            more, of_low, of_high = added_by_floor(low, high, floor)
            added += more
            slope[..., start : start + width] = _by_log_odds(of_low, of_high, one, zero)
    return total, added, slope


def _codebook_slope(mean: Tensor, floor: float, shift: float) -> Tensor:
    """Derivative of the codebook entropy by the mean assignment, up to a constant, in the wide type.

    A constant changes nothing, as the probabilities of a token add up to 1. Taking off the average keeps the products
    with it free of cancellation.
    """
    wide = mean.to(_wide(mean))
    inside = wide.clamp_min(max(floor, torch.finfo(mean.dtype).tiny)) + shift
    slope = -inside.log()
    if floor > 0 or shift > 0:
        slope -= torch.where(wide > floor, wide / inside, 0)
    return slope - (slope * wide).sum(dim=(1, 2), keepdim=True)

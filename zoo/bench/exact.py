"""What the gates compare with: the definitions in float64, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.bench.problem import Verdict

_CHUNK = 1 << 24  # elements of a table held at a time: 128 MB in float64


def nearest(x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest code (Euclidean) and its squared distance.

    Args:
        x: (N, D).
        codes: (K, D).
    """
    x, codes = x.double(), codes.double()
    indices = torch.cat(
        [
            torch.addmm(codes.square().sum(-1), chunk, codes.T, alpha=-2).argmin(dim=1)
            for chunk in x.split(max(1, _CHUNK // len(codes)))
        ]
    )
    return indices, (x - codes[indices]).square().sum(-1)


def judge_indices(x: Tensor, codes: Tensor, indices: Any) -> Verdict:
    """Whether indices (N,) are those of the nearest codes, but for near ties.

    A near tie is a code whose exact squared distance exceeds the least one by no more than float32 rounds the terms of
    |x|^2 - 2 x.c + |c|^2.
    """
    wrong, ties = count_differences(x, codes, indices)
    return verdict(wrong, ties, len(x))


def count_differences(
    x: Tensor, codes: Tensor, indices: Any, rounding: float = torch.finfo(torch.float32).eps
) -> tuple[int, int]:
    """(wrong indices, near ties), where x itself is known to that relative precision."""
    indices = torch.as_tensor(indices, device=x.device).reshape(-1)
    if indices.shape != x.shape[:1] or indices.is_floating_point():
        return len(x), 0
    best, least = nearest(x, codes)
    inside = (indices >= 0) & (indices < len(codes))
    chosen = codes.double()[indices.where(inside, 0)]
    excess = (x.double() - chosen).square().sum(-1) - least
    magnitude = (x.double().norm(dim=-1) + chosen.norm(dim=-1)).square()
    wrong = ~inside | (excess > 4 * rounding * x.shape[1] ** 0.5 * magnitude)
    return int(wrong.sum()), int(((indices != best) & ~wrong).sum())


def verdict(wrong: int, ties: int, count: int) -> Verdict:
    """In words."""
    if wrong > 0:
        return Verdict(False, f"wrong: {wrong:,} of {count:,} are not the nearest")
    if ties > 0:
        return Verdict(True, f"equal but for {ties:,} near {'tie' if ties == 1 else 'ties'} of {count:,}")
    return Verdict(True, f"all {count:,} equal")


def judge_close(values: dict[str, tuple[Any, Any]], tolerance: float) -> Verdict:
    """Whether values are within a tolerance, relative to the largest magnitude of what is expected.

    Args:
        values: name -> (got, expected), tensors or numbers.
        tolerance: the largest error allowed.
    """
    errors = {}
    for name, pair in values.items():
        got, expected = (torch.as_tensor(value).double().cpu() for value in pair)
        if got.shape != expected.shape:
            return Verdict(False, f"wrong: {name} has shape {tuple(got.shape)}, not {tuple(expected.shape)}")
        scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        errors[name] = float(((got - expected).abs().max() / scale).nan_to_num(nan=torch.inf))
    name, worst = max(errors.items(), key=lambda item: item[1])
    if worst > tolerance:
        return Verdict(False, f"wrong: {name} is off by {worst:.1e} (allowed: {tolerance:.0e})")
    return Verdict(True, f"equal within {max(worst, 1e-16):.0e}")


def binary_entropies(z: Tensor, temperature: float, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The two entropies of `zoo.ops.binary_entropy` from all 2^D codes, and the gradient of their difference.

    Args:
        z: (N, D).
        temperature: T of softmax_c(2 z.c / T) over c in {-1, 1}^D.
        floor: clamps probabilities inside the logarithms from below, as vector-quantize-pytorch does.

    Returns:
        (sample entropy (), codebook entropy (), gradient of sample - codebook to z (N, D)).
    """
    z = z.double()
    count, bits = z.shape
    numbers = torch.arange(2**bits, device=z.device)
    codes = (numbers[:, None] >> torch.arange(bits, device=z.device) & 1).double() * 2 - 1
    tiny = floor or torch.finfo(torch.float64).tiny

    def tables() -> Iterator[Tensor]:
        for chunk in z.split(max(1, _CHUNK >> bits)):
            yield torch.softmax(chunk @ codes.T * (2 / temperature), dim=-1)

    def slope(p: Tensor) -> Tensor:  # of -p log(max(p, floor))
        return -(p.clamp_min(tiny).log() + (p >= floor))

    sample, mean = z.new_zeros(()), z.new_zeros(2**bits)
    for p in tables():
        sample -= (p * p.clamp_min(tiny).log()).sum()
        mean += p.sum(0)
    mean /= count
    of_mean = slope(mean)
    gradient = []
    for p in tables():
        towards = (slope(p) - of_mean) / count
        logits = p * (towards - (p * towards).sum(-1, keepdim=True))
        gradient.append(logits @ codes * (2 / temperature))
    return sample / count, -(mean * mean.clamp_min(tiny).log()).sum(), torch.cat(gradient)


def factorised_entropies(z: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a floor, by the factorisation over bits: for more codes and vectors than a table can hold.

    Args:
        z: (N, D).
        temperature: as above.
    """
    z = z.double()
    half = (z.shape[1] + 1) // 2
    mean = z.new_zeros(2 ** (z.shape[1] - half), 2**half)
    chunks = z.split(max(1, _CHUNK >> (half + 1)))
    for chunk in chunks:
        low, high = _joint(chunk[:, :half], temperature), _joint(chunk[:, half:], temperature)
        mean.addmm_(high.T, low)
    mean /= len(z)
    tiny = torch.finfo(torch.float64).tiny
    of_mean = -(mean.clamp_min(tiny).log() + 1)
    sample, gradient = z.new_zeros(()), []
    for chunk in chunks:
        bits = chunk.detach().requires_grad_()
        low, high = _joint(bits[:, :half], temperature), _joint(bits[:, half:], temperature)
        entropy = -(low * low.clamp_min(tiny).log()).sum() - (high * high.clamp_min(tiny).log()).sum()
        (slope,) = torch.autograd.grad((entropy - ((high @ of_mean) * low).sum()) / len(z), bits)
        sample += entropy.detach()
        gradient.append(slope)
    return sample / len(z), -(mean * mean.clamp_min(tiny).log()).sum(), torch.cat(gradient)


def _joint(z: Tensor, temperature: float) -> Tensor:
    """(n, d) -> (n, 2^d) joint probabilities of independent bits, bit 0 the least significant."""
    joint = z.new_ones(len(z), 1)
    for bit in (z * (4 / temperature)).unbind(1):
        joint = torch.cat([joint * (-bit).sigmoid()[:, None], joint * bit.sigmoid()[:, None]], dim=1)
    return joint

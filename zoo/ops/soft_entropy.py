"""Entropies of the soft assignment of vectors to the codes of a codebook, a chunk of vectors at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.ops.collective import sum_over_ranks, world_size
from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.ops.precision import full_precision
from zoo.ops.soft_assignment import Score, assignment_logits, check_assignment, chunked


def soft_entropy(
    z: Tensor,
    codes: Tensor,
    temperature: float,
    *,
    score: Score = "squared_distance",
    clamp: float = 0.0,
    shift: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean entropy of the soft assignments, and the entropy of the mean assignment, in nats.

    In a distributed run both are those of the latents of all processes together (which may differ in number), and the
    gradients are scaled so that their average over processes, as DDP takes it, is the gradient of that joint value.
    Every process must then call it, with N = 0 if it has no latents.

    Args:
        z: (N, D) latents. Gradients flow to it and to the codes. Of no latents at all both entropies are 0.
        codes: (K, D), the same in all processes.
        temperature: T > 0.
        score: what the softmax is of, as in `zoo.ops.soft_assignment.assignment_logits`.
        clamp: probabilities inside both logarithms are clamped from below by it (MaskBit: 1e-5; 0 is exact).
        shift: added to the mean probabilities inside the logarithm (LlamaGen: 1e-5; 0 is exact).

    Returns:
        (sample entropy (), codebook entropy ()) in float64 where the device has it; both are differentiable, once.

    Raises:
        ValueError: a shape, temperature or score that does not fit.
    """
    check_assignment(z, codes, temperature, score)
    dtype = torch.promote_types(torch.promote_types(z.dtype, codes.dtype), torch.float32)
    with full_precision(z):
        sample, codebook, _, _ = _SoftEntropy.apply(z.to(dtype), codes.to(dtype), temperature, score, clamp, shift)
    return sample, codebook


class _SoftEntropy(OwnGradient):
    """Keeps the vectors, the codes and the mean assignment for the backward pass, which computes the rest again."""

    @staticmethod
    def forward(
        z: Tensor, codes: Tensor, temperature: float, score: Score, clamp: float, shift: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        total = z.new_zeros(len(codes))
        entropy = z.new_zeros((), dtype=wide)
        for chunk in chunked(z, len(codes)):
            logarithm = assignment_logits(chunk, codes, temperature, score).log_softmax(1)
            probability = logarithm.exp()
            total += probability.sum(0)
            if clamp > 0:
                logarithm = probability.clamp_min(clamp).log_()
            entropy -= logarithm.mul_(probability).sum(dtype=wide)
        count = torch.full_like(entropy, len(z))
        sum_over_ranks(total, entropy, count)
        count = count.clamp_min(1)
        mean = total.to(wide) / count
        if clamp > 0 or shift > 0:
            codebook = -torch.special.xlogy(mean, mean.clamp_min(clamp) + shift).sum()
        else:
            codebook = torch.special.entr(mean).sum()
        return entropy / count, codebook, mean, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, codes, *ctx.settings = inputs
        _, _, *kept = output
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, codes, *kept)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_sample: Tensor | None, of_codebook: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        with full_precision(ctx.saved_tensors[0]):
            return *_gradients(ctx, of_sample, of_codebook), None, None, None, None


def _gradients(ctx: Any, of_sample: Tensor | None, of_codebook: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    z, codes, mean, count = ctx.saved_tensors
    temperature, score, clamp, shift = ctx.settings
    scale = world_size() / count
    of_sample = ((0 if of_sample is None else of_sample) * scale).to(z.dtype)
    of_codebook = (0 if of_codebook is None else of_codebook) * scale
    inside = mean.clamp_min(max(clamp, torch.finfo(z.dtype).tiny)) + shift
    # derivative of the codebook entropy by the mean assignment, up to a constant, to which the softmax is blind
    slope = -inside.log() - torch.where(mean > clamp, mean / inside, 0)
    slope = ((slope - (slope * mean).sum()) * of_codebook).to(z.dtype)
    of_z = torch.zeros_like(z) if ctx.needs_input_grad[0] else None
    of_codes = torch.zeros_like(codes) if ctx.needs_input_grad[1] else None
    start = 0
    for chunk in chunked(z, len(codes)):
        with torch.enable_grad():
            part = chunk.detach().requires_grad_(of_z is not None)
            all_codes = codes.detach().requires_grad_(of_codes is not None)
            logits = assignment_logits(part, all_codes, temperature, score)
        logarithm = logits.detach().log_softmax(1)
        probability = logarithm.exp()
        if clamp > 0:
            logarithm = probability.clamp_min(clamp).log_().add_(probability > clamp)
        # derivative by the probabilities, then through the softmax
        by = torch.addcmul(slope, logarithm, of_sample, value=-1)
        by.sub_((by * probability).sum(1, keepdim=True)).mul_(probability)
        wanted = [x for x in (part, all_codes) if x.requires_grad]
        slopes = list(torch.autograd.grad(logits, wanted, by))
        if of_codes is not None:
            of_codes += slopes.pop()
        if of_z is not None:
            of_z[start : start + len(chunk)] = slopes.pop()
        start += len(chunk)
    return of_z, of_codes

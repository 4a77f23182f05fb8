"""Entropies of the soft assignment of vectors to the codes of a codebook, a chunk of vectors at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 1 << 22  # probabilities held at a time: 16 MB in float32


def soft_entropy(
    z: Tensor, codes: Tensor, temperature: float, *, clamp: float = 0.0, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean entropy of softmax_k(-|z - c_k|^2 / T), and the entropy of the mean assignment, in nats.

    Args:
        z: (N, D) latents. Gradients flow to it and to the codes.
        codes: (K, D).
        temperature: T > 0.
        clamp: probabilities inside both logarithms are clamped from below by it (MaskBit: 1e-5; 0 is exact).
        shift: added to the mean probabilities inside the logarithm (LlamaGen: 1e-5; 0 is exact).

    Returns:
        (sample entropy (), codebook entropy ()).

    Raises:
        ValueError: a shape or a temperature that does not fit.
    """
    if z.ndim != 2 or codes.ndim != 2 or z.shape[1] != codes.shape[1] or len(z) == 0:
        raise ValueError(f"expected (N, D) and (K, D) with N > 0, got {tuple(z.shape)} and {tuple(codes.shape)}")
    if temperature <= 0:
        raise ValueError(f"expected a temperature > 0, got {temperature}")
    z, codes = z.float(), codes.float()
    tiny = torch.finfo(z.dtype).tiny

    def assign(chunk: Tensor) -> tuple[Tensor, Tensor]:
        logits = (2 * chunk @ codes.T - codes.square().sum(-1)) / temperature
        log_probability = logits.log_softmax(-1)
        probability = log_probability.exp()
        if clamp > 0:
            log_probability = probability.clamp(min=clamp).log()
        return -(probability * log_probability).sum(), probability.sum(0)

    parts = [checkpoint(assign, chunk, use_reentrant=False) for chunk in z.split(max(1, _CHUNK // len(codes)))]
    mean = torch.stack([total for _, total in parts]).sum(0) / len(z)
    codebook_entropy = -(mean * (mean.clamp(min=clamp or tiny) + shift).log()).sum()
    return torch.stack([entropy for entropy, _ in parts]).sum() / len(z), codebook_entropy

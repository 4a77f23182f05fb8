"""Refinement: at encoding time, tokens that give back one image better than those of the encoder.

The encoder's latents are moved by gradient descent through the decoder, the quantizer passing gradients straight
through, and of all tokens on the way the best are kept (arXiv 1906.01223 does so for learned image compression).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from zoo.adaptive import cut
from zoo.prefix import PrefixTokenizer
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

DISTANCE = {"l2": 4.0, "ms_ssim": 20.0, "lite0": 0.3}  # that of `spectral_photos`, with more weight on structure


def refine(
    model: Tokenizer,
    images: Tensor,
    *,
    steps: int = 20,
    distance: Mapping[str, float] = DISTANCE,
    rate: float = 0.07,
    num_tokens: int | list[int] | None = None,
) -> Tokens:
    """Tokens of images, nearer to them than those of `model.encode`, or the same; each step costs a pass of training.

    The same batch on the same device gives the same tokens. Rounding, which differs between batches, may lead an image
    that is encoded alone to others of like quality. The model's weights stay as they are.

    Args:
        model: of images, whose tokens are its quantised latents and whose decoder draws no noise.
        images: (B, C, H, W), as `model.encode` takes them.
        steps: of Adam, with decays 0.9 and 0.95.
        distance: what falls: weights of `l1` or `l2`, means over pixels in [-1, 1], and of the distances of
            `zoo.losses.perceptual_distance`. The default needs the extra `perceptual`.
        rate: of the first step, in deviations of the image's latents; it falls to 0 on a cosine.
        num_tokens: as of `model.encode`.

    Returns:
        Tokens as of `model.encode`.

    Raises:
        ValueError: images that `model.encode` does not take, a model of another kind, one whose quantizer passes no
            gradient, or a setting out of range.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or not 0 < rate < float("inf"):
        raise ValueError(f"expected steps >= 0 and a rate > 0, got {steps!r} and {rate!r}")
    plain = type(model).encode_levels in (Tokenizer.encode_levels, PrefixTokenizer.encode_levels)
    if model.spec.modality != "image" or not plain or not model.has_decoder or "seed" in model.decode_options:
        raise ValueError(
            f"expected a model of images whose tokens are its quantised latents and that decodes without noise, got "
            f"{model.name}"
        )
    measure = _distance(distance, images.device)
    low, high = model.spec.value_range
    tokens = model.encode(images, num_tokens=num_tokens)
    counts = [tokens.levels[0].shape[1]] * len(tokens) if tokens.lengths is None else tokens.lengths.tolist()
    images = images.to(model.dtype)
    with model._evaluating():
        with torch.no_grad():
            start = model.latent(model.pad(images))
        if model.prefix == "positions":
            start = start[:, : max(counts)]
        deviation = start.flatten(1).std(1).view(-1, *[1] * (start.ndim - 1))
        moved = torch.zeros_like(start).requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=rate, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps + 1)
        levels, least = tokens.levels, torch.full((len(tokens),), torch.inf, device=images.device)
        for step in range(steps + 1):
            with torch.enable_grad():
                quantized = model.quantizer(start + deviation * moved)
                signal = model.decode_codes(quantized.codes.to(model.dtype), tokens)
                signal = signal[:, :, : images.shape[2], : images.shape[3]]
                distances = measure(*(2 * (x.float() - low) / (high - low) - 1 for x in (signal, images)))
            better = distances.detach() < least
            least = torch.where(better, distances.detach(), least)
            levels = tuple(
                torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in zip(quantized.levels, levels, strict=True)
            )
            if step < steps:
                (moved.grad,) = torch.autograd.grad(distances.sum(), [moved], allow_unused=True)
                if moved.grad is None:
                    raise ValueError(f"expected a quantizer that passes gradients, got {model.quantizer.config.kind}")
                optimizer.step()
                schedule.step()
    if model.prefix == "positions":
        levels, _ = cut(levels, counts)
    return replace(tokens, levels=levels)


def _distance(terms: Mapping[str, float], device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """The weighted sum of distances of images (B, C, H, W) in [-1, 1] -> (B,)."""
    from zoo.losses import RECONSTRUCTION_LOSSES, perceptual_distance

    if not terms:
        raise ValueError("distance: expected at least one term, got none")
    plain = {name: weight for name, weight in terms.items() if name in RECONSTRUCTION_LOSSES}
    others = {name: weight for name, weight in terms.items() if name not in RECONSTRUCTION_LOSSES}
    perceptual = perceptual_distance(others).to(device) if others else None

    def measure(images: Tensor, targets: Tensor) -> Tensor:
        parts = [weight * RECONSTRUCTION_LOSSES[name](images, targets) for name, weight in plain.items()]
        return torch.stack(parts if perceptual is None else [*parts, perceptual(images, targets)]).sum(0)

    return measure

"""Discriminative class tokens: a word trained by what a classifier says of the images that it leads to.

Paper: "Discriminative Class Tokens for Text-to-Image Diffusion Models" (ICCV 2023). Original:
idansc/discriminative_class_tokens (MIT). The word is one of `LearnedWords`; no images are needed.

The original starts from the word "a", takes a step of AdamW (learning rate 1.25e-3) for each five noises, which come
again in every epoch, and stops when the classifier takes 0.7 of an epoch's images for the class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.losses.efficientnet_lite import efficientnet_lite

STEPS, GUIDANCE = 30, 7.0  # of generation
TEMPLATES = ("A photo of $", "a high resolution realistic image of $", "A close-up photo of a $")

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, time, text states -> noise


def prompt(class_name: str, template: str = TEMPLATES[0]) -> str:
    """The prompt of a class: the word stands before its name."""
    return f"{template} {class_name}"


def generate(
    denoise: Denoiser,
    scheduler: Any,
    states: Tensor,
    unconditional: Tensor,
    noise: Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents (B, C, H, W) of prompts, through whose last step alone gradients flow back to the text states.

    Args:
        denoise: the diffusion model, frozen.
        scheduler: of diffusers, one that predicts noise.
        states, unconditional: (B, L, D), of the prompts and of the empty one, of equal length.
        noise: (B, C, H, W), standard normal.
        steps, guidance: of classifier-free guidance.
    """
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    both = torch.cat([unconditional, states])
    for step, time in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(step == len(scheduler.timesteps) - 1):
            scaled = scheduler.scale_model_input(latents, time)
            plain, conditioned = denoise(torch.cat([scaled, scaled]), time, both).chunk(2)
            latents = scheduler.step(plain + guidance * (conditioned - plain), time, latents).prev_sample
    return latents


def load_classifier(name: str) -> nn.Module:
    """A frozen classifier (B, 3, 224, 224) -> logits: "efficientnet_lite0", whose weights come in a Python package, or
    one of transformers, as a repository of the hub or a folder.
    """
    if name == "efficientnet_lite0":
        return efficientnet_lite("lite0").requires_grad_(False)
    from transformers import AutoModelForImageClassification

    model: nn.Module = AutoModelForImageClassification.from_pretrained(name)
    return _Logits(model).eval().requires_grad_(False)


class _Logits(nn.Module):
    """A classifier of transformers that gives nothing but logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def classify(
    classifier: nn.Module,
    images: Tensor,
    *,
    size: int = 224,
    resize: int = 256,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    deviation: Sequence[float] = (0.5, 0.5, 0.5),
) -> Tensor:
    """A classifier's logits of a decoder's images (B, 3, H, W) in [-1, 1]; differentiable.

    The defaults are those of google/vit-large-patch16-224: resized, cut at the centre, normalised.
    """
    unit = (images / 2 + 0.5).clamp(0, 1)
    resized = F.interpolate(unit, size=(resize, resize), mode="bicubic", antialias=True, align_corners=False)
    start = (resize - size) // 2
    cut = resized[:, :, start : start + size, start : start + size]
    scale = cut.new_tensor(deviation)[:, None, None]
    return classifier((cut - cut.new_tensor(mean)[:, None, None]) / scale)


def class_loss(logits: Tensor, label: int) -> Tensor:
    """Cross entropy of logits (B, classes) with one class, counted from 0."""
    return F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device))

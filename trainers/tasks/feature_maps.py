"""Tokenizers of maps of image features, trained on images: a frozen CLIP makes the maps.

4M, arXiv 2312.06647.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_inputs import image_input
from trainers.tasks.reconstruction import ReconstructionTask
from zoo.losses.frozen import Frozen


class FeatureMapTask(ReconstructionTask):
    """Trains a tokenizer whose signals are maps (B, C, g, g) of a CLIP's features, one for each patch of an image: see
    `ReconstructionTask`, whose images are stretched to the CLIP's size. They are the last states of the patches,
    brought to the joint space of images and texts as that of the class token is.

    Losses are those of features; `val/cosine` is the mean cosine of a feature and what its token gives back.

    Args:
        model: name of the model in the zoo.
        clip: name of the CLIP (see `load_pair`).
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: a perceptual distance, features of other channels than the model takes, an encoder that pools in
            another way, or a setting that cannot work.
    """

    shown = ("cosine",)

    def __init__(self, model: str, clip: str, **settings: Any) -> None:
        if settings.get("perceptual") is not None:
            raise ValueError(f"perceptual: expected None for features, got {settings['perceptual']}")
        super().__init__(model, **settings)
        pair = load_pair(clip)
        self.clip, self.clip_input = Frozen(pair), image_input(pair)

    def model_range(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> maps (B, C, g, g)."""
        pair: Any = self.clip.network
        with torch.no_grad():
            rows = pair.joint_tokens(pair.image_tokens(self.clip_input.stretched(images)))[:, 1:]
        side = math.isqrt(rows.shape[1])
        maps = rows.transpose(1, 2).unflatten(2, (side, side))
        if maps.shape[1] != self.model.spec.channels:
            raise ValueError(f"clip: expected features of {self.model.spec.channels} channels, got {maps.shape[1]}")
        return maps.contiguous()

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        maps = self.model_range(images)
        output = self.averaged(maps)
        _, losses = self.generator_loss(maps, output, self.global_step)
        cosine = F.cosine_similarity(output.reconstruction.float(), maps.float(), dim=1).mean()
        self.log_validation({**losses, "cosine": cosine}, len(images))
        return output

    def pictures(self, maps: Tensor) -> Tensor:
        """The first three channels as colours, from three deviations below to three above zero: (B, 3, g, g)."""
        colours = maps[:, :3].float()
        return (colours / (6 * maps.float().std() + 1e-6) + 0.5).clamp(0, 1)

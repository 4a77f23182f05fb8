"""Tokenizers that read the latents of an autoencoder, trained on images.

Latent diffusion, arXiv 2112.10752.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.tasks.reconstruction import ReconstructionTask
from zoo.layers.base_autoencoder import VariationalBaseConfig
from zoo.losses.frozen import Frozen
from zoo.registry import registry


class LatentTask(ReconstructionTask):
    """Trains a tokenizer whose signals are the scaled latents of a frozen autoencoder, which its family has as
    `signal_autoencoder`: see `ReconstructionTask`.

    Losses are those of latents, `val/psnr` is that of images.

    Args:
        model: name of the model in the zoo.
        autoencoder: fields of `VariationalBaseConfig`.
        autoencoder_weights: a file of its weights in diffusers' layout; None: random ones, to try a recipe.
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: a model of other signals, latents of other channels than it takes, or a setting that cannot work.
    """

    def __init__(
        self, model: str, autoencoder: dict[str, Any], autoencoder_weights: str | None = None, **settings: Any
    ) -> None:
        if settings.get("perceptual") is not None:
            raise ValueError(f"perceptual: expected None for latents, got {settings['perceptual']}")
        super().__init__(model, **settings)
        family = registry.family_of(self.model).module
        if not hasattr(family, "signal_autoencoder"):
            raise ValueError(f"model: expected one of an autoencoder's latents, such as selftok_512, got {model}")
        if autoencoder_weights is not None and not Path(autoencoder_weights).is_file():
            raise ValueError(f"autoencoder_weights: expected a file, got {autoencoder_weights}")
        self.autoencoder_config = VariationalBaseConfig.from_dict(autoencoder)
        channels = self.model.spec.channels
        if self.autoencoder_config.dim != channels:
            raise ValueError(f"autoencoder: expected a dim of {channels}, got {self.autoencoder_config.dim}")
        file = None if autoencoder_weights is None else Path(autoencoder_weights)
        self.autoencoder = Frozen(family.signal_autoencoder(self.autoencoder_config, file))

    def model_range(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> the means of their latents (B, dim, h, w), shifted and scaled."""
        with torch.no_grad():
            return self.autoencoder.network.latent(2 * images - 1).movedim(-1, 1)  # type: ignore[operator]

    def unit(self, x: Tensor) -> Tensor:
        """Latents (B, dim, h, w) -> the images (B, 3, H, W) that they stand for, in [0, 1] but not clamped, float32."""
        config = self.autoencoder_config
        latent = x.movedim(1, -1) / config.scale + config.shift
        return self.autoencoder.network.decode(latent).float() / 2 + 0.5  # type: ignore[operator]

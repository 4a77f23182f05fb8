"""Tokenizers that read the latents of an autoencoder, trained on images.

Latent diffusion, arXiv 2112.10752.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.tasks.reconstruction import ReconstructionTask
from zoo import checkpoint
from zoo.interop.diffusers import KL_KEY_MAP
from zoo.layers.base_autoencoder import VariationalBaseConfig
from zoo.losses.frozen import Frozen


class LatentTask(ReconstructionTask):
    """Trains a tokenizer whose signals are a frozen autoencoder's scaled latents: see `ReconstructionTask`.

    Losses are those of latents, `val/psnr` is that of images.

    Args:
        model: name of the model in the zoo.
        autoencoder: fields of `VariationalBaseConfig`.
        autoencoder_weights: a file of its weights in diffusers' layout; None: random ones, to try a recipe.
        settings: arguments of `ReconstructionTask`.

    Raises:
        ValueError: latents of other channels than the model takes, or a setting that cannot work.
    """

    def __init__(
        self, model: str, autoencoder: dict[str, Any], autoencoder_weights: str | None = None, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        self.autoencoder_config = VariationalBaseConfig.from_dict(autoencoder)
        channels = self.model.spec.channels
        if self.autoencoder_config.dim != channels:
            raise ValueError(f"autoencoder: expected a dim of {channels}, got {self.autoencoder_config.dim}")
        if settings.get("perceptual") is not None:
            raise ValueError(f"perceptual: expected None for latents, got {settings['perceptual']}")
        base = self.autoencoder_config.build()
        if autoencoder_weights is not None:
            if not Path(autoencoder_weights).is_file():
                raise ValueError(f"autoencoder_weights: expected a file, got {autoencoder_weights}")
            weights = KL_KEY_MAP(checkpoint.read(Path(autoencoder_weights)))
            checkpoint.load_into(nn.ModuleDict({"base": base}), weights)
        self.autoencoder = Frozen(base)

    def model_range(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> the means of their latents (B, dim, h, w), shifted and scaled."""
        with torch.no_grad():
            return self.autoencoder.network.latent(2 * images - 1).movedim(-1, 1)  # type: ignore[operator]

    def unit(self, x: Tensor) -> Tensor:
        """Latents (B, dim, h, w) -> the images (B, 3, H, W) that they stand for, in [0, 1] but not clamped, float32."""
        config = self.autoencoder_config
        latent = x.movedim(1, -1) / config.scale + config.shift
        return self.autoencoder.network.decode(latent).float() / 2 + 0.5  # type: ignore[operator]

"""The autoencoder of Stable Diffusion 3 (arXiv 2403.03206), whose latents are the signals of Selftok."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo import checkpoint
from zoo.interop.diffusers import KL_KEY_MAP, KLArchitecture
from zoo.layers.base_autoencoder import Base, VariationalBaseConfig

_SHIFT, _SCALE = 0.0609, 1.5305  # of the autoencoder's latents
STABLE_DIFFUSION_3 = VariationalBaseConfig(
    dim=16, channels=128, channel_multipliers=(1, 2, 4, 4), attention=(False,) * 4, scale=_SCALE, shift=_SHIFT,
    projections=False,
)  # fmt: skip


def autoencoder_latents(autoencoder: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> the signals of Selftok (B, 16, H / 8, W / 8).

    `autoencoder`: diffusers' AutoencoderKL of Stable Diffusion 3 (folder `vae` of its published models).
    """
    return (autoencoder.encode(images).latent_dist.mode() - _SHIFT) * _SCALE


def autoencoder_images(autoencoder: Any, latents: Tensor) -> Tensor:
    """The inverse of `autoencoder_latents`; images are not clamped."""
    return autoencoder.decode(latents / _SCALE + _SHIFT).sample


def signal_autoencoder(config: VariationalBaseConfig, weights: Path | None = None) -> Base:
    """That autoencoder by the zoo's own modules, for training; its latents with `scale` and `shift` are the signals.

    Args:
        config: its sizes.
        weights: a file in diffusers' layout; None: random ones.

    Raises:
        CheckpointError: weights of other sizes.
    """
    base = config.build()
    if weights is not None:
        checkpoint.load_into(base, _base_weights(checkpoint.read(weights)))
    return base


def taken_over(autoencoder: Any, channels: int) -> tuple[VariationalBaseConfig, dict[str, Tensor]]:
    """Config and weights, by the zoo's names, of an AutoencoderKL of diffusers.

    Raises:
        ValueError: latents of another number of channels, or of another scale or shift.
    """
    base = KLArchitecture.from_kwargs(autoencoder.config).base()
    wanted = (channels, _SCALE, _SHIFT)
    if (found := (base.dim, base.scale, base.shift)) != wanted:
        raise ValueError(f"expected an autoencoder with channels, scale and shift of {wanted}, got {found}")
    return base, _base_weights(autoencoder.state_dict())


def _base_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an AutoencoderKL under the zoo's names."""
    return {key.removeprefix("base."): part for key, part in KL_KEY_MAP(state).items()}

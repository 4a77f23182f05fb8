"""Autoencoders on a grid whose latents another tokenizer reads and predicts: a VQGAN, or a variational one.

The VQGAN is MaskGIT's (arXiv 2202.04200), the variational one that of MAR (arXiv 2406.11838).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.maskgit import MaskGITDecoder, MaskGITEncoder
from zoo.layers.posterior import Posterior
from zoo.layers.vqgan import Decoder, Encoder, levels
from zoo.ops import nearest_code


@dataclass(frozen=True, kw_only=True)
class BaseConfig(Config):
    """Sizes of a base; a config field of this type takes any."""

    base: ClassVar[type[Base]]
    dim: int = 256  # of a latent
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 2  # residual blocks a level
    norm_groups: int = 32

    def __post_init__(self) -> None:
        self.require(len(self.channel_multipliers) > 0, "at least one level", self.channel_multipliers)

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Of the levels, finest first."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def predicted(self) -> int:
        """How many numbers a prediction of one position has."""
        raise NotImplementedError

    def build(self) -> Base:
        """The base, freshly initialised."""
        return self.base(self)


class Base(nn.Module):
    """Images (B, 3, H, W) <-> latents (B, H / stride, W / stride, dim)."""

    def latent(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images -> latents. `noise`: (B, h, w, dim) standard normal, of a variational base; None takes the mean."""
        raise NotImplementedError

    def latent_of(self, prediction: Tensor) -> Tensor:
        """A prediction (..., predicted) -> the latent that it stands for (..., dim)."""
        raise NotImplementedError

    def prediction_losses(self, prediction: Tensor, latent: Tensor) -> dict[str, Tensor]:
        """How far predictions (B, h, w, predicted) are from the latents (B, h, w, dim) of the images.

        Returns:
            `nll`: cross entropy of the codes' indices, of a base that has codes; `code`: mean squared distance of what
            is predicted to the code, or to the latent.
        """
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Latents -> images, unclamped."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CodebookBaseConfig(BaseConfig):
    """A VQGAN, of which the logits of its codes are predicted."""

    kind = "codebook"
    codebook_size: int = 1024

    @property
    def predicted(self) -> int:
        return self.codebook_size


class CodebookBase(Base):
    """The latent is that before quantisation; a prediction stands for the mean of the codes, weighted by softmax."""

    def __init__(self, config: CodebookBaseConfig) -> None:
        super().__init__()
        widths, blocks, groups = config.widths, config.blocks, config.norm_groups
        self.encoder = MaskGITEncoder(
            config.channels, widths, blocks, config.dim, groups, strided_convolution=False, middle_blocks=2
        )
        self.codebook = nn.Embedding(config.codebook_size, config.dim)
        self.decoder = MaskGITDecoder(config.dim, widths[::-1], blocks, groups, middle_blocks=2)

    def latent(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def indices(self, latent: Tensor) -> Tensor:
        """Latents (..., dim) -> their codes' indices (...)."""
        return nearest_code(latent.flatten(0, -2), self.codebook.weight).view(latent.shape[:-1])

    def latent_of(self, prediction: Tensor) -> Tensor:
        return prediction.softmax(-1) @ self.codebook.weight.to(prediction.dtype)

    def prediction_losses(self, prediction: Tensor, latent: Tensor) -> dict[str, Tensor]:
        indices = self.indices(latent.detach())
        return {
            "nll": F.cross_entropy(prediction.movedim(-1, 1).float(), indices),
            "code": F.mse_loss(self.latent_of(prediction).float(), self.codebook(indices).float()),
        }

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(latent.movedim(-1, 1))


CodebookBaseConfig.base = CodebookBase


@dataclass(frozen=True, kw_only=True)
class VariationalBaseConfig(BaseConfig):
    """A variational autoencoder, of which the latent itself is predicted."""

    kind = "variational"
    dim: int = 16
    attention: tuple[bool, ...] = (False, False, False, False, True)  # of the encoder, one per level
    scale: float = 0.2325  # that the latents are multiplied by; the decoder learns to take them so
    shift: float = 0.0  # that is taken off the latents before
    projections: bool = True  # 1x1 convolutions before and after the latents

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.channel_multipliers)
        self.require(len(self.attention) == count, f"attention of {count} levels", self.attention)

    @property
    def predicted(self) -> int:
        return self.dim


class VariationalBase(Base):
    """A prediction is the scaled latent."""

    def __init__(self, config: VariationalBaseConfig) -> None:
        super().__init__()
        widths, dim, groups = config.widths, config.dim, config.norm_groups
        down = levels(widths, config.blocks, config.attention)
        up = levels(widths[::-1], config.blocks + 1, [False] * len(widths))
        self.scale, self.shift = config.scale, config.shift
        self.encoder = Encoder(3, config.channels, down, 2 * dim, groups)
        self.to_posterior = nn.Conv2d(2 * dim, 2 * dim, 1) if config.projections else nn.Identity()
        self.from_latent = nn.Conv2d(dim, dim, 1) if config.projections else nn.Identity()
        self.decoder = Decoder(dim, up, 3, groups)

    def latent(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        posterior = Posterior.of(self.to_posterior(self.encoder(x)).movedim(1, -1))
        return self.scale * ((posterior.mean if noise is None else posterior.sample(noise)) - self.shift)

    def latent_of(self, prediction: Tensor) -> Tensor:
        return prediction

    def prediction_losses(self, prediction: Tensor, latent: Tensor) -> dict[str, Tensor]:
        return {"code": F.mse_loss(prediction.float(), latent.float())}

    def decode(self, latent: Tensor) -> Tensor:
        return self.decoder(self.from_latent(latent.movedim(-1, 1)))


VariationalBaseConfig.base = VariationalBase

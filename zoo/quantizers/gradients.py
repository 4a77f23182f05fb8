"""Gradient estimators: what the decoder gets in place of the latent, and how its gradient reaches encoder and codebook.

Each is a small config that any quantizer with a codebook takes as its `gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.ops.own_gradient import OwnGradient, once_differentiable
from zoo.quantizers.base import straight_through


class GradientConfig(Config):
    """Base of the gradient estimators; a config field of this type takes any."""

    def estimate(self, z: Tensor, codes: Tensor, training: bool) -> Tensor:
        """Codes as the quantizer returns them.

        Args:
            z: (..., D) latents, as they were searched for.
            codes: (..., D) their codes, with a gradient to the codebook if it has one.
            training: whether the quantizer is in training mode; if not, the value is exactly `codes`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class StraightThroughConfig(GradientConfig):
    """The codes' gradient goes to the latents as it is (arXiv 1308.3432).

    `synchronous` is the share of it that also goes to the codebook, so that both move in one step (the synchronous
    update rule of arXiv 2305.08842); 0 is the plain estimator.
    """

    kind = "straight_through"
    synchronous: float = 0.0

    def __post_init__(self) -> None:
        self.require(0 <= self.synchronous <= 1, "a synchronous share in [0, 1]", self.synchronous)

    def estimate(self, z: Tensor, codes: Tensor, training: bool) -> Tensor:
        result = straight_through(z, codes)
        return result + self.synchronous * (codes - codes.detach()) if self.synchronous > 0 else result


@dataclass(frozen=True)
class RotationConfig(GradientConfig):
    """The rotation trick: the gradient is rotated and scaled as the latent is to its code (arXiv 2410.06424)."""

    kind = "rotation"

    def estimate(self, z: Tensor, codes: Tensor, training: bool) -> Tensor:
        return _Rotation.apply(z, codes.detach())


@dataclass(frozen=True)
class DiVeQConfig(GradientConfig):
    """Differentiable quantisation by reparametrisation (DiVeQ, arXiv 2509.26469).

    In training the decoder gets a point at the distance of the code, in its direction up to normal noise of `variance`
    per dimension; the distance carries the gradient to latent and codebook, so that no auxiliary loss is needed.
    """

    kind = "diveq"
    variance: float = 1e-3

    def __post_init__(self) -> None:
        self.require(self.variance >= 0, "a variance >= 0", self.variance)

    def estimate(self, z: Tensor, codes: Tensor, training: bool) -> Tensor:
        if not training:
            return straight_through(z, codes)
        error = codes - z
        noisy = error.detach() + self.variance**0.5 * torch.randn_like(error)
        return z + F.normalize(noisy, dim=-1) * error.norm(dim=-1, keepdim=True)


class _Rotation(OwnGradient):
    """Exactly the codes. Backward: the transpose of the rotation from latent to code, times the ratio of lengths."""

    @staticmethod
    def forward(z: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, codes = ctx.saved_tensors
        length, code_length = (v.norm(dim=-1, keepdim=True).clamp_min(1e-12) for v in (z, codes))
        source, target = z / length, codes / code_length
        middle = F.normalize(source + target, dim=-1)
        # with unit vectors the rotation is I - 2 middle middle^T + 2 target source^T
        reflected = gradient - 2 * (gradient * middle).sum(-1, keepdim=True) * middle
        rotated = reflected + 2 * (gradient * target).sum(-1, keepdim=True) * source
        return rotated * (code_length / length), None

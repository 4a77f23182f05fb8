"""The random-projection quantizer of BEST-RQ (arXiv 2202.01855): labels from a frozen projection and codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import nearest_code
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig, straight_through


@dataclass(frozen=True)
class RandomProjectionConfig(QuantizerConfig):
    """`dim`: width of latents and codes; the search runs in `codebook_dim` dimensions, once for each codebook."""

    kind = "random_projection"
    dim: int = 80  # type: ignore[assignment]
    codebook_size: int = 8192
    codebook_dim: int = 16
    num_codebooks: int = 1
    normalise: bool = True  # latents to mean 0 and standard deviation 1 first, without which few codes are used

    def __post_init__(self) -> None:
        sizes = (self.dim, self.codebook_size, self.codebook_dim, self.num_codebooks)
        self.require(min(sizes) >= 1, "dim, codebook_size, codebook_dim and num_codebooks >= 1", sizes)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_codebooks


class RandomProjection(Quantizer):
    """Latents are normalised over channels, projected, and labelled with the code of the largest cosine.

    The published quantizer gives labels alone, for a model to predict. As codes, this one returns the shortest vectors
    that the projections (taken together) map to the unit code vectors. Nothing is trained, and there are no losses.
    """

    config: RandomProjectionConfig
    projections: Tensor
    codebooks: Tensor

    def __init__(self, config: RandomProjectionConfig) -> None:
        super().__init__(config)
        projections = torch.empty(config.num_codebooks, config.dim, config.codebook_dim)
        for projection in projections:
            nn.init.xavier_normal_(projection)
        self.register_buffer("projections", projections)
        codebooks = torch.randn(config.num_codebooks, config.codebook_size, config.codebook_dim)
        self.register_buffer("codebooks", F.normalize(codebooks, dim=-1))

    def quantize(self, z: Tensor) -> Quantized:
        flat = z.flatten(0, -2)
        if self.config.normalise:
            flat = F.layer_norm(flat, flat.shape[-1:])
        projected = flat.detach() @ self.projections.float()  # (codebooks, N, codebook_dim)
        levels = nearest_code(projected, self.codebooks, "cosine").unflatten(1, z.shape[:-1]).unbind(0)
        return Quantized(straight_through(z, self.indices_to_codes(*levels)), levels)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        together = torch.linalg.pinv(self.projections.float().transpose(0, 1).flatten(1))
        back = together.unflatten(0, (self.config.num_codebooks, -1))  # (codebooks, codebook_dim, dim)
        tables = F.normalize(self.codebooks.float(), dim=-1) @ back
        return torch.stack([F.embedding(indices, table) for indices, table in zip(levels, tables)]).sum(0)


RandomProjectionConfig.quantizer = RandomProjection

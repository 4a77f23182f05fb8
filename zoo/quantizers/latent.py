"""Latent quantisation (arXiv 2305.18378): each dimension takes the nearest of its own few learned values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops import nearest_code
from zoo.quantizers.base import DigitsConfig, Quantized, Quantizer, mean_squared_error, straight_through


@dataclass(frozen=True)
class LatentConfig(DigitsConfig):
    """See `DigitsConfig`."""

    kind = "latent"
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)

    def __post_init__(self) -> None:
        self.require_levels(least=1)


class Latent(Quantizer):
    """Values start evenly spaced in [-1/2, 1/2], with one at 0; of equally near ones the first is taken.

    Index = sum of digits times basis, dimension 0 being the fastest digit. A latent that is not finite gets digit 0.
    Losses: `codebook` = mean((codes - sg(z))^2), `commitment` = mean((z - sg(codes))^2).
    """

    levels: Tensor
    basis: Tensor
    places: Tensor

    def __init__(self, config: LatentConfig) -> None:
        super().__init__(config)
        self.values = nn.Parameter(torch.cat([_spaced(count) for count in config.levels]))  # dimension by dimension
        self.register_constant("levels", torch.tensor, config.levels)
        self.register_constant("basis", torch.tensor, config.basis)
        self.register_constant("places", _places, config.levels)

    def quantize(self, z: Tensor) -> Quantized:
        table = self.values.detach()[self.places]  # (D, most levels)
        flat = z.flatten(0, -2)
        digits = nearest_code(flat.T[..., None], table[..., None]).T.view(z.shape)
        codes = self._codes(digits)
        losses = {
            "codebook": mean_squared_error(codes, z.detach()),
            "commitment": mean_squared_error(z, codes.detach()),
        }
        return Quantized(straight_through(z, codes), ((digits * self.basis).sum(-1),), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        (indices,) = levels
        return self._codes(indices[..., None] // self.basis % self.levels)

    def _codes(self, digits: Tensor) -> Tensor:
        return F.embedding(self.places[:, 0] + digits, self.values.float()[:, None])[..., 0]


def _spaced(count: int) -> Tensor:
    return torch.linspace(-0.5, 0.5, count) if count % 2 == 1 else torch.arange(count) / count - 0.5


LatentConfig.quantizer = Latent


def _places(levels: tuple[int, ...]) -> Tensor:
    """(D, most levels): where the values of each dimension lie in the one row of all.

    Rows are filled up with the first value, which no search then takes for another.
    """
    starts = torch.tensor([sum(levels[:i]) for i in range(len(levels))])
    digits = torch.arange(max(levels))
    return starts[:, None] + torch.where(digits < torch.tensor(levels)[:, None], digits, 0)

"""Implicit neural codebooks (QINCo, arXiv 2401.14732): residual levels whose codes depend on the levels before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.ops.nearest_own_code import nearest_own_code
from zoo.ops.precision import full_precision
from zoo.quantizers.base import LinearTable, Quantized, Quantizer, QuantizerConfig, mean_squared_error, straight_through
from zoo.quantizers.composite import require_levels

_TILE = 1 << 20  # hidden values held at a time during the search: 4 MB in float32


@dataclass(frozen=True)
class ImplicitNeuralConfig(QuantizerConfig):
    """`num_levels` levels of `codebook_size` codes.

    Attributes:
        blocks: residual blocks of the network of each level but the first.
        hidden: width inside a block.
    """

    kind = "implicit_neural"
    prefix = True
    codebook_size: int = 256
    dim: int = 8  # type: ignore[assignment]
    num_levels: int = 8
    blocks: int = 2
    hidden: int = 256
    quantizer: ClassVar[type[Quantizer]]

    def __post_init__(self) -> None:
        sizes = (self.codebook_size, self.dim, self.num_levels, self.hidden)
        self.require(min(sizes) >= 1, "codebook_size, dim, num_levels and hidden >= 1", sizes)
        self.require(self.blocks >= 0, "blocks >= 0", self.blocks)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_levels


class ImplicitNeural(Quantizer):
    """A latent's codes at a level are those of the level's codebook, changed by a network that sees the sum so far.

    The search runs the network for every code of every latent: K times the cost of a network of that size.

    Losses, means over levels of the sum x of codes so far against the latent z: `codebook` = mean((x - sg(z))^2), which
    reaches the codebooks and networks of all levels up to there; `commitment` = mean((z - sg(x))^2).
    """

    config: ImplicitNeuralConfig

    def __init__(self, config: ImplicitNeuralConfig) -> None:
        super().__init__(config)
        bound = 1 / config.codebook_size
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.empty(config.codebook_size, config.dim).uniform_(-bound, bound))
            for _ in range(config.num_levels)
        )
        self.networks = nn.ModuleList(_Network(config) for _ in range(config.num_levels - 1))

    def quantize(self, z: Tensor) -> Quantized:
        flat = z.flatten(0, -2)
        total, levels, commitments, fits = torch.zeros_like(flat), [], [], []
        for q in range(self.config.num_levels):
            indices = self._search(q, flat.detach(), total.detach())
            total = total + self._codes(q, indices, total)
            levels.append(indices.view(z.shape[:-1]))
            commitments.append(mean_squared_error(flat, total.detach()))
            fits.append(mean_squared_error(total, flat.detach()))
        losses = {"commitment": torch.stack(commitments).mean(), "codebook": torch.stack(fits).mean()}
        return Quantized(straight_through(z, total.view(z.shape)), tuple(levels), losses)

    def indices_to_codes(self, *levels: Tensor) -> Tensor:
        """Code vectors of indices of all levels, or of the first ones alone."""
        require_levels(self.config, levels)
        total = self.codebooks[0].new_zeros(levels[0].numel(), self.config.dim, dtype=torch.float32)
        with full_precision(total):
            for q, indices in enumerate(levels):
                total = total + self._codes(q, indices.flatten(), total)
        return total.view(*levels[0].shape, self.config.dim)

    def _codes(self, q: int, indices: Tensor, total: Tensor) -> Tensor:
        """Codes (N, D) of level q for indices (N,) and sums so far (N, D)."""
        codes = F.embedding(indices, self.codebooks[q].float())
        return codes if q == 0 else self.networks[q - 1](codes, total)

    @torch.no_grad()
    def _search(self, q: int, z: Tensor, total: Tensor) -> Tensor:
        codebook = self.codebooks[q].float()
        rows = max(1, _TILE // (len(codebook) * max(self.config.hidden, self.config.dim)))
        found = []
        for latents, sums in zip(z.split(rows), total.split(rows)):
            codes = codebook.expand(len(sums), -1, -1)
            codes = codes if q == 0 else self.networks[q - 1](codes, sums[:, None])
            found.append(nearest_own_code(latents - sums, codes))
        return torch.cat(found) if found else z.new_zeros(0, dtype=torch.int64)


class _Network(nn.Module):
    """Codes (..., D) and sums (..., D) -> codes; at the start nothing changes them."""

    def __init__(self, config: ImplicitNeuralConfig) -> None:
        super().__init__()
        self.concatenated = LinearTable(2 * config.dim, config.dim)
        self.widen = nn.ModuleList(LinearTable(config.dim, config.hidden, bias=False) for _ in range(config.blocks))
        self.narrow = nn.ModuleList(LinearTable(config.hidden, config.dim, bias=False) for _ in range(config.blocks))
        for linear in (self.concatenated, *self.narrow):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)

    def forward(self, codes: Tensor, total: Tensor) -> Tensor:
        # the product with [codes, total], without laying the two side by side for every code of every latent
        of_codes, of_total = self.concatenated.weight.float().chunk(2, dim=1)
        codes = codes + F.linear(codes, of_codes) + F.linear(total, of_total, self.concatenated.bias.float())
        for widen, narrow in zip(self.widen, self.narrow):
            codes = codes + F.linear(F.linear(codes, widen.weight.float()).relu(), narrow.weight.float())  # type: ignore[arg-type, operator]
        return codes


ImplicitNeuralConfig.quantizer = ImplicitNeural

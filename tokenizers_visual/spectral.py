"""Spectral: the zoo's own tokenizer of adaptive length, whose tokens are the spatial frequencies of a latent grid.

A convolutional encoder gives a grid of latents, the discrete cosine transform as many frequencies, and each of them is
one token, the lowest first. So any prefix is a coarser image, as in progressive JPEG; training drops the tail of the
row (nested dropout, arXiv 1402.0915).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.adaptive import cut, token_counts
from zoo.config import Config
from zoo.layers.dct import dct2, inverse_dct2
from zoo.layers.haar import Patch, Unpatch
from zoo.layers.resnet import PlainResBlock
from zoo.quantizers import FiniteScalarConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

_FEATURES = 9  # numbers that tell a frequency, see `frequency_features`


@dataclass(frozen=True)
class SpectralConfig(Config):
    """Sizes of the network, from the finest to the coarsest level. Stride: the patch size, twice for each level more.

    The more values the quantizer has in all, the more one token tells: 27 bits with the default levels.
    """

    patch_size: int = 4
    channels: tuple[int, ...] = (64, 128, 192)
    encoder_blocks: tuple[int, ...] = (2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 3, 3)
    latent_channels: int = 96  # of the grid that is transformed
    hidden: int = 256  # of the networks that code one frequency
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(16, 16, 16, 8, 8, 8, 4, 4, 2, 2))

    def __post_init__(self) -> None:
        self.require(self.patch_size in (1, 2, 4, 8, 16), "a patch size of 1, 2, 4, 8 or 16", self.patch_size)
        depths = {len(self.channels), len(self.encoder_blocks), len(self.decoder_blocks)}
        self.require(len(depths) == 1 and depths != {0}, "channels and blocks of as many levels", depths)
        self.require(min(self.latent_channels, self.hidden, *self.channels) >= 1, "sizes >= 1", self)

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** (len(self.channels) - 1)


@register("spectral")
class Spectral(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> 1 to H W / f^2 tokens, the lowest frequency
    first; any prefix decodes.

    `encode(x, num_tokens=k)` gives the first k tokens, k an integer for all items or a list of one for each.
    """

    layout = "sequence"
    prefix = "positions"
    encode_options = frozenset({"num_tokens"})
    config: SpectralConfig

    def __init__(self, config: SpectralConfig) -> None:
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=config.stride)
        super().__init__(config, spec, config.quantizer)
        channels, latent, hidden = config.channels, config.latent_channels, config.hidden
        patched, dim = 3 * config.patch_size**2, config.quantizer.dim
        encoder: list[nn.Module] = [Patch(config.patch_size, "rearrange"), nn.Conv2d(patched, channels[0], 3, padding=1)]
        for level, blocks in enumerate(config.encoder_blocks):
            if level > 0:
                encoder.append(nn.Conv2d(channels[level - 1], channels[level], 4, stride=2, padding=1))
            encoder += [PlainResBlock(channels[level]) for _ in range(blocks)]
        self.encoder = nn.Sequential(*encoder, nn.SiLU(), nn.Conv2d(channels[-1], latent, 1))
        self.to_code = _FrequencyCoder(latent, hidden, dim)
        self.from_code = _FrequencyCoder(dim, hidden, latent)
        self.rise, self.fall = nn.Linear(_FEATURES, latent), nn.Linear(_FEATURES, latent)  # log gains by frequency
        for gains, slope, start in ((self.rise, 1.0, 0.0), (self.fall, -1.0, 0.0)):  # of natural images, roughly
            nn.init.zeros_(gains.weight)
            nn.init.constant_(gains.weight.data[:, 1], slope)
            nn.init.constant_(gains.bias, start)
        self.condition = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, channels[-1]))
        self.conv_in = nn.Conv2d(latent, channels[-1], 3, padding=1)
        decoder: list[nn.Module] = [PlainResBlock(channels[-1]) for _ in range(config.decoder_blocks[-1])]
        for (coarse, fine), blocks in zip(pairwise(channels[::-1]), config.decoder_blocks[-2::-1]):
            decoder += [nn.Conv2d(coarse, 4 * fine, 3, padding=1), nn.PixelShuffle(2)]
            decoder += [PlainResBlock(fine) for _ in range(blocks)]
        self.decoder = nn.Sequential(
            *decoder, nn.SiLU(), nn.Conv2d(channels[0], patched, 3, padding=1), Unpatch(config.patch_size, "rearrange")
        )

    def token_shapes(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple((math.prod(shape),) for shape in super().token_shapes(size))

    def latent(self, x: Tensor) -> Tensor:
        """Images -> what is quantised of each frequency, (B, h, w, D); frequency (0, 0) stands at the upper left."""
        grid = self.encoder(x).movedim(1, -1)
        grid = F.layer_norm(grid, grid.shape[-1:])
        features = frequency_features(*grid.shape[1:3], grid.device).to(grid.dtype)
        return self.to_code(dct2(grid) * self.rise(features).exp(), features)

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors of frequencies (B, h, w, D) -> images; of each item only the first `lengths` (B,) frequencies."""
        batch, height, width = codes.shape[:3]
        features = frequency_features(height, width, codes.device).to(codes.dtype)
        spectrum = self.from_code(codes, features) * self.fall(features).exp()
        if lengths is None:
            lengths = torch.full((batch,), height * width, device=codes.device)
        lengths = lengths.to(codes.device)
        seen = frequency_ranks(height, width, codes.device) < lengths[:, None, None]
        grid = inverse_dct2(spectrum * seen[..., None]).movedim(-1, 1)
        known = torch.stack([lengths / (height * width), lengths.log2() / 8], -1).to(grid.dtype)
        return self.decoder(self.conv_in(grid) + self.condition(known)[:, :, None, None])

    def encode_levels(
        self, x: Tensor, *, num_tokens: int | list[int] | None = None, **options: Any
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        height, width = self.positions(tuple(x.shape[2:]))
        counts = token_counts(num_tokens, len(x), range(1, height * width + 1))
        levels, _ = super().encode_levels(x, **options)
        order = frequency_order(height, width, x.device)
        return cut([level.flatten(1)[:, order] for level in levels], counts)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        height, width = self.grid_of(tokens)
        batch, count, dim = codes.shape
        if not 1 <= count <= height * width:
            raise ValueError(f"expected 1 to {height * width} tokens, got {count}")
        order = frequency_order(height, width, codes.device)[:count]
        grid = codes.new_zeros(batch, height * width, dim).index_copy(1, order, codes).unflatten(1, (height, width))
        lengths = torch.full((batch,), count, device=codes.device) if tokens.lengths is None else tokens.lengths
        return self.reconstruct(grid, lengths)

    def grid_of(self, tokens: Tokens) -> tuple[int, int]:
        """Height and width of the latent grid whose frequencies the tokens are.

        Raises:
            ValueError: tokens that do not tell the size of their images, or of images of several sizes.
        """
        sizes = set() if tokens.extent is None else set(tokens.extent.sizes)
        if len(sizes) != 1:
            wanted = f"{self.name}: expected tokens of images of one size (extent, in pixels)"
            raise ValueError(f"{wanted}, got {sorted(sizes) or 'none'}")
        (size,) = sizes
        height, width = self.positions(tuple(side + grow for side, grow in zip(size, self.spec.padding(size))))
        return height, width


class _FrequencyCoder(nn.Module):
    """A network for each position that knows its frequency: (B, h, w, a) and features (h, w, _FEATURES) -> (B, h, w, b)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, outputs)
        self.net = nn.Sequential(
            nn.Linear(inputs + _FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, outputs),
        )  # fmt: skip

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.skip(x) + self.net(torch.cat([x, features.expand(*x.shape[:-1], -1)], -1))


def _frequencies(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal frequency of each place, (h, w) each, in half cycles a cell, from 0 to below 1."""
    vertical, horizontal = (torch.arange(side, device=device) / side for side in (height, width))
    return vertical[:, None].expand(-1, width), horizontal.expand(height, -1)


def frequency_features(height: int, width: int, device: torch.device) -> Tensor:
    """(h, w, 9): what a network is told of each frequency; a function of cycles a cell, whatever the grid's size."""
    vertical, horizontal = _frequencies(height, width, device)
    radius = (vertical.square() + horizontal.square()).sqrt()
    constant = (radius == 0).float()
    pi = math.pi
    return torch.stack(
        [
            constant, (radius + 1 / 32).log2() / 5 * (1 - constant), radius, vertical, horizontal,
            (pi * vertical).cos(), (pi * horizontal).cos(), (2 * pi * vertical).cos(), (2 * pi * horizontal).cos(),
        ],
        -1,
    )  # fmt: skip


def frequency_order(height: int, width: int, device: torch.device) -> Tensor:
    """(h w,): the places of a flat grid of frequencies from the lowest to the highest."""
    vertical, horizontal = _frequencies(height, width, device)
    return (vertical.square() + horizontal.square()).flatten().argsort(stable=True)


def frequency_ranks(height: int, width: int, device: torch.device) -> Tensor:
    """(h, w): the place of each frequency in the row of tokens."""
    return frequency_order(height, width, device).argsort().view(height, width)

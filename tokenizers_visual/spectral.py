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

from zoo.config import Config
from zoo.layers.dct import dct2, inverse_dct2
from zoo.layers.haar import Patch, Unpatch
from zoo.layers.resnet import PlainResBlock
from zoo.prefix import PrefixTokenizer
from zoo.quantizers import FiniteScalarConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output
from zoo.tokens import Tokens

_FEATURES = 9  # numbers that tell a frequency, see `frequency_features`


@dataclass(frozen=True)
class SpectralConfig(Config):
    """Sizes of the network, from the finest to the coarsest level. Stride: the patch size, twice for each level more.

    The more values the quantizer has in all, the more one token tells: 28 bits with the default levels.
    """

    patch_size: int = 4
    channels: tuple[int, ...] = (64, 128, 192)
    encoder_blocks: tuple[int, ...] = (2, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 3, 3)
    latent_channels: int = 96  # of the grid that is transformed
    hidden: int = 256  # of the networks that code one frequency
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(16, 16, 8, 8, 8, 8, 4, 4, 4, 2, 2), symmetric=True)

    def __post_init__(self) -> None:
        self.require(self.patch_size in (1, 2, 4, 8, 16), "a patch size of 1, 2, 4, 8 or 16", self.patch_size)
        depths = {len(self.channels), len(self.encoder_blocks), len(self.decoder_blocks)}
        self.require(len(depths) == 1 and depths != {0}, "channels and blocks of as many levels", depths)
        self.require(min(self.latent_channels, self.hidden, *self.channels) >= 1, "sizes >= 1", self)

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** (len(self.channels) - 1)


@register("spectral")
class Spectral(PrefixTokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> 1 to H W / f^2 tokens, the lowest frequency
    first; any prefix decodes.

    In training a pass gives the loss `spread`: how far the latents of a frequency, over the batch, are from mean 0 and
    deviation 0.88, with which the hyperbolic tangent of a finite scalar quantizer uses its levels about evenly.
    """

    own_losses = frozenset({"spread"})

    config: SpectralConfig

    def __init__(self, config: SpectralConfig) -> None:
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=config.stride)
        super().__init__(config, spec, config.quantizer)
        channels, latent, hidden = config.channels, config.latent_channels, config.hidden
        patched, dim = 3 * config.patch_size**2, config.quantizer.dim
        encoder: list[nn.Module] = [
            Patch(config.patch_size, "rearrange"),
            nn.Conv2d(patched, channels[0], 3, padding=1),
        ]
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

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(super().positions(size)),)

    def latent(self, x: Tensor) -> Tensor:
        """Images -> what is quantised of each frequency, (B, h w, D), the lowest first."""
        grid = self.encoder(x).movedim(1, -1)
        height, width = grid.shape[1:3]
        features = frequency_features(height, width, grid.device).to(self.dtype)
        spectrum = dct2(F.layer_norm(grid, grid.shape[-1:])) * self.rise(features).exp()
        order = frequency_order(height, width, grid.device)
        return self.to_code(spectrum.flatten(1, 2)[:, order], features.flatten(0, 1)[order])

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Code vectors (B, k, D) -> images.

        Args:
            codes: of the first k frequencies.
            lengths: (B,) how many of them belong to the item, where items differ.
            size: of the images, multiples of the stride; None: the square ones of k tokens in all.

        Raises:
            ValueError: more codes than frequencies, or no size where k is no square.
        """
        batch, count, _ = codes.shape
        stride = self.config.stride
        height, width = (side // stride for side in size) if size is not None else (math.isqrt(count),) * 2
        if not 1 <= count <= height * width or (size is None and height * width != count):
            wanted = (
                f"1 to {height * width} codes for {size} pixels" if size is not None else "size, or a square number"
            )
            raise ValueError(f"expected {wanted}, got {count}")
        features = frequency_features(height, width, codes.device).flatten(0, 1)
        order = frequency_order(height, width, codes.device)[:count]
        known = features[order].to(codes.dtype)
        spectrum = self.from_code(codes, known) * self.fall(known).exp()
        if lengths is None:
            lengths = torch.full((batch,), count, device=codes.device)
        lengths = lengths.to(codes.device, torch.float32)
        spectrum = spectrum * (torch.arange(count, device=codes.device) < lengths[:, None])[..., None]
        whole = spectrum.new_zeros(batch, height * width, spectrum.shape[-1]).index_copy(1, order, spectrum)
        grid = inverse_dct2(whole.unflatten(1, (height, width))).movedim(-1, 1)
        share = torch.stack([lengths / (height * width), lengths.log2() / 8], -1).to(grid.dtype)
        return self.decoder(self.conv_in(grid) + self.condition(share)[:, :, None, None])

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Output:
        self.spec.check_shape(x)
        padded = self.pad(x)
        latent = self.latent(padded)
        quantized = self.quantizer(latent)
        if self.training:
            quantized.losses["spread"] = spread_loss(latent)
        height, width = padded.shape[2:]
        images = self.reconstruct(quantized.codes.to(latent.dtype), lengths, (height, width))
        return Output(images[:, :, : x.shape[2], : x.shape[3]], latent, quantized)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        given = () if tokens.extent is None else tokens.extent.sizes
        sizes = {tuple(side + -side % self.config.stride for side in size) for size in given}
        if len(sizes) != 1:
            raise ValueError(
                f"{self.name}: expected tokens of images of one size (extent), got {sorted(sizes) or None}"
            )
        height, width = sizes.pop()
        return self.reconstruct(codes, tokens.lengths, (height, width))


class _FrequencyCoder(nn.Module):
    """A network for each token that knows its frequency: (B, N, a) and its features (N, 9) -> (B, N, b)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, outputs)
        self.net = nn.Sequential(
            nn.Linear(inputs + _FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, outputs),
        )  # fmt: skip

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return self.skip(x) + self.net(torch.cat([x, features.expand(*x.shape[:-1], -1)], -1))


def spread_loss(latent: Tensor, deviation: float = 0.88) -> Tensor:
    """Latents (B, N, D) -> the mean square of their means over the batch and of the logarithms of their deviations,
    these relative to `deviation`.
    """
    variance, mean = torch.var_mean(latent.float(), 0, correction=0)
    return ((variance + 1e-4).log() / 2 - math.log(deviation)).square().mean() + mean.square().mean()


def _frequencies(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal frequency of each place, (h, w) each, in half cycles a cell, from 0 to below 1."""
    vertical, horizontal = (torch.arange(side, device=device, dtype=torch.float32) / side for side in (height, width))
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

"""Compact: the zoo's own small tokenizer, convolutions only, for photos of any size on a machine without a GPU.

Pixels are rearranged into patches before the first convolution, residual blocks have no normalisation (so that no token
depends on statistics of the whole image), and every layer is a 3x3 or 1x1 convolution: the receptive field is finite.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.haar import Patch, Unpatch
from zoo.layers.resnet import PlainResBlock
from zoo.quantizers import FiniteScalarConfig, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class CompactConfig(Config):
    """Sizes of the network. Stride of a token: twice the patch size."""

    patch_size: int = 4
    fine_channels: int = 64  # at the resolution of the patches
    channels: int = 160  # at the resolution of the tokens
    encoder_blocks: tuple[int, int] = (2, 4)  # fine, coarse
    decoder_blocks: tuple[int, int] = (4, 6)  # fine, coarse
    quantizer: QuantizerConfig = FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5))

    def __post_init__(self) -> None:
        self.require(self.patch_size in (1, 2, 4, 8, 16), "a patch size of 1, 2, 4, 8 or 16", self.patch_size)


@register("compact")
class Compact(Tokenizer):
    """Images (B, 3, H, W) in [-1, 1], H and W multiples of the stride f -> a grid of tokens (B, H / f, W / f)."""

    def __init__(self, config: CompactConfig) -> None:
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), multiple=2 * config.patch_size)
        super().__init__(config, spec, config.quantizer)
        patched, fine, coarse = 3 * config.patch_size**2, config.fine_channels, config.channels
        self.encoder = nn.Sequential(
            Patch(config.patch_size, "rearrange"),
            nn.Conv2d(patched, fine, 3, padding=1),
            *(PlainResBlock(fine) for _ in range(config.encoder_blocks[0])),
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1),
            *(PlainResBlock(coarse) for _ in range(config.encoder_blocks[1])),
            nn.SiLU(),
            nn.Conv2d(coarse, config.quantizer.dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.quantizer.dim, coarse, 3, padding=1),
            *(PlainResBlock(coarse) for _ in range(config.decoder_blocks[1])),
            nn.Conv2d(coarse, 4 * fine, 3, padding=1),
            nn.PixelShuffle(2),
            *(PlainResBlock(fine) for _ in range(config.decoder_blocks[0])),
            nn.SiLU(),
            nn.Conv2d(fine, patched, 3, padding=1),
            Unpatch(config.patch_size, "rearrange"),
        )

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).movedim(1, -1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.movedim(-1, 1))
